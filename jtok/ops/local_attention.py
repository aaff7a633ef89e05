"""Attention to the neighbours on both sides, in memory that grows with the length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import check
from jtok.ops.attention import attention

__all__ = ["local_attention"]

_SMALLEST = 32  # queries that look at their keys together


def local_attention(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch heads seq head_dim"],
    value: Float[Array, "batch heads seq head_dim"],
    mask: Bool[Array, "batch seq"] | None = None,
    *,
    reach: int,
    scale: float,
) -> Float[Array, "batch seq heads head_dim"]:
    """Attention in which a token sees those at most `reach` places away.

    Queries are taken in blocks of `reach` (32 at least), each with the keys of its own
    block and of the two beside it, so there are scores for 3 blocks of keys a query
    instead of for all. A query that may see nothing gets a mean of values, which is
    finite; callers mask it.

    Args:
      query: `[batch, seq, heads, head_dim]`.
      key: `[batch, heads, seq, head_dim]`.
      value: as `key`.
      mask: `[batch, seq]` True for keys that may be seen; None is all.
      reach: places to either side, 0 for the token itself only (static).
      scale: factor on the scores.

    Returns:
      `[batch, seq, heads, head_dim]` in the dtype of `query`.

    Raises:
      ArgumentError: `reach` below 0.

    Source: Beltagy et al. 2020, arXiv 2004.05150, section 3.1 (sliding window).

    Example:
      >>> x = jnp.ones((1, 5, 2, 4))
      >>> local_attention(x, x.swapaxes(1, 2), x.swapaxes(1, 2), reach=1,
      ...                 scale=0.5).shape
      (1, 5, 2, 4)
    """
    check(reach >= 0, "reach", reach, "0 or more")
    batch, seq, heads, dim = query.shape
    block = max(reach, _SMALLEST)
    count = -(-seq // block)
    real = jnp.ones((batch, seq), bool) if mask is None else mask
    padding = count * block - seq

    def beside(x: Array, axis: int) -> Array:
        """[.., seq, ..] -> [.., count, 3 * block, ..]: each block between its two."""
        pads = [(0, 0)] * x.ndim
        pads[axis] = (block, block + padding)
        shape = (*x.shape[:axis], count + 2, block, *x.shape[axis + 1 :])
        cut = jnp.pad(x, pads).reshape(shape)
        parts = [jax.lax.slice_in_dim(cut, i, i + count, axis=axis) for i in range(3)]
        return jnp.concatenate(parts, axis=axis + 1)

    def folded(x: Array) -> Array:
        """[batch, heads, count, ..] -> [batch * count, heads, ..]."""
        return jnp.moveaxis(x, 2, 1).reshape(batch * count, heads, *x.shape[3:])

    some = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    some = some.reshape(batch * count, block, heads, dim)
    rows, columns = jnp.arange(block)[:, None], jnp.arange(3 * block)[None]
    near = jnp.abs(rows + block - columns) <= reach
    allow = near[None] & beside(real, 1).reshape(batch * count, 1, 3 * block)
    mixed = attention(
        some, folded(beside(key, 2)), folded(beside(value, 2)), allow, scale=scale
    )
    return mixed.reshape(batch, count * block, heads, dim)[:, :seq]
