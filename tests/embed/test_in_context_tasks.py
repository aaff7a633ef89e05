"""Look-up and permutation tasks: their form, their solvers, their scores."""

import jax
import numpy as np
import pytest

from jtok.embed import (
    lookup_task,
    permutation_task,
    solve_lookup,
    solve_permutation,
    task_scores,
)
from jtok.errors import ArgumentError

KEY = jax.random.key(0)


def perfect(tokens, solution, vocab):
    """Logits that say the solution one place ahead."""
    said = np.roll(np.maximum(solution, 0), -1, axis=1)
    return jax.nn.one_hot(said, vocab)


@pytest.mark.parametrize(
    "pairs, repeats, queries, separated, seed",
    [(2, 1, "one", False, 0), (8, 1, "all", False, 1), (5, 3, "all", True, 2),
     (8, 2, "one", True, 3)],
)  # fmt: skip
def test_look_ups_have_one_answer_each(pairs, repeats, queries, separated, seed):
    """Keys differ, every pair stands as often as asked, the search finds the value."""
    sign = 9 if separated else None
    task = lookup_task(
        jax.random.key(seed), batch=5, symbols=range(1, 9), vocab_size=10, pairs=pairs,
        repeats=repeats, queries=queries, separator=sign,
    )  # fmt: skip
    tokens, answers = np.asarray(task.tokens), np.asarray(task.answers)
    asked, step = (1 if queries == "one" else pairs), (3 if separated else 2)
    assert tokens.shape == (5, step * (pairs * repeats + asked) - separated)
    assert (answers.sum(1) == asked).all() and task.chance == 0.1
    solution = solve_lookup(tokens, answers, separator=sign)
    np.testing.assert_array_equal(solution[answers], tokens[answers])
    assert (solution[~answers] == -1).all()
    shown = tokens[:, : step * pairs * repeats : step]
    for row in shown:
        assert (np.unique(row, return_counts=True)[1] == repeats).all()
        assert len(set(row.tolist())) == pairs
    if separated:
        assert (tokens[:, 2::3] == sign).all()
    scores = task_scores(perfect(tokens, solution, 10), task.tokens, task.answers)
    assert [float(x) for x in scores] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "size, examples, queries, seed",
    [(3, 1, "one", 0), (4, 4, "all", 1), (5, 2, "one", 2)],
)
def test_permutations_are_one_a_sequence(size, examples, queries, seed):
    task = permutation_task(
        jax.random.key(seed), batch=4, symbols=range(7), vocab_size=9, arrow=7,
        separator=8, size=size, examples=examples, queries=queries,
    )  # fmt: skip
    tokens, answers = np.asarray(task.tokens), np.asarray(task.answers)
    assert tokens.shape[1] == (2 * size + 2) * (examples + 1) - 1
    assert (answers.sum(1) == size * (1 if queries == "one" else examples)).all()
    solution = solve_permutation(tokens, answers, size=size)
    np.testing.assert_array_equal(solution[answers], tokens[answers])
    blocks = np.pad(tokens, ((0, 0), (0, 1))).reshape(4, examples + 1, -1)
    assert (blocks[:, :, size] == 7).all() and (blocks[:, :-1, -1] == 8).all()
    # Symbols of a tuple differ, so that one example tells the permutation.
    assert all(
        len(set(t)) == size for t in blocks[..., :size].reshape(-1, size).tolist()
    )
    scores = task_scores(perfect(tokens, solution, 9), task.tokens, task.answers)
    assert [float(x) for x in scores] == [1.0, 1.0, 1.0]


def test_a_uniform_guess_is_at_chance():
    """Random logits: one in the vocabulary; more among the symbols shown."""
    task = lookup_task(KEY, batch=600, symbols=range(20), vocab_size=20, queries="all")
    logits = jax.random.normal(KEY, (*task.tokens.shape, 20))
    scores = task_scores(logits, task.tokens, task.answers)
    assert abs(float(scores.each) - task.chance) < 0.01
    assert float(scores.present) > 1.2 * task.chance
    assert float(scores.whole) == 0


def test_other_draws_are_other_tasks():
    """Keys and values are uniform; the order of queries is not that of the pairs."""
    draw = lambda seed: lookup_task(
        jax.random.key(seed), batch=400, symbols=range(8), vocab_size=8, queries="all"
    )
    one = np.asarray(draw(0).tokens)
    assert not np.array_equal(one, draw(1).tokens)
    np.testing.assert_array_equal(one, draw(0).tokens)
    assert (one[:, :16:2] != one[:, 16::2]).any(axis=1).mean() > 0.99
    shares = np.bincount(one[:, 1:16:2].ravel(), minlength=8) / 3200
    assert np.abs(shares - 1 / 8).max() < 0.02


def test_bad_input():
    good = {"batch": 1, "symbols": range(8), "vocab_size": 10}
    with pytest.raises(ArgumentError, match="pairs: got 9"):
        lookup_task(KEY, **good, pairs=9)
    with pytest.raises(ArgumentError, match="pairs"):
        lookup_task(KEY, batch=1, symbols=range(50), vocab_size=50, pairs=33)
    with pytest.raises(ArgumentError, match="repeats"):
        lookup_task(KEY, **good, repeats=0)
    with pytest.raises(ArgumentError, match="symbols"):
        lookup_task(KEY, batch=1, symbols=range(11), vocab_size=10)
    with pytest.raises(ArgumentError, match="separator"):
        lookup_task(KEY, **good, separator=3)
    with pytest.raises(ArgumentError, match="size: got 6"):
        permutation_task(KEY, **good, arrow=8, separator=9, size=6)
    with pytest.raises(ArgumentError, match="separator"):
        permutation_task(KEY, **good, arrow=8, separator=8)
    with pytest.raises(ArgumentError, match="examples"):
        permutation_task(KEY, **good, arrow=8, separator=9, examples=0)
    with pytest.raises(ArgumentError, match="no permutation"):
        solve_permutation(
            np.array([[0, 1, 2, 8, 5, 5, 5]]), np.zeros((1, 7), bool), size=3
        )
