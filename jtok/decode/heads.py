"""Drafting with heads: a chain or a static tree, level by level."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jtok.decode.candidates import chooser, inner_layout, point_masses
from jtok.decode.types import Proposal, Tokens
from jtok.errors import check
from jtok.ops import Readout, Tree
from jtok.predict.heads import DraftHead

__all__ = ["draft_tree"]

PyTree = Any


def draft_tree(
    head: DraftHead,
    params: PyTree,
    context: PyTree,
    tokens: Tokens,
    tree: Tree,
    *,
    vocab_size: int,
    own: bool = False,
    valid: Array | None = None,
) -> Proposal:
    """Drafts a static tree below the newest token of every row.

    Args:
      head: what drafts.
      params: of the head.
      context: of every row, as the head takes it.
      tokens: prompt and emitted tokens; their newest is the root.
      tree: ranks count a node's candidates from the best.
      vocab_size: number of ids.
      own: draw with noise that is not the verifier's and say from which law; else the
        head chooses with the verifier's noise.
      valid: `[batch]` bool rows that have drafts at all, None for all.

    Returns:
      `Proposal`; with `own` it has `q`.

    Raises:
      ArgumentError: a tree deeper than the head's steps.

    Example:
      >>> from jtok.decode import Tokens
      >>> from jtok.ops import Tree, readout_logits
      >>> from jtok.predict import DraftHead
      >>> counts = lambda params, context, state, tokens, index: (
      ...     jax.nn.one_hot((tokens + 1) % 8, 8), state)
      >>> head = DraftHead(lambda params, context: jnp.zeros((1, 1)), counts,
      ...                  lambda params, hidden, want: readout_logits(hidden, want), 3)
      >>> tokens = Tokens(jnp.array([[4, 5]]), jnp.array([2]))
      >>> made = draft_tree(head, None, None, tokens, Tree.chain(3), vocab_size=8)
      >>> made.tokens.tolist()
      [[5, 6, 7, 0]]
    """
    deepest = tree.max_depth
    check(deepest <= head.steps, "tree", f"depth {deepest}", f"at most {head.steps}")
    layout = inner_layout(tree, own=own)
    batch, root, start = tokens.count.shape[0], tokens.root, tokens.count - 1
    width = int(layout.rank.max()) + 1
    drafts = jnp.broadcast_to(root[:, None], (batch, tree.num_nodes))
    real = jnp.ones((batch, tree.num_nodes), bool)
    sampled = own and tokens.sampling is not None
    laws = jnp.zeros((batch, tree.num_nodes, vocab_size)) if sampled else None
    state, frontier = head.init(params, context), np.zeros(1, np.int64)
    for level in range(deepest):
        hidden, state = head.step(params, context, state, drafts[:, frontier], level)
        depth = jnp.full((batch, len(frontier)), level, jnp.int32)
        choose = chooser(
            _reader(head, params, level), tokens.sampling, own=own, width=width
        )
        found = choose(hidden, start, depth, deepest)
        below = np.flatnonzero(np.asarray(tree.depth) == level + 1)
        parent = np.searchsorted(frontier, np.asarray(tree.parent)[below])
        rank = layout.rank[below]
        drafts = drafts.at[:, below].set(found.ids[:, parent, rank])
        real = real.at[:, below].set(found.found[:, parent, rank])
        if laws is not None:
            laws = laws.at[:, below].set(found.laws[:, parent])  # type: ignore[index]
        inner = np.isin(below, layout.inner)
        frontier, kept = below[inner], parent[inner]
        state = jax.tree.map(lambda x, kept=kept: x[:, kept], state)
    if valid is not None:
        is_root = np.arange(tree.num_nodes) == 0
        real = real & (valid[:, None] | is_root[None])
    if own and laws is None:
        laws = point_masses(drafts, vocab_size)
    return Proposal(drafts, real, q=laws, tree=tree)


def _reader(head: DraftHead, params: PyTree, level: int) -> Callable[..., Readout]:
    if not head.each:
        return functools.partial(head.readout, params)
    return lambda hidden, want: head.readout(params, hidden, want, level)
