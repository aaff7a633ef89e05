"""Which tokens a model has hardly been trained on, told by their rows."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.embed.init import Rows
from jtok.errors import check

__all__ = ["under_trained_rows", "well_trained_tokens"]

_MARKS = ("unused_token", "reserved_special_token")


def well_trained_tokens(
    rows: Rows, *, quantile: float = 0.01, unused: Sequence[int] = ()
) -> tuple[int, ...]:
    """Ids whose rows look trained, for `Options.anchors`.

    Unused ids are those without a token, those called "unused_token" or
    "reserved_special_token", and those given. A row is bad that is unused, is much like
    the mean of the unused rows, or, beside a separate unembedding, is very short.

    Args:
      rows: of a model.
      quantile: share of rows that are taken for bad by their length, and by their
        likeness to unused ones; 0 to 1.
      unused: ids that are known to be unused.

    Returns:
      The other ids, ascending.

    Raises:
      ArgumentError: `quantile` out of range.

    Source: Land and Bartolo 2024, arXiv 2405.05417, as in the code of arXiv 2506.06607.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jax.random.normal(jax.random.key(0), (282, 4)), None,
      ...     tiny_vocabulary())
      >>> good = well_trained_tokens(rows)
      >>> max(good) < 280 and len(good) > 200
      True
    """
    check(0 <= quantile <= 1, "quantile", quantile, "0 to 1")
    vocabulary, count = rows.vocabulary, rows.input.shape[0]
    marked = np.zeros(count, bool)
    for id_ in range(count):
        surface = vocabulary.surface_of(id_)
        named = surface is not None and any(mark in surface for mark in _MARKS)
        marked[id_] = surface is None or named or id_ in unused
    head = rows.output
    bad = np.asarray(under_trained_rows(rows.input, head, marked, quantile=quantile))
    return tuple(np.flatnonzero(~bad).tolist())


def under_trained_rows(
    embedding: Float[Array, "rows dim"],
    head: Float[Array, "rows dim"] | None,
    unused: Bool[np.ndarray, " rows"],
    *,
    quantile: float = 0.01,
) -> Bool[np.ndarray, " rows"]:
    """Marks rows that are unused, or look it.

    Args:
      embedding: `[rows, dim]`.
      head: `[rows, dim]`, or None where it is the embedding.
      unused: `[rows]` ids known to be unused.
      quantile: as for `well_trained_tokens`.

    Returns:
      `[rows]` True for bad rows.

    Source: as for `well_trained_tokens`.

    Example:
      >>> rows = jax.random.normal(jax.random.key(0), (50, 4))
      >>> int(under_trained_rows(rows, None, np.arange(50) < 3)[:3].sum())
      3
    """
    bad = np.array(unused, bool)
    rows = np.asarray(embedding.astype(jnp.float32))
    if head is not None:
        lengths = np.linalg.norm(rows, axis=1)
        bad |= lengths < _quantile(lengths, quantile)
    bad |= _like_unused(rows, unused, quantile)
    if head is not None:
        bad |= _like_unused(np.asarray(head.astype(jnp.float32)), unused, quantile)
    return bad


def _like_unused(rows: np.ndarray, unused: np.ndarray, quantile: float) -> np.ndarray:
    if not unused.any():
        return np.zeros(len(rows), bool)
    middle = rows[unused].mean(axis=0)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(middle)
    cosines = rows @ middle / np.maximum(lengths, 1e-8)
    return cosines > max(np.float32(0.5), _quantile(cosines, 1 - quantile))


def _quantile(values: np.ndarray, share: float) -> np.float32:
    """Between the two nearest values, linearly; all in float32, as the code has it.

    In double precision a rank that falls on a value may be a little off it here.
    """
    rank = np.float32(share) * np.float32(len(values) - 1)
    low, high = np.sort(values)[[math.floor(rank), math.ceil(rank)]]
    part = np.float32(rank - np.floor(rank))
    if part < 0.5:
        return low + part * (high - low)
    return high - (high - low) * (1 - part)
