"""Penalties on tokens that a row has seen, at every node of a tree."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Penalties", "count_tokens", "node_counts", "penalize"]


@struct.dataclass
class Penalties:
    """How much less likely tokens become that a row has seen.

    Attributes:
      repetition: `[batch]` float32 > 0; positive logits of seen tokens are divided by
        it and negative ones multiplied. 1 changes nothing.
      presence: `[batch]` float32 nats taken from every seen token.
      frequency: `[batch]` float32 nats taken for each time a token was seen.

    Example:
      >>> Penalties(jnp.ones(2), jnp.zeros(2), jnp.zeros(2)).repetition.shape
      (2,)
    """

    repetition: jax.Array
    presence: jax.Array
    frequency: jax.Array


def count_tokens(
    ids: Int[Array, "batch capacity"], count: Int[Array, " batch"], vocab_size: int
) -> Int[Array, "batch vocab"]:
    """How often every token stands among the first `count` of its row.

    Args:
      ids: `[batch, capacity]` int32.
      count: `[batch]` int32 entries that are real.
      vocab_size: number of token ids (static); others are not counted.

    Returns:
      `[batch, vocab]` int32.

    Example:
      >>> count_tokens(jnp.array([[2, 0, 2, 1]]), jnp.array([3]), 3).tolist()
      [[1, 0, 2]]
    """
    rows, capacity = ids.shape
    real = jnp.arange(capacity)[None] < count[:, None]
    return _add(jnp.zeros((rows, vocab_size), jnp.int32), ids, real)


def node_counts(
    counts: Int[Array, "batch vocab"],
    tokens: Int[Array, "batch nodes"],
    ancestors: Bool[Array, "batch nodes nodes"],
) -> Int[Array, "batch nodes vocab"]:
    """What plain decoding would have counted where each node stands.

    Args:
      counts: `[batch, vocab]` int32 of the row, its root (node 0) included.
      tokens: `[batch, nodes]` int32.
      ancestors: `[batch, nodes, nodes]` bool, row = node; itself included.

    Returns:
      `[batch, nodes, vocab]` int32.

    Example:
      >>> chain = jnp.tril(jnp.ones((1, 2, 2), bool))
      >>> node_counts(jnp.array([[0, 1, 0]]), jnp.array([[1, 2]]), chain).tolist()
      [[[0, 1, 0], [0, 1, 1]]]
    """
    batch, nodes = tokens.shape
    above = ancestors & (jnp.arange(nodes) > 0)[None, None]
    every = jnp.broadcast_to(tokens[:, None], (batch, nodes, nodes))
    base = jnp.broadcast_to(counts[:, None], (batch, nodes, counts.shape[1]))
    return jax.vmap(_add)(base, every, above)


def _add(counts: Array, ids: Array, real: Array) -> Array:
    """Counts `[rows, vocab]` with the real ones of `ids` `[rows, some]` added."""
    vocab_size = counts.shape[1]
    # A negative index would count from the end.
    at = jnp.where(real & (ids >= 0), ids, vocab_size)
    add = lambda row, places: row.at[places].add(1, mode="drop")
    return jax.vmap(add)(counts, at)


def penalize(
    logits: Float[Array, "batch nodes vocab"],
    counts: Int[Array, "batch nodes vocab"],
    penalties: Penalties,
) -> Float[Array, "batch nodes vocab"]:
    """Logits with all three penalties, the repetition penalty first.

    Args:
      logits: `[batch, nodes, vocab]` float32.
      counts: `[batch, nodes, vocab]` int32, from `node_counts`.
      penalties: of every row.

    Returns:
      `[batch, nodes, vocab]` float32.

    Source: Keskar et al. 2019, arXiv 1909.05858, section 4.1, in the form that
    divides positive and multiplies negative logits.

    Example:
      >>> one = jnp.ones(1)
      >>> penalize(jnp.array([[[2.0, -2.0, 1.0]]]), jnp.array([[[1, 2, 0]]]),
      ...          Penalties(2 * one, 0 * one, one)).tolist()
      [[[0.0, -6.0, 1.0]]]
    """
    seen = counts > 0
    repetition, presence, frequency = (
        value[:, None, None]
        for value in (penalties.repetition, penalties.presence, penalties.frequency)
    )
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    taken = frequency * counts + presence
    return jnp.where(seen, repeated - taken, logits)
