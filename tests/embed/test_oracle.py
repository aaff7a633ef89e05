"""The exact mixture over keys, its bounds, and the beam for larger vocabularies."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.embed import (
    beam_mixture,
    fit_ngrams,
    markov_language,
    permutation_mixture,
    pinsker_bound,
    regret_bound,
    sample_language,
)
from jtok.errors import ArgumentError, VocabMismatchError
from jtok.testing import assert_close

MIXTURE = jax.jit(permutation_mixture, static_argnames="times")
BEAM = jax.jit(beam_mixture, static_argnames="width")
# Of the page, for float32.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def language_of(file, name):
    return markov_language(file[f"{name}_init"], file[f"{name}_trans"])


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_mixture_is_that_of_the_goldens(golden, name):
    file = golden("lexinvariant/permutation_mixture.npz")
    language, ids = language_of(file, name), jnp.asarray(file[f"{name}_x"])
    times = tuple(file[f"{name}_post_t"].tolist())
    found = MIXTURE(language, ids, times=times)
    assert_close(found.predictions, file[f"{name}_pred"], **TOLERANCE)
    assert_close(found.base_log_probs, file[f"{name}_logp_base"], **TOLERANCE)
    assert_close(found.log_probs, file[f"{name}_logp_lex"], **TOLERANCE)
    assert_close(found.posterior, file[f"{name}_post"], **TOLERANCE)
    assert_close(found.l1, file[f"{name}_l1"], **TOLERANCE)
    # On every sequence, the last of which is random text.
    assert float(found.regret.max()) <= regret_bound(language.vocab_size) + 1e-4
    renamed = MIXTURE(language, jnp.asarray(file[f"{name}_perm"])[ids], times=times)
    assert_close(renamed.log_probs, found.log_probs, **TOLERANCE)
    names = file[f"{name}_perm"]
    assert_close(renamed.predictions[..., names], found.predictions, **TOLERANCE)
    assert_close(renamed.posterior[:, :, names], found.posterior, **TOLERANCE)


@pytest.fixture(scope="module")
def bigrams():
    rng = np.random.default_rng(3)
    texts = [rng.choice(5, 60, p=(0.4, 0.3, 0.15, 0.1, 0.05)) for _ in range(4)]
    for text in texts:
        text[1::2] = (text[::2][: len(text[1::2])] + 1) % 5
    return fit_ngrams(texts, 5, order=2, smoothing=0.2)


def probability_by_hand(language, ids):
    """Log-probability of a text, one context after the other."""
    base, context, total = language.vocab_size + 1, [], 0.0
    table = np.asarray(language.log_probs, np.float64)
    for symbol in ids:
        digits = ([language.vocab_size] * language.order + context)[-language.order :]
        index = functools.reduce(lambda at, digit: at * base + digit, digits, 0)
        total += table[index, symbol]
        context.append(int(symbol))
    return total


def test_n_grams_of_brute_force(bigrams):
    """A second-order language: all 120 keys, text by text."""
    ids = np.asarray(sample_language(bigrams, jax.random.key(0), batch=2, length=7))
    found = MIXTURE(bigrams, jnp.asarray(ids), times=(0, 7))
    for row, text in enumerate(ids):
        logs = [
            probability_by_hand(bigrams, np.array(key)[text])
            for key in itertools.permutations(range(5))
        ]
        whole = np.logaddexp.reduce(logs) - math.log(120)
        assert float(found.log_probs[row].sum()) == pytest.approx(whole, abs=1e-4)
        own = float(found.base_log_probs[row].sum())
        assert own == pytest.approx(probability_by_hand(bigrams, text), abs=1e-4)
    assert_close(found.posterior[:, 0], np.full((2, 5, 5), 0.2), **TOLERANCE)


def test_what_every_mixture_must_obey(bigrams):
    """Uniform at the start; unseen symbols alike; posteriors doubly stochastic."""
    ids = jnp.array([[3, 3, 1, 3, 0, 1, 2, 4], [2, 0, 2, 2, 1, 0, 2, 2]])
    found = MIXTURE(bigrams, ids, times=(1, 5, 8))
    assert_close(found.predictions[:, 0], np.full((2, 5), 0.2), **TOLERANCE)
    assert_close(found.predictions.sum(-1), np.ones((2, 8)), **TOLERANCE)
    for row, time in itertools.product(range(2), range(8)):
        unseen = sorted(set(range(5)) - set(ids[row, :time].tolist()))
        some = found.predictions[row, time, jnp.array(unseen, int)]
        assert np.ptp(some) < 1e-5 if unseen else True
    for axis in (-1, -2):
        assert_close(found.posterior.sum(axis), np.ones((2, 3, 5)), **TOLERANCE)
    random = jax.random.randint(jax.random.key(1), (8, 40), 0, 5)
    assert float(MIXTURE(bigrams, random).regret.max()) <= regret_bound(5) + 1e-4


def test_the_gap_falls_below_the_bound(bigrams):
    """Property 4: the mean L1 distance over samples, at several lengths."""
    ids = sample_language(bigrams, jax.random.key(2), batch=24, length=160)
    l1 = np.asarray(MIXTURE(bigrams, ids).l1).mean(0)
    means = [l1[:length].mean() for length in (10, 40, 160)]
    assert means[0] > means[1] > means[2]
    for length, mean in zip((10, 40, 160), means):
        assert mean < pinsker_bound(5, length)
    assert l1[-40:].mean() < l1[:40].mean() / 2


def test_exchangeable_symbols_are_never_told_apart():
    """Two symbols with the same statistics: predictions converge, the key does not."""
    same = np.array([0.8, 0.1, 0.1])
    language = markov_language(same, np.tile(same, (3, 1)))
    ids = sample_language(language, jax.random.key(0), batch=1, length=200)
    found = MIXTURE(language, ids, times=(200,))
    after = np.asarray(found.posterior[0, 0])
    assert after[0, 0] > 0.99 and abs(after[1, 1] - 0.5) < 1e-3
    assert float(found.l1[0, -1]) < 1e-3


def test_a_text_that_no_key_explains():
    """The language never repeats a symbol; the text does."""
    language = markov_language(np.array([0.5, 0.5]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    found = MIXTURE(language, jnp.array([[0, 1, 1, 0]]))
    assert np.isneginf(np.asarray(found.log_probs)[0, 2:]).all()
    assert np.isfinite(np.asarray(found.predictions)).all()
    assert_close(found.log_probs[0, :2], np.log([0.5, 1.0]), **TOLERANCE)


def test_the_beam_is_exact_when_nothing_is_dropped(bigrams):
    ids = sample_language(bigrams, jax.random.key(4), batch=3, length=12)
    whole = MIXTURE(bigrams, ids, times=(12,))
    found = BEAM(bigrams, ids, width=120)
    assert_close(found.predictions, whole.predictions, **TOLERANCE)
    assert_close(found.log_probs, whole.log_probs, **TOLERANCE)
    assert_close(found.posterior, whole.posterior[:, 0], **TOLERANCE)


def test_a_narrow_beam_still_reads_keys():
    """20 symbols, too many to enumerate, that mostly follow one another in a ring."""
    ring = 0.95 * np.roll(np.eye(20), 1, axis=1) + 0.05 / 20
    language = markov_language(0.9 * np.eye(20)[0] + 0.1 / 20, ring)
    plain = sample_language(language, jax.random.key(0), batch=1, length=200)
    key = np.random.default_rng(0).permutation(20)
    cipher = np.argsort(key)[np.asarray(plain)]
    found = BEAM(language, jnp.asarray(cipher), width=512)
    read = np.asarray(found.key[0])
    assert (read >= 0).sum() == len(np.unique(cipher)) == len(set(read[read >= 0]))
    # Its key explains the text as well as the true one does.
    text, own = read[cipher[0]], np.asarray(plain)[0]
    best = probability_by_hand(language, text)
    assert best >= probability_by_hand(language, own) - 1e-3
    assert (text == own).mean() > 0.9
    assert_close(found.posterior.sum(-1), np.ones((1, 20)), **TOLERANCE)


def test_bad_input(bigrams):
    ten = fit_ngrams([np.arange(10)], 10)
    with pytest.raises(ArgumentError, match="10 symbols"):
        permutation_mixture(ten, jnp.zeros((1, 3), int))
    with pytest.raises(ValueError, match="times"):
        permutation_mixture(bigrams, jnp.zeros((1, 3), int), times=(4,))
    with pytest.raises(VocabMismatchError, match=r"0\.\.4"):
        permutation_mixture(bigrams, jnp.array([[5]]))
    with pytest.raises(VocabMismatchError):
        fit_ngrams([[0, 7]], 5)
    with pytest.raises(ArgumentError, match="width"):
        beam_mixture(bigrams, jnp.zeros((1, 3), int), width=0)
    with pytest.raises(ArgumentError, match="transitions"):
        markov_language(np.full(2, 0.5), np.ones((2, 2)))
    with pytest.raises(ArgumentError, match="smoothing"):
        fit_ngrams([[0]], 2, smoothing=0.0)
    with pytest.raises(ArgumentError, match="order"):
        fit_ngrams([[0]], 200, order=4)
    with pytest.raises(ArgumentError, match="length"):
        pinsker_bound(3, 0)
