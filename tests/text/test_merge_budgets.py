"""Reduction in per cent of the achievable, its bins, and draws."""

import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.text import reduction, reduction_bins, sample_merges


def test_reduction_is_a_share_of_what_can_go():
    assert reduction([10, 20], [9, 18], [8, 12]) == pytest.approx(30.0)
    assert reduction([5], [5], [5]) == 0.0
    with pytest.raises(ArgumentError, match="after: got"):
        reduction([5], [6], [4])


def test_empty_bins_are_never_drawn():
    bin_of = reduction_bins([100, 40, 30, 0], bins=10)
    assert bin_of.tolist() == [0, 6, 7, 9]
    rng = np.random.default_rng(0)
    try:
        drawn = [sample_merges(rng, bin_of, bins=10) for _ in range(400)]
    except ValueError as error:
        pytest.fail(f"an empty bin was drawn: {error}")
    counts = np.bincount(drawn, minlength=4) / 400
    assert np.all(np.abs(counts - 0.25) < 0.08)


def test_a_gaussian_prefers_the_middle():
    bin_of = np.arange(30, dtype=np.int32)
    rng = np.random.default_rng(0)
    drawn = [sample_merges(rng, bin_of, gaussian=(15, 5)) for _ in range(600)]
    assert abs(np.mean(drawn) - 15) < 1 and abs(np.std(drawn) - 5) < 0.7


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: reduction_bins([1, 2]), "lengths"),
        (lambda: reduction_bins([2, 1], 0), "bins"),
        (
            lambda: sample_merges(np.random.default_rng(0), np.array([9]), bins=3),
            "bin_of",
        ),
        (
            lambda: sample_merges(
                np.random.default_rng(0), np.array([1], np.int32), gaussian=(1, 0)
            ),
            "gaussian",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ArgumentError, TypeError), match=message):
        call()
