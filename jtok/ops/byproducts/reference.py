"""By-products of attention in plain JAX, some queries at a time.

The scores of a block of queries to all keys exist at once, so one softmax is enough
and one pass over the blocks gives everything; `api` says what the arguments are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import check

__all__ = [
    "Found",
    "Seen",
    "attend",
    "block_for",
    "chosen_rows",
    "power",
    "power_from_logits",
    "start_over",
]

# Scores that are held at once: what stays in a cache, or fills a large device.
_BUDGETS = {"cpu": 2**20, "gpu": 2**28, "tpu": 2**26}


class Seen(NamedTuple):
    """Which keys count, and how much.

    Attributes:
      valid: `[batch, keys]` bool, or None for all.
      bias: `[batch, keys]` float32 added to the scores, or None.
      causal: queries see no later keys; the last query sees the last key.
    """

    valid: Any
    bias: Any
    causal: bool


class Found(NamedTuple):
    """What a pass over all queries gives; None where it was not asked for.

    Attributes:
      mixed: `[batch, seq, heads, head_dim]`.
      lse: `[batch, heads, seq]` float32.
      columns: `[batch, heads, keys]` float32.
      mass: `[batch, heads, seq]` float32.
    """

    mixed: Any
    lse: Any
    columns: Any
    mass: Any


def block_for(platform: str, rows: int, keys: int, seq: int) -> int:
    """How many queries are taken at a time; `rows` are batch times heads."""
    some = _BUDGETS[platform] // max(rows * keys, 1)
    some = min(max(some, 16), seq)
    parts = -(-seq // some)
    return -(-seq // parts)


def attend(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads value_dim"] | None,
    seen: Seen,
    factor: float | Array,
    *,
    weight: Float[Array, "batch seq"] | None,
    on: Array | None,
    block: int,
) -> Found:
    """Everything but chosen rows; `weight` of the queries asks for column sums."""
    heads_first = lambda x: x.transpose(0, 2, 1, 3)
    keys = heads_first(key)
    values = None if value is None else heads_first(value)
    batch, seq, heads, _ = query.shape
    grouped = _grouped(query, key.shape[2])
    hear = None if weight is None else weight.astype(jnp.float32)[:, None, None]

    def one(some: tuple[Array, Array | None], start: Array | int) -> Found:
        part, part_weight = some
        scores = _scores(part, keys, seen, factor, start, seq)
        weights, total, lse = _softmax(scores)
        mixed = None
        if values is not None:
            mixed = _mix(weights, values) / total[..., None]
        columns = None
        if part_weight is not None:
            share = jnp.broadcast_to(part_weight, total.shape) / total
            columns = jnp.einsum("bhgqk,bhgq->bhgk", weights, share)
        mass = None
        if on is not None:
            among = on.astype(jnp.float32)
            mass = jnp.einsum("bhgqk,bk->bhgq", weights, among) / total
        return Found(mixed, lse, columns, mass)

    found = _over_blocks(one, (grouped, hear), seq, block)
    flat = lambda x: x.reshape(batch, heads, -1)
    mixed = found.mixed
    if mixed is not None:
        mixed = mixed.transpose(0, 3, 1, 2, 4).reshape(batch, seq, heads, -1)
        mixed = mixed.astype(query.dtype)
    maybe = lambda x: None if x is None else flat(x)
    return Found(mixed, flat(found.lse), maybe(found.columns), maybe(found.mass))


def chosen_rows(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    rows: Array,
    seen: Seen,
    factor: float | Array,
) -> Float[Array, "batch heads rows keys"]:
    """The softmax of chosen queries; rows out of range are zeros."""
    batch, seq, heads, _ = query.shape
    inside = (rows >= 0) & (rows < seq)
    at = jnp.clip(rows, 0, seq - 1)
    some = jnp.take_along_axis(query, at[:, :, None, None], axis=1)
    keys = key.transpose(0, 2, 1, 3)
    causal = seen.causal
    scores = _scores(
        _grouped(some, key.shape[2]), keys, seen._replace(causal=False), factor, 0, seq
    )
    if causal:
        reach = at + key.shape[1] - seq
        may = jnp.arange(key.shape[1])[None, None] <= reach[:, :, None]
        scores = jnp.where(may[:, None, None], scores, -jnp.inf)
    weights, total, _ = _softmax(scores)
    weights = weights / total[..., None]
    weights = jnp.where(inside[:, None, None, :, None], weights, 0.0)
    return weights.reshape(batch, heads, rows.shape[1], -1)


def power(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch seq kv_heads head_dim"],
    start: Float[Array, "batch seq"],
    seen: Seen,
    factor: float | Array,
    *,
    iterations: int,
    damping: float | Array,
    block: int,
) -> Float[Array, "batch heads seq"]:
    """Power iteration; the softmax of a block of queries is computed in every turn."""
    batch, seq, heads, _ = query.shape
    grouped = _grouped(query, key.shape[2])
    keys = key.transpose(0, 2, 1, 3)
    begin = jnp.broadcast_to(start[:, None, None], grouped.shape[:4])

    def turn(_: Any, p: Array) -> Array:
        def one(some: tuple[Array, Array], first: Array | int) -> Found:
            part, mass = some
            scores = _scores(part, keys, seen, factor, first, seq, exact=True)
            weights, total, _ = _softmax(scores)
            moved = jnp.einsum("bhgqk,bhgq->bhgk", weights, mass / total)
            return Found(None, None, moved, None)

        moved = _over_blocks(one, (grouped, p), seq, block).columns
        return moved * (1.0 - damping) + damping * begin

    found = jax.lax.fori_loop(0, iterations, turn, begin)
    return found.reshape(batch, heads, seq)


def power_from_logits(
    logits: Float[Array, "batch heads seq seq"],
    *,
    temperature: float = 1.0,
    iterations: int = 5,
    damping: float = 0.0,
    valid: Bool[Array, "batch seq"] | None = None,
    causal: bool = False,
    start: Float[Array, "batch seq"] | None = None,
) -> Float[Array, "batch heads seq"]:
    """`attention_power` of scores that are there already, all of them.

    For tests and for models that hold their scores: memory grows with the square of
    the tokens.

    Args:
      logits: `[batch, heads, seq, seq]` scaled scores, row = query, without masks.
      temperature: divides the scores.
      iterations: products with the attention matrix (static).
      damping: share that starts anew in every turn, 0 to 1.
      valid: see `attention_power`.
      causal: see `attention_power`.
      start: see `attention_power`.

    Returns:
      `[batch, heads, seq]` float32.

    Raises:
      ArgumentError: `iterations` below 0.

    Source: Zhong et al. 2024, arXiv 2412.03248, section 3.2.

    Example:
      >>> p = power_from_logits(jnp.zeros((1, 1, 2, 2)), causal=True, iterations=1)
      >>> p[0, 0].tolist()
      [0.75, 0.25]
    """
    check(iterations >= 0, "iterations", iterations, "0 or more")
    batch, _, seq, _ = logits.shape
    allow = jnp.ones((batch, seq, seq), bool)
    if valid is not None:
        allow = allow & valid[:, None]
    if causal:
        allow = allow & jnp.tril(jnp.ones((seq, seq), bool))[None]
    scores = logits.astype(jnp.float32) / temperature
    scores = jnp.where(allow[:, None], scores, -jnp.inf)
    weights, total, _ = _softmax(scores)
    matrix = weights / total[..., None]
    begin = start_over(valid, start, batch, seq)[:, None]

    def turn(_: Any, p: Array) -> Array:
        moved = jnp.einsum("bhqk,bhq->bhk", matrix, p)
        return moved * (1.0 - damping) + damping * begin

    first = jnp.broadcast_to(begin, (batch, logits.shape[1], seq))
    return jax.lax.fori_loop(0, iterations, turn, first)


def start_over(
    valid: Array | None, start: Array | None, batch: int, seq: int
) -> Float[Array, "batch seq"]:
    """The start vector: what is given, else the same share for all valid tokens."""
    if start is not None:
        return start.astype(jnp.float32)
    real = jnp.ones((batch, seq)) if valid is None else valid.astype(jnp.float32)
    return real / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1.0)


def _over_blocks(
    one: Callable[[Any, Any], Found], parts: tuple[Array, Array | None], seq: int,
    block: int,
) -> Found:  # fmt: skip
    """`one` of every block of queries (axis 3); column sums are added up."""
    if block >= seq:
        return one(parts, 0)
    count = -(-seq // block)
    pad = count * block - seq

    def cut(x: Array) -> Array:
        """[b, h, g, seq, ..] -> [count, b, h, g, block, ..]; padding hears nothing."""
        pads = [(0, pad if axis == 3 else 0) for axis in range(x.ndim)]
        wide = jnp.pad(x, pads)
        shape = (*x.shape[:3], count, block, *x.shape[4:])
        return jnp.moveaxis(wide.reshape(shape), 3, 0)

    def body(sums: Array | None, item: Any) -> tuple[Array | None, Found]:
        some, start = item
        found = one(some, start)
        if sums is not None:
            sums = sums + found.columns
        return sums, found._replace(columns=None)

    pieces = jax.tree.map(cut, parts)
    starts = jnp.arange(count, dtype=jnp.int32) * block
    first = jax.tree.map(lambda x: x[0], pieces)
    shape = jax.eval_shape(lambda some: one(some, 0), first).columns
    sums = None if shape is None else jnp.zeros(shape.shape, jnp.float32)
    # For gradients the scores of a block are computed again, not kept.
    body = jax.checkpoint(body)
    sums, found = jax.lax.scan(body, sums, (pieces, starts))

    def joined(x: Array) -> Array:
        whole = jnp.moveaxis(x, 0, 3)
        shape = (*whole.shape[:3], count * block, *whole.shape[5:])
        return whole.reshape(shape)[:, :, :, :seq]

    return jax.tree.map(joined, found)._replace(columns=sums)


def _scores(
    query: Array, key: Array, seen: Seen, factor: float | Array, start: Array | int,
    seq: int, *, exact: bool = False,
) -> Array:  # fmt: skip
    """[b, h, g, q, d] and [b, h, k, d] -> [b, h, g, q, k] float32, -inf if unseen."""
    batch, kv_heads, group, some, dim = query.shape
    keys = key.shape[2]
    flat = query.reshape(batch, kv_heads, group * some, dim)
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk", flat, key, preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if exact else None,
    )  # fmt: skip
    scores = scores.reshape(batch, kv_heads, group, some, keys) * factor
    if seen.bias is not None:
        scores = scores + seen.bias.astype(jnp.float32)[:, None, None, None]
    if seen.valid is not None:
        scores = jnp.where(seen.valid[:, None, None, None], scores, -jnp.inf)
    if seen.causal:
        last = start + jnp.arange(some) + keys - seq
        may = jnp.arange(keys)[None] <= last[:, None]
        scores = jnp.where(may[None, None, None], scores, -jnp.inf)
    return scores


def _softmax(scores: Array) -> tuple[Array, Array, Array]:
    """Weights before they are divided, what divides them, and the log-sum-exp.

    A query that sees nothing has weights of 0, divided by 1, and -inf.
    """
    best = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    best = jnp.where(best > -jnp.inf, best, 0.0)
    weights = jnp.exp(scores - best[..., None])
    total = jnp.sum(weights, axis=-1)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    return weights, total, jnp.where(some, best + jnp.log(total), -jnp.inf)


def _mix(weights: Array, value: Array) -> Array:
    batch, kv_heads, group, some, keys = weights.shape
    flat = weights.reshape(batch, kv_heads, group * some, keys).astype(value.dtype)
    mixed = jnp.einsum(
        "bhqk,bhkd->bhqd", flat, value, preferred_element_type=jnp.float32
    )
    return mixed.reshape(batch, kv_heads, group, some, -1)


def _grouped(query: Array, kv_heads: int) -> Array:
    """[b, q, heads, d] -> [b, kv_heads, heads per kv head, q, d]."""
    batch, seq, heads, dim = query.shape
    split = query.reshape(batch, seq, kv_heads, heads // kv_heads, dim)
    return split.transpose(0, 2, 3, 1, 4)
