"""Clusters around the tokens where many others are close.

Source: Du et al. 2016, arXiv 1509.03914 calls it density peaks with nearest neighbours.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.eager import one_program

__all__ = ["density_peaks"]


@one_program
def density_peaks(
    x: Float[Array, "batch seq dim"],
    clusters: int,
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    count: Int[Array, " batch"] | None = None,
) -> tuple[Int[Array, "batch seq"], Int[Array, "batch seq"]]:
    """The centre that each token belongs to.

    Distances are Euclidean over the root of `dim`, in float32. A token's density is
    `exp(-m)`, m the mean square of the distances to its `clusters` nearest tokens, it
    among them; its separation is the distance to the nearest denser token, of the
    densest one the largest distance there is. The centres are the tokens of the
    greatest product of both, every other token belongs to the nearest centre. Ties go
    to the lower index, for equal densities the lower index counts as denser.

    Args:
      x: `[batch, seq, dim]`; all pairs are compared, so keep `seq` small.
      clusters: how many, and neighbours of the density, 1 to `seq` (static).
      valid: `[batch, seq]` bool; None lets all tokens be real.
      count: `[batch]` int32 clusters of each row where it has fewer than `clusters`.

    Returns:
      `[batch, seq]` int32 the centre of each token, itself for centres and padding; and
      `[batch, seq]` int32 the rank of that centre by the product, from 0.

    Raises:
      ArgumentError: `clusters` out of range, or shapes that do not fit.

    Source: as SparseVLM uses it: Zhang et al. 2024, arXiv 2410.04417, section 3.4, and
      its code. Differs: masks; no noise breaks ties.

    Example:
      >>> x = jnp.array([[[0.0], [0.1], [0.2], [5.0], [5.1]]])
      >>> density_peaks(x, 2)[0].tolist()
      [[0, 0, 0, 3, 3]]
    """
    shape = x.shape
    check(x.ndim == 3, "x", f"shape {shape}", "[batch, seq, dim]")
    seq = shape[1]
    check(1 <= clusters <= seq, "clusters", clusters, f"1 to {seq}, the tokens")
    real = jnp.ones(shape[:2], bool) if valid is None else valid
    check(real.shape == shape[:2], "valid", f"shape {real.shape}", f"{shape[:2]}")
    each = jnp.full(shape[:1], clusters, jnp.int32) if count is None else count
    pairs = real[:, :, None] & real[:, None, :]
    square = _squares(jax.lax.stop_gradient(x))
    distance = jnp.sqrt(square)
    density = _density(jnp.where(pairs, square, jnp.inf), each, clusters)
    index = jnp.arange(seq)
    higher = density[:, None, :] > density[:, :, None]
    same = density[:, None, :] == density[:, :, None]
    denser = (higher | (same & (index[None, :] < index[:, None])[None])) & pairs
    largest = jnp.max(jnp.where(pairs, distance, 0.0), axis=(1, 2))[:, None, None]
    apart = jnp.min(jnp.where(denser, distance, largest), axis=-1)
    product = jnp.where(real, density * apart, -1.0)
    best = jax.lax.top_k(product, clusters)[1]
    within = jnp.arange(clusters)[None, :] < each[:, None]
    within = within & jnp.take_along_axis(real, best, axis=1)
    far = jnp.take_along_axis(distance, best[:, None], axis=2)
    rank = jnp.argmin(jnp.where(within[:, None], far, jnp.inf), axis=-1)
    own = (best[:, None, :] == index[None, :, None]) & within[:, None]
    rank = jnp.where(jnp.any(own, -1), jnp.argmax(own, -1), rank).astype(jnp.int32)
    centre = jnp.take_along_axis(best, rank, axis=1).astype(jnp.int32)
    return jnp.where(real, centre, index[None].astype(jnp.int32)), rank


def _squares(x: Array) -> Array:
    """`[batch, seq, seq]` float32 squared distances over the width.

    From differences, a token at a time: a difference of two large sums is inexact
    where tokens are close.
    """
    wide = jnp.moveaxis(x.astype(jnp.float32), 1, 0)
    one = lambda token: jnp.mean(jnp.square(wide - token[None]), axis=-1)
    return jnp.moveaxis(jax.lax.map(one, wide), (0, 1, 2), (1, 2, 0))


def _density(square: Array, each: Array, clusters: int) -> Array:
    """`exp` of minus the mean square of each token's nearest distances."""
    near = -jax.lax.top_k(-square, clusters)[0]
    among = jnp.arange(clusters)[None, None, :] < each[:, None, None]
    used = among & ~jnp.isinf(near)
    mean = jnp.sum(jnp.where(used, near, 0.0), -1) / jnp.maximum(jnp.sum(used, -1), 1)
    return jnp.exp(-mean)
