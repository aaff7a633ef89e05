"""Ids to vectors: rows for vocabularies that a model was not trained with."""

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
from jtok.embed.simple import fitted_normal, fitted_rows, mean, normal, zero

__all__ = [
    "EmbeddingInit",
    "Made",
    "Options",
    "Report",
    "Rows",
    "Task",
    "check_anchors",
    "check_finite",
    "fitted_normal",
    "fitted_rows",
    "initialiser",
    "mean",
    "normal",
    "rows_of",
    "zero",
]
