"""Any tokenizer seen as one over bytes: pieces of bytes, and units that they stay in.

Source: Feher et al. 2024, arXiv 2411.18553, section 3, after Minixhofer et al. 2024,
arXiv 2405.07883, appendix. Differs: the vocabulary's own model segments, so BPE merges
need no translation into bytes and characters of several bytes stay whole.
"""

import functools
import operator
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer

from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.text import _tokenizer_json as tj
from jtok.text._specs import byte_text
from jtok.text.longest_prefix import LongestPrefix
from jtok.text.vocabulary import Vocabulary

__all__ = ["WORD_PATTERN", "ByteTokenizer", "byte_converted", "byte_tokenizer"]

WORD_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)
_KINDS = ("byte_bpe", "sentencepiece_bpe", "unigram", "wordpiece")


class ByteTokenizer:
    """The tokens of a vocabulary as bytes, and any bytes as such tokens.

    Made by `byte_tokenizer` or `byte_converted`; immutable. Bytes that no token of the
    vocabulary spells have ids of their own from `vocabulary.size` on, in the order of
    the bytes; so a text always has pieces, and pieces always spell it.

    Attributes:
      vocabulary: the vocabulary.
      token_bytes: bytes of every id, those of missing bytes included; special tokens
        have none.
      fallback: byte -> id at or above `vocabulary.size`.

    Example:
      >>> vocabulary = Vocabulary.train_bpe(["the cat"], 260)
      >>> byte_tokenizer(vocabulary).pieces(b"!!")
      [1, 1]
    """

    def __init__(self, vocabulary: Vocabulary, *, converted: bool):
        self.vocabulary = vocabulary
        self._spec = _parsed(vocabulary)
        self._tokenizer = tokenizers.Tokenizer.from_str(vocabulary.tokenizer_json())
        self._converted = converted
        spelled = _spellings(vocabulary, self._spec)
        own: dict[int, int] = {}
        for id_, token in enumerate(spelled):
            if len(token) == 1:
                own.setdefault(token[0], id_)
        missing = [byte for byte in range(256) if byte not in own]
        self.fallback = {byte: vocabulary.size + i for i, byte in enumerate(missing)}
        self._single = {**own, **self.fallback}
        self.token_bytes = (*spelled, *(bytes([byte]) for byte in missing))
        self._pieces = functools.lru_cache(maxsize=1 << 18)(self._segment)

    @property
    def size(self) -> int:
        """Number of ids, those of missing bytes included."""
        return len(self.token_bytes)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens."""
        return self.vocabulary.special_ids

    @property
    def hash(self) -> str:
        """The vocabulary's."""
        return self.vocabulary.hash

    def split(self, text: str) -> list[str]:
        """The units of a text that no piece crosses.

        Args:
          text: any text; nothing is put before it.

        Returns:
          The units; joined they are the text.

        Example:
          >>> vocabulary = Vocabulary.train_bpe(["the cat"], 260)
          >>> byte_tokenizer(vocabulary).split("the cat.")
          ['the', ' cat', '.']
        """
        if self._splitter is None:
            return [text] if text else []
        found = self._splitter.pre_tokenize_str(text)
        return [text[start:stop] for _, (start, stop) in found]

    def units(self, text: str) -> int:
        """How many units the pre-tokenizer makes of a text.

        Args:
          text: any text.

        Returns:
          The number.

        Example:
          >>> vocabulary = Vocabulary.train_bpe(["the cat"], 260)
          >>> byte_tokenizer(vocabulary).units("the cat.")
          3
        """
        if self._splitter is None:
            return int(bool(text))
        return len(self._splitter.pre_tokenize_str(text))

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text: its units, each in pieces. No special token is read or added.

        A converted tokenizer puts one space before a text that has none there.

        Args:
          text: any text.

        Returns:
          `[tokens]` int32.

        Example:
          >>> vocabulary = Vocabulary.train_bpe(["a b"], 257)
          >>> byte_converted(vocabulary).encode("!").tolist()
          [221, 1]
        """
        if not self._converted:
            return np.asarray(self._encode_as_is(text), np.int32)
        if text and not text.startswith(" "):
            text = " " + text
        ids = [id_ for unit in self.split(text) for id_ in self.pieces(unit.encode())]
        return np.asarray(ids, np.int32)

    def _encode_as_is(self, text: str) -> list[int]:
        """With the vocabulary's own normalizer and pre-tokenizer."""
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        units = [text]
        if self._splitter is not None:
            units = [unit for unit, _ in self._splitter.pre_tokenize_str(text)]
        model = self._tokenizer.model
        return [piece.id for unit in units if unit for piece in model.tokenize(unit)]

    def decode_bytes(
        self, ids: Iterable[SupportsIndex] | Integer[np.ndarray, " tokens"]
    ) -> bytes:
        """The bytes of ids, one after another; special tokens have none.

        Args:
          ids: `[tokens]`, below `size`.

        Returns:
          The bytes.

        Raises:
          ArgumentError: an id out of range.

        Example:
          >>> vocabulary = Vocabulary.train_bpe(["a b"], 257)
          >>> byte_tokenizer(vocabulary).decode_bytes([1, 1])
          b'!!'
        """
        found = [operator.index(id_) for id_ in ids]
        good = all(0 <= id_ < self.size for id_ in found)
        check(good, "ids", found[:8], f"ids 0 <= id < {self.size}")
        return b"".join(self.token_bytes[id_] for id_ in found)

    def pieces(self, token: bytes) -> list[int]:
        """Pieces of bytes under the model alone, without a pre-tokenizer.

        Args:
          token: any bytes, valid UTF-8 or not.

        Returns:
          Ids whose bytes, joined, are `token`.

        Example:
          >>> vocabulary = Vocabulary.train_bpe(["the cat, the hat"], 260)
          >>> pieces = byte_tokenizer(vocabulary).pieces(b" the\\xff")
          >>> byte_tokenizer(vocabulary).decode_bytes(pieces)
          b' the\\xff'
        """
        return list(self._pieces(token))

    @functools.cached_property
    def _splitter(self) -> tokenizers.pre_tokenizers.PreTokenizer | None:
        if not self._converted:
            return self._tokenizer.pre_tokenizer
        pattern = tokenizers.Regex(WORD_PATTERN)
        return tokenizers.pre_tokenizers.Split(pattern, "isolated")

    @functools.cached_property
    def _longest(self) -> LongestPrefix:
        return LongestPrefix(self.token_bytes)

    @functools.cached_property
    def _letters(self) -> frozenset[str]:
        """Characters that are tokens of the model, so that it never says unknown."""
        vocab = self._tokenizer.get_vocab(with_added_tokens=False)
        return frozenset(token for token in vocab if len(token) == 1)

    def _segment(self, token: bytes) -> tuple[int, ...]:
        kind = self.vocabulary.kind
        if kind == "wordpiece":
            return tuple(self._longest.match(token))
        if kind == "byte_bpe":
            return tuple(self._by_model(byte_text(token), token))
        ids: list[int] = []
        for text, raw in _runs(token, self._letters):
            if text is None:
                ids += [self._single[byte] for byte in raw]
            else:
                ids += self._by_model(text, raw)
        return tuple(ids)

    def _by_model(self, text: str, raw: bytes) -> list[int]:
        found = [piece.id for piece in self._tokenizer.model.tokenize(text)]
        if b"".join(self.token_bytes[id_] for id_ in found) == raw:
            return found
        return [self._single[byte] for byte in raw]  # The model lacks a byte.


