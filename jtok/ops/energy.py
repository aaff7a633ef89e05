"""How many close neighbours each token has, without a matrix of all pairs."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import check

__all__ = ["energy", "unit_rows"]

Kernel = Literal["elu", "gaussian", "paper"]
_KERNELS = ("elu", "gaussian", "paper")
_BLOCK = 256


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


def energy(
    metric: Float[Array, "batch seq dim"],
    margin: float | Float[Array, ""],
    *,
    kernel: Kernel = "elu",
    alpha: float = 1.0,
    valid: Bool[Array, "batch seq"] | None = None,
    block: int = _BLOCK,
) -> Float[Array, "batch seq"]:
    """The mean over all tokens of a function of their cosine with each token.

    A token with many close neighbours has a high energy, an isolated one a low one.
    The token itself is among those that are averaged. Memory grows with `block`
    times the tokens, not with their square.

    Args:
      metric: `[batch, seq, dim]`, any scale.
      margin: cosines above it count as close.
      kernel: "elu": `z = cosine - margin`, and below 0 `alpha (exp(z) - 1)`;
        "gaussian": a normal density of `1 - cosine` with deviation `1 - margin`;
        "paper": the cosine itself above the margin, below it as "elu" (a jump).
      alpha: of "elu" and "paper".
      valid: `[batch, seq]` bool; other tokens are nobody's neighbours and get -inf.
      block: tokens whose cosines are held at once (static).

    Returns:
      `[batch, seq]` float32; equivariant to the order of the tokens.

    Raises:
      ArgumentError: an unknown kernel, or `block` below 1.

    Source: Tran et al. 2024, arXiv 2405.16148, equation 4, and its code, whose function
      is "elu" for vision and "gaussian" for text.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
      >>> energy(x, 0.5).argmin().item()
      2
    """
    check(kernel in _KERNELS, "kernel", kernel, f"one of {', '.join(_KERNELS)}")
    check(block >= 1, "block", block, "at least 1")
    unit = unit_rows(metric)
    batch, seq, _ = unit.shape
    seen = jnp.ones((batch, seq), bool) if valid is None else valid
    count = jnp.maximum(jnp.sum(seen, axis=1, dtype=jnp.float32), 1.0)

    def mean(some: Array) -> Array:
        cosine = jnp.einsum(
            "bqd,bkd->bqk", some, unit, precision=jax.lax.Precision.HIGHEST
        )
        value = _closeness(cosine, margin, kernel, alpha)
        total = jnp.sum(jnp.where(seen[:, None], value, 0.0), axis=-1)
        return total / count[:, None]

    if seq <= block:
        found = mean(unit)
    else:
        blocks = -(-seq // block)
        padded = jnp.pad(unit, ((0, 0), (0, blocks * block - seq), (0, 0)))
        cut = padded.reshape(batch, blocks, block, -1).swapaxes(0, 1)
        found = jax.lax.map(mean, cut).swapaxes(0, 1)
        found = found.reshape(batch, blocks * block)[:, :seq]
    return found if valid is None else jnp.where(valid, found, -jnp.inf)


def _closeness(
    cosine: Array, margin: float | Array, kernel: Kernel, alpha: float
) -> Array:
    if kernel == "gaussian":
        deviation = 1.0 - margin
        scaled = (1.0 - cosine) / deviation
        height = 1.0 / (deviation * jnp.sqrt(2.0 * jnp.pi))
        return jnp.exp(-0.5 * jnp.square(scaled)) * height
    distance = cosine - margin
    # The other branch of `where` must not overflow.
    below = alpha * jnp.expm1(jnp.minimum(distance, 0.0))
    above = cosine if kernel == "paper" else distance
    return jnp.where(distance > 0, above, below)
