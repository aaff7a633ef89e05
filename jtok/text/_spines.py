"""Which two tokens of a merge-only BPE may stand side by side, by their merge trees.

A token is made by a tree of merges. What stands on its right edge while merging runs
are the nodes of its right spine, each from the moment that makes it to the moment that
takes it in; of its left edge likewise. A boundary between two tokens breaks when, at
some moment, a rule joins the two edges.

Moments. The lowest rank goes first, so a rule is applied at its rank; but one of a
lower rank than the merge that made its part possible follows at once. A moment is
therefore a falling stack of merges, compared as tuples. At equal ranks the leftmost
pair goes first, so a merge is written as `rank * _SPAN + place`, where the place is
that of its first letter. Places count from the start of a token, or from the boundary.
"""

import dataclasses
import functools
import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

__all__ = ["Merges", "encode_symbols"]

NEVER = 1 << 60
_SPAN = 1 << 13  # more than twice the letters of a token
_ROWS = 4096  # rows kept of one vocabulary: 128k tokens take 16 kB a row, packed

Moment = tuple[int, ...]


class Tree(NamedTuple):
    """How a token is made: when (from its own start), of what, and its letters."""

    moment: Moment
    left: int
    right: int
    letters: int


def encode_symbols(
    symbols: Iterable[int], rules: dict[tuple[int, int], tuple[int, int]]
) -> list[int]:
    """Merges until no rule applies: the lowest rank first, the leftmost of equals.

    Args:
      symbols: ids of single letters.
      rules: `(left, right) -> (rank, result)`.

    Returns:
      The ids.
    """
    parts = list(symbols)
    get = rules.get
    nothing = (NEVER, -1)
    pairs = [get((parts[i], parts[i + 1]), nothing) for i in range(len(parts) - 1)]
    while pairs:
        best = min(pairs)
        if best[0] == NEVER:
            break
        at = pairs.index(best)
        parts[at : at + 2] = [best[1]]
        del pairs[at]
        if at:
            pairs[at - 1] = get((parts[at - 1], parts[at]), nothing)
        if at < len(pairs):
            pairs[at] = get((parts[at], parts[at + 1]), nothing)
    return parts


