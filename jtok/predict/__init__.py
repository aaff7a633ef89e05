"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.adapter_files import load_adapters, save_adapters
from jtok.predict.adapters import TARGETS, attach, detach, lora_init, merge, unmerge
from jtok.predict.auxiliary import AuxiliaryHeads, HEAD_INPUTS, HeadsConfig, auxiliary_hidden, init_heads
from jtok.predict.auxiliary_loss import OffsetLosses, auxiliary_loss, combine_losses, count_targets, eval_losses, offset_losses, out_of_patience, real_eval_loss
from jtok.predict.auxiliary_storage import heads_from_tensors, load_heads, save_heads
from jtok.predict.auxiliary_training import FineTuned, Parts, TUNING_MODES, concept_tune, head_adapters, pretrain_heads, tuning_parts
from jtok.predict.heads import DraftHead
from jtok.predict.mask_files import load_masks, save_masks
from jtok.predict.mask_tokens import MaskLosses, block_latents, latent_consistency, mask_init, mask_loss, mask_losses, with_masks
from jtok.predict.masks import Packed, allow_blocks, allow_prefix, block_attention, choose_blocks, interleave, pack_blocks
from jtok.predict.sampler import mask_head, sampler_hidden, sampler_init
from jtok.predict.spans import encode_pieces, pad_rows, span_labels
from jtok.predict.targets import IGNORE, SCHEDULES, distance_weights, future_labels, safe_mean, schedule_weight, weigh_offsets

__all__ = [
    "AuxiliaryHeads",
    "DraftHead",
    "FineTuned",
    "HEAD_INPUTS",
    "HeadsConfig",
    "IGNORE",
    "MaskLosses",
    "OffsetLosses",
    "Packed",
    "Parts",
    "SCHEDULES",
    "TARGETS",
    "TUNING_MODES",
    "allow_blocks",
    "allow_prefix",
    "attach",
    "auxiliary_hidden",
    "auxiliary_loss",
    "block_attention",
    "block_latents",
    "choose_blocks",
    "combine_losses",
    "concept_tune",
    "count_targets",
    "detach",
    "distance_weights",
    "encode_pieces",
    "eval_losses",
    "future_labels",
    "head_adapters",
    "heads_from_tensors",
    "init_heads",
    "interleave",
    "latent_consistency",
    "load_adapters",
    "load_heads",
    "load_masks",
    "lora_init",
    "mask_head",
    "mask_init",
    "mask_loss",
    "mask_losses",
    "merge",
    "offset_losses",
    "out_of_patience",
    "pack_blocks",
    "pad_rows",
    "pretrain_heads",
    "real_eval_loss",
    "safe_mean",
    "sampler_hidden",
    "sampler_init",
    "save_adapters",
    "save_heads",
    "save_masks",
    "schedule_weight",
    "span_labels",
    "tuning_parts",
    "unmerge",
    "weigh_offsets",
    "with_masks",
]
