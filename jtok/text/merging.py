"""Merging the most frequent adjacent pair, again and again, with exact ties.

One engine for the training of BPE, for merging the tokens of a batch, and for n-gram
lexicons. Pair counts are kept up to date in linked lists, so a run costs
O(symbols log symbols) in total, however many merges it makes.
"""

import heapq
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, Integer

from jtok.errors import ArgumentTypeError, check

__all__ = ["PairMerge", "PairMerger"]

_LIMIT = 2**31  # Ids fit into int32, and a pair of them into one integer.


class PairMerge(NamedTuple):
    """One merge.

    Attributes:
      left: id of the left symbol.
      right: id of the right symbol.
      new: id of what replaces the two.
      occurrences: how often the pair stood, times the sequences' multiplicities.
    """

    left: int
    right: int
    new: int
    occurrences: int


class PairMerger:
    """Merges the most frequent adjacent pair of symbols, one pair a step.

    A step replaces the best pair everywhere, left to right and without overlaps. Best
    is the largest count. Ties go to the smaller pair of ids (left, then right), or,
    with `ties="first"`, to the pair that is met first when the sequences as they
    stand are read in order, left to right.

    Host side, pure Python: about a million symbols in a few seconds.

    Args:
      sequences: symbols of each sequence, ids `0 <= id < 2**31`; no pair spans two.
      multiplicities: how often each sequence counts, `>= 1`; None is once.
      ties: `"ids"` or `"first"`.
      overlaps: whether overlapping occurrences all count, as in the BPE trainer of
        `tokenizers`: `a a a` holds `(a, a)` twice. Otherwise it counts as often as
        it would be replaced: once.
      allowed: `(left, right) -> bool`, asked once a pair; None allows all.
      combine: `(left, right) -> id` of the merged symbol, asked once a merge. It may
        name a symbol that exists; None gives each merge the next unused id.
      min_count: a pair with fewer occurrences is never merged.
      lengths: length of the symbol of each id of the input; needs `max_length`.
      max_length: no merge makes a symbol that is longer than this.

    Raises:
      ArgumentError: ids, multiplicities, lengths or options out of range; the
        message says which.
      ArgumentTypeError: a sequence that is not one row of integers.

    Source: Sennrich et al. 2016, arXiv 1508.07909, section 3.2; Feher et al. 2024,
    arXiv 2411.18553, Algorithm 1 (`ties="first"`).

    Example:
      >>> merger = PairMerger([[0, 1, 0, 1, 2]])
      >>> next(merger)
      PairMerge(left=0, right=1, new=3, occurrences=2)
      >>> merger.sequences()
      [array([3, 3, 2], dtype=int32)]
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int] | Integer[np.ndarray, " symbols"]],
        *,
        multiplicities: Sequence[int] | Integer[np.ndarray, " sequences"] | None = None,
        ties: Literal["ids", "first"] = "ids",
        overlaps: bool = True,
        allowed: Callable[[int, int], bool] | None = None,
        combine: Callable[[int, int], int] | None = None,
        min_count: int = 1,
        lengths: Sequence[int] | Integer[np.ndarray, " ids"] | None = None,
        max_length: int | None = None,
    ):
        check(ties in ("ids", "first"), "ties", ties, "'ids' or 'first'")
        check(min_count >= 1, "min_count", min_count, "at least 1")
        rows = [_row(sequence) for sequence in sequences]
        flat = np.concatenate([*rows, np.zeros(0, np.int64)])
        times = _multiplicities(multiplicities, len(rows))
        self._bounds = np.cumsum([0, *(len(row) for row in rows)]).tolist()
        self._by_position = ties == "first"
        self._overlaps = overlaps
        self._min_count = min_count
        self._combine = combine
        self._unused = int(flat.max(initial=-1)) + 1
        self._length, self._max_length = _lengths(lengths, max_length, self._unused)
        self._predicate = allowed
        self._allowed: dict[tuple[int, int], bool] = {}
        self._symbol: list[int] = flat.tolist()  # -1 where a left neighbour took it
        self._weight: list[int] = np.repeat(times, [len(row) for row in rows]).tolist()
        self._next, self._previous = _links(self._bounds)
        # Of pairs that may merge: count, where they stood (stale ones are skipped),
        # and a heap whose entries are never worse than the truth.
        self._count: dict[tuple[int, int], int] = {}
        self._places: dict[tuple[int, int], list[int]] = {}
        self._heap: list[tuple[int, int, tuple[int, int]]] = []
        self._grown: set[tuple[int, int]] = set()
        self._fill(flat)

    def __iter__(self) -> Iterator[PairMerge]:
        """Merges until no pair is left that may be merged."""
        return self

    def __next__(self) -> PairMerge:
        """Merges the best pair everywhere.

        Raises:
          StopIteration: none is left.
        """
        pair = self._best()
        if pair is None:
            raise StopIteration
        count = self._count[pair]
        new = self._new_symbol(pair)
        self._replace(pair, new)
        self._push_grown()
        return PairMerge(*pair, new, count)

    def sequences(self) -> list[Int32[np.ndarray, " symbols"]]:
        """The sequences as they stand.

        Returns:
          One `[symbols]` int32 array for each that was given.
        """
        return [
            np.asarray([self._symbol[p] for p in row], np.int32)
            for row in self._standing()
        ]

    def starts(self) -> list[Int32[np.ndarray, " symbols"]]:
        """Where each symbol that stands began.

        Returns:
          `[symbols]` int32 for each sequence: the 0-based index of its first piece
          in the sequence that was given.
        """
        return [
            np.asarray(row, np.int32) - np.int32(low)
            for row, low in zip(self._standing(), self._bounds)
        ]

    def counts(self) -> dict[tuple[int, int], int]:
        """How often every pair that may be merged stands there, below `min_count` too.

        Returns:
          Count by `(left, right)`, without zeros.
        """
        return {pair: count for pair, count in self._count.items() if count}

    def _standing(self) -> Iterator[list[int]]:
        for low, high in itertools.pairwise(self._bounds):
            yield [p for p in range(low, high) if self._symbol[p] >= 0]

    def _fill(self, flat: np.ndarray) -> None:
        """Counts all pairs of the input at once."""
        inside = np.asarray(self._next, np.int64) >= 0
        where = np.flatnonzero(inside)
        keys = flat[where] * _LIMIT + flat[where + 1]
        order = np.argsort(keys, kind="stable")
        where, keys = where[order], keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        for low, high in zip(first, [*first[1:], len(keys)]):
            pair = divmod(int(keys[low]), _LIMIT)
            if self._may_merge(pair):
                self._places[pair] = where[low:high].tolist()
                self._count[pair] = self._initial_count(pair)
                self._grown.add(pair)
        self._push_grown()

    def _initial_count(self, pair: tuple[int, int]) -> int:
        total, last, parity = 0, -2, 0
        skip = not self._overlaps and pair[0] == pair[1]
        for place in self._places[pair]:
            parity = 1 - parity if place == last + 1 else 1
            last = place
            total += self._weight[place] if parity or not skip else 0
        return total

    def _may_merge(self, pair: tuple[int, int]) -> bool:
        known = self._allowed.get(pair)
        if known is None:
            known = self._max_length is None or (
                self._length[pair[0]] + self._length[pair[1]] <= self._max_length
            )
            if known and self._predicate is not None:
                known = bool(self._predicate(*pair))
            self._allowed[pair] = known
        return known

    def _new_symbol(self, pair: tuple[int, int]) -> int:
        if self._combine is None:
            new = self._unused
        else:
            new = operator.index(self._combine(*pair))
            good = 0 <= new < _LIMIT and new not in pair
            check(good, "combine", new, "an id that is neither the left nor the right")
        self._unused = max(self._unused, new + 1)
        if self._max_length is not None:
            self._length[new] = self._length[pair[0]] + self._length[pair[1]]
        return new

    def _push_grown(self) -> None:
        for pair in self._grown:
            self._push(pair)
        self._grown.clear()

    def _push(self, pair: tuple[int, int]) -> None:
        count = self._count[pair]
        if count >= self._min_count:
            place = self._first(pair) if self._by_position else 0
            heapq.heappush(self._heap, (-count, place, pair))

    def _best(self) -> tuple[int, int] | None:
        while self._heap:
            count, place, pair = self._heap[0]
            same = -count == self._count.get(pair, 0)
            if same and (not self._by_position or place == self._first(pair)):
                return pair
            heapq.heappop(self._heap)
            if pair in self._count:
                self._push(pair)
        return None

    def _stands(self, pair: tuple[int, int], place: int) -> bool:
        if self._symbol[place] != pair[0]:
            return False
        after = self._next[place]
        return after >= 0 and self._symbol[after] == pair[1]

    def _first(self, pair: tuple[int, int]) -> int:
        """First place of a pair that stands somewhere; `_places` are a heap."""
        places = self._places[pair]
        while not self._stands(pair, places[0]):
            heapq.heappop(places)
        return places[0]

    def _replace(self, pair: tuple[int, int], new: int) -> None:
        left, right = pair
        symbol, following, previous = self._symbol, self._next, self._previous
        for place in sorted(set(self._places.pop(pair))):
            if not self._stands(pair, place):
                continue
            taken = following[place]
            before, after = previous[place], following[taken]
            if before >= 0:
                self._remove((symbol[before], left), before, False)
            if after >= 0:
                beside = (right, symbol[after])
                self._remove(beside, taken, beside == pair)
            self._count[pair] -= self._weight[place]
            symbol[place], symbol[taken] = new, -1
            following[place] = -1  # The two sides are joined one after the other.
            if before >= 0:
                self._add((symbol[before], new), before)
            following[place] = after
            if after >= 0:
                previous[after] = place
                self._add((new, symbol[after]), place)
        del self._count[pair]

    def _remove(self, pair: tuple[int, int], place: int, merged: bool) -> None:
        """Uncounts the pair at `place`; `merged` if it is the one being merged."""
        if pair not in self._count:
            return
        equals = pair[0] == pair[1] and not self._overlaps
        if not equals or (not merged and self._joins_odd_runs(place)):
            self._count[pair] -= self._weight[place]

    def _add(self, pair: tuple[int, int], place: int) -> None:
        """Counts the pair that now stands at `place`."""
        if pair not in self._count:
            if not self._may_merge(pair):
                return
            self._count[pair] = 0
            self._places[pair] = []
        if self._by_position:
            heapq.heappush(self._places[pair], place)
        else:
            self._places[pair].append(place)
        if self._overlaps or pair[0] != pair[1] or self._joins_odd_runs(place):
            self._count[pair] += self._weight[place]
        self._grown.add(pair)

    def _joins_odd_runs(self, place: int) -> bool:
        """Whether the pair of equals at `place` adds one to its run's replacements.

        A run of `n` equals is replaced `n // 2` times, so joining two runs adds one
        where both lengths are odd.
        """
        symbol, odd = self._symbol[place], [False, False]
        steps = ((place, self._previous), (self._next[place], self._next))
        for side, (at, step) in enumerate(steps):
            while at >= 0 and self._symbol[at] == symbol:
                odd[side] = not odd[side]
                at = step[at]
        return odd[0] and odd[1]


def _row(sequence: Any) -> np.ndarray:
    row = np.asarray(sequence)
    if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
        raise ArgumentTypeError(
            f"sequences: got {sequence!r}, expected one row of integers each."
        )
    inside = row.size == 0 or (row.min() >= 0 and row.max() < _LIMIT)
    check(inside, "sequences", sequence, "ids 0 <= id < 2**31")
    return row.astype(np.int64)


def _multiplicities(given: Sequence[int] | np.ndarray | None, count: int) -> np.ndarray:
    if given is None:
        return np.ones(count, np.int64)
    times = np.asarray(given, np.int64)
    good = times.shape == (count,) and (count == 0 or times.min() >= 1)
    check(good, "multiplicities", given, f"{count} integers of at least 1")
    return times


def _lengths(
    lengths: Sequence[int] | np.ndarray | None, most: int | None, ids: int
) -> tuple[dict[int, int], int | None]:
    both = (lengths is None) == (most is None)
    check(both, "max_length", most, "None without lengths, a length with them")
    if lengths is None or most is None:
        return {}, None
    row = np.asarray(lengths, np.int64)
    good = row.ndim == 1 and len(row) >= ids
    check(good, "lengths", row.shape, f"one length for each of {ids} ids")
    check(most >= 1, "max_length", most, "at least 1")
    return dict(enumerate(row.tolist())), most


def _links(bounds: list[int]) -> tuple[list[int], list[int]]:
    """Next and previous position of each, -1 at the ends of sequences."""
    following = np.arange(1, bounds[-1] + 1)
    previous = following - 2
    filled = [(low, high) for low, high in itertools.pairwise(bounds) if high > low]
    following[[high - 1 for _, high in filled]] = -1
    previous[[low for low, _ in filled]] = -1
    return following.tolist(), previous.tolist()
