"""Attention that also says how much each query looked at each token."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.ops.segments import attend

__all__ = ["mix_and_look"]


def mix_and_look(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    allow: Bool[Array, "#batch #queries keys"],
    drop: Callable[[Array], Array] | None = None,
) -> tuple[
    Float[Array, "batch queries heads head_dim"], Float[Array, "batch queries keys"]
]:
    """What `jtok.ops.segments.attend` gives, and its weights, the mean of the heads.

    Args:
      query: `[batch, queries, heads, head_dim]`.
      key: `[batch, keys, heads, head_dim]`.
      value: as `key`.
      allow: `[batch or 1, queries or 1, keys]` bool.
      drop: maps the weights, such as dropout; None for no change.

    Returns:
      The mixed values in the dtype of `value`, and `[batch, queries, keys]` float32
      weights before `drop`.
    """
    kept: list[Array] = []

    def look(weights: Array) -> Array:
        kept.append(jnp.mean(weights, axis=1))
        return weights if drop is None else drop(weights)

    mixed = attend(query, key, value, allow, drop=look)
    return mixed, kept[0]
