"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.adapter_files import load_adapters, save_adapters
from jtok.predict.adapters import TARGETS, attach, detach, lora_init, merge, unmerge
from jtok.predict.auxiliary import AuxiliaryHeads, HEAD_INPUTS, HeadsConfig, auxiliary_hidden, init_heads
from jtok.predict.auxiliary_loss import AuxiliaryLosses, auxiliary_loss, auxiliary_losses, combine_losses, count_targets, eval_losses, out_of_patience, real_eval_loss
from jtok.predict.auxiliary_storage import heads_from_tensors, load_heads, save_heads
from jtok.predict.auxiliary_training import FineTuned, Parts, TUNING_MODES, concept_tune, head_adapters, pretrain_heads, tuning_parts
from jtok.predict.draft_files import load_draft, save_draft
from jtok.predict.draft_training import draft_loss, draft_losses
from jtok.predict.fusing import Base, Fusing, FusingConfig, base_of, fusing_axes, fusing_config, import_fusing, init_fusing
from jtok.predict.fusing_draft import FusingContext, empty_context, extend_context, fusing_head
from jtok.predict.fusing_states import encode_trigrams, fuse, gram_ids, head_hidden, head_logits
from jtok.predict.future import FutureModel, future_from, init_future
from jtok.predict.future_loss import FutureLosses, active_horizon, distance_perplexity, future_loss, future_losses, sample_positions
from jtok.predict.future_slots import FutureConfig, cross_pairs, decode_slots, embed_tokens, run_slots
from jtok.predict.future_storage import load_future, save_future
from jtok.predict.future_target import future_context, future_head, future_target
from jtok.predict.heads import DraftHead
from jtok.predict.mask_files import load_masks, save_masks
from jtok.predict.mask_tokens import MaskLosses, block_latents, latent_consistency, mask_init, mask_loss, mask_losses, with_masks
from jtok.predict.masks import Packed, allow_blocks, allow_prefix, block_attention, choose_blocks, interleave, pack_blocks
from jtok.predict.offset_losses import OBJECTIVES, Objective, OffsetLosses, offset_losses, state_distance
from jtok.predict.sampler import mask_head, sampler_hidden, sampler_init
from jtok.predict.spans import encode_pieces, pad_rows, span_labels
from jtok.predict.state_heads import StateHeads, StateHeadsConfig, init_state_heads, residual_blocks, state_draft_head
from jtok.predict.state_probes import RidgeProbe, adjacent_cosine, logistic_probe, next_bag, ridge_probe, smoothness, state_vectors, token_share, topic_coherence
from jtok.predict.targets import IGNORE, SCHEDULES, distance_weights, future_labels, safe_mean, schedule_weight, weigh_offsets

__all__ = [
    "AuxiliaryHeads",
    "AuxiliaryLosses",
    "Base",
    "DraftHead",
    "FineTuned",
    "Fusing",
    "FusingConfig",
    "FusingContext",
    "FutureConfig",
    "FutureLosses",
    "FutureModel",
    "HEAD_INPUTS",
    "HeadsConfig",
    "IGNORE",
    "MaskLosses",
    "OBJECTIVES",
    "Objective",
    "OffsetLosses",
    "Packed",
    "Parts",
    "RidgeProbe",
    "SCHEDULES",
    "StateHeads",
    "StateHeadsConfig",
    "TARGETS",
    "TUNING_MODES",
    "active_horizon",
    "adjacent_cosine",
    "allow_blocks",
    "allow_prefix",
    "attach",
    "auxiliary_hidden",
    "auxiliary_loss",
    "auxiliary_losses",
    "base_of",
    "block_attention",
    "block_latents",
    "choose_blocks",
    "combine_losses",
    "concept_tune",
    "count_targets",
    "cross_pairs",
    "decode_slots",
    "detach",
    "distance_perplexity",
    "distance_weights",
    "draft_loss",
    "draft_losses",
    "embed_tokens",
    "empty_context",
    "encode_pieces",
    "encode_trigrams",
    "eval_losses",
    "extend_context",
    "fuse",
    "fusing_axes",
    "fusing_config",
    "fusing_head",
    "future_context",
    "future_from",
    "future_head",
    "future_labels",
    "future_loss",
    "future_losses",
    "future_target",
    "gram_ids",
    "head_adapters",
    "head_hidden",
    "head_logits",
    "heads_from_tensors",
    "import_fusing",
    "init_fusing",
    "init_future",
    "init_heads",
    "init_state_heads",
    "interleave",
    "latent_consistency",
    "load_adapters",
    "load_draft",
    "load_future",
    "load_heads",
    "load_masks",
    "logistic_probe",
    "lora_init",
    "mask_head",
    "mask_init",
    "mask_loss",
    "mask_losses",
    "merge",
    "next_bag",
    "offset_losses",
    "out_of_patience",
    "pack_blocks",
    "pad_rows",
    "pretrain_heads",
    "real_eval_loss",
    "residual_blocks",
    "ridge_probe",
    "run_slots",
    "safe_mean",
    "sample_positions",
    "sampler_hidden",
    "sampler_init",
    "save_adapters",
    "save_draft",
    "save_future",
    "save_heads",
    "save_masks",
    "schedule_weight",
    "smoothness",
    "span_labels",
    "state_distance",
    "state_draft_head",
    "state_vectors",
    "token_share",
    "topic_coherence",
    "tuning_parts",
    "unmerge",
    "weigh_offsets",
    "with_masks",
]
