"""Labels at several offsets, safe means, weights and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.predict import (
    IGNORE,
    SCHEDULES,
    distance_weights,
    future_labels,
    safe_mean,
    schedule_weight,
    weigh_offsets,
)

ROWS = st.lists(
    st.lists(st.sampled_from([IGNORE, 0, 3, 7]), min_size=5, max_size=5),
    min_size=1,
    max_size=3,
)


@given(ROWS, st.lists(st.integers(0, 6), min_size=1, max_size=3), st.booleans())
def test_labels_are_those_that_a_loop_finds(rows, offsets, contiguous):
    labels = np.array(rows, np.int32)
    segments = np.cumsum(np.tile([0, 0, 1, 0, 0], (len(rows), 1)), 1).astype(np.int32)
    ids, valid = future_labels(
        jnp.asarray(labels), offsets, segments=jnp.asarray(segments),
        contiguous=contiguous,
    )  # fmt: skip
    for b, t, k in np.ndindex(ids.shape):
        between = range(1, offsets[k] + 1) if contiguous else [offsets[k]]
        places = [t + d for d in (between if offsets[k] else [0])]
        good = all(
            p < 5 and labels[b, p] >= 0 and segments[b, p] == segments[b, t]
            for p in places
        )
        assert bool(valid[b, t, k]) == good
        assert ids[b, t, k] == (labels[b, t + offsets[k]] if good else 0)


def test_an_empty_mean_is_zero_and_so_is_its_gradient():
    value, grad = jax.value_and_grad(
        lambda x: safe_mean(jnp.log(x), jnp.zeros(3, bool))
    )(jnp.ones(3))
    assert value == 0.0
    np.testing.assert_array_equal(grad, np.zeros(3))


@given(st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]))
def test_reductions(count, decay):
    rng = np.random.default_rng(count)
    losses = rng.random((6, count), np.float32)
    valid = rng.random((6, count)) > 0.4
    weights = distance_weights(count, decay)
    by_hand = np.array([decay**i if i else 1.0 for i in range(count)])
    np.testing.assert_allclose(weights, by_hand, rtol=1e-6)
    total = (by_hand * losses * valid).sum() / max((by_hand * valid).sum(), 1e-9)
    got = weigh_offsets(jnp.asarray(losses), jnp.asarray(valid), weights)
    np.testing.assert_allclose(got, total, rtol=1e-5, atol=1e-7)
    valid[:, -1] = False if count > 1 else valid[:, -1]  # nobody is that far ahead
    there = valid.any(0)
    means = (losses * valid).sum(0) / np.maximum(valid.sum(0), 1)
    got = weigh_offsets(
        jnp.asarray(losses), jnp.asarray(valid), weights, reduction="offsets"
    )
    np.testing.assert_allclose(
        got,
        (by_hand * means).sum() / max((by_hand * there).sum(), 1e-9),
        rtol=1e-5,
        atol=1e-7,
    )


def test_nothing_that_counts_is_a_loss_of_zero():
    zeros, none = jnp.ones((2, 2)), jnp.zeros((2, 2), bool)
    for reduction in ("tokens", "offsets"):
        weights = distance_weights(2, 0.5)
        assert weigh_offsets(zeros, none, weights, reduction=reduction) == 0.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_end_where_they_should(name):
    first, last = {
        "constant": (1, 1), "linear": (0, 1), "sine": (0, 1), "rsine": (1, 0),
        "sine_r": (0, 1),
    }[name]  # fmt: skip
    values = [float(schedule_weight(name, s, 8, ratio=0.5)) for s in range(9)]
    np.testing.assert_allclose([values[0], values[-1]], [first, last], atol=1e-6)
    steps = np.diff(values) * (1 if last >= first else -1)
    assert (steps >= -1e-6).all()
    if name == "sine_r":
        assert values[4] == values[8] == 1.0 > values[3]
    assert schedule_weight(name, 0, 0) == 1.0
    late = schedule_weight(name, jnp.int32(12), 8, ratio=0.5)
    np.testing.assert_allclose(late, values[-1], atol=1e-6)


def test_sine_and_its_mirror_are_one_circle():
    for step in range(5):
        a, b = (float(schedule_weight(n, step, 4)) for n in ("sine", "rsine"))
        assert a * a + b * b == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: future_labels(jnp.zeros((1, 2), int), 0), "offsets"),
        (lambda: future_labels(jnp.zeros((1, 2), int), [-1]), "offsets"),
        (lambda: future_labels(jnp.zeros(2, int)[None, :, None], 1), "labels"),
        (lambda: distance_weights(2, -0.1), "decay"),
        (lambda: distance_weights(0, 0.1), "count"),
        (lambda: schedule_weight("sines", 0, 4), "did you mean sine"),
        (lambda: schedule_weight("sine", 5, 4), "step"),
        (lambda: schedule_weight("sine_r", 1, 4, ratio=0.0), "ratio"),
    ],
)
def test_bad_input(call, name):
    with pytest.raises((ArgumentError, TypeError), match=name):
        call()
