"""All methods by name, with what each one is and needs."""

from jtok.compress.baselines import random_tokens, uniform_tokens
from jtok.compress.interface import Method
from jtok.compress.menu_fixed import QUERY_METHODS, TRANSFORMATION_METHODS
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
_ROWS: tuple[Method, ...] = (*_BASELINES, *TRANSFORMATION_METHODS, *QUERY_METHODS)


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
    known = (None, *FAMILIES)
    check(family in known, "family", family, f"one of {FAMILIES}, or None")
    known = (None, *MODALITIES)
    check(modality in known, "modality", modality, f"one of {MODALITIES}, or None")
    return {
        row.name: row
        for row in sorted(_ROWS, key=lambda row: row.name)
        if family in (None, row.family) and modality in (None, *row.modalities)
    }
