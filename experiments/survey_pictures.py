"""Pictures of `experiments.token_compression_survey`: kept tokens, a Pareto plot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["kept", "overlay", "pareto"]

_FAMILIES = {
    "baseline": "tab:gray", "similarity": "tab:blue", "attention": "tab:orange",
    "query": "tab:green", "transformation": "tab:purple", "": "black",
}  # fmt: skip
_MARKERS = "o^vs<>pP*hXdD"


def overlay(axes: Any, image: np.ndarray, grid: int, plan: Any) -> None:
    """Draws what a plan makes of the tokens of a picture.

    Args:
      axes: of Matplotlib.
      image: `[height, width, 3]` in 0..1.
      grid: tokens a side.
      plan: of one picture: `assign`, `keep` and `size` as arrays without a batch.
    """
    import matplotlib.patches

    side = image.shape[0] // grid
    wide = np.kron(plan.assign.reshape(grid, grid), np.ones((side, side), int))
    shade = np.where(wide >= 0, 1.0, 0.25)[..., None]
    shown = image[: grid * side, : grid * side] * shade
    merged = np.flatnonzero(plan.size > 1)
    colours = matplotlib.colormaps["hsv"](np.linspace(0, 1, len(merged) + 1))[:, :3]
    for colour, row in zip(colours, merged):
        shown = np.where((wide == row)[..., None], 0.5 * shown + 0.5 * colour, shown)
    axes.imshow(np.clip(shown, 0, 1), interpolation="nearest")
    for token in plan.keep[plan.keep >= 0]:
        corner = (token % grid * side - 0.5, token // grid * side - 0.5)
        axes.add_patch(
            matplotlib.patches.Rectangle(
                corner, side, side, fill=False, edgecolor="white", linewidth=0.8
            )
        )
    axes.set_axis_off()


def kept(image: np.ndarray, grid: int, plans: Mapping[tuple[str, int], Any]) -> Any:
    """One picture a method and budget, on the same scene.

    Args:
      image: `[height, width, 3]` in 0..1.
      grid: tokens a side.
      plans: by label and budget.

    Returns:
      A figure.
    """
    import matplotlib.figure

    budgets = sorted({budget for _, budget in plans}, reverse=True)
    labels = list(dict.fromkeys(label for label, _ in plans))
    columns = 6
    rows = -(-len(labels) // columns)
    size = (2.1 * columns, 2.3 * rows * len(budgets))
    figure = matplotlib.figure.Figure(figsize=size)
    cells = figure.subplots(rows * len(budgets), columns, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    for level, budget in enumerate(budgets):
        for number, label in enumerate(labels):
            if (label, budget) not in plans:
                continue
            cell = cells[level * rows + number // columns, number % columns]
            overlay(cell, image, grid, plans[label, budget])
            cell.set_title(f"{label}, {budget}", fontsize=6)
    return figure


def pareto(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy against FLOPs, one line a method, one colour a family.

    Points that no other beats are circled.

    Args:
      rows: of the table.

    Returns:
      A figure.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 6))
    axes = figure.subplots()
    for number, label in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = sorted(
            (row["MFLOPs"], row["accuracy"], row["family"])
            for row in rows
            if row["method"] == label
        )
        x, y, family = zip(*mine, strict=True)
        axes.plot(
            x, y, linewidth=0.8, alpha=0.8, markersize=4, label=label,
            color=_FAMILIES[family[0]], marker=_MARKERS[number % len(_MARKERS)],
        )  # fmt: skip
    better = lambda a, b: (
        a["MFLOPs"] <= b["MFLOPs"]
        and a["accuracy"] >= b["accuracy"]
        and (a["MFLOPs"], a["accuracy"]) != (b["MFLOPs"], b["accuracy"])
    )
    front = [row for row in rows if not any(better(other, row) for other in rows)]
    axes.plot(
        [row["MFLOPs"] for row in front], [row["accuracy"] for row in front], "o",
        markersize=9, fillstyle="none", color="black", label="nothing is better",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("MFLOPs of the decoder, a question")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
