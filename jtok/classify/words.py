"""Words as ids, and vectors for them from a file."""

import collections
import dataclasses
import gzip
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jtok.errors import CheckpointError, MissingFileError, check

__all__ = ["WordList", "load_vectors"]

PADDING, UNKNOWN, FIRST = 0, 1, 2
_WORD = re.compile(r"\w+(?:'\w+)*")
_MOST_WIDTH = 10_000  # a wider first line is no file of vectors


@dataclasses.dataclass(frozen=True)
class WordList:
    """Known words; id 0 is padding, 1 an unknown word, and word i has id i + 2.

    Attributes:
      words: the words, each once.
      lowercase: whether texts are put in lower case first.

    Raises:
      ArgumentError: a word that stands twice.

    Example:
      >>> words = WordList.build(["the cat", "The dog"], min_count=2)
      >>> words.words, words.size
      (('the',), 3)
      >>> words.encode(["the end"], length=3)[0].tolist()
      [[2, 1, 0]]
    """

    words: tuple[str, ...]
    lowercase: bool = True

    def __post_init__(self) -> None:
        seen = collections.Counter(self.words)
        twice = next((word for word, count in seen.items() if count > 1), None)
        check(twice is None, "words", twice, "each word once")
        object.__setattr__(
            self, "_ids", {word: i + FIRST for i, word in enumerate(self.words)}
        )

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        *,
        min_count: int = 1,
        most: int | None = None,
        lowercase: bool = True,
    ) -> "WordList":
        """The words of texts, the most frequent first; ties in alphabetical order.

        Args:
          texts: the training texts.
          min_count: how often a word must be there, at least 1.
          most: keep no more words; None keeps all.
          lowercase: as the attribute.

        Returns:
          `WordList`.

        Raises:
          ArgumentError: a count below 1.
        """
        check(min_count >= 1, "min_count", min_count, "at least 1")
        check(most is None or most >= 1, "most", most, "at least 1, or None")
        empty = cls((), lowercase)
        counts = collections.Counter(w for text in texts for w in empty.split(text))
        order = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(w for w in order if counts[w] >= min_count)[:most], lowercase)

    @property
    def size(self) -> int:
        """Ids in all, padding and the unknown word included."""
        return len(self.words) + FIRST

    def split(self, text: str) -> list[str]:
        """Words of a text: letters and digits, joined by apostrophes."""
        return _WORD.findall(text.lower() if self.lowercase else text)

    def ids(self, text: str) -> np.ndarray:
        """`[words]` int32 ids of a text."""
        known: dict[str, int] = self._ids  # type: ignore[attr-defined]
        words = self.split(text)
        return np.array([known.get(word, UNKNOWN) for word in words], np.int32)

    def encode(
        self, texts: Sequence[str], *, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one length: longer texts lose their end.

        Args:
          texts: the texts.
          length: ids of a row, at least 1.

        Returns:
          `[texts, length]` int32 ids and the mask of real words.

        Raises:
          ArgumentError: a length below 1.
        """
        check(length >= 1, "length", length, "at least 1")
        made = np.full((len(texts), length), PADDING, np.int32)
        for row, text in enumerate(texts):
            some = self.ids(text)[:length]
            made[row, : len(some)] = some
        return made, made != PADDING

    def to_json(self) -> str:
        """The list as JSON text, for `from_json`."""
        fields = {"words": list(self.words), "lowercase": self.lowercase}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "WordList":
        """The list that `to_json` wrote.

        Raises:
          CheckpointError: the text is damaged.
        """
        try:
            fields = json.loads(text)
            words, lowercase = fields["words"], fields["lowercase"]
            good = all(isinstance(word, str) for word in words)
            check(good and isinstance(lowercase, bool), "words", words, "texts")
            return cls(tuple(words), lowercase)
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"words: damaged: {error}") from error


def load_vectors(
    path: str | os.PathLike[str], words: WordList, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of known words from a text file, as GloVe is published.

    A line is a word and its numbers, divided by spaces; a first line of two numbers, as
    word2vec writes it, is stepped over. Of a word that stands twice the first counts.

    Args:
      path: the file, plain or gzipped, in UTF-8.
      words: whose vectors.
      seed: of the draws for words that the file lacks.

    Returns:
      Float32 `[size, width]` rows, of which padding is 0 and missing words are normal
      with the spread of those that are there; and `[size]` True for rows of the file.

    Raises:
      MissingFileError: there is no such file.
      CheckpointError: a line with other than `width` numbers or with something else, no
        line at all, or none of a known word; it names file and line.

    Source: the format of Pennington et al. 2014 (GloVe).

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "glove.txt")
      >>> _ = path.write_text("cat 1 2\\ndog 3 4\\n")
      >>> rows, found = load_vectors(path, WordList(("dog", "cow")))
      >>> rows[2].tolist(), found.tolist()
      ([3.0, 4.0], [False, False, True, False])
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(f"path: there is no file {os.fspath(path)!r}.")
    wanted = {word: i + FIRST for i, word in enumerate(words.words)}
    rows: dict[int, np.ndarray] = {}
    for word, vector in _vectors(file):
        at = wanted.get(word)
        if at is not None and at not in rows:
            rows[at] = vector()
    if not rows:
        raise CheckpointError(
            f"{file}: holds none of the {len(words.words)} words; expected a file of "
            "vectors for their language and case."
        )
    found = np.array(list(rows.values()))
    draws = np.random.default_rng(seed).normal(
        found.mean(0), found.std(0) + 1e-6, (words.size, found.shape[1])
    )
    made = draws.astype(np.float32)
    made[PADDING] = 0
    made[list(rows)] = found
    there = np.zeros(words.size, bool)
    there[list(rows)] = True
    return made, there


def _vectors(file: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Words and what reads their numbers, which most callers never need."""
    opened: Any = gzip.open if file.suffix == ".gz" else open
    width = 0
    try:
        with opened(file, "rt", encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and _is_header(fields):
                    continue
                if not width:
                    width = len(fields) - 1
                    _check_width(file, number, width)
                # A few words of the published files have spaces in them.
                parts = line.rstrip().rsplit(" ", width)
                if len(parts) != width + 1:
                    raise CheckpointError(
                        f"{file}, line {number}: has {len(fields) - 1} numbers, "
                        f"expected {width} as in the first line."
                    )
                yield parts[0], lambda n=number, p=parts: _numbers(file, n, p)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise CheckpointError(f"{file}: damaged, or not UTF-8 text: {error}") from error


def _is_header(fields: list[str]) -> bool:
    return all(field.isdecimal() for field in fields)


def _check_width(file: pathlib.Path, number: int, width: int) -> None:
    if not 1 <= width <= _MOST_WIDTH:
        raise CheckpointError(
            f"{file}, line {number}: has {width} numbers behind a word, expected 1 to "
            f"{_MOST_WIDTH}."
        )


def _numbers(file: pathlib.Path, number: int, parts: list[str]) -> np.ndarray:
    try:
        vector = np.array([float(part) for part in parts[1:]], np.float32)
    except ValueError as error:
        raise CheckpointError(f"{file}, line {number}: {error}.") from error
    if not np.isfinite(vector).all():
        raise CheckpointError(f"{file}, line {number}: a number is not finite.")
    return vector
