"""Text of ids that come a few at a time, as a generating model emits them."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Integer

from jtok.errors import check
from jtok.text import _tokenizer_json as tj
from jtok.text.vocabulary import Vocabulary

__all__ = ["Detokenizer"]


class Detokenizer:
    """Turns ids into text piece by piece; the pieces join to `Vocabulary.decode`.

    Text is given out as soon as no later id can change it: never half a character,
    and where `<0xNN>` tokens spell characters, only when their run has ended, since
    one wrong byte changes how the whole run decodes. The cost is linear in the ids.
    Rules for joining tokens that are not known to be local give all text at the end.

    Example:
      >>> stream = Detokenizer(Vocabulary.train_bpe(["a b"], 257))
      >>> ids = stream.vocabulary.encode("naïve")
      >>> [stream.push([id_]) for id_ in ids], stream.finish()
      (['n', 'a', '', 'ï', 'v', 'e'], '')
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool = True) -> None:
        """Starts an empty text.

        Args:
          vocabulary: whose ids come.
          skip_special: leave special tokens out, as in `Vocabulary.decode`.
        """
        self.vocabulary = vocabulary
        self._skip = skip_special
        self._finished = False
        self._steps = _steps(vocabulary, skip_special)

    @classmethod
    def rows(
        cls, vocabulary: Vocabulary, count: int, *, skip_special: bool = True
    ) -> list["Detokenizer"]:
        """One stream for each row of a batch.

        Args:
          vocabulary: whose ids come.
          count: number of rows.
          skip_special: leave special tokens out.

        Returns:
          `count` streams that share nothing.

        Raises:
          ArgumentError: a negative `count`.

        Example:
          >>> a, b = Detokenizer.rows(Vocabulary.train_bpe(["a b"], 257), 2)
          >>> a.push([1]), b.push([2, 2])
          ('!', '""')
        """
        check(count >= 0, "count", count, "0 or more rows")
        return [cls(vocabulary, skip_special=skip_special) for _ in range(count)]

    def push(
        self, ids: Iterable[SupportsIndex] | Integer[np.ndarray, " tokens"]
    ) -> str:
        """Takes more ids.

        Args:
          ids: `[tokens]` ids, any number of them.

        Returns:
          The text that they settle; maybe none.

        Raises:
          ArgumentError: an id is negative or not below the vocabulary's size, or the
            text was finished; the stream is as it was.

        Example:
          >>> Detokenizer(Vocabulary.train_bpe(["a b"], 257)).push([0, 1, 1])
          '!!'
        """
        check(not self._finished, "ids", "more of them", "none after finish()")
        items: Any = self.vocabulary.checked_ids(ids, skip_special=self._skip)
        for step in self._steps:
            items = step.push(items)
        return "".join(items)

    def finish(self) -> str:
        """Ends the text.

        Returns:
          What was held back. Bytes of an unfinished character become U+FFFD, as in
          `Vocabulary.decode`; nothing when called again.

        Example:
          >>> stream = Detokenizer(Vocabulary.train_bpe(["a b"], 257))
          >>> ids = stream.vocabulary.encode("ï")
          >>> stream.push(ids[:1]), stream.finish()
          ('', '\\ufffd')
        """
        if self._finished:
            return ""
        self._finished = True
        items: Any = []
        for step in self._steps:
            items = [*step.push(items), *step.finish()]
        return "".join(items)


class _Step:
    """One decoder of a chain, over a stream of strings (the first: of ids)."""

    def push(self, items: Sequence[Any]) -> list[str]:
        return list(items)

    def finish(self) -> list[str]:
        return []


def _steps(vocabulary: Vocabulary, skip_special: bool) -> list[_Step]:
    """The decoder of the vocabulary as steps; one that waits for the end if unknown."""
    decoder = vocabulary.decoder
    surfaces = _Surfaces(vocabulary)
    if decoder is None:
        return [surfaces, _Spaced()]
    steps: list[_Step] = [surfaces]
    joined = False  # from here on the items are parts of one string
    for leaf in tj.parts(decoder, "decoders"):
        step = _step(leaf, joined)
        if step is None:
            return [_Whole(vocabulary, skip_special)]
        steps.append(step)
        joined = joined or leaf["type"] in ("Fuse", "ByteLevel")
    return steps


def _step(leaf: Mapping[str, Any], joined: bool) -> _Step | None:
    kind = leaf["type"]
    if kind == "Fuse":
        return _Step()
    if kind == "Replace" and "String" in leaf["pattern"] and leaf["pattern"]["String"]:
        pattern, content = leaf["pattern"]["String"], leaf["content"]
        return _ReplaceText(pattern, content) if joined else _Replace(pattern, content)
    # At the end the library strips in its own way, and panics on short text.
    if kind == "Strip" and joined and not leaf["stop"]:
        return _StripText(leaf["content"], leaf["start"])
    if joined:
        return None
    if kind == "ByteLevel":
        return _Bytes()
    if kind == "ByteFallback":
        return _ByteRuns()
    if kind == "Metaspace":
        return _Metaspace(leaf)
    if kind == "WordPiece":
        return _WordPiece(leaf["prefix"], leaf["cleanup"])
    return None


