"""Choosing tokens by a score: which stay, in which order."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.compress.matching import ranks_among
from jtok.errors import check

__all__ = ["kept_in_order", "token_scores", "top_tokens"]


def top_tokens(
    score: Float[Array, "batch seq"],
    count: int | Int[Array, " batch"],
    among: Bool[Array, "batch seq"],
) -> Bool[Array, "batch seq"]:
    """The `count` tokens of the highest scores; ties to the lower index.

    Args:
      score: `[batch, seq]`.
      count: one for all rows, or `[batch]`.
      among: `[batch, seq]` bool: those that may be chosen.

    Returns:
      `[batch, seq]` bool; fewer of a row that has fewer.
    """
    still = jax.lax.stop_gradient(score.astype(jnp.float32))
    rank = ranks_among(jnp.where(among, still, -jnp.inf))
    each = jnp.broadcast_to(jnp.asarray(count, jnp.int32), score.shape[:1])
    return (rank < each[:, None]) & among


def kept_in_order(
    mask: Bool[Array, "batch seq"],
    rows: int,
    place: Array | None = None,
) -> Int[Array, "batch rows"]:
    """The tokens of a mask, one a row, ascending; -1 behind the last.

    Args:
      mask: `[batch, seq]` bool.
      rows: rows that come out (static); more tokens than that are cut.
      place: `[batch, seq]` where each stands; None for its index.

    Returns:
      `[batch, rows]` int32.
    """
    index = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    at = jnp.broadcast_to(index, mask.shape) if place is None else place
    far = jnp.where(mask, at.astype(jnp.float32), jnp.inf)
    order = jnp.argsort(far, axis=1, stable=True)[:, :rows].astype(jnp.int32)
    there = jnp.take_along_axis(mask, order, axis=1)
    return jnp.where(there, order, -1)


def token_scores(
    attn: Array,
    batch: int,
    seq: int,
    *,
    heads: Literal["mean", "sum"] = "mean",
    name: str = "attn",
) -> Float[Array, "batch seq"]:
    """One float32 number a token of attention with or without heads.

    Args:
      attn: `[batch, seq]` or `[batch, heads, seq]`.
      batch: rows of the batch.
      seq: tokens.
      heads: what becomes of the heads.
      name: of the argument, for the error.

    Raises:
      ArgumentError: another shape.
    """
    good = attn.ndim in (2, 3) and (attn.shape[0], attn.shape[-1]) == (batch, seq)
    expected = f"[{batch}, {seq}] or [{batch}, heads, {seq}]"
    check(good, name, f"shape {attn.shape}", expected)
    wide = jax.lax.stop_gradient(attn.astype(jnp.float32))
    if attn.ndim == 2:
        return wide
    return jnp.mean(wide, axis=1) if heads == "mean" else jnp.sum(wide, axis=1)
