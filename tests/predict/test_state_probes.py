"""Probes of state vectors against NumPy, and what they must not be fooled by."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.predict import (
    adjacent_cosine,
    logistic_probe,
    next_bag,
    ridge_probe,
    smoothness,
    state_vectors,
    token_share,
    topic_coherence,
)
from jtok.testing import assert_close

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(3, 7, 5)).astype(np.float32)
VALID = np.arange(7)[None] < np.array([7, 4, 1])[:, None]


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_cosines_are_those_of_real_neighbours():
    got = np.asarray(adjacent_cosine(jnp.asarray(STATES), jnp.asarray(VALID)))
    for b, t in np.ndindex(got.shape):
        both = VALID[b, t] and VALID[b, t + 1]
        expected = cosine(STATES[b, t], STATES[b, t + 1]) if both else 0.0
        assert got[b, t] == pytest.approx(expected, abs=1e-5)


@given(st.floats(0, 30))
def test_a_shared_direction_looks_smooth_until_it_is_centred(size):
    moved = jnp.asarray(STATES) + size
    found = smoothness(moved, jnp.asarray(VALID))
    still = smoothness(jnp.asarray(STATES), jnp.asarray(VALID))
    assert_close(found["centred"], still["centred"], rtol=1e-3, atol=1e-3)
    if size > 10:
        assert found["raw"] > 0.9 > still["raw"]


def test_smoothness_by_hand():
    real = STATES[VALID]
    centred = STATES - real.mean(0)
    pairs = [(b, t) for b, t in np.ndindex(3, 6) if VALID[b, t] and VALID[b, t + 1]]
    found = smoothness(jnp.asarray(STATES), jnp.asarray(VALID))
    for name, x in (("raw", STATES), ("centred", centred)):
        expected = np.mean([cosine(x[b, t], x[b, t + 1]) for b, t in pairs])
        assert float(found[name]) == pytest.approx(expected, abs=1e-5)


def test_the_share_of_a_token():
    ids = RNG.integers(0, 3, (3, 7)).astype(np.int32)
    real, names = STATES[VALID], ids[VALID]
    means = np.stack([real[names == n].mean(0) for n in names])
    expected = ((means - real.mean(0)) ** 2).sum() / ((real - real.mean(0)) ** 2).sum()
    args = (jnp.asarray(STATES), jnp.asarray(ids))
    got = token_share(*args, vocab_size=3, valid=jnp.asarray(VALID))
    assert float(got) == pytest.approx(expected, abs=1e-5)


def test_bags_hold_the_next_tokens():
    ids = RNG.integers(0, 4, (2, 9)).astype(np.int32)
    got = np.asarray(next_bag(jnp.asarray(ids), count=3, vocab_size=4))
    assert got.shape == (2, 6, 4)
    for b, t in np.ndindex(2, 6):
        expected = np.bincount(ids[b, t + 1 : t + 4], minlength=4)
        np.testing.assert_array_equal(got[b, t], expected)


def test_ridge_regression_is_the_closed_form():
    x, test = RNG.normal(size=(60, 4)), RNG.normal(size=(20, 4))
    true = RNG.normal(size=(4, 2))
    y = x @ true + 0.1 * RNG.normal(size=(60, 2)) + 3
    wanted = test @ true + 3
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, y, test, wanted)]
    found = ridge_probe(*arrays, penalty=2.0)
    z = (x - x.mean(0)) / x.std(0)
    inner = np.linalg.solve(z.T @ z + 2 * np.eye(4), z.T @ (y - y.mean(0)))
    got = (test - x.mean(0)) / x.std(0) @ inner + y.mean(0)
    error = ((wanted - got) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    assert float(found.r2) == pytest.approx(1 - error, abs=1e-4)
    assert_close(
        test @ np.asarray(found.weight) + np.asarray(found.bias),
        got,
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_logistic_probe_finds_classes_and_not_noise():
    labels = RNG.integers(0, 3, 300)
    centres = 2 * RNG.normal(size=(3, 6))
    x = centres[labels] + RNG.normal(size=(300, 6))
    noise = RNG.normal(size=(300, 6))

    def accuracy(x):
        args = (x[:200], labels[:200], x[200:], labels[200:])
        return float(logistic_probe(*map(jnp.asarray, args), num_classes=3))

    assert accuracy(x.astype(np.float32)) > 0.85
    assert accuracy(noise.astype(np.float32)) < 0.5


def test_state_vectors_do_not_depend_on_their_batch():
    encode = lambda ids, mask: jnp.stack(
        [jnp.cumsum(ids * mask, 1), ids], axis=-1
    ).astype(jnp.float32)
    rows = [[3], [1, 2, 3, 4, 5], [7, 7], list(range(1, 10))]
    every = state_vectors(encode, rows, batch_size=2)
    for row, got in zip(rows, every, strict=True):
        expected = np.stack([np.cumsum(row), row], axis=-1)
        np.testing.assert_array_equal(got, expected)
    last = state_vectors(encode, rows, pool="last", batch_size=3)
    np.testing.assert_array_equal(last, [x[-1] for x in every])
    mean = state_vectors(encode, rows, pool="mean")
    np.testing.assert_allclose(mean, [x.mean(0) for x in every])


def test_coherence_is_a_mean_cosine_by_distance():
    prompts, windows = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 3, 6))
    got = topic_coherence(*(jnp.asarray(x, jnp.float32) for x in (prompts, windows)))
    for w in range(3):
        expected = np.mean([cosine(prompts[r], windows[r, w]) for r in range(4)])
        assert float(got[w]) == pytest.approx(expected, abs=1e-5)


def test_bad_input():
    x, labels = jnp.ones((4, 2)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ArgumentError, match="rows: got"):
        state_vectors(lambda i, m: i, [])
    with pytest.raises(ArgumentError, match="rows: got 'an empty text'"):
        state_vectors(lambda i, m: i, [[1], []])
    with pytest.raises(ArgumentError, match="batch_size: got 0"):
        state_vectors(lambda i, m: i, [[1]], batch_size=0)
    with pytest.raises(ArgumentError, match="count: got 5"):
        next_bag(jnp.zeros((1, 5), jnp.int32), count=5, vocab_size=2)
    with pytest.raises(ArgumentError, match="penalty: got 0"):
        ridge_probe(x, x, x, x, penalty=0.0)
    with pytest.raises(ArgumentError, match="num_classes: got 1"):
        logistic_probe(x, labels, x, labels, num_classes=1)
    with pytest.raises(ArgumentError, match="steps: got 0"):
        logistic_probe(x, labels, x, labels, num_classes=2, steps=0)
    with pytest.raises((ArgumentError, TypeError), match="windows"):
        topic_coherence(x, jnp.ones((3, 2, 2)))
