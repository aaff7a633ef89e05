"""Tokenizers drawn at random, so that a network meets many ways to cut a text.

Pieces are scored by how many bytes of recent texts they would spell, noise is put on
the scores, and the best make a Unigram vocabulary that segments by Viterbi.

Source: Minixhofer et al. 2024, arXiv 2405.07883, section 3.2.
"""

import functools
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Float32, Int32

from jtok.errors import check
from jtok.text._specs import byte_text
from jtok.text.byte_tokens import ByteTokenizer

__all__ = ["PieceQueue", "SampledVocabulary", "sample_vocabulary"]

_BLANKS = tuple(
    blank * count for blank in (b" ", b"\n", b"\t") for count in (2, 4, 8, 16)
)
_NEVER = -1e5  # log-probability of a piece that noise has pushed below zero


class PieceQueue:
    """Substrings of the most recent texts, and how many bytes of them each spells.

    Args:
      tokenizer: its pre-tokenizer cuts the texts; no piece crosses.
      capacity: texts that count; older ones are forgotten.
      max_bytes: of the longest piece.
      stride: a piece begins at every `stride`-th byte of a unit.

    Raises:
      ArgumentError: a number below 1.

    Source: arXiv 2405.07883, section 3.2 (2048 texts, 15 bytes, every fourth start).

    Example:
      >>> from jtok.text import Vocabulary, byte_tokenizer
      >>> base = byte_tokenizer(Vocabulary.train_bpe(["a b"], 257))
      >>> queue = PieceQueue(base, stride=1)
      >>> queue.add(["abab"])
      >>> queue.scores()[b"ab"]
      4
    """

    def __init__(
        self, tokenizer: ByteTokenizer, *, capacity: int = 2048, max_bytes: int = 15,
        stride: int = 4,
    ):  # fmt: skip
        for name, value in (
            ("capacity", capacity), ("max_bytes", max_bytes), ("stride", stride)
        ):  # fmt: skip
            check(value >= 1, name, value, "at least 1")
        self._tokenizer, self._max_bytes, self._stride = tokenizer, max_bytes, stride
        self._texts: deque[Counter[bytes]] = deque()
        self._capacity = capacity
        self._units: Counter[bytes] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """Counts texts, and forgets the oldest beyond the capacity.

        Args:
          texts: the texts.

        Example:
          >>> from jtok.text import Vocabulary, byte_tokenizer
          >>> base = byte_tokenizer(Vocabulary.train_bpe(["a b"], 257))
          >>> queue = PieceQueue(base, capacity=1)
          >>> queue.add(["one", "two"])
          >>> b"one" in queue.scores()
          False
        """
        for text in texts:
            units = Counter(unit.encode() for unit in self._tokenizer.split(text))
            self._texts.append(units)
            self._units.update(units)
            if len(self._texts) > self._capacity:
                self._units.subtract(self._texts.popleft())
        self._units = +self._units

    def scores(self) -> dict[bytes, int]:
        """Score of every piece: occurrences times bytes.

        Returns:
          Score by piece.

        Example:
          >>> from jtok.text import Vocabulary, byte_tokenizer
          >>> base = byte_tokenizer(Vocabulary.train_bpe(["a b"], 257))
          >>> PieceQueue(base).scores()
          {}
        """
        found: Counter[bytes] = Counter()
        for unit, count in self._units.items():
            for start in range(0, len(unit), self._stride):
                stop = min(start + self._max_bytes, len(unit))
                for end in range(start + 1, stop + 1):
                    found[unit[start:end]] += count * (end - start)
        return dict(found)


