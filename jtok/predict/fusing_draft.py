"""Drafting with a fusing stack: what it keeps of every row, and how a tree grows.

Of every committed token two pairs of key and value are kept, one of the target's state
and one of the token's trigram, at the same position. A node of a tree brings the
trigrams of its own path.

Source: Zeng et al. 2024, arXiv 2402.15758. Inference was never released: this is the
form that agrees with the released training, step by step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jtok.errors import check
from jtok.ops import Readout, Want, readout, write_rows
from jtok.predict.fusing import Fusing, FusingConfig
from jtok.predict.fusing_states import (
    encode_trigrams,
    gram_ids,
    head_hidden,
    head_weight,
    run_layer,
    stream_keys,
)
from jtok.predict.heads import DraftHead

__all__ = ["FusingContext", "empty_context", "extend_context", "fusing_head"]

PyTree = Any
Pair = tuple[Array, Array]
_BLOCK = 1024  # slots of a stream that are read at a time
_ALWAYS = 2**30  # the place of a key that every step sees
_MASKED = -1e30  # finite, so that a node that sees nothing gives no NaN


@struct.dataclass
class FusingContext:
    """What a fusing stack keeps of the committed tokens of every row.

    Attributes:
      streams: `(key, value)` of the trigrams and, where the stack looks at them, of
        the target's states, each `[batch, kv_heads, capacity, head_dim]`.
      length: `[batch]` int32 tokens in them.
      recent: `[batch, 2]` int32 the last two of these tokens, older first.
      hidden: `[batch, dim]` the target's state of the last.
    """

    streams: tuple[Pair, ...]
    length: jax.Array
    recent: jax.Array
    hidden: jax.Array


def empty_context(config: FusingConfig, batch: int, capacity: int) -> FusingContext:
    """The context of rows of which nothing is known yet.

    Args:
      config: of the draft stack.
      batch: rows.
      capacity: most tokens of a row.

    Returns:
      `FusingContext` of zeros.

    Source: arXiv 2402.15758; see the module.

    Example:
      >>> from jtok.testing import tiny_model
      >>> from jtok.predict import fusing_config
      >>> empty_context(fusing_config(tiny_model()), 2, 16).hidden.shape
      (2, 32)
    """
    layer = config.layer
    shape = (batch, layer.num_kv_heads, capacity, layer.head_dim)
    pair = lambda: (jnp.zeros(shape, layer.dtype), jnp.zeros(shape, layer.dtype))
    streams = tuple(pair() for _ in range(2 if config.states else 1))
    length = jnp.zeros(batch, jnp.int32)
    recent = jnp.zeros((batch, 2), jnp.int32)
    hidden = jnp.zeros((batch, config.width), layer.dtype)
    return FusingContext(streams, length, recent, hidden)


def extend_context(
    fusing: Fusing,
    context: FusingContext,
    hidden: Float[Array, "batch new dim"],
    ids: Int[Array, "batch new"],
    count: Int[Array, " batch"],
) -> FusingContext:
    """Commits the first `count` of some tokens of every row.

    Args:
      fusing: the draft stack.
      context: of the tokens before.
      hidden: `[batch, new, dim]` the target's states of the new tokens.
      ids: `[batch, new]` int32.
      count: `[batch]` int32 how many of them count; 0 leaves a row as it is.

    Returns:
      `FusingContext`.

    Raises:
      ArgumentError: states of another width.

    Source: arXiv 2402.15758; see the module.

    Example:
      >>> from jtok.testing import tiny_model
      >>> from jtok.predict import init_fusing
      >>> fusing = init_fusing(tiny_model(), jax.random.key(0))
      >>> context = empty_context(fusing.config, 1, 8)
      >>> extend_context(fusing, context, jnp.ones((1, 3, 32)), jnp.array([[1, 2, 3]]),
      ...     jnp.array([2])).length.tolist()
      [2]
    """
    config, width = fusing.config, fusing.config.width
    good = hidden.shape[-1] == width
    check(good, "fusing", f"a width of {width}", f"{hidden.shape[-1]}, as the target")
    hidden = hidden.astype(config.layer.dtype)
    row = jnp.concatenate([context.recent, ids], axis=1)
    order = jnp.arange(ids.shape[1], dtype=jnp.int32)
    positions = context.length[:, None] + order[None]
    before = jnp.stack([row[:, :-2], row[:, 1:-1]], axis=-1)
    text = encode_trigrams(fusing, gram_ids(before, ids, positions), positions)
    rows = [stream_keys(fusing, text, positions)]
    if config.states:
        rows.append(stream_keys(fusing, hidden, positions))
    # What is written beyond the count lies above the length, and is written again.
    write = lambda buffer, new: write_rows(buffer, new, context.length)
    streams = jax.tree.map(write, context.streams, tuple(rows))
    last = count[:, None] + jnp.arange(2)[None]
    at = jnp.maximum(count - 1, 0)[:, None, None]
    newest = jnp.take_along_axis(hidden, at, axis=1)[:, 0]
    return FusingContext(
        streams,
        context.length + count,
        jnp.take_along_axis(row, last, axis=1),
        jnp.where(count[:, None] > 0, newest, context.hidden),
    )


@struct.dataclass
class _Path:
    """What a node knows of its path: the last two tokens, keys, and their places."""

    recent: jax.Array
    key: jax.Array
    value: jax.Array
    place: jax.Array


def fusing_head(config: FusingConfig) -> DraftHead:
    """A fusing stack as what drafts trees; its `params` are a `Fusing`.

    Step k gives the same as step k of `fuse` after the same tokens.

    Args:
      config: of the draft stack.

    Returns:
      `DraftHead` whose context is a `FusingContext`.

    Source: arXiv 2402.15758; see the module.

    Example:
      >>> from jtok.testing import tiny_model
      >>> from jtok.predict import fusing_config
      >>> fusing_head(fusing_config(tiny_model(), steps=3)).steps
      3
    """

    def init(fusing: Fusing, context: FusingContext) -> _Path:
        batch, layer = context.length.shape[0], config.layer
        shape = (batch, 1, 0, layer.num_kv_heads, layer.head_dim)
        none = jnp.zeros(shape, layer.dtype)
        place = jnp.zeros((batch, 1, 0), jnp.int32)
        return _Path(context.recent[:, None], none, none, place)

    def read(fusing: Fusing, hidden: Array, want: Want, index: int) -> Readout:
        head = _head(fusing, index)
        weight, bias = head_weight(config, fusing.base, head)
        cap = config.layer.final_softcap
        return readout(hidden, weight, want, bias=bias, softcap=cap)

    return DraftHead(init, _step, read, config.steps, each=True)


def _head(fusing: Fusing, index: int) -> PyTree:
    return {name: value[index] for name, value in fusing.params["heads"].items()}


def _step(
    fusing: Fusing, context: FusingContext, path: _Path, tokens: Array, index: int
) -> tuple[Array, _Path]:
    config = fusing.config
    places = jnp.broadcast_to(context.length[:, None] + index, tokens.shape)
    text = encode_trigrams(fusing, gram_ids(path.recent, tokens, places), places)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Pair]:
        grown = _add(path, (key, value), places)
        # Trigrams of the first positions are no keys of later steps, as in training.
        return _attend(config, context, grown, query, index + 1), (key, value)

    out, pair = run_layer(fusing, text, places, attend)
    grown = _add(path, pair, places)
    if config.own_states:
        always = jnp.full_like(places, _ALWAYS)
        grown = _add(grown, stream_keys(fusing, out, places), always)
    recent = jnp.concatenate([path.recent[..., 1:], tokens[..., None]], axis=-1)
    hidden = jnp.broadcast_to(context.hidden[:, None], out.shape)
    narrow = head_hidden(config, _head(fusing, index), hidden, out)
    return narrow, dataclasses.replace(grown, recent=recent)


def _add(path: _Path, pair: Pair, place: Array) -> _Path:
    """The path with one more key and value of every node."""

    def join(old: Array, new: Array) -> Array:
        by_node = new.transpose(0, 2, 1, 3)[:, :, None]  # [batch, nodes, 1, heads, dim]
        return jnp.concatenate([old, by_node], axis=2)

    places = jnp.concatenate([path.place, place[..., None]], axis=2)
    return _Path(
        path.recent, join(path.key, pair[0]), join(path.value, pair[1]), places
    )


def _attend(
    config: FusingConfig, context: FusingContext, path: _Path, query: Array, lowest: int
) -> Array:
    """Attention of nodes to their own paths and to the streams of their row.

    A running softmax over blocks of the streams, as many as the longest row needs.
    """
    batch, nodes, heads, dim = query.shape
    kv_heads, layer = path.key.shape[3], config.layer
    grouped = query.reshape(batch, nodes, kv_heads, heads // kv_heads, dim)

    def scores(equation: str, key: Array, seen: Array, masked: float) -> Array:
        made = jnp.einsum(equation, grouped, key, preferred_element_type=jnp.float32)
        made, cap = made * layer.score_scale, layer.attn_softcap
        made = made if cap is None else cap * jnp.tanh(made / cap)
        return jnp.where(seen[:, :, None, None], made, masked)

    def mix(equation: str, weights: Array, value: Array) -> Array:
        weights = weights.astype(value.dtype)
        return jnp.einsum(equation, weights, value, preferred_element_type=jnp.float32)

    own = scores("bnhgd,bnshd->bnhgs", path.key, path.place >= lowest, _MASKED)
    best = jnp.max(own, axis=-1, keepdims=True)
    weights = jnp.exp(own - best)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = mix("bnhgs,bnshd->bnhgd", weights, path.value)
    capacity = context.streams[0][0].shape[2]
    width = min(_BLOCK, capacity)

    def add_block(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        best, total, mixed = carry
        # The last block is moved back inside; slots it repeats are masked.
        start = jnp.minimum(index * width, capacity - width)
        slots = start + jnp.arange(width)
        fresh = (slots >= index * width)[None] & (slots[None] < context.length[:, None])
        for stream, (key, value) in enumerate(context.streams):
            seen = fresh & (slots >= (lowest if stream == 0 else 0))[None]
            key, value = (
                jax.lax.dynamic_slice_in_dim(x, start, width, axis=2)
                for x in (key, value)
            )
            made = scores("bnhgd,bhsd->bnhgs", key, seen[:, None], -jnp.inf)
            higher = jnp.maximum(best, jnp.max(made, axis=-1, keepdims=True))
            shrink, weights = jnp.exp(best - higher), jnp.exp(made - higher)
            total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
            mixed = mixed * shrink + mix("bnhgs,bhsd->bnhgd", weights, value)
            best = higher
        return best, total, mixed

    blocks = (jnp.max(context.length) + width - 1) // width
    carry = (best, total, mixed)
    _, total, mixed = jax.lax.fori_loop(0, blocks, add_block, carry)
    return (mixed / total).reshape(query.shape).astype(query.dtype)
