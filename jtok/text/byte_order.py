"""Tokens in the order of their bytes: those that begin alike stand side by side."""

import bisect
import functools
import weakref
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16, Int32

from jtok.errors import ArgumentError, check
from jtok.text.vocabulary import Vocabulary

__all__ = ["ByteOrder", "byte_order"]


class ByteOrder:
    """The ordinary tokens of a table, sorted by their bytes; immutable.

    Tokens with empty bytes (gaps, an empty token) and the hidden ids (special tokens)
    are left out. Tokens of equal bytes stand in the order of their ids.

    Attributes:
      ids: `[tokens]` int32 ids in that order. Read-only.
      keys: their bytes, in the same order.
      first_byte: `[size]` int32 first byte of every id, 256 for those left out.
        Read-only.
      longest: bytes of the longest token, 0 without any.

    Example:
      >>> order = ByteOrder([b"b", b"ab", b"", b"a"])
      >>> order.ids_of(b"a").tolist(), order.longest
      ([3, 1], 2)
    """

    ids: Int32[np.ndarray, " tokens"]
    keys: list[bytes]
    first_byte: Int32[np.ndarray, " size"]
    longest: int

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        hidden: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        """Sorts a table.

        Args:
          token_bytes: the bytes of every id; empty for gaps.
          hidden: ids to leave out: special tokens.
        """
        shown = [
            id_ for id_, token in enumerate(token_bytes) if token and id_ not in hidden
        ]
        shown.sort(key=lambda id_: (token_bytes[id_], id_))
        self.ids = np.asarray(shown, np.int32)
        self.ids.flags.writeable = False
        self.keys = [token_bytes[id_] for id_ in shown]
        self.longest = max(map(len, self.keys), default=0)
        self.first_byte = np.full(len(token_bytes), 256, np.int32)
        self.first_byte[self.ids] = [key[0] for key in self.keys]
        self.first_byte.flags.writeable = False
        self._columns: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @functools.cached_property
    def lengths(self) -> Int32[np.ndarray, " tokens"]:
        """`[tokens]` int32 bytes of each token, in the sorted order."""
        return np.asarray([len(key) for key in self.keys], np.int32)

    def prefix_range(self, prefix: bytes) -> tuple[int, int]:
        """Where the tokens stand that begin with some bytes, by binary search.

        Args:
          prefix: the bytes; none gives all tokens.

        Returns:
          `(start, end)`, 0-based places in the sorted order; equal where no token
          begins so.

        Example:
          >>> ByteOrder([b"b", b"ab", b"a"]).prefix_range(b"a")
          (0, 2)
        """
        start = bisect.bisect_left(self.keys, prefix)
        after = _after(prefix)
        end = len(self.keys) if after is None else bisect.bisect_left(self.keys, after)
        return start, end

    def ids_of(self, prefix: bytes) -> Int32[np.ndarray, " found"]:
        """Ids of the tokens that begin with some bytes, sorted by bytes.

        Args:
          prefix: the bytes.

        Returns:
          `[found]` int32.

        Example:
          >>> ByteOrder([b"b", b"ab", b"a"]).ids_of(b"a").tolist()
          [2, 1]
        """
        start, end = self.prefix_range(prefix)
        return self.ids[start:end]

    def inside(self, text: bytes, start: int) -> list[tuple[int, int]]:
        """The tokens that stand in a text at one place, the shortest first.

        Args:
          text: any bytes.
          start: 0-based place of their first byte.

        Returns:
          `(id, end)` of each token whose bytes are `text[start:end]`.

        Example:
          >>> ByteOrder([b"b", b"ab", b"a"]).inside(b"xab", 1)
          [(2, 2), (1, 3)]
        """
        found = []
        low, keys = 0, self.keys
        for end in range(start + 1, min(len(text), start + self.longest) + 1):
            part = text[start:end]
            low = bisect.bisect_left(keys, part, low)
            if low == len(keys) or not keys[low].startswith(part):
                break
            at = low
            while at < len(keys) and keys[at] == part:
                found.append((int(self.ids[at]), end))
                at += 1
        return found

    def column(self, depth: int) -> Int16[np.ndarray, " tokens"]:
        """One byte of every token, in the sorted order; made once and kept.

        Args:
          depth: 0-based place of the byte in its token.

        Returns:
          `[tokens]` int16, -1 where a token is shorter. Read-only.

        Raises:
          ArgumentError: `depth` is negative.

        Example:
          >>> ByteOrder([b"b", b"ab", b"a"]).column(1).tolist()
          [-1, 98, -1]
        """
        check(depth >= 0, "depth", depth, "at least 0")
        if depth not in self._columns:
            bytes_ = [key[depth] if len(key) > depth else -1 for key in self.keys]
            made = np.asarray(bytes_, np.int16)
            made.flags.writeable = False
            self._columns[depth] = made
        return self._columns[depth]


def _after(prefix: bytes) -> bytes | None:
    """The least bytes behind all that begin with a prefix; None where none are."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None


_ORDERS: "weakref.WeakKeyDictionary[Vocabulary, ByteOrder]" = (
    weakref.WeakKeyDictionary()
)


def byte_order(vocabulary: Vocabulary) -> ByteOrder:
    """The ordinary tokens of a vocabulary, sorted by their bytes; made once and kept.

    Args:
      vocabulary: any; special tokens and gaps are left out.

    Returns:
      `ByteOrder` of `vocabulary.token_bytes`.

    Raises:
      ArgumentError: no token has bytes.

    Source: Phan et al. 2025, arXiv 2410.09303, the look-up of the cover search.

    Example:
      >>> trained = Vocabulary.train_bpe(["the cat, the hat"], 260)
      >>> [trained.token_bytes[i] for i in byte_order(trained).ids_of(b"t")]
      [b't', b'the']
    """
    if vocabulary not in _ORDERS:
        made = ByteOrder(vocabulary.token_bytes, vocabulary.special_ids)
        if not len(made):
            raise ArgumentError("vocabulary: got one without bytes, expected tokens.")
        _ORDERS[vocabulary] = made
    return _ORDERS[vocabulary]
