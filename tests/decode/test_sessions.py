"""A cache from one turn to the next: fewer tokens fed, the same tokens out."""

import functools

import numpy as np
import pytest

from jtok.decode import generate, token_recycling
from jtok.testing import (
    assert_token_guarantee,
    bigram_target,
    counting_target,
    random_drafter,
    tiny_model,
)
from tests.contracts.drafters import MIXED

VOCAB = 10
TABLE = 2.0 * np.random.default_rng(1).normal(size=(VOCAB, VOCAB)).astype(np.float32)
TARGET = counting_target(bigram_target(TABLE, whole_context=True))
PROMPTS = [[3], [1, 2, 3, 1, 2], [7] * 9]
NEXT = [[4, 5], [6], [1] * 5]
OPTIONS = {"max_new_tokens": 10, "temperature": [0.0, 1.0, 0.7], "gaps": True}


@functools.lru_cache
def first(drafter=None):
    return generate(TARGET, PROMPTS, keep_cache=True, drafter=drafter, **OPTIONS)


def second_prompts(out):
    turns = zip(PROMPTS, out.tokens, NEXT, strict=True)
    return [[*a, *b.tolist(), *c] for a, b, c in turns]


@pytest.mark.parametrize("drafter", [None, random_drafter(3, 6)], ids=["none", "tree"])
def test_the_next_turn_feeds_only_what_is_new(drafter):
    out = first(drafter)
    prompts = second_prompts(out)
    fresh = generate(TARGET, prompts, drafter=drafter, **OPTIONS)
    again = generate(TARGET, prompts, drafter=drafter, cache=out.cache, **OPTIONS)
    assert_token_guarantee(fresh, again)
    assert [r.tolist() for r in again.tokens] == [r.tolist() for r in fresh.tokens]
    # The newest token of the first turn and all of NEXT but its last, then the rest.
    fed = again.cache.cache.tokens - out.cache.cache.tokens
    assert fed.tolist() == [len(new) + 10 for new in NEXT]
    assert again.stats.prompt_tokens == sum(map(len, prompts))
    held = out.cache
    np.testing.assert_array_equal(held.held, held.count - 1)


def test_what_a_prompt_does_not_share_is_forgotten():
    out = first()
    other = [[9, 9, 1], [1, 2, 3, 8, 8, 8], PROMPTS[2][:4]]
    again = generate(TARGET, other, cache=out.cache, **OPTIONS)
    fresh = generate(TARGET, other, **OPTIONS)
    assert [r.tolist() for r in again.tokens] == [r.tolist() for r in fresh.tokens]
    fed = again.cache.cache.tokens - out.cache.cache.tokens
    # Shared are 0, 3 and 3 tokens: the last of a prompt is always fed by a call.
    assert fed.tolist() == [2 + 10, 2 + 10, 10]


def test_two_turns_may_branch_from_one():
    out = first()
    prompts = second_prompts(out)
    one = generate(TARGET, prompts, cache=out.cache, **OPTIONS)
    other = [[*p[:-1], (p[-1] + 1) % VOCAB] for p in prompts]
    generate(TARGET, other, cache=out.cache, **OPTIONS)
    again = generate(TARGET, prompts, cache=out.cache, **OPTIONS)
    assert [r.tolist() for r in again.tokens] == [r.tolist() for r in one.tokens]


def test_the_cache_grows():
    out = first()
    assert out.cache.capacity == 128
    more = np.random.default_rng(0).integers(0, VOCAB, 150).tolist()
    prompts = [[*p, *more] for p in second_prompts(out)]
    again = generate(TARGET, prompts, cache=out.cache, **OPTIONS)
    assert again.cache.capacity > 128
    fresh = generate(TARGET, prompts, **OPTIONS)
    assert [r.tolist() for r in again.tokens] == [r.tolist() for r in fresh.tokens]
    # And it does not shrink.
    small = generate(TARGET, PROMPTS, cache=again.cache, **OPTIONS)
    assert small.cache.capacity == again.cache.capacity
    assert [r.tolist() for r in small.tokens] == [r.tolist() for r in out.tokens]


@pytest.mark.medium
def test_with_a_transformer_a_drafter_and_a_stop():
    drafter = token_recycling(4, MIXED, update_from_prefill=True)
    options = {"max_new_tokens": 16, "temperature": [0.0, 1.0], "gaps": True}
    options |= {"stop_ids": [17, 40, 41, 42], "drafter": drafter}
    prompts = [[5, 6, 7, 5, 6], [9]]
    out = generate(tiny_model(), prompts, keep_cache=True, **options)
    for _ in range(2):
        turns = zip(prompts, out.tokens, [[4], [8, 3]], strict=True)
        prompts = [[*a, *b.tolist(), *c] for a, b, c in turns]
        out = generate(
            tiny_model(), prompts, cache=out.cache, drafter_state=out.drafter_state,
            **options,
        )  # fmt: skip
        fresh = generate(tiny_model(), prompts, **options)
        assert_token_guarantee(fresh, out)
        assert [r.tolist() for r in out.tokens] == [r.tolist() for r in fresh.tokens]
        assert out.cache.cache.length.tolist() == (out.cache.count - 1).tolist()


def test_a_target_that_cannot_forget_takes_what_it_holds():
    target = bigram_target(TABLE, whole_context=True)._replace(rewind=None)
    out = generate(target, PROMPTS, keep_cache=True, **OPTIONS)
    prompts = second_prompts(out)
    again = generate(target, prompts, cache=out.cache, **OPTIONS)
    fresh = generate(target, prompts, **OPTIONS)
    assert [r.tolist() for r in again.tokens] == [r.tolist() for r in fresh.tokens]
    with pytest.raises(ValueError, match="cache: prompt 1 shares 3 tokens"):
        other = [prompts[0], [1, 2, 3, 8, 8], prompts[2]]
        generate(target, other, cache=out.cache, **OPTIONS)
