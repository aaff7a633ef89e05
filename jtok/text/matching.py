"""Cutting token sequences into n-grams of a lexicon and single tokens.

Source: Xiao et al. 2021, arXiv 2010.12148, section 3.3.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jtok.errors import check
from jtok.text._gram_table import pack
from jtok.text.lexicon import Lexicon

__all__ = ["Grams", "match_grams"]


class Grams(NamedTuple):
    """A sequence as n-grams and single tokens, one after another.

    Attributes:
      starts: `[grams]` int32 index of the first token of each.
      lengths: `[grams]` int32 tokens of each; they sum to the sequence.
      ids: `[grams]` int32 the token, or `vocab_size` plus the row of the lexicon.
    """

    starts: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray


def match_grams(
    lexicon: Lexicon,
    tokens: Int[np.ndarray, " tokens"],
    *,
    segments: Int[np.ndarray, " _"] | None = None,
    specials: Iterable[int] = (),
) -> Grams:
    """Cuts a sequence from the left, each time at the longest n-gram that fits.

    One hashed look-up for each token and length, then one walk: linear in the tokens.

    Args:
      lexicon: the n-grams.
      tokens: `[tokens]` integer ids.
      segments: `[tokens]` integers; no n-gram holds two neighbours of different ones.
        Documents or sentences that lie one after another are segments.
      specials: ids that no n-gram holds, such as [CLS] and [SEP]; they may lie outside
        the vocabulary.

    Returns:
      `Grams`.

    Raises:
      ArgumentError: an id outside the vocabulary, or segments of another shape.

    Source: arXiv 2010.12148, section 3.3 (maximum matching). Differs: the direction,
    which the paper leaves open, is from the left.

    Example:
      >>> lexicon = Lexicon.of([(5, 6), (5, 6, 7)], vocab_size=10)
      >>> match_grams(lexicon, np.array([5, 6, 5, 6, 7])).ids.tolist()
      [10, 11]
    """
    tokens = tokens.astype(np.int64)
    is_special = np.isin(tokens, list(specials))
    bad = tokens[~is_special & ((tokens < 0) | (tokens >= lexicon.vocab_size))]
    expected = f"ids below {lexicon.vocab_size}, or special ones"
    check(bad.size == 0, "tokens", bad[:3].tolist(), expected)
    reach, ids = np.ones(len(tokens), np.int64), tokens.copy()
    cuts = _cuts(tokens, is_special, segments)
    plain = np.where(is_special, 0, tokens)
    for length, table in lexicon.tables.items():
        count = len(tokens) - length + 1
        if count <= 0:
            break
        # A number of cuts that does not grow inside the window: none lies in it.
        inside = np.flatnonzero(cuts[:count] == cuts[length - 1 :])
        windows = np.lib.stride_tricks.sliding_window_view(plain, length)[inside]
        rows = table.find(pack(windows, lexicon.vocab_size))
        there = inside[rows >= 0]
        reach[there], ids[there] = length, lexicon.vocab_size + rows[rows >= 0]
    starts = _walk(reach.tolist())
    return Grams(starts, reach[starts].astype(np.int32), ids[starts].astype(np.int32))


def _cuts(
    tokens: np.ndarray, is_special: np.ndarray, segments: np.ndarray | None
) -> np.ndarray:
    """How many borders lie before each token; special tokens are borders."""
    new = np.zeros(len(tokens), np.int64)
    new[1:] += is_special[1:] | is_special[:-1]
    if segments is not None:
        good = segments.shape == tokens.shape
        check(good, "segments", segments.shape, f"{tokens.shape}")
        new[1:] += segments[1:] != segments[:-1]
    return np.cumsum(new)


def _walk(reach: list[int]) -> np.ndarray:
    starts, at = [], 0
    while at < len(reach):
        starts.append(at)
        at += reach[at]
    return np.asarray(starts, np.int32)
