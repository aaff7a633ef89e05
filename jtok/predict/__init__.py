"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.adapter_files import load_adapters, save_adapters
from jtok.predict.adapters import TARGETS, attach, detach, lora_init, merge, unmerge
from jtok.predict.heads import DraftHead
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
    "attach",
    "detach",
    "distance_weights",
    "future_labels",
    "load_adapters",
    "lora_init",
    "merge",
    "safe_mean",
    "save_adapters",
    "schedule_weight",
    "unmerge",
    "weigh_offsets",
]
