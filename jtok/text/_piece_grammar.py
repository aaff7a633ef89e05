"""Which token sequences a SentencePiece BPE with byte fallback can write."""

import functools
from typing import NamedTuple

import numpy as np

from jtok.text import _utf8
from jtok.text._spines import Merges

__all__ = ["Inside", "PieceGrammar"]

_ROWS = 1024


class Inside(NamedTuple):
    """What the tokens so far leave open.

    Attributes:
      partial: byte tokens of a character that is not whole.
      last: the last piece, -1 after a byte token or before any.
      fresh: nothing has been written yet.
    """

    partial: bytes = b""
    last: int = -1
    fresh: bool = True


class PieceGrammar:
    """The sequences of one SentencePiece BPE.

    Letters without a piece are written as byte tokens, which never merge. A byte token
    that completes a letter with a piece cannot be, so its first bytes can be only while
    some letter that they begin has none.

    Args:
      table: the bytes of every id as text has them; empty for gaps and special tokens.
      pieces: the same with U+2581 as it stands in pieces.
      byte_ids: the byte that a byte token stands for, by id.
      merges: the rules of the other pieces.
      prefix: bytes that the tokenizer puts before a text, in the spelling of `table`.
    """

    def __init__(
        self, table: list[bytes], pieces: list[bytes], byte_ids: dict[int, int],
        merges: Merges, prefix: bytes,
    ) -> None:  # fmt: skip
        self.table, self.merges, self.prefix = table, merges, prefix
        self.start: tuple[Inside, ...] = (Inside(),)
        self.free: tuple[Inside, ...] = (Inside(fresh=False),)
        self.any_bytes = False
        self._bytes = byte_ids
        self._letters = frozenset(merges.letters)
        counts: dict[bytes, int] = {}
        for letter in self._letters:
            for cut in range(1, len(letter)):
                counts[letter[:cut]] = counts.get(letter[:cut], 0) + 1
        self._counts = counts
        space = "\u2581".encode()
        opening = [token.startswith(space) for token in pieces] if prefix else True
        self._opening = np.broadcast_to(np.asarray(opening), (len(table),))
        self._row = functools.lru_cache(maxsize=_ROWS)(self._packed_row)

    def step(self, opens: tuple[Inside, ...], token: int) -> tuple[Inside, ...]:
        """The configurations after one more token; none where it cannot follow."""
        return tuple(
            after for one in opens for after in self._after(one, token) if after
        )

    def row(self, opens: tuple[Inside, ...]) -> np.ndarray:
        """`[size]` bool: the ordinary tokens that can follow."""
        valid = np.zeros(len(self.table), bool)
        for one in opens:
            valid |= np.unpackbits(self._row(one), count=len(valid)).view(bool)
        return valid

    def ends(self, opens: tuple[Inside, ...]) -> bool:
        """Whether the text may end here."""
        return any(not one.partial for one in opens)

    def _after(self, one: Inside, token: int) -> list[Inside]:
        if one.fresh and not self._opening[token]:
            return []
        byte = self._bytes.get(token)
        if byte is None:
            free = not one.partial and bool(self.merges.reachable[token])
            apart = free and (one.last < 0 or self.merges.pair(one.last, token))
            return [Inside(b"", token, False)] if apart else []
        if one.partial and byte not in _utf8.following(one.partial):
            return []
        whole = one.partial + bytes([byte])
        length = _utf8.char_length(whole[0])
        if len(whole) == length:
            bare = whole not in self._letters and whole != b" "
            return [Inside(b"", -1, False)] if bare else []
        open_ = length and self._counts.get(whole, 0) < _count(whole)
        return [Inside(whole, -1, False)] if open_ else []

    def _packed_row(self, one: Inside) -> np.ndarray:
        valid = np.zeros(len(self.table), bool)
        if not one.partial:
            known = self.merges.reachable
            valid |= known if one.last < 0 else self.merges.row(one.last)
            if one.fresh:
                valid &= self._opening
        for token in self._bytes:
            valid[token] = bool(self._after(one, token))
        return np.packbits(valid)


@functools.lru_cache(maxsize=4096)
def _count(partial: bytes) -> int:
    """Characters with these first bytes."""
    points = _utf8.code_points(partial)
    surrogates = range(max(points[0], 0xD800), min(points[-1] + 1, 0xE000))
    return len(points) - len(surrogates)
