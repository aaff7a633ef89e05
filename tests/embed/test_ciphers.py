"""Ciphers, readings of their keys, and the probe."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.embed import (
    LETTERS,
    LETTERS_AND_SIGNS,
    decipher,
    encipher,
    fit_state_probe,
    key_accuracy,
    occurring,
    plain_symbols,
    random_keys,
    read_keys,
    symbol_posterior,
)
from jtok.errors import ArgumentError
from jtok.testing import assert_close

KEY = jax.random.key(0)
READ = jax.jit(read_keys)


def test_letters_of_a_text():
    letters = lambda text, alphabet=LETTERS: "".join(
        alphabet[i] for i in plain_symbols(text, alphabet)
    )
    assert letters("Hello, World 2!") == "helloworld"
    spaced = LETTERS + " "
    assert letters("Hello, \n World 2!", spaced) == "hello world "
    assert letters("It's -- 9 o'clock.", LETTERS_AND_SIGNS) == "it's -- o'clock."
    assert plain_symbols("123", LETTERS).shape == (0,)


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_ciphers_go_there_and_back(seed, text):
    keys = random_keys(jax.random.key(seed), batch=3, vocab_size=9, fixed_ids=(8, 2))
    assert (np.sort(keys, axis=-1) == np.arange(9)).all()
    assert (np.asarray(keys)[:, [2, 8]] == [2, 8]).all()
    plain = jnp.tile(jnp.array([text]), (3, 1))
    cipher = encipher(plain, keys)
    np.testing.assert_array_equal(decipher(cipher, keys), plain)
    fixed = np.isin(plain, (2, 8))
    np.testing.assert_array_equal(np.asarray(cipher)[fixed], np.asarray(plain)[fixed])


def test_keys_are_uniform():
    keys = np.asarray(random_keys(KEY, batch=3000, vocab_size=3))
    counts = [
        np.all(keys == p, axis=1).mean() for p in itertools.permutations(range(3))
    ]
    assert max(abs(c - 1 / 6) for c in counts) < 0.03


@settings(max_examples=12)
@given(st.integers(0, 10**6))
def test_the_assignment_is_the_best_of_all(seed):
    """Against all 120 keys; and never likelier than what the arg-maxima may reach."""
    posterior = np.random.default_rng(seed).dirichlet(np.full(5, 0.5), (1, 5))
    found = READ(jnp.asarray(posterior, jnp.float32))
    cost = -np.log(posterior[0] + 1e-9)
    total = lambda key: cost[np.arange(5), list(key)].sum()
    best = min(map(total, itertools.permutations(range(5))))
    assert sorted(np.asarray(found.assigned[0])) == list(range(5))
    assert total(found.assigned[0]) == pytest.approx(best, rel=1e-5)
    np.testing.assert_array_equal(found.greedy[0], posterior[0].argmax(-1))
    assert total(found.greedy[0]) <= best + 1e-5


def test_accuracy_counts_symbols_that_occur():
    keys, guess = jnp.array([[0, 1, 2], [2, 1, 0]]), jnp.array([[0, 2, 2], [0, 1, 2]])
    seen = occurring(jnp.array([[0, 1, 1], [2, 2, 0]]), 3)
    assert seen.tolist() == [[True, True, False], [True, False, True]]
    assert key_accuracy(guess, keys, seen=seen).tolist() == [0.5, 0.0]
    none = occurring(jnp.array([[0, 1]]), 3, mask=jnp.zeros((1, 2), bool))
    assert key_accuracy(guess[:1], keys[:1], seen=none).tolist() == [0.0]


def test_occurrences_are_averaged():
    """In logarithms; masked places count nothing; absent symbols are uniform."""
    log_probs = jax.nn.log_softmax(jax.random.normal(KEY, (1, 4, 3)))
    cipher, mask = jnp.array([[1, 0, 1, 1]]), jnp.array([[True, True, True, False]])
    found = symbol_posterior(log_probs, cipher, mask=mask)
    assert_close(found[0, 2], np.full(3, 1 / 3))
    assert_close(found[0, 1], jax.nn.softmax((log_probs[0, 0] + log_probs[0, 2]) / 2))
    assert_close(found[0, 0], jnp.exp(log_probs[0, 1]))


def test_the_probe_learns_what_no_line_separates():
    """Exclusive or of two signs; the states may have any scale and shape."""
    states = jax.random.normal(KEY, (512, 2))
    labels = (states[:, 0] * states[:, 1] > 0).astype(jnp.int32)
    states = states * jnp.array([[100.0, 0.01]]) + 7.0
    probe = fit_state_probe(
        states, labels, num_classes=2, key=KEY, width=32, steps=300, batch=128,
        learning_rate=1e-2,
    )  # fmt: skip
    found = probe.log_probs(states.reshape(4, 128, 2))
    assert found.shape == (4, 128, 2)
    assert_close(jnp.exp(found).sum(-1), np.ones((4, 128)))
    right = jnp.argmax(found, -1).reshape(-1) == labels
    assert float(right.mean()) > 0.93


def test_bad_input():
    with pytest.raises(ArgumentError, match="alphabet"):
        plain_symbols("a", "aa")
    with pytest.raises(ArgumentError, match="fixed_ids"):
        random_keys(KEY, batch=1, vocab_size=3, fixed_ids=(3,))
    x, y = jnp.ones((4, 2)), jnp.zeros(4, int)
    with pytest.raises(ArgumentError, match="num_classes"):
        fit_state_probe(x, y, num_classes=1, key=KEY)
    with pytest.raises(ArgumentError, match="steps"):
        fit_state_probe(x, y, num_classes=2, key=KEY, steps=0)
