"""Rejection rules in law: three tokens against the exact law of the target."""

import numpy as np
import pytest

from jtok.decode import draft_model, generate, rejection, sequential
from jtok.ops import Tree
from jtok.testing import bigram_target, drawn_drafter, random_drafter
from tests.decode.test_sampling_law import (
    DRAWS,
    LOGITS,
    SMALL,
    assert_law,
    kept,
    softmax,
)

# The law of the drafts is another one, but not so far off that all are refused.
OTHER = LOGITS + np.random.default_rng(5).normal(size=LOGITS.shape).astype(np.float32)
SMALLER = bigram_target(OTHER)
TREE = Tree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (1, 1)])
HOW = {
    "chain": (draft_model(SMALLER, 2, draw="own"), None),
    "tree": (draft_model(SMALLER, tree=TREE, draw="own"), None),
    "with-replacement": (drawn_drafter(OTHER, TREE), rejection(replacement=True)),
    "sequential": (random_drafter(2, 4), sequential()),
    "sequential-drawn": (draft_model(SMALLER, tree=TREE, draw="own"), sequential()),
}


def draws(how, count=3, temperature=1.0, **options):
    drafter, rule = HOW[how]
    out = generate(
        bigram_target(LOGITS), [[5]] * DRAWS, max_new_tokens=count, drafter=drafter,
        rule=rule, temperature=temperature, seed=9, **options,
    )  # fmt: skip
    assert out.guarantee == "distribution"
    return out


@pytest.mark.medium
@pytest.mark.parametrize("how", HOW)
def test_three_tokens_have_the_law_of_the_target(how):
    out = draws(how)
    tokens, stats = np.stack(out.tokens), out.stats
    assert 1.2 < stats.tokens_per_call < 3  # some drafts are kept, some refused
    counts = np.zeros((SMALL,) * 3)
    np.add.at(counts, tuple(tokens.T), 1)
    probs = softmax(LOGITS)
    assert_law(counts, probs[5][:, None, None] * probs[:, :, None] * probs[None])


@pytest.mark.medium
@pytest.mark.parametrize("how", ["tree"])
def test_filters_and_temperature_shape_both_laws(how):
    out = draws(how, 2, temperature=0.7, top_k=5, top_p=0.8)
    counts = np.zeros((SMALL,) * 2)
    np.add.at(counts, tuple(np.stack(out.tokens).T), 1)
    probs = softmax(LOGITS / np.float32(0.7))
    alive = np.stack([kept(row, top_k=5, top_p=0.8) for row in probs])
    assert 1 < alive[5].sum() < 5
    probs = np.where(alive, probs, 0)
    probs /= probs.sum(-1, keepdims=True)
    assert_law(counts, probs[5][:, None] * probs)


@pytest.mark.medium
def test_a_bias_is_part_of_the_law():
    """The drafter knows nothing of it; the verifier's law has it."""
    bias = {0: 1.0, 3: -2.0}
    out = draws("tree", 2, logit_bias=bias)
    counts = np.zeros((SMALL,) * 2)
    np.add.at(counts, tuple(np.stack(out.tokens).T), 1)
    shift = np.array([bias.get(i, 0.0) for i in range(SMALL)], np.float32)
    probs = softmax(LOGITS + shift)
    assert_law(counts, probs[5][:, None] * probs)


@pytest.mark.medium
@pytest.mark.parametrize("how", ["chain", "tree"])
def test_stop_ids_and_budgets_keep_the_law(how):
    """Texts of at most two tokens, which end early at either of two ids."""
    stops = [1, 4]
    out = draws(how, 2, stop_ids=stops)
    counts = np.zeros((SMALL, SMALL + 1))  # the last column: no second token
    for row in out.tokens:
        counts[row[0], row[1] if len(row) > 1 else SMALL] += 1
    probs = softmax(LOGITS)
    law = np.zeros_like(counts)
    law[:, :SMALL] = probs[5][:, None] * probs
    law[stops] = 0
    law[stops, SMALL] = probs[5][stops]
    assert_law(counts, law)


@pytest.mark.medium
def test_the_wrong_rule_is_noticed():
    """Drafts drawn without replacement, verified as if with."""
    out = generate(
        bigram_target(LOGITS), [[5]] * DRAWS, max_new_tokens=1, temperature=1.0,
        drafter=draft_model(SMALLER, tree=Tree.star(4), draw="own"),
        rule=rejection(replacement=True), seed=9,
    )  # fmt: skip
    counts = np.bincount(np.stack(out.tokens)[:, 0], minlength=SMALL)
    with pytest.raises(AssertionError, match="chance"):
        assert_law(counts, softmax(LOGITS)[5])