class _Surfaces(_Step):
    """Ids to the printed tokens; gaps are nothing."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._of = vocabulary.surface_of

    def push(self, items: Sequence[Any]) -> list[str]:
        found = (self._of(id_) for id_ in items)
        return [surface for surface in found if surface is not None]


class _Whole(_Step):
    """Any decoder: everything waits for the end."""

    def __init__(self, vocabulary: Vocabulary, skip_special: bool) -> None:
        self._vocabulary, self._skip = vocabulary, skip_special
        self._ids: list[int] = []

    def push(self, items: Sequence[int]) -> list[str]:
        self._ids.extend(items)
        return []

    def finish(self) -> list[str]:
        return [self._vocabulary.decode(self._ids, skip_special=self._skip)]


class _Spaced(_Step):
    """No decoder: tokens with spaces between."""

    def __init__(self) -> None:
        self._first = True

    def push(self, items: Sequence[Any]) -> list[str]:
        result = []
        for item in items:
            result.append(item if self._first else " " + item)
            self._first = False
        return result


class _Bytes(_Step):
    """Byte-level tokens to text; bytes of an unfinished character wait."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, items: Sequence[Any]) -> list[str]:
        text = self._decoder.decode(b"".join(map(tj.level_bytes, items)))
        return [text] if text else []

    def finish(self) -> list[str]:
        return [self._decoder.decode(b"", final=True)]


class _ByteRuns(_Step):
    """`<0xNN>` tokens to text: a run is UTF-8, or one U+FFFD a byte."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, items: Sequence[Any]) -> list[str]:
        result: list[str] = []
        for item in items:
            if tj.is_byte_token(item):
                self._run.append(int(item[3:5], 16))
            else:
                result += [*self.finish(), item]
        return result

    def finish(self) -> list[str]:
        run, self._run = bytes(self._run), bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class _Replace(_Step):
    """A text replaced inside of every token."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content

    def push(self, items: Sequence[Any]) -> list[str]:
        return [item.replace(self._pattern, self._content) for item in items]


class _ReplaceText(_Step):
    """A text replaced wherever it stands in the joined tokens."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content
        self._held = ""

    def push(self, items: Sequence[Any]) -> list[str]:
        *whole, rest = (self._held + "".join(items)).split(self._pattern)
        # The longest end that may be the beginning of a match.
        longest = min(len(rest), len(self._pattern) - 1)
        hold = next(
            (n for n in range(longest, 0, -1) if self._pattern.startswith(rest[-n:])), 0
        )
        self._held = rest[len(rest) - hold :]
        done = rest[: len(rest) - hold]
        return ["".join(part + self._content for part in whole) + done]

    def finish(self) -> list[str]:
        return [self._held]


class _StripText(_Step):
    """A letter taken off the start of the joined tokens, so many times at most."""

    def __init__(self, content: str, start: int) -> None:
        self._content, self._start = content, start

    def push(self, items: Sequence[Any]) -> list[str]:
        text = "".join(items)
        while self._start and text:
            if not text.startswith(self._content):
                self._start = 0
            else:
                text = text[len(self._content) :]
                self._start -= 1
        return [text]


class _Metaspace(_Step):
    """Metaspaces to spaces, the first of all dropped."""

    def __init__(self, leaf: Mapping[str, Any]) -> None:
        self._mark = leaf["replacement"]
        self._first = leaf.get("prepend_scheme", "always") != "never"

    def push(self, items: Sequence[Any]) -> list[str]:
        result = []
        for item in items:
            kept = item[1:] if self._first and item.startswith(self._mark) else item
            self._first = False
            result.append(kept.replace(self._mark, " "))
        return result


class _WordPiece(_Step):
    """Pieces glued, words spaced, punctuation drawn near."""

    _NEAR = (
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    )

    def __init__(self, prefix: str, cleanup: bool) -> None:
        self._prefix, self._cleanup = prefix, cleanup
        self._first = True

    def push(self, items: Sequence[Any]) -> list[str]:
        result = []
        for item in items:
            if not self._first:
                glued = item.startswith(self._prefix)
                item = item.removeprefix(self._prefix) if glued else f" {item}"
            self._first = False
            for spaced, near in self._NEAR if self._cleanup else ():
                item = item.replace(spaced, near)
            result.append(item)
        return result