class SampledVocabulary(NamedTuple):
    """A Unigram vocabulary of byte pieces.

    Attributes:
      pieces: bytes of every id; empty for special ids and for ids that are not used.
      scores: `[size]` float32 log-probabilities, unnormalised.
      special: own id -> id of the base vocabulary.
      splitter: what cuts texts into units.
    """

    pieces: tuple[bytes, ...]
    scores: np.ndarray
    special: Mapping[int, int]
    splitter: ByteTokenizer

    @property
    def size(self) -> int:
        """Number of ids, unused ones included."""
        return len(self.pieces)

    def segment(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """The segmentation of the highest total score, unit by unit.

        Args:
          text: any text.

        Returns:
          `[tokens]` int32.

        Example:
          >>> from jtok.text import Vocabulary, byte_tokenizer
          >>> base = byte_tokenizer(Vocabulary.train_bpe(["a b"], 257))
          >>> queue = PieceQueue(base, stride=1)
          >>> queue.add(["abc abc"])
          >>> drawn = sample_vocabulary(queue.scores(), base, rng=0, noise=(0.0, 0.0))
          >>> [drawn.pieces[i] for i in drawn.segment("abc")]
          [b'abc']
        """
        model, ids = _viterbi(self.pieces, self.scores.tobytes())
        found: list[int] = []
        for unit in self.splitter.split(text):
            pieces = model.tokenize(byte_text(unit.encode()))
            found += [ids[piece.id] for piece in pieces]
        return np.asarray(found, np.int32)


@functools.lru_cache(maxsize=4)
def _viterbi(pieces: tuple[bytes, ...], scores: bytes) -> tuple[Any, list[int]]:
    """The model over the printable alphabet, and our id of each of its own."""
    values: Float32[np.ndarray, " size"] = np.frombuffer(scores, np.float32)
    ids = [id_ for id_, piece in enumerate(pieces) if piece]
    table = [(byte_text(pieces[id_]), float(values[id_])) for id_ in ids]
    return tokenizers.models.Unigram(table, None, False), ids


def sample_vocabulary(
    scores: Mapping[bytes, int],
    tokenizer: ByteTokenizer,
    *,
    size: int = 32768,
    noise: tuple[float, float] = (float(np.log(1e-5)), 4.0),
    rng: np.random.Generator | int = 0,
) -> SampledVocabulary:
    """Draws a vocabulary: noise on the shares of the pieces, then the best of them.

    All single bytes and some runs of blanks are always in. Equal scores go to the
    smaller bytes. Special tokens keep the ids of the base where these are below the
    new size, others follow behind the pieces.

    Args:
      scores: of the pieces, as from `PieceQueue.scores`.
      tokenizer: of the base vocabulary; gives the special tokens and the units.
      size: pieces to keep, at least room for bytes and blanks. With fewer candidates
        the last ids have no bytes.
      noise: mean and standard deviation of the logarithm of the noise's own standard
        deviation, drawn once a vocabulary, in shares of all scores; a deviation of
        that logarithm of 0 with a mean of 0 is no noise at all.
      rng: NumPy generator, or a seed.

    Returns:
      `SampledVocabulary` with `size` ids and those of the special tokens.

    Raises:
      ArgumentError: no room for the bytes, or a negative deviation.

    Source: arXiv 2405.07883, section 3.2.

    Example:
      >>> from jtok.text import Vocabulary, byte_tokenizer
      >>> base = byte_tokenizer(Vocabulary.train_bpe(["a b"], 257))
      >>> sample_vocabulary({b"ab": 4}, base, size=300).size
      301
    """
    kept = [bytes([byte]) for byte in range(256)] + list(_BLANKS)
    check(size >= len(kept), "size", size, f"at least {len(kept)} pieces")
    check(noise[1] >= 0, "noise", noise, "a deviation of at least 0")
    rng = np.random.default_rng(rng) if isinstance(rng, int) else rng
    names = sorted({*scores, *kept})
    mass = np.array([scores.get(name, 0) for name in names], np.float64)
    share = mass / max(mass.sum(), 1.0)
    if noise != (0.0, 0.0):
        deviation = float(rng.lognormal(noise[0], noise[1]))
        share = share + rng.normal(0.0, deviation, len(names))
    positive = share > 0
    logs = np.where(positive, np.log(np.where(positive, share, 1.0)), _NEVER)
    always = {name: rank for rank, name in enumerate(kept)}
    must = np.array([name in always for name in names])
    order = np.lexsort((np.arange(len(names)), -logs, ~must))[:size]
    order = order[np.argsort(-logs[order], kind="stable")]
    return _laid_out([names[i] for i in order], logs[order], size, tokenizer)


def _laid_out(
    names: list[bytes], logs: np.ndarray, size: int, tokenizer: ByteTokenizer
) -> SampledVocabulary:
    base = sorted(tokenizer.special_ids)
    total = size + len(base)
    special = {id_: id_ for id_ in base if id_ < total}
    late = [id_ for id_ in base if id_ >= total]
    special |= {total - 1 - place: id_ for place, id_ in enumerate(reversed(late))
                if total - 1 - place not in special}  # fmt: skip
    free = [id_ for id_ in range(total) if id_ not in special]
    pieces, scores = [b""] * total, np.full(total, _NEVER, np.float32)
    for id_, name, value in zip(free, names, logs):
        pieces[id_], scores[id_] = name, value
    return SampledVocabulary(tuple(pieces), scores, special, tokenizer)
