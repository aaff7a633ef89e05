"""N-grams that are more frequent than their tokens would make them by chance.

Counting is by sorting packed 64-bit keys on the host; shards of a corpus are counted
apart and their counts added. What a lexicon holds depends on the vocabulary, whose
hash is stored with it.

Source: Xiao et al. 2021, arXiv 2010.12148, section 3.3 and appendix A.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Bool, Float, Int, UInt64

from jtok import files
from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
    check,
)
from jtok.text._gram_table import GramTable, pack, unpack
from jtok.text.vocabulary import Vocabulary

__all__ = [
    "GramCounts",
    "Lexicon",
    "build_lexicon",
    "count_grams",
    "gram_scores",
    "load_lexicon",
    "merge_counts",
    "save_lexicon",
]

_KIND = "jtok.lexicon"
_SHARD = 2**23  # tokens that are sorted at a time


class GramCounts(NamedTuple):
    """How often each n-gram of a corpus occurs within documents.

    Attributes:
      unigrams: `[vocab]` int64 counts of single tokens.
      keys: n -> `[distinct]` uint64 ascending, the n-grams in lexicographic order; the
        digits of a key to the base `vocab` are the ids.
      counts: n -> `[distinct]` int64.
    """

    unigrams: np.ndarray
    keys: Mapping[int, np.ndarray]
    counts: Mapping[int, np.ndarray]

    @property
    def vocab_size(self) -> int:
        """Ids that tokens may have."""
        return len(self.unigrams)

    @property
    def longest(self) -> int:
        """Tokens of the longest n-grams that were counted."""
        return max(self.keys)

    def total(self, length: int) -> int:
        """Positions of n-grams of that length, over all documents."""
        return int(self.counts[length].sum())

    def grams(self, length: int) -> np.ndarray:
        """`[distinct, length]` int32 ids of the n-grams of that length."""
        return unpack(self.keys[length], length, self.vocab_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Lexicon:
    """The n-grams that count as units; row r has the id `vocab_size + r`.

    Attributes:
      tokens: `[rows, longest]` int32 ids, -1 after the end.
      lengths: `[rows]` int32 tokens of each, from 2 to `longest`.
      vocab_size: ids of the vocabulary whose tokens these are.
      vocabulary: its hash, or None where it is not known.

    Raises:
      ArgumentError: an entry that is too short, too long, twice there, or holds an id
        outside the vocabulary.

    Example:
      >>> lexicon = Lexicon.of([(5, 6), (5, 6, 7)], vocab_size=10)
      >>> lexicon.gram(11), len(lexicon)
      ((5, 6, 7), 2)
    """

    tokens: np.ndarray
    lengths: np.ndarray
    vocab_size: int
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        tokens = np.asarray(self.tokens, np.int32)
        lengths = np.asarray(self.lengths, np.int32)
        good = tokens.ndim == 2 and lengths.shape == tokens.shape[:1]
        check(good, "tokens", tokens.shape, "[rows, longest] beside [rows] lengths")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "lengths", lengths)
        longest = tokens.shape[1]
        _check_longest(longest, self.vocab_size)
        for length in np.unique(lengths).tolist():
            check(2 <= length <= longest, "lengths", length, f"2 to {longest} tokens")
        inside = np.arange(longest)[None, :] < lengths[:, None]
        bad = tokens[inside & ((tokens < 0) | (tokens >= self.vocab_size))]
        check(bad.size == 0, "tokens", bad[:3].tolist(), f"ids below {self.vocab_size}")
        object.__setattr__(self, "tokens", np.where(inside, tokens, -1))
        for length, table in self.tables.items():
            count = int((lengths == length).sum())
            check(len(table) == count, "tokens", f"an entry of {length} twice", "once")

    @classmethod
    def of(
        cls,
        grams: Sequence[Sequence[int]],
        *,
        vocab_size: int,
        longest: int = 3,
        vocabulary: str | None = None,
    ) -> "Lexicon":
        """A lexicon of given n-grams, in this order.

        Args:
          grams: the ids of each; none for an empty lexicon.
          vocab_size: ids of the vocabulary.
          longest: tokens of an entry at most.
          vocabulary: hash of the vocabulary.

        Returns:
          The lexicon.

        Raises:
          ArgumentError: as for the class.
        """
        lengths = np.asarray([len(gram) for gram in grams], np.int32)
        for length in np.unique(lengths).tolist():
            check(2 <= length <= longest, "grams", length, f"2 to {longest} tokens")
        tokens = np.full((len(grams), longest), -1, np.int32)
        for row, gram in zip(tokens, grams):
            row[: len(gram)] = gram
        return cls(tokens, lengths, vocab_size, vocabulary)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of an entry at most."""
        return self.tokens.shape[1]

    @property
    def num_classes(self) -> int:
        """Tokens and n-grams together."""
        return self.vocab_size + len(self)

    def gram(self, id_: int) -> tuple[int, ...]:
        """The tokens that an id stands for: itself, or those of the n-gram.

        Args:
          id_: below `num_classes`.
        """
        expected = f"0 <= id < {self.num_classes}"
        check(0 <= id_ < self.num_classes, "id_", id_, expected)
        row = id_ - self.vocab_size
        if row < 0:
            return (id_,)
        return tuple(self.tokens[row, : self.lengths[row]].tolist())

    @functools.cached_property
    def tables(self) -> dict[int, GramTable]:
        """Length -> the rows of the n-grams of that length, by hash."""
        found = {}
        for length in range(2, self.longest + 1):
            rows = np.flatnonzero(self.lengths == length)
            keys = pack(self.tokens[rows, :length], self.vocab_size)
            found[length] = GramTable(keys, rows.astype(np.int32))
        return found


