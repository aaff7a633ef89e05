"""What exits cost, and thresholds chosen from a trace."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import models
from jtok.errors import ArgumentError
from jtok.models import stack_layers
from jtok.predict import (
    calibrate_thresholds,
    exit_costs,
    exit_layers,
    expected_speed,
    modelled_speed,
)
from jtok.testing import tiny_config, tiny_model
from tests.predict.nested import EXITS, nested_model


def test_costs_count_the_weights_that_are_read():
    draft, target = nested_model(), tiny_model()
    layer = sum(x.size for x in _leaves(draft.params["layers"][0]))
    head = 96 * 32
    whole = 2 * layer + head
    expected = np.array([layer + head, 3 * layer + 2 * head, 4 * layer + 3 * head])
    np.testing.assert_allclose(exit_costs(draft, EXITS, target), expected / whole)
    stacked = draft.replace(params=stack_layers(draft.params))
    np.testing.assert_allclose(exit_costs(stacked, EXITS, target), expected / whole)
    part = np.array([layer + 8 * 32, 3 * layer + 16 * 32, 4 * layer + 16 * 32]) + head
    np.testing.assert_allclose(exit_costs(draft, EXITS, target, rows=8), part / whole)
    probe = np.array([layer, 3 * layer, 4 * layer]) + head
    np.testing.assert_allclose(exit_costs(draft, EXITS, target, rows=0), probe / whole)
    shapes = models.abstract(tiny_config())
    np.testing.assert_allclose(exit_costs(draft, EXITS, shapes), expected / whole)


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_mean_layers_and_modelled_speed():
    assert exit_layers((2, 4, 6), (1, 1, 2)) == 4.5
    assert exit_layers((2, 4), (0, 0)) == 0
    assert modelled_speed(4.0, 5.0, 0.2) == 2.0
    assert modelled_speed(1.0, 0.0, 0.7) == 1.0


def brute_speed(confidence, correct, bounds, costs, length):
    exits, batch, seq = confidence.shape
    kept, starts = 0, 0
    for b in range(batch):
        for t in range(seq - length + 1):
            starts += 1
            for d in range(length):
                sure = confidence[:, b, t + d]
                e = next(
                    (i for i in range(exits - 1) if sure[i] > bounds[i]), exits - 1
                )
                if not correct[e, b, t + d]:
                    break
                kept += 1
    total = 0.0
    for b, t in np.ndindex(batch, seq):
        sure = confidence[:, b, t]
        e = next((i for i in range(exits - 1) if sure[i] > bounds[i]), exits - 1)
        total += costs[e]
    return (1 + kept / starts) / (1 + length * total / (batch * seq))


@given(st.integers(0, 30), st.integers(1, 4))
def test_speeds_are_those_of_a_loop(seed, length):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random((3, 2, 6)), rng.random((3, 2, 6)) > 0.4
    bounds, costs = (0.3, 0.7, 0.0), (0.1, 0.2, 0.4)
    found = expected_speed(confidence, correct, bounds, costs, length=length)
    assert found == pytest.approx(
        brute_speed(confidence, correct, bounds, costs, length)
    )


@given(st.integers(0, 30))
def test_calibration_is_never_worse_than_a_fixed_exit(seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random((3, 2, 20)), rng.random((3, 2, 20)) > 0.5
    costs = (0.1, 0.2, 0.3)
    best = calibrate_thresholds(confidence, correct, costs, grid=(0.0, 0.5, 2.0))
    fixed = [
        expected_speed(confidence, correct, bounds, costs)
        for bounds in ((0, 0, 0), (2, 0, 0), (2, 2, 0))
    ]
    assert best.speed >= max(fixed)
    assert best.speed == best.tried[0][1] == max(speed for _, speed in best.tried)
    assert len(best.tried) == 9


def test_bad_input_is_refused():
    sure, right = np.ones((2, 1, 4)), np.ones((2, 1, 4), bool)
    with pytest.raises(ArgumentError, match="length: got 5, expected 1 to 4"):
        expected_speed(sure, right, (0.0, 0.0), (0.1, 0.2), length=5)
    with pytest.raises(ArgumentError, match="costs: got 1, expected 2"):
        expected_speed(sure, right, (0.0, 0.0), (0.1,), length=1)
    with pytest.raises(ArgumentError, match="thresholds: got"):
        expected_speed(sure, right, (0.0,), (0.1, 0.2), length=1)
    with pytest.raises(ArgumentError, match="grid: got"):
        calibrate_thresholds(sure, right, (0.1, 0.2), grid=())
    with pytest.raises(ArgumentError, match="draft_cost: got -1"):
        modelled_speed(1.0, 1.0, -1.0)
    with pytest.raises(ArgumentError, match="counts: got"):
        exit_layers((1, 2), (1,))
    with pytest.raises(ArgumentError, match="exits: got"):
        exit_costs(tiny_model(), (1, 3), tiny_model())
    with pytest.raises(ArgumentError, match="rows: got -1"):
        exit_costs(tiny_model(), (1, 2), tiny_model(), rows=-1)
