"""Training: the loop, optimizers, checkpoints and data; it knows no method."""

from jtok.train.ahead import lower_update
from jtok.train.checkpoints import Checkpoints
from jtok.train.data import (
    PackedRows,
    jsonl_documents,
    packed_batches,
    text_documents,
    tokenize_documents,
)
from jtok.train.language_model import bits_per_byte, lm_loss
from jtok.train.loop import FitResult, NonFiniteLossError, fit
from jtok.train.metrics import MetricsLog
from jtok.train.optim import adamw, matrices_only, schedule

__all__ = [
    "Checkpoints",
    "FitResult",
    "MetricsLog",
    "NonFiniteLossError",
    "PackedRows",
    "adamw",
    "bits_per_byte",
    "fit",
    "jsonl_documents",
    "lm_loss",
    "lower_update",
    "matrices_only",
    "packed_batches",
    "schedule",
    "text_documents",
    "tokenize_documents",
]
