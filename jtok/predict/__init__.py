"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.draft_files import load_draft, save_draft
from jtok.predict.draft_training import draft_loss, draft_losses
from jtok.predict.fusing import (
    Base,
    Fusing,
    FusingConfig,
    base_of,
    fusing_axes,
    fusing_config,
    import_fusing,
    init_fusing,
)
from jtok.predict.fusing_draft import (
    FusingContext,
    empty_context,
    extend_context,
    fusing_head,
)
from jtok.predict.fusing_states import (
    encode_trigrams,
    fuse,
    gram_ids,
    head_hidden,
    head_logits,
)
from jtok.predict.heads import DraftHead
from jtok.predict.offset_losses import (
    OBJECTIVES,
    Objective,
    OffsetLosses,
    offset_losses,
    state_distance,
)
from jtok.predict.state_heads import (
    StateHeads,
    StateHeadsConfig,
    init_state_heads,
    residual_blocks,
    state_draft_head,
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
    "OBJECTIVES",
    "SCHEDULES",
    "Base",
    "DraftHead",
    "Fusing",
    "FusingConfig",
    "FusingContext",
    "Objective",
    "OffsetLosses",
    "StateHeads",
    "StateHeadsConfig",
    "base_of",
    "distance_weights",
    "draft_loss",
    "draft_losses",
    "empty_context",
    "encode_trigrams",
    "extend_context",
    "fuse",
    "fusing_axes",
    "fusing_config",
    "fusing_head",
    "future_labels",
    "gram_ids",
    "head_hidden",
    "head_logits",
    "import_fusing",
    "init_fusing",
    "init_state_heads",
    "load_draft",
    "offset_losses",
    "residual_blocks",
    "safe_mean",
    "save_draft",
    "schedule_weight",
    "state_distance",
    "state_draft_head",
    "weigh_offsets",
]
