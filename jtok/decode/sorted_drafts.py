"""Drafts of a sorted model: each token, or level of a tree, as deep as it has to go."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jtok.decode.candidates import point_masses
from jtok.decode.dynamic import grow_tree_with
from jtok.decode.rejection import node_laws
from jtok.decode.sorted_state import Plan, SortedState, catch_up, known, read_out
from jtok.decode.types import Proposal, Sampling, Tokens
from jtok.models import Cache, embed_ids, final_norm, run_segment
from jtok.ops import (
    Draw,
    Tree,
    Want,
    ancestor_mask,
    count_tokens,
    node_counts,
    penalize,
    purpose_keys,
    readout_logits,
)

__all__ = ["propose_chain", "propose_tree"]

PyTree = Any


# ---- chains


class _Seen(NamedTuple):
    """What an exit says of the next token of every row.

    Attributes:
      token: `[batch]` int32.
      sure: `[batch]` float32 the largest probability.
      law: `[batch, vocab]` float32 that it was drawn from, or `[batch, 0]`.
    """

    token: Array
    sure: Array
    law: Array


def _reader(
    plan: Plan, params: PyTree, how: Sampling | None, start: Array, counts: Any
) -> Callable[[Array], _Seen]:
    """A function that reads `[batch, dim]` hidden states out at their positions.

    Penalties on the tokens of `counts` come first: an exit is as sure as what it says
    after them, before any temperature.
    """
    config, model = plan.config, params["model"]
    own = plan.draw == "own" and how is not None
    if plan.draw == "greedy":
        how = None
    elif own and how is not None:
        how = dataclasses.replace(how, keys=purpose_keys(how.keys, "draft"))

    def look(x: Array) -> _Seen:
        hidden = final_norm(model, config, x[:, None])
        draw: Draw | None = None
        if how is not None:
            draw = how.draw(start, jnp.zeros((x.shape[0], 1), jnp.int32), 0)
        want = Want(draw, top_k=1, log_sum_exp=True, rows=own)
        read = _read(plan, params, hidden, want, counts)
        sure = jnp.exp(read.top_logits[:, 0, 0] - read.log_sum_exp[:, 0])
        law = jnp.zeros((x.shape[0], 0))
        if own and draw is not None:
            law = node_laws(read.rows, draw)[:, 0]
        return _Seen(read.choice[:, 0], sure, law)

    return look


def _read(plan: Plan, params: PyTree, hidden: Array, want: Want, counts: Any) -> Any:
    """What an exit says, after the penalties on what `counts` has seen."""
    if not plan.penalised:
        return read_out(plan, params["model"], hidden, want)
    raw: Any = read_out(plan, params["model"], hidden, Want(rows=True)).rows
    return readout_logits(penalize(raw, counts, params["penalties"]), want)


def propose_chain(
    plan: Plan, params: PyTree, state: SortedState, tokens: Tokens
) -> tuple[Proposal, SortedState]:
    most, batch = plan.lengths.most, tokens.count.shape[0]
    vocab = plan.config.vocab_size
    own = plan.draw == "own" and tokens.sampling is not None
    laws = jnp.zeros((batch, most, vocab if own else 0), jnp.float32)
    drafts = jnp.zeros((batch, most), jnp.int32)
    carry = (jnp.int32(0), state, drafts, laws, state.length)
    counts = None
    if plan.penalised:
        counts = count_tokens(tokens.ids, tokens.count, vocab)

    def more(carry: tuple[Array, SortedState, Array, Array, Array]) -> Array:
        return jnp.any(carry[0] < carry[4])

    def draft(
        carry: tuple[Array, SortedState, Array, Array, Array],
    ) -> tuple[Array, SortedState, Array, Array, Array]:
        index, state, drafts, laws, stop = carry
        state, seen, exit = _draft_one(
            plan, params, state, tokens, counts, drafts, index, stop
        )
        active = index < stop
        drafts = drafts.at[:, index].set(jnp.where(active, seen.token, 0))
        laws = laws.at[:, index].set(seen.law)
        unsure = (exit == len(plan.exits) - 1) & (seen.sure < params["cut"])
        stop = jnp.where(active & unsure, index + 1, stop)
        return index + 1, state, drafts, laws, stop

    _, state, drafts, laws, stop = jax.lax.while_loop(more, draft, carry)
    ids = jnp.concatenate([tokens.root[:, None], drafts], axis=1)
    node = jnp.arange(most + 1)[None]
    q = None
    if own:
        q = jnp.concatenate([laws[:, :1], laws], axis=1)
    elif plan.draw == "own":
        q = point_masses(ids, vocab)
    proposal = Proposal(ids, node <= stop[:, None], q=q, tree=Tree.chain(most))
    return proposal, dataclasses.replace(state, drafted=stop)


def _draft_one(
    plan: Plan, params: PyTree, state: SortedState, tokens: Tokens, counts: Any,
    drafts: Array, index: Array, stop: Array,
) -> tuple[SortedState, _Seen, Array]:  # fmt: skip
    """The next draft of every row that has one, and at which exit it left."""
    batch, count = drafts.shape[0], len(plan.exits)
    active = index < stop
    # Rows that have all their drafts feed nothing more.
    upto = tokens.count - 1 + jnp.minimum(index, stop - 1)
    start = tokens.count - 1 + index
    if plan.penalised:
        drafted = jnp.broadcast_to(index, (batch,))
        counts += count_tokens(drafts, drafted, plan.config.vocab_size)
        counts = counts[:, None]
    look = _reader(plan, params, tokens.sampling, start, counts)
    read = functools.partial(known, tokens, drafts)
    shape = jax.eval_shape(
        look, jnp.zeros((batch, plan.config.width), plan.config.dtype)
    )
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    best, exit = blank, jnp.zeros(batch, jnp.int32)
    chosen = jnp.zeros((batch, plan.config.width), plan.config.dtype)
    done = ~active
    for number in range(count):
        last = number == count - 1
        wanted = jnp.any(~done)
        state, x = catch_up(plan, params, state, number, upto, read, wanted, plan.block)
        if plan.score is None:
            seen = jax.lax.cond(wanted, look, lambda _: blank, x)
            sure = seen.sure
        else:
            sure = jnp.zeros(batch)
            if not last:
                score = functools.partial(_cheap, plan, params, number)
                sure = jax.lax.cond(wanted, score, lambda _: jnp.zeros(batch), x)
        early = sure > params["thresholds"][number]
        if plan.official:
            early = early & ~(state.fresh & (index == 0))
        taken = ~done & (early | last)
        if plan.score is None:
            best = _picked(taken, seen, best)
        chosen, exit = _picked(taken, (x, jnp.full(batch, number)), (chosen, exit))
        done = done | taken
    if plan.score is not None:
        best = look(chosen)
    left = state.left + jax.nn.one_hot(exit, count, dtype=jnp.int32) * active[:, None]
    return dataclasses.replace(state, left=left), best, exit


def _picked(rows: Array, new: PyTree, old: PyTree) -> PyTree:
    """Every array's rows from `new` where `rows` is True, else from `old`."""

    def pick(new: Array, old: Array) -> Array:
        return jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, new, old)


