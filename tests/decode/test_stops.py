"""Stop strings and streams: what the host sees between chunks of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import Event, generate, stream
from jtok.models import Info, StepOutput, Target
from jtok.testing import oracle_drafter, tiny_vocabulary

TEXT = "the cat é sat on 😀 the mat. that is ü all, the dog"
VOCABULARY = tiny_vocabulary()
IDS = VOCABULARY.encode(TEXT)
STOPS = {
    "within tokens": ("e c",),
    "a character of two tokens": ("é",),
    "a character of four tokens": ("😀",),
    "after a character": (" 😀 t",),
    "the first of several": ("mat", "sat", " on"),
    "one inside another": ("at o", "t"),
    "at the first token": ("t",),
    "never": ("nothing",),
    "at the end": ("dog",),
}


@functools.lru_cache
def script():
    """A target that says the same whatever it is fed; its cache is a length."""
    said = jnp.asarray(np.append(IDS, [0] * 64), jnp.int32)

    def step(params, cache, nodes):
        # A prompt of one token stands at position 0.
        logits = 9.0 * jax.nn.one_hot(said[nodes.positions], VOCABULARY.size)
        return StepOutput(logits), cache

    return Target(
        lambda params, batch, capacity: jnp.zeros(batch, jnp.int32),
        step,
        lambda cache, path, count: cache + count,
        Info(VOCABULARY.size),
        rewind=jnp.minimum,
    )


@functools.lru_cache
def drafter():
    return oracle_drafter([[*IDS.tolist(), *[0] * 64]] * 2, 3)


def decode(speculative=True, **options):
    options = {"max_new_tokens": [len(IDS), 20], "stop_ids": (), **options}
    return generate(
        script(), [[1], [2]], vocabulary=VOCABULARY,
        drafter=drafter() if speculative else None, **options,
    )  # fmt: skip


def end_by_hand(ids, stops):
    """Tokens up to the one that completes a stop string, and the text before it."""
    for count in range(len(ids) + 1):
        text = VOCABULARY.decode(ids[:count])
        found = [(text.find(s), len(s)) for s in stops if s in text]
        if found:
            start, length = min(found)
            return count, text[:start], text[: start + length]
    return len(ids), VOCABULARY.decode(ids), VOCABULARY.decode(ids)


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_string_ends_a_row(name):
    stops = STOPS[name]
    expected = [end_by_hand(IDS, stops), end_by_hand(IDS[:20], stops)]
    out = decode(stop_strings=stops)
    assert [len(row) for row in out.tokens] == [count for count, _, _ in expected]
    assert out.text == [text for _, text, _ in expected]
    for row in out.tokens:
        assert row.tolist() == IDS[: len(row)].tolist()
    with_stop = decode(stop_strings=stops, include_stop=True)
    assert with_stop.text == [text for _, _, text in expected]
    stopped = [any(s in VOCABULARY.decode(row) for s in stops) for row in out.tokens]
    assert out.finish_reason == ["stop" if hit else "length" for hit in stopped]
    if name == "never":
        assert not any(stopped)
    if name == "at the end":
        assert stopped == [True, False]


COUNTS = ("row_calls", "row_emitted", "emitted_per_call", "node_hits")


@pytest.mark.parametrize("every", [1, 5, None])
@pytest.mark.parametrize("speculative", [True, False])
def test_the_surplus_is_taken_back(speculative, every):
    """Everything is as if the budget had ended there."""
    out = decode(speculative, stop_strings="😀", sync_every=every, keep_cache=True)
    counts = [len(row) for row in out.tokens]
    assert counts[0] < len(IDS)
    exact = decode(speculative, max_new_tokens=counts, keep_cache=True)
    for name in COUNTS:
        got, expected = getattr(out.stats, name), getattr(exact.stats, name)
        np.testing.assert_array_equal(got, expected, err_msg=name)
    for name in ("calls", "emitted", "slots", "tokens_per_call"):
        assert getattr(out.stats, name) == getattr(exact.stats, name)
    for a, b in zip(out.call_of, exact.call_of, strict=True):
        np.testing.assert_array_equal(a, b)
    assert out.cache.cache.tolist() == [1 + count - 1 for count in counts]
    assert out.cache.held.tolist() == exact.cache.held.tolist()
    assert out.cache.count.tolist() == [1 + count for count in counts]
    if every is not None:
        assert out.stats.host_syncs == -(-max(exact.stats.row_calls) // every)
    assert out.stats.host_syncs >= 1


def test_a_stop_id_that_comes_first_wins():
    at = 6
    out = decode(stop_strings="😀", stop_ids=[int(IDS[at])])
    first = IDS.tolist().index(int(IDS[at]))
    assert [len(row) for row in out.tokens] == [first + 1] * 2
    assert out.text == [VOCABULARY.decode(IDS[: first + 1])] * 2


# Streams ------------------------


def joined(events, rows=2):
    texts = ["".join(e.text for e in events if e.row == row) for row in range(rows)]
    tokens = [
        np.concatenate([e.tokens for e in events if e.row == row]).tolist()
        for row in range(rows)
    ]
    return texts, tokens


@pytest.mark.parametrize("stops", [None, ("at o", " is"), ("é sat",), ("😀",)])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_a_stream_joined_is_what_generate_returns(stops, every, include):
    if stops is None and include:
        stops = ("nothing",)
    out = decode(stop_strings=stops, include_stop=include)
    events = list(
        stream(
            script(), [[1], [2]], vocabulary=VOCABULARY, drafter=drafter(),
            max_new_tokens=[len(IDS), 20], stop_ids=(), stop_strings=stops,
            include_stop=include, sync_every=every,
        )
    )  # fmt: skip
    texts, tokens = joined(events)
    assert texts == out.text
    assert tokens == [row.tolist() for row in out.tokens]
    # The second row ends within a character, and says so at its end only.
    assert all("\ufffd" not in e.text for e in events if not e.finish_reason)
    for row, reason in enumerate(out.finish_reason):
        mine = [event for event in events if event.row == row]
        assert len(mine) > 1 or every > 1
        assert mine[-1].finish_reason == reason
        assert all(event.finish_reason is None for event in mine[:-1])


def test_characters_come_whole():
    """One token a step: é has two tokens, and comes with its second."""
    events = list(
        stream(
            script(), [1], vocabulary=VOCABULARY, stop_ids=(), sync_every=1,
            max_new_tokens=len(IDS),
        )
    )  # fmt: skip
    told = ""
    for index, event in enumerate(events):
        told += event.text
        whole = VOCABULARY.decode_bytes(IDS[: index + 1])
        assert told == whole.decode(errors="ignore")
    assert told == TEXT and len(events) == len(IDS)


def test_a_stream_may_be_dropped():
    events = stream(
        script(), [1], vocabulary=VOCABULARY, stop_ids=(), sync_every=1,
        max_new_tokens=len(IDS),
    )  # fmt: skip
    first = next(events)
    assert isinstance(first, Event) and first.tokens.tolist() == [IDS[0]]
    events.close()
    assert list(events) == []


def test_without_a_vocabulary_only_tokens_come():
    events = list(stream(script(), [1], max_new_tokens=5, stop_ids=(), sync_every=2))
    assert [event.text for event in events] == ["", "", ""]
    assert [len(event.tokens) for event in events] == [2, 2, 1]


def test_an_end_within_a_character_is_told():
    """What generate returns, U+FFFD included."""
    at = next(i for i in range(len(IDS)) if "\ufffd" in VOCABULARY.decode(IDS[:i]))
    options = {"max_new_tokens": at, "stop_ids": (), "vocabulary": VOCABULARY}
    out = generate(script(), [1], **options)
    events = list(stream(script(), [1], sync_every=1, **options))
    assert joined(events, 1)[0][0] == out.text
    assert out.text.endswith("\ufffd")


def test_a_target_that_cannot_forget_still_stops_exactly():
    target = script()._replace(rewind=None)
    out = generate(
        target, [[1], [2]], vocabulary=VOCABULARY, stop_strings="😀", stop_ids=(),
        max_new_tokens=len(IDS), keep_cache=True,
    )  # fmt: skip
    count = end_by_hand(IDS, ["😀"])[0]
    assert [len(row) for row in out.tokens] == [count] * 2
    # The cache holds more tokens than the text has, and the session says so.
    assert out.cache.held.tolist() == out.cache.cache.tolist()
    assert out.cache.held[0] > out.cache.count[0]
    ids = out.cache.ids[0, : out.cache.held[0]]
    assert ids.tolist() == [1, *IDS.tolist()][: len(ids)]
