"""Masking n-grams as single units: preparation on the host, of fixed shapes.

Source: Xiao et al. 2021, arXiv 2010.12148, sections 3.1 and 3.2.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jtok.errors import ArgumentError, check
from jtok.text import Grams, Lexicon, match_grams

__all__ = [
    "GramBatch",
    "GramLayout",
    "choose_grams",
    "cut_documents",
    "gram_batches",
    "lay_out_grams",
    "mask_grams",
]

Ids = Int[np.ndarray, " _"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GramLayout:
    """How much of everything an example holds, and which ids are special.

    Attributes:
      cls_id: put first.
      sep_id: put after each of the one or two texts.
      mask_id: stands for a chosen n-gram.
      pad_id: fills up.
      left: tokens of the masked sequence, specials included.
      fine: tokens of chosen n-grams.
      grams: chosen n-grams.
      rate: share of the n-grams (single tokens count as such) that is chosen.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    left: int = 512
    fine: int = 128
    grams: int = 80
    rate: float = 0.15

    def __post_init__(self) -> None:
        for name, least in (("left", 3), ("fine", 1), ("grams", 1)):
            value = getattr(self, name)
            check(value >= least, name, value, f"at least {least}")
        check(0 < self.rate <= 1, "rate", self.rate, "a share in (0, 1]")
        ids = [getattr(self, name) for name in _ROLES]
        good = len(set(ids)) == len(ids) and min(ids) >= 0
        check(good, "cls_id, sep_id, mask_id, pad_id", ids, "four different ids")

    @property
    def specials(self) -> frozenset[int]:
        """Ids that belong to no n-gram and are never chosen."""
        return frozenset(getattr(self, name) for name in _ROLES)


_ROLES = ("cls_id", "sep_id", "mask_id", "pad_id")


class GramBatch(NamedTuple):
    """Examples with masked n-grams: `[...]` is empty for one, `[batch]` for several.

    Positions count the left part from 0 without gaps; a fine token stands at the
    position of its [MASK], so places are positions, too.

    Attributes:
      left_ids: `[..., left]` int32 the sequence, with one [MASK] a chosen n-gram.
      left_types: `[..., left]` int32 0 or 1, which text.
      left_mask: `[..., left]` bool, False is padding.
      gram_places: `[..., grams]` int32 where the [MASK] of each stands.
      gram_ids: `[..., grams]` int32 what it stands for, a token or an n-gram.
      gram_mask: `[..., grams]` bool.
      fine_places: `[..., fine]` int32 where the [MASK] of its n-gram stands.
      fine_slots: `[..., fine]` int32 which token of the n-gram, 0-based.
      fine_ids: `[..., fine]` int32 the token.
      fine_grams: `[..., fine]` int32 which of the chosen n-grams.
      fine_mask: `[..., fine]` bool.
    """

    left_ids: Any
    left_types: Any
    left_mask: Any
    gram_places: Any
    gram_ids: Any
    gram_mask: Any
    fine_places: Any
    fine_slots: Any
    fine_ids: Any
    fine_grams: Any
    fine_mask: Any


def choose_grams(
    rng: np.random.Generator, grams: Grams, layout: GramLayout
) -> Bool[np.ndarray, " grams"]:
    """Chooses `rate` of the n-grams, uniformly, without replacement.

    Special tokens do not count. The number is rounded to the nearest, halves up, and
    is at least 1 where anything can be chosen. Chosen are the first of a random order;
    where they are more than the layout holds, the last of them are dropped, whole.

    Args:
      rng: consumed.
      grams: of the sequence.
      layout: the rate, the special ids and what fits.

    Returns:
      `[grams]` bool.

    Source: arXiv 2010.12148, section 3.1. Differs: what to drop.

    Example:
      >>> layout = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, rate=0.5)
      >>> grams = jtok.text.Grams(np.arange(4), np.ones(4, int), np.array([0, 7, 8, 1]))
      >>> int(choose_grams(np.random.default_rng(0), grams, layout).sum())
      1
    """
    chosen = np.zeros(len(grams.ids), bool)
    candidates = np.flatnonzero(~np.isin(grams.ids, list(layout.specials)))
    wanted = math.floor(layout.rate * len(candidates) + 0.5)
    wanted = min(max(wanted, 1), layout.grams)
    order = rng.permutation(candidates)[:wanted]
    chosen[order[np.cumsum(grams.lengths[order]) <= layout.fine]] = True
    return chosen


