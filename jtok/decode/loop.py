"""The decoding loop: prompt, then draft, step, verify, commit, all on the device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.decode import shaping, verify
from jtok.decode.record import empty_extras, record
from jtok.decode.state import Batch, Rules, State
from jtok.decode.types import Drafter, Proposal, Tokens, Verdict
from jtok.models import StepInput, Target
from jtok.ops import Readout, Tree, Want, readout_logits
from jtok.ops.implementation import target_platform

__all__ = ["Batch", "Held", "Rules", "Runner", "State", "into", "runner"]

PyTree = Any


@struct.dataclass
class Held:
    """What an earlier run left of the texts of a batch.

    Attributes:
      cache: the target's; its capacity may be smaller than that of the run.
      length: `[batch]` int32 tokens of the prompts that it holds, fewer than a prompt
        has.
    """

    cache: PyTree
    length: jax.Array


class Runner(NamedTuple):
    """Compiled halves of a run.

    Attributes:
      start: `(params, Batch, inherited state or None, Held or None) -> State`, prompts
        processed.
      advance: `(params, Batch, State, limit) -> State`; runs until every row is done
        or `limit` steps were made in all. `State` is donated.
    """

    start: Callable[..., State]
    advance: Callable[..., State]


def runner(target: Target, drafter: Drafter, rules: Rules) -> Runner:
    """The compiled loop for a target, a drafter and static rules.

    Args:
      target: what is decoded.
      drafter: what proposes; its parameters come with the `Batch`.
      rules: static choices.

    Returns:
      `Runner`; equal arguments give the same compiled functions.
    """
    return _runner(target, drafter._replace(params=None, host=None), rules)


@functools.lru_cache(maxsize=128)
def _runner(target: Target, drafter: Drafter, rules: Rules) -> Runner:
    start = functools.partial(_start, target, drafter, rules)
    advance = functools.partial(_advance, target, drafter, rules)
    return Runner(jax.jit(start), jax.jit(advance, donate_argnums=2))


def _start(
    target: Target,
    drafter: Drafter,
    rules: Rules,
    params: PyTree,
    batch: Batch,
    inherited: PyTree,
    held: Held | None = None,
) -> State:
    tokens, drafter = batch.tokens, drafter.bind(batch.drafter)
    rows, capacity = tokens.ids.shape
    state = drafter.init(target.info, tokens)
    if inherited is not None and drafter.inherit is not None:
        state = drafter.inherit(state, inherited)
    proposal, _ = jax.eval_shape(drafter.propose, state, tokens)
    cache = target.init_cache(params, rows, capacity)
    if held is not None:
        cache = jax.tree.map(into, cache, held.cache)
    done = None if held is None else held.length
    cache, state = _prefill(target, drafter, rules, params, batch, cache, state, done)
    how = batch.shaping
    zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
    return State(
        tokens=tokens,
        cache=cache,
        drafter=state,
        live=batch.budget > 0,
        stopped=jnp.zeros(rows, bool),
        calls=zeros(rows),
        slots=zeros(rows),
        call_of=zeros((rows, capacity)),
        gaps=jnp.zeros((rows, capacity if rules.gaps else 0), jnp.float32),
        emitted_per_call=zeros(proposal.deepest + 2),
        node_hits=zeros(proposal.tokens.shape[1]),
        steps=zeros(()),
        seen=shaping.start(target.info, tokens, how, rules.processor),
        extras=empty_extras(rules, rows),
    )


def into(fresh: Array, old: Array) -> Array:
    """An old buffer, moved into a larger one where it grew."""
    if fresh.shape == old.shape:
        return old
    return jax.lax.dynamic_update_slice(fresh, old, (0,) * fresh.ndim)


def _prefill(
    target: Target,
    drafter: Drafter,
    rules: Rules,
    params: PyTree,
    batch: Batch,
    cache: PyTree,
    state: PyTree,
    done: Array | None = None,
) -> tuple[PyTree, PyTree]:
    """Feeds all prompt tokens but the last and the first `done`, a chunk at a time."""
    tokens, width = batch.tokens, rules.chunk
    rows = tokens.ids.shape[0]
    todo = tokens.count - 1
    offsets = jnp.arange(width)
    causal = jnp.broadcast_to(
        jnp.tril(jnp.ones((width, width), bool)), (rows, width, width)
    )
    path = jnp.broadcast_to(offsets, (rows, width)).astype(jnp.int32)

    def feed(index: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        cache, state = carry
        positions = jnp.broadcast_to(index * width + offsets[None], (rows, width))
        if done is not None:
            positions = positions + done[:, None]
        valid = positions < todo[:, None]
        ids = jnp.take_along_axis(tokens.ids, positions, axis=1, mode="clip")
        step = StepInput(ids, positions, causal, valid)
        out, cache = target.step(params, cache, step)
        count = jnp.sum(valid, axis=1, dtype=jnp.int32)
        cache = target.commit(cache, path, count)
        if drafter.needs.prefill:
            want = Want(top_k=drafter.needs.top_k)
            read = target.readout(params, out.hidden, want)
            following = jnp.take_along_axis(tokens.ids, positions + 1, 1, mode="clip")
            kept = jnp.where(valid, path, -1)
            verdict = Verdict(
                ids, valid, kept, count, following, read, out.hidden, None, out.taps
            )
            state = drafter.update(state, verdict)
        return cache, state

    left = jnp.max(todo if done is None else todo - done)
    num_chunks = (left + width - 1) // width
    return jax.lax.fori_loop(0, num_chunks, feed, (cache, state))


def _advance(
    target: Target,
    drafter: Drafter,
    rules: Rules,
    params: PyTree,
    batch: Batch,
    state: State,
    limit: Array,
) -> State:
    drafter = drafter.bind(batch.drafter)
    step = functools.partial(_step, target, drafter, rules, params, batch)
    gave_up = drafter.gave_up

    def within(state: State, live: Array, reach: int | None) -> Array:
        """Some row goes on, and the caches of all that do stay below `reach`."""
        going = jnp.any(live) & (state.steps < limit)
        if reach is None:
            return going
        cached = jnp.where(state.live, state.tokens.count - 1, 0)
        return going & (jnp.max(cached) <= reach)

    def worth_drafting(reach: int | None, state: State) -> Array:
        live = state.live
        if gave_up is not None:
            live = live & ~gave_up(state.drafter)
        return within(state, live, reach)

    def unfinished(reach: int | None, state: State) -> Array:
        return within(state, state.live, reach)

    phases = [(worth_drafting, True)]
    if gave_up is not None:
        phases.append((unfinished, False))
    for going, drafting in phases:
        for reach in _reaches(rules.capacity):
            state = jax.lax.while_loop(
                functools.partial(going, reach),
                functools.partial(step, drafting, reach),
                state,
            )
    return state


def _reaches(capacity: int) -> tuple[int | None, ...]:
    """Parts of the cache to read, one loop each; None where a step finds out itself.

    A GPU cannot look at a length without a stop of all its queues, so there a loop
    with a larger part follows when a row has outgrown the smaller one.
    """
    if target_platform() != "gpu":
        return (None,)
    parts = [capacity // 8, capacity // 4, capacity // 2]
    return (*(part for part in parts if part >= 256), capacity)


def _root_only(tokens: Tokens) -> Proposal:
    root = tokens.root[:, None]
    return Proposal(root, jnp.ones_like(root, bool), tree=Tree.chain(0))


def _step(
    target: Target,
    drafter: Drafter,
    rules: Rules,
    params: PyTree,
    batch: Batch,
    drafting: bool,
    reach: int | None,
    state: State,
) -> State:
    """One decode step: a call of every live row."""
    tokens, live = state.tokens, state.live
    if drafting:
        proposal, drafter_state = drafter.propose(state.drafter, tokens)
    else:
        proposal, drafter_state = _root_only(tokens), state.drafter
    nodes = proposal.tokens.shape[1]
    _, depth, ancestors = proposal.shape()
    start = tokens.count - 1
    nodes_in = StepInput(
        proposal.tokens, start[:, None] + depth, ancestors, proposal.valid, reach=reach
    )
    out, cache = target.step(params, state.cache, _with_extra(nodes_in, proposal.extra))
    hidden = out.hidden[:, :nodes]
    how = tokens.sampling
    draw = None if how is None else how.draw(start, depth, proposal.deepest)
    reads_rows = rules.rule.rows and how is not None
    want = Want(draw, top_k=drafter.needs.top_k, rows=reads_rows, gap=rules.gaps)
    produced = tokens.count - batch.tokens.count
    if rules.dense:
        read, rows = _shaped(
            target, rules, params, batch, state, proposal, hidden, want, produced
        )
    else:
        read, rows = target.readout(params, hidden, want), None
    accepted = rules.rule.accept(proposal, read, tokens)
    count, stopped = verify.truncate(
        accepted, live=live, budget=batch.budget - produced, stop_ids=batch.stop_ids
    )
    cache = target.commit(cache, accepted.path, count)
    kept = jnp.arange(accepted.path.shape[1])[None] < count[:, None]
    verdict = Verdict(
        tokens=proposal.tokens,
        valid=proposal.valid & live[:, None],
        path=jnp.where(kept, accepted.path, -1),
        count=count,
        emitted=accepted.emitted,
        readout=read,
        hidden=hidden,
        extra_hidden=None if proposal.extra is None else out.hidden[:, nodes:],
        taps=out.taps,
    )
    drafter_state = drafter.update(drafter_state, verdict)
    seen = shaping.advance(
        state.seen, batch.shaping, rules.processor,
        emitted=accepted.emitted, count=count,
    )  # fmt: skip
    state = dataclasses.replace(state, drafter=drafter_state, cache=cache, seen=seen)
    return record(state, batch, verdict, stopped=stopped, live=live, rows=rows)


def _shaped(
    target: Target,
    rules: Rules,
    params: PyTree,
    batch: Batch,
    state: State,
    proposal: Proposal,
    hidden: Array,
    want: Want,
    produced: Array,
) -> tuple[Readout, Array]:
    """A readout of changed logits, and the unchanged ones of every node."""
    raw: Any = target.readout(params, hidden, Want(rows=True)).rows
    logits = raw
    if rules.shapes:
        logits = shaping.shape_logits(
            raw, proposal, state.seen, batch.shaping, rules.processor,
            produced=produced, stop_ids=batch.stop_ids,
        )  # fmt: skip
    return readout_logits(logits, want), raw


def _with_extra(step: Any, extra: Any) -> StepInput:
    if extra is None:
        return step
    rows, nodes = step.positions.shape
    width = extra.positions.shape[1]
    blind = jnp.zeros((rows, nodes, width), bool)
    top = jnp.concatenate([step.allow, blind], axis=2)
    gates = None
    if extra.gates is not None:
        closed = jnp.zeros(step.positions.shape, extra.gates.dtype)
        gates = jnp.concatenate([closed, extra.gates], axis=1)
    return StepInput(
        jnp.concatenate([step.ids, extra.ids], axis=1),
        jnp.concatenate([step.positions, extra.positions], axis=1),
        jnp.concatenate([top, extra.allow], axis=1),
        jnp.concatenate([step.valid, extra.valid], axis=1),
        gates=gates,
        reach=step.reach,
    )
