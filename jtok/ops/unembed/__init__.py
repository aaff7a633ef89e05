"""Work over the vocabulary, without a `[tokens, vocab]` float32 array."""

from jtok.ops.unembed.api import readout
from jtok.ops.unembed.divergence import kl_divergence
from jtok.ops.unembed.statistics import (
    VocabStatistics,
    cross_entropy,
    vocab_statistics,
)

__all__ = [
    "VocabStatistics",
    "cross_entropy",
    "kl_divergence",
    "readout",
    "vocab_statistics",
]
