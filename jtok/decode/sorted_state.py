"""Segments of a decoder with a cache each, of which the upper ones may lag behind.

Invariant: segment s holds keys and values of the positions below its cache's length;
lengths never grow from a segment to the next. What segment s gave at a position stays
in its stream, so that segment s + 1 can read it there whenever it has to. Forgetting
tokens is shortening the caches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.decode.dynamic import Dynamic
from jtok.decode.types import Tokens
from jtok.models import (
    Cache,
    Model,
    commit,
    embed_ids,
    init_cache,
    run_segment,
    segment_config,
)
from jtok.nn import DecoderConfig
from jtok.ops import Want, readout, write_rows
from jtok.ops.sharding import constrain

__all__ = [
    "Lengths",
    "Plan",
    "SortedState",
    "catch_up",
    "known",
    "read_out",
    "read_prompts",
]

PyTree = Any
_PREFILL = (256, 64, 16, 1)  # tokens of a prompt at a time


class Lengths(NamedTuple):
    """How many drafts a chain has, from call to call.

    Attributes:
      start: in the first call.
      grow: more in the next call where all were kept.
      shrink: fewer in the next call where not all were.
      most: bound (static).
    """

    start: int
    grow: int
    shrink: int
    most: int


@struct.dataclass
class SortedState:
    """What a sorted draft remembers.

    Attributes:
      caches: of every segment; their lengths never grow from one to the next.
      streams: of every segment but the last `[batch, 1, capacity, dim]`, what it gave
        at each position, before any norm; the next one reads it when it has to.
      length: `[batch]` int32 drafts to make next, 0 in finished rows.
      drafted: `[batch]` int32 drafts made last.
      fresh: `[batch]` bool, nothing was drafted since the prompt.
      left: `[batch, exits]` int32 how many drafts (levels of a tree) left at each exit.
      passes: `[exits]` int32 how often each segment was run for the batch.
    """

    caches: tuple[Cache, ...]
    streams: tuple[jax.Array, ...]
    length: jax.Array
    drafted: jax.Array
    fresh: jax.Array
    left: jax.Array
    passes: jax.Array


class Plan(NamedTuple):
    """Static choices of a sorted drafter."""

    config: DecoderConfig
    exits: tuple[int, ...]
    score: Callable[..., Array] | None = None
    official: bool = False
    draw: str = "shared"
    lengths: Lengths = Lengths(5, 2, 1, 8)
    size: Dynamic | None = None
    level: str = "max"
    penalised: bool = False

    @property
    def segments(self) -> list[tuple[int, int]]:
        return list(zip((0, *self.exits), self.exits, strict=False))

    @property
    def block(self) -> int:
        """Missing tokens that a segment runs at a time."""
        return 4 if self.size is None else self.size.max_depth + 1


def read_prompts(plan: Plan, params: PyTree, tokens: Tokens) -> SortedState:
    """All tokens but the newest, through all layers."""
    batch, capacity = tokens.ids.shape
    width = next(size for size in _PREFILL if size <= capacity)
    # A block of the last tokens may reach beyond them.
    slots = capacity + max(width, plan.block)
    config, count = plan.config, len(plan.exits)
    caches = tuple(
        init_cache(segment_config(config, first, last), batch, slots)
        for first, last in plan.segments
    )
    stream = jnp.zeros((batch, 1, slots, config.width), config.dtype)
    zeros = jnp.zeros(batch, jnp.int32)
    state = SortedState(
        caches=caches,
        streams=(stream,) * (count - 1),
        length=zeros + plan.lengths.start,
        drafted=zeros,
        fresh=jnp.ones(batch, bool),
        left=jnp.zeros((batch, count), jnp.int32),
        passes=jnp.zeros(count, jnp.int32),
    )
    read = functools.partial(known, tokens, jnp.zeros((batch, 1), jnp.int32))
    for index in range(count):
        state, _ = catch_up(
            plan, params, state, index, tokens.count - 2, read, jnp.array(True), width
        )
    return state


def known(tokens: Tokens, drafts: Array, positions: Array) -> Array:
    """The ids at some positions: emitted ones, and drafts above them."""
    take = functools.partial(jnp.take_along_axis, axis=1, mode="clip")
    above = positions - tokens.count[:, None]
    return jnp.where(above < 0, take(tokens.ids, positions), take(drafts, above))


def catch_up(
    plan: Plan, params: PyTree, state: SortedState, index: int, upto: Array,
    read: Callable[[Array], Array], wanted: Array, width: int,
) -> tuple[SortedState, Array]:  # fmt: skip
    """Runs a segment on all tokens that it misses, some at a time.

    Where it is wanted; `upto` `[batch]` is the last position of every row. The second
    result is what the segment gives there, `[batch, dim]`.
    """
    config, (first, last) = plan.config, plan.segments[index]
    batch = upto.shape[0]
    order = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    has_next = index + 1 < len(plan.exits)
    below = state.streams[index - 1] if index > 0 else None
    stream = state.streams[index] if has_next else jnp.zeros((), config.dtype)
    there = jnp.zeros((batch, config.width), config.dtype)
    Carry = tuple[Cache, Array, Array, Array]

    def misses(carry: Carry) -> Array:
        return wanted & jnp.any(carry[0].length <= upto)

    def run(carry: Carry) -> Carry:
        cache, stream, there, passes = carry
        start = cache.length
        positions = start[:, None] + order
        if below is None:
            x = embed_ids(params["model"], config, read(positions), positions)
        else:
            at = positions[:, None, :, None]
            x = jnp.take_along_axis(below, at, axis=2, mode="clip")[:, 0]
        model = params["model"]
        x, pending = run_segment(
            model, config, x, positions, first=first, last=last, cache=cache
        )
        count = jnp.clip(upto + 1 - start, 0, width)
        if has_next:
            stream = write_rows(stream, x[:, None], start)
        own = jnp.clip(upto - start, 0, width - 1)
        found = jnp.take_along_axis(x, own[:, None, None], axis=1)[:, 0]
        reached = (start <= upto) & (upto < start + width)
        there = jnp.where(reached[:, None], found, there)
        return commit(pending, order, count), stream, there, passes.at[index].add(1)

    carry = (state.caches[index], stream, there, state.passes)
    cache, stream, there, passes = jax.lax.while_loop(misses, run, carry)
    caches = (*state.caches[:index], cache, *state.caches[index + 1 :])
    streams = state.streams
    if has_next:
        stream = constrain(stream, "batch", None, "seq", "embed")
        streams = (*streams[:index], stream, *streams[index + 1 :])
    return dataclasses.replace(
        state, caches=caches, streams=streams, passes=passes
    ), there


def read_out(plan: Plan, model: PyTree, hidden: Array, want: Want) -> Any:
    weight, bias = Model(model, plan.config).unembedding()
    cap = plan.config.final_softcap
    return readout(hidden, weight, want, bias=bias, softcap=cap)
