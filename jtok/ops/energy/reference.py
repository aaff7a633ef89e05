"""Energies in plain JAX, some tokens at a time; `api` says what the arguments are."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["BLOCK", "Kernel", "closeness", "neighbour_mean", "unit_rows"]

Kernel = Literal["elu", "gaussian", "paper"]
BLOCK = 256


def unit_rows(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """Vectors of length 1, in float32; zero vectors stay zero.

    Args:
      x: `[..., dim]` any float dtype.

    Returns:
      `[..., dim]` float32.

    Example:
      >>> unit_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    wide = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def neighbour_mean(
    unit: Float[Array, "batch seq dim"],
    seen: Float[Array, "batch seq"],
    margin: Float[Array, ""],
    *,
    kernel: Kernel,
    alpha: float,
    block: int,
) -> Float[Array, "batch seq"]:
    """The mean closeness of each token to those that are `seen` (1, else 0)."""
    batch, seq, _ = unit.shape
    count = jnp.maximum(jnp.sum(seen, axis=1), 1.0)

    def mean(some: Array) -> Array:
        cosine = jnp.einsum(
            "bqd,bkd->bqk", some, unit, precision=jax.lax.Precision.HIGHEST
        )
        value = closeness(cosine, margin, kernel, alpha)
        total = jnp.sum(jnp.where(seen[:, None] > 0, value, 0.0), axis=-1)
        return total / count[:, None]

    if seq <= block:
        return mean(unit)
    blocks = -(-seq // block)
    padded = jnp.pad(unit, ((0, 0), (0, blocks * block - seq), (0, 0)))
    cut = padded.reshape(batch, blocks, block, -1).swapaxes(0, 1)
    found = jax.lax.map(mean, cut).swapaxes(0, 1)
    return found.reshape(batch, blocks * block)[:, :seq]


def closeness(
    cosine: Array,
    margin: float | Array,
    kernel: Kernel,
    alpha: float,
    expm1: Callable[[Array], Array] = jnp.expm1,
) -> Array:
    """What is averaged: a function of the cosine, entry by entry."""
    if kernel == "gaussian":
        deviation = 1.0 - margin
        scaled = (1.0 - cosine) / deviation
        height = 1.0 / (deviation * (2.0 * jnp.pi) ** 0.5)
        return jnp.exp(-0.5 * jnp.square(scaled)) * height
    distance = cosine - margin
    # The other branch of `where` must not overflow.
    below = alpha * expm1(jnp.minimum(distance, 0.0))
    above = cosine if kernel == "paper" else distance
    return jnp.where(distance > 0, above, below)
