"""Student's interval, against the tables of any textbook."""

import numpy as np
import pytest

from experiments.intervals import student_interval


@pytest.mark.parametrize("count, factor", [(2, 12.706), (3, 4.303), (10, 2.262)])
def test_the_width_is_that_of_the_table(count, factor):
    values = np.random.default_rng(count).normal(size=count)
    low, high = student_interval(values)
    half = factor * values.std(ddof=1) / count**0.5
    np.testing.assert_allclose([low, high], values.mean() + np.array([-half, half]),
                               rtol=1e-3, atol=1e-3)  # fmt: skip


def test_one_value_tells_nothing_of_its_spread():
    assert student_interval([1.0]) is None
    assert student_interval([]) is None
