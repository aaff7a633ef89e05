"""Typical acceptance: drafts that are likely enough. It changes what is emitted.

Source: Cai et al. 2024, arXiv 2401.10774, section 2.3.2.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.decode import verify
from jtok.decode.rejection import node_laws
from jtok.decode.types import Accepted, Proposal, Rule, Tokens
from jtok.errors import ArgumentError, check
from jtok.ops import Readout, ancestor_path

__all__ = ["accept_typical", "typical"]

# As in the official code, where it keeps the logarithm finite.
_FLOOR = 1e-5


@functools.lru_cache(maxsize=64)
def typical(
    eps: float = 0.09,
    alpha: float = 0.3,
    *,
    compat: Literal["official"] | None = None,
) -> Rule:
    """Accepts drafts that are typical of the target. NOT lossless: opt in knowingly.

    A draft is acceptable where its probability is above `min(eps, alpha * exp(-H))`
    with H the entropy there. The longest acceptable path is taken, of equally long
    ones the likeliest, and after it the arg-max. Rows of temperature 0 decode exactly.

    Args:
      eps: in [0, 1], probability above which any draft is acceptable.
      alpha: >= 0, factor on exp(-H); may be infinite.
      compat: "official" leaves top-k, top-p and min-p out of the probabilities.

    Returns:
      `Rule` of guarantee "none".

    Raises:
      ArgumentError: `eps` or `alpha` out of range.

    Source: Cai et al. 2024, arXiv 2401.10774, section 2.3.2, defaults of its
    `medusa_generate`. Differs: by default probabilities are those after filters.

    Example:
      >>> typical().guarantee
      'none'
    """
    check(0 <= eps <= 1, "eps", eps, "a probability in [0, 1]")
    check(alpha >= 0 and not math.isnan(alpha), "alpha", alpha, "at least 0")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")

    def accept(proposal: Proposal, read: Readout, tokens: Tokens) -> Accepted:
        how = tokens.sampling
        if how is None:
            return verify.accept(read.choice, proposal)
        if read.rows is None:
            raise ArgumentError("read: its rows are None, expected all logits.")
        _, depth, _ = proposal.shape()
        draw = how.draw(tokens.count - 1, depth, proposal.deepest)
        if compat == "official":
            draw = dataclasses.replace(draw, top_k=None, top_p=None, min_p=None)
        laws = node_laws(read.rows, draw)
        best = jnp.argmax(read.rows, axis=-1).astype(jnp.int32)
        return accept_typical(laws, best, proposal, eps=eps, alpha=alpha)

    return Rule(accept, "none", rows=True)


def accept_typical(
    laws: Float[Array, "batch nodes vocab"],
    best: Array,
    proposal: Proposal,
    *,
    eps: float,
    alpha: float,
) -> Accepted:
    """The longest path of acceptable drafts, and the arg-max after it.

    Args:
      laws: `[batch, nodes, vocab]` float32; a law that is a point mass accepts that
        point only.
      best: `[batch, nodes]` int32 arg-max at every node.
      proposal: the drafts.
      eps: in [0, 1].
      alpha: >= 0.

    Returns:
      `Accepted`. Among equally long paths the largest sum of log-probabilities wins,
      and among equal sums the first in level order.

    Example:
      >>> from jtok.ops import Tree
      >>> tokens = jnp.array([[0, 1, 2]])
      >>> star = Proposal(tokens, tokens >= 0, tree=Tree.star(2))
      >>> laws = jnp.array([[[0.2, 0.3, 0.5]] * 3])
      >>> best = jnp.array([[2, 2, 2]])
      >>> accept_typical(laws, best, star, eps=0.1, alpha=1.0).path.tolist()
      [[0, 2]]
    """
    parent, depth, ancestors = proposal.shape()
    rows = jnp.arange(parent.shape[0])[:, None]
    above = jnp.maximum(parent, 0)
    entropy = -jnp.sum(laws * jnp.log(laws + _FLOOR), axis=-1)
    # alpha = inf times exp(-H) > 0 stays infinite.
    threshold = jnp.minimum(eps, alpha * jnp.exp(-entropy))
    mass = laws[rows, above, proposal.tokens]
    likely = mass > jnp.take_along_axis(threshold, above, axis=1)
    right = (proposal.valid & likely & (mass > 0)) | (parent < 0)
    whole = jnp.all(right[:, None, :] | ~ancestors, axis=-1)
    reach = jnp.where(whole, depth, -1)
    gain = jnp.where(parent < 0, 0.0, jnp.log(mass))
    total = jnp.sum(jnp.where(ancestors, gain[:, None, :], 0.0), axis=-1)
    longest = reach == jnp.max(reach, axis=-1, keepdims=True)
    node = jnp.argmax(jnp.where(longest, total, -jnp.inf), axis=-1)
    drafts = jnp.take_along_axis(depth, node[:, None], axis=1)[:, 0]
    path = ancestor_path(ancestors, depth, node, max_depth=proposal.deepest)
    below = jnp.pad(path[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    kept = jnp.take_along_axis(proposal.tokens, jnp.maximum(below, 0), axis=1)
    last = jnp.take_along_axis(best, node[:, None], axis=1)
    emitted = jnp.where(below >= 0, kept, last).astype(jnp.int32)
    return Accepted(path, drafts.astype(jnp.int32), emitted)
