"""Rows for new tokens that know nothing of them: zeros, the mean, random draws."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.embed.init import EmbeddingInit, Made, Options, Task, initialiser
from jtok.errors import check

__all__ = ["fitted_normal", "fitted_rows", "mean", "normal", "zero"]


def zero(*, options: Options | None = None) -> EmbeddingInit:
    """New rows are zero.

    Args:
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Source: the baseline `zero` of arXiv 2506.06607.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> made, _, _ = zero()(tiny_vocabulary(), rows, jax.random.key(0))
      >>> float(made[-1].sum())
      0.0
    """
    return initialiser("zero", lambda task: Made(_zeros(task)), options)


def _zeros(task: Task) -> Float[Array, "new dim"]:
    return jnp.zeros((len(task.ids), task.source.shape[1]))


def mean(*, options: Options | None = None) -> EmbeddingInit:
    """New rows are the mean of all rows of the source, those of unused ids included.

    Args:
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Source: the baseline `mean` of arXiv 2506.06607.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> made, _, _ = mean()(tiny_vocabulary(), rows, jax.random.key(0))
      >>> made[-1].tolist()
      [1.0, 1.0]
    """

    def make(task: Task) -> Made:
        middle = task.source.astype(jnp.float32).mean(axis=0)
        return Made(_zeros(task) + middle[None, :])

    return initialiser("mean", make, options)


def normal(
    *, options: Options | None = None, compat: Literal["official"] | None = None
) -> EmbeddingInit:
    """New rows are normal noise of the size of the source's entries.

    Args:
      options: what all methods take.
      compat: "official" draws with standard deviation 1, far larger than any model's
        rows; None with that of all entries of the source.

    Returns:
      `EmbeddingInit`.

    Source: the baseline `randn` of arXiv 2506.06607. Differs: scaled.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> made, _, _ = normal()(tiny_vocabulary(), rows, jax.random.key(0))
      >>> float(made[-1].sum())  # equal entries have no deviation
      0.0
    """
    check(compat in (None, "official"), "compat", compat, "None or 'official'")

    def make(task: Task) -> Made:
        drawn = jax.random.normal(task.key, _zeros(task).shape)
        size = 1.0 if compat else jnp.std(task.source.astype(jnp.float32))
        return Made(drawn * size)

    return initialiser("normal", make, options)


def fitted_normal(*, options: Options | None = None) -> EmbeddingInit:
    """New rows are drawn from the normal law with the source's mean and covariance.

    Args:
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Source: John Hewitt's note of 2021 on new word vectors, the baseline `john_hewitt`
      of arXiv 2506.06607. Differs: a covariance that is singular gets a little of the
      identity (1e-5 of its mean variance), where the code falls back to unfitted noise.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> made, _, _ = fitted_normal()(tiny_vocabulary(), rows, jax.random.key(0))
      >>> made[-1].round(3).tolist()
      [1.0, 1.0]
    """

    def make(task: Task) -> Made:
        return Made(fitted_rows(task.source, len(task.ids), task.key))

    return initialiser("fitted_normal", make, options)


def fitted_rows(
    source: Float[Array, "rows dim"], count: int, key: jax.Array
) -> Float[Array, "count dim"]:
    """Draws from the normal law with the mean and population covariance of rows.

    Args:
      source: `[rows, dim]`.
      count: how many to draw.
      key: typed PRNG key, consumed.

    Returns:
      `[count, dim]` float32.

    Example:
      >>> fitted_rows(jnp.ones((3, 2)), 4, jax.random.key(0)).shape
      (4, 2)
    """
    rows = source.astype(jnp.float32)
    middle = rows.mean(axis=0)
    centred = rows - middle[None, :]
    covariance = centred.T @ centred / rows.shape[0]
    spread = jnp.trace(covariance) / rows.shape[1]
    ridge = 1e-5 * spread + jnp.finfo(jnp.float32).tiny
    root = jnp.linalg.cholesky(covariance + ridge * jnp.eye(rows.shape[1]))
    drawn = jax.random.normal(key, (count, rows.shape[1]))
    return middle[None, :] + drawn @ root.T
