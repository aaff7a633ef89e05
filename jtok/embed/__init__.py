"""Ids to vectors: rows for vocabularies that a model was not trained with."""

from jtok.embed.encoders import TextVectors, hashed_ngrams, model_encoder
from jtok.embed.heuristic import tokenadapt
from jtok.embed.init import (
    EmbeddingInit,
    Made,
    Options,
    Report,
    Rows,
    Task,
    check_anchors,
    check_finite,
    initialiser,
    rows_of,
)
from jtok.embed.mixing import (
    Mix,
    global_weights,
    hybrid,
    local_weights,
    mixed_rows,
    nearest_tokens,
)
from jtok.embed.simple import fitted_normal, fitted_rows, mean, normal, zero

__all__ = [
    "EmbeddingInit",
    "Made",
    "Mix",
    "Options",
    "Report",
    "Rows",
    "Task",
    "TextVectors",
    "check_anchors",
    "check_finite",
    "fitted_normal",
    "fitted_rows",
    "global_weights",
    "hashed_ngrams",
    "hybrid",
    "initialiser",
    "local_weights",
    "mean",
    "mixed_rows",
    "model_encoder",
    "nearest_tokens",
    "normal",
    "rows_of",
    "tokenadapt",
    "zero",
]
