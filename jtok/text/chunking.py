"""Random chunks of text, at whose ends a supertoken may not be cut.

Source: Sharthak et al. 2025, arXiv 2505.09738, section on supertokens.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from jtok.errors import ArgumentError, check

__all__ = [
    "PUBLISHED_BINS",
    "ChunkLaw",
    "chunk_lengths",
    "insert_separators",
    "unused_separator",
]

Bin = tuple[int, int, float]
Draws = np.random.Generator | random.Random

# The bins of the published configuration, whose probabilities sum to 1.1.
PUBLISHED_BINS: tuple[Bin, ...] = (
    (4, 5, 0.044),
    (6, 7, 0.091),
    (8, 9, 0.146),
    (10, 11, 0.171),
    (12, 13, 0.185),
    (14, 15, 0.171),
    (16, 17, 0.146),
    (18, 19, 0.091),
    (20, 21, 0.044),
    (22, 23, 0.011),
)
_SEPARATOR = "#$T@&"


@dataclasses.dataclass(frozen=True)
class ChunkLaw:
    """How long chunks are: a bin by its probability, then a length in it, uniformly.

    Attributes:
      bins: `(lowest, highest, probability)` each, lengths in characters (code points),
        both ends included, `1 <= lowest <= highest`; probabilities sum to 1.

    Raises:
      ArgumentError: a bin that is none, or a sum more than 1e-9 away from 1.

    Example:
      >>> ChunkLaw(((4, 7, 0.25), (8, 12, 0.75))).shortest
      4
    """

    bins: tuple[Bin, ...]

    def __post_init__(self) -> None:
        total = sum(probability for _, _, probability in _checked(self.bins))
        if abs(total - 1) > 1e-9:
            raise ArgumentError(
                f"bins: got probabilities that sum to {total:.9g}, expected 1 within "
                "1e-9; ChunkLaw.normalised divides by the sum."
            )

    @classmethod
    def normalised(cls, bins: Iterable[Sequence[Any]] = PUBLISHED_BINS) -> "ChunkLaw":
        """A law from weights that need not sum to 1.

        Args:
          bins: `(lowest, highest, weight)` each.

        Raises:
          ArgumentError: a bin that is none, or no weight above zero.
        """
        checked = _checked(bins)
        total = sum(weight for _, _, weight in checked)
        check(total > 0, "bins", list(checked), "a weight above zero")
        return cls(tuple((low, high, weight / total) for low, high, weight in checked))

    @property
    def shortest(self) -> int:
        """The smallest length of any bin; only a last chunk may be shorter."""
        return min(low for low, _, _ in self.bins)

    @property
    def longest(self) -> int:
        """The largest length of any bin."""
        return max(high for _, high, _ in self.bins)


def _checked(bins: Iterable[Sequence[Any]]) -> tuple[Bin, ...]:
    rows = tuple(tuple(row) for row in bins)
    check(len(rows) >= 1, "bins", rows, "at least one")
    for row in rows:
        numbers = len(row) == 3 and all(
            isinstance(value, int | float | np.number) for value in row
        )
        check(numbers, "bins", row, "(lowest, highest, probability) each")
        low, high, probability = row
        whole = low == int(low) and high == int(high)
        check(whole and 1 <= low <= high, "bins", row, "whole 1 <= lowest <= highest")
        check(0 <= probability < float("inf"), "bins", row, "a probability of 0 to 1")
    return tuple((int(low), int(high), float(value)) for low, high, value in rows)


def chunk_lengths(
    length: int, law: ChunkLaw, draws: Draws
) -> Int32[np.ndarray, " chunks"]:
    """Cuts a length into random ones.

    Lengths follow the law; where less is left than a bin allows, both ends of the bin
    are cut to what is left. What is shorter than the shortest bin is a chunk.

    Args:
      length: characters to cut, `>= 0`.
      law: the law of lengths.
      draws: a NumPy `Generator`; or a `random.Random`, for the draws of the official
        code, one `choices` and one `randint` a chunk.

    Returns:
      `[chunks]` int32, each at least 1, with the sum `length`.

    Raises:
      ArgumentError: `length` below 0.

    Source: Sharthak et al. 2025, arXiv 2505.09738, chunk-length law.

    Example:
      >>> law = ChunkLaw(((2, 3, 1.0),))
      >>> int(chunk_lengths(100, law, np.random.default_rng(0)).sum())
      100
    """
    check(length >= 0, "length", length, "at least 0")
    lengths = [] if isinstance(draws, random.Random) else _bulk(length, law, draws)
    rest = length - sum(lengths)
    weights = [probability for _, _, probability in law.bins]
    while rest:
        if rest < law.shortest:
            lengths.append(rest)
            break
        if isinstance(draws, random.Random):
            low, high, _ = draws.choices(law.bins, weights=weights, k=1)[0]
            taken = draws.randint(min(low, rest), min(high, rest))
        else:
            low, high, _ = law.bins[draws.choice(len(weights), p=weights)]
            taken = int(draws.integers(min(low, rest), min(high, rest) + 1))
        lengths.append(taken)
        rest -= taken
    return np.asarray(lengths, np.int32)


def _bulk(length: int, law: ChunkLaw, draws: np.random.Generator) -> list[int]:
    """The chunks before which at least the longest one is left, drawn together."""
    if length < law.longest:
        return []
    low, high, weights = (np.asarray(column) for column in zip(*law.bins))
    chunks = length // law.shortest + 1
    bins = draws.choice(len(weights), size=chunks, p=weights)
    drawn = draws.integers(low[bins], high[bins] + 1)
    before = np.cumsum(drawn) - drawn
    return drawn[length - before >= law.longest].tolist()


def insert_separators(
    text: str, lengths: Sequence[int] | Int32[np.ndarray, " chunks"], separator: str
) -> str:
    """The chunks of a text with a separator between them.

    Args:
      text: any.
      lengths: of the chunks, which sum to `len(text)`; see `chunk_lengths`.
      separator: not empty, and not in the text; see `unused_separator`.

    Returns:
      The text with separators.

    Raises:
      ArgumentError: lengths that do not sum to the text's, or a separator that is
        empty or stands in the text.

    Source: Sharthak et al. 2025, arXiv 2505.09738. Differs: a separator that stands in
    the text is refused.

    Example:
      >>> insert_separators("the cat", [4, 3], "|")
      'the |cat'
    """
    check(separator != "", "separator", separator, "a text that is not empty")
    check(separator not in text, "separator", separator, "one that the text lacks")
    ends = list(itertools.accumulate(int(length) for length in lengths))
    total = ends[-1] if ends else 0
    check(total == len(text), "lengths", total, f"the sum {len(text)}")
    return separator.join(text[a:b] for a, b in zip([0, *ends], ends))


def unused_separator(texts: Iterable[str], preferred: str = _SEPARATOR) -> str:
    """A separator that no text holds, nor makes with a separator beside it.

    Args:
      texts: the corpus, read once for each candidate.
      preferred: returned if it will do.

    Returns:
      `preferred`, else the first of `#$T0@&`, `#$T1@&`, ... that will do.

    Raises:
      ArgumentError: `preferred` is empty.

    Source: Sharthak et al. 2025, arXiv 2505.09738. Differs: there it is fixed.

    Example:
      >>> unused_separator(["a #$T@& b"])
      '#$T0@&'
    """
    check(preferred != "", "preferred", preferred, "a text that is not empty")
    corpus = list(texts)
    numbered = (f"#$T{number}@&" for number in itertools.count())
    for candidate in itertools.chain([preferred], numbered):
        # What ends as it begins could be met one place too early.
        edges = any(
            candidate.startswith(candidate[-n:]) for n in range(1, len(candidate))
        )
        if not edges and not any(candidate in text for text in corpus):
            return candidate
    raise ArgumentError("texts: every separator stands in them.")  # pragma: no cover