def mask_grams(
    texts: Ids | Sequence[Ids],
    lexicon: Lexicon,
    layout: GramLayout,
    *,
    seed: int,
    index: int,
    contiguous: bool = False,
) -> GramBatch:
    """One example: [CLS] text [SEP], or [CLS] text [SEP] text [SEP], and its masks.

    What is chosen depends on (seed, index) and the texts alone, so examples may be
    made in any order, by any number of workers: pass it to Grain's `map_with_index`.

    Args:
      texts: `[tokens]` integer ids without specials, or two such.
      lexicon: the n-grams.
      layout: shapes and ids.
      seed: of the run.
      index: of the example within the run, at least 0.
      contiguous: one [MASK] for each token of a chosen n-gram: the baseline.

    Returns:
      `GramBatch` of one example.

    Raises:
      ArgumentError: more than two texts, an id outside the vocabulary, or more tokens
        than the left part holds.

    Source: arXiv 2010.12148, sections 3.1 and 3.2.

    Example:
      >>> layout = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=6, rate=1.0)
      >>> lexicon = jtok.text.Lexicon.of([(5, 6)], vocab_size=9)
      >>> made = mask_grams(np.array([5, 6, 7]), lexicon, layout, seed=0, index=0)
      >>> made.left_ids.tolist(), made.gram_ids[:2].tolist()
      ([0, 2, 2, 1, 3, 3], [9, 7])
    """
    pair = [texts] if isinstance(texts, np.ndarray) else list(texts)
    check(1 <= len(pair) <= 2, "texts", len(pair), "one or two")
    parts, types = [np.array([layout.cls_id])], [0]
    for number, text in enumerate(pair):
        parts += [text, np.array([layout.sep_id])]
        types += [number] * (len(text) + 1)
    tokens = np.concatenate(parts).astype(np.int64)
    grams = match_grams(lexicon, tokens, specials=layout.specials)
    rng = np.random.default_rng((seed, index))
    chosen = choose_grams(rng, grams, layout)
    return lay_out_grams(
        tokens, grams, chosen, layout, types=np.array(types), contiguous=contiguous
    )


def lay_out_grams(
    tokens: Ids,
    grams: Grams,
    chosen: Bool[np.ndarray, " grams"],
    layout: GramLayout,
    *,
    types: Ids | None = None,
    contiguous: bool = False,
) -> GramBatch:
    """The example in which given n-grams are masked.

    Every chosen n-gram becomes one [MASK], whatever its length, which so is not given
    away; what follows moves up.

    Args:
      tokens: `[tokens]` integer ids, specials included.
      grams: what they were cut into.
      chosen: `[grams]` bool.
      layout: shapes and ids.
      types: `[tokens]` integers, which text; None is 0.
      contiguous: one [MASK] for each token instead.

    Returns:
      `GramBatch` of one example.

    Raises:
      ArgumentError: more tokens, n-grams or fine tokens than the layout holds.

    Source: arXiv 2010.12148, sections 3.1 and 3.2, figure 2.

    Example:
      >>> layout = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=4)
      >>> lexicon = jtok.text.Lexicon.of([(5, 6)], vocab_size=9)
      >>> tokens = np.array([7, 5, 6])
      >>> grams = jtok.text.match_grams(lexicon, tokens)
      >>> made = lay_out_grams(tokens, grams, np.array([False, True]), layout)
      >>> made.left_ids.tolist(), made.fine_slots[:2].tolist()
      ([7, 2, 3, 3], [0, 1])
    """
    owner = np.repeat(np.arange(len(grams.ids)), grams.lengths)
    slot = np.arange(len(tokens)) - grams.starts[owner]
    masked = chosen[owner]
    kept = ~masked | (slot == 0) | contiguous
    place = np.cumsum(kept) - 1  # later tokens of a unit stand where its mask does
    number = np.cumsum(chosen) - 1
    left = np.where(masked, layout.mask_id, tokens)[kept]
    which = np.zeros(len(tokens), int) if types is None else types
    where = place[grams.starts[chosen]]
    return GramBatch(
        _padded("left", left, layout.left, layout.pad_id),
        _padded("left", which[kept], layout.left),
        _filled("left", len(left), layout.left),
        _padded("grams", where, layout.grams),
        _padded("grams", grams.ids[chosen], layout.grams),
        _filled("grams", len(where), layout.grams),
        _padded("fine", place[masked], layout.fine),
        _padded("fine", slot[masked], layout.fine),
        _padded("fine", tokens[masked], layout.fine),
        _padded("fine", number[owner][masked], layout.fine),
        _filled("fine", int(masked.sum()), layout.fine),
    )


