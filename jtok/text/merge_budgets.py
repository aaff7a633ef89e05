"""How many merges: reduction of length as a percentage, its bins, and draws from them.

Source: Feher et al. 2024, arXiv 2411.18553, section 4.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int32

from jtok.errors import check

__all__ = ["reduction", "reduction_bins", "sample_merges"]


def reduction(
    before: Int[np.ndarray, " examples"] | Sequence[int],
    after: Int[np.ndarray, " examples"] | Sequence[int],
    limit: Int[np.ndarray, " examples"] | Sequence[int],
) -> float:
    """Reduction of length in per cent of what the boundary allows.

    Not of the tokens: 50 means half of what full merging takes away.

    Args:
      before: tokens of each example without merging.
      after: with the merges in question.
      limit: with all merges.

    Returns:
      `100 (before - after) / (before - limit)`, summed over the examples first; 0
      where nothing can merge.

    Raises:
      ArgumentError: different numbers of examples, or lengths that grow.

    Source: arXiv 2411.18553, section 4.

    Example:
      >>> reduction([10, 10], [8, 8], [6, 6])
      50.0
    """
    rows = [np.asarray(row, np.float64) for row in (before, after, limit)]
    same = rows[0].shape == rows[1].shape == rows[2].shape
    check(same, "after", rows[1].shape, f"{rows[0].shape} and all alike")
    falls = bool(np.all(rows[0] >= rows[1]) and np.all(rows[1] >= rows[2]))
    check(falls, "after", "other lengths", "before >= after >= limit")
    most = float(np.sum(rows[0] - rows[2]))
    return 100.0 * float(np.sum(rows[0] - rows[1])) / most if most else 0.0


def reduction_bins(
    lengths: Int[np.ndarray, " merges"] | Sequence[int], bins: int = 30
) -> Int32[np.ndarray, " merges"]:
    """Which bin of the reduction every number of merges falls into.

    Args:
      lengths: total tokens after 0, 1, 2, ... merges, up to the limit.
      bins: equal parts of 0 to 100 per cent.

    Returns:
      `[merges]` int32 in `0..bins - 1`.

    Raises:
      ArgumentError: no lengths, lengths that grow, or `bins` below 1.

    Source: arXiv 2411.18553, section 4.1.

    Example:
      >>> reduction_bins([10, 8, 7, 6], bins=4).tolist()
      [0, 2, 3, 3]
    """
    row = np.asarray(lengths, np.float64)
    good = row.ndim == 1 and len(row) >= 1 and bool(np.all(np.diff(row) <= 0))
    check(good, "lengths", row[:8].tolist(), "one or more, none above the one before")
    check(bins >= 1, "bins", bins, "at least 1")
    share = (row[0] - row) / max(row[0] - row[-1], 1.0)
    return np.minimum((share * bins).astype(np.int32), bins - 1)


def sample_merges(
    rng: np.random.Generator,
    bin_of: Int32[np.ndarray, " merges"],
    *,
    bins: int = 30,
    gaussian: tuple[float | int, float | int] | None = None,
) -> int:
    """Draws a budget: a bin of the reduction, then one of its numbers of merges.

    Args:
      rng: NumPy generator.
      bin_of: bin of each number of merges, as from `reduction_bins`.
      bins: number of bins; empty ones are never drawn.
      gaussian: mean and standard deviation, in bins from 0; None draws uniformly.

    Returns:
      Number of merges.

    Raises:
      ArgumentError: no merges, a bin out of range, or a deviation that is not above 0.

    Source: arXiv 2411.18553, section 4.1 (30 bins; mean 15, deviation 5). Differs:
    empty bins are skipped.

    Example:
      >>> bin_of = reduction_bins([10, 8, 7, 6], bins=4)
      >>> sample_merges(np.random.default_rng(0), bin_of, bins=4) in (0, 1, 2, 3)
      True
    """
    good = len(bin_of) > 0 and int(bin_of.min()) >= 0 and int(bin_of.max()) < bins
    check(good, "bin_of", bin_of[:8].tolist(), f"one or more bins in 0..{bins - 1}")
    filled = np.unique(bin_of)
    weight: Float[np.ndarray, " bins"] = np.ones(len(filled))
    if gaussian is not None:
        mean, deviation = gaussian
        check(deviation > 0, "gaussian", gaussian, "a deviation above 0")
        distance = (filled - mean) / deviation
        distance = np.square(distance) - np.min(np.square(distance))
        weight = np.exp(-0.5 * distance)
    chosen = rng.choice(filled, p=weight / weight.sum())
    return int(rng.choice(np.flatnonzero(bin_of == chosen)))
