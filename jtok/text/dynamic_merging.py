"""Token boundaries of a batch: its most frequent neighbours become longer tokens.

Source: Feher et al. 2024, arXiv 2411.18553, Algorithm 1. Differs: special tokens are
protected by name, punctuation is known by its characters, no token grows beyond the
pieces that a network reads, and counts are kept up to date instead of taken anew.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int

from jtok.errors import ArgumentError, ArgumentTypeError, check, near
from jtok.text._specs import byte_text
from jtok.text.byte_tokens import ByteTokenizer, byte_tokenizer
from jtok.text.merging import PairMerger
from jtok.text.vocabulary import Vocabulary

__all__ = [
    "BOUNDARIES",
    "MergeRule",
    "MergedBatch",
    "merge_batch",
    "merge_rule",
]

BOUNDARIES = ("pretokens", "word", "word_hyphen", "sentence")
_SPACE = frozenset(b" \n\t")
_WORDS = tokenizers.pre_tokenizers.WhitespaceSplit()
_PUNCTUATION = frozenset(".,!?;:()-\"'\\/`$%&*+<=>@[]^_{|}~")

Boundary = Literal["pretokens", "word", "word_hyphen", "sentence"]


class MergeRule:
    """Which neighbours may become one token; made by `merge_rule`.

    What it found out of a pair it remembers, for all batches.

    Attributes:
      tokenizer: the base tokenizer.
      boundary: its name.
      max_pieces: pieces of the longest token that merging makes, or None.

    Example:
      >>> rule = merge_rule(Vocabulary.train_bpe(["the cat"], 257))
      >>> rule.allows(b" ", b"cat"), rule.allows(b"the", b" cat")
      (True, False)
    """

    def __init__(
        self,
        tokenizer: ByteTokenizer,
        boundary: Boundary,
        max_pieces: int | None,
        compat: Literal["official"] | None,
    ):
        self.tokenizer = tokenizer
        self.boundary = boundary
        self.max_pieces = max_pieces
        self._official = compat == "official"
        self._pairs: dict[tuple[bytes, bytes], bool] = {}
        # The official rule looks for digits in the spelling by bytes, where that of
        # 0xB2, 0xB3 and 0xB9 is a digit, too.
        self._signs = frozenset(
            token
            for token in tokenizer.token_bytes
            if _is_punctuation(byte_text(token))
        )

    def allows(self, left: bytes, right: bytes) -> bool:
        """Whether two neighbours may be merged, neither of them special.

        Args:
          left: bytes of the left token.
          right: bytes of the right one.

        Returns:
          True if they may.

        Example:
          >>> rule = merge_rule(Vocabulary.train_bpe(["a"], 257), "word")
          >>> rule.allows(b"t", b".")
          True
        """
        pair = (left, right)
        known = self._pairs.get(pair)
        if known is None:
            known = self._pairs[pair] = self._within(left, right) and self._fits(pair)
        return known

    def _fits(self, pair: tuple[bytes, bytes]) -> bool:
        if self.max_pieces is None:
            return True
        return len(self.tokenizer.pieces(b"".join(pair))) <= self.max_pieces

    def _within(self, left: bytes, right: bytes) -> bool:
        token = left + right
        if _has_inner_space(token):
            return False
        if self.boundary == "sentence":
            return True
        if _is_cut(token):
            return True  # Pieces of a character must find together.
        text = token.decode()
        if self.boundary == "pretokens":
            return self.tokenizer.units(text) == 1
        if len(_WORDS.pre_tokenize_str(text)) != 1:
            return False
        if self.boundary == "word" or self._punctuation(left):
            return True
        return not self._punctuation(right) or right == b"-"

    def _punctuation(self, token: bytes) -> bool:
        if self._official:
            return token in self._signs
        return _is_punctuation(token.decode("utf-8", "replace"))

    def may_touch_specials(self, left: bytes, right: bytes) -> bool:
        """What the official rule says of a pair with a special token in it.

        Args:
          left: bytes of the left token, or the text of a special one.
          right: those of the right one.

        Returns:
          True where nothing that the official rule looks at stops the merge: the
          pre-tokenizer, and in the boundaries of words whether the two are UTF-8
          together, which is asked before whether one is special.

        Example:
          >>> rule = merge_rule(Vocabulary.train_bpe(["a"], 257), compat="official")
          >>> rule.may_touch_specials(b"<s>", b" the")
          False
        """
        if not self._official or self.boundary == "sentence":
            return False
        if self.boundary == "pretokens":
            return self.allows(left, right)
        token = left + right
        cut = _is_cut(token) and not _has_inner_space(token)
        return cut and self._fits((left, right))


def merge_rule(
    tokenizer: ByteTokenizer | Vocabulary,
    boundary: Boundary = "pretokens",
    *,
    max_pieces: int | None = 7,
    compat: Literal["official"] | None = None,
) -> MergeRule:
    """The boundary that merged tokens stay in.

    In all of them a space, tab or newline begins a token or the token has nothing
    else (but two newlines), and pieces of a character may always merge, also with a
    character beside them. Special tokens never merge.

    Args:
      tokenizer: the base tokenizer; a byte-level `Vocabulary` counts with its own
        pre-tokenizer.
      boundary: `"pretokens"`: what the pre-tokenizer leaves whole; `"word"`: what has
        no space inside; `"word_hyphen"`: as that, but no letter takes punctuation on
        except a hyphen; `"sentence"`: no rule of its own, so words at most.
      max_pieces: pieces under the base tokenizer that a merged token has at most, so
        that a network reads all of it; None for no bound.
      compat: `"official"` protects special tokens within `"pretokens"` by the
        pre-tokenizer alone, and nowhere but in `"sentence"` from pieces of characters;
        it takes for punctuation only what the vocabulary holds.

    Returns:
      `MergeRule`.

    Raises:
      ArgumentError: an unknown boundary, `max_pieces` below 1, or a vocabulary that is
        not byte-level.
      ArgumentTypeError: no tokenizer.

    Source: arXiv 2411.18553, Algorithm 1. Differs: see `compat`.

    Example:
      >>> merge_rule(Vocabulary.train_bpe(["a"], 257), "word").boundary
      'word'
    """
    if boundary not in BOUNDARIES:
        raise ArgumentError(f"boundary: got {boundary!r}{near(boundary, BOUNDARIES)}.")
    good = max_pieces is None or max_pieces >= 1
    check(good, "max_pieces", max_pieces, "None or at least 1")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    if isinstance(tokenizer, Vocabulary):
        tokenizer = byte_tokenizer(tokenizer)
    if not isinstance(tokenizer, ByteTokenizer):
        raise ArgumentTypeError(
            f"tokenizer: got {type(tokenizer).__name__}, expected a ByteTokenizer or a "
            "Vocabulary."
        )
    return MergeRule(tokenizer, boundary, max_pieces, compat)


class MergedBatch(NamedTuple):
    """Sequences after merging, over the batch's own tokens.

    Attributes:
      ids: for each sequence `[tokens]` int32: an id of the base tokenizer, or its size
        plus the place in `merged`.
      starts: for each sequence `[tokens]` int32, the first piece of each token in the
        sequence that was given.
      merged: bytes of the tokens that the base tokenizer has not.
      trace: bytes of the pairs in the order of their merges; of `per_example`, those
        of one sequence after those of the one before.
      size: ids of the base tokenizer.
    """

    ids: tuple[np.ndarray, ...]
    starts: tuple[np.ndarray, ...]
    merged: tuple[bytes, ...]
    trace: tuple[tuple[bytes, bytes], ...]
    size: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(len(row) for row in self.ids)

    def word_ids(self, of_pieces: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Word of each token: that of its first piece.

        Args:
          of_pieces: for each sequence the word of every piece.

        Returns:
          For each sequence `[tokens]` int32.

        Raises:
          ArgumentError: another number of sequences, or fewer words than pieces.

        Example:
          >>> rule = merge_rule(Vocabulary.train_bpe(["a"], 257))
          >>> out = merge_batch(rule, [rule.tokenizer.encode("ab c")], 1)
          >>> out.word_ids([[0, 0, 1, 1]])
          [array([0, 1, 1], dtype=int32)]
        """
        check(len(of_pieces) == len(self.ids), "of_pieces", len(of_pieces),
              f"{len(self.ids)} sequences")  # fmt: skip
        found = []
        for words, first in zip(of_pieces, self.starts, strict=True):
            row = np.asarray(words, np.int32)
            good = len(first) == 0 or len(row) > int(first[-1])
            check(good, "of_pieces", len(row), "a word for every piece")
            found.append(row[first])
        return found


