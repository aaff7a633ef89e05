"""Grids of tokens made smaller at fixed places: unshuffling, pooling, resizing.

A grid is `[batch, *cells, dim]`: frames, or rows and columns, or all three. What
becomes of a token depends on its place alone, never on its content.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.errors import check

__all__ = [
    "adaptive_pool",
    "nested_pools",
    "pixel_shuffle",
    "pixel_unshuffle",
    "pool_grid",
    "resize_bilinear",
    "stack_frames",
]

Cells = tuple[int, ...]


def pixel_unshuffle(
    x: Float[Array, "batch height width dim"],
    factor: int,
    *,
    transposed: bool = False,
) -> Float[Array, "batch rows columns wide"]:
    """Moves the tokens of every square of a grid into the channels of one token.

    Nothing is lost: `pixel_shuffle` undoes it.

    Args:
      x: `[batch, height, width, dim]`.
      factor: side of a square; it divides height and width.
      transposed: swap the axes of the new grid, as the first version ("v1") of the
        official code did.

    Returns:
      `[batch, height / factor, width / factor, factor**2 * dim]`; channels are those of
      the square's tokens, row by row.

    Raises:
      ArgumentError: `factor` below 1 or no divisor of a side.

    Source: InternVL 1.5, arXiv 2404.16821, section 3.1. Differs: sides that do not
      divide are refused.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 2, 4, 1)
      >>> pixel_unshuffle(x, 2)[0, 0].tolist()
      [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    batch, height, width, dim = x.shape
    _check_factor(factor)
    good = height % factor == 0 and width % factor == 0
    check(good, "factor", factor, f"a divisor of both sides of {height} x {width}")
    rows, columns = height // factor, width // factor
    cut = x.reshape(batch, rows, factor, columns, factor, dim)
    order = (0, 3, 1, 2, 4, 5) if transposed else (0, 1, 3, 2, 4, 5)
    cut = cut.transpose(order)
    return cut.reshape(*cut.shape[:3], factor * factor * dim)


def pixel_shuffle(
    x: Float[Array, "batch rows columns wide"],
    factor: int,
    *,
    transposed: bool = False,
) -> Float[Array, "batch height width dim"]:
    """Spreads the channels of every token over a square of tokens.

    Args:
      x: `[batch, rows, columns, factor**2 * dim]`, as `pixel_unshuffle` makes it.
      factor: side of a square.
      transposed: that of `pixel_unshuffle`.

    Returns:
      `[batch, factor * rows, factor * columns, dim]` (rows and columns swapped back
      where they were).

    Raises:
      ArgumentError: `factor` below 1, or channels that are no multiple of its square.

    Source: the inverse of `pixel_unshuffle`.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 2, 4, 1)
      >>> bool((pixel_shuffle(pixel_unshuffle(x, 2), 2) == x).all())
      True
    """
    _check_factor(factor)
    if transposed:
        x = x.swapaxes(1, 2)
    batch, rows, columns, wide = x.shape
    good = wide % factor**2 == 0
    check(good, "x", f"{wide} channels", f"a multiple of {factor**2}, factor squared")
    dim = wide // factor**2
    cut = x.reshape(batch, rows, columns, factor, factor, dim).transpose(
        0, 1, 3, 2, 4, 5
    )
    return cut.reshape(batch, rows * factor, columns * factor, dim)


def _check_factor(factor: int) -> None:
    check(isinstance(factor, int) and factor >= 1, "factor", factor, "at least 1")


def pool_grid(
    x: Float[Array, "batch *grid dim"],
    window: Cells,
    *,
    reduce: Literal["mean", "max"] = "mean",
    valid: Bool[Array, " batch *grid"] | None = None,
    whole: bool = False,
) -> tuple[Float[Array, "batch *cells dim"], Bool[Array, " batch *cells"]]:
    """One token for every window of a grid; windows do not overlap.

    What is left at the far ends of the axes is dropped. Means are float32. Of equal
    maxima the first gets the gradient.

    Args:
      x: `[batch, *grid, dim]`; the grid has any number of axes.
      window: its size along each of them.
      reduce: "mean" or "max".
      valid: `[batch, *grid]` bool; other tokens do not count. None lets all be real.
      whole: a window is real where all of its tokens are; else where one is.

    Returns:
      `[batch, *cells, dim]` in the dtype of `x`, zeros where a window is not real, and
      which ones are, `[batch, *cells]` bool. `cells` is `grid // window`.

    Raises:
      ArgumentError: another number of axes, a window that is larger than the grid, or
        an unknown `reduce`.

    Source: arXiv 2507.20198, sections on transformation (image, video, audio).

    Example:
      >>> x = jnp.arange(6.0).reshape(1, 2, 3, 1)
      >>> pool_grid(x, (2, 2))[0].tolist()
      [[[[2.0]]]]
    """
    grid = x.shape[1:-1]
    check(reduce in ("mean", "max"), "reduce", reduce, "'mean' or 'max'")
    _check_cells("window", window, grid)
    real = _real(x, valid)
    cells = tuple(side // step for side, step in zip(grid, window, strict=True))
    cut = functools.partial(_windows, window=window, cells=cells)
    inside, real = cut(x), cut(real[..., None])[..., 0]
    there = jnp.all(real, axis=-1) if whole else jnp.any(real, axis=-1)
    weight = real[..., None]
    if reduce == "max":
        found = _first_maximum(jnp.where(weight, inside, -jnp.inf))
    else:
        total = jnp.sum(jnp.where(weight, inside, 0).astype(jnp.float32), axis=-2)
        found = total / jnp.maximum(jnp.sum(weight, axis=-2), 1)
    return jnp.where(there[..., None], found, 0).astype(x.dtype), there


def _windows(x: Array, window: Cells, cells: Cells) -> Array:
    """`[batch, *grid, dim]` -> `[batch, *cells, members, dim]`."""
    inside = tuple(slice(0, n * step) for n, step in zip(cells, window, strict=True))
    x = x[(slice(None), *inside)]
    split = [side for pair in zip(cells, window, strict=True) for side in pair]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    axes = len(cells)
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    x = x.transpose(order)
    return x.reshape(x.shape[0], *cells, math.prod(window), x.shape[-1])


def _first_maximum(x: Array) -> Array:
    """The maximum over the second last axis, taken from one place."""
    at = jnp.argmax(jax.lax.stop_gradient(x), axis=-2, keepdims=True)
    return jnp.take_along_axis(x, at, axis=-2)[..., 0, :]


def adaptive_pool(
    x: Float[Array, "batch *grid dim"],
    cells: Cells,
    *,
    valid: Bool[Array, " batch *grid"] | None = None,
) -> tuple[Float[Array, "batch *cells dim"], Bool[Array, " batch *cells"]]:
    """Averages a grid of any size into one of a given size.

    Along an axis cell `i` of `n` covers `floor(i * side / n)` to
    `ceil((i + 1) * side / n)`, so neighbours share a token where `n` does not divide.
    Means are float32.

    Args:
      x: `[batch, *grid, dim]`; the grid has any number of axes (2 for images, 3 for
        video).
      cells: the new grid, along no axis larger.
      valid: `[batch, *grid]` bool; other tokens do not count. None lets all be real.

    Returns:
      `[batch, *cells, dim]` in the dtype of `x`, and which cells hold a real token
      (others are zeros), `[batch, *cells]` bool.

    Raises:
      ArgumentError: another number of axes, or cells below 1 or above the grid.

    Source: DeCo, arXiv 2405.20985 (two axes); PLLaVA, arXiv 2404.16994 (three).

    Example:
      >>> adaptive_pool(jnp.arange(5.0).reshape(1, 5, 1), (2,))[0][0, :, 0].tolist()
      [1.0, 3.0]
    """
    grid = x.shape[1:-1]
    _check_cells("cells", cells, grid)
    pairs = zip(grid, cells, strict=True)
    return _linear(x, [_adaptive_weights(*pair) for pair in pairs], valid)


def resize_bilinear(
    x: Float[Array, "batch *grid dim"],
    cells: Cells,
    *,
    valid: Bool[Array, " batch *grid"] | None = None,
) -> tuple[Float[Array, "batch *cells dim"], Bool[Array, " batch *cells"]]:
    """Reads a grid between its tokens, linearly along each axis.

    Centres are those of half-pixel cells, ends are clamped, and nothing is smoothed
    before (no antialiasing): along an axis two tokens decide about a cell.

    Args:
      x: `[batch, *grid, dim]`; the grid has any number of axes.
      cells: the new grid, along no axis larger.
      valid: `[batch, *grid]` bool; weights are those of real tokens, scaled to sum to
        one. None lets all be real.

    Returns:
      `[batch, *cells, dim]` in the dtype of `x`, and which cells read a real token
      (others are zeros), `[batch, *cells]` bool.

    Raises:
      ArgumentError: another number of axes, or cells below 1 or above the grid.

    Source: LLaVA-OneVision, arXiv 2408.03326 (27 x 27 tokens of a frame to 14 x 14).

    Example:
      >>> resize_bilinear(jnp.arange(4.0).reshape(1, 4, 1), (2,))[0][0, :, 0].tolist()
      [0.5, 2.5]
    """
    grid = x.shape[1:-1]
    _check_cells("cells", cells, grid)
    pairs = zip(grid, cells, strict=True)
    return _linear(x, [_bilinear_weights(*pair) for pair in pairs], valid)


def _linear(
    x: Array, weights: list[np.ndarray], valid: Array | None
) -> tuple[Array, Array]:
    """One weighted mean along every axis of the grid, in float32."""
    real = _real(x, valid)
    wide = jnp.where(real[..., None], x, 0).astype(jnp.float32)
    mixed = _along_axes(wide, weights)
    if valid is None:
        there = jnp.ones(mixed.shape[:-1], bool)
        return mixed.astype(x.dtype), there
    total = _along_axes(real[..., None].astype(jnp.float32), weights)
    there = total[..., 0] > 0
    mixed = jnp.where(there[..., None], mixed / jnp.where(total > 0, total, 1), 0)
    return mixed.astype(x.dtype), there


def _along_axes(x: Array, weights: list[np.ndarray]) -> Array:
    for axis, weight in enumerate(weights, start=1):
        table = jnp.asarray(weight, jnp.float32)
        moved = jnp.tensordot(
            table, x, axes=([1], [axis]), precision=jax.lax.Precision.HIGHEST
        )
        x = jnp.moveaxis(moved, 0, axis)
    return x


def _adaptive_weights(side: int, cells: int) -> np.ndarray:
    """`[cells, side]`: rows are means of the tokens of a cell."""
    weight = np.zeros((cells, side))
    for cell in range(cells):
        start, stop = cell * side // cells, -(-(cell + 1) * side // cells)
        weight[cell, start:stop] = 1.0 / (stop - start)
    return weight


def _bilinear_weights(side: int, cells: int) -> np.ndarray:
    """`[cells, side]`: rows hold the weights of two neighbours."""
    # In float32, as the field computes it: the weights round alike.
    step, half = np.float32(side) / np.float32(cells), np.float32(0.5)
    at = (np.arange(cells, dtype=np.float32) + half) * step - half
    at = np.clip(at, 0, side - 1)
    low = np.floor(at).astype(int)
    weight = np.zeros((cells, side), np.float32)
    np.add.at(weight, (np.arange(cells), low), 1 - (at - low))
    np.add.at(weight, (np.arange(cells), np.minimum(low + 1, side - 1)), at - low)
    return weight


def nested_pools(
    x: Float[Array, "batch height width dim"],
    *,
    valid: Bool[Array, "batch height width"] | None = None,
) -> list[tuple[Array, Array]]:
    """An image at every scale of a Matryoshka: each averages squares of the one before.

    Sides are halved while both are even; the last scale is one token.

    Args:
      x: `[batch, height, width, dim]`.
      valid: `[batch, height, width]` bool; other tokens do not count. None lets all be
        real.

    Returns:
      For each scale, the finest first, `[batch, rows, columns, dim]` in the dtype of
      `x` and which tokens are real, `[batch, rows, columns]` bool: 24 x 24 gives 24,
      12, 6, 3 and 1 a side.

    Source: Matryoshka multimodal models, arXiv 2405.17430, section 3.

    Example:
      >>> [pooled.shape[1] for pooled, _ in nested_pools(jnp.ones((1, 24, 24, 2)))]
      [24, 12, 6, 3, 1]
    """
    sides = nested_windows(x.shape[1], x.shape[2])
    return [pool_grid(x, window, valid=valid) for window in sides]


def nested_windows(height: int, width: int) -> list[tuple[int, int]]:
    """The window of every scale of `nested_pools`, on the finest grid."""
    step, windows = 1, []
    while height % step == 0 and width % step == 0:
        windows.append((step, step))
        step *= 2
    if windows[-1] != (height, width):
        windows.append((height, width))
    return windows


def stack_frames(
    x: Float[Array, "batch frames dim"],
    count: int,
    *,
    valid: Bool[Array, "batch frames"] | None = None,
) -> tuple[Float[Array, "batch stacks wide"], Bool[Array, "batch stacks"]]:
    """Puts the channels of neighbouring frames side by side.

    Frames that fill no stack are dropped.

    Args:
      x: `[batch, frames, dim]`.
      count: frames of a stack.
      valid: `[batch, frames]` bool; a stack is real where all of its frames are. None
        lets all be real.

    Returns:
      `[batch, frames // count, count * dim]`, zeros where a stack is not real, and
      which ones are, `[batch, frames // count]` bool.

    Raises:
      ArgumentError: `count` below 1 or above the frames.

    Source: SLAM-ASR, arXiv 2402.08846; LLaMA-Omni, arXiv 2409.06666 (5 frames).

    Example:
      >>> stack_frames(jnp.arange(5.0).reshape(1, 5, 1), 2)[0].tolist()
      [[[0.0, 1.0], [2.0, 3.0]]]
    """
    batch, frames, dim = x.shape
    good = isinstance(count, int) and 1 <= count <= frames
    check(good, "count", count, f"1 to {frames}, the frames")
    stacks = frames // count
    real = _real(x, valid)[:, : stacks * count].reshape(batch, stacks, count)
    there = jnp.all(real, axis=-1)
    stacked = x[:, : stacks * count].reshape(batch, stacks, count * dim)
    return jnp.where(there[..., None], stacked, 0), there


def _check_cells(name: str, cells: Cells, grid: Cells) -> None:
    """Refuses sizes that do not fit a grid."""
    good = len(cells) == len(grid) and all(
        isinstance(cell, int) and 1 <= cell <= side
        for cell, side in zip(cells, grid, strict=True)
    )
    check(good, name, cells, f"for each axis 1 up to the grid's size, {grid}")


def _real(x: Array, valid: Array | None) -> Array:
    """`[batch, *grid]` bool."""
    return jnp.ones(x.shape[:-1], bool) if valid is None else valid.astype(bool)
