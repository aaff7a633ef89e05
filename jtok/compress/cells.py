"""From a number of tokens to the cells of a grid, counted on the host."""

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np

from jtok.errors import check

__all__ = ["cell_index", "cells_of", "factor_of", "window_index", "window_of"]

Grid = tuple[int, int, int]


def axes_of(grid: Grid | None, seq: int) -> Grid:
    """The grid; without one, tokens stand in one line."""
    return (seq, 1, 1) if grid is None else (grid[0], grid[1], grid[2])


def factor_of(budget: int | None, grid: Grid, factor: int | None) -> int:
    """Side of the squares that leave `budget` tokens; 2 where nothing is given.

    Raises:
      ArgumentError: no such side divides the grid, or `factor` gives another number.
    """
    frames, height, width = grid
    if budget is None and factor is None:
        factor = 2
    sides = range(1, min(height, width) + 1)
    counts = {
        side: frames * (height // side) * (width // side)
        for side in sides
        if height % side == 0 and width % side == 0
    }
    if factor is not None:
        expected = f"a common divisor of the sides of {height} x {width}"
        check(factor in counts, "factor", factor, expected)
    else:
        found = [side for side, count in counts.items() if count == budget]
        check(bool(found), "budget", budget, _of(counts.values(), "squares of"))
        factor = found[0]
    _check_count(budget, counts[factor])
    return factor


def window_of(
    budget: int | None, grid: Grid, window: Grid | None, default: Grid = (1, 2, 2)
) -> Grid:
    """The window whose whole copies in the grid are `budget` many.

    Of several: the one of fewest frames, then that which leaves out the fewest tokens,
    then the most square one, then the flattest.

    Raises:
      ArgumentError: there is none, or `window` does not fit or gives another number.
    """
    if budget is None and window is None:
        window = default
    if window is not None:
        _check_fits("window", window, grid)
        _check_count(budget, _count(grid, window))
        return window
    options: dict[int, list[Grid]] = {}
    for one, two, three in itertools.product(*(_distinct(side) for side in grid)):
        option = (one, two, three)
        options.setdefault(_count(grid, option), []).append(option)
    check(budget in options, "budget", budget, _of(options, "windows in", budget))

    def order(option: Grid) -> tuple:
        times, rows, columns = option
        lost = math.prod(grid) - math.prod(option) * _count(grid, option)
        return times, lost, _skew(rows, columns), rows

    return min(options[int(budget or 0)], key=order)


def cells_of(budget: int | None, grid: Grid, cells: Grid | None) -> Grid:
    """A grid of `budget` cells, shaped as the grid of tokens.

    Of several: the one of most frames, then of the nearest proportions, then the
    flattest. Without a budget sides are halved, rounded up; frames stay.

    Raises:
      ArgumentError: there is none, or `cells` does not fit or gives another number.
    """
    if budget is None and cells is None:
        cells = (grid[0], -(-grid[1] // 2), -(-grid[2] // 2))
    if cells is not None:
        _check_fits("cells", cells, grid)
        _check_count(budget, math.prod(cells))
        return cells
    found = _shaped(int(budget or 0), grid)
    known = () if found else _volumes(grid)
    check(bool(found), "budget", budget, _of(known, "cells over", budget))
    return found[0]


def _shaped(budget: int, grid: Grid) -> list[Grid]:
    """Grids of `budget` cells with the most frames, the best shaped first."""
    frames, height, width = grid
    for times in range(frames, 0, -1):
        rest, left = divmod(budget, times)
        pairs = [
            (rows, rest // rows)
            for rows in range(1, height + 1)
            if left == 0 and rest % rows == 0 and 1 <= rest // rows <= width
        ]
        if pairs:
            scale = width / height
            pairs.sort(key=lambda pair: (_skew(pair[0] * scale, pair[1]), pair))
            return [(times, *pair) for pair in pairs]
    return []


def _volumes(grid: Grid) -> set[int]:
    """Every number of cells that some smaller grid has."""
    counts = {1}
    for side in grid:
        counts = {count * n for count in counts for n in range(1, side + 1)}
    return counts


def _skew(rows: int | float, columns: int | float) -> float:
    return round(abs(math.log(rows / columns)), 9)


def _distinct(side: int) -> list[int]:
    """Of the windows that give a number of cells the smallest and the largest."""
    least: dict[int, int] = {}
    for step in range(1, side + 1):
        least.setdefault(side // step, step)
    return sorted({*least.values(), *(side // count for count in least)})


def _count(grid: Grid, window: Grid) -> int:
    return math.prod(side // step for side, step in zip(grid, window, strict=True))


def _check_fits(name: str, sizes: Grid, grid: Grid) -> None:
    good = len(sizes) == 3 and all(
        isinstance(size, int) and 1 <= size <= side
        for size, side in zip(sizes, grid, strict=True)
    )
    check(good, name, sizes, f"3 sizes of 1 up to those of the grid, {grid}")


def _check_count(budget: int | None, count: int) -> None:
    good = budget is None or budget == count
    check(good, "budget", budget, f"None or {count}, what the grid and the sizes give")


def _of(counts: Iterable[int], what: str, near: int | None = None) -> str:
    """Says which numbers there are, those around `near` if there are many."""
    known = sorted(set(counts))
    if len(known) > 12 and near is not None:
        at = int(np.searchsorted(known, near))
        known = known[max(at - 4, 0) : at + 4]
    shown = ", ".join(str(count) for count in known)
    return f"a number of {what} the grid, such as {shown}"


def window_index(grid: Grid, window: Grid) -> np.ndarray:
    """`[seq]` the window that each token lies in, row by row; -1 behind the last."""
    cells = (grid[0] // window[0], grid[1] // window[1], grid[2] // window[2])
    place = lambda axis, at: at // window[axis]
    return _index(grid, cells, place)


def cell_index(grid: Grid, cells: Grid) -> np.ndarray:
    """`[seq]` the cell that each token's centre lies in; the lower one on an edge."""
    place = lambda axis, at: ((2 * at + 1) * cells[axis] - 1) // (2 * grid[axis])
    return _index(grid, cells, place)


def _index(
    grid: Grid, cells: Grid, place: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    along = [place(axis, np.arange(side)) for axis, side in enumerate(grid)]
    times, rows, columns = np.meshgrid(*along, indexing="ij")
    flat = (times * cells[1] + rows) * cells[2] + columns
    inside = (times < cells[0]) & (rows < cells[1]) & (columns < cells[2])
    return np.where(inside, flat, -1).reshape(-1).astype(np.int32)
