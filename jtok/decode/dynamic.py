"""Draft trees that grow where the drafter is sure, in shapes that never change.

Source: Li et al. 2024, arXiv 2406.16858 (EAGLE-2), section 4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jtok.decode.types import Proposal
from jtok.errors import check

__all__ = ["Dynamic", "dynamic", "grow_tree", "grow_tree_with"]

PyTree = Any


class Dynamic(NamedTuple):
    """Static sizes of a dynamic tree.

    Attributes:
      beam: nodes that are expanded at each level, and children of each.
      expansions: levels that are expanded below the first.
      num_nodes: nodes that are kept, the root included.
    """

    beam: int
    expansions: int
    num_nodes: int

    @property
    def max_depth(self) -> int:
        """Depth of the deepest node that can be kept."""
        return self.expansions + 1

    @property
    def num_slots(self) -> int:
        """Nodes that the drafter looks at: `beam` for the root and every level."""
        return self.beam * (self.expansions + 1)


def dynamic(beam: int = 10, expansions: int = 4, num_nodes: int = 60) -> Dynamic:
    """A tree that is grown by the drafter's own probabilities in every call.

    The first level holds the `beam` best tokens; then the `beam` best nodes of a level
    have `beam` children each, `expansions` times. Of all these the `num_nodes - 1`
    most probable ones are proposed.

    Args:
      beam: at least 1.
      expansions: at least 0.
      num_nodes: at least 2, the root included, and no more than were grown.

    Returns:
      `Dynamic`, for `draft_model(..., tree=dynamic())`.

    Raises:
      ArgumentError: a number out of range.

    Source: Li et al. 2024, arXiv 2406.16858, sections 4.1 and 4.2.

    Example:
      >>> dynamic().max_depth
      5
    """
    check(beam >= 1, "beam", beam, "at least 1")
    check(expansions >= 0, "expansions", expansions, "at least 0")
    most = 1 + beam + expansions * beam * beam
    check(2 <= num_nodes <= most, "num_nodes", num_nodes, f"2 to {most}")
    return Dynamic(beam, expansions, num_nodes)


Look = Callable[[Array, Array, Array], tuple[Array, Array]]
LookWith = Callable[[Array, Array, Array, PyTree], tuple[Array, Array, PyTree]]


def grow_tree(look: Look, root: Int[Array, " batch"], size: Dynamic) -> Proposal:
    """Grows and prunes the tree of every row.

    The drafter looks at `size.num_slots` slots, `beam` for each level. Slot 0 is the
    root; the other slots of its level stay empty.

    Args:
      look: `(level, tokens[batch, slots], parent[batch, slots]) -> (ids, log_probs)`:
        the `beam` best continuations of each slot of that level, `[batch, beam,
        beam]`, best first. `parent` is the slot above, -1 for the root and empty
        slots; slots of deeper levels hold nothing yet.
      root: `[batch]` int32 newest token of every row.
      size: static sizes.

    Returns:
      `Proposal` of `size.num_nodes` nodes in level order, without `q`. Equal scores
      are ranked by their order of growth, so nothing depends on the backend.

    Example:
      >>> table = jnp.log(jnp.array([[0.1, 0.9], [0.6, 0.4]]))
      >>> def look(level, tokens, parent):
      ...     values, ids = jax.lax.top_k(table[tokens[:, level][:, None]], 1)
      ...     return ids, values
      >>> grow_tree(look, jnp.array([0]), dynamic(1, 2, 4)).tokens.tolist()
      [[0, 1, 0, 1]]
    """

    def stateless(
        level: Array, tokens: Array, parent: Array, state: None
    ) -> tuple[Array, Array, None]:
        return (*look(level, tokens, parent), state)

    return grow_tree_with(stateless, root, size, None)[0]


def grow_tree_with(
    look: LookWith, root: Int[Array, " batch"], size: Dynamic, state: PyTree
) -> tuple[Proposal, PyTree]:
    """`grow_tree` of a drafter that remembers something from level to level.

    Args:
      look: as `grow_tree` takes it, with a state as its last argument and last result.
      root: `[batch]` int32 newest token of every row.
      size: static sizes.
      state: arrays, before the first level.

    Returns:
      The proposal, and the state after the last level.

    Example:
      >>> def look(level, tokens, parent, count):
      ...     return jnp.zeros((1, 1, 1), jnp.int32), jnp.zeros((1, 1, 1)), count + 1
      >>> int(grow_tree_with(look, jnp.array([0]), dynamic(1, 2, 4), 0)[1])
      3
    """
    batch, beam, slots = root.shape[0], size.beam, size.num_slots
    # One level of slots more than is looked at, so that every level writes the next.
    shape, pool = (batch, slots + beam), (batch, size.max_depth, beam * beam)
    tokens = jnp.zeros(shape, jnp.int32).at[:, 0].set(root)
    carry = {
        "tokens": tokens,
        "parent": jnp.full(shape, -1, jnp.int32),
        # Where in the pool a slot's node stands; the root is not in it.
        "place": jnp.full(shape, -1, jnp.int32),
        "score": jnp.full(shape, -jnp.inf, jnp.float32).at[:, 0].set(0.0),
        "pool_tokens": jnp.zeros(pool, jnp.int32),
        "pool_scores": jnp.full(pool, -jnp.inf, jnp.float32),
    }

    def expand(
        level: Array, before: tuple[dict[str, Array], PyTree]
    ) -> tuple[dict[str, Array], PyTree]:
        carry, state = before
        first = level * beam
        ids, gains, state = look(
            level, carry["tokens"][:, :slots], carry["parent"][:, :slots], state
        )
        above = jax.lax.dynamic_slice_in_dim(carry["score"], first, beam, 1)
        scores = (above[..., None] + gains).reshape(batch, -1)
        ids = ids.reshape(batch, -1)
        best, chosen = jax.lax.top_k(scores, beam)
        new = {
            "tokens": jnp.take_along_axis(ids, chosen, axis=1),
            "parent": first + chosen // beam,
            "place": level * beam * beam + chosen,
            "score": best,
        }
        put = jax.lax.dynamic_update_slice_in_dim
        out = {k: put(carry[k], v, first + beam, 1) for k, v in new.items()}
        out["pool_tokens"] = carry["pool_tokens"].at[:, level].set(ids)
        out["pool_scores"] = carry["pool_scores"].at[:, level].set(scores)
        return out, state

    carry, state = jax.lax.fori_loop(0, size.max_depth, expand, (carry, state))
    return _prune(carry, root, size), state


def _prune(carry: dict[str, Array], root: Array, size: Dynamic) -> Proposal:
    """Keeps the nodes of the best scores, in the order in which they were grown."""
    batch, beam = root.shape[0], size.beam
    scores = carry["pool_scores"].reshape(batch, -1)
    above = jnp.repeat(carry["place"][:, : size.num_slots], beam, axis=1)
    # Ties go to the earlier one, so a node's parent is kept before the node.
    _, kept = jax.lax.top_k(scores, size.num_nodes - 1)
    kept = jnp.sort(kept, axis=1)
    order = jnp.broadcast_to(jnp.arange(1, size.num_nodes), kept.shape)
    node_of = jax.vmap(
        lambda at, node: jnp.zeros(scores.shape[1], jnp.int32).at[at].set(node)
    )(kept, order)
    pick = lambda pool: jnp.take_along_axis(pool.reshape(batch, -1), kept, axis=1)
    over = pick(above)
    parent = jnp.take_along_axis(node_of, jnp.maximum(over, 0), axis=1)
    with_root = lambda value, rest: jnp.concatenate(
        [jnp.broadcast_to(value, (batch,))[:, None], rest], axis=1
    )
    return Proposal(
        tokens=with_root(root, pick(carry["pool_tokens"])),
        valid=with_root(jnp.array(True), jnp.isfinite(pick(scores))),
        parent=with_root(jnp.int32(-1), jnp.where(over < 0, 0, parent)),
        depth=with_root(jnp.int32(0), (kept // (beam * beam) + 1).astype(jnp.int32)),
        max_depth=size.max_depth,
    )