def count_grams(
    documents: Iterable[Int[np.ndarray, " _"]],
    *,
    vocab_size: int,
    longest: int = 3,
) -> GramCounts:
    """Counts all n-grams inside documents, never across the end of one.

    Args:
      documents: `[tokens]` integer ids of each; empty ones count nothing.
      vocab_size: every id is below it.
      longest: tokens of the longest n-grams, at least 2.

    Returns:
      `GramCounts`.

    Raises:
      ArgumentError: `longest` below 2 or keys beyond 64 bits, or an id outside the
        vocabulary.

    Source: arXiv 2010.12148, section 3.3.

    Example:
      >>> found = count_grams([np.array([1, 2, 1, 2])], vocab_size=3)
      >>> found.grams(2).tolist(), found.counts[2].tolist()
      ([[1, 2], [2, 1]], [2, 1])
    """
    _check_longest(longest, vocab_size)
    whole = _count_shard([], vocab_size, longest)
    group: list[np.ndarray] = []
    size = 0
    for document in documents:
        group.append(np.asarray(document))
        size += len(group[-1])
        if size >= _SHARD:
            whole = merge_counts([whole, _count_shard(group, vocab_size, longest)])
            group, size = [], 0
    return merge_counts([whole, _count_shard(group, vocab_size, longest)])


def _check_longest(longest: int, vocab_size: int) -> None:
    check(vocab_size >= 1, "vocab_size", vocab_size, "at least 1")
    check(longest >= 2, "longest", longest, "n-grams of at least 2 tokens")
    fits = vocab_size**longest <= 2**64
    expected = f"{longest}-grams whose keys fit into 64 bits"
    check(fits, "vocab_size", f"{vocab_size} ids", expected)


def _count_shard(
    documents: list[np.ndarray], vocab_size: int, longest: int
) -> GramCounts:
    sizes = [len(document) for document in documents]
    tokens = np.concatenate([np.zeros(0, np.int64), *documents]).astype(np.int64)
    bad = tokens[(tokens < 0) | (tokens >= vocab_size)]
    check(bad.size == 0, "documents", bad[:3].tolist(), f"ids below {vocab_size}")
    document = np.repeat(np.arange(len(sizes)), sizes)
    keys, counts = {}, {}
    for length in range(2, longest + 1):
        count = max(len(tokens) - length + 1, 0)
        inside = document[:count] == document[length - 1 :][:count]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(tokens, (0, length)), length
        )
        packed = pack(windows[:count][inside], vocab_size)
        keys[length], counts[length] = np.unique(packed, return_counts=True)
    return GramCounts(np.bincount(tokens, minlength=vocab_size), keys, counts)


def merge_counts(parts: Sequence[GramCounts]) -> GramCounts:
    """Adds the counts of shards.

    Args:
      parts: at least one, of the same vocabulary and lengths.

    Returns:
      `GramCounts` as if the shards had been counted together.

    Raises:
      ArgumentError: no shard, or shards of different kinds.

    Source: arXiv 2010.12148, section 3.3.

    Example:
      >>> one = count_grams([np.array([1, 2])], vocab_size=3)
      >>> merge_counts([one, one]).counts[2].tolist()
      [2]
    """
    kinds = {(part.vocab_size, part.longest) for part in parts}
    check(len(kinds) == 1, "parts", sorted(kinds), "shards of one vocabulary and n")
    keys, counts = {}, {}
    for length in parts[0].keys:
        every = np.concatenate([part.keys[length] for part in parts])
        each = np.concatenate([part.counts[length] for part in parts])
        keys[length], place = np.unique(every, return_inverse=True)
        counts[length] = np.zeros(len(keys[length]), np.int64)
        np.add.at(counts[length], place, each)
    unigrams = np.sum([part.unigrams for part in parts], axis=0)
    return GramCounts(unigrams, keys, counts)


