"""A drafter that is right as often as one was measured to be, whatever the text."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jtok.decode import Drafter, Proposal
from jtok.ops import Tree

__all__ = ["depth_law", "scripted_drafter"]


def depth_law(full: Tree, hits: np.ndarray, tree: Tree) -> np.ndarray:
    """How many drafts a call keeps, from the hits of a larger tree.

    Args:
      full: the tree that was measured.
      hits: `[full.num_nodes]` accepted nodes, the root first.
      tree: a part of it.

    Returns:
      `[tree.max_depth + 1]` probability that a call keeps 0, 1, 2, ... drafts.
    """
    of = dict(zip(full.paths, hits[1:], strict=True))
    share = np.zeros(tree.max_depth + 2)
    share[0] = hits[0]
    for path in tree.paths:
        share[len(path)] += of[path]
    at_least = share / hits[0]
    return at_least[:-1] - at_least[1:]


def scripted_drafter(
    truth: np.ndarray, tree: Tree, law: np.ndarray, seed: int
) -> Drafter:
    """Drafts whose longest path is right down to a drawn depth, and wrong elsewhere.

    Args:
      truth: `[tokens]` prompt and what plain decoding emits after it.
      tree: what is drafted.
      law: from `depth_law`.
      seed: of the draws.

    Returns:
      `Drafter` for a batch of this one text.
    """
    draws = np.random.default_rng(seed).choice(len(law), size=len(truth), p=law)
    path = tree.leaf_paths[np.argmax((tree.leaf_paths >= 0).sum(axis=1))]
    on_path = np.isin(np.arange(tree.num_nodes), path)
    line, depths = jnp.asarray(truth, jnp.int32), jnp.asarray(draws, jnp.int32)

    def propose(state: Any, tokens: Any) -> tuple[Proposal, Any]:
        level = tree.depth[None]
        at = tokens.count[:, None] - 1 + level
        true = line.at[at].get(mode="clip")
        reach = depths.at[tokens.count - 1].get(mode="clip")
        right = on_path[None] & (level <= reach[:, None])
        drafts = jnp.where(right | (level == 0), true, true + 1)
        return Proposal(drafts, jnp.ones_like(drafts, bool), tree=tree), state

    return Drafter(lambda info, tokens: (), propose, lambda state, verdict: state)
