"""What holds for every drafter: it changes the number of calls and nothing else.

Under a rule that promises less, what holds is that a row's tokens are those of a longer
run, cut; their law has tests of its own.

The target is a table whose logits depend on all tokens that a node sees and on their
positions, so that a wrong cache, mask or position changes what is emitted. It counts
its calls itself.
"""

import functools
import itertools

import numpy as np
import pytest

from jtok.decode import EXACT, generate, loop, rejection
from jtok.errors import ArgumentError
from jtok.testing import bigram_target, counting_target, recurrent_target, steps
from tests.contracts.drafters import DRAFTERS, TABLE, VOCAB

PROMPTS = [[3], [1, 2, 3, 1, 2], [7] * 9, [4, 5, 6, 4, 5, 8, 9, 4, 5, 6, 4]]
# A row of the sampled batch is decoded by arg-max.
TEMPERATURES = {"greedy": 0.0, "sampled": [0.0, 1.0, 0.6, 1.5]}
BUDGET = 24
# Of the pairs of a mode and a drafter some are fast; the others share their code.
FAST = {
    "greedy": ("none", "oracle"),
    "sampled": (
        "none",
        "prompt-lookup",
        "recycling-inherited",
        "recycling-prefill",
        "oracle",
        "adversary",
        "random",
        "draft-model-own-tree",
    ),
}
MEDIUM = {
    "greedy": ("prompt-lookup", "recycling", "random", "draft-model"),
    "sampled": DRAFTERS,
}

# Their siblings walk the same code.
SLOW = (
    "prompt-lookup-2-of-2",
    "recycling-width-1",
    "recycling-star",
    "recycling-inherited-per-row",
    "extra-slots-random",
    "draft-model-chains-only",
    "draft-model-own",
    "random-sequential",
    "mtp-linear",
    "heads-linear",
    "heads-dynamic",
    "future-chain-2",
    "future-own",
    "chimera-chain",
    "sorted-own",
)

TARGET = counting_target(bigram_target(TABLE, whole_context=True))


def decode(mode, name="none", *, max_new_tokens=BUDGET, stop_ids=()):
    drafter, state = made(mode, name)
    return generate(
        TARGET, PROMPTS, max_new_tokens=max_new_tokens,
        temperature=TEMPERATURES[mode], drafter=drafter, drafter_state=state,
        rule=DRAFTERS[name].rule, stop_ids=stop_ids, gaps=True,
    )  # fmt: skip


@functools.lru_cache
def plain(mode):
    # More than any test emits, so that an oracle never runs dry.
    return [row.tolist() for row in decode(mode, max_new_tokens=40).tokens]


@functools.lru_cache
def texts(mode, name):
    """What a drafter's runs emit: plain decoding, or a long run under its rule."""
    if mode == "greedy" or DRAFTERS[name].guarantee == "token":
        return plain(mode)
    return [row.tolist() for row in decode(mode, name, max_new_tokens=40).tokens]


def rule_of(mode, name):
    case = DRAFTERS[name]
    if case.rule is None and mode == "sampled" and case.guarantee == "distribution":
        return rejection()
    return case.rule or EXACT


@functools.lru_cache
def made(mode, name):
    case = DRAFTERS[name]
    truth = [] if name == "none" else plain(mode)
    state = None if case.state is None else case.state(len(PROMPTS), VOCAB)
    return case.make(truth, VOCAB), state


@functools.lru_cache
def walk(mode, name):
    """The states after the prompt and after every step."""
    drafter, state = made(mode, name)
    return list(
        steps(
            TARGET, None, PROMPTS, max_new_tokens=BUDGET, drafter=drafter,
            drafter_state=state, temperature=TEMPERATURES[mode],
            rule=rule_of(mode, name),
        )
    )  # fmt: skip


def pair(mode, name):
    marks = ()
    if name not in FAST[mode]:
        slow = name in SLOW or name not in MEDIUM[mode]
        marks = pytest.mark.slow if slow else pytest.mark.medium
    return pytest.param(mode, name, marks=marks)


EVERY = pytest.mark.parametrize(
    "mode, name", [pair(mode, name) for mode in TEMPERATURES for name in DRAFTERS]
)


