"""Words: of plain text, and of any tokenizer's ids.

Source: the cleaning and the two scores of words are those of the code of Thawani et
al. 2023, arXiv 2310.11628.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32, Integer

from jtok.errors import ArgumentTypeError, check
from jtok.text.vocabulary import Vocabulary

__all__ = [
    "clean_words",
    "frequency_groups",
    "join_words",
    "same_word",
    "split_words",
    "word_ids",
]

_RUNS = re.compile(r"\s+|\S+")
_DROPPED = re.compile(r"\n|<unk>|=|@-@")
# One alternative after another, as there: a lone colon stays, two hyphens are split.
_APART = re.compile(r"(-|\{|\}:|,|;|\.|\n|!|'|--|\?)")
_SPACES = b" \t\n\r\x0b\x0c"
_HIGH, _LOW = 45, 10


def split_words(text: str, *, clean: Literal["etok"] | None = None) -> list[str]:
    """The words of a text.

    Words are runs of characters that are no whitespace (Unicode's). One space between
    two words is not a word; any other whitespace, also that at the ends of the text,
    stands as a word of its own, so `join_words` gives the text back.

    Args:
      text: any text.
      clean: "etok" first puts punctuation apart and drops some signs, see
        `clean_words`; the text cannot be had back then.

    Returns:
      The words, none of them empty.

    Raises:
      ArgumentTypeError: `text` is no string.
      ArgumentError: an unknown `clean`.

    Example:
      >>> split_words("to be,\\nor  not")
      ['to', 'be,', '\\n', 'or', '  ', 'not']
      >>> split_words("to be,\\nor", clean="etok")
      ['to', 'be', ',', 'or']

    Source: `clean`: Thawani et al. 2023, arXiv 2310.11628, official code.
    """
    if not isinstance(text, str):
        raise ArgumentTypeError(f"text: got {type(text).__name__}, expected a string.")
    check(clean in (None, "etok"), "clean", clean, "None or 'etok'")
    if clean:
        return [word for word in clean_words(text).split(" ") if word]
    runs = _RUNS.findall(text)
    last = len(runs) - 1
    return [run for i, run in enumerate(runs) if run != " " or i in (0, last)]


def join_words(words: Iterable[str]) -> str:
    """The text of words: one space between two words that are no whitespace.

    Args:
      words: as from `split_words`.

    Returns:
      The text; `join_words(split_words(text)) == text` for every text.

    Example:
      >>> join_words(["to", "be,", "\\n", "or", "not"])
      'to be,\\nor not'
    """
    parts: list[str] = []
    for word in words:
        if parts and not (word.isspace() or parts[-1].isspace()):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def clean_words(text: str) -> str:
    """Puts punctuation apart and drops some signs, as the paper's code does.

    Line ends, `<unk>`, `=` and `@-@` become spaces; `-{,;.!'?` and `}:` stand apart;
    spaces are collapsed. Two quirks are kept: a lone colon stays with its word, and
    `--` becomes two words.

    Args:
      text: any text.

    Returns:
      The text, words separated by one space.

    Example:
      >>> clean_words("Speak: it's well-known -- so.")
      "Speak: it ' s well - known - - so ."

    Source: Thawani et al. 2023, arXiv 2310.11628, official code, data set class.
    """
    spaced = _APART.sub(r" \1 ", _DROPPED.sub(" ", text))
    return re.sub(" +", " ", spaced).strip()


def same_word(predicted: str, word: str) -> bool:
    """Whether a prediction counts as right: it or its first part is the word.

    Args:
      predicted: text; parts are separated by whitespace.
      word: what it should be.

    Returns:
      Whether they agree.

    Example:
      >>> same_word("bank is open", "bank"), same_word("banker", "bank")
      (True, False)

    Source: Thawani et al. 2023, arXiv 2310.11628, official evaluation.
    """
    return predicted == word or predicted.split()[:1] == [word]


def frequency_groups(text: str, words: Sequence[str]) -> list[str]:
    """How frequent words are in a text: "high", "mid" or "low".

    Counts are of runs of letters, digits and `_`. More than 45 are high, between 10
    and 45 (both not included) mid, all else low: 45 itself too, a quirk of the code.

    Args:
      text: where they are counted.
      words: which are looked up.

    Returns:
      One group a word.

    Example:
      >>> frequency_groups("one two " * 20 + "one " * 30, ["one", "two", "six"])
      ['high', 'mid', 'low']

    Source: Thawani et al. 2023, arXiv 2310.11628, official evaluation.
    """
    counts = collections.Counter(re.findall(r"\w+", text))
    group = lambda n: "high" if n > _HIGH else "mid" if _LOW < n < _HIGH else "low"
    return [group(counts[word]) for word in words]


def word_ids(
    vocabulary: Vocabulary,
    ids: Sequence[int] | Integer[np.ndarray, " tokens"],
) -> Int32[np.ndarray, " tokens"]:
    """The index of the word that every token belongs to.

    Whitespace belongs to the word behind it, so a word begins where whitespace follows
    something else; a token counts where its first byte does. In WordPiece and
    word-level vocabularies every token without a mark of continuation begins one, in
    CLIP's each token behind a mark of a word's end. Special tokens stand between words.

    Args:
      vocabulary: whose ids they are.
      ids: `[tokens]` ids of one text.

    Returns:
      `[tokens]` int32, from 0, not decreasing but for the -1 of special tokens.

    Raises:
      ArgumentError: an id is negative or not below the vocabulary's size.

    Example:
      >>> v = Vocabulary.train_bpe(["a cat"], 257)
      >>> word_ids(v, v.encode("a cat!")).tolist()
      [0, 1, 1, 1, 1, 1]
    """
    plain = vocabulary.checked_ids(ids)
    special = np.array([i in vocabulary.special_ids for i in plain], bool)
    starts = _starts(vocabulary, plain)
    # What follows a special token, or nothing, begins a word whatever it looks like.
    starts |= np.concatenate([[True], special[:-1]])[: len(plain)]
    found = np.cumsum(starts & ~special) - 1
    return np.where(special, -1, found).astype(np.int32)


def _starts(vocabulary: Vocabulary, ids: list[int]) -> Bool[np.ndarray, " tokens"]:
    """`[tokens]` bool: a word begins with the first byte of the token."""
    if vocabulary.kind in ("wordpiece", "wordlevel"):
        return np.asarray(vocabulary.word_starts[ids], bool)
    table = [vocabulary.token_bytes[id_] for id_ in ids]
    starts = np.zeros(len(ids), bool)
    solid = False  # the last byte so far is no whitespace
    pending = False  # a word began within the token before
    for i, token in enumerate(table):
        starts[i] = pending or (solid and token[:1] in _LEADING)
        inner, solid = _within(token, solid)
        pending = inner or (vocabulary.pretokenizer == "clip" and not solid)
    return starts


_LEADING = frozenset(bytes([b]) for b in _SPACES)


def _within(token: bytes, solid: bool) -> tuple[bool, bool]:
    """Whether a word begins inside a token, and whether it ends in something else."""
    if not token:
        return False, solid
    body = token.lstrip(_SPACES)
    inner = any(byte in _SPACES for byte in body)
    return inner, token[-1] not in _SPACES
