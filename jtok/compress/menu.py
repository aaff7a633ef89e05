"""All methods by name, with what each one is and needs."""

import functools
from typing import Literal

from jtok.compress.adjacent import adjacent
from jtok.compress.baselines import random_tokens, uniform_tokens
from jtok.compress.divprune import divprune
from jtok.compress.dycoke import dycoke
from jtok.compress.fastv import fastv
from jtok.compress.frame_merging import aim
from jtok.compress.interface import Method
from jtok.compress.menu_fixed import QUERY_METHODS, TRANSFORMATION_METHODS
from jtok.compress.prumerge import prumerge, prumerge_plus
from jtok.compress.rounds import pitome_tokens, tome_tokens
from jtok.compress.sparsevlm import sparsevlm
from jtok.compress.visionzip import visionzip
from jtok.errors import check

__all__ = ["methods"]

FAMILIES = ("transformation", "similarity", "attention", "query", "baseline")
MODALITIES = ("image", "video", "audio", "text")

_BASELINES = (
    Method(
        name="random",
        family="baseline",
        modalities=MODALITIES,
        trained=False,
        needs=("key",),
        run=random_tokens,
        summary="Keeps tokens drawn at random, in their order.",
        source="baseline",
    ),
    Method(
        name="uniform",
        family="baseline",
        modalities=MODALITIES,
        trained=False,
        needs=(),
        run=uniform_tokens,
        summary="Keeps evenly spaced tokens.",
        source="baseline",
    ),
)
_PITOME: tuple[tuple[str, Literal["all", "bsm", "text"], str], ...] = (
    ("pitome", "all", "those of even rank into those of odd rank"),
    ("pitome_bsm", "bsm", "the most similar pairs of even and odd ranks"),
    ("pitome_text", "text", "the upper half into the lower half"),
)
_SIMILARITY = (
    Method(
        name="tome",
        family="similarity",
        modalities=MODALITIES,
        trained=False,
        needs=(),
        run=tome_tokens,
        summary="Even tokens join the most similar odd ones, in rounds.",
        source="Bolya et al. 2023, arXiv 2210.09461",
    ),
    *(
        Method(
            name=name,
            family="similarity",
            modalities=MODALITIES,
            trained=False,
            needs=(),
            run=functools.partial(pitome_tokens, rule=rule),
            summary=f"Tokens of high energy merge, {how}, in rounds.",
            source="Tran et al. 2024, arXiv 2405.16148",
        )
        for name, rule, how in _PITOME
    ),
    Method(
        name="divprune",
        family="similarity",
        modalities=("image", "video"),
        trained=False,
        needs=(),
        run=divprune,
        summary="Keeps the tokens that are farthest from each other.",
        source="Alvar et al. 2025, arXiv 2503.02175",
        rounding="half_even",
    ),
    Method(
        name="dycoke",
        family="similarity",
        modalities=("video",),
        trained=False,
        needs=("grid",),
        run=dycoke,
        summary="Drops tokens that look as the same place did in a frame before.",
        source="Tao et al. 2024, arXiv 2411.15024",
    ),
    Method(
        name="adjacent",
        family="similarity",
        modalities=("audio", "video", "text"),
        trained=False,
        needs=(),
        run=adjacent,
        summary="Merges neighbours in time that are alike (A-ToMe).",
        source="Li et al. 2023, arXiv 2306.16009",
    ),
)
_ATTENTION = (
    Method(
        name="fastv",
        family="attention",
        modalities=("image", "video"),
        trained=False,
        needs=("attn",),
        run=fastv,
        summary="Keeps what the last word of the prompt looks at.",
        source="Chen et al. 2024, arXiv 2403.06764",
        rounding="half_even",
    ),
    Method(
        name="visionzip",
        family="attention",
        modalities=("image", "video"),
        trained=False,
        needs=("attn", "keys"),
        run=visionzip,
        summary="Keeps what the class token looks at, merges the rest into a few.",
        source="Yang et al. 2024, arXiv 2412.04467",
    ),
    Method(
        name="prumerge",
        family="attention",
        modalities=("image",),
        trained=False,
        needs=("attn", "keys"),
        run=prumerge,
        summary="Keeps attention outliers, each with a weighted sum of its like.",
        source="Shang et al. 2024, arXiv 2403.15388",
    ),
    Method(
        name="prumerge_plus",
        family="attention",
        modalities=("image",),
        trained=False,
        needs=("attn", "keys"),
        run=prumerge_plus,
        summary="PruMerge that also keeps evenly spaced tokens.",
        source="Shang et al. 2024, arXiv 2403.15388, section 3.4",
    ),
)
_QUERY = (
    Method(
        name="sparsevlm",
        family="query",
        modalities=("image", "video"),
        trained=False,
        needs=("attn",),
        run=sparsevlm,
        summary="Keeps what the words that matter look at, clusters some others.",
        source="Zhang et al. 2024, arXiv 2410.04417",
    ),
)
_FRAMES = (
    Method(
        name="aim",
        family="similarity",
        modalities=("image", "video"),
        trained=False,
        needs=(),
        run=aim,
        summary="Halves each frame by joining its most similar tokens, until it fits.",
        source="Zhong et al. 2024, arXiv 2412.03248, section 3.1",
    ),
)
_ROWS: tuple[Method, ...] = (
    *_FRAMES,
    *_BASELINES,
    *TRANSFORMATION_METHODS,
    *_SIMILARITY,
    *_ATTENTION,
    *_QUERY,
    *QUERY_METHODS,
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
