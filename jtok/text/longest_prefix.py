"""Greedy longest-prefix tokenization over bytes, for vocabularies without merges."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32

from jtok.errors import ArgumentError, check

__all__ = ["LongestPrefix"]


class LongestPrefix:
    """Takes the longest token that a text goes on with, again and again.

    A table of bytes is asked once a length, longest first, with the lengths that occur
    behind the first byte; a million tokens are one dict.

    Args:
      tokens: bytes of every id; empty ones are never taken. Of equal ones the lower id
        is.
      split: a function from a text to the units that are tokenized one by one; None
        takes a text whole.

    Raises:
      ArgumentError: no token has bytes.

    Source: Feher et al. 2024, arXiv 2411.18553v1, section 3.3.

    Example:
      >>> LongestPrefix([b"a", b"b", b"ab", b"abb"]).encode("abbab").tolist()
      [3, 2]
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        split: Callable[[str], list[str]] | None = None,
    ):
        self._ids: dict[bytes, int] = {}
        sizes: dict[int, set[int]] = {}
        for id_, token in enumerate(tokens):
            if token:
                self._ids.setdefault(token, id_)
                sizes.setdefault(token[0], set()).add(len(token))
        check(bool(self._ids), "tokens", len(tokens), "at least one that has bytes")
        self._sizes = {b: sorted(found, reverse=True) for b, found in sizes.items()}
        self._split = split

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text.

        Args:
          text: any text.

        Returns:
          `[tokens]` int32.

        Raises:
          ArgumentError: a byte of the text begins no token.

        Example:
          >>> LongestPrefix([b"a", b"ab"]).encode("aab").tolist()
          [0, 1]
        """
        units = [text] if self._split is None else self._split(text)
        ids = [id_ for unit in units for id_ in self.match(unit.encode())]
        return np.asarray(ids, np.int32)

    def match(self, unit: bytes) -> list[int]:
        """Ids of bytes, across no boundary but their end.

        Args:
          unit: any bytes.

        Returns:
          The ids.

        Raises:
          ArgumentError: a byte of them begins no token.

        Example:
          >>> LongestPrefix([b"a", b"ab"]).match(b"aba")
          [1, 0]
        """
        found, place = [], 0
        while place < len(unit):
            for size in self._sizes.get(unit[place], ()):
                id_ = self._ids.get(unit[place : place + size])
                if id_ is not None and place + size <= len(unit):
                    found.append(id_)
                    place += size
                    break
            else:
                raise ArgumentError(
                    f"text: no token begins like {unit[place : place + 8]!r}; expected "
                    "a vocabulary with all bytes of the text."
                )
        return found
