"""Resizing on the device: what Pillow computes, as two products of matrices."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

__all__ = ["resize_matrix", "resize_on_device"]


def _sinc(x: np.ndarray) -> np.ndarray:
    return np.sinc(x)


def _cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# By Pillow's number: half of the width, and the weight at a distance.
_FILTERS: dict[int, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    1: (3.0, lambda x: np.where(np.abs(x) < 3, _sinc(x) * _sinc(x / 3), 0.0)),
    2: (1.0, lambda x: np.maximum(1 - np.abs(x), 0.0)),
    3: (2.0, _cubic),
    4: (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(float)),
    5: (1.0, lambda x: np.where(
        np.abs(x) < 1, _sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)),
}  # fmt: skip


_BITS = 22  # of Pillow's weights behind the point


def resize_matrix(have: int, wanted: int, resample: int) -> Float[np.ndarray, "to of"]:
    """The linear map that resizes one axis.

    Args:
      have: its size.
      wanted: its size afterwards.
      resample: Pillow's number of the filter, see `jtok.models.image_pixels.resize`.

    Returns:
      `[wanted, have]` float64 whose rows sum to 1.
    """
    # Sums and products in Pillow's order: what is equally near stays so.
    step, rows = have / wanted, np.zeros((wanted, have))
    if resample == 0:
        places = np.cumsum([0.5 * step, *[step] * (wanted - 1)])
        rows[np.arange(wanted), np.minimum(places.astype(int), have - 1)] = 1
        return rows
    centers = (np.arange(wanted) + 0.5) * step
    reach, weight = _FILTERS[resample]
    wide = max(step, 1.0)
    for row, center in zip(rows, centers):
        first = max(math.floor(center - reach * wide + 0.5), 0)
        last = min(math.floor(center + reach * wide + 0.5), have)
        found = weight((np.arange(first, last) - center + 0.5) * (1 / wide))
        row[first:last] = found * (1 / sum(found.tolist()))
    return rows


def resize_on_device(
    images: Shaped[Array, "batch height width channels"],
    size: tuple[int, int],
    resample: int,
) -> Float[Array, "batch rows columns channels"]:
    """Pictures of another size, under `jax.jit` too.

    Args:
      images: uint8, or floats.
      size: height and width.
      resample: as for `resize_matrix`.

    Returns:
      float32. Of uint8 whole numbers from 0 to 255: sums are of integers, and rounded
      between the axes and at the end, as Pillow's are.
    """
    whole = images.dtype == jnp.uint8
    x = images.astype(jnp.int32 if whole else jnp.float32)
    for axis, letters in ((2, "xw,bhwc->bhxc"), (1, "yh,bhxc->byxc")):
        have, wanted = x.shape[axis], size[axis - 1]
        if have == wanted:
            continue
        weights = resize_matrix(have, wanted, resample)
        if whole:
            weights = np.trunc(weights * 2**_BITS + np.copysign(0.5, weights))
        matrix = jnp.asarray(weights, x.dtype)
        x = jnp.einsum(letters, matrix, x, precision=jax.lax.Precision.HIGHEST)
        if whole:
            x = jnp.clip((x + 2 ** (_BITS - 1)) >> _BITS, 0, 255)
    return x.astype(jnp.float32)