def cut(rows, stop):
    """Rows up to and including the first stop id."""
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def as_lists(out):
    return [row.tolist() for row in out.tokens]


@EVERY
def test_tokens_are_those_of_plain_decoding(mode, name):
    out = decode(mode, name)
    assert as_lists(out) == [row[:BUDGET] for row in texts(mode, name)]
    assert out.finish_reason == ["length"] * len(PROMPTS)
    assert out.guarantee == rule_of(mode, name).guarantee
    # The first row takes the arg-max in both modes, under every rule.
    assert as_lists(out)[0] == plain(mode)[0][:BUDGET]


@EVERY
def test_budgets_are_exact(mode, name):
    for budgets in ([1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 4, 2]):
        out = decode(mode, name, max_new_tokens=budgets)
        expected = [row[:n] for row, n in zip(texts(mode, name), budgets, strict=True)]
        assert as_lists(out) == expected
        assert out.stats.row_emitted.tolist() == budgets


@EVERY
def test_nothing_follows_a_stop_id(mode, name):
    """Each of the tokens, so that some stop inside a path and some as its end."""
    full = [row[:BUDGET] for row in texts(mode, name)]
    for stop in range(0, VOCAB, 2):
        out = decode(mode, name, stop_ids=[stop])
        assert as_lists(out) == cut(full, stop)
        reasons = ["stop" if stop in row else "length" for row in full]
        assert out.finish_reason == reasons


@EVERY
def test_counts_agree_with_the_counter_of_the_target(mode, name):
    stats, last = decode(mode, name).stats, walk(mode, name)[-1]
    prefills = np.array([len(prompt) > 1 for prompt in PROMPTS])
    calls = last.cache.commits - prefills
    np.testing.assert_array_equal(stats.row_calls, calls)
    assert stats.calls == calls.sum()
    fed = [len(prompt) - 1 + BUDGET for prompt in PROMPTS]
    np.testing.assert_array_equal(last.cache.tokens, fed)
    assert stats.emitted == BUDGET * len(PROMPTS) == stats.row_emitted.sum()
    # Every call emits something, and every emitted token stands on a kept node.
    histogram = stats.emitted_per_call
    assert histogram[0] == 0 and histogram.sum() == stats.calls
    assert histogram @ np.arange(len(histogram)) == stats.emitted
    assert stats.node_hits.sum() == stats.emitted
    assert stats.node_hits[0] == stats.calls
    assert stats.prompt_tokens == sum(map(len, PROMPTS))
    assert stats.tokens_per_call >= 1


@EVERY
def test_call_of_tells_which_call_emitted_a_token(mode, name):
    out = decode(mode, name)
    sizes = np.zeros_like(out.stats.emitted_per_call)
    for row, calls in zip(out.call_of, out.stats.row_calls, strict=True):
        emitted = np.bincount(row, minlength=calls)
        assert np.all(np.diff(row) >= 0) and len(emitted) == calls
        sizes += np.bincount(emitted, minlength=len(sizes))
    np.testing.assert_array_equal(sizes, out.stats.emitted_per_call)


@EVERY
def test_the_cache_holds_what_was_emitted_after_every_step(mode, name):
    states = walk(mode, name)
    for state in states:
        cache = state.cache.inner
        np.testing.assert_array_equal(cache.length, state.tokens.count - 1)
        for row, length in enumerate(cache.length):
            held = cache.ids[row, :length]
            np.testing.assert_array_equal(held, state.tokens.ids[row, :length])
            np.testing.assert_array_equal(cache.positions[row, :length], range(length))


@EVERY
def test_a_finished_row_never_changes(mode, name):
    drafter, inherited = made(mode, name)
    states = list(
        steps(
            TARGET, None, PROMPTS, max_new_tokens=[1, 12, 3, 6], drafter=drafter,
            drafter_state=inherited, temperature=TEMPERATURES[mode],
            rule=rule_of(mode, name),
        )
    )  # fmt: skip
    finished = 0
    for before, after in itertools.pairwise(states):
        for row in np.flatnonzero(~before.live):
            finished += 1
            assert not after.live[row]
            for part in ("calls", "call_of", "gaps", "slots", "stopped"):
                pair = getattr(before, part)[row], getattr(after, part)[row]
                np.testing.assert_array_equal(*pair)
            count = before.tokens.count[row]
            assert after.tokens.count[row] == count
            np.testing.assert_array_equal(
                before.tokens.ids[row, :count], after.tokens.ids[row, :count]
            )
            assert after.cache.inner.length[row] == count - 1
    assert finished


