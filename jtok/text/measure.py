"""How many bytes a token stands for, by vocabulary and language.

Source: Sharthak et al. 2025, arXiv 2505.09738, compression of supertokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jtok.errors import ArgumentTypeError, check
from jtok.text.vocabulary import Vocabulary

__all__ = ["Compression", "compression", "spans_words"]

_TWO_WORDS = re.compile(r"\w[^\w\s]*\s+[^\w\s]*\w")


class Compression(NamedTuple):
    """Bytes and tokens of the texts of one language under one vocabulary.

    Attributes:
      vocabulary: its name.
      language: name of the language.
      text_bytes: UTF-8 bytes of the texts.
      tokens: tokens of the texts, nothing put around them.
      bytes_per_token: their quotient; 0 where there are no tokens.
      multiword_share: share of these tokens that span two words or more, of 0 to 1.
    """

    vocabulary: str
    language: str
    text_bytes: int
    tokens: int
    bytes_per_token: float
    multiword_share: float


def spans_words(token: bytes) -> bool:
    """Whether a token holds parts of two words with white space between them.

    In scripts that do not put spaces between words no token does.

    Args:
      token: its bytes; cut characters at its ends do not count.

    Returns:
      True for `b"of the"` and `b"d. B"`, False for `b" the"` and `b"the "`.

    Source: Sharthak et al. 2025, arXiv 2505.09738, multi-word tokens.

    Example:
      >>> spans_words(b" of t"), spans_words(b" of ")
      (True, False)
    """
    return _TWO_WORDS.search(token.decode(errors="ignore")) is not None


def compression(
    vocabularies: Mapping[str, Vocabulary], texts: Mapping[str, Sequence[str]]
) -> tuple[Compression, ...]:
    """Measures how far vocabularies shorten texts.

    Args:
      vocabularies: vocabulary by name.
      texts: texts by language.

    Returns:
      A row for each language and vocabulary, languages first, in the given order.

    Raises:
      ArgumentError: no vocabulary or no language.
      ArgumentTypeError: the texts of a language are one string.

    Source: Sharthak et al. 2025, arXiv 2505.09738, tokens used by language. Differs:
    bytes per token, which compares across languages.

    Example:
      >>> words = Vocabulary.train_bpe(["low low"], 259)
      >>> compression({"words": words}, {"en": ["low low"]})[0].bytes_per_token
      2.3333333333333335
    """
    check(len(vocabularies) > 0, "vocabularies", vocabularies, "at least one")
    check(len(texts) > 0, "texts", texts, "at least one language")
    for language, given in texts.items():
        if isinstance(given, str):
            raise ArgumentTypeError(
                f"texts: got one string for {language!r}, expected several in a list."
            )
    spans = {
        name: [spans_words(token) for token in vocabulary.token_bytes]
        for name, vocabulary in vocabularies.items()
    }
    return tuple(
        _row(name, vocabulary, spans[name], language, given)
        for language, given in texts.items()
        for name, vocabulary in vocabularies.items()
    )


def _row(
    name: str,
    vocabulary: Vocabulary,
    spans: Sequence[bool],
    language: str,
    texts: Sequence[str],
) -> Compression:
    size = sum(len(text.encode()) for text in texts)
    rows = vocabulary.encode_batch(texts, specials=False)
    tokens = sum(len(row) for row in rows)
    wide = sum(spans[id_] for row in rows for id_ in row.tolist())
    most = max(1, tokens)
    return Compression(name, language, size, tokens, size / most, wide / most)