def byte_tokenizer(vocabulary: Vocabulary) -> ByteTokenizer:
    """A byte-level vocabulary with its own pre-tokenizer.

    Args:
      vocabulary: of kind `byte_bpe`.

    Returns:
      `ByteTokenizer` whose `encode` is that of the vocabulary.

    Raises:
      ArgumentError: another kind (`byte_converted` takes those), or one that marks
        where words end.
      ArgumentTypeError: no vocabulary.

    Source: arXiv 2411.18553, section 3.

    Example:
      >>> byte_tokenizer(Vocabulary.train_bpe(["a b"], 257)).size
      257
    """
    _check_vocabulary(vocabulary)
    if vocabulary.kind != "byte_bpe":
        raise ArgumentError(
            f"vocabulary: got one of kind {vocabulary.kind!r}, expected 'byte_bpe'; "
            "convert it with jtok.text.byte_converted."
        )
    return ByteTokenizer(vocabulary, converted=False)


def byte_converted(vocabulary: Vocabulary) -> ByteTokenizer:
    """Any vocabulary as one over bytes, with words as units and a space before texts.

    Ids stay what they are. Tokens that stand at the beginning of a word get their
    space (U+2581, or WordPiece without `##`), `<0xNN>` is that byte unless a token
    spells it already, missing bytes get ids from `vocabulary.size` on. Texts are no
    longer normalised, and split by GPT-2's rule with marks among the letters, so
    segmentation changes a little; WordPiece looks for the longest prefix, as ever.

    Args:
      vocabulary: BPE, Unigram or WordPiece.

    Returns:
      `ByteTokenizer`.

    Raises:
      ArgumentError: a word-level vocabulary, or one that marks where words end.
      ArgumentTypeError: no vocabulary.

    Source: Minixhofer et al. 2024, arXiv 2405.07883, appendix. Differs: pieces are
    those of the vocabulary's own model, and a text that begins with a space gets no
    second one.

    Example:
      >>> byte_converted(Vocabulary.train_bpe(["a b"], 257)).split("it's on")
      ['it', "'s", ' on']
    """
    _check_vocabulary(vocabulary)
    known = ", ".join(_KINDS)
    check(vocabulary.kind in _KINDS, "vocabulary", vocabulary.kind, f"one of {known}")
    return ByteTokenizer(vocabulary, converted=True)


