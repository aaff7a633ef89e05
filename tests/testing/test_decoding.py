"""The comparison with plain decoding, and targets whose answers are known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import generate
from jtok.errors import ArgumentError
from jtok.models import StepInput
from jtok.testing import (
    Difference,
    adversary_drafter,
    assert_token_guarantee,
    bigram_target,
    compare,
    extra_slots_drafter,
    oracle_drafter,
    random_drafter,
    steps,
)

TABLE = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)


def plain(**options):
    return generate(
        bigram_target(TABLE), [[1], [2, 3]], max_new_tokens=6, gaps=True, **options
    )


def changed(out, row, tokens):
    rows = [np.array(tokens) if i == row else r for i, r in enumerate(out.tokens)]
    return dataclasses.replace(out, tokens=rows)


def with_gaps(out, value):
    return dataclasses.replace(out, gaps=[np.full_like(g, value) for g in out.gaps])


def test_the_first_difference_of_a_row_is_found():
    out = plain()
    tokens = out.tokens[1].copy()
    tokens[[2, 4]] = (tokens[[2, 4]] + 1) % 5
    other = changed(out, 1, tokens)
    assert compare(out, other) == [Difference(1, 2, float(out.gaps[1][2]))]
    assert compare(out, out) == []


def test_a_missing_or_surplus_token_is_a_difference():
    out = plain()
    short = changed(out, 0, out.tokens[0][:4])
    assert compare(out, short) == [Difference(0, 4, float(out.gaps[0][4]))]
    long = changed(out, 0, [*out.tokens[0], 1])
    assert compare(out, long) == [Difference(0, 6, float("inf"))]


def test_only_near_ties_excuse_a_difference():
    out = plain()
    other = changed(out, 0, (out.tokens[0] + 1) % 5)
    assert_token_guarantee(with_gaps(out, 9e-5), other)
    with pytest.raises(AssertionError, match=r"row 0 first at token 0.*0.0002"):
        assert_token_guarantee(with_gaps(out, 2e-4), other)
    assert_token_guarantee(with_gaps(out, 0.09), other, tolerance=0.1)
    with pytest.raises(AssertionError):
        assert_token_guarantee(with_gaps(out, np.nan), other)


def test_comparison_needs_gaps_and_as_many_rows():
    out = plain()
    with pytest.raises(ArgumentError, match="plain: it has no gaps"):
        compare(dataclasses.replace(out, gaps=None), out)
    with pytest.raises(ArgumentError, match="got 1 rows, expected 2"):
        compare(out, dataclasses.replace(out, tokens=out.tokens[:1]))


# The target in a few lines ------------------------


def test_a_bigram_model_follows_its_table():
    for row, prompt in zip(plain().tokens, ([1], [2, 3]), strict=True):
        ids = [prompt[-1], *row]
        assert [int(TABLE[i].argmax()) for i in ids[:-1]] == ids[1:]


@pytest.mark.parametrize("what", ["ids", "positions", "allow"])
def test_everything_a_node_sees_counts(what):
    """The suite over drafters relies on it: a wrong input changes the logits."""
    target = bigram_target(
        np.random.default_rng(1).normal(size=(50, 50)), whole_context=True
    )
    one = StepInput(
        ids=jnp.array([[3, 4, 5]]), positions=jnp.array([[0, 1, 2]]),
        allow=jnp.tril(jnp.ones((1, 3, 3), bool)), valid=jnp.ones((1, 3), bool),
    )  # fmt: skip
    if what == "ids":
        other = one.replace(ids=jnp.array([[6, 4, 5]]))
    elif what == "positions":
        other = one.replace(positions=jnp.array([[1, 1, 2]]))
    else:
        other = one.replace(allow=one.allow.at[0, 2, 0].set(False))
    cache = target.init_cache(None, 1, 8)
    before, after = (
        target.step(None, cache, nodes)[0].hidden for nodes in (one, other)
    )
    assert np.abs(before[0, 2] - after[0, 2]).max() > 1e-3


def test_a_committed_token_counts_as_a_node_that_is_seen():
    table = np.random.default_rng(1).normal(size=(50, 50))
    target = bigram_target(table, whole_context=True)
    nodes = StepInput(
        ids=jnp.array([[3, 4]]), positions=jnp.array([[0, 1]]),
        allow=jnp.tril(jnp.ones((1, 2, 2), bool)), valid=jnp.ones((1, 2), bool),
    )  # fmt: skip
    whole, cache = target.step(None, target.init_cache(None, 1, 8), nodes)
    cache = target.commit(cache, jnp.array([[0, 1]]), jnp.array([1]))
    assert cache.length.tolist() == [1] and cache.ids[0, 0] == 3
    rest = StepInput(
        ids=jnp.array([[4]]), positions=jnp.array([[1]]),
        allow=jnp.ones((1, 1, 1), bool), valid=jnp.ones((1, 1), bool),
    )  # fmt: skip
    second, _ = target.step(None, cache, rest)
    np.testing.assert_array_equal(second.hidden[0, 0], whole.hidden[0, 1])


def test_steps_shows_what_generate_does():
    states = list(steps(bigram_target(TABLE), None, [[1], [2, 3]], max_new_tokens=6))
    assert len(states) == 7
    assert [s.tokens.count.tolist() for s in states[:3]] == [[1, 2], [2, 3], [3, 4]]
    last = states[-1].tokens
    for row, tokens in enumerate(plain().tokens):
        first = last.count[row] - 6
        assert last.ids[row, first : last.count[row]].tolist() == tokens.tolist()


# Drafters ------------------------


def test_equal_arguments_give_the_same_drafter():
    """Else every test would compile anew."""
    rows = [[1, 2], [3]]
    assert oracle_drafter(rows, 2) is oracle_drafter([np.array(r) for r in rows], 2)
    assert oracle_drafter(rows, 2) is not oracle_drafter(rows, 3)
    assert random_drafter(1, 2) is random_drafter(1, 2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: oracle_drafter([[1]], 0), "depth: got 0"),
        (lambda: oracle_drafter([], 1), "continuations: .* at least one row"),
        (lambda: adversary_drafter([[1]], 1, 1), "vocab_size: got 1"),
        (lambda: random_drafter(0, 1), "depth: got 0"),
        (lambda: random_drafter(1, 0), "width: got 0"),
        (lambda: extra_slots_drafter(random_drafter(1, 1), 0), "count: got 0"),
        (lambda: bigram_target(np.zeros((2, 3))), r"table: .*\(2, 3\)"),
        (lambda: plain(drafter=oracle_drafter([[1]], 2)), "continuations: got 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
