"""Prompt lookup against a search in plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import find_continuation, generate, prompt_lookup
from jtok.testing import bigram_target

find = jax.jit(
    find_continuation,
    static_argnames=("num_draft", "max_ngram", "min_ngram", "whole"),
)


def by_hand(ids, num_draft, max_ngram, min_ngram, whole):
    """The longest n-gram at the end, at its earliest other place."""
    for size in range(max_ngram, min_ngram - 1, -1):
        if size >= len(ids):
            continue
        for start in range(len(ids) - size):
            after = ids[start + size :][:num_draft]
            if ids[start : start + size] == ids[-size:] and (
                not whole or len(after) == num_draft
            ):
                return after
    return []


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "num_draft, max_ngram, min_ngram", [(4, 3, 1), (1, 1, 1), (6, 4, 2)]
)
def test_what_followed_the_longest_ngram(num_draft, max_ngram, min_ngram, whole):
    rng = np.random.default_rng(5)
    # Stale tokens stand behind the end of every row, and must not be found.
    ids = rng.integers(0, 4, (200, 16)).astype(np.int32)
    count = rng.integers(1, 17, 200).astype(np.int32)
    got, found = find(
        jnp.asarray(ids), jnp.asarray(count), num_draft=num_draft,
        max_ngram=max_ngram, min_ngram=min_ngram, whole=whole,
    )  # fmt: skip
    lengths = set()
    for row, length in enumerate(count):
        text = ids[row, :length].tolist()
        expected = by_hand(text, num_draft, max_ngram, min_ngram, whole)
        assert got[row][found[row]].tolist() == expected
        assert found[row].tolist() == [i < len(expected) for i in range(num_draft)]
        lengths.add(len(expected))
    assert lengths == {0, num_draft} if whole else lengths >= {0, 1, num_draft}


@functools.lru_cache
def cycle(length):
    return bigram_target(np.roll(np.eye(length), 1, axis=1))


@pytest.mark.parametrize("prompt, calls", [(list(range(7)) * 2, 5), ([0], 11)])
def test_a_text_that_repeats_is_found(prompt, calls):
    """Seven tokens in turn: a prompt of two rounds drafts from the first call on."""
    out = generate(cycle(7), prompt, max_new_tokens=25, drafter=prompt_lookup(4))
    expected = (prompt[-1] + 1 + np.arange(25)) % 7
    np.testing.assert_array_equal(out.tokens, expected)
    assert out.stats.calls == calls


def test_equal_arguments_give_the_same_drafter():
    """Else every call of `generate` would compile anew."""
    assert prompt_lookup(4) is prompt_lookup(4)
    assert prompt_lookup(4) is not prompt_lookup(5)
