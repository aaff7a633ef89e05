"""Stop strings, and what texts are made of: looked at by the host between chunks."""

from typing import Any, NamedTuple

import numpy as np

from jtok.text import Vocabulary

__all__ = ["Cut", "StopStrings", "spelled"]


class Cut(NamedTuple):
    """Where a stop string ends a row.

    Attributes:
      count: tokens, up to the one that completes the string.
      text: what is returned for them.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    text: str


def spelled(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Ids that have text: an embedding may have more rows than the tokenizer ids."""
    return ids[ids < vocabulary.size]


class StopStrings(NamedTuple):
    """Strings that end a text.

    Attributes:
      strings: none of them empty.
      vocabulary: what tokens spell.
      include: whether the text keeps the string that ended it.
    """

    strings: tuple[str, ...]
    vocabulary: Any
    include: bool

    def find(self, ids: np.ndarray, checked: int) -> Cut | None:
        """The first stop string in a text whose first `checked` tokens hold none.

        Of several that one token completes, the one that begins first counts, so that
        no stop string is left in the text; of equal beginnings, the shorter one.

        Args:
          ids: `[tokens]` emitted ids.
          checked: tokens that were looked at before.

        Returns:
          `Cut`, or None where there is no stop string.
        """
        if not self._first(self._text(ids)):
            return None
        for count in range(checked + 1, len(ids) + 1):
            text = self._text(ids[:count])
            found = self._first(text)
            if found:
                start, length = found
                return Cut(count, text[: start + (length if self.include else 0)])
        return None

    def held_back(self, text: str) -> int:
        """Characters at the end of a text that may become a stop string."""
        longest = 0
        for string in self.strings:
            for length in range(min(len(string) - 1, len(text)), longest, -1):
                if text.endswith(string[:length]):
                    longest = length
                    break
        return longest

    def _text(self, ids: np.ndarray) -> str:
        return self.vocabulary.decode(spelled(ids, self.vocabulary))

    def _first(self, text: str) -> tuple[int, int] | None:
        places = [(text.find(s), len(s)) for s in self.strings]
        return min((place for place in places if place[0] >= 0), default=None)
