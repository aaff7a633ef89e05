"""Rejection rules: drafts drawn from a law of their own, verified in law.

A draft x that was drawn from q is kept with probability min(1, p[x] / q[x]); where it
is not, the next token has the law max(p - q, 0), normalised. With several drafts of a
node they are tried in order, each against what the one before left of p.

Noise is tied to the row's seed, the absolute position and the sibling, so batch mates,
padding and other nodes do not matter. What a step emits up to some position does not
look at noise of later positions, so the next step may draw with it again.

Source: Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318
(chains); Miao et al. 2023, arXiv 2305.09781; Yang et al. 2024, arXiv 2401.06706
(several candidates). Differs: strict `u * q < p`, so that a token of probability 0 is
never accepted.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok.decode import verify
from jtok.decode.types import Accepted, Proposal, Rule, Sampling, Tokens
from jtok.errors import ArgumentError, check
from jtok.ops import (
    Draw,
    Readout,
    ancestor_path,
    filter_logits,
    gumbel_at,
    purpose_keys,
    uniform_at,
)

__all__ = ["Walk", "check_q", "node_laws", "rejection", "sequential", "walk_drafts"]


class Walk(NamedTuple):
    """Where a walk from the root ended.

    Attributes:
      node: `[batch]` int32, the last accepted node, 0 for the root.
      law: `[batch, vocab]` float32 of the token after it.
      missed: `[batch]` bool, a child of `node` was tried and refused; else `law` is
        the target's there.
    """

    node: jax.Array
    law: jax.Array
    missed: jax.Array


def node_laws(
    logits: Float[Array, "batch nodes vocab"], draw: Draw
) -> Float[Array, "batch nodes vocab"]:
    """What the next token of every node is drawn from, after all processing.

    Args:
      logits: `[batch, nodes, vocab]` float32.
      draw: temperature and filters; its noise is not used.

    Returns:
      `[batch, nodes, vocab]` float32; in rows of temperature 0 all mass is on the
      arg-max (ties to the lower id).

    Example:
      >>> from jtok.ops import Draw, row_keys
      >>> draw = Draw(row_keys(jnp.array([0])), jnp.array([0]), jnp.array([[0]]),
      ...             jnp.array([1.0]), top_k=2)
      >>> node_laws(jnp.array([[[1.0, 0.0, 1.0]]]), draw).tolist()
      [[[0.5, 0.0, 0.5]]]
    """
    scores = filter_logits(
        draw.scaled(logits),
        top_k=draw.top_k,
        top_p=None if draw.top_p is None else draw.top_p[:, None],
        min_p=None if draw.min_p is None else draw.min_p[:, None],
    )
    best = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
    sampled = (draw.temperature > 0)[:, None, None]
    return jnp.where(sampled, jax.nn.softmax(scores, axis=-1), best)


def walk_drafts(
    laws: Float[Array, "batch nodes vocab"],
    q: Float[Array, "batch nodes vocab"] | None,
    uniforms: Float[Array, "batch nodes"],
    proposal: Proposal,
    *,
    replacement: bool = False,
    at_most: bool = False,
) -> Walk:
    """Tries every draft whose parent was accepted, in the order of nodes.

    A row of `laws` may be a point mass (temperature 0); a draft there is accepted
    where it is that point, whatever `q` says.

    Args:
      laws: `[batch, nodes, vocab]` float32, the target's.
      q: `[batch, nodes, vocab]` float32 laws of the drafts, or None where each draft
        is a point mass.
      uniforms: `[batch, nodes]` float32 in [0, 1), one for each draft.
      proposal: the drafts.
      replacement: siblings were drawn with replacement (static); else each was drawn
        among what its earlier siblings left.
      at_most: accept `u * q <= p`, as official code does (static).

    Returns:
      `Walk`. Where p - q has no positive part (p equals q up to rounding) the law is p.

    Example:
      >>> from jtok.ops import Tree
      >>> tokens = jnp.array([[0, 1]])
      >>> chain = Proposal(tokens, tokens >= 0, tree=Tree.chain(1))
      >>> p, q = jnp.full((1, 2, 2), 0.5), jnp.array([[[0.0, 1.0]] * 2])
      >>> walk_drafts(p, q, jnp.array([[0.0, 0.7]]), chain).law.tolist()
      [[1.0, 0.0]]
    """
    batch, nodes, vocab = laws.shape
    rows = jnp.arange(batch)
    parent, _, _ = proposal.shape()
    zeros = jnp.zeros((batch, vocab), bool)
    start = Walk(jnp.zeros(batch, jnp.int32), laws[:, 0], jnp.zeros(batch, bool))

    def visit(node: Array, carry: tuple[Walk, Array]) -> tuple[Walk, Array]:
        walk, gone = carry
        token = proposal.tokens[:, node]
        tried = (parent[:, node] == walk.node) & proposal.valid[:, node]
        if q is None:
            drawn = jax.nn.one_hot(token, vocab)
        else:
            drawn = q[:, node] if replacement else _without(q[:, node], gone)
        mass, chance = walk.law[rows, token], drawn[rows, token]
        bound = uniforms[:, node] * chance
        right = (bound <= mass) if at_most else (bound < mass)
        # A point mass (temperature 0) is right or wrong; its drafts are no draws.
        right = jnp.where(jnp.max(walk.law, -1) == 1, mass == 1, right & (chance > 0))
        taken, missed = tried & right, tried & ~right
        left = _residual(walk.law, drawn)
        law = jnp.where((missed & (chance > 0))[:, None], left, walk.law)
        gone = gone | (missed[:, None] & (jnp.arange(vocab)[None] == token[:, None]))
        walk = Walk(
            jnp.where(taken, node, walk.node),
            jnp.where(taken[:, None], laws[:, node], law),
            (walk.missed | missed) & ~taken,
        )
        return walk, gone & ~taken[:, None]

    return jax.lax.fori_loop(1, nodes, visit, (start, zeros))[0]


def _without(q: Array, gone: Array) -> Array:
    """The law of a draw among what earlier siblings left; 0 where that is nothing."""
    left = jnp.where(gone, 0.0, q)
    total = jnp.sum(left, axis=-1, keepdims=True)
    return left / jnp.where(total > 0, total, 1.0)


def _residual(law: Array, drawn: Array) -> Array:
    left = jnp.maximum(law - drawn, 0.0)
    total = jnp.sum(left, axis=-1, keepdims=True)
    return jnp.where(total > 0, left / jnp.where(total > 0, total, 1.0), law)


# Rules ------------------------


@functools.lru_cache(maxsize=2)
def rejection(*, replacement: bool = False) -> Rule:
    """The rule for drafts that were drawn from a law `q`, in chains and trees.

    Its output has the law of plain decoding, but other tokens for the same seed. Rows
    of temperature 0 take the arg-max as plain decoding does.

    Args:
      replacement: the drafts of a node were drawn with replacement; else one after
        another among those that were left, as Gumbel noise and a top-k draw them.

    Returns:
      `Rule`, for drafters that give `Proposal.q`.

    Source: Leviathan et al. 2023, arXiv 2211.17192, section 2.3; Yang et al. 2024,
    arXiv 2401.06706, section 3.2. Differs: see the module.

    Example:
      >>> rejection().guarantee
      'distribution'
    """

    def accept(proposal: Proposal, read: Readout, tokens: Tokens) -> Accepted:
        return _accept(proposal, read, tokens, proposal.q, replacement)

    return Rule(accept, "distribution", rows=True, needs_q=True)


@functools.lru_cache(maxsize=2)
def sequential(*, compat: Literal["official"] | None = None) -> Rule:
    """The rule that tries drafts one after another, each as if it were certain.

    A draft is kept with the probability that the target gives it; where it is not,
    that probability goes to the other tokens. Any drafts will do. It has the law of
    `exact()`, which accepts as many and equals plain decoding token by token.

    Args:
      compat: "official" accepts `u <= p` and, where no draft of the last node was
        refused, draws from the logits without temperature and filters. That changes
        the law, so the guarantee is "none".

    Returns:
      `Rule`.

    Source: Li et al. 2024, arXiv 2406.16858 (EAGLE-2's code). Differs: the last token
    is drawn from the processed law, too.

    Example:
      >>> sequential().guarantee
      'distribution'
    """
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    official = compat == "official"

    def accept(proposal: Proposal, read: Readout, tokens: Tokens) -> Accepted:
        return _accept(proposal, read, tokens, None, False, official)

    return Rule(accept, "none" if official else "distribution", rows=True)


def _accept(
    proposal: Proposal,
    read: Readout,
    tokens: Tokens,
    q: Array | None,
    replacement: bool,
    official: bool = False,
) -> Accepted:
    how = tokens.sampling
    if how is None or proposal.deepest == 0:
        return verify.accept(read.choice, proposal)
    if read.rows is None:
        raise ArgumentError("read: its rows are None, expected all logits of a node.")
    parent, depth, ancestors = proposal.shape()
    start = tokens.count - 1
    laws = node_laws(read.rows, how.draw(start, depth, proposal.deepest))
    uniforms = _uniforms(how, start, parent, depth)
    walk = walk_drafts(
        laws, q, uniforms, proposal, replacement=replacement, at_most=official
    )
    drafts = jnp.take_along_axis(depth, walk.node[:, None], axis=1)[:, 0]
    noise = _noise(how, start + drafts, read.rows.shape[-1])
    last = jnp.argmax(jnp.log(walk.law) + noise, axis=-1).astype(jnp.int32)
    # Where nothing was refused the token is that of plain decoding.
    at = walk.node[:, None]
    chosen = jnp.take_along_axis(read.choice, at, axis=1)[:, 0]
    if official:
        raw = jnp.take_along_axis(read.rows, at[..., None], axis=1)[:, 0] + noise
        drawn = jnp.argmax(raw, axis=-1).astype(jnp.int32)
        chosen = jnp.where(how.temperature > 0, drawn, chosen)
    last = jnp.where(walk.missed, last, chosen)
    path = ancestor_path(ancestors, depth, walk.node, max_depth=proposal.deepest)
    below = jnp.pad(path[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    kept = jnp.take_along_axis(proposal.tokens, jnp.maximum(below, 0), axis=1)
    emitted = jnp.where(below >= 0, kept, last[:, None])
    return Accepted(path, drafts.astype(jnp.int32), emitted.astype(jnp.int32))


def _uniforms(how: Sampling, start: Array, parent: Array, depth: Array) -> Array:
    """`[batch, nodes]` by position and sibling, whatever other nodes there are."""
    nodes = parent.shape[1]
    earlier = jnp.asarray(np.tri(nodes, k=-1, dtype=bool))[None]
    same = parent[:, :, None] == parent[:, None, :]
    sibling = jnp.sum(same & earlier, axis=-1, dtype=jnp.int32)
    keys = purpose_keys(how.keys, "accept")
    # A draft is decided at the position of its parent, as its choice would be.
    at = start[:, None] + jnp.maximum(depth - 1, 0)
    return uniform_at(keys, at, sibling[..., None])[..., 0]


def _noise(how: Sampling, positions: Array, vocab: int) -> Array:
    """`[batch, vocab]` Gumbel noise of plain decoding, none at temperature 0."""
    batch = positions.shape[0]
    ids = jnp.broadcast_to(jnp.arange(vocab), (batch, 1, vocab))
    noise = gumbel_at(how.keys, positions[:, None], ids)[:, 0]
    return jnp.where((how.temperature > 0)[:, None], noise, 0.0)


def check_q(q: Any, valid: Any = None, *, tolerance: float = 1e-4) -> None:
    """Refuses laws that are none: for concrete proposals, outside of compiled code.

    Args:
      q: `[batch, nodes, vocab]` concrete array, `Proposal.q`. The root's row is not
        looked at.
      valid: `[batch, nodes]` bool, nodes to look at; None for all.
      tolerance: how far a sum may be from 1.

    Raises:
      ArgumentError: a row with a negative or NaN entry, or that does not sum to 1.

    Example:
      >>> check_q(np.full((1, 2, 4), 0.2))
      Traceback (most recent call last):
      jtok.errors.ArgumentError: q: row 0, node 1 sums to 0.8, expected 1.
    """
    laws = np.asarray(q, np.float64)
    check(laws.ndim == 3, "q", f"shape {laws.shape}", "[batch, nodes, vocab]")
    looked = np.ones(laws.shape[:2], bool) if valid is None else np.array(valid, bool)
    looked[:, 0] = False
    for row, node in np.argwhere(looked):
        law = laws[row, node]
        if not law.min() >= 0:
            raise ArgumentError(
                f"q: row {row}, node {node} has an entry {law.min():g}, expected >= 0."
            )
        if not abs(law.sum() - 1) <= tolerance:
            raise ArgumentError(
                f"q: row {row}, node {node} sums to {law.sum():g}, expected 1."
            )
