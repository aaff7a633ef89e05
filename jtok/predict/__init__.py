"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.adapter_files import load_adapters, save_adapters
from jtok.predict.adapters import TARGETS, attach, detach, lora_init, merge, unmerge
from jtok.predict.heads import DraftHead
from jtok.predict.mask_files import load_masks, save_masks
from jtok.predict.mask_tokens import (
    MaskLosses,
    block_latents,
    latent_consistency,
    mask_init,
    mask_loss,
    mask_losses,
    with_masks,
)
from jtok.predict.masks import (
    Packed,
    allow_blocks,
    allow_prefix,
    block_attention,
    choose_blocks,
    interleave,
    pack_blocks,
)
from jtok.predict.sampler import mask_head, sampler_hidden, sampler_init
from jtok.predict.targets import (
    IGNORE,
    SCHEDULES,
    distance_weights,
    future_labels,
    safe_mean,
    schedule_weight,
    weigh_offsets,
)

__all__ = [
    "IGNORE",
    "SCHEDULES",
    "TARGETS",
    "DraftHead",
    "MaskLosses",
    "Packed",
    "allow_blocks",
    "allow_prefix",
    "attach",
    "block_attention",
    "block_latents",
    "choose_blocks",
    "detach",
    "distance_weights",
    "future_labels",
    "interleave",
    "latent_consistency",
    "load_adapters",
    "load_masks",
    "lora_init",
    "mask_head",
    "mask_init",
    "mask_loss",
    "mask_losses",
    "merge",
    "pack_blocks",
    "safe_mean",
    "sampler_hidden",
    "sampler_init",
    "save_adapters",
    "save_masks",
    "schedule_weight",
    "unmerge",
    "weigh_offsets",
    "with_masks",
]
