"""How far predicted rows are from source rows.

Source: Minixhofer et al. 2024, arXiv 2405.07883, section 3.2. Differs: fallback bytes
are no targets of the lexical error.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.embed.hypernetwork import PredictedRows

__all__ = ["identity_error", "lexical_error"]

Predicted = PredictedRows


def identity_error(
    predicted: Predicted,
    source: Float[Array, "source width"],
    first: Int[Array, " tokens"],
) -> Float[Array, ""]:
    """Squared distance of predicted rows to source rows, a token and a matrix.

    Args:
      predicted: rows of the tokens.
      source: rows that the network reads.
      first: `[tokens]` int32 source id that each shall equal; clamped.

    Returns:
      float32: summed over dimensions, averaged over tokens, then over input and
      output rows.

    Source: arXiv 2405.07883, section 3.2 (first phase).

    Example:
      >>> rows = PredictedRows(jnp.zeros((1, 2)), None, jnp.zeros(1))
      >>> float(identity_error(rows, jnp.ones((3, 2)), jnp.array([2])))
      2.0
    """
    every = jnp.ones(first.shape, bool)
    terms = [total / jnp.maximum(count, 1.0) for total, count, _ in _distances(
        predicted, source, first, every)]  # fmt: skip
    return jnp.mean(jnp.stack(terms))


def lexical_error(
    predicted: Predicted,
    source: Float[Array, "source width"],
    forms: Int[Array, "tokens pieces"],
    *,
    source_size: int,
    pad_id: int,
    compat: Literal["official"] | None = None,
) -> Float[Array, ""]:
    """How far tokens of one piece are from the row of that piece, in its own size.

    Args:
      predicted: rows of the tokens.
      source: rows that the network reads.
      forms: `[tokens, pieces]` int32 surface forms.
      source_size: ids from here on are fallback bytes, which have no row.
      pad_id: fills forms up.
      compat: "official" counts fallback bytes, with a clamped id, and forms of nothing
        but padding.

    Returns:
      float32: summed squared distance over the number of tokens and over the mean norm
      of the rows of all first pieces, averaged over input and output rows; 0 where
      there is none.

    Source: arXiv 2405.07883, section 3.2. Differs: see `compat`.

    Example:
      >>> rows = PredictedRows(jnp.ones((1, 2)), None, jnp.zeros(1))
      >>> float(lexical_error(rows, jnp.ones((3, 2)), jnp.array([[2, 0]]),
      ...     source_size=3, pad_id=0))
      0.0
    """
    first = forms[:, 0]
    has_row = (first < source_size) & (first != pad_id)
    if compat is not None:
        has_row = jnp.ones_like(has_row)
    counts = jnp.all(forms[:, 1:] == pad_id, axis=1) & has_row
    target = jnp.minimum(first, source_size - 1)
    number = jnp.maximum(jnp.sum(has_row, dtype=jnp.float32), 1.0)
    terms = []
    for total, count, norms in _distances(predicted, source, target, counts):
        size = jnp.sum(jnp.where(has_row, norms, 0.0)) / number
        terms.append(total / jnp.maximum(count, 1.0) / jnp.maximum(size, 1e-12))
    return jnp.mean(jnp.stack(terms))


def _distances(
    predicted: Predicted, source: Array, target: Array, counts: Array
) -> list[tuple[Array, Array, Array]]:
    """Of each matrix: summed squared distance, number, and norms of all targets."""
    d = predicted.input.shape[1]
    found = []
    for number, rows in enumerate((predicted.input, predicted.output)):
        if rows is None:
            continue
        part = source[:, number * d : (number + 1) * d].astype(jnp.float32)
        wanted = part.at[target].get(mode="clip")
        far = jnp.sum(jnp.square(rows.astype(jnp.float32) - wanted), axis=1)
        count = jnp.sum(counts, dtype=jnp.float32)
        total = jnp.sum(jnp.where(counts, far, 0.0))
        found.append((total, count, jnp.linalg.norm(wanted, axis=1)))
    return found