@EVERY
def test_other_prompts_reuse_what_was_compiled(mode, name):
    drafter, state = made(mode, name)
    decode(mode, name)
    rules = loop.Rules(rule_of(mode, name), True, 128, 64)
    run = loop.runner(TARGET, drafter, rules)
    sizes = run.start._cache_size(), run.advance._cache_size()
    assert all(sizes)
    generate(
        TARGET, [[1, 2], [9], [8, 8, 8], [5] * 30],
        max_new_tokens=[7, 3, 9, 11], drafter=drafter, drafter_state=state, seed=50,
        temperature=0.0 if mode == "greedy" else 0.9, stop_ids=[2], gaps=True,
        rule=DRAFTERS[name].rule,
    )  # fmt: skip
    assert (run.start._cache_size(), run.advance._cache_size()) == sizes


# Targets that take chains only ------------------------

CHAINS = (
    "none",
    "prompt-lookup",
    "prompt-lookup-2-of-2",
    "prompt-lookup-official",
    "recycling-chain",
    "recycling-root-only",
    "recycling-width-1",
    "draft-model",
    "draft-model-chains-only",
    "draft-model-recurrent",
    "chimera-chain",
    "sorted-chain",
    "oracle",
    "adversary",
    "heads",
    "future",
    "future-chain-2",
)
RECURRENT = recurrent_target(TABLE)


@functools.lru_cache
def recurrent_plain():
    out = generate(
        RECURRENT, PROMPTS, max_new_tokens=40, temperature=[0.0, 1.0, 0.6, 1.5]
    )
    return as_lists(out)


def checksum(ids):
    state = 0
    for token in ids:
        state = (state * 61 + int(token) * 7 + 1) % 997
    return state


def by_kind(*fast):
    names = [name for name, case in DRAFTERS.items() if case.guarantee == "token"]
    medium = pytest.mark.medium
    return pytest.mark.parametrize(
        "name", [n if n in fast else pytest.param(n, marks=medium) for n in names]
    )


@by_kind("prompt-lookup", "oracle", "recycling", "extra-slots", "dynamic-parent")
def test_a_recurrent_target_takes_chains_and_nothing_else(name):
    """Its state after every step is that of the tokens so far."""
    truth = recurrent_plain()
    drafter = DRAFTERS[name].make(truth, VOCAB)
    if name not in CHAINS:
        either = r"drafter: .* prompt_lookup\(\)|takes chains only"
        with pytest.raises(ArgumentError, match=either):
            generate(RECURRENT, PROMPTS, max_new_tokens=BUDGET, drafter=drafter)
        return
    states = steps(
        RECURRENT, None, PROMPTS, max_new_tokens=BUDGET, drafter=drafter,
        temperature=TEMPERATURES["sampled"],
    )  # fmt: skip
    for state in states:
        lengths = state.tokens.count - 1
        np.testing.assert_array_equal(state.cache.length, lengths)
        for row, length in enumerate(lengths):
            held = checksum(state.tokens.ids[row, :length])
            assert state.cache.state[row] == held
    for row, prompt in enumerate(PROMPTS):
        emitted = state.tokens.ids[row, len(prompt) : state.tokens.count[row]]
        assert emitted.tolist() == truth[row][:BUDGET]
    if name in ("prompt-lookup", "oracle"):
        assert state.emitted_per_call[2:].sum() > 0