def _padded(name: str, values: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    check(len(values) <= size, name, len(values), f"at most {size}")
    out = np.full(size, fill, np.int32)
    out[: len(values)] = values
    return out


def _filled(name: str, count: int, size: int) -> np.ndarray:
    check(count <= size, name, count, f"at most {size}")
    return np.arange(size) < count


def cut_documents(documents: Iterable[Ids], layout: GramLayout) -> list[np.ndarray]:
    """Documents as texts that fit beside [CLS] and [SEP]; empty ones are left out.

    Args:
      documents: `[tokens]` integer ids of each.
      layout: what fits.

    Returns:
      Arrays of 1 to `layout.left - 2` ids, in order.

    Source: arXiv 2010.12148, appendix A. Differs: texts end with their document.

    Example:
      >>> layout = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=4)
      >>> [text.tolist() for text in cut_documents([np.array([7, 8, 9])], layout)]
      [[7, 8], [9]]
    """
    size = layout.left - 2
    return [
        document[start : start + size]
        for document in documents
        for start in range(0, len(document), size)
    ]


def gram_batches(
    texts: Sequence[Any],
    lexicon: Lexicon,
    layout: GramLayout,
    *,
    batch_size: int,
    seed: int,
    contiguous: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Any:
    """The batches of a training run, one for each step, for `jtok.train.fit`.

    Every epoch is shuffled and masked anew. The objectives see the same masks where
    `seed` is the same, whatever `contiguous` is.

    Args:
      texts: anything with a length whose items `mask_grams` takes.
      lexicon: the n-grams.
      layout: shapes and ids.
      batch_size: of the global batch, a multiple of the number of processes.
      seed: of shuffling and masking, in [0, 2**32).
      contiguous: one [MASK] for each token.
      process_index: None means `jax.process_index()`.
      process_count: None means `jax.process_count()`.

    Returns:
      A `grain.MapDataset` of `GramBatch`, without an end.

    Raises:
      ArgumentError: no text, or a number out of range.

    Source: arXiv 2010.12148, appendix A.

    Example:
      >>> layout = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=8)
      >>> lexicon = jtok.text.Lexicon.of([], vocab_size=9)
      >>> data = gram_batches([np.array([5, 6])], lexicon, layout, batch_size=2, seed=0)
      >>> data[3].left_ids.shape
      (2, 8)
    """
    import grain
    import jax

    count = jax.process_count() if process_count is None else process_count
    index = jax.process_index() if process_index is None else process_index
    check(len(texts) > 0, "texts", "none", "at least one")
    check(0 <= index < count, "process_index", index, f"0 <= index < {count}")
    good = batch_size >= 1 and batch_size % count == 0
    check(good, "batch_size", batch_size, f"a multiple of the {count} processes")
    check(0 <= seed < 2**32, "seed", seed, "a number in [0, 2**32)")

    def made(item: int, text: Any) -> GramBatch:
        try:
            return mask_grams(
                text, lexicon, layout, seed=seed, index=item, contiguous=contiguous
            )
        except ArgumentError as error:
            raise ArgumentError(f"texts: example {item}: {error}") from error

    data = grain.MapDataset.source(texts).seed(seed).shuffle().repeat()
    data = data.map_with_index(made)[index::count]
    return data.batch(batch_size // count)
