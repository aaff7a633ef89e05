"""Packed n-grams, and a table that finds many of them at a time."""

import numpy as np
from jaxtyping import Int, Int32, UInt64

__all__ = ["GramTable", "pack", "unpack"]

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads keys


def pack(
    grams: Int[np.ndarray, "grams length"], vocab_size: int
) -> UInt64[np.ndarray, " grams"]:
    """N-grams as numbers to the base `vocab_size`, the first token foremost.

    Args:
      grams: ids below `vocab_size`, whose power of `length` is at most 2^64.
      vocab_size: the base.

    Returns:
      `[grams]` uint64, in whose order n-grams are lexicographic.
    """
    keys = np.zeros(len(grams), np.uint64)
    for column in grams.T:
        keys = keys * np.uint64(vocab_size) + column.astype(np.uint64)
    return keys


def unpack(
    keys: UInt64[np.ndarray, " grams"], length: int, vocab_size: int
) -> Int32[np.ndarray, "grams length"]:
    """The ids that `pack` packed.

    Args:
      keys: from `pack`.
      length: tokens of each.
      vocab_size: the base.

    Returns:
      `[grams, length]` int32.
    """
    grams = np.empty((len(keys), length), np.int32)
    for place in reversed(range(length)):
        keys, digit = np.divmod(keys, np.uint64(vocab_size))
        grams[:, place] = digit
    return grams


class GramTable:
    """Keys and what each stands for, in open addressing: a look-up is O(1).

    Args:
      keys: `[entries]` uint64; of equal ones the first stays.
      rows: `[entries]` int32, at least 0.
    """

    def __init__(
        self,
        keys: UInt64[np.ndarray, " entries"],
        rows: Int32[np.ndarray, " entries"],
    ) -> None:
        keys, first = np.unique(keys, return_index=True)
        bits = max(int(2 * len(keys)).bit_length(), 1)
        self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1
        self._keys = np.zeros(1 << bits, np.uint64)
        self._rows = np.full(1 << bits, -1, np.int32)
        self._count = len(keys)
        self._fill(keys, rows[first])

    def __len__(self) -> int:
        return self._count

    def _home(self, keys: np.ndarray) -> np.ndarray:
        return ((keys * _MIX) >> self._shift).astype(np.int64)

    def _fill(self, keys: np.ndarray, rows: np.ndarray) -> None:
        slots = self._home(keys)
        while len(keys):
            # Of those that want one free slot the first gets it, the others move on.
            winners = np.zeros(len(keys), bool)
            winners[np.unique(slots, return_index=True)[1]] = True
            winners &= self._rows[slots] < 0
            self._keys[slots[winners]] = keys[winners]
            self._rows[slots[winners]] = rows[winners]
            keys, rows = keys[~winners], rows[~winners]
            slots = (slots[~winners] + 1) & self._mask

    def find(self, keys: UInt64[np.ndarray, " asked"]) -> Int32[np.ndarray, " asked"]:
        """The row of each key, -1 where there is none.

        Args:
          keys: `[asked]` uint64.

        Returns:
          `[asked]` int32.
        """
        found = np.full(len(keys), -1, np.int32)
        open_ = np.arange(len(keys))
        slots = self._home(keys)
        while len(open_):
            rows = self._rows[slots]
            same = self._keys[slots] == keys[open_]
            hit = (rows >= 0) & same
            found[open_[hit]] = rows[hit]
            go_on = (rows >= 0) & ~same
            open_, slots = open_[go_on], (slots[go_on] + 1) & self._mask
        return found
