"""Vectors to fewer vectors: plans that merge or drop tokens."""

from jtok.compress.adjacent import adjacent
from jtok.compress.attention_scores import attention_scores
from jtok.compress.baselines import random_tokens, uniform_tokens
from jtok.compress.connected import internvl, mobilevlm, slam_asr, videollama2
from jtok.compress.debug import checked
from jtok.compress.density import density_peaks
from jtok.compress.depth import (
    LayerSchedule,
    fastv_schedule,
    kept_schedule,
    pyramid_schedule,
    ramp_schedule,
    stage_schedule,
    vtw_schedule,
)
from jtok.compress.divprune import divprune, farthest_first
from jtok.compress.dycoke import (
    Reselection,
    dycoke,
    dycoke_budget,
    reselect,
    start_reselection,
)
from jtok.compress.fastv import fastv, fastv_budget
from jtok.compress.flops import Cost, flops
from jtok.compress.frame_merging import (
    MergedFrames,
    aim,
    frame_removals,
    grid_positions,
    merge_frames,
    merge_to_grid,
)
from jtok.compress.frames import frame_pooling, frame_stacking
from jtok.compress.importance import (
    AimScore,
    FirstTokensScore,
    LastTokenScore,
    RandomScore,
    ReceivedScore,
    ScoreView,
    aim_importance,
)
from jtok.compress.interface import Budget, Compressed, Method, compress
from jtok.compress.matryoshka import drawn_scale, matryoshka, matryoshka_budgets
from jtok.compress.menu import methods
from jtok.compress.pitome import pitome
from jtok.compress.prefill import Pruned, prefill, spans_mask
from jtok.compress.presets import mean_by_size, pitome_preset
from jtok.compress.prumerge import outlier_share, prumerge, prumerge_plus
from jtok.compress.pruned_cache import PrunedCache
from jtok.compress.qformer_losses import (
    ImageTexts,
    caption_loss,
    contrast_loss,
    match_loss,
    qformer_losses,
)
from jtok.compress.queries import perceiver, qformer, windowed_qformer
from jtok.compress.resample import (
    adaptive_pooling,
    average_pooling,
    bilinear_pooling,
    deco,
    max_pooling,
    pllava,
    unshuffle,
)
from jtok.compress.rounds import merge_rounds, pitome_tokens, tome_tokens
from jtok.compress.schedule import Schedule, schedule
from jtok.compress.schedules import linear_margins, removal_schedule, token_counts
from jtok.compress.sparsevlm import Raters, sparsevlm, text_raters
from jtok.compress.sparsevlm_two import sparsevlm_attention
from jtok.compress.spectral import SpectralDistance, spectral_distance
from jtok.compress.stages import sparsevlm_counts, withdraw_layer
from jtok.compress.taxonomy import TaxonomyRow, taxonomy, taxonomy_page
from jtok.compress.tome import grouped, random_merge, tome, uniform_merge
from jtok.compress.visionzip import visionzip

__all__ = [
    "AimScore",
    "Budget",
    "Compressed",
    "Cost",
    "FirstTokensScore",
    "ImageTexts",
    "LastTokenScore",
    "LayerSchedule",
    "MergedFrames",
    "Method",
    "Pruned",
    "PrunedCache",
    "RandomScore",
    "Raters",
    "ReceivedScore",
    "Reselection",
    "Schedule",
    "ScoreView",
    "SpectralDistance",
    "TaxonomyRow",
    "adaptive_pooling",
    "adjacent",
    "aim",
    "aim_importance",
    "attention_scores",
    "average_pooling",
    "bilinear_pooling",
    "caption_loss",
    "checked",
    "compress",
    "contrast_loss",
    "deco",
    "density_peaks",
    "divprune",
    "drawn_scale",
    "dycoke",
    "dycoke_budget",
    "farthest_first",
    "fastv",
    "fastv_budget",
    "fastv_schedule",
    "flops",
    "frame_pooling",
    "frame_removals",
    "frame_stacking",
    "grid_positions",
    "grouped",
    "internvl",
    "kept_schedule",
    "linear_margins",
    "match_loss",
    "matryoshka",
    "matryoshka_budgets",
    "max_pooling",
    "mean_by_size",
    "merge_frames",
    "merge_rounds",
    "merge_to_grid",
    "methods",
    "mobilevlm",
    "outlier_share",
    "perceiver",
    "pitome",
    "pitome_preset",
    "pitome_tokens",
    "pllava",
    "prefill",
    "prumerge",
    "prumerge_plus",
    "pyramid_schedule",
    "qformer",
    "qformer_losses",
    "ramp_schedule",
    "random_merge",
    "random_tokens",
    "removal_schedule",
    "reselect",
    "schedule",
    "slam_asr",
    "spans_mask",
    "sparsevlm",
    "sparsevlm_attention",
    "sparsevlm_counts",
    "spectral_distance",
    "stage_schedule",
    "start_reselection",
    "taxonomy",
    "taxonomy_page",
    "text_raters",
    "token_counts",
    "tome",
    "tome_tokens",
    "uniform_merge",
    "uniform_tokens",
    "unshuffle",
    "videollama2",
    "visionzip",
    "vtw_schedule",
    "windowed_qformer",
    "withdraw_layer",
]