@dataclasses.dataclass(frozen=True, eq=False)
class Merges:
    """The rules of a BPE over ids, and what follows from them.

    Attributes:
      size: number of ids.
      letters: id of every single symbol (a byte, or a character), by the symbol.
      rules: `(left, right) -> (rank, result)`.
    """

    size: int
    letters: dict[bytes, int]
    rules: dict[tuple[int, int], tuple[int, int]]

    @functools.cached_property
    def trees(self) -> dict[int, Tree]:
        """The tree of every token that merging makes, by id.

        A token that merging never makes from its own letters is not there.
        """
        trees: dict[int, Tree] = {}
        waiting: list[tuple[Moment, int, int, int]] = []
        made = [((), letter, -1, -1) for letter in self.letters.values()]
        while made or waiting:
            moment, result, left, right = made.pop() if made else heapq.heappop(waiting)
            if result in trees or (
                left >= 0 and _crosses(trees, self.rules, left, right, moment)
            ):
                continue
            start = trees[left].letters if left >= 0 else 0
            letters = start + trees[right].letters if left >= 0 else 1
            trees[result] = Tree(_moved(moment, start), left, right, letters)
            for one, other, rank, whole in self._with(result):
                if one in trees and other in trees and whole not in trees:
                    when = _across(trees, one, other, rank)
                    heapq.heappush(waiting, (when, whole, one, other))
        return trees

    def _with(self, token: int) -> Iterable[tuple[int, int, int, int]]:
        """Rules that a token is a part of: `(left, right, rank, result)`."""
        for rank, right in self._by_left.get(token, ()):
            yield token, right, rank, self.rules[token, right][1]
        for rank, left in self._by_right.get(token, ()):
            yield left, token, rank, self.rules[left, token][1]

    @functools.cached_property
    def reachable(self) -> np.ndarray:
        """`[size]` bool: merging the token's own letters gives the token."""
        known = np.zeros(self.size, bool)
        known[list(self.trees)] = True
        return known

    def pair(self, left: int, right: int) -> bool:
        """Whether two tokens are reachable and stay apart when letters are merged."""
        if not (left in self.trees and right in self.trees):
            return False
        return not _crosses(self.trees, self.rules, left, right, (NEVER,))

    def row(self, left: int) -> np.ndarray:
        """`[size]` bool of `pair(left, .)`; kept, packed, for the last 4096 tokens."""
        return np.unpackbits(self._rows(left), count=self.size).view(bool)

    @functools.cached_property
    def _rows(self) -> Callable[[int], np.ndarray]:
        return functools.lru_cache(maxsize=_ROWS)(self._packed_row)

    def _packed_row(self, left: int) -> np.ndarray:
        if left not in self.trees:
            return np.packbits(np.zeros(self.size, bool))
        tour, spans = self._tour
        change = np.zeros(len(tour) + 1, np.int32)
        for node, until in _spine(self.trees, left, -1):
            for rank, right in self._by_left.get(node, ()):
                if right not in spans:
                    continue
                moment = _across(self.trees, node, right, rank)
                if moment < until:
                    start, end = _taken(spans[right], moment)
                    change[start] += 1
                    change[end] -= 1
        broken = np.zeros(self.size, bool)
        broken[tour] = np.cumsum(change[:-1]) > 0
        return np.packbits(self.reachable & ~broken)

    @functools.cached_property
    def _by_left(self) -> dict[int, list[tuple[int, int]]]:
        table: dict[int, list[tuple[int, int]]] = {}
        for (left, right), (rank, _) in self.rules.items():
            table.setdefault(left, []).append((rank, right))
        return table

    @functools.cached_property
    def _by_right(self) -> dict[int, list[tuple[int, int]]]:
        table: dict[int, list[tuple[int, int]]] = {}
        for (left, right), (rank, _) in self.rules.items():
            table.setdefault(right, []).append((rank, left))
        return table

    @functools.cached_property
    def _tour(
        self,
    ) -> tuple[np.ndarray, dict[int, tuple[int, list[Moment], list[int]]]]:
        """Tokens so ordered that those with a node on their left spine are a range.

        Below a node stand the tokens that it begins, the latest made first, so that
        those made from some moment on are the head of the range. Returned are the
        order, and of each node its place, its children and where each child's ends.
        """
        children: dict[int, list[int]] = {}
        for id_, tree in self.trees.items():
            children.setdefault(tree.left, []).append(id_)
        for below in children.values():
            below.sort(key=lambda id_: (self.trees[id_].moment, id_), reverse=True)
        tour: list[int] = []
        places: dict[int, int] = {}
        ends: dict[int, int] = {}
        stack = [(root, False) for root in children.get(-1, ())]
        while stack:
            id_, done = stack.pop()
            if done:
                ends[id_] = len(tour)
                continue
            places[id_] = len(tour)
            tour.append(id_)
            stack.append((id_, True))
            stack.extend((child, False) for child in reversed(children.get(id_, [])))
        spans = {}
        for id_, place in places.items():
            below = children.get(id_, [])
            moments = [self.trees[child].moment for child in below]
            spans[id_] = (place, moments, [ends[child] for child in below])
        return np.asarray(tour, np.int64), spans


def _taken(
    span: tuple[int, list[Moment], list[int]], moment: Moment
) -> tuple[int, int]:
    """The range of the tour where a node is still on the left edge at a moment."""
    place, moments, ends = span
    low, high = 0, len(moments)  # falling, so that bisect does not serve
    while low < high:
        middle = (low + high) // 2
        if moments[middle] > moment:
            low = middle + 1
        else:
            high = middle
    return place, ends[low - 1] if low else place + 1


def _moved(moment: Moment, by: int) -> Moment:
    return tuple(x + by for x in moment)


def _across(trees: dict[int, Tree], left: int, right: int, rank: int) -> Moment:
    """When a rule joins two nodes, from the boundary between them."""
    start = -trees[left].letters
    ready = max(_moved(trees[left].moment, start), trees[right].moment)
    merge = rank * _SPAN + start
    return (*(x for x in ready if x > merge), merge)


def _spine(trees: dict[int, Tree], token: int, side: int) -> list[tuple[int, Moment]]:
    """Nodes of a spine from the token inwards, each with the moment that takes it.

    Side -1 is the right spine of the token before a boundary, 1 the left spine of the
    token behind it.
    """
    nodes: list[tuple[int, Moment]] = []
    until: Moment = (NEVER,)
    while token >= 0:
        tree = trees[token]
        nodes.append((token, until))
        until = tree.moment if side > 0 else _moved(tree.moment, -tree.letters)
        token = tree.left if side > 0 else tree.right
    return nodes


def _crosses(
    trees: dict[int, Tree],
    rules: dict[tuple[int, int], tuple[int, int]],
    left: int,
    right: int,
    before: Moment,
) -> bool:
    """Whether a rule joins the edges of two tokens before some moment."""
    others = _spine(trees, right, 1)
    for a, until_a in _spine(trees, left, -1):
        for b, until_b in others:
            rule = rules.get((a, b))
            if rule is not None and _across(trees, a, b, rule[0]) < min(
                before, until_a, until_b
            ):
                return True
    return False
