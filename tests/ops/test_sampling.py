"""Noise that depends on row and position only, and filters against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.ops import filter_logits, gumbel_at, row_keys

VOCAB = 97


# ---- noise


@pytest.mark.parametrize("vocab", [1, 7, VOCAB, 5000])
def test_noise_is_that_of_a_whole_draw(vocab):
    seeds, positions = jnp.array([0, 3, 2**31 - 1]), jnp.array([[0, 5], [1, 9], [4, 4]])
    ids = jnp.arange(vocab)[::-1]
    every = jnp.broadcast_to(ids, (3, 2, vocab))
    found = np.asarray(jax.jit(gumbel_at)(row_keys(seeds), positions, every))
    for row, seed in enumerate(seeds.tolist()):
        for column, position in enumerate(positions[row].tolist()):
            key = jax.random.fold_in(jax.random.key(seed), position)
            whole = np.asarray(jax.random.gumbel(key, (vocab,)))[np.asarray(ids)]
            np.testing.assert_array_equal(found[row, column], whole)


def test_noise_does_not_depend_on_company():
    keys = row_keys(jnp.array([11, 12]))
    ids = jnp.array([[[5, 90, 2]], [[0, 5, 6]]])
    both = gumbel_at(keys, jnp.array([[7], [7]]), ids)
    alone = gumbel_at(keys[1:], jnp.array([[3, 7]]), jnp.array([[[5], [5]]]))
    assert both[1, 0, 1] == alone[0, 1, 0]
    assert both[0, 0, 0] != both[1, 0, 1]
    assert alone[0, 0, 0] != alone[0, 1, 0]


def test_row_keys_are_those_of_jax():
    seeds = jnp.array([0, 7, 123456], jnp.uint32)
    for seed, words in zip(seeds.tolist(), row_keys(seeds)):
        expected = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
        np.testing.assert_array_equal(words, expected)
    assert row_keys(seeds).dtype == jnp.uint32


def test_noise_has_the_gumbel_law():
    ids = jnp.arange(20000).reshape(1, 1, -1)
    noise = np.sort(
        np.asarray(gumbel_at(row_keys(jnp.array([5])), jnp.array([[2]]), ids)).ravel()
    )
    law = np.exp(-np.exp(-noise))
    distance = np.abs(law - np.arange(1, 20001) / 20000).max()
    assert distance < 1.95 / np.sqrt(20000)  # Kolmogorov-Smirnov at 0.1%


# ---- filters


def reference(logits, top_k, top_p, min_p):
    """One row in float64, by sorting (-logit, id) pairs."""
    values = {i: float(x) for i, x in enumerate(logits)}
    order = sorted(values, key=lambda i: (-values[i], i))
    if top_k is not None:
        order = order[:top_k]
    if top_p is not None:
        weights = np.exp([values[i] - values[order[0]] for i in order])
        weights = weights / weights.sum()
        kept, mass = [], 0.0
        for i, weight in zip(order, weights):
            if kept and mass >= top_p:
                break
            kept.append(i)
            mass += weight
        order = kept
    if min_p is not None:
        order = [i for i in order if np.exp(values[i] - values[order[0]]) >= min_p]
    out = np.full(len(logits), -np.inf, np.float32)
    out[order] = logits[order]
    return out


def rows_with_ties():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(4, VOCAB)) * 3
    tied = rng.integers(-2, 3, size=(3, VOCAB))
    flat = np.zeros((1, VOCAB))
    return np.concatenate([smooth, tied, flat]).astype(np.float32)


@pytest.mark.parametrize("top_k", [None, 1, 5, VOCAB, 500])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.0, 0.11, 1.0])
def test_filters_agree_with_numpy(top_k, top_p, min_p):
    logits = rows_with_ties()
    per_row = lambda p: None if p is None else jnp.full(len(logits), p)
    found = filter_logits(
        jnp.asarray(logits), top_k=top_k, top_p=per_row(top_p), min_p=per_row(min_p)
    )
    expected = np.stack([reference(row, top_k, top_p, min_p) for row in logits])
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_every_row_has_its_own_bounds():
    logits = jnp.asarray(rows_with_ties())[:6].reshape(2, 3, VOCAB)
    top_p = np.array([[0.2, 1.0, 0.7], [0.5, 1e-3, 0.9]], np.float32)
    found = np.asarray(filter_logits(logits, top_p=jnp.asarray(top_p)))
    for row in np.ndindex(2, 3):
        expected = reference(np.asarray(logits[row]), None, float(top_p[row]), None)
        np.testing.assert_array_equal(found[row], expected)


def test_ties_at_the_border_go_to_the_lower_id():
    logits = jnp.array([1.0, 3.0, 1.0, 1.0])
    assert np.isfinite(filter_logits(logits, top_k=2)).tolist() == [1, 1, 0, 0]
    nearly = jnp.float32(0.72)  # the best token alone has 0.711
    assert np.isfinite(filter_logits(logits, top_p=nearly)).tolist() == [1, 1, 0, 0]


def test_filters_read_what_the_one_before_left():
    # Within the two best, the first has 0.62 of the mass; in all four only 0.45.
    logits = jnp.log(jnp.array([0.45, 0.275, 0.15, 0.125]))
    kept = filter_logits(logits, top_k=2, top_p=jnp.float32(0.6))
    assert np.isfinite(kept).tolist() == [1, 0, 0, 0]
    kept = filter_logits(logits, top_p=jnp.float32(0.6))
    assert np.isfinite(kept).tolist() == [1, 1, 0, 0]
