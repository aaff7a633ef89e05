"""Poolers without parameters: mean, maximum, last state."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jtok.errors import check
from jtok.nn.poolers import LOW, OneVector, Pooled, check_widths, masked_mean

__all__ = ["LastPooler", "MaxPooler", "MeanPooler"]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class _Plain(OneVector):
    """What all three are: a width, and nothing that trains."""

    width: int

    def __post_init__(self) -> None:
        check_widths(self, "width")

    def init(self, key: Array) -> PyTree:
        """No parameters."""
        return {}


@dataclasses.dataclass(frozen=True)
class MeanPooler(_Plain):
    """The mean of the real tokens, taken in float32; no parameters.

    Attributes:
      width: of the vectors.

    Raises:
      ArgumentError: a width below 1.

    Source: none.

    Example:
      >>> MeanPooler(width=1)({}, jnp.array([[[1.0], [3.0]]])).vectors.tolist()
      [[[2.0]]]
    """

    def _pool(
        self, params: PyTree, values: Array, scored: Array | None, real: Array
    ) -> Pooled:
        vectors = masked_mean(values, real)[:, None].astype(values.dtype)
        count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
        return Pooled(vectors, (real / count).astype(jnp.float32)[:, None])


@dataclasses.dataclass(frozen=True)
class MaxPooler(_Plain):
    """The largest value of each feature over real tokens; no parameters.

    Attributes:
      width: of the vectors.

    Raises:
      ArgumentError: a width below 1.

    Source: none.

    Example:
      >>> MaxPooler(width=1)({}, jnp.array([[[1.0], [3.0]]])).vectors.tolist()
      [[[3.0]]]
    """

    def _pool(
        self, params: PyTree, values: Array, scored: Array | None, real: Array
    ) -> Pooled:
        low = jnp.asarray(LOW, values.dtype)
        kept = jnp.where(real[..., None], values, low)
        top = jnp.max(kept, axis=1, keepdims=True, initial=low)
        return Pooled(jnp.where(jnp.any(real, axis=1)[:, None, None], top, 0))


@dataclasses.dataclass(frozen=True)
class LastPooler(_Plain):
    """The state after the whole text; no parameters.

    Attributes:
      width: of the vectors.
      both_ways: the second half of the features was read backwards, and its last state
        stands at the first real token (as `jtok.nn.bi_gru` gives it).

    Raises:
      ArgumentError: a width below 1, or an odd one that has no halves.

    Source: none.

    Example:
      >>> LastPooler(width=1)({}, jnp.array([[[1.0], [3.0]]]),
      ...     jnp.array([[True, False]])).vectors.tolist()
      [[[1.0]]]
    """

    both_ways: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        good = not (self.both_ways and self.width % 2)
        check(good, "width", self.width, "an even number for two directions")

    def _pool(
        self, params: PyTree, values: Array, scored: Array | None, real: Array
    ) -> Pooled:
        batch, seq = real.shape
        if not seq:
            return Pooled(jnp.zeros((batch, 1, self.width), values.dtype))
        last = seq - 1 - jnp.argmax(real[:, ::-1], axis=1)
        take = lambda at: jnp.take_along_axis(values, at[:, None, None], axis=1)
        vectors = take(last)
        if self.both_ways:
            half, first = self.width // 2, take(jnp.argmax(real, axis=1))
            vectors = jnp.concatenate([vectors[..., :half], first[..., half:]], axis=-1)
        return Pooled(jnp.where(jnp.any(real, axis=1)[:, None, None], vectors, 0))
