"""Holding a decoder to its guarantee."""

from typing import NamedTuple

import numpy as np

from jtok.decode import Generated
from jtok.errors import ArgumentError

__all__ = ["Difference", "assert_token_guarantee", "compare"]


class Difference(NamedTuple):
    """Where an output first leaves plain decoding.

    Attributes:
      row: of the batch.
      index: of the token among the emitted ones.
      gap: how far plain decoding's choice was above its next one there, in nats;
        infinite past the end of its output.
    """

    row: int
    index: int
    gap: float


def compare(plain: Generated, other: Generated) -> list[Difference]:
    """The first difference of every row that differs.

    Args:
      plain: plain decoding of the same prompts, with `gaps=True`.
      other: what is compared with it.

    Returns:
      One `Difference` for each row that is not equal, in order of the rows.

    Raises:
      ArgumentError: `plain` has no gaps, or the two have different numbers of rows.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=4, gaps=True)
      >>> compare(out, out)
      []
    """
    if plain.gaps is None:
        raise ArgumentError("plain: it has no gaps; decode it with gaps=True.")
    expected, gaps, got = map(_rows, (plain.tokens, plain.gaps, other.tokens))
    if len(expected) != len(got):
        raise ArgumentError(
            f"other: got {len(got)} rows, expected {len(expected)} as in plain."
        )
    found = []
    for row, (a, b, gap) in enumerate(zip(expected, got, gaps, strict=True)):
        shared = min(len(a), len(b))
        places = np.flatnonzero(a[:shared] != b[:shared])
        if places.size == 0 and len(a) == len(b):
            continue
        index = int(places[0]) if places.size else shared
        size = float(gap[index]) if index < len(gap) else float("inf")
        found.append(Difference(row, index, size))
    return found


def assert_token_guarantee(
    plain: Generated, other: Generated, *, tolerance: float = 1e-4
) -> None:
    """Fails where an output differs from plain decoding and no near-tie excuses it.

    Args:
      plain: plain decoding of the same prompts, with `gaps=True`.
      other: what is compared with it.
      tolerance: gaps below it are near-ties: 1e-4 in float32, 1e-1 in bfloat16.

    Raises:
      AssertionError: names row, token and gap.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=4, gaps=True)
      >>> assert_token_guarantee(out, out)
    """
    wrong = [found for found in compare(plain, other) if not found.gap < tolerance]
    if wrong:
        row, index, gap = wrong[0]
        raise AssertionError(
            f"{len(wrong)} rows differ from plain decoding; row {row} first at token "
            f"{index}, where the gap is {gap:.3g}, not below {tolerance:g}"
        )


def _rows(values: np.ndarray | list[np.ndarray]) -> list[np.ndarray]:
    return values if isinstance(values, list) else [values]