def _cheap(plan: Plan, params: PyTree, number: int, x: Array) -> Array:
    """`[batch]` how sure an exit is, from its cheap estimate."""
    hidden = final_norm(params["model"], plan.config, x[:, None])
    score: Any = plan.score
    return score(params["score"], hidden, number)[:, 0].astype(jnp.float32)


# ---- trees


def propose_tree(
    plan: Plan, params: PyTree, state: SortedState, tokens: Tokens
) -> tuple[Proposal, SortedState]:
    """Looks at all slots once for each level, as deep as the level goes.

    Keys and values of slots are never kept, so only committed tokens may be missing in
    a segment.
    """
    size: Any = plan.size
    config, model, count = plan.config, params["model"], len(plan.exits)
    batch, start = tokens.count.shape[0], tokens.count - 1
    levels = np.arange(size.num_slots) // size.beam
    positions = start[:, None] + jnp.asarray(levels, jnp.int32)[None]
    read = functools.partial(known, tokens, jnp.zeros((batch, 1), jnp.int32))
    before = None
    if plan.penalised:
        before = count_tokens(tokens.ids, tokens.count, config.vocab_size)

    def look(
        level: Array, ids: Array, parent: Array, state: SortedState
    ) -> tuple[Array, Array, SortedState]:
        allow = ancestor_mask(parent, max_depth=size.max_depth)
        x = embed_ids(model, config, ids, positions)
        of_level = lambda x: jax.lax.dynamic_slice_in_dim(
            x, level * size.beam, size.beam, 1
        )
        counts = None
        if before is not None:
            counts = of_level(node_counts(before, ids, allow))
        real = (jnp.arange(size.beam)[None] == 0) | (level > 0)
        real = jnp.broadcast_to(real, (batch, size.beam))
        blank = _blank_level(batch, size.beam)
        best, done = blank, state.length == 0
        exit = jnp.zeros(batch, jnp.int32)
        for number, (first, last) in enumerate(plan.segments):
            wanted = jnp.any(~done)
            state, _ = catch_up(
                plan, params, state, number, start - 1, read, wanted, plan.block
            )

            def deeper(x: Array, cache: Cache, part: tuple = (first, last)) -> Array:
                return run_segment(
                    model, config, x, positions, first=part[0], last=part[1],
                    mask=allow, cache=cache,
                )[0]  # fmt: skip

            x = jax.lax.cond(wanted, deeper, lambda x, _: x, x, state.caches[number])
            passes = state.passes.at[number].add(wanted.astype(jnp.int32))
            state = dataclasses.replace(state, passes=passes)
            look_at = functools.partial(_read_level, plan, params, counts)
            seen = jax.lax.cond(wanted, look_at, lambda _: blank, of_level(x))
            sure = _level_sure(seen[1][..., 0], real, plan.level)
            early = sure > params["thresholds"][number]
            if plan.official:
                early = early & ~(state.fresh & (level == 0))
            taken = ~done & (early | (number == count - 1))
            best = _picked(taken, seen, best)
            exit, done = jnp.where(taken, number, exit), done | taken
        once = jax.nn.one_hot(exit, count, dtype=jnp.int32)
        left = state.left + once * (state.length > 0)[:, None]
        return (*best, dataclasses.replace(state, left=left))

    return grow_tree_with(look, tokens.root, size, state)


def _blank_level(batch: int, beam: int) -> tuple[Array, Array]:
    shape = (batch, beam, beam)
    return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)


def _read_level(
    plan: Plan, params: PyTree, counts: Any, slots: Array
) -> tuple[Array, Array]:
    """The best continuations of a level's slots and their log-probabilities."""
    hidden = final_norm(params["model"], plan.config, slots)
    want = Want(top_k=slots.shape[1], log_sum_exp=True)
    read = _read(plan, params, hidden, want, counts)
    return read.top_ids, read.top_logits - read.log_sum_exp[..., None]


def _level_sure(log_probs: Array, real: Array, level: str) -> Array:
    """`[batch]` how sure a level is, over its real nodes."""
    sure = jnp.where(real, jnp.exp(log_probs), 0.0)
    if level == "max":
        return jnp.max(sure, axis=1)
    return jnp.sum(sure, axis=1) / jnp.sum(real, axis=1)
