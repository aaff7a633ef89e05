"""Drafts that the host finds between steps."""

import numpy as np
import pytest

from jtok.decode import generate, host_drafter, loop, serve
from jtok.decode.host import _merged
from jtok.errors import ArgumentError
from jtok.testing import bigram_target, tiny_model

TABLE = np.random.default_rng(4).normal(size=(8, 8)).astype(np.float32) * 2
TARGET = bigram_target(TABLE, whole_context=True)
PROMPTS = [[3], [1, 2, 3, 1, 2], [7] * 9]


def knowing(continuations):
    """Looks a row up among whole texts, as a data store would."""

    def find(ids):
        texts = [t for t in continuations if t[: len(ids)] == ids.tolist()]
        right = [text[len(ids) :] for text in texts]
        wrong = [[(path[0] + 1) % 8] for path in right if path]
        return wrong + right

    return find


@pytest.mark.parametrize("temperature", [0.0, [0.0, 1.0, 0.6]])
def test_one_stop_a_step_and_the_same_tokens(temperature):
    options = {"max_new_tokens": 12, "temperature": temperature}
    plain = generate(TARGET, PROMPTS, **options)
    texts = [p + t.tolist() for p, t in zip(PROMPTS, plain.tokens, strict=True)]
    out = generate(
        TARGET, PROMPTS, drafter=host_drafter(knowing(texts), depth=3), **options
    )
    for got, want in zip(out.tokens, plain.tokens, strict=True):
        np.testing.assert_array_equal(got, want)
    # The right path comes second; all of it is found all the same.
    assert out.stats.row_calls.tolist() == [3, 3, 3]
    assert out.stats.host_syncs == 3


def test_rows_that_are_done_are_not_asked_about():
    asked = []

    def find(ids):
        asked.append(len(ids))
        return []

    generate(TARGET, PROMPTS, max_new_tokens=[1, 3, 2], drafter=host_drafter(find))
    assert sorted(asked) == sorted([1, 5, 6, 7, 9, 10])


def test_what_the_host_finds_is_not_compiled():
    before = loop._runner.cache_info().misses
    for shift in (1, 2):
        drafter = host_drafter(lambda ids, s=shift: [[s]], nodes=5, depth=2)
        generate(TARGET, [1, 2], max_new_tokens=4, drafter=drafter)
    assert loop._runner.cache_info().misses == before + 1


def test_serving_asks_for_every_row():
    model, prompts = tiny_model(), [[5, 6, 7], [9], [1, 2, 3, 4], [8, 8]]
    drafter = host_drafter(lambda ids: [ids[-4:], ids[-2:]], nodes=6, depth=4)
    out = dict(serve(model, prompts, batch=2, max_new_tokens=9, drafter=drafter))
    for index, prompt in enumerate(prompts):
        want = generate(model, prompt, max_new_tokens=9).tokens
        np.testing.assert_array_equal(out[index].tokens, want)


def test_paths_share_nodes_and_what_does_not_fit_is_left_out():
    made = _merged([[4, 5, 6, 7], [4, 5, 1], [2]], nodes=6, depth=3, vocab_size=8)
    assert made["tokens"].tolist() == [0, 4, 5, 6, 1, 2]
    assert made["parent"].tolist() == [-1, 0, 1, 2, 2, 0]
    assert made["depth"].tolist() == [0, 1, 2, 3, 3, 1]
    assert made["valid"].all()
    small = _merged([[4, 5, 6], [4, 1], [2]], nodes=4, depth=3, vocab_size=8)
    assert small["tokens"].tolist() == [0, 4, 5, 6]
    empty = _merged([], nodes=3, depth=1, vocab_size=8)
    assert empty["valid"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: host_drafter(lambda ids: [], nodes=1), "nodes"),
        (lambda: host_drafter(lambda ids: [], depth=0), "depth"),
        (
            lambda: generate(TARGET, [1], drafter=host_drafter(lambda ids: [[8]])),
            "find: got token 8, expected ids in 0..7",
        ),
    ],
)
def test_bad_input(call, name):
    with pytest.raises(ArgumentError, match=name):
        call()
