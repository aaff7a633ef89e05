"""Generation among a few candidates of very many rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import generate
from jtok.embed import (
    approximate_search,
    candidate_target,
    cluster_search,
    exact_search,
    with_vocabulary,
)
from jtok.errors import ArgumentError
from jtok.ops import Draw, Want, row_keys
from jtok.ops.row_search import cluster_rows
from jtok.testing import tiny_model

MODEL = tiny_model()
ROWS = 3000


@pytest.fixture(scope="module")
def large():
    keys = jax.random.split(jax.random.key(0), 2)
    given, output = (jax.random.normal(key, (ROWS, 32)) for key in keys)
    return with_vocabulary(MODEL, given, output)


def test_rows_are_stored_narrow_and_scored_wide(large):
    assert large.params["embed"]["tokens"].dtype == jnp.bfloat16
    hidden = jax.random.normal(jax.random.key(1), (2, 1, 32))
    rows = large.unembedding()[0]
    scores, ids = exact_search(hidden, rows, None, 20)
    full = np.asarray(hidden)[:, 0] @ np.asarray(rows.astype(jnp.float32)).T
    order = np.argsort(-full, axis=1, kind="stable")[:, :20]
    assert scores.dtype == jnp.float32 and (np.asarray(ids)[:, 0] == order).all()


def test_greedy_candidates_are_the_arg_max_of_the_model(large):
    target = candidate_target(large)
    options = {"max_new_tokens": 6, "params": large.params}
    plain = generate(large.target(), [[1, 2, 3], [4, 5]], **options)
    few = generate(target, [[1, 2, 3], [4, 5]], **options)
    assert (np.asarray(plain.tokens) == np.asarray(few.tokens)).all()


def answer(large, want, **options):
    hidden = jax.random.normal(jax.random.key(2), (2, 1, 32))
    rows = large.unembedding()[0]
    out = candidate_target(large, **options).readout(large.params, hidden, want)
    return out, *exact_search(hidden, rows, None, 20)


def draw(**options):
    return Draw(
        row_keys(jnp.array([3, 4])), jnp.array([5, 6]), jnp.zeros((2, 1), jnp.int32),
        jnp.ones(2), top_k=10, min_p=jnp.full(2, 0.1), **options,
    )  # fmt: skip


def test_rows_hold_the_candidates_and_nothing_else(large):
    out, scores, ids = answer(large, Want(rows=True, top_k=3, log_sum_exp=True))
    dense = np.asarray(out.rows)[:, 0]
    assert np.isfinite(dense).sum(axis=1).tolist() == [20, 20]
    for row in range(2):
        np.testing.assert_array_equal(dense[row][ids[row, 0]], scores[row, 0])
    assert (out.top_ids == ids[..., :3]).all()
    np.testing.assert_allclose(
        out.log_sum_exp, jax.nn.logsumexp(scores, axis=-1), rtol=1e-6
    )


def test_draws_follow_the_rule_of_the_paper(large):
    """Top 20, eos bias, the penalty on all of them, top 10, then min-p."""
    _, scores, ids = answer(large, Want())
    end = int(ids[0, 0, 4])
    bent = np.where(np.asarray(ids) == end, scores + 1.0, scores)
    bent = np.where(bent > 0, bent / 1.1, bent * 1.1)[:, 0]
    kept = np.argsort(-bent, axis=1)[:, :10]
    options = {"bias_ids": (end,), "bias": 1.0, "repetition_penalty": 1.1}
    seen = [set(), set()]
    read = jax.jit(
        lambda start: (
            answer(
                large, Want(draw().replace(start=start)), compat="official", **options
            )[0].choice
        )
    )
    for place in range(200):
        choice = np.asarray(read(jnp.array([place, place])))
        for row in range(2):
            seen[row].add(int(choice[row, 0]))
    for row in range(2):
        top = bent[row][kept[row]]
        share = np.exp(top - top.max())
        names = np.asarray(ids)[row, 0][kept[row]]
        allowed = set(names[share >= 0.1].tolist())
        assert seen[row] <= allowed
        assert set(names[share >= 0.3].tolist()) <= seen[row]


def test_penalties_of_generate_fall_on_seen_tokens(large):
    target = candidate_target(large)
    options = {"params": large.params, "max_new_tokens": 5, "temperature": 1.0,
               "top_k": 10, "min_p": 0.1, "repetition_penalty": 1.3}  # fmt: skip
    out = generate(target, [[1, 2, 3]], **options, seed=3)
    again = generate(target, [[1, 2, 3]], **options, seed=3)
    assert (np.asarray(out.tokens) == np.asarray(again.tokens)).all()


def test_approximate_searches_may_stand_in(large):
    rows = large.unembedding()[0]
    clusters = cluster_rows(rows, 8, jax.random.key(3))
    options = {"max_new_tokens": 4, "params": large.params}
    plain = generate(candidate_target(large), [1, 2, 3], **options)
    for search in (cluster_search(clusters, 8), approximate_search(1.0, block=500)):
        out = generate(candidate_target(large, search=search), [1, 2, 3], **options)
        assert (np.asarray(out.tokens) == np.asarray(plain.tokens)).all()


def test_tied_rows_and_biases():
    tied = with_vocabulary(MODEL, jnp.ones((40, 32)))
    assert tied.config.tied and tied.unembedding()[0].shape == (40, 32)
    bias = jnp.zeros(40).at[7].set(9.0)
    model = with_vocabulary(MODEL, jnp.ones((40, 32)), bias=bias)
    out = candidate_target(model).readout(model.params, jnp.ones((1, 1, 32)), Want())
    assert out.choice.tolist() == [[7]]
    ties = candidate_target(tied).readout(tied.params, jnp.ones((1, 1, 32)), Want())
    assert ties.choice.tolist() == [[0]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: candidate_target(MODEL, candidates=0), "candidates: got 0"),
        (lambda: candidate_target(MODEL, candidates=97), "candidates: got 97"),
        (lambda: candidate_target(MODEL, bias_ids=(96,)), "bias_ids"),
        (lambda: candidate_target(MODEL, repetition_penalty=1.1), "seen tokens"),
        (lambda: with_vocabulary(MODEL, jnp.ones((4, 31))), "given: got"),
        (
            lambda: with_vocabulary(MODEL, jnp.ones((4, 32)), jnp.ones((5, 32))),
            "output",
        ),
        (lambda: with_vocabulary(MODEL, jnp.ones((4, 32)), bias=jnp.ones(3)), "bias"),
        (lambda: approximate_search(0.0), "recall: got 0.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ArgumentError, TypeError), match=message):
        call()
