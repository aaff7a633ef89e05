"""Prompts through one batch: each as if it were alone."""

import functools

import jax
import numpy as np
import pytest

from jtok.decode import (
    EXACT,
    generate,
    loop,
    no_drafter,
    prompt_lookup,
    serve,
    token_recycling,
)
from jtok.decode.options import options_from
from jtok.decode.serve import _Rows, _unflatten
from jtok.testing import (
    bigram_target,
    counting_target,
    random_drafter,
    tiny_model,
    tiny_vocabulary,
)
from tests.contracts.drafters import MIXED

VOCAB = 10
RNG = np.random.default_rng(4)
TABLE = 2.0 * np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
TARGET = bigram_target(TABLE, whole_context=True)
PROMPTS = [RNG.integers(0, VOCAB, n).tolist() for n in (3, 1, 9, 2, 5, 70, 4, 1)]
OPTIONS = {"max_new_tokens": 18, "temperature": 1.0, "stop_ids": [4], "gaps": True}
DRAFTERS = {
    "none": None,
    "random": random_drafter(3, 6),
    "learning": token_recycling(4, MIXED, update_from_prefill=True),
    "per row": token_recycling(4, MIXED, per_row=True),
}


@functools.lru_cache
def alone(seed=5):
    return [
        generate(TARGET, prompt, seed=seed + i, **OPTIONS)
        for i, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize(
    "name",
    ["none", "learning", *(pytest.param(n, marks=pytest.mark.medium)
                           for n in ("random", "per row"))],
)  # fmt: skip
def test_each_prompt_is_as_if_alone(name):
    found = list(
        serve(
            TARGET, iter(PROMPTS), batch=3, sync_every=2, seed=5,
            drafter=DRAFTERS[name], **OPTIONS,
        )
    )  # fmt: skip
    assert sorted(index for index, _ in found) == list(range(len(PROMPTS)))
    for index, out in found:
        expected = alone()[index]
        assert out.tokens.tolist() == expected.tokens.tolist()
        assert out.finish_reason == expected.finish_reason
        assert out.stats.emitted == len(out.tokens)
        assert out.stats.prompt_tokens == len(PROMPTS[index])
        assert out.stats.calls == out.call_of[-1] + 1 <= len(out.tokens)
        sizes = out.stats.emitted_per_call
        assert sizes @ np.arange(len(sizes)) == out.stats.emitted
        if name == "none":
            assert out.stats.calls == expected.stats.calls
            np.testing.assert_array_equal(out.gaps, expected.gaps)
    lengths = {len(out.tokens) for _, out in found}
    assert len(lengths) > 2, "rows should end at different times"


@pytest.mark.medium
def test_the_calls_of_a_row_are_its_own():
    options = {**OPTIONS, "drafter": random_drafter(3, 6)}
    for index, out in serve(TARGET, PROMPTS[:4], batch=2, sync_every=3, **options):
        expected = generate(TARGET, PROMPTS[index], seed=index, **options)
        # A random drafter draws by its own counter, so calls may differ; sums do not.
        assert out.stats.slots == out.stats.calls * 19
        assert out.tokens.tolist() == expected.tokens.tolist()
        assert out.stats.node_hits.sum() == out.stats.emitted


def test_a_row_is_replaced_and_no_other_changes():
    rows = _Rows(TARGET, options_from({**OPTIONS, "sync_every": 2}), 3)
    for index in range(3):
        rows.place(index, PROMPTS[index], index)
    list(rows.advance())
    rows.free.append(1)
    copy = lambda tree: jax.tree.map(np.array, tree)
    before = copy((rows._state, rows._batch))
    rows.place(9, [5] * 40, 9)
    after = copy((rows._state, rows._batch))
    axes = rows._axes
    for old, new, axis in zip(
        jax.tree.leaves(before), jax.tree.leaves(after),
        (*axes.state, *axes.batch), strict=True,
    ):  # fmt: skip
        if axis < 0:
            np.testing.assert_array_equal(old, new)
            continue
        for row in (0, 2):
            a, b = np.take(old, row, axis), np.take(new, row, axis)
            np.testing.assert_array_equal(a, b)
    state = after[0]
    assert state.tokens.count.tolist()[1] == state.cache.length[1] + 1 == 40
    assert _unflatten(rows._state, axes.state).cache.length == 0


def test_a_size_is_compiled_once_and_the_cache_grows():
    target = counting_target(bigram_target(TABLE[::-1], whole_context=True))
    long = RNG.integers(0, VOCAB, 200).tolist()
    prompts = [*PROMPTS[:3], long, *PROMPTS[3:5]]
    options = {"max_new_tokens": 12, "stop_ids": (), "temperature": 1.0}
    found = dict(serve(target, prompts, batch=2, sync_every=4, **options))
    for index, prompt in enumerate(prompts):
        one = generate(target, prompt, seed=index, **options)
        assert found[index].tokens.tolist() == one.tokens.tolist()
    sizes = {}
    for capacity in (128, 512):
        rules = loop.Rules(EXACT, False, capacity, 0, trace=True)
        run = loop.runner(target, no_drafter(), rules)
        sizes[capacity] = run.advance._cache_size()
    assert sizes == {128: 1, 512: 1}


@pytest.mark.medium
def test_a_transformer_with_penalties_and_stop_strings():
    vocabulary = tiny_vocabulary()
    model = tiny_model(vocab_size=vocabulary.size)
    texts = ["the cat", "that is", "on the log", "a"]
    options = {
        "vocabulary": vocabulary, "max_new_tokens": 16, "temperature": 1.0,
        "stop_strings": ["a", "t"], "repetition_penalty": 1.1, "logprobs": True,
        "drafter": prompt_lookup(3),
    }  # fmt: skip
    found = dict(serve(model, texts, batch=2, sync_every=3, seed=3, **options))
    for index, text in enumerate(texts):
        one = generate(model, text, seed=3 + index, **options)
        assert found[index].text == one.text
        assert found[index].tokens.tolist() == one.tokens.tolist()
        assert found[index].finish_reason == one.finish_reason
        assert found[index].stats.calls == one.stats.calls
        np.testing.assert_allclose(found[index].logprobs, one.logprobs, atol=1e-4)


def test_a_cache_that_starts_large_does_not_grow():
    found = dict(serve(TARGET, PROMPTS, batch=3, seed=5, capacity=300, **OPTIONS))
    for index, expected in enumerate(alone()):
        assert found[index].tokens.tolist() == expected.tokens.tolist()
    rules = loop.Rules(EXACT, True, 512, 0, trace=True)
    assert loop.runner(TARGET, no_drafter(), rules).advance._cache_size() == 1
    small = loop.Rules(EXACT, True, 256, 0, trace=True)
    assert loop.runner(TARGET, no_drafter(), small).advance._cache_size() == 0


def test_nothing_comes_of_nothing():
    assert list(serve(TARGET, [], **OPTIONS)) == []


def test_prompts_are_read_as_rows_get_free():
    read = []

    def endless():
        for index in range(10**6):
            read.append(index)
            yield [index % VOCAB]

    results = serve(TARGET, endless(), batch=2, sync_every=1, max_new_tokens=3)
    next(results)
    results.close()
    assert len(read) == 2
