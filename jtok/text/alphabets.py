"""Alphabets that words are spelled in: bytes, characters, or the ids of a tokenizer.

Unit 0 ends a word and pads it, unit 1 says that a piece goes on with the word before,
unit 2 stands for what an alphabet does not have; the others spell.

Source: Thawani et al. 2023, arXiv 2310.11628. Differs: its unit 0 also spells (a space,
`!`), and its longest word sets the length of all.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    VocabMismatchError,
    check,
)
from jtok.text.vocabulary import Vocabulary

__all__ = [
    "CONTINUED",
    "END",
    "UNKNOWN",
    "Alphabet",
    "Units",
    "byte_alphabet",
    "char_alphabet",
    "subword_alphabet",
    "units",
    "words_of",
]

END, CONTINUED, UNKNOWN = 0, 1, 2
_FIRST = 3
_KINDS = ("byte", "char", "subword")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Alphabet:
    """The units that spell words, and words to units and back.

    Immutable, and equal and hashed by content, so it can be static metadata of a
    pytree. Made by `byte_alphabet`, `char_alphabet` and `subword_alphabet`.

    Attributes:
      kind: "byte", "char" or "subword".
      characters: of kind "char", by code point.
      unknown: "error" or "unit": what a character that is not among them is.
      vocabulary: of kind "subword".

    Example:
      >>> byte_alphabet().spell("ab")
      [100, 101]
    """

    kind: Literal["byte", "char", "subword"]
    characters: str = ""
    unknown: Literal["error", "unit"] = "error"
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        check(self.kind in _KINDS, "kind", self.kind, f"one of {_KINDS}")
        policies = ("error", "unit")
        check(self.unknown in policies, "unknown", self.unknown, f"one of {policies}")
        given = self.vocabulary is not None
        check(given == (self.kind == "subword"), "vocabulary", given, "for subwords")
        rising = "".join(sorted(set(self.characters))) == self.characters
        check(rising, "characters", self.characters, "each once, by code point")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.characters, _FIRST)}

    @property
    def size(self) -> int:
        """Number of units, the three special ones included."""
        if self.vocabulary is not None:
            return _FIRST + self.vocabulary.size
        return _FIRST + (256 if self.kind == "byte" else len(self.characters))

    @functools.cached_property
    def hash(self) -> str:
        """Hex SHA-256 of what the units mean."""
        inner = "" if self.vocabulary is None else self.vocabulary.hash
        parts = [self.kind, self.characters, self.unknown, inner]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def spell(self, word: str) -> list[int]:
        """The units of a word.

        Args:
          word: not empty.

        Returns:
          Ids from 2 on, at least one.

        Raises:
          ArgumentError: an empty word, one that is no valid UTF-8, one with a
            character that the alphabet lacks and does not map to the unknown unit, or
            one that the tokenizer drops; the message names it.

        Example:
          >>> char_alphabet(["cab"]).spell("abc")
          [3, 4, 5]
        """
        check(bool(word), "word", word, "at least one character")
        try:
            encoded = word.encode()
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"word: got {word!r}, expected valid UTF-8 ({error.reason})."
            ) from error
        if self.vocabulary is not None:
            found = self.vocabulary.encode(word, specials=False).tolist()
            check(bool(found), "word", word, "one that the tokenizer does not drop")
            return [_FIRST + id_ for id_ in found]
        if self.kind == "byte":
            return [_FIRST + byte for byte in encoded]
        return [self._character(c, word) for c in word]

    def _character(self, character: str, word: str) -> int:
        id_ = self._ids.get(character)
        if id_ is None and self.unknown == "error":
            raise ArgumentError(
                f"word: got {word!r} with {character!r}, expected characters of the "
                "alphabet; take unknown='unit' to map others to one unit."
            )
        return UNKNOWN if id_ is None else id_

    def text(self, ids: Iterable[int]) -> str:
        """The word that units spell, up to the first end; marks spell nothing.

        Args:
          ids: unit ids.

        Returns:
          The word; U+FFFD for the unknown unit and for bytes that are no UTF-8.

        Raises:
          ArgumentError: an id outside the alphabet.

        Example:
          >>> byte_alphabet().text([1, 100, 101, 0, 102])
          'ab'
        """
        out = b""
        for id_ in ids:
            check(0 <= id_ < self.size, "ids", int(id_), f"0 <= id < {self.size}")
            if id_ == END:
                break
            if id_ == UNKNOWN:
                out += "\N{REPLACEMENT CHARACTER}".encode()
            elif id_ >= _FIRST:
                out += self._bytes_of(int(id_) - _FIRST)
        return out.decode(errors="replace")

    def _bytes_of(self, index: int) -> bytes:
        if self.vocabulary is not None:
            return self.vocabulary.token_bytes[index]
        if self.kind == "byte":
            return bytes([index])
        return self.characters[index].encode()

    def to_json(self) -> str:
        """The alphabet as text; of a tokenizer only its hash, which it is checked by.

        Returns:
          JSON.

        Example:
          >>> Alphabet.from_json(byte_alphabet().to_json()) == byte_alphabet()
          True
        """
        fields = {"kind": self.kind, "characters": self.characters}
        return json.dumps({**fields, "unknown": self.unknown, "hash": self.hash})

    @classmethod
    def from_json(cls, text: str, vocabulary: Vocabulary | None = None) -> "Alphabet":
        """The alphabet that `to_json` wrote.

        Args:
          text: JSON.
          vocabulary: of subwords; None for the others.

        Returns:
          The alphabet.

        Raises:
          CheckpointError: damaged text.
          VocabMismatchError: another tokenizer than the one it names.

        Example:
          >>> Alphabet.from_json("{}")
          Traceback (most recent call last):
          jtok.errors.CheckpointError: alphabet: damaged: 'hash'
        """
        try:
            fields = json.loads(text)
            wanted = fields.pop("hash")
            found = cls(**fields, vocabulary=vocabulary)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"alphabet: damaged: {error}") from error
        if found.hash != wanted:
            raise VocabMismatchError(
                f"alphabet: got the hash {found.hash[:12]}, expected {wanted[:12]}: "
                "its characters or its tokenizer are others than when it was saved."
            )
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alphabet) and self.hash == other.hash

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    def __repr__(self) -> str:
        return f"Alphabet(kind={self.kind!r}, size={self.size})"


def byte_alphabet() -> Alphabet:
    """UTF-8 bytes: byte b is unit b + 3, as in ByT5.

    Returns:
      The alphabet, of 259 units.

    Example:
      >>> byte_alphabet().size
      259
    """
    return Alphabet("byte")


def char_alphabet(
    texts: Iterable[str], *, unknown: Literal["error", "unit"] = "error"
) -> Alphabet:
    """The characters of a corpus, in the order of their code points.

    Args:
      texts: the corpus.
      unknown: "error" refuses words with other characters, "unit" maps them to one.

    Returns:
      The alphabet.

    Raises:
      ArgumentTypeError: `texts` is one string.

    Example:
      >>> char_alphabet(["abc"], unknown="unit").spell("b?")
      [4, 2]
    """
    if isinstance(texts, str):
        raise ArgumentTypeError("texts: got one string, expected several in a list.")
    characters = "".join(sorted(set().union(*map(set, texts))))
    return Alphabet("char", characters=characters, unknown=unknown)


def subword_alphabet(vocabulary: Vocabulary) -> Alphabet:
    """The ids of a tokenizer: id i is unit i + 3.

    Args:
      vocabulary: the tokenizer; special tokens of it are units, too.

    Returns:
      The alphabet.

    Example:
      >>> subword_alphabet(Vocabulary.train_bpe(["a b"], 257)).size
      260
    """
    return Alphabet("subword", vocabulary=vocabulary)


class Units(NamedTuple):
    """Words as rows of units.

    Attributes:
      ids: `[pieces, size]` int32, padded with 0.
      lengths: `[pieces]` int32 in 1..size.
      word: `[pieces]` int32 index of the word; long words have several pieces.
    """

    ids: np.ndarray
    lengths: np.ndarray
    word: np.ndarray


def units(
    words: Sequence[str],
    alphabet: Alphabet,
    size: int,
    *,
    longer: Literal["split", "error"] = "split",
) -> Units:
    """Spells words in rows of at most `size` units.

    A longer word is cut into pieces; every piece but its first begins with unit 1,
    which takes one place of the row.

    Args:
      words: the words, none empty.
      alphabet: what spells them.
      size: units of a row, `c0` in the paper; at least 2 to split.
      longer: "split", or "error" for words that are longer.

    Returns:
      `Units`.

    Raises:
      ArgumentError: `size` too small, a word that cannot be spelled, or one that is
        too long where that is an error; it is named.
      ArgumentTypeError: `words` is one string.

    Example:
      >>> found = units(["ab", "abcde"], char_alphabet(["abcde"]), 3)
      >>> found.ids.tolist(), found.word.tolist()
      ([[3, 4, 0], [3, 4, 5], [1, 6, 7]], [0, 1, 1])
    """
    if isinstance(words, str):
        raise ArgumentTypeError("words: got one string, expected several in a list.")
    check(longer in ("split", "error"), "longer", longer, "'split' or 'error'")
    least = 2 if longer == "split" else 1
    check(size >= least, "size", size, f"at least {least}")
    rows: list[list[int]] = []
    owner: list[int] = []
    for index, word in enumerate(words):
        spelled = alphabet.spell(word)
        if len(spelled) > size and longer == "error":
            raise ArgumentError(
                f"words: got {word!r} of {len(spelled)} units, expected at most "
                f"size={size}; take longer='split' or more."
            )
        rows.append(spelled[:size])
        rest = spelled[size:]
        pieces = [rest[i : i + size - 1] for i in range(0, len(rest), max(size - 1, 1))]
        rows.extend([CONTINUED, *piece] for piece in pieces)
        owner.extend([index] * (1 + len(pieces)))
    ids = np.zeros((len(rows), size), np.int32)
    for row, found in zip(ids, rows):
        row[: len(found)] = found
    lengths = np.array([len(row) for row in rows], np.int32)
    return Units(ids, lengths, np.array(owner, np.int32))


def words_of(
    ids: Int[np.ndarray, "pieces size"] | Int32[np.ndarray, "pieces size"],
    alphabet: Alphabet,
) -> list[str]:
    """The words that rows of units spell; pieces go to the word before them.

    Args:
      ids: `[pieces, size]` as in `Units`, or as a model emits them.
      alphabet: what spells them.

    Returns:
      The words. A first piece that continues something begins a word.

    Raises:
      ArgumentError: an id outside the alphabet.

    Example:
      >>> alphabet = char_alphabet(["abcde"])
      >>> words_of(units(["ab", "abcde"], alphabet, 3).ids, alphabet)
      ['ab', 'abcde']
    """
    rows: list[list[int]] = []
    for row in np.asarray(ids).tolist():
        body = row[: row.index(END)] if END in row else row
        if body[:1] == [CONTINUED] and rows:
            rows[-1].extend(body[1:])
        else:
            rows.append(body)
    return [alphabet.text(row) for row in rows]
