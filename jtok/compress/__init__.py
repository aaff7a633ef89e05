"""Vectors to fewer vectors: plans that merge or drop tokens."""

from jtok.compress.baselines import random_tokens, uniform_tokens
from jtok.compress.connected import internvl, mobilevlm, slam_asr, videollama2
from jtok.compress.flops import Cost, flops
from jtok.compress.frames import frame_pooling, frame_stacking
from jtok.compress.interface import Budget, Compressed, Method, compress
from jtok.compress.matryoshka import drawn_scale, matryoshka, matryoshka_budgets
from jtok.compress.menu import methods
from jtok.compress.pitome import pitome
from jtok.compress.presets import mean_by_size, pitome_preset
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
from jtok.compress.schedule import Schedule, schedule
from jtok.compress.schedules import linear_margins, removal_schedule, token_counts
from jtok.compress.spectral import SpectralDistance, spectral_distance
from jtok.compress.taxonomy import TaxonomyRow, taxonomy, taxonomy_page
from jtok.compress.tome import grouped, random_merge, tome, uniform_merge

__all__ = [
    "Budget",
    "Compressed",
    "Cost",
    "ImageTexts",
    "Method",
    "Schedule",
    "SpectralDistance",
    "TaxonomyRow",
    "adaptive_pooling",
    "average_pooling",
    "bilinear_pooling",
    "caption_loss",
    "compress",
    "contrast_loss",
    "deco",
    "drawn_scale",
    "flops",
    "frame_pooling",
    "frame_stacking",
    "grouped",
    "internvl",
    "linear_margins",
    "match_loss",
    "matryoshka",
    "matryoshka_budgets",
    "max_pooling",
    "mean_by_size",
    "methods",
    "mobilevlm",
    "perceiver",
    "pitome",
    "pitome_preset",
    "pllava",
    "qformer",
    "qformer_losses",
    "random_merge",
    "random_tokens",
    "removal_schedule",
    "schedule",
    "slam_asr",
    "spectral_distance",
    "taxonomy",
    "taxonomy_page",
    "token_counts",
    "tome",
    "uniform_merge",
    "uniform_tokens",
    "unshuffle",
    "videollama2",
    "windowed_qformer",
]
