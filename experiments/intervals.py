"""How sure a mean over seeds is."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["student_interval"]


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
