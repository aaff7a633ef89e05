"""Sampling against an independent sampler in NumPy, and in law."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats

from jtok.decode import generate, token_recycling
from jtok.models import split_layers
from jtok.ops import Tree
from jtok.testing import bigram_target, random_drafter, tiny_model

VOCAB = 24
TABLE = 2.0 * np.random.default_rng(1).normal(size=(VOCAB, VOCAB)).astype(np.float32)
# One per rule, then all of them; the temperatures are those of three rows.
TEMPERATURES = [1.0, 0.0, 0.7]
OPTIONS = {
    "temperature": {},
    "top-k": {"top_k": 5},
    "top-k-1": {"top_k": 1},
    "top-p": {"top_p": [0.9, 0.5, 0.3]},
    "min-p": {"min_p": [0.05, 0.5, 0.2]},
    "all": {"top_k": 9, "top_p": [0.95, 0.9, 0.6], "min_p": [0.1, 0.0, 0.02]},
}


def kept(probs, top_k=None, top_p=1.0, min_p=0.0):
    """Which tokens survive top-k, then top-p, then min-p, in float64."""
    order = np.argsort(-probs, kind="stable")
    alive = np.zeros(len(probs), bool)
    alive[order[:top_k]] = True
    probs = np.where(alive, probs, 0) / probs[alive].sum()
    before = np.cumsum(probs[order]) - probs[order]
    alive[order] &= (before < top_p) | (np.arange(len(probs)) == 0)
    probs = np.where(alive, probs, 0) / probs[alive].sum()
    return alive & (probs >= min_p * probs.max())


def gumbel(seed, position, vocab):
    key = jax.random.fold_in(jax.random.key(seed), position)
    return np.asarray(jax.random.gumbel(key, (vocab,)))


def sample_by_hand(logits_of, prompt, count, seed, temperature, **filters):
    """Gumbel-max, one token at a time, with noise of (seed, position) only."""
    ids = list(prompt)
    for _ in range(count):
        logits = np.asarray(logits_of(ids), np.float64)
        if temperature > 0:
            scaled = logits / temperature
            probs = np.exp(scaled - scaled.max())
            scores = scaled + gumbel(seed, len(ids) - 1, len(logits))
            alive = kept(probs / probs.sum(), **filters)
            logits = np.where(alive, scores, -np.inf)
        ids.append(int(np.argmax(logits)))
    return ids[len(prompt) :]


def of_row(options, row):
    return {k: v[row] if isinstance(v, list) else v for k, v in options.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_plain_sampling_is_that_of_numpy(name):
    options, prompts = OPTIONS[name], [[3], [1, 2, 3], [9] * 5]
    out = generate(
        bigram_target(TABLE), prompts, max_new_tokens=30, temperature=TEMPERATURES,
        seed=[11, 12, 500], gaps=True, **options,
    )  # fmt: skip
    for row, (prompt, seed) in enumerate(zip(prompts, (11, 12, 500), strict=True)):
        expected = sample_by_hand(
            lambda ids: TABLE[ids[-1]], prompt, 30, seed, TEMPERATURES[row],
            **of_row(options, row),
        )  # fmt: skip
        assert out.tokens[row].tolist() == expected, (row, out.gaps[row].min())


@pytest.mark.medium
@pytest.mark.parametrize("name", OPTIONS)
def test_sampling_with_drafts_is_that_of_numpy(name):
    options, prompts = OPTIONS[name], [[3], [1, 2, 3], [9] * 5]
    out = generate(
        bigram_target(TABLE), prompts, max_new_tokens=30, temperature=TEMPERATURES,
        seed=[11, 12, 500], drafter=random_drafter(3, 24), **options,
    )  # fmt: skip
    assert out.stats.tokens_per_call > 1.2
    for row, (prompt, seed) in enumerate(zip(prompts, (11, 12, 500), strict=True)):
        expected = sample_by_hand(
            lambda ids: TABLE[ids[-1]], prompt, 30, seed, TEMPERATURES[row],
            **of_row(options, row),
        )  # fmt: skip
        assert out.tokens[row].tolist() == expected


def test_a_model_samples_as_numpy_does():
    model = tiny_model()
    padded = jax.jit(lambda params, ids: model.replace(params=params)(ids).logits)

    def logits_of(ids):
        # Causal, so that what stands behind changes nothing.
        row = np.zeros((1, 32), np.int32)
        row[0, : len(ids)] = ids
        return padded(split_layers(model.params), row)[0, len(ids) - 1]

    out = generate(model, [5, 6, 7], max_new_tokens=20, temperature=0.9, seed=4)
    assert out.tokens.tolist() == sample_by_hand(logits_of, [5, 6, 7], 20, 4, 0.9)


# In law ------------------------

DRAWS, SMALL = 20_000, 8
LOGITS = np.random.default_rng(2).normal(size=(SMALL, SMALL)).astype(np.float32)
# A fault-free sampler fails a test with this probability (over the choice of seed).
FALSE_ALARM = 1e-6


def softmax(logits):
    exps = np.exp(logits.astype(np.float64))
    return exps / exps.sum(-1, keepdims=True)


def assert_law(counts, law):
    """Chi-square, with the cells that expect under ten draws taken together."""
    counts, expected = counts.ravel(), DRAWS * law.ravel()
    assert not counts[expected == 0].any()
    large = expected >= 10
    counts = [*counts[large], counts[~large].sum()]
    expected = [*expected[large], expected[~large].sum()]
    if expected[-1] == 0:
        counts, expected = counts[:-1], expected[:-1]
    chance = scipy.stats.chisquare(counts, expected).pvalue
    assert chance > FALSE_ALARM, f"chance {chance:.2g}"


def draws(drafter=None, table=None, **options):
    out = _run(drafter, None if table is None else table.tobytes(), **options)
    return np.stack(out.tokens), out.stats


@functools.lru_cache
def _run(drafter, table, **options):
    state = None
    if table is not None:
        state = np.frombuffer(table, np.int32).reshape(SMALL, -1)
    return generate(
        bigram_target(LOGITS), [[5]] * DRAWS, max_new_tokens=3, temperature=1.0,
        drafter=drafter, drafter_state=state, seed=1, **options,
    )  # fmt: skip


BEST = np.argsort(-LOGITS, axis=-1)[:, :3].astype(np.int32)
TREE = Tree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2, 2)])
HOW = {
    "plain": (None, None),
    "tree": (token_recycling(3, TREE), BEST),
    "random-tree": (random_drafter(2, 6), None),
}


@pytest.mark.medium
@pytest.mark.parametrize("how", HOW)
def test_three_tokens_have_the_law_of_the_model(how):
    drafter, table = HOW[how]
    tokens, stats = draws(drafter, table)
    if drafter is not None:
        assert stats.tokens_per_call > 1.2  # drafts do decide what is emitted
    counts = np.zeros((SMALL,) * 3)
    np.add.at(counts, tuple(tokens.T), 1)
    probs = softmax(LOGITS)
    law = probs[5][:, None, None] * probs[:, :, None] * probs[None]
    assert_law(counts, law)


@pytest.mark.medium
def test_filtered_draws_have_the_filtered_law():
    tokens, _ = draws(*HOW["tree"], top_p=0.7)
    counts = np.bincount(tokens[:, 0], minlength=SMALL)
    probs = softmax(LOGITS[5])
    alive = kept(probs, top_p=0.7)
    assert 1 < alive.sum() < SMALL
    assert_law(counts, np.where(alive, probs, 0) / probs[alive].sum())


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_the_statistic_tells_laws_apart(shift):
    """With 20,000 draws, 0.2 nats at one of eight tokens are noticed."""
    rng = np.random.default_rng(0)
    law = softmax(LOGITS[5])
    other = softmax(LOGITS[5] + shift * (np.arange(SMALL) == law.argmax()))
    counts = np.bincount(rng.choice(SMALL, DRAWS, p=other), minlength=SMALL)
    if shift == 0:
        assert_law(counts, law)
    else:
        with pytest.raises(AssertionError, match="chance"):
            assert_law(counts, law)
