"""Tokens made fewer at fixed places: unshuffling, pooling, resizing.

Which row a token joins depends on its place alone. Rows stand for no single token
(`keep` is -1) and follow the order of the grid.

Source: Shao et al. 2025, arXiv 2507.20198, the transformation-based family.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.compress.cells import (
    Grid,
    axes_of,
    cell_index,
    cells_of,
    factor_of,
    window_index,
    window_of,
)
from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens
from jtok.ops.grids import (
    adaptive_pool,
    pixel_unshuffle,
    pool_grid,
    resize_bilinear,
)
from jtok.ops.plan import Plan, cell_plan

__all__ = [
    "adaptive_pooling",
    "average_pooling",
    "bilinear_pooling",
    "deco",
    "max_pooling",
    "pllava",
    "unshuffle",
]


@declared(
    "transformation", ("image", "video"),
    "Squares of tokens side by side in the channels.", "arXiv 2404.16821, 2409.11402",
    trained=True, fixed=True,
)  # fmt: skip
def unshuffle(
    x: Float[Array, "batch seq dim"],
    *,
    grid: Grid,
    budget: int | None = None,
    factor: int | None = None,
    transposed: bool = False,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Moves every square of tokens of a frame into the channels of one (InternVL).

    Args:
      x: `[batch, seq, dim]`.
      grid: `(frames, height, width)` whose product is `seq`.
      budget: rows that come out, or None.
      factor: side of a square; None takes the one of `budget`, without one 2.
      transposed: swap the axes of the new grid, as the first version ("v1") of the
        official code did.
      valid: `[batch, seq]` bool; other tokens count as zeros, and a row is real where
        one token is. None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed` with rows of `factor**2 * dim` channels.

    Raises:
      ArgumentError: sides that the factor does not divide, a budget that no factor
        gives, or shapes that do not fit.

    Source: InternVL 1.5, arXiv 2404.16821; NVLM, arXiv 2409.11402. Differs: sides that
      do not divide are refused.

    Example:
      >>> out = unshuffle(jnp.ones((1, 16, 3)), grid=(1, 4, 4))
      >>> out.tokens.shape, out.assign[0, :6].tolist()
      ((1, 4, 12), [0, 0, 1, 1, 0, 0])
    """
    real = check_tokens(x, budget, valid, grid=grid)
    side = factor_of(budget, grid, factor)
    frames, height, width = grid
    flat = jnp.where(real[..., None], x, 0).reshape(-1, height, width, x.shape[-1])
    wide = pixel_unshuffle(flat, side, transposed=transposed)
    rows, columns = height // side, width // side
    cell = window_index(grid, (1, side, side))
    if transposed:
        frame, place = np.divmod(cell, rows * columns)
        row, column = np.divmod(place, columns)
        cell = (frame * columns + column) * rows + row
    plan = plan_at(cell, frames * rows * columns, real, position)
    return Compressed(plan, wide.reshape(x.shape[0], -1, wide.shape[-1]))


