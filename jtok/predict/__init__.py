"""Several tokens from one position: heads, masks, losses."""

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
    "DraftHead",
    "distance_weights",
    "future_labels",
    "safe_mean",
    "schedule_weight",
    "weigh_offsets",
]