def gram_scores(counts: GramCounts, length: int) -> Float[np.ndarray, " distinct"]:
    """The t-statistic of every n-gram against tokens that are independent.

    `(p - p0) / sqrt(p (1 - p) / N)`, where p is the n-gram's share of the N positions
    and p0 the product of its tokens' shares. An n-gram at every position has no
    variance: it gets +inf where p > p0, else 0. N-grams with the same count and the
    same product of counts have the same score to the bit (products below 2^63).

    Args:
      counts: of the corpus.
      length: of the n-grams.

    Returns:
      `[distinct]` float64, in the order of `counts.grams(length)`.

    Raises:
      ArgumentError: a length that was not counted.

    Source: arXiv 2010.12148, section 3.3.

    Example:
      >>> found = count_grams([np.array([1, 1, 1])], vocab_size=2)
      >>> gram_scores(found, 2).tolist()
      [0.0]
    """
    known = f"2 to {counts.longest}"
    check(length in counts.keys, "length", length, known)
    total = counts.total(length)
    factors = np.sort(counts.unigrams[counts.grams(length)], axis=1)
    exact = int(counts.unigrams.max(initial=0)) ** length < 2**63
    # Whole numbers, else factors in one order: ties stay ties.
    product = np.prod(factors if exact else factors.astype(np.float64), axis=1)
    chance = product / float(counts.unigrams.sum() or 1) ** length
    share = counts.counts[length] / max(total, 1)
    spread = np.sqrt(share * (1.0 - share) / max(total, 1))
    certain = np.where(share > chance, np.inf, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, (share - chance) / spread, certain)


def build_lexicon(
    counts: GramCounts,
    sizes: Sequence[int] = (200_000, 100_000),
    *,
    min_count: int = 1,
    starts: Bool[np.ndarray, " vocab"] | None = None,
    forbidden: Iterable[int] = (),
    subsume: bool = False,
    vocabulary: Vocabulary | None = None,
) -> Lexicon:
    """The n-grams with the highest t-statistic: the best 2-grams, then 3-grams, etc.

    Equal scores go to the lower ids, compared token by token.

    Args:
      counts: of the corpus.
      sizes: how many 2-grams, 3-grams and so on to keep at most.
      min_count: least count of an n-gram.
      starts: `[vocab]` bool, ids that an n-gram may begin with, such as
        `vocabulary.word_starts`, which leaves out those that begin with `##`; None
        takes all.
      forbidden: ids that no n-gram may hold; those that `vocabulary` says are special
        always belong to them.
      subsume: leave out n-grams that hold a shorter one of the lexicon with a higher
        score. An extension.
      vocabulary: whose ids these are; its hash is kept.

    Returns:
      `Lexicon`.

    Raises:
      ArgumentError: no size for each length, one below 1, or `starts` of another size.
      VocabMismatchError: the vocabulary has another number of ids than was counted.

    Source: arXiv 2010.12148, section 3.3. Differs: the options; ties.

    Example:
      >>> found = count_grams([np.array([1, 2, 0, 1, 2, 3, 1, 2])], vocab_size=4)
      >>> build_lexicon(found, (1, 1)).tokens.tolist()
      [[1, 2, -1], [0, 1, 2]]
    """
    wanted = f"{counts.longest - 1} numbers of at least 1, for 2-grams and so on"
    good = len(sizes) == counts.longest - 1 and all(size >= 1 for size in sizes)
    check(good, "sizes", tuple(sizes), wanted)
    banned = _banned(counts, forbidden, vocabulary)
    rows: list[np.ndarray] = []
    shorter: tuple[np.ndarray, np.ndarray] = (np.zeros(0, np.uint64), np.zeros(0))
    for length, size in zip(sorted(counts.keys), sizes):
        grams, scores = counts.grams(length), gram_scores(counts, length)
        kept = (counts.counts[length] >= min_count) & ~banned[grams].any(axis=1)
        if starts is not None:
            expected = f"[{counts.vocab_size}] booleans"
            check(starts.shape == banned.shape, "starts", starts.shape, expected)
            kept &= starts[grams[:, 0]]
        if subsume:
            kept &= ~_subsumed(grams, scores, shorter, counts.vocab_size)
        places = np.flatnonzero(kept)
        # Stable, over keys that ascend: ties stay in the order of their ids.
        best = places[np.argsort(-scores[places], kind="stable")[:size]]
        found = np.full((len(best), counts.longest), -1, np.int32)
        found[:, :length] = grams[best]
        rows.append(found)
        ascending = np.sort(best)
        shorter = counts.keys[length][ascending], scores[ascending]
    tokens = np.concatenate(rows)
    digest = None if vocabulary is None else vocabulary.hash
    return Lexicon(tokens, (tokens >= 0).sum(axis=1), counts.vocab_size, digest)


