"""The merge engine against a recount from scratch, and against a foreign trainer."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.text import PairMerge, PairMerger

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=14), max_size=5)


def recount(rows, times, overlaps, good):
    """Count and first place of every pair that may merge."""
    counts, first = {}, {}
    for row, weight in zip(rows, times):
        last = {}
        for place, pair in enumerate(itertools.pairwise(row)):
            if not good(*pair):
                continue
            first.setdefault(pair, len(first))
            if overlaps or last.get(pair, -2) < place - 1:
                counts[pair] = counts.get(pair, 0) + weight
                last[pair] = place
    return counts, first


def replaced(row, pair, new):
    out, place = [], 0
    while place < len(row):
        if tuple(row[place : place + 2]) == pair:
            out.append(new)
            place += 2
        else:
            out.append(row[place])
            place += 1
    return out


def naive(rows, times, ties, overlaps, good, combine, min_count):
    """The trace and the rows after each merge, recounting every time."""
    rows = [list(row) for row in rows]
    while True:
        counts, first = recount(rows, times, overlaps, good)
        counts = {pair: n for pair, n in counts.items() if n >= min_count}
        if not counts:
            return
        order = first if ties == "first" else {pair: pair for pair in counts}
        best = min((-count, order[pair], pair) for pair, count in counts.items())[-1]
        new = combine(*best)
        rows = [replaced(row, best, new) for row in rows]
        yield PairMerge(*best, new, counts[best]), rows


class Spelling:
    """Symbols that are equal when they spell the same: (ab)c is a(bc)."""

    def __init__(self):
        self.names = ["a", "b", "c", "d"]

    def combine(self, left, right):
        name = self.names[left] + self.names[right]
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def good(self, left, right):
        name = self.names[left] + self.names[right]
        return "dc" not in name and len(name) < 6


@given(
    rows=ROWS,
    ties=st.sampled_from(["ids", "first"]),
    overlaps=st.booleans(),
    spelled=st.booleans(),
    min_count=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_equals_a_recount_from_scratch(rows, ties, overlaps, spelled, min_count, seed):
    times = np.random.default_rng(seed).integers(1, 3, len(rows)).tolist()
    mine, other = Spelling(), Spelling()
    fresh = itertools.count(max(itertools.chain(*rows), default=-1) + 1)
    if spelled:
        rules = {"allowed": mine.good, "combine": mine.combine}
        good, combine = other.good, other.combine
    else:
        rules, good, combine = {}, lambda *_: True, lambda *_: next(fresh)
    merger = PairMerger(
        rows, multiplicities=times, ties=ties, overlaps=overlaps,
        min_count=min_count, **rules,
    )  # fmt: skip
    for step, now in naive(rows, times, ties, overlaps, good, combine, min_count):
        assert next(merger) == step
        assert [row.tolist() for row in merger.sequences()] == now
        assert merger.counts() == recount(now, times, overlaps, good)[0]
    assert next(merger, None) is None


@given(rows=ROWS)
def test_starts_tell_the_first_piece_of_every_symbol(rows):
    merger = PairMerger(rows)
    sizes = dict.fromkeys(range(4), 1)
    for step in itertools.islice(merger, 3):
        sizes[step.new] = sizes[step.left] + sizes[step.right]
    for row, starts, given_row in zip(merger.sequences(), merger.starts(), rows):
        lengths = [sizes[symbol] for symbol in row.tolist()]
        assert starts.tolist() == [0, *np.cumsum(lengths)][: len(row)]
        assert sum(lengths) == len(given_row)


def test_ties_go_to_smaller_ids_or_to_the_first_seen():
    rows = [[2, 3], [0, 1]]
    assert next(PairMerger(rows)).left == 0
    assert next(PairMerger(rows, ties="first")).left == 2


def test_first_is_read_off_the_sequences_as_they_stand():
    """A pair that lost its first place and gained a late one is no longer first."""
    z, s, d, q, r, a, b = range(7)
    rows = [[z, s, d], [q, r], [s, d], [q, r], [a, b, d]]
    rows += [[z, s]] * 4 + [[a, b]] * 3
    merger = PairMerger(
        rows, ties="first", combine=lambda *pair: {(a, b): s}.get(pair, 10 + pair[0])
    )
    steps = [next(merger)[:2] for _ in range(4)]
    assert steps == [(z, s), (a, b), (q, r), (s, d)]


@pytest.mark.parametrize("overlaps, count", [(True, 4), (False, 2)])
def test_a_run_of_equals(overlaps, count):
    merger = PairMerger([[7] * 5], overlaps=overlaps)
    assert next(merger).occurrences == count
    assert merger.sequences()[0].tolist() == [8, 8, 7]


def test_lengths_stop_merges():
    merger = PairMerger([[0, 1] * 8], lengths=[1, 2], max_length=6)
    assert {step.new for step in merger} == {2, 3}
    assert merger.sequences()[0].tolist() == [3, 3, 3, 3]
    assert merger.counts() == {}


def test_predicate_is_asked_once_a_pair():
    asked = []
    list(PairMerger([[0, 1, 0, 1], [1, 0]], allowed=lambda *p: asked.append(p) or True))
    assert len(asked) == len(set(asked)) > 2


def test_nothing_to_merge():
    assert list(PairMerger([])) == []
    merger = PairMerger([[], [5], []])
    assert list(merger) == []
    assert [row.tolist() for row in merger.sequences()] == [[], [5], []]


@given(st.lists(st.text("abcd", max_size=12), min_size=1, max_size=12))
def test_merges_are_those_of_the_tokenizers_trainer(words):
    letters = sorted(set("".join(words)) or {"a"})
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("|", "removed")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(["|".join(words)], trainer)
    expected = json.loads(tokenizer.to_str())["model"]["merges"]

    names = list(letters)

    def combine(left, right):
        name = names[left] + names[right]
        if name not in names:
            names.append(name)
        return names.index(name)

    rows = [[letters.index(letter) for letter in word] for word in words]
    steps = itertools.islice(PairMerger(rows, combine=combine), len(expected))
    got = [[names[step.left], names[step.right]] for step in steps]
    assert got == [list(pair) for pair in expected]


@pytest.mark.parametrize(
    "rows, options, name",
    [
        ([[0, -1]], {}, "sequences"),
        ([[0, 2**31]], {}, "sequences"),
        ([[0]], {"ties": "last"}, "ties"),
        ([[0]], {"min_count": 0}, "min_count"),
        ([[0]], {"multiplicities": [1, 1]}, "multiplicities"),
        ([[0]], {"multiplicities": [0]}, "multiplicities"),
        ([[0]], {"lengths": [1]}, "max_length"),
        ([[0]], {"max_length": 3}, "max_length"),
        ([[0, 1]], {"lengths": [1], "max_length": 3}, "lengths"),
        ([[0]], {"lengths": [1], "max_length": 0}, "max_length"),
    ],
)
def test_bad_input_is_named(rows, options, name):
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        PairMerger(rows, **options)


def test_symbols_are_integers_in_a_row():
    for rows in ([[0.5]], [[[1, 2]]], ["ab"]):
        with pytest.raises((ArgumentTypeError, TypeError), match="sequences"):
            PairMerger(rows)


def test_the_merged_symbol_is_neither_of_the_two():
    with pytest.raises(ArgumentError, match=r"^combine: "):
        next(PairMerger([[0, 1]], combine=lambda left, right: left))
