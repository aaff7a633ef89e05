"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.adapter_files import load_adapters, save_adapters
from jtok.predict.adapters import TARGETS, attach, detach, lora_init, merge, unmerge
from jtok.predict.auxiliary import (
    HEAD_INPUTS,
    AuxiliaryHeads,
    HeadsConfig,
    auxiliary_hidden,
    init_heads,
)
from jtok.predict.auxiliary_loss import (
    OffsetLosses,
    auxiliary_loss,
    combine_losses,
    count_targets,
    eval_losses,
    offset_losses,
    out_of_patience,
    real_eval_loss,
)
from jtok.predict.auxiliary_storage import heads_from_tensors, load_heads, save_heads
from jtok.predict.auxiliary_training import (
    TUNING_MODES,
    FineTuned,
    Parts,
    concept_tune,
    head_adapters,
    pretrain_heads,
    tuning_parts,
)
from jtok.predict.heads import DraftHead
from jtok.predict.spans import encode_pieces, pad_rows, span_labels
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
    "HEAD_INPUTS",
    "IGNORE",
    "SCHEDULES",
    "TARGETS",
    "TUNING_MODES",
    "AuxiliaryHeads",
    "DraftHead",
    "FineTuned",
    "HeadsConfig",
    "OffsetLosses",
    "Parts",
    "attach",
    "auxiliary_hidden",
    "auxiliary_loss",
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
    "load_adapters",
    "load_heads",
    "lora_init",
    "merge",
    "offset_losses",
    "out_of_patience",
    "pad_rows",
    "pretrain_heads",
    "real_eval_loss",
    "safe_mean",
    "save_adapters",
    "save_heads",
    "schedule_weight",
    "span_labels",
    "tuning_parts",
    "unmerge",
    "weigh_offsets",
]
