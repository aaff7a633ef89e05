"""How sure a mean over seeds is, and a ratio of two."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["ratio_interval", "student_interval"]


def student_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float] | None:
    """Student's interval of a mean.

    Args:
      values: one for each seed.
      level: of confidence, 0 to 1.

    Returns:
      Its ends; None of fewer than two values, which tell nothing of their spread.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    factor = float(stats.t.ppf(0.5 + level / 2, len(values) - 1))
    half = factor * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def ratio_interval(
    over: Sequence[float] | np.ndarray,
    under: Sequence[float] | np.ndarray,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Fieller's interval of a mean over another, both of the same seeds.

    A mean of ratios means nothing where some seeds have next to nothing below.

    Args:
      over: one for each seed.
      under: the same.
      level: of confidence, 0 to 1.

    Returns:
      Its ends; None of fewer than two seeds, and where the mean below may be 0.
    """
    pairs = np.stack([np.asarray(over, float), np.asarray(under, float)])
    if pairs.shape[1] < 2:
        return None
    factor = float(stats.t.ppf(0.5 + level / 2, pairs.shape[1] - 1))
    (a, b), cov = pairs.mean(1), np.cov(pairs) / pairs.shape[1]
    left = b * b - factor**2 * cov[1, 1]
    if left <= 0:
        return None
    middle = a * b - factor**2 * cov[0, 1]
    root = middle**2 - left * (a * a - factor**2 * cov[0, 0])
    half = float(max(root, 0.0)) ** 0.5
    return float(middle - half) / float(left), float(middle + half) / float(left)
