"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.confidence import (
    Confidence,
    init_probe,
    part_confidence,
    probe_confidence,
    probe_loss,
)
from jtok.predict.exit_costs import (
    Calibrated,
    calibrate_thresholds,
    exit_costs,
    exit_layers,
    expected_speed,
    modelled_speed,
)
from jtok.predict.heads import DraftHead
from jtok.predict.sorted import (
    EarlyExit,
    ExitReads,
    check_exits,
    check_thresholds,
    choose_exit,
    early_exit,
    exit_hidden,
    exit_nats,
    read_exits,
    sorted_loss,
)
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
    "Calibrated",
    "Confidence",
    "DraftHead",
    "EarlyExit",
    "ExitReads",
    "calibrate_thresholds",
    "check_exits",
    "check_thresholds",
    "choose_exit",
    "distance_weights",
    "early_exit",
    "exit_costs",
    "exit_hidden",
    "exit_layers",
    "exit_nats",
    "expected_speed",
    "future_labels",
    "init_probe",
    "modelled_speed",
    "part_confidence",
    "probe_confidence",
    "probe_loss",
    "read_exits",
    "safe_mean",
    "schedule_weight",
    "sorted_loss",
    "weigh_offsets",
]
