"""Which token sequences byte-level BPE can write, with and without a split pattern.

A configuration is what the tokens so far leave open: where the split automaton stands,
the first bytes of a letter that is not whole, and what the current pretoken is made of.
A sequence may have several, as the text that follows decides where it is split.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jtok.text import _utf8
from jtok.text._spines import Merges
from jtok.text._splits import LETTERS, START, A, L, Splits

__all__ = ["ByteGrammar", "Open"]

_ROWS = 1024  # rows kept: 128k tokens take 16 kB each
_DEEP = 6  # tokens to look ahead for one that closes a pretoken


class Open(NamedTuple):
    """A configuration.

    Attributes:
      state: of the split automaton, after the last whole character.
      partial: first bytes of a character that is not whole.
      begins: whether a pretoken begins at that character.
      last: the last token of the pretoken, -1 before any.
      piece: bytes of the pretoken while it may become a token that merging never
        makes and that is looked up whole, else None.
      several: whether the pretoken has more than one token.
      sealed: the pretoken is one looked up whole, and ends here.
    """

    state: str = START
    partial: bytes = b""
    begins: bool = False
    last: int = -1
    piece: bytes | None = None
    several: bool = False
    sealed: bool = False


_End = tuple[str, bytes, bool]  # state, partial, begins
_Fits = tuple[tuple[bool, _End], ...]  # whether a pretoken begins with the token


class ByteGrammar:
    """The sequences of one byte-level BPE.

    Args:
      table: the bytes of every id; empty for gaps and special tokens.
      merges: its rules.
      splits: its pattern, None where text is not split.
      whole: a pretoken that is a token as it stands is that token (`ignore_merges`).
    """

    prefix = b""  # what the tokenizer puts before a text

    def __init__(
        self, table: list[bytes], merges: Merges, splits: Splits | None, whole: bool
    ) -> None:
        self.table, self.merges, self.splits = table, merges, splits
        self.start: tuple[Open, ...] = (Open(),)
        self.free, self.any_bytes = self.start, splits is None
        known = merges.reachable
        self._whole = {
            token: id_
            for id_, token in enumerate(table)
            if whole and token and not known[id_]
        }
        heads = {token[:n] for token in self._whole for n in range(1, len(token) + 1)}
        self._heads = heads
        self._alive_memo: dict[Open, bool] = {}
        self._row = functools.lru_cache(maxsize=_ROWS)(self._packed_row)
        self._fit = functools.lru_cache(maxsize=1 << 16)(self._fit_key)

    # ---- the three questions

    def step(self, opens: tuple[Open, ...], token: int) -> tuple[Open, ...]:
        """The configurations after one more token; none where it cannot follow."""
        found: dict[Open, None] = {}
        for one in opens:
            for after in self._after(one, token):
                if self._alive(after):
                    found[after] = None
        return tuple(found)

    def row(self, opens: tuple[Open, ...]) -> np.ndarray:
        """`[size]` bool: the ordinary tokens that can follow."""
        valid = np.zeros(len(self.table), bool)
        for one in opens:
            valid |= np.unpackbits(self._row(one), count=len(valid)).view(bool)
        return valid

    def ends(self, opens: tuple[Open, ...]) -> bool:
        """Whether the text may end here."""
        if self.splits is None:
            return bool(opens)
        return any(
            not one.partial and self.splits.can_end(one.state) and self._closes(one)
            for one in opens
        )

    # ---- one token

    def _after(self, one: Open, token: int) -> list[Open]:
        """What a token leads to, alive or not."""
        data, found = self.table[token], []
        if not data:
            return []
        for begins, (state, partial, flag) in self._fits(one, data):
            if begins:
                if one.last >= 0 and not self._closes(one):
                    continue
                sealed = bool(self._whole) and data in self._whole
                if not sealed and not self.merges.reachable[token]:
                    continue
                piece = data if data in self._heads else None
                found.append(Open(state, partial, flag, token, piece, False, sealed))
            elif one.last < 0 or self._joins(one, token):
                piece = None if one.piece is None else one.piece + data
                piece = piece if piece in self._heads else None
                found.append(Open(state, partial, flag, token, piece, True))
        return found

    def _joins(self, one: Open, token: int) -> bool:
        return not one.sealed and self.merges.pair(one.last, token)

    def _closes(self, one: Open) -> bool:
        """Whether the merges let the pretoken be what it is."""
        return not (one.several and one.piece in self._whole)

    def _fits(self, one: Open, data: bytes) -> _Fits:
        if self.splits is None:
            return ((one.last < 0, (START, b"", False)),)
        return self._fit(one.state, one.partial, one.begins, data)

    def _fit_key(self, state: str, partial: bytes, flag: bool, data: bytes) -> _Fits:
        """Every way to read bytes without a split inside of them."""
        if partial:
            return self._fit_inside(state, partial, flag, data)
        read = _utf8.split_tail(data)
        if read is None:
            return ()
        text, tail = read
        if not text:
            return tuple(
                (begins, (state, tail, begins))
                for begins in (False, True)
                if self._may_become(state, tail, begins)
            )
        splits = self._splits
        first = splits.step(state, splits.class_of(text[0]))
        return self._fit_rest(list(first), text[1:], tail)

    def _fit_inside(self, state: str, partial: bytes, flag: bool, data: bytes) -> _Fits:
        whole = partial + data
        missing = _utf8.char_length(partial[0]) - len(partial)
        if len(data) < missing:
            read = _utf8.split_tail(whole)
            good = read is not None and self._may_become(state, whole, flag)
            return ((False, (state, whole, flag)),) if good else ()
        read = _utf8.split_tail(whole)
        if read is None:
            return ()
        text, tail = read
        splits = self._splits
        steps = splits.step(state, splits.class_of(text[0]))
        first = [(False, after) for begins, after in steps if begins == flag]
        return self._fit_rest(first, text[1:], tail)

    def _fit_rest(self, paths: list[tuple[bool, str]], text: str, tail: bytes) -> _Fits:
        splits = self._splits
        for char in text:
            kind = splits.class_of(char)
            paths = [
                (begins, after)
                for begins, state in paths
                for split, after in splits.step(state, kind)
                if not split
            ]
        return tuple(
            (begins, (state, tail, False))
            for begins, state in paths
            if not tail or self._may_become(state, tail, False)
        )

    def _may_become(self, state: str, partial: bytes, begins: bool) -> bool:
        """Whether some character with these first bytes goes on so."""
        splits = self._splits
        return any(
            begins == split
            for kind in splits.classes_of(partial)
            for split, _ in splits.step(state, kind)
        )

    @property
    def _splits(self) -> Splits:
        if self.splits is None:
            raise RuntimeError("text that is not split has no states")
        return self.splits

    # ---- is there a text that goes on so

    def _alive(self, one: Open, deep: int = _DEEP) -> bool:
        if self.splits is None or self._settled(one):
            return True
        if one in self._alive_memo:
            return self._alive_memo[one]
        found = not one.sealed and self._goes_on(one, deep)
        if found or deep == _DEEP:
            self._alive_memo[one] = found
        return found

    def _settled(self, one: Open) -> bool:
        """Whether the pretoken may end here."""
        return not one.partial and self._splits.can_close(one.state) and (
            self._closes(one)
        )  # fmt: skip

    def _goes_on(self, one: Open, deep: int) -> bool:
        """Whether more tokens can follow inside of the pretoken, up to its end."""
        inside = []
        for token in self._singles(one):
            for after in self._after(one, token):
                if after.several and self._settled(after):
                    return True
                inside += [after] if after.several else []
        if deep and any(self._alive(after, deep - 1) for after in inside):
            return True
        if not deep or one.last < 0:
            return False
        asked = self.merges.row(one.last)
        if one.partial:
            asked &= self._continuing
        return any(
            after.several and self._settled(after)
            for token in np.flatnonzero(asked).tolist()
            for after in self._after(one, token)
        )

    def _singles(self, one: Open) -> Iterable[int]:
        """Tokens of one byte that the letter or the text may go on with."""
        bytes_ = _utf8.following(one.partial) if one.partial else range(256)
        letters = self.merges.letters
        return (letters[bytes([b])] for b in bytes_ if bytes([b]) in letters)

    # ---- a row of all tokens

    def _packed_row(self, one: Open) -> np.ndarray:
        size, known = len(self.table), self.merges.reachable
        joins = self.merges.row(one.last) if one.last >= 0 and not one.sealed else None
        if self.splits is None:
            return np.packbits(known if joins is None else joins)
        if one.partial:
            asked = np.flatnonzero(self._continuing)
            valid = np.zeros(size, bool)
        else:
            begin, inside, unsure = self._by_class(one.state)
            may = one.last < 0 or self._closes(one)
            valid = begin & self._opening if may else np.zeros(size, bool)
            if joins is not None:
                valid |= inside & joins
            asked = np.flatnonzero(unsure & ~valid)
        opens = (one,)
        for token in [*asked.tolist(), *self._looked_up(one)]:
            valid[token] = bool(self.step(opens, token))
        return np.packbits(valid)

    def _looked_up(self, one: Open) -> list[int]:
        """Tokens with which the pretoken becomes one that is looked up whole."""
        head = one.piece
        return [] if head is None else [
            id_
            for token in self._whole
            if token.startswith(head) and len(token) > len(head)
            for id_ in self._ids_of.get(token[len(head) :], ())
        ]  # fmt: skip

    @functools.cached_property
    def _opening(self) -> np.ndarray:
        """Tokens that a pretoken can begin with."""
        opening = self.merges.reachable.copy()
        opening[list(self._whole.values())] = True
        return opening

    @functools.cached_property
    def _ids_of(self) -> dict[bytes, list[int]]:
        table: dict[bytes, list[int]] = {}
        for id_, token in enumerate(self.table):
            table.setdefault(token, []).append(id_)
        return table

    @functools.cached_property
    def _continuing(self) -> np.ndarray:
        """`[size]` bool: the token begins inside of a character."""
        inside = [bool(t) and 0x80 <= t[0] <= 0xBF for t in self.table]
        return np.asarray(inside, bool)

    @functools.cached_property
    def _shapes(self) -> tuple[list[bytes], np.ndarray]:
        """A token of every shape, and the shape of every token, -1 for none.

        Tokens of one shape have the same classes of characters, runs of four and more
        counting as four, and the same bytes of a last letter that is not whole.
        """
        shapes: dict[tuple[tuple[int, ...], bytes], int] = {}
        examples: list[bytes] = []
        of = np.full(len(self.table), -1, np.int64)
        for id_, token in enumerate(self.table):
            read = _utf8.split_tail(token) if token else None
            if read is None:
                continue
            key = _shape([self._splits.class_of(char) for char in read[0]]), read[1]
            if key not in shapes:
                shapes[key] = len(shapes)
                examples.append(token)
            of[id_] = shapes[key]
        return examples, of

    @functools.cached_property
    def _by_class(
        self,
    ) -> Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return functools.lru_cache(maxsize=64)(self._of_classes)

    def _of_classes(self, state: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`[size]` bool: may begin a pretoken, may go on with one, needs a look."""
        examples, of = self._shapes
        begin, inside, unsure = np.zeros((3, len(examples) + 1), bool)
        for shape, token in enumerate(examples):
            for begins, (after, partial, _) in self._fit_key(state, b"", False, token):
                if partial or not self._splits.can_close(after):
                    unsure[shape] = True
                elif begins:
                    begin[shape] = True
                else:
                    inside[shape] = True
        return begin[of], inside[of], unsure[of]


def _shape(classes: list[int]) -> tuple[int, ...]:
    """Classes without what no pattern tells apart.

    Which letter it is matters behind an apostrophe, in this token or the one before.
    """
    kept: list[int] = []
    for place, kind in enumerate(classes):
        near = place < 2 or A in classes[place - 2 : place]
        kind = L if kind in LETTERS and not near else kind
        if kept[-4:] != [kind] * 4:
            kept.append(kind)
    return tuple(kept)