def merge_batch(
    rule: MergeRule,
    sequences: Sequence[Sequence[int] | Int[np.ndarray, " _"]],
    merges: int | None,
    *,
    per_example: bool = False,
) -> MergedBatch:
    """Merges the most frequent neighbours of a batch, one pair after another.

    The best pair is the one that occurs most often (overlaps all count), of equals the
    one met first when the sequences are read in order; it is replaced everywhere, left
    to right. A pair that occurs once merges, too. What merges depends on the batch:
    keep its composition fixed to compare anything, or merge `per_example`.

    Args:
      rule: what may merge.
      sequences: ids of the base tokenizer, special ones included.
      merges: budget; 0 leaves the tokens as they are, None merges up to the boundary.
      per_example: merge each sequence by itself, with a budget of its own.

    Returns:
      `MergedBatch`.

    Raises:
      ArgumentError: a negative budget, or an id that the tokenizer has not.

    Source: arXiv 2411.18553, Algorithm 1.

    Example:
      >>> rule = merge_rule(Vocabulary.train_bpe(["a"], 257))
      >>> out = merge_batch(rule, [rule.tokenizer.encode("abab")], 1)
      >>> out.lengths, out.merged
      ((2,), (b'ab',))
    """
    good = merges is None or merges >= 0
    check(good, "merges", merges, "None or a number of at least 0")
    rows = [np.asarray(row, np.int64).reshape(-1) for row in sequences]
    size = rule.tokenizer.size
    for row in rows:
        good = row.size == 0 or (row.min() >= 0 and row.max() < size)
        check(good, "sequences", row[:8].tolist(), f"ids 0 <= id < {size}")
    table = _Table(rule)
    groups = [[row] for row in rows] if per_example else [rows]
    ids, starts, trace = [], [], []
    for group in groups:
        merger = PairMerger(
            group, ties="first", allowed=table.allows, combine=table.combine
        )
        for step in itertools.islice(merger, merges):
            trace.append((table.spelled(step.left), table.spelled(step.right)))
        ids += merger.sequences()
        starts += merger.starts()
    return MergedBatch(
        tuple(ids), tuple(starts), tuple(table.merged), tuple(trace), size
    )


