"""Drafters whose acceptance is known, to hold the decoding loop to its contract."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from jtok.decode import Drafter, Proposal, Tokens, Verdict
from jtok.errors import check
from jtok.models import Info, StepInput
from jtok.ops import Tree, gumbel_at, purpose_keys

__all__ = [
    "adversary_drafter",
    "drawn_drafter",
    "dynamic_drafter",
    "extra_slots_drafter",
    "oracle_drafter",
    "random_drafter",
]

Rows = Sequence[Any]


def oracle_drafter(continuations: Rows, depth: int) -> Drafter:
    """Drafts a chain of the true continuation: exactly `depth + 1` tokens a call.

    Args:
      continuations: for every row the ids that plain decoding emits after its prompt;
        past their end nothing is drafted.
      depth: drafts a call, at least 1.

    Returns:
      `Drafter`; equal arguments give the same one.

    Raises:
      ArgumentError: `depth` below 1, no rows, or, when it is used, another number of
        rows than prompts.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> plain = generate(tiny_model(), [1, 2], max_new_tokens=8)
      >>> oracle = oracle_drafter([plain.tokens], 3)
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=8, drafter=oracle)
      >>> out.stats.calls
      2
    """
    return _chain_of(_hashable(continuations), depth, None)


def adversary_drafter(continuations: Rows, vocab_size: int, depth: int) -> Drafter:
    """Drafts a chain in which every token is wrong: exactly one token a call.

    Args:
      continuations: for every row the ids that plain decoding emits after its prompt.
      vocab_size: number of token ids, at least 2.
      depth: drafts a call, at least 1.

    Returns:
      `Drafter`; equal arguments give the same one.

    Raises:
      ArgumentError: as `oracle_drafter`, or `vocab_size` below 2.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> plain = generate(tiny_model(), [1, 2], max_new_tokens=8)
      >>> adversary = adversary_drafter([plain.tokens], 96, 3)
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=8, drafter=adversary)
      >>> out.stats.calls
      8
    """
    check(vocab_size >= 2, "vocab_size", vocab_size, "at least 2")
    return _chain_of(_hashable(continuations), depth, vocab_size)


def _hashable(rows: Rows) -> tuple[tuple[int, ...], ...]:
    check(len(rows) > 0, "continuations", rows, "at least one row")
    return tuple(tuple(int(token) for token in row) for row in rows)


@functools.lru_cache(maxsize=128)
def _chain_of(
    rows: tuple[tuple[int, ...], ...], depth: int, vocab_size: int | None
) -> Drafter:
    check(depth >= 1, "depth", depth, "at least 1")
    # Past the end of a row stands -1, which is drafted nowhere. Few widths, so that
    # other rows reuse what was compiled.
    width = -(-(max(map(len, rows)) + depth) // 64) * 64
    table = np.full((len(rows), width), -1, np.int32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return _scripted_chain(depth, vocab_size)._replace(params=jnp.asarray(table))


@functools.lru_cache(maxsize=32)
def _scripted_chain(depth: int, vocab_size: int | None) -> Drafter:
    """Drafts what its parameters `[batch, width]` say, or never that."""
    tree = Tree.chain(depth)

    def init(info: Info, tokens: Tokens, table: Array) -> Array:
        del info
        rows, got = table.shape[0], tokens.count.shape[0]
        check(got == rows, "continuations", rows, f"{got} rows, one a prompt")
        return tokens.count

    def propose(prompt: Array, tokens: Tokens, table: Array) -> tuple[Proposal, Array]:
        at = (tokens.count - prompt)[:, None] + jnp.arange(depth)[None]
        known = jnp.take_along_axis(table, at, axis=1, mode="clip")
        drafts = jnp.maximum(known, 0)
        if vocab_size is not None:
            drafts = (drafts + 1) % vocab_size
        root = tokens.root[:, None]
        nodes = jnp.concatenate([root, drafts], axis=1)
        valid = jnp.concatenate([jnp.ones_like(root, bool), known >= 0], axis=1)
        return Proposal(nodes, valid, tree=tree), prompt

    def update(prompt: Array, verdict: Verdict, table: Array) -> Array:
        del verdict, table
        return prompt

    return Drafter(init, propose, update)


def _keep(state: Any, verdict: Verdict) -> Any:
    del verdict
    return state


@functools.lru_cache(maxsize=32)
def random_drafter(depth: int = 3, width: int = 4, seed: int = 0) -> Drafter:
    """Drafts random tokens in a tree whose shape changes with every call.

    Each level has `width` nodes, which hang off random nodes of the level above; the
    shape is given as data. About one node in eight is invalid.

    Args:
      depth: levels below the root, at least 1.
      width: nodes of every level, at least 1.
      seed: of tokens, parents and validity; they depend on a row's length, too.

    Returns:
      `Drafter` of `1 + depth * width` nodes.

    Raises:
      ArgumentError: a number out of range.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> generate(tiny_model(), [1], drafter=random_drafter()).stats.slots_per_call
      13.0
    """
    check(depth >= 1, "depth", depth, "at least 1")
    check(width >= 1, "width", width, "at least 1")
    level = np.repeat(np.arange(1, depth + 1, dtype=np.int32), width)
    levels = np.concatenate([[0], level]).astype(np.int32)

    def init(info: Info, tokens: Tokens) -> Array:
        del tokens
        return jnp.int32(info.vocab_size)

    def one(count: Array, vocab_size: Array) -> tuple[Array, Array, Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), count), 3)
        drafts = jax.random.randint(keys[0], level.shape, 0, vocab_size)
        chosen = jax.random.randint(keys[1], level.shape, 0, width)
        above = jnp.where(level == 1, 0, 1 + (level - 2) * width + chosen)
        return drafts, above, jax.random.bernoulli(keys[2], 0.875, level.shape)

    def propose(vocab_size: Array, tokens: Tokens) -> tuple[Proposal, Array]:
        drafts, above, some = jax.vmap(one, (0, None))(tokens.count, vocab_size)
        root = tokens.root[:, None]
        nodes = jnp.concatenate([root, drafts], axis=1)
        valid = jnp.concatenate([jnp.ones_like(root, bool), some], axis=1)
        parent = jnp.concatenate([jnp.full_like(root, -1), above], axis=1)
        depths = jnp.broadcast_to(jnp.asarray(levels), nodes.shape)
        proposal = Proposal(nodes, valid, parent=parent, depth=depths, max_depth=depth)
        return proposal, vocab_size

    return Drafter(init, propose, _keep)


def drawn_drafter(table: np.ndarray, tree: Tree) -> Drafter:
    """Draws every node from a table's row, siblings with replacement, and says so.

    Verify it with `rejection(replacement=True)`.

    Args:
      table: `[vocab, vocab]` float32 logits of a token, by the one before it.
      tree: of the drafts.

    Returns:
      `Drafter`; equal arguments give the same one.

    Example:
      >>> from jtok.ops import Tree
      >>> drafter = drawn_drafter(np.eye(3), Tree.star(2))
      >>> drafter.params is None
      True
    """
    table = np.asarray(table, np.float32)
    return _drawn_drafter(table.tobytes(), len(table), tree)


@functools.lru_cache(maxsize=32)
def _drawn_drafter(values: bytes, vocab: int, tree: Tree) -> Drafter:
    table = np.frombuffer(values, np.float32).reshape(vocab, vocab)

    def init(info: Info, tokens: Tokens) -> tuple[()]:
        del info, tokens
        return ()

    def propose(state: Any, tokens: Tokens) -> tuple[Proposal, Any]:
        rows = jnp.asarray(table)
        batch, how = tokens.count.shape[0], tokens.sampling
        drafts = [tokens.root]
        for node in range(1, tree.num_nodes):
            above, depth = tree.parent[node], int(tree.depth[node])
            scores = rows[drafts[above]]
            if how is not None:
                ids = jnp.arange(vocab) + vocab * tree.rank[node]
                noise = gumbel_at(
                    purpose_keys(how.keys, "draft"),
                    (tokens.count + depth - 2)[:, None],
                    jnp.broadcast_to(ids, (batch, 1, vocab)),
                )
                scores = scores + noise[:, 0]
            drafts.append(jnp.argmax(scores, axis=-1).astype(jnp.int32))
        nodes = jnp.stack(drafts, axis=1)
        above_of = np.maximum(np.array(tree.parent), 0)
        q = jax.nn.softmax(rows[nodes[:, above_of]], axis=-1)
        return Proposal(nodes, jnp.ones_like(nodes, bool), q=q, tree=tree), state

    return Drafter(init, propose, _keep)


@functools.lru_cache(maxsize=32)
def dynamic_drafter(inner: Drafter) -> Drafter:
    """The same drafts, with the tree given as data instead of as a constant.

    Args:
      inner: a drafter of static trees.

    Returns:
      `Drafter`; equal arguments give the same one.

    Example:
      >>> from jtok.decode import generate, prompt_lookup
      >>> from jtok.testing import tiny_model
      >>> drafter = dynamic_drafter(prompt_lookup())
      >>> generate(tiny_model(), [1], drafter=drafter).guarantee
      'token'
    """

    def propose(state: Any, tokens: Tokens) -> tuple[Proposal, Any]:
        proposal, state = inner.propose(state, tokens)
        parent, depth, _ = proposal.shape()
        as_data = dataclasses.replace(
            proposal,
            parent=parent,
            depth=depth,
            tree=None,
            max_depth=proposal.deepest,
        )
        return as_data, state

    return inner._replace(propose=propose)


@struct.dataclass
class _WithExtra:
    inner: Any
    seen: jax.Array


@functools.lru_cache(maxsize=32)
def extra_slots_drafter(inner: Drafter, count: int = 2, token: int = 0) -> Drafter:
    """The same drafts, with mask tokens that hang off the root in a chain.

    What the target computes for them goes into the state, as the mean of each hidden
    vector; nothing else may change.

    Args:
      inner: a drafter.
      count: further slots, at least 1.
      token: id in these slots.

    Returns:
      `Drafter` whose state has `inner` and `seen`, `[batch, count]` float32.

    Raises:
      ArgumentError: no slots.

    Example:
      >>> from jtok.decode import generate, no_drafter
      >>> from jtok.testing import tiny_model
      >>> drafter = extra_slots_drafter(no_drafter())
      >>> generate(tiny_model(), [1], drafter=drafter).drafter_state.seen.shape
      (1, 2)
    """
    check(count >= 1, "count", count, "at least 1")

    def init(info: Info, tokens: Tokens) -> _WithExtra:
        seen = jnp.zeros((tokens.count.shape[0], count), jnp.float32)
        return _WithExtra(inner.init(info, tokens), seen)

    def propose(state: _WithExtra, tokens: Tokens) -> tuple[Proposal, _WithExtra]:
        proposal, inside = inner.propose(state.inner, tokens)
        batch, nodes = proposal.tokens.shape
        shape = (batch, count)
        allow = np.zeros((count, nodes + count), bool)
        allow[:, 0] = True
        allow[:, nodes:] = np.tri(count, dtype=bool)
        extra = StepInput(
            ids=jnp.full(shape, token, jnp.int32),
            positions=tokens.count[:, None] + jnp.arange(count, dtype=jnp.int32)[None],
            allow=jnp.broadcast_to(jnp.asarray(allow), (batch, *allow.shape)),
            valid=jnp.ones(shape, bool),
        )
        proposal = dataclasses.replace(proposal, extra=extra)
        return proposal, dataclasses.replace(state, inner=inside)

    def update(state: _WithExtra, verdict: Verdict) -> _WithExtra:
        seen = state.seen
        if verdict.extra_hidden is not None:
            means = jnp.mean(verdict.extra_hidden, axis=-1, dtype=jnp.float32)
            seen = jnp.where((verdict.count > 0)[:, None], means, seen)
        return _WithExtra(inner.update(state.inner, verdict), seen)

    return Drafter(init, propose, update, inner.needs)