def _banned(
    counts: GramCounts, forbidden: Iterable[int], vocabulary: Vocabulary | None
) -> np.ndarray:
    ids = set(forbidden)
    for id_ in ids:
        check(0 <= id_ < counts.vocab_size, "forbidden", id_, "ids of the vocabulary")
    if vocabulary is not None:
        if vocabulary.size != counts.vocab_size:
            raise VocabMismatchError(
                f"vocabulary: got one of {vocabulary.size} ids, expected "
                f"{counts.vocab_size}, as many as were counted."
            )
        ids |= vocabulary.special_ids
    banned = np.zeros(counts.vocab_size, bool)
    banned[sorted(ids)] = True
    return banned


def _subsumed(
    grams: np.ndarray,
    scores: np.ndarray,
    shorter: tuple[UInt64[np.ndarray, " kept"], Float[np.ndarray, " kept"]],
    vocab_size: int,
) -> np.ndarray:
    """Whether the first or the last tokens are a kept n-gram of a higher score."""
    keys, their_scores = shorter
    hidden = np.zeros(len(grams), bool)
    if not len(keys):
        return hidden
    for part in (grams[:, :-1], grams[:, 1:]):
        packed = pack(part, vocab_size)
        at = np.minimum(np.searchsorted(keys, packed), len(keys) - 1)
        hidden |= (keys[at] == packed) & (their_scores[at] > scores)
    return hidden


def save_lexicon(lexicon: Lexicon, path: str | os.PathLike[str]) -> None:
    """Writes a lexicon as one file, atomically, with the hash of its vocabulary.

    Args:
      lexicon: the lexicon.
      path: the file, replaced whole or not at all.

    Raises:
      WriteError: the file cannot be written; what stood there still stands.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/lexicon.safetensors"
      >>> save_lexicon(Lexicon.of([(5, 6)], vocab_size=9), path)
      >>> load_lexicon(path).gram(9)
      (5, 6)
    """
    meta = {"kind": _KIND, "vocab_size": str(lexicon.vocab_size)}
    if lexicon.vocabulary is not None:
        meta["vocabulary"] = lexicon.vocabulary
    arrays = {"tokens": lexicon.tokens, "lengths": lexicon.lengths}
    files.write_atomic(path, safetensors.numpy.save(arrays, metadata=meta))


def load_lexicon(
    path: str | os.PathLike[str], vocabulary: Vocabulary | None = None
) -> Lexicon:
    """Reads what `save_lexicon` wrote, for the vocabulary that it was made with.

    Args:
      path: the file.
      vocabulary: the one in use; None does not compare.

    Returns:
      The lexicon.

    Raises:
      MissingFileError: there is no such file.
      CheckpointError: the file is damaged, or something else.
      VocabMismatchError: it was made with another vocabulary; both hashes are named.

    Example:
      >>> load_lexicon("nowhere")
      Traceback (most recent call last):
      jtok.errors.MissingFileError: path: there is no file nowhere.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise MissingFileError(f"path: there is no file {name}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            meta: dict[str, Any] = file.metadata() or {}
            if meta.get("kind") != _KIND:
                raise CheckpointError(f"path: {name} holds no lexicon.")
            tokens, lengths = (file.get_tensor(key) for key in ("tokens", "lengths"))
        digest = meta.get("vocabulary")
        lexicon = Lexicon(tokens, lengths, int(meta["vocab_size"]), digest)
    except (safetensors.SafetensorError, OSError, KeyError, ArgumentError) as error:
        raise CheckpointError(f"path: {name} is damaged: {error}") from error
    if vocabulary is not None and digest != vocabulary.hash:
        raise VocabMismatchError(
            f"vocabulary: the lexicon in {name} was made with the vocabulary "
            f"{digest or 'of an unknown hash'}, got {vocabulary.hash}."
        )
    return lexicon
