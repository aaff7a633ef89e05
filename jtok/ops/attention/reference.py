"""Attention in plain JAX, for every platform; `api` says what the arguments are.

The cost follows the tokens that are in the cache, not its capacity: the cache is read
in blocks, as many as the longest row needs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["attention", "cached_attention", "write_rows"]

CHUNKED = 2048  # from so many queries on, scores are taken
CHUNK = 256  # queries at a time, and computed again for gradients

_Running = tuple[Array, Array, Array]

# Masked scores. Finite, so that a fully masked block gives weights of zero, not NaN.
MASKED = -1e30


def attention(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch kv_heads keys head_dim"],
    value: Float[Array, "batch kv_heads keys head_dim"],
    allow: Bool[Array, "batch seq keys"],
    *,
    scale: float,
    bias: Float[Array, " #batch #heads #seq keys"] | None = None,
    softcap: float | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """All scores at once for few queries, else those of `CHUNK` queries at a time."""
    seq = query.shape[1]
    if seq < CHUNKED:
        return _attend_whole(query, key, value, allow, bias, scale, softcap)
    padding = -seq % CHUNK
    parts = (seq + padding) // CHUNK

    def split(x: Array | None, axis: int) -> Array | None:
        """[.., seq, ..] -> [parts, .., CHUNK, ..]; an axis of one query is shared."""
        if x is None or x.shape[axis] == 1:
            return None
        pads = [(0, padding if i == axis else 0) for i in range(x.ndim)]
        shape = (*x.shape[:axis], parts, CHUNK, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, pads).reshape(shape), axis, 0)

    @jax.checkpoint
    def one(part: tuple[Array, Array, Array | None]) -> Array:
        some, seen, own = part
        own = bias if own is None else own
        return _attend_whole(some, key, value, seen, own, scale, softcap)

    pieces = (
        split(query, 1),
        split(allow, 1),
        None if bias is None else split(bias, 2),
    )
    mixed = jnp.moveaxis(jax.lax.map(one, pieces), 0, 1)
    return mixed.reshape(query.shape[0], seq + padding, *query.shape[2:])[:, :seq]


def _attend_whole(
    query: Array, key: Array, value: Array, allow: Array, bias: Array | None,
    scale: float, softcap: float | None,
) -> Array:  # fmt: skip
    grouped = _group(query, key.shape[1])
    scores = _capped(_scores(grouped, key, scale), softcap)
    if bias is not None:
        batch, heads, rows, columns = bias.shape
        kv_heads = key.shape[1] if heads > 1 else 1
        shape = (batch, kv_heads, heads // kv_heads, rows, columns)
        scores = scores + bias.astype(jnp.float32).reshape(shape)
    scores = jnp.where(allow[:, None, None], scores, MASKED)
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
    """Blocks of the cache, up to the longest row, with a running softmax."""
    capacity = cache_key.shape[2]
    grouped = _group(query, key.shape[1])
    first, allow = visible(query, allow, positions, window)
    scores = _capped(_scores(grouped, key, scale), softcap)
    scores = jnp.where(allow[:, None, None], scores, MASKED)
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
        # Below what a masked node scores: slots count for nothing even where a node
        # sees nothing at all.
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
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


def visible(
    query: Array, allow: Array, positions: Array | None, window: Any
) -> tuple[Array, Array]:
    """The lowest slot that each node sees, and `allow` within the window."""
    if window is None or positions is None:
        return jnp.zeros(query.shape[:2], jnp.int32), allow
    first = jnp.maximum(positions - window + 1, 0).astype(jnp.int32)
    return first, allow & (positions[:, None, :] >= first[:, :, None])


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
