"""How whatever drafts chooses its tokens: as the target would, or by own draws.

Draft models and draft heads share this: which nodes of a static tree have to be looked
at, how many candidates each gives, with whose noise, and which law that was.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.decode.rejection import node_laws
from jtok.decode.types import Sampling
from jtok.ops import Draw, Readout, Tree, Want, filter_logits, purpose_keys

__all__ = ["Candidates", "InnerLayout", "chooser", "inner_layout", "point_masses"]


class InnerLayout(NamedTuple):
    """A static tree as what drafts runs it: only nodes that have children.

    Attributes:
      inner: `[inner]` these nodes, in level order.
      above: `[nodes]` for every node, which of them is its parent (0 for the root).
      rank: `[nodes]` which candidate of its parent it is (0 for the root).
    """

    inner: np.ndarray
    above: np.ndarray
    rank: np.ndarray


def inner_layout(tree: Tree, *, own: bool = False) -> InnerLayout:
    """The nodes of a tree that have children, and whose candidates the others are.

    Args:
      tree: a static tree of at least one draft.
      own: candidates are draws, numbered in the order in which they are verified, and
        not ranks.

    Returns:
      `InnerLayout`.

    Example:
      >>> inner_layout(Tree.from_paths([[0], [2], [0, 1]])).rank.tolist()
      [0, 0, 2, 1]
    """
    parent = np.maximum(np.array(tree.parent), 0)
    inner = np.unique(parent)
    rank = np.maximum(np.array(tree.rank), 0)
    if own:  # drawn one after another, in the order in which they are verified
        seen: dict[int, int] = {}
        for node in range(1, tree.num_nodes):
            rank[node] = seen.get(parent[node], 0)
            seen[parent[node]] = rank[node] + 1
    return InnerLayout(inner, np.searchsorted(inner, parent), rank)


class Candidates(NamedTuple):
    """The candidates of some nodes, best first.

    Attributes:
      ids: `[batch, nodes, width]` int32.
      found: `[batch, nodes, width]` bool, whether they exist.
      laws: `[batch, nodes, vocab]` float32 the law of the first draw, or None.
    """

    ids: Int[Array, "batch nodes width"]
    found: Array
    laws: Array | None


def chooser(
    read_out: Callable[[Array, Want], Readout],
    sampling: Sampling | None,
    *,
    own: bool,
    width: int,
) -> Callable[[Array, Array, Array, int], Candidates]:
    """A function that chooses `width` candidates after every node.

    Args:
      read_out: `(hidden[batch, nodes, dim], Want) -> Readout` of what drafts.
      sampling: how rows choose; None takes the arg-max and the next best.
      own: draw with noise that is not the verifier's, and say from which law.
      width: candidates of a node.

    Returns:
      `(hidden, start[batch], depth[batch, nodes], max_depth) -> Candidates`, where
      `start + depth` is the position of each node.
    """

    def choose(hidden: Array, start: Array, depth: Array, deepest: int) -> Candidates:
        if sampling is None:
            read = read_out(hidden, Want(top_k=0 if width == 1 else width))
            ids = read.choice[..., None] if read.top_ids is None else read.top_ids
            return Candidates(ids, jnp.ones(ids.shape, bool), None)
        how = sampling
        if own:
            how = dataclasses.replace(how, keys=purpose_keys(how.keys, "draft"))
        drawn = how.draw(start, depth, deepest)
        read = read_out(hidden, Want(drawn, rows=own or width > 1))
        ids = read.choice[..., None]
        found = jnp.ones(ids.shape, bool)
        if read.rows is None:
            return Candidates(ids, found, None)
        if width > 1:
            ids, found = _noised_best(read.rows, drawn, width)
        laws = node_laws(read.rows, drawn) if own else None
        return Candidates(ids, found, laws)

    return choose


def point_masses(
    drafts: Int[Array, "batch nodes"], vocab_size: int
) -> Float[Array, "batch nodes vocab"]:
    """The laws of own draws where no row samples: the arg-max has all the mass.

    Args:
      drafts: `[batch, nodes]` int32.
      vocab_size: number of ids.

    Returns:
      `[batch, nodes, vocab]` float32; nothing reads it where all rows are greedy.

    Example:
      >>> point_masses(jnp.array([[1]]), 3).tolist()
      [[[0.0, 1.0, 0.0]]]
    """
    return jax.nn.one_hot(drafts, vocab_size)


def _noised_best(logits: Array, draw: Draw, width: int) -> tuple[Array, Array]:
    """The best scores after noise: draws without replacement, in order."""
    scores = filter_logits(
        draw.scaled(logits),
        top_k=draw.top_k,
        top_p=None if draw.top_p is None else draw.top_p[:, None],
        min_p=None if draw.min_p is None else draw.min_p[:, None],
    )
    # At temperature 0 nothing is drawn, and filters leave the best candidates out.
    sampled = (draw.temperature > 0)[:, None, None]
    noise = draw.noise(jnp.arange(logits.shape[-1]))
    scores = jnp.where(sampled, draw.noised(scores, noise), logits)
    values, ids = jax.lax.top_k(scores, width)
    return ids.astype(jnp.int32), jnp.isfinite(values)
