"""Student's interval, against the tables of any textbook, and Fieller's on it."""

import numpy as np
import pytest

from experiments.intervals import ratio_interval, student_interval


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


def test_a_ratio_lies_where_the_difference_may_be_zero():
    rng = np.random.default_rng(0)
    for count in (3, 6, 20):
        under = 2 + rng.normal(size=count) / 3
        over = 0.6 * under + rng.normal(size=count) / 9
        ends = ratio_interval(over, under)
        assert ends[0] < over.mean() / under.mean() < ends[1]
        touching = [student_interval(over - end * under) for end in ends]
        np.testing.assert_allclose([touching[0][0], touching[1][1]], 0, atol=1e-12)


def test_a_ratio_to_what_may_be_zero_has_no_interval():
    assert ratio_interval([1.0, 2.0, 3.0], [1.0, 0.0, -0.9]) is None
    assert ratio_interval([1.0], [1.0]) is None
