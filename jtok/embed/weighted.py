"""Weighted sums of rows by their ids."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["weighted_rows"]


@jax.jit
def weighted_rows(
    ids: Int[Array, "tokens most"],
    weights: Float[Array, "tokens most"],
    rows: Float[Array, "rows dim"],
) -> Float[Array, "tokens dim"]:
    """Sums rows by id and weight, one column of ids at a time.

    Args:
      ids: `[tokens, most]` int32; those below 0 count nothing.
      weights: `[tokens, most]` float32 or float64, the dtype of the sums.
      rows: `[rows, dim]` of any float dtype.

    Returns:
      `[tokens, dim]` of the weights' dtype.

    Example:
      >>> ids = jnp.array([[1, 0], [1, -1]])
      >>> weighted_rows(ids, jnp.array([[0.5, 0.5], [1.0, 9.0]]), jnp.eye(2)).tolist()
      [[0.5, 0.5], [0.0, 1.0]]
    """

    def add(column: Int[Array, ""], total: Array) -> Array:
        id_, weight = ids[:, column], weights[:, column]
        weight = jnp.where(id_ >= 0, weight, 0)
        found = rows[jnp.maximum(id_, 0)].astype(total.dtype)
        return total + weight[:, None] * found

    start = jnp.zeros((ids.shape[0], rows.shape[1]), weights.dtype)
    return jax.lax.fori_loop(0, ids.shape[1], add, start)
