"""The decoding loop: prompt, then draft, step, verify, commit, all on the device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.decode import verify
from jtok.decode.types import Drafter, Proposal, Rule, Tokens, Verdict
from jtok.models import StepInput, Target
from jtok.ops import Tree, Want

__all__ = ["Batch", "Rules", "State", "runner"]

PyTree = Any


class Rules(NamedTuple):
    """Static choices of a run; they select what is compiled.

    Attributes:
      rule: how drafts are accepted.
      gaps: record how close every choice was.
      capacity: slots a row.
      chunk: prompt tokens a prefill step.
    """

    rule: Rule
    gaps: bool
    capacity: int
    chunk: int


@struct.dataclass
class Batch:
    """What a run is given, per row.

    Attributes:
      tokens: the prompts, and how rows choose.
      budget: `[batch]` int32 most tokens to emit.
      stop_ids: `[stops]` int32, -1 for none.
      drafter: parameters of the drafter, or None.
    """

    tokens: Tokens
    budget: jax.Array
    stop_ids: jax.Array
    drafter: PyTree = None


@struct.dataclass
class State:
    """Everything that changes while decoding.

    Attributes:
      tokens: prompts and what was emitted.
      cache: the target's, holding all tokens of a row but the newest.
      drafter: the drafter's.
      live: `[batch]` bool.
      stopped: `[batch]` bool, a stop id was emitted.
      calls: `[batch]` int32 decode steps while live.
      slots: `[batch]` int32 query slots of these steps.
      call_of: `[batch, capacity]` int32 the call that emitted each token.
      gaps: `[batch, capacity]` float32 score gap of each emitted token.
      emitted_per_call: `[depth + 2]` int32 histogram over calls.
      node_hits: `[nodes]` int32 how often each node was on the accepted path.
      steps: int32 steps of the loop so far.
    """

    tokens: Tokens
    cache: PyTree
    drafter: PyTree
    live: jax.Array
    stopped: jax.Array
    calls: jax.Array
    slots: jax.Array
    call_of: jax.Array
    gaps: jax.Array
    emitted_per_call: jax.Array
    node_hits: jax.Array
    steps: jax.Array


class Runner(NamedTuple):
    """Compiled halves of a run.

    Attributes:
      start: `(params, Batch, inherited state or None) -> State`, prompts processed.
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
    return _runner(target, drafter._replace(params=None), rules)


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
) -> State:
    tokens, drafter = batch.tokens, drafter.bind(batch.drafter)
    rows, capacity = tokens.ids.shape
    state = drafter.init(target.info, tokens)
    if inherited is not None and drafter.inherit is not None:
        state = drafter.inherit(state, inherited)
    proposal, _ = jax.eval_shape(drafter.propose, state, tokens)
    cache = target.init_cache(params, rows, capacity)
    cache, state = _prefill(target, drafter, rules, params, batch, cache, state)
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
    )


def _prefill(
    target: Target,
    drafter: Drafter,
    rules: Rules,
    params: PyTree,
    batch: Batch,
    cache: PyTree,
    state: PyTree,
) -> tuple[PyTree, PyTree]:
    """Feeds all prompt tokens but the last, a chunk at a time."""
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

    num_chunks = (jnp.max(todo) + width - 1) // width
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

    def worth_drafting(state: State) -> Array:
        live = state.live
        if gave_up is not None:
            live = live & ~gave_up(state.drafter)
        return jnp.any(live) & (state.steps < limit)

    def unfinished(state: State) -> Array:
        return jnp.any(state.live) & (state.steps < limit)

    state = jax.lax.while_loop(worth_drafting, functools.partial(step, True), state)
    if gave_up is not None:
        plain = functools.partial(step, False)
        state = jax.lax.while_loop(unfinished, plain, state)
    return state


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
        proposal.tokens, start[:, None] + depth, ancestors, proposal.valid
    )
    out, cache = target.step(params, state.cache, _with_extra(nodes_in, proposal.extra))
    hidden = out.hidden[:, :nodes]
    how = tokens.sampling
    draw = None if how is None else how.draw(start, depth, proposal.deepest)
    rows = rules.rule.rows and how is not None
    want = Want(draw, top_k=drafter.needs.top_k, rows=rows, gap=rules.gaps)
    read = target.readout(params, hidden, want)
    accepted = rules.rule.accept(proposal, read, tokens)
    produced = tokens.count - batch.tokens.count
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
    state = dataclasses.replace(state, drafter=drafter_state, cache=cache)
    return _record(state, batch, verdict, stopped, live)


def _with_extra(step: Any, extra: Any) -> StepInput:
    if extra is None:
        return step
    rows, nodes = step.positions.shape
    width = extra.positions.shape[1]
    blind = jnp.zeros((rows, nodes, width), bool)
    top = jnp.concatenate([step.allow, blind], axis=2)
    return StepInput(
        jnp.concatenate([step.ids, extra.ids], axis=1),
        jnp.concatenate([step.positions, extra.positions], axis=1),
        jnp.concatenate([top, extra.allow], axis=1),
        jnp.concatenate([step.valid, extra.valid], axis=1),
    )


def _record(
    state: State, batch: Batch, verdict: Verdict, stopped: Array, live: Array
) -> State:
    """Appends what was emitted and counts it."""
    old, count = state.tokens, verdict.count
    kept = jnp.arange(verdict.path.shape[1])[None] < count[:, None]
    path = jnp.maximum(verdict.path, 0)

    def append(buffer: Array, new: Array) -> Array:
        new = jnp.where(kept, new, 0).astype(buffer.dtype)
        write = lambda row, some, at: jax.lax.dynamic_update_slice(row, some, (at,))
        return jax.vmap(write)(buffer, new, old.count)

    tokens = dataclasses.replace(
        old, ids=append(old.ids, verdict.emitted), count=old.count + count
    )
    calls = jnp.broadcast_to(state.calls[:, None], kept.shape)
    gaps = state.gaps
    if verdict.readout.gap is not None:
        gaps = append(gaps, jnp.take_along_axis(verdict.readout.gap, path, axis=1))
    spent = tokens.count - batch.tokens.count >= batch.budget
    nodes = verdict.tokens.shape[1]
    hits = jnp.where(kept, 1, 0)
    return dataclasses.replace(
        state,
        tokens=tokens,
        live=live & ~stopped & ~spent,
        stopped=state.stopped | stopped,
        calls=state.calls + live,
        slots=state.slots + live * nodes,
        call_of=append(state.call_of, calls),
        gaps=gaps,
        emitted_per_call=state.emitted_per_call.at[count].add(live.astype(jnp.int32)),
        node_hits=state.node_hits.at[path].add(hits),
        steps=state.steps + 1,
    )
