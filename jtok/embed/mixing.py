"""Rows of new tokens as weighted sums of known rows: weights, neighbours, sums.

Pure functions of arrays, under `jit` or not, in float32. The weights say nothing of a
matrix, so one set serves the input and the output rows.

Source: Sharthak et al. 2025, arXiv 2505.09738, local and global heuristic.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.embed.weighted import weighted_rows
from jtok.errors import check

__all__ = [
    "Mix",
    "global_weights",
    "hybrid",
    "local_weights",
    "mixed_rows",
    "nearest_tokens",
]

_SOFTENING = 1e-5  # added to every temperature, as in the official code


@struct.dataclass
class Mix:
    """Each new row as a weighted sum of known ones.

    Attributes:
      ids: `[new, terms]` int32 ids of known rows; any id where the weight is 0.
      weights: `[new, terms]` float32, which sum to 1 where `valid`, else 0.
      valid: `[new]` bool: there is anything to sum.
    """

    ids: jax.Array
    weights: jax.Array
    valid: jax.Array


def local_weights(
    ids: Int[Array, "new pieces"],
    mask: Bool[Array, "new pieces"],
    length_share: Float[Array, "new pieces"],
    cosine: Float[Array, "new pieces"],
    *,
    temperature: float = 0.3,
) -> Mix:
    """Weights of the pieces that a token is cut into, by likeness and by length.

    The cosines go through a softmax of temperature 1, are averaged with the lengths'
    shares, and go through a softmax of temperature `temperature + 1e-5`. Equal pieces
    get equal weights: then it is the mean of the pieces (ReTok).

    Args:
      ids: `[new, pieces]` ids of the pieces; a piece that occurs twice stands twice.
      mask: `[new, pieces]` True for pieces that there are and that have a vector.
      length_share: `[new, pieces]` length of the piece over that of the token; need
        not sum to 1.
      cosine: `[new, pieces]` likeness of piece and token, of -1 to 1.
      temperature: above 0.

    Returns:
      `Mix` with one term a piece; not valid where no piece is.

    Raises:
      ArgumentError: `temperature` not above 0.

    Source: Sharthak et al. 2025, arXiv 2505.09738, local heuristic.

    Example:
      >>> one = jnp.ones((1, 2))
      >>> local_weights(jnp.array([[3, 4]]), one > 0, one / 2, one).weights.tolist()
      [[0.5, 0.5]]
    """
    check(temperature > 0, "temperature", temperature, "above 0")
    likeness = _softmax(cosine.astype(jnp.float32), mask)
    mean = (likeness + length_share.astype(jnp.float32)) / 2
    weights = _softmax(mean / (temperature + _SOFTENING), mask)
    return Mix(jnp.where(mask, ids, 0), weights, mask.any(axis=1))


def global_weights(
    ids: Int[Array, "new k"],
    mask: Bool[Array, "new k"],
    cosine: Float[Array, "new k"],
    *,
    temperature: float = 0.3,
    threshold: float | None = None,
) -> Mix:
    """Weights of the nearest known tokens, by likeness.

    A softmax of temperature `temperature + 1e-5` over the neighbours; those below the
    threshold are dropped and the others' weights divided by their sum.

    Args:
      ids: `[new, k]` ids of the neighbours.
      mask: `[new, k]` True for neighbours that there are and that have a row.
      cosine: `[new, k]` their likeness, of -1 to 1.
      temperature: above 0.
      threshold: least likeness; None for any. The official code has 0 by default,
        which drops negative ones.

    Returns:
      `Mix` with one term a neighbour; not valid where none is left.

    Raises:
      ArgumentError: `temperature` not above 0.

    Source: Sharthak et al. 2025, arXiv 2505.09738, global heuristic. Differs: None.

    Example:
      >>> ids, near = jnp.array([[3, 4]]), jnp.array([[0.9, 0.2]])
      >>> global_weights(ids, near > 0, near, threshold=0.5).weights.tolist()
      [[1.0, 0.0]]
    """
    check(temperature > 0, "temperature", temperature, "above 0")
    cosine = cosine.astype(jnp.float32)
    kept = mask if threshold is None else mask & (cosine >= threshold)
    # Dropping logits is dropping weights and dividing by the sum of the others.
    weights = _softmax(cosine / (temperature + _SOFTENING), kept)
    return Mix(jnp.where(mask, ids, 0), weights, kept.any(axis=1))


def hybrid(local: Mix, near: Mix, weight: float = 0.3) -> Mix:
    """The two estimates together; one alone where the other is not valid.

    Args:
      local: from the pieces.
      near: from the neighbours, of the same new tokens.
      weight: share of `near`, of 0 to 1; at 0 and 1 only one of the two is used, and
        where that is not valid nothing is.

    Returns:
      `Mix` with the terms of both.

    Raises:
      ArgumentError: `weight` outside of 0 to 1.

    Source: Sharthak et al. 2025, arXiv 2505.09738, hybrid estimate.

    Example:
      >>> one = jnp.ones((1, 1))
      >>> one_term = Mix(jnp.array([[7]]), one, jnp.array([True]))
      >>> hybrid(one_term, one_term, 0.25).weights.tolist()
      [[0.75, 0.25]]
    """
    check(0 <= weight <= 1, "weight", weight, "0 to 1")
    if weight in (0, 1):
        return near if weight else local
    share = jnp.where(near.valid, jnp.where(local.valid, weight, 1.0), 0.0)[:, None]
    weights = [(1 - share) * local.weights, share * near.weights]
    return Mix(
        jnp.concatenate([local.ids, near.ids], axis=1),
        jnp.concatenate(weights, axis=1),
        local.valid | near.valid,
    )


@jax.jit
def mixed_rows(mix: Mix, rows: Float[Array, "known dim"]) -> Float[Array, "new dim"]:
    """The weighted sums.

    Args:
      mix: ids and weights of the terms; ids beyond the rows read the last one.
      rows: `[known, dim]` known rows, in any floating dtype.

    Returns:
      `[new, dim]` float32; zero where not valid.

    Source: Sharthak et al. 2025, arXiv 2505.09738. Differs: always in float32.

    Example:
      >>> mix = Mix(jnp.array([[0, 1]]), jnp.array([[0.5, 0.5]]), jnp.array([True]))
      >>> mixed_rows(mix, jnp.array([[1.0], [3.0]])).tolist()
      [[2.0]]
    """
    made = weighted_rows(mix.ids, mix.weights.astype(jnp.float32), rows)
    return jnp.where(mix.valid[:, None], made, 0.0)


@functools.partial(jax.jit, static_argnames=("k", "block"))
def nearest_tokens(
    queries: Float[Array, "new aux"],
    table: Float[Array, "known aux"],
    allowed: Bool[Array, " known"],
    *,
    k: int = 3,
    block: int = 1024,
) -> tuple[Int[Array, "new k"], Float[Array, "new k"], Bool[Array, "new k"]]:
    """The known tokens with the largest cosines, exactly; ties go to the lower id.

    Args:
      queries: `[new, aux]` vectors of the new tokens, of any length.
      table: `[known, aux]` vectors of the known ones.
      allowed: `[known]` True for tokens that may be neighbours; those with a zero
        vector never are.
      k: how many, at least 1; of fewer known tokens there are fewer columns.
      block: new tokens compared at a time; bounds the memory.

    Returns:
      `ids [new, k]` int32, best first; `cosine [new, k]` float32; `found [new, k]`
      False where fewer are allowed, or where the query is zero.

    Raises:
      ArgumentError: `k` below 1.

    Source: Sharthak et al. 2025, arXiv 2505.09738, global heuristic (k = 3).

    Example:
      >>> table = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> nearest_tokens(table[:1], table, jnp.ones(3, bool), k=2)[0].tolist()
      [[0, 2]]
    """
    check(k >= 1, "k", k, "at least 1")
    known, good = unit(table)
    bias = jnp.where(good & allowed, 0.0, -jnp.inf)

    def search(query: Array) -> tuple[Array, Array, Array]:
        vector, usable = unit(query)
        product = jnp.einsum("a,ka->k", vector, known, precision="highest")
        cosine, ids = jax.lax.top_k(product + bias, min(k, known.shape[0]))
        found = jnp.isfinite(cosine) & usable
        return ids, jnp.where(found, cosine, 0.0), found

    return jax.lax.map(search, queries, batch_size=block)


def unit(vectors: Array) -> tuple[Array, Array]:
    """Vectors of length 1 in float32, and which were not zero (those stay zero)."""
    vectors = vectors.astype(jnp.float32)
    size = jnp.abs(vectors).max(axis=-1, keepdims=True, initial=0.0)
    scaled = vectors / jnp.where(size > 0, size, 1.0)  # squares neither vanish nor grow
    length = jnp.sqrt(jnp.square(scaled).sum(axis=-1, keepdims=True))
    return scaled / jnp.where(size > 0, length, 1.0), size[..., 0] > 0


def _softmax(logits: Array, mask: Array) -> Array:
    """Softmax over the last axis among the masked; zeros where there are none."""
    largest = jnp.where(mask, logits, -jnp.inf).max(axis=-1, keepdims=True)
    shifted = logits - jnp.where(jnp.isfinite(largest), largest, 0.0)
    raised = jnp.where(mask, jnp.exp(jnp.where(mask, shifted, 0.0)), 0.0)
    total = raised.sum(axis=-1, keepdims=True)
    return raised / jnp.where(total > 0, total, 1.0)
