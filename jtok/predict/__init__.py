"""Several tokens from one position: heads, masks, losses."""

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
    MODES,
    Parts,
    Tuned,
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
    "MODES",
    "SCHEDULES",
    "AuxiliaryHeads",
    "DraftHead",
    "HeadsConfig",
    "OffsetLosses",
    "Parts",
    "Tuned",
    "auxiliary_hidden",
    "auxiliary_loss",
    "combine_losses",
    "concept_tune",
    "count_targets",
    "distance_weights",
    "encode_pieces",
    "eval_losses",
    "future_labels",
    "head_adapters",
    "heads_from_tensors",
    "init_heads",
    "load_heads",
    "offset_losses",
    "out_of_patience",
    "pad_rows",
    "pretrain_heads",
    "real_eval_loss",
    "safe_mean",
    "save_heads",
    "schedule_weight",
    "span_labels",
    "tuning_parts",
    "weigh_offsets",
]
