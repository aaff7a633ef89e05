"""The attention that ranks tokens, from queries and keys, in memory linear in them."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.byproducts import attention_byproducts
from jtok.ops.eager import one_program

__all__ = ["attention_scores"]

_OF = ("first", "last", "mean")


@one_program
def attention_scores(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    *,
    of: Literal["first", "last", "mean"] | Int[Array, "batch rows"] = "mean",
    valid: Bool[Array, "batch keys"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "batch heads keys"] | Float[Array, "batch heads rows keys"]:
    """What methods take as `attn`, without a matrix of all pairs.

    Models that run fused attention give no weights. The rows that a method looks at
    are computed from queries and keys, and so is what each token receives.

    Args:
      query: `[batch, seq, heads, head_dim]`, rotated where the model rotates.
      key: `[batch, keys, kv_heads, head_dim]`; `heads` is a multiple of `kv_heads`.
        Full-width attention (PruMerge) is one head.
      of: whose attention: "first" (a class token: VisionZip, PruMerge), "last" (the
        last real token: FastV), "mean" of all real queries (a tower without a class
        token), or `[batch, rows]` int32 queries (words: SparseVLM).
      valid: `[batch, keys]` bool; None lets all tokens be real.
      causal: queries see no later keys (static).
      scale: factor on the scores; None takes `head_dim ** -0.5`.

    Returns:
      `[batch, heads, keys]` float32, or `[batch, heads, rows, keys]` for given rows.

    Raises:
      ArgumentError: an unknown `of`, or shapes that do not fit.

    Source: Shao et al. 2025, arXiv 2507.20198; sections 5 and 8 of its page.

    Example:
      >>> x = jnp.ones((1, 2, 1, 4))
      >>> attention_scores(x, x, of="last").tolist()
      [[[0.5, 0.5]]]
    """
    batch, seq = query.shape[:2]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if not isinstance(of, str):
        return _rows(query, key, of, factor, valid, causal)
    check(of in _OF, "of", of, f"one of {_OF}, or rows")
    if of == "mean":
        found: Any = attention_byproducts(
            query, key, scale=factor, valid=valid, causal=causal, columns=True
        )
        heard = jnp.full((batch,), seq, jnp.float32)
        if valid is not None and valid.shape[1] == seq:
            heard = jnp.sum(valid, axis=1, dtype=jnp.float32)
        return found.columns / jnp.maximum(heard, 1.0)[:, None, None]
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    real = index >= 0
    if valid is not None and valid.shape[1] == seq:
        real = valid
    if of == "first":
        at = jnp.argmax(real, axis=1).astype(jnp.int32)
    else:
        at = jnp.max(jnp.where(real, index, 0), axis=1)
    return _rows(query, key, at[:, None], factor, valid, causal)[:, :, 0]


def _rows(
    query: Array, key: Array, rows: Array, factor: float, valid: Array | None,
    causal: bool,
) -> Array:  # fmt: skip
    """The softmax of some queries only."""
    at = jnp.clip(rows, 0, query.shape[1] - 1)[..., None, None]
    if not causal:
        # Other queries are not needed, not even for their log-sum-exp.
        query = jnp.take_along_axis(query, at, axis=1)
        rows = jnp.broadcast_to(
            jnp.arange(query.shape[1], dtype=jnp.int32), query.shape[:2]
        )
    found: Any = attention_byproducts(
        query, key, scale=factor, valid=valid, causal=causal, rows=rows
    )
    return found.rows
