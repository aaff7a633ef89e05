"""Which drafts are emitted. Nothing else decides that.

One rule serves arg-max and sampled decoding: the target chooses one token at every
node, and a draft is right where it equals its parent's choice. With noise that is tied
to row and position, the result equals plain decoding token by token.

Source: Leviathan et al. 2023, arXiv 2211.17192; Cai et al. 2024, arXiv 2401.10774,
section 2.3. Differs: draws are keyed by position instead of by step.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jtok.decode.types import Accepted, Proposal, Rule, Tokens
from jtok.ops import Readout, ancestor_path

__all__ = ["EXACT", "accept", "truncate"]


def accept(choice: Int[Array, "batch nodes"], proposal: Proposal) -> Accepted:
    """Walks every row from the root along drafts that equal the target's choice.

    Equally long paths (duplicate siblings) give the same tokens; the first in level
    order is taken.

    Args:
      choice: `[batch, nodes]` int32 the target's next token at every node.
      proposal: what was drafted.

    Returns:
      `Accepted`.

    Example:
      >>> from jtok.ops import Tree
      >>> tokens = jnp.array([[5, 7, 8]])
      >>> chain = Proposal(tokens, tokens > 0, tree=Tree.chain(2))
      >>> accept(jnp.array([[7, 9, 1]]), chain).emitted.tolist()
      [[7, 9, 9]]
    """
    parent, depth, ancestors = proposal.shape()
    above = jnp.take_along_axis(choice, jnp.maximum(parent, 0), axis=1)
    right = (proposal.valid & (proposal.tokens == above)) | (parent < 0)
    whole = jnp.all(right[:, None, :] | ~ancestors, axis=-1)
    reach = jnp.where(whole, depth, -1)
    node = jnp.argmax(reach, axis=-1)
    path = ancestor_path(ancestors, depth, node, max_depth=proposal.deepest)
    drafts = jnp.take_along_axis(reach, node[:, None], axis=1)[:, 0]
    # Along a right path the next draft is what its parent chose.
    along = jnp.where(path < 0, node[:, None], path)
    emitted = jnp.take_along_axis(choice, along, axis=1)
    return Accepted(path, drafts.astype(jnp.int32), emitted)


def _accept_choice(proposal: Proposal, read: Readout, tokens: Tokens) -> Accepted:
    del tokens
    return accept(read.choice, proposal)


# A draft is right where it is what plain decoding would choose there.
EXACT = Rule(_accept_choice, "token")


def truncate(
    accepted: Accepted,
    *,
    live: Bool[Array, " batch"],
    budget: Int[Array, " batch"],
    stop_ids: Int[Array, " stops"],
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """How many of the accepted tokens are emitted: stop ids and budgets are exact.

    A stop id is emitted, and nothing after it.

    Args:
      accepted: from `accept`.
      live: `[batch]` bool; other rows emit nothing.
      budget: `[batch]` int32 tokens that may still be emitted.
      stop_ids: `[stops]` int32, -1 for none.

    Returns:
      `[batch]` int32 number of tokens, and whether a stop id is among them.

    Example:
      >>> got = Accepted(jnp.zeros((1, 3), int), jnp.array([2]), jnp.array([[4, 9, 6]]))
      >>> count, stopped = truncate(got, live=jnp.array([True]),
      ...     budget=jnp.array([8]), stop_ids=jnp.array([9]))
      >>> count.tolist(), stopped.tolist()
      ([2], [True])
    """
    length = accepted.emitted.shape[1]
    is_stop = jnp.any(accepted.emitted[..., None] == stop_ids[None, None], axis=-1)
    first = jnp.where(jnp.any(is_stop, -1), jnp.argmax(is_stop, -1) + 1, length + 1)
    count = jnp.minimum(jnp.minimum(accepted.drafts + 1, first), budget)
    count = jnp.where(live, count, 0).astype(jnp.int32)
    return count, live & (first <= count)