class _Table:
    """Ids of tokens that merging makes: those of the base first, then new ones."""

    def __init__(self, rule: MergeRule):
        self._rule = rule
        tokenizer = rule.tokenizer
        self._size = tokenizer.size
        self._specials = tokenizer.special_ids
        self._ids = _ids_by_bytes(tokenizer)
        self.merged: list[bytes] = []
        self._new: dict[bytes, int] = {}

    def spelled(self, id_: int) -> bytes:
        if id_ >= self._size:
            return self.merged[id_ - self._size]
        if id_ in self._specials:
            return self._rule.tokenizer.vocabulary.token_bytes[id_]
        return self._rule.tokenizer.token_bytes[id_]

    def allows(self, left: int, right: int) -> bool:
        pair = (self.spelled(left), self.spelled(right))
        if left in self._specials or right in self._specials:
            return self._rule.may_touch_specials(*pair)
        return all(pair) and self._rule.allows(*pair)

    def combine(self, left: int, right: int) -> int:
        token = self.spelled(left) + self.spelled(right)
        known = self._ids.get(token, self._new.get(token))
        if known is None:
            known = self._new[token] = self._size + len(self.merged)
            self.merged.append(token)
        return known


@functools.lru_cache(maxsize=8)
def _ids_by_bytes(tokenizer: ByteTokenizer) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for id_, token in enumerate(tokenizer.token_bytes):
        if token:
            found.setdefault(token, id_)
    return found


def _has_inner_space(token: bytes) -> bool:
    """Whether it has a space behind its first byte, and is not one run of spaces."""
    if not any(byte in _SPACE for byte in token[1:]):
        return False
    return token == b"\n\n" or not all(byte in _SPACE for byte in token)


def _is_cut(token: bytes) -> bool:
    """Whether it is not UTF-8."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return True
    return False


def _is_punctuation(text: str) -> bool:
    signs = any(char in _PUNCTUATION for char in text)
    return signs and not any(char.isdigit() for char in text)