def _check_vocabulary(vocabulary: object) -> None:
    if not isinstance(vocabulary, Vocabulary):
        raise ArgumentTypeError(
            f"vocabulary: got {type(vocabulary).__name__}, expected a Vocabulary."
        )
    if _parsed(vocabulary)["model"].get("end_of_word_suffix"):
        raise ArgumentError(
            "vocabulary: got one that marks where words end, expected one that marks "
            "where they begin."
        )


def _parsed(vocabulary: Vocabulary) -> dict:
    return tj.parse_object(vocabulary.tokenizer_json(), tj.JSON, tj.JSON)


def _spellings(vocabulary: Vocabulary, spec: dict) -> list[bytes]:
    """Bytes of every id as they stand in a text with a space before each word."""
    specials = vocabulary.special_ids
    found = list(vocabulary.token_bytes)
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    literal = set()
    for id_ in range(vocabulary.size):
        surface = vocabulary.surface_of(id_) or ""
        if id_ in specials:
            found[id_] = b""
        elif vocabulary.kind == "wordpiece" and surface:
            inner = bool(prefix) and surface.startswith(prefix)
            found[id_] = (
                surface[len(prefix) :].encode() if inner else b" " + surface.encode()
            )
        if not tj.is_byte_token(surface) and len(found[id_]) == 1:
            literal.add(found[id_])
    for id_ in range(vocabulary.size):
        # A byte that a token spells already is that token's.
        if tj.is_byte_token(vocabulary.surface_of(id_) or "") and found[id_] in literal:
            found[id_] = b""
    return found


def _runs(token: bytes, letters: frozenset[str]) -> list[tuple[str | None, bytes]]:
    """Parts of bytes: texts in the model's spelling, and None for loose bytes."""
    parts: list[tuple[str | None, bytes]] = []
    for char in token.decode("utf-8", "surrogateescape"):
        raw = char.encode("utf-8", "surrogateescape")
        spelled = tj.METASPACE if char == " " else char
        known = spelled in letters
        last = parts[-1] if parts else None
        if last is not None and (last[0] is not None) == known:
            text = None if last[0] is None else last[0] + spelled
            parts[-1] = (text, last[1] + raw)
        else:
            parts.append((spelled if known else None, raw))
    return parts
