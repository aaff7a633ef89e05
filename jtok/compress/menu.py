"""All methods by name, with what each one is and needs."""

import functools
from typing import Literal

from jtok.compress.adjacent import adjacent
from jtok.compress.baselines import random_tokens, uniform_tokens
from jtok.compress.connected import internvl, mobilevlm, slam_asr, videollama2
from jtok.compress.declared import row_of
from jtok.compress.divprune import divprune
from jtok.compress.dycoke import dycoke
from jtok.compress.fastv import fastv
from jtok.compress.frame_merging import aim
from jtok.compress.frames import frame_pooling, frame_stacking
from jtok.compress.interface import Method
from jtok.compress.matryoshka import matryoshka
from jtok.compress.prumerge import prumerge, prumerge_plus
from jtok.compress.queries import perceiver, qformer, windowed_qformer
from jtok.compress.resample import (
    adaptive_pooling,
    average_pooling,
    bilinear_pooling,
    deco,
    max_pooling,
    pllava,
    unshuffle,
)
from jtok.compress.rounds import pitome_tokens, tome_tokens
from jtok.compress.sparsevlm import sparsevlm
from jtok.compress.visionzip import visionzip
from jtok.errors import check

__all__ = ["methods"]

FAMILIES = ("transformation", "similarity", "attention", "query", "baseline")
MODALITIES = ("image", "video", "audio", "text")

_DECLARED = (
    adaptive_pooling, adjacent, aim, average_pooling, bilinear_pooling, deco, divprune,
    dycoke, fastv, frame_pooling, frame_stacking, internvl, matryoshka, max_pooling,
    mobilevlm, perceiver, pitome_tokens, pllava, prumerge, prumerge_plus, qformer,
    random_tokens, slam_asr, sparsevlm, tome_tokens, uniform_tokens, unshuffle,
    videollama2, visionzip, windowed_qformer,
)  # fmt: skip


def _by_rule(rule: Literal["bsm", "text"], how: str) -> Method:
    """The row of another rule of PiToMe."""
    return row_of(pitome_tokens)._replace(
        name=f"pitome_{rule}",
        run=functools.partial(pitome_tokens, rule=rule),
        summary=f"Tokens of high energy merge, {how}, in rounds.",
    )


_ROWS: tuple[Method, ...] = (
    *map(row_of, _DECLARED),
    _by_rule("bsm", "the most similar pairs of even and odd ranks"),
    _by_rule("text", "the upper half into the lower half"),
)


def methods(
    family: str | None = None, modality: str | None = None
) -> dict[str, Method]:
    """The menu: every method by its name.

    Args:
      family: "transformation", "similarity", "attention", "query" or "baseline"; None
        for all.
      modality: "image", "video", "audio" or "text": those meant for it; None for all.

    Returns:
      Records by name, sorted.

    Raises:
      ArgumentError: no such family or modality.

    Source: the taxonomy of Shao et al. 2025, arXiv 2507.20198.

    Example:
      >>> sorted(methods("baseline"))
      ['random', 'uniform']
    """
    good = family is None or family in FAMILIES
    check(good, "family", family, f"one of {FAMILIES}, or None")
    good = modality is None or modality in MODALITIES
    check(good, "modality", modality, f"one of {MODALITIES}, or None")
    return {
        row.name: row
        for row in sorted(_ROWS, key=lambda row: row.name)
        if family in (None, row.family) and modality in (None, *row.modalities)
    }
