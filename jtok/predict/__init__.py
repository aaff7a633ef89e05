"""Several tokens from one position: heads, masks, losses."""

from jtok.predict.future import FutureModel, future_from, init_future
from jtok.predict.future_loss import (
    FutureLosses,
    active_horizon,
    distance_perplexity,
    future_loss,
    future_losses,
    sample_positions,
)
from jtok.predict.future_slots import (
    FutureConfig,
    cross_pairs,
    decode_slots,
    embed_tokens,
    run_slots,
)
from jtok.predict.future_storage import load_future, save_future
from jtok.predict.future_target import future_context, future_head, future_target
from jtok.predict.heads import DraftHead
from jtok.predict.state_probes import (
    RidgeProbe,
    adjacent_cosine,
    logistic_probe,
    next_bag,
    ridge_probe,
    smoothness,
    state_vectors,
    token_share,
    topic_coherence,
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
    "DraftHead",
    "FutureConfig",
    "FutureLosses",
    "FutureModel",
    "RidgeProbe",
    "active_horizon",
    "adjacent_cosine",
    "cross_pairs",
    "decode_slots",
    "distance_perplexity",
    "distance_weights",
    "embed_tokens",
    "future_context",
    "future_from",
    "future_head",
    "future_labels",
    "future_loss",
    "future_losses",
    "future_target",
    "init_future",
    "load_future",
    "logistic_probe",
    "next_bag",
    "ridge_probe",
    "run_slots",
    "safe_mean",
    "sample_positions",
    "save_future",
    "schedule_weight",
    "smoothness",
    "state_vectors",
    "token_share",
    "topic_coherence",
    "weigh_offsets",
]
