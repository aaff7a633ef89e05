"""Attention of read-only queries: each sees a frozen left part, and itself.

Queries that are appended to a sequence but that nobody sees need no square mask: the
left part runs alone, and they attend to its keys and values, which never change.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["query_attention"]

# Masked scores. Finite, so that gradients of a row that sees little are no NaN.
_MASKED = -1e30


def query_attention(
    query: Float[Array, "batch queries heads head_dim"],
    own_key: Float[Array, "batch kv_heads queries head_dim"],
    own_value: Float[Array, "batch kv_heads queries head_dim"],
    key: Float[Array, "batch kv_heads keys head_dim"],
    value: Float[Array, "batch kv_heads keys head_dim"],
    allow: Bool[Array, "batch keys"] | Bool[Array, "batch queries keys"],
    *,
    scale: float,
    bias: Float[Array, " #batch #heads #queries keys"] | None = None,
    own_bias: Float[Array, "#batch #heads #queries"] | None = None,
    softcap: float | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """Each query attends to the keys of a left part and to its own key.

    One softmax, in float32, over the `keys` scores and the one of the query itself.
    Equal to attention over both parts under a mask that hides every query from all
    others; scores are `[queries, keys + 1]`, never square. A query that may see nothing
    of the left part gets its own value.

    Args:
      query: `[batch, queries, heads, head_dim]`.
      own_key: `[batch, kv_heads, queries, head_dim]` of the queries; `heads` is a
        multiple of `kv_heads`.
      own_value: as `own_key`.
      key: `[batch, kv_heads, keys, head_dim]` of the left part.
      value: as `key`.
      allow: `[batch, keys]` or `[batch, queries, keys]` bool, True = may attend.
      scale: factor on the scores.
      bias: `[batch or 1, heads or 1, queries or 1, keys]` added to the scaled scores.
      own_bias: `[batch or 1, heads or 1, queries or 1]` added to the score of the
        query itself.
      softcap: scores become `softcap * tanh(scores / softcap)`, None for no cap.

    Returns:
      `[batch, queries, heads, head_dim]` in the dtype of `query`.

    Source: Yang et al. 2019, arXiv 1906.08237, section 2.3 (two streams); Xiao et al.
    2021, arXiv 2010.12148, section 3.2. Differs: queries see themselves, not a mask.

    Example:
      >>> q, own = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 1, 3, 4))
      >>> left, mask = jnp.zeros((1, 1, 5, 4)), jnp.zeros((1, 5), bool)
      >>> out = query_attention(q, own, own, left, left, mask, scale=0.5)
      >>> out.shape, float(out.min())
      ((1, 3, 2, 4), 1.0)
    """
    kv_heads, groups = key.shape[1], query.shape[2] // key.shape[1]
    grouped = _grouped(query, kv_heads)
    scores = _product("bhqd,bhkd->bhqk", grouped, key, groups) * scale
    # One key for each query: no matrix, so a product and a sum.
    each = grouped.reshape(*own_key.shape[:2], groups, *own_key.shape[2:])
    each = each.astype(jnp.float32) * own_key[:, :, None].astype(jnp.float32)
    own = jnp.sum(each, axis=-1) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
        own = softcap * jnp.tanh(own / softcap)
    if bias is not None:
        scores = scores + _by_group(bias, kv_heads)
    if own_bias is not None:
        own = own + _by_group(own_bias, kv_heads)
    if allow.ndim == 2:
        allow = allow[:, None]
    scores = jnp.where(allow[:, None, None], scores, _MASKED)
    joint = jax.nn.softmax(jnp.concatenate([scores, own[..., None]], -1), axis=-1)
    weights = joint[..., :-1].astype(value.dtype)
    flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1])
    mixed = _product("bhqk,bhkd->bhqd", flat, value, groups)
    mixed = mixed + joint[..., -1:] * own_value[:, :, None].astype(jnp.float32)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(query.dtype)


def _grouped(query: Array, kv_heads: int) -> Array:
    """[batch, queries, heads, dim] -> [batch, kv_heads, heads of each * queries, dim].

    Batch axes first, the one layout of a bfloat16 product that every backend has.
    """
    batch, queries, heads, dim = query.shape
    split = query.reshape(batch, queries, kv_heads, heads // kv_heads, dim)
    flat = (batch, kv_heads, heads // kv_heads * queries, dim)
    return split.transpose(0, 2, 3, 1, 4).reshape(flat)


def _product(equation: str, left: Array, right: Array, groups: int) -> Array:
    """A float32 product, [batch, kv_heads, groups, queries, ...]."""
    made = jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
    return made.reshape(*made.shape[:2], groups, -1, made.shape[-1])


def _by_group(bias: Array, kv_heads: int) -> Array:
    """[batch, heads, ...] -> float32 [batch, kv_heads, heads of each, ...]."""
    batch, heads, *rest = bias.shape
    split = (kv_heads, heads // kv_heads) if heads > 1 else (1, 1)
    return bias.astype(jnp.float32).reshape(batch, *split, *rest)
