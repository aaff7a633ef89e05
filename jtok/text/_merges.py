"""Which two parts a token is merged from, where a file only ranks the tokens."""

import itertools
from collections.abc import Iterable, Mapping
from typing import TypeVar

__all__ = ["LONGEST", "merge_rules", "tied_runs"]

T = TypeVar("T", str, bytes)

LONGEST = 512  # of a token that merging makes; real ones stay below 200
_NEVER = 1 << 62


def merge_rules(
    tokens: Iterable[T], ranks: Mapping[T, int]
) -> tuple[list[tuple[T, T]], list[T]]:
    """The one merge that can make each token.

    Ranked vocabularies merge any two neighbours whose concatenation is a token, lowest
    rank first, leftmost first. Merges inside of a token's span do not depend on what
    stands around it, so the two parts that it is made of in any text are those of its
    last step when it stands alone: one rule a token loses nothing.

    Args:
      tokens: the tokens that merging may make, in the order of their ranks.
      ranks: rank of every token that merging may make or start from.

    Returns:
      The rules in the order of the tokens, and the tokens of two letters and more
      that merging never makes.
    """
    rules, unreachable = [], []
    for token in tokens:
        if len(token) > 1:
            parts = _last_step(token, ranks)
            if parts is None:
                unreachable.append(token)
            else:
                rules.append(parts)
    return rules, unreachable


def _last_step(token: T, ranks: Mapping[T, int]) -> tuple[T, T] | None:
    if len(token) == 2:
        return token[:1], token[1:]
    parts = [token[place : place + 1] for place in range(len(token))]
    get = ranks.get
    pairs = [get(parts[i] + parts[i + 1], _NEVER) for i in range(len(parts) - 1)]
    while len(parts) > 2:
        best = min(pairs)
        if best == _NEVER:
            return None
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del pairs[at]
        if at:
            pairs[at - 1] = get(parts[at - 1] + parts[at], _NEVER)
        if at < len(pairs):
            pairs[at] = get(parts[at] + parts[at + 1], _NEVER)
    return parts[0], parts[1]


def tied_runs(
    group: list[str], others: Iterable[str], rules: list[tuple[str, str]]
) -> bool:
    """Whether tokens that share one rank merge as if ranked in their order.

    Known only for runs of one letter (Llama 2 has runs of spaces, ranked last) that
    no other token contains: then both ways meet nothing but whole runs, and are
    compared on those.

    Args:
      group: the tokens that share the last rank, in their order.
      others: the other tokens that merging may make.
      rules: the merges of all.
    """
    letter = group[0][:1]
    if any(token != letter * len(token) for token in group):
        return False
    if any(2 * letter in token for token in others):
        return False
    sizes = {len(token) for token in group}
    order = {len(t): n for n, t in enumerate(group)}
    own = {(len(a), len(b)): order[len(a + b)] for a, b in rules if a + b in group}
    for run in range(1, 4 * max(sizes) + 1):
        tied, ranked = [1] * run, [1] * run
        while merge := [
            i for i in range(len(tied) - 1) if sum(tied[i : i + 2]) in sizes
        ]:
            tied[merge[0] : merge[0] + 2] = [sum(tied[merge[0] : merge[0] + 2])]
        while pairs := [
            (own[pair], i)
            for i, pair in enumerate(itertools.pairwise(ranked))
            if pair in own
        ]:
            at = min(pairs)[1]
            ranked[at : at + 2] = [sum(ranked[at : at + 2])]
        if tied != ranked:
            return False
    return True
