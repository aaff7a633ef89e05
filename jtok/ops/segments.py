"""Tokens that belong together: pooling by segment, attention inside a segment.

A row of tokens carries a segment id for each of them, -1 for padding. Several papers
pool by such ids (words, merged tokens, n-grams), and several texts packed into one row
are segments too.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.implementation import target_platform

__all__ = ["attend", "pool_segments", "segment_attention"]

_REDUCTIONS = ("sum", "mean", "max", "first")


def pool_segments(
    values: Float[Array, "batch seq dim"],
    segments: Int[Array, "batch seq"],
    num_segments: int,
    *,
    reduce: Literal["sum", "mean", "max", "first"] = "mean",
    one_hot: bool | None = None,
) -> Float[Array, "batch num_segments dim"]:
    """One vector for every segment of a row.

    Sums are float32. A segment without tokens gets zeros. Of equal maxima the first
    gets the gradient. Tokens of a segment need not be neighbours.

    Args:
      values: `[batch, seq, dim]`.
      segments: `[batch, seq]` int32; ids below 0 or from `num_segments` on are dropped.
      num_segments: segments of a row (static).
      reduce: "sum", "mean", "max", or "first": the token that comes first.
      one_hot: sum by a product with a one-hot matrix (static); None does so on TPUs,
        where scattered sums are slow. "max" and "first" do not look at it.

    Returns:
      `[batch, num_segments, dim]` in the dtype of `values`.

    Raises:
      ArgumentError: `num_segments` below 1, or an unknown reduction.

    Example:
      >>> x = jnp.array([[[1.0], [3.0], [5.0], [7.0]]])
      >>> pool_segments(x, jnp.array([[0, 0, 1, -1]]), 3)[0, :, 0].tolist()
      [2.0, 5.0, 0.0]
    """
    check(num_segments >= 1, "num_segments", num_segments, "at least 1")
    check(reduce in _REDUCTIONS, "reduce", reduce, f"one of {_REDUCTIONS}")
    inside = (segments >= 0) & (segments < num_segments)
    # One bin more, for what is dropped.
    bins = jnp.where(inside, segments, num_segments)
    if reduce in ("max", "first"):
        return _chosen(values, bins, num_segments, reduce == "max")
    if one_hot is None:
        one_hot = target_platform() == "tpu"
    wide = values.astype(jnp.float32)
    if one_hot:
        member = jax.nn.one_hot(bins, num_segments, dtype=jnp.float32)
        total = jnp.einsum("bsn,bsd->bnd", member, wide)
        count = jnp.sum(member, axis=1)
    else:
        total = _per_row(jax.ops.segment_sum, wide, bins, num_segments)
        ones = jnp.ones_like(bins, jnp.float32)
        count = _per_row(jax.ops.segment_sum, ones, bins, num_segments)
    if reduce == "mean":
        total = total / jnp.maximum(count, 1)[..., None]
    return total.astype(values.dtype)


def _per_row(
    reduction: Callable[..., Array], values: Array, bins: Array, num_segments: int
) -> Array:
    """A segment reduction of every row, without the last bin."""
    one = lambda row, ids: reduction(row, ids, num_segments=num_segments + 1)
    return jax.vmap(one)(values, bins)[:, :num_segments]


def _chosen(values: Array, bins: Array, num_segments: int, largest: bool) -> Array:
    """The first token of every segment, or for each entry the first largest one."""
    seq = values.shape[1]
    at = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32)[None], bins.shape)
    if largest:
        still = jax.lax.stop_gradient(values)
        best = _per_row(jax.ops.segment_max, still, bins, num_segments + 1)
        own = jnp.take_along_axis(best, bins[..., None], axis=1)
        at = jnp.where(still == own, at[..., None], seq)
    first = _per_row(jax.ops.segment_min, at, bins, num_segments)
    if not largest:
        first = jnp.broadcast_to(first[..., None], (*first.shape, values.shape[-1]))
    # Entries that are no number equal nothing: they are looked up as such.
    found = jnp.take_along_axis(values, jnp.minimum(first, seq - 1), axis=1)
    return jnp.where(first < seq, found, 0).astype(values.dtype)


def attend(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    allow: Bool[Array, "#batch #seq keys"],
    *,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """Attention over a few keys, all scores at once, in float32.

    For many short sequences, where a fused kernel does not pay. A query that may see
    nothing gets zeros.

    Args:
      query: `[batch, seq, heads, head_dim]`; scores are scaled by `head_dim ** -0.5`.
      key: `[batch, keys, heads, head_dim]`.
      value: as `key`.
      allow: `[batch or 1, seq or 1, keys]` bool, True = may attend.
      drop: maps the weights `[batch, heads, seq, keys]`, such as dropout; None for no
        change.

    Returns:
      `[batch, seq, heads, head_dim]` in the dtype of `value`.

    Example:
      >>> x = jnp.ones((1, 3, 2, 4))
      >>> float(attend(x, x, x, jnp.zeros((1, 3, 3), bool)).max())
      0.0
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    seen = jnp.broadcast_to(allow[:, None], scores.shape)
    weights = jax.nn.softmax(jnp.where(seen, scores * scale, -1e30), axis=-1)
    weights = jnp.where(seen, weights, 0.0)
    if drop is not None:
        weights = drop(weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def segment_attention(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch seq heads head_dim"],
    value: Float[Array, "batch seq heads head_dim"],
    segments: Int[Array, "batch seq"],
    *,
    causal: bool = False,
    longest: int | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """Attention of every token to those of its own segment.

    The softmax is float32. Padding sees nothing and gets zeros.

    Args:
      query: `[batch, seq, heads, head_dim]`; scores are scaled by `head_dim ** -0.5`.
      key: as `query`.
      value: as `query`.
      segments: `[batch, seq]` int32, -1 for padding.
      causal: a token sees no later ones (static).
      longest: no segment reaches over more tokens than that, its first and last
        included (static); time and memory are then linear in `seq`. Tokens further
        away are not seen. None compares all with all.
      drop: maps the weights, as in `attend`.

    Returns:
      `[batch, seq, heads, head_dim]` in the dtype of `value`.

    Raises:
      ArgumentError: `longest` below 1.

    Example:
      >>> x = jnp.ones((1, 4, 2, 8))
      >>> segment_attention(x, x, x, jnp.array([[0, 0, 1, -1]]), longest=2)[0, :, 0, 0]
      Array([1., 1., 1., 0.], dtype=float32)
    """
    check(longest is None or longest >= 1, "longest", longest, "None or at least 1")
    batch, seq = segments.shape
    if longest is None or longest >= seq:
        allow = _same(segments, segments)
        if causal:
            allow = allow & jnp.tril(jnp.ones((seq, seq), bool))[None]
        return attend(query, key, value, allow, drop=drop)
    blocks = -(-seq // longest)
    cut = lambda x, fill: jnp.pad(
        x, [(0, 0), (0, blocks * longest - seq)] + [(0, 0)] * (x.ndim - 2),
        constant_values=fill,
    ).reshape(batch, blocks, longest, *x.shape[2:])  # fmt: skip
    near = (-1, 0) if causal else (-1, 0, 1)
    flat = lambda x: x.reshape(batch * blocks, *x.shape[2:])
    own = flat(cut(segments, -1))
    around = flat(_beside(cut(segments, -1), near, -1))
    allow = _same(own, around)
    if causal:
        keys = jnp.arange(around.shape[1]) - longest
        allow = allow & (keys[None, None, :] <= jnp.arange(longest)[None, :, None])
    out = attend(
        flat(cut(query, 0)), flat(_beside(cut(key, 0), near, 0)),
        flat(_beside(cut(value, 0), near, 0)), allow, drop=drop,
    )  # fmt: skip
    return out.reshape(batch, blocks * longest, *out.shape[2:])[:, :seq]


def _same(queries: Array, keys: Array) -> Array:
    """`[batch, queries, keys]` bool: of one segment, which is no padding."""
    same = queries[:, :, None] == keys[:, None, :]
    return same & (keys >= 0)[:, None, :]


def _beside(blocks: Array, near: tuple[int, ...], fill: int) -> Array:
    """Every block with its neighbours `[batch, blocks, len(near) * size, ...]`."""
    edge = [(0, 0), (1, 1)] + [(0, 0)] * (blocks.ndim - 2)
    wide = jnp.pad(blocks, edge, constant_values=fill)
    count = blocks.shape[1]
    parts = [wide[:, 1 + shift : 1 + shift + count] for shift in near]
    return jnp.concatenate(parts, axis=2)