@declared(
    "transformation", ("image", "video", "audio"),
    "Averages windows that do not overlap.", "arXiv 2505.07062, 2406.16852", fixed=True,
)  # fmt: skip
def average_pooling(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int | None = None,
    grid: Grid | None = None,
    window: Grid | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Averages windows that do not overlap; what is left at the far ends is dropped.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out, or None.
      grid: `(frames, height, width)` whose product is `seq`; None for one line.
      window: frames, rows and columns that become one; None takes the one that gives
        `budget` rows (of several that of fewest frames, then that which drops the
        fewest tokens, then the most square), without a budget two rows and columns, or
        two tokens of a line.
      valid: `[batch, seq]` bool; means are those of real tokens, and a row is real
        where one is. None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: a budget that no window gives, a window that does not fit, or
        other shapes that do not.

    Source: Seed1.5-VL, arXiv 2505.07062 (2 x 2); LongVA, arXiv 2406.16852.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 8, 1)
      >>> average_pooling(x, budget=2, grid=(1, 2, 4)).tokens[0, :, 0].tolist()
      [2.5, 4.5]
    """
    return _in_windows(x, budget, grid, window, valid, position, "mean")


@declared(
    "transformation", ("image", "video", "audio"),
    "The largest of every channel in windows.", "arXiv 2507.20198", fixed=True,
)  # fmt: skip
def max_pooling(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int | None = None,
    grid: Grid | None = None,
    window: Grid | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """The largest value of every channel in windows that do not overlap.

    Args:
      x: `[batch, seq, dim]`.
      budget: as `average_pooling`.
      grid: as `average_pooling`.
      window: as `average_pooling`.
      valid: `[batch, seq]` bool; other tokens do not count. None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`; of equal maxima the first gets the gradient.

    Raises:
      ArgumentError: as `average_pooling`.

    Source: arXiv 2507.20198, the transformation-based family.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 8, 1)
      >>> max_pooling(x, budget=2, grid=(1, 2, 4)).tokens[0, :, 0].tolist()
      [5.0, 7.0]
    """
    return _in_windows(x, budget, grid, window, valid, position, "max")


@declared(
    "transformation", ("image", "video", "audio"),
    "Averages a grid into one of any smaller size.", "arXiv 2405.20985, 2404.16994",
    fixed=True,
)  # fmt: skip
def adaptive_pooling(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int | None = None,
    grid: Grid | None = None,
    cells: Grid | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Averages a grid into a smaller one of any size, in two or three axes.

    Cells share a token where sizes do not divide; the plan gives it to the cell that
    its centre lies in.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out, or None.
      grid: `(frames, height, width)` whose product is `seq`; None for one line.
      cells: frames, rows and columns that come out; None takes those of product
        `budget` (of several that of most frames, then of the nearest proportions),
        without a budget half the rows and columns, or tokens of a line, rounded up.
      valid: `[batch, seq]` bool; means are those of real tokens. None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: a budget that no cells give, cells that do not fit, or other
        shapes that do not.

    Source: DeCo, arXiv 2405.20985; PLLaVA, arXiv 2404.16994.

    Example:
      >>> x = jnp.arange(10.0).reshape(1, 10, 1)
      >>> adaptive_pooling(x, budget=2, grid=(1, 2, 5)).tokens[0, :, 0].tolist()
      [3.5, 5.5]
    """
    return _in_cells(x, budget, grid, cells, valid, position, adaptive_pool)


@declared(
    "transformation", ("image", "video", "audio"),
    "Reads the grid linearly at fewer places.", "arXiv 2408.03326", fixed=True,
)  # fmt: skip
def bilinear_pooling(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int | None = None,
    grid: Grid | None = None,
    cells: Grid | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Reads the grid at fewer places, linearly between tokens, without antialiasing.

    A row is made of at most two tokens an axis; the plan gives it all tokens whose
    centres lie in its cell.

    Args:
      x: `[batch, seq, dim]`.
      budget: as `adaptive_pooling`; None with a stride of 2 gives half of the rows and
        columns, rounded up.
      grid: as `adaptive_pooling`.
      cells: as `adaptive_pooling`.
      valid: `[batch, seq]` bool; weights are those of real tokens. None lets all be
        real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: as `adaptive_pooling`.

    Source: LLaVA-OneVision, arXiv 2408.03326 (27 x 27 tokens of a frame to 14 x 14).

    Example:
      >>> x = jnp.arange(16.0).reshape(1, 16, 1)
      >>> bilinear_pooling(x, budget=4, grid=(1, 4, 4)).tokens[0, :, 0].tolist()
      [2.5, 4.5, 10.5, 12.5]
    """
    return _in_cells(x, budget, grid, cells, valid, position, resize_bilinear)


@declared(
    "transformation", ("image", "video"),
    "Adaptive pooling of each image to 144 tokens.", "arXiv 2405.20985", fixed=True,
)  # fmt: skip
def deco(
    x: Float[Array, "batch seq dim"],
    *,
    grid: Grid,
    budget: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Adaptive pooling of each image to 144 tokens: 12 rows and columns.

    Args:
      x: `[batch, seq, dim]`.
      grid: `(frames, height, width)` whose product is `seq`; frames are pooled each.
      budget: rows that come out of all frames; None for 144 a frame.
      valid: as `adaptive_pooling`.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: as `adaptive_pooling`.

    Source: DeCo, arXiv 2405.20985.

    Example:
      >>> run = lambda x: deco(x, grid=(1, 24, 24))
      >>> jax.eval_shape(run, jnp.ones((1, 576, 2))).tokens.shape
      (1, 144, 2)
    """
    if budget is None:
        check_tokens(x, None, valid, grid=grid)
        budget = 144 * grid[0]
    return adaptive_pooling(x, budget=budget, grid=grid, valid=valid, position=position)


@declared(
    "transformation", ("video",), "Adaptive pooling over space and time together.",
    "arXiv 2404.16994, section 3", fixed=True,
)  # fmt: skip
def pllava(
    x: Float[Array, "batch seq dim"],
    *,
    grid: Grid,
    budget: int | None = None,
    cells: Grid | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Adaptive pooling of a video over space and time together.

    Args:
      x: `[batch, seq, dim]`.
      grid: `(frames, height, width)` whose product is `seq`.
      budget: rows that come out, or None.
      cells: frames, rows and columns that come out; None takes 16 x 12 x 12, or what
        the grid has of each, without a budget; else those of product `budget`.
      valid: as `adaptive_pooling`.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: as `adaptive_pooling`.

    Source: PLLaVA, arXiv 2404.16994, section 3.

    Example:
      >>> run = lambda x: pllava(x, grid=(2, 24, 24))
      >>> jax.eval_shape(run, jnp.ones((1, 2 * 24 * 24, 2))).tokens.shape
      (1, 288, 2)
    """
    check_tokens(x, budget, valid, grid=grid)
    if budget is None and cells is None:
        cells = (min(grid[0], 16), min(grid[1], 12), min(grid[2], 12))
    return adaptive_pooling(
        x, budget=budget, grid=grid, cells=cells, valid=valid, position=position
    )


def plan_at(cell: np.ndarray, rows: int, real: Array, position: Array | None) -> Plan:
    """The plan in which the token at each place joins its cell."""
    assign = jnp.broadcast_to(jnp.asarray(cell, jnp.int32)[None], real.shape)
    return cell_plan(assign, rows, valid=real, position=position)


def _in_windows(
    x: Array,
    budget: int | None,
    grid: Grid | None,
    window: Grid | None,
    valid: Array | None,
    position: Array | None,
    reduce: Literal["mean", "max"],
) -> Compressed:
    real = check_tokens(x, budget, valid, grid=grid)
    axes = axes_of(grid, x.shape[1])
    default = (2, 1, 1) if grid is None else (1, 2, 2)
    window = window_of(budget, axes, window, default)
    on_grid = lambda values: values.reshape(x.shape[0], *axes, *values.shape[2:])
    pool = functools.partial(pool_grid, reduce=reduce)
    tokens, _ = pool(on_grid(x), window, valid=on_grid(real))
    tokens = tokens.reshape(x.shape[0], -1, x.shape[-1])
    plan = plan_at(window_index(axes, window), tokens.shape[1], real, position)
    return Compressed(plan, tokens)


def _in_cells(
    x: Array,
    budget: int | None,
    grid: Grid | None,
    cells: Grid | None,
    valid: Array | None,
    position: Array | None,
    resize: Callable[..., tuple[Array, Array]],
) -> Compressed:
    real = check_tokens(x, budget, valid, grid=grid)
    axes = axes_of(grid, x.shape[1])
    if grid is None and budget is None and cells is None:
        cells = (-(-x.shape[1] // 2), 1, 1)
    cells = cells_of(budget, axes, cells)
    on_grid = lambda values: values.reshape(x.shape[0], *axes, *values.shape[2:])
    mask = None if valid is None else on_grid(real)
    tokens, _ = resize(on_grid(x), cells, valid=mask)
    plan = plan_at(cell_index(axes, cells), math.prod(cells), real, position)
    tokens = tokens.reshape(x.shape[0], -1, x.shape[-1])
    return Compressed(plan, jnp.where(plan.valid[..., None], tokens, 0))
