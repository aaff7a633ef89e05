"""Attention of new tokens over a cache and over each other.

The cost follows the tokens that are in the cache, not its capacity: the cache is read
in blocks, as many as the longest row needs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check

__all__ = ["attention", "cached_attention", "write_rows"]

_Running = tuple[Array, Array, Array]

# Masked scores. Finite, so that a fully masked block gives weights of zero, not NaN.
_MASKED = -1e30


def attention(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch kv_heads seq head_dim"],
    value: Float[Array, "batch kv_heads seq head_dim"],
    allow: Bool[Array, "batch seq seq"],
    *,
    scale: float,
    bias: Float[Array, " #batch #heads #seq seq"] | None = None,
    softcap: float | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """Attention among the tokens of one call, without a cache.

    Scores and softmax are float32. A query that may see nothing gets the mean of all
    values, which is finite; callers mask it.

    Args:
      query: `[batch, seq, heads, head_dim]`.
      key: `[batch, kv_heads, seq, head_dim]`; `heads` is a multiple of `kv_heads`.
      value: as `key`.
      allow: `[batch, seq, seq]` bool, row = query, True = may attend.
      scale: factor on the scores.
      bias: `[batch, heads or 1, seq or 1, seq]` added to the scaled scores.
      softcap: scores become `softcap * tanh(scores / softcap)`, None for no cap.

    Returns:
      `[batch, seq, heads, head_dim]` in the dtype of `query`.

    Example:
      >>> x = jnp.ones((1, 3, 2, 4))
      >>> kv = jnp.ones((1, 1, 3, 4))
      >>> causal = jnp.tril(jnp.ones((1, 3, 3), bool))
      >>> attention(x, kv, kv, causal, scale=0.5).shape
      (1, 3, 2, 4)
    """
    grouped = _group(query, key.shape[1])
    scores = _capped(_scores(grouped, key, scale), softcap)
    if bias is not None:
        batch, heads, rows, columns = bias.shape
        kv_heads = key.shape[1] if heads > 1 else 1
        shape = (batch, kv_heads, heads // kv_heads, rows, columns)
        scores = scores + bias.astype(jnp.float32).reshape(shape)
    scores = jnp.where(allow[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return _ungroup(_mix(weights, value), query)


def cached_attention(
    query: Float[Array, "batch nodes heads head_dim"],
    key: Float[Array, "batch kv_heads nodes head_dim"],
    value: Float[Array, "batch kv_heads nodes head_dim"],
    cache_key: Float[Array, "batch kv_heads capacity head_dim"],
    cache_value: Float[Array, "batch kv_heads capacity head_dim"],
    length: Int[Array, " batch"],
    allow: Bool[Array, "batch nodes nodes"],
    *,
    scale: float,
    positions: Int[Array, "batch nodes"] | None = None,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    block: int = 256,
) -> Float[Array, "batch nodes heads head_dim"]:
    """Attention of a draft tree (or a prompt chunk) over the cache and itself.

    Every node sees all cached tokens of its row, and the nodes that `allow` names.
    The softmax runs over both parts at once, in float32. The cache is read block by
    block up to the longest row, so unused capacity costs nothing.

    Args:
      query: `[batch, nodes, heads, head_dim]`, rotary positions applied.
      key: `[batch, kv_heads, nodes, head_dim]` of the nodes.
      value: as `key`.
      cache_key: `[batch, kv_heads, capacity, head_dim]`.
      cache_value: as `cache_key`.
      length: `[batch]` int32, cached tokens of every row.
      allow: `[batch, nodes, nodes]` bool, row = query; each row should allow itself.
      scale: factor on the scores.
      positions: `[batch, nodes]` int32 of the nodes; needed with a window. The token
        in slot s stands at position s.
      window: a node at position p sees the positions above `p - window`, of the cache
        and of the nodes; None sees all.
      softcap: scores become `softcap * tanh(scores / softcap)`, None for no cap.
      block: cache slots that are read at a time (static).

    Returns:
      `[batch, nodes, heads, head_dim]` in the dtype of `query`.

    Source: Dao et al. 2022, arXiv 2205.14135 (running softmax); Cai et al. 2024,
    arXiv 2401.10774, section 2.3 (tree mask).

    Example:
      >>> q, kv = jnp.ones((1, 2, 2, 4)), jnp.ones((1, 1, 2, 4))
      >>> cache, causal = jnp.ones((1, 1, 8, 4)), jnp.tril(jnp.ones((1, 2, 2), bool))
      >>> used = jnp.array([5])
      >>> cached_attention(q, kv, kv, cache, cache, used, causal, scale=0.5).shape
      (1, 2, 2, 4)
    """
    capacity = cache_key.shape[2]
    grouped = _group(query, key.shape[1])
    first = jnp.zeros(query.shape[:2], jnp.int32)  # lowest slot that a node sees
    if window is not None:
        check(positions is not None, "positions", None, "positions beside a window")
        near: Array = jnp.asarray(positions)
        first = jnp.maximum(near - window + 1, 0)
        allow = allow & (near[:, None, :] >= first[:, :, None])
    scores = _capped(_scores(grouped, key, scale), softcap)
    scores = jnp.where(allow[:, None, None], scores, _MASKED)
    best = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - best)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = _mix(weights, value)
    width = min(block, capacity)

    def add_block(index: Array, carry: _Running) -> _Running:
        best, total, mixed = carry
        # The last block is moved back inside; slots it repeats are masked.
        start = jnp.minimum(index * width, capacity - width)
        slots = start + jnp.arange(width)
        fresh = (slots >= index * width)[None] & (slots[None] < length[:, None])
        seen = fresh[:, None] & (slots[None, None] >= first[..., None])
        part_key = jax.lax.dynamic_slice_in_dim(cache_key, start, width, axis=2)
        part_value = jax.lax.dynamic_slice_in_dim(cache_value, start, width, axis=2)
        scores = _capped(_scores(grouped, part_key, scale), softcap)
        scores = jnp.where(seen[:, None, None], scores, _MASKED)
        higher = jnp.maximum(best, jnp.max(scores, axis=-1, keepdims=True))
        shrink, weights = jnp.exp(best - higher), jnp.exp(scores - higher)
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        return higher, total, mixed * shrink + _mix(weights, part_value)

    num_blocks = (jnp.max(length) + width - 1) // width
    carry = (best, total, mixed)
    if width == capacity:
        carry = add_block(jnp.int32(0), carry)
    else:
        carry = jax.lax.fori_loop(jnp.min(first) // width, num_blocks, add_block, carry)
    _, total, mixed = carry
    return _ungroup(mixed / total, query)


def write_rows(
    cache: Float[Array, "batch kv_heads capacity head_dim"],
    rows: Float[Array, "batch kv_heads new head_dim"],
    start: Int[Array, " batch"],
) -> Float[Array, "batch kv_heads capacity head_dim"]:
    """Writes `rows` into every row's cache from its own slot on, in place under jit.

    Args:
      cache: `[batch, kv_heads, capacity, head_dim]`.
      rows: `[batch, kv_heads, new, head_dim]`, cast to the dtype of `cache`.
      start: `[batch]` int32; `start + new <= capacity`, else the write is moved down.

    Returns:
      The cache with the slots `start .. start + new - 1` replaced.

    Example:
      >>> cache = write_rows(jnp.zeros((1, 1, 3, 1)), jnp.ones((1, 1, 1, 1)),
      ...                    jnp.array([1]))
      >>> cache.ravel().tolist()
      [0.0, 1.0, 0.0]
    """
    rows = rows.astype(cache.dtype)
    if cache.shape[0] == 1:
        return jax.lax.dynamic_update_slice(cache, rows, (0, 0, start[0], 0))

    def write(one: Array, new: Array, slot: Array) -> Array:
        return jax.lax.dynamic_update_slice(one, new, (0, slot, 0))

    return jax.vmap(write)(cache, rows, start)


def _group(query: Array, kv_heads: int) -> Array:
    """[batch, seq, heads, dim] -> [batch, kv_heads, heads per kv head * seq, dim]."""
    batch, seq, heads, dim = query.shape
    split = query.reshape(batch, seq, kv_heads, heads // kv_heads, dim)
    return split.transpose(0, 2, 3, 1, 4)


def _ungroup(mixed: Array, query: Array) -> Array:
    return mixed.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(query.dtype)


def _scores(grouped: Array, key: Array, scale: float) -> Array:
    batch, kv_heads, groups, seq, dim = grouped.shape
    flat = grouped.reshape(batch, kv_heads, groups * seq, dim)
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk", flat, key, preferred_element_type=jnp.float32
    )
    return scores.reshape(batch, kv_heads, groups, seq, key.shape[2]) * scale


def _capped(scores: Array, softcap: float | None) -> Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _mix(weights: Array, value: Array) -> Array:
    batch, kv_heads, groups, seq, keys = weights.shape
    flat = weights.reshape(batch, kv_heads, groups * seq, keys).astype(value.dtype)
    mixed = jnp.einsum(
        "bhqk,bhkd->bhqd", flat, value, preferred_element_type=jnp.float32
    )
    return mixed.reshape(batch, kv_heads, groups, seq, value.shape[3])