@pytest.mark.medium
@pytest.mark.parametrize(
    "name",
    # A recurrent draft model keeps no ids to look at.
    [n for n in DRAFTERS if n.startswith("draft-model") and "recurrent" not in n],
)
def test_a_draft_model_has_seen_what_was_committed(name):
    """After every step, in every row: those tokens, at their places, and no draft."""
    for state in walk("sampled", name):
        held = state.drafter.cache
        np.testing.assert_array_equal(held.length, state.tokens.count - 1)
        np.testing.assert_array_equal(state.drafter.length, held.length)
        for row, length in enumerate(held.length):
            seen = state.tokens.ids[row, :length]
            np.testing.assert_array_equal(held.ids[row, :length], seen)
            np.testing.assert_array_equal(held.positions[row, :length], range(length))


# How many tokens a call can give ------------------------


@pytest.mark.parametrize("mode", TEMPERATURES)
def test_the_oracle_emits_a_whole_chain_in_every_call(mode):
    stats = decode(mode, "oracle").stats
    assert stats.row_calls.tolist() == [BUDGET // 4] * len(PROMPTS)
    assert stats.emitted_per_call.tolist() == [0, 0, 0, 0, stats.calls]
    assert stats.accepted_by_depth.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "adversary",
        pytest.param("recycling-root-only", marks=pytest.mark.medium),
    ],
)
def test_what_is_never_right_emits_one_token_in_every_call(name):
    stats = decode("sampled", name).stats
    assert stats.row_calls.tolist() == [BUDGET] * len(PROMPTS)
    assert stats.node_hits[1:].sum() == 0


@pytest.mark.medium
def test_a_star_emits_at_most_two_tokens_in_a_call():
    histogram = decode("sampled", "recycling-star").stats.emitted_per_call
    assert len(histogram) == 3 and histogram[2] > 0


@pytest.mark.parametrize(
    "name",
    [
        "recycling-inherited",
        "random",
        "prompt-lookup",
        *(
            pytest.param(name, marks=pytest.mark.medium)
            for name in (
                "extra-slots",
                *(n for n in DRAFTERS if n[:3] in ("dra", "fut")),
            )
        ),
    ],
)
def test_some_drafts_are_right(name):
    """Else the suite would test nothing but roots."""
    stats = decode("sampled", name).stats
    assert stats.tokens_per_call > 1.05
    assert stats.emitted_per_call[3:].sum() > 0


@pytest.mark.medium
def test_a_tree_as_data_is_the_same_tree():
    static = walk("sampled", "recycling-inherited")[-1]
    as_data = walk("sampled", "dynamic-parent")[-1]
    np.testing.assert_array_equal(static.calls, as_data.calls)
    np.testing.assert_array_equal(static.node_hits, as_data.node_hits)


@pytest.mark.medium
def test_extra_slots_change_nothing_but_what_is_seen():
    with_extra = walk("sampled", "extra-slots")[-1]
    without = walk("sampled", "recycling-prefill")[-1]
    np.testing.assert_array_equal(with_extra.calls, without.calls)
    np.testing.assert_array_equal(with_extra.drafter.inner.table, without.drafter.table)
    # The last slot of the last call saw the tokens, the root and both mask tokens.
    for row, count in enumerate(with_extra.tokens.count):
        ids = with_extra.tokens.ids[row]
        start = count - np.count_nonzero(
            with_extra.call_of[row, :count] == with_extra.calls[row] - 1
        )
        seen = [*ids[:start], 0, 0]
        sum_of = sum((t * 31 + p * 17 + t * p * 7) % 997 for p, t in enumerate(seen))
        expected = np.mean(TABLE[0] + TABLE[sum_of % VOCAB])
        assert with_extra.drafter.seen[row, 1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.medium
def test_a_row_that_gives_up_stops_drafting():
    """From then on it emits one token a call, however its batch mates fare."""
    after_giving_up = 0
    for before, after in itertools.pairwise(walk("sampled", "recycling-gives-up")):
        old = before.drafter
        given_up = (old.calls >= 2) & (old.emitted < 1.5 * old.calls)
        rows = given_up & before.live
        emitted = after.tokens.count - before.tokens.count
        assert np.all(emitted[rows] == 1)
        # Once no live row drafts, a call has a root and nothing else.
        nodes = 1 if np.all(given_up | ~before.live) else 8
        np.testing.assert_array_equal(after.slots - before.slots, nodes * before.live)
        after_giving_up += rows.sum()
    assert after_giving_up
