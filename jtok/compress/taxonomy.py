"""Who makes multimodal tokens fewer, and how: the survey's table.

`TAXONOMY.md` beside this file is the table as a page.

Source: Shao et al. 2025, arXiv 2507.20198, and its companion list.
"""

import functools
import importlib.resources
import json
from typing import NamedTuple

from jtok.errors import check

__all__ = ["TaxonomyRow", "taxonomy", "taxonomy_page"]

FAMILIES = ("transformation", "similarity", "attention", "query", "unlabelled")
MODALITIES = ("image", "video", "audio", "encoder")

# arXiv id -> the methods of the menu that are, or hold, what the paper proposes.
_OFFERED: dict[str, tuple[str, ...]] = {
    "2402.08846": ("frame_stacking", "slam_asr"),
    "2407.10759": ("frame_pooling",),
    "2409.06666": ("frame_stacking", "slam_asr"),
    "2402.03766": ("mobilevlm",),
    "2404.16821": ("unshuffle", "internvl"),
    "2409.11402": ("unshuffle", "internvl"),
    "2405.17430": ("matryoshka",),
    "2408.03326": ("bilinear_pooling",),
    "2505.07062": ("average_pooling",),
    "2404.16994": ("pllava",),
    "2406.07476": ("videollama2",),
    "2405.20985": ("deco",),
    "2310.13289": ("windowed_qformer",),
    "2301.12597": ("qformer",),
    "2204.14198": ("perceiver",),
    "2406.16852": ("average_pooling",),
    "2210.09461": ("tome",),
    "2306.16009": ("adjacent",),
    "2410.03051": ("tome",),
    "2412.03248": ("aim",),
    "2503.02175": ("divprune",),
    "2411.15024": ("dycoke",),
    "2403.06764": ("fastv",),
    "2403.15388": ("prumerge", "prumerge_plus"),
    "2412.04467": ("visionzip",),
    "2410.04417": ("sparsevlm",),
}


class TaxonomyRow(NamedTuple):
    """A paper of the survey's list.

    Attributes:
      families: of "transformation", "similarity", "attention", "query", several for a
        hybrid; "unlabelled" where the list says nothing.
      modalities: of "image", "video", "audio", "encoder" (vision encoders alone).
      name: of the method.
      arxiv: the paper's id, None for those that the list got later.
      trained: True, False, "either", or None where the list does not say.
      idea: one line, "" for those that the list got later.
      methods: names of `jtok.compress.methods()` that are, or hold, what it proposes.
    """

    families: tuple[str, ...]
    modalities: tuple[str, ...]
    name: str
    arxiv: str | None
    trained: bool | str | None
    idea: str
    methods: tuple[str, ...]


@functools.cache
def _rows() -> tuple[TaxonomyRow, ...]:
    file = importlib.resources.files("jtok.compress") / "taxonomy.json"
    trained = {
        (): None, ("training",): True, ("free",): False, ("training", "free"): "either",
    }  # fmt: skip
    found = []
    for families, modalities, name, arxiv, kinds, idea in json.loads(
        file.read_text(encoding="utf-8")
    ):
        learnt = trained[tuple(kinds)]
        offered = _OFFERED.get(arxiv or "", ())
        found.append(
            TaxonomyRow(
                tuple(families), tuple(modalities), name, arxiv, learnt, idea, offered
            )
        )
    return tuple(found)


def taxonomy(
    family: str | None = None, modality: str | None = None
) -> tuple[TaxonomyRow, ...]:
    """Rows of the survey's table.

    Args:
      family: "transformation", "similarity", "attention", "query" or "unlabelled":
        rows with that label, hybrids too; None for all.
      modality: "image", "video", "audio" or "encoder"; None for all.

    Returns:
      Rows by family and modality, then in the order of their first versions; those
      that the list got after the survey are last.

    Raises:
      ArgumentError: no such family or modality.

    Source: Shao et al. 2025, arXiv 2507.20198, and its companion list. Ideas in our
      words; some rest on titles and abstracts.

    Example:
      >>> [row.name for row in taxonomy("query", "audio")][:2]
      ['Speech encoder-LLM connectors', 'SALMONN']
    """
    good = family in (None, *FAMILIES)
    check(good, "family", family, f"one of {FAMILIES}, or None")
    good = modality in (None, *MODALITIES)
    check(good, "modality", modality, f"one of {MODALITIES}, or None")
    return tuple(
        row
        for row in _rows()
        if family in (None, *row.families) and modality in (None, *row.modalities)
    )


_HEAD = """# Fewer tokens: who does it how

The table of "A Survey of Token Compression for Efficient Multimodal Large Language
Models" (arXiv 2507.20198) and of its companion list, as `jtok.compress.taxonomy()`
gives it; `jtok.compress.taxonomy_page()` writes this page. Ideas are in our words; some
rest on titles and abstracts. The last rows were added to the list after the survey.

`trained`: yes, no, either way, or nothing where the list does not say. `in jtok`: names
of `jtok.compress.methods()` that are, or hold, what the paper proposes.

| families | for | method | arXiv | trained | idea | in jtok |
|---|---|---|---|---|---|---|
"""
_TRAINED = {True: "yes", False: "no", "either": "either", None: ""}


def taxonomy_page() -> str:
    """The table as a Markdown page, which lies beside the module as `TAXONOMY.md`.

    Returns:
      The text of the page.

    Source: Shao et al. 2025, arXiv 2507.20198, and its companion list.

    Example:
      >>> taxonomy_page().splitlines()[0]
      '# Fewer tokens: who does it how'
    """
    lines = []
    for row in _rows():
        link = f"[{row.arxiv}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else ""
        cells = (
            " + ".join(row.families), ", ".join(row.modalities), row.name, link,
            _TRAINED[row.trained], row.idea, ", ".join(f"`{m}`" for m in row.methods),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |\n")
    return _HEAD + "".join(lines)
