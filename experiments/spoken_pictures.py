"""Pictures of `experiments.spoken_digits`: kept frames, a Pareto plot."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import survey_pictures

__all__ = ["kept", "pareto", "windows"]


class _Windows(NamedTuple):
    """Rows that are averages of windows, as a plan has them."""

    assign: np.ndarray
    keep: np.ndarray


def windows(count: int, share: float) -> Any:
    """What averages over windows make of frames.

    Args:
      count: frames.
      share: rows over frames.

    Returns:
      `assign` `[count]` and `keep` `[rows]`, as `jtok.ops.Plan` has them.
    """
    size = round(1 / share)
    return _Windows(np.arange(count) // size, np.full(count // size, -1))


def kept(frames: np.ndarray, plans: Mapping[tuple[str, float], Any], title: str) -> Any:
    """A spectrogram, and below it what each method makes of its frames.

    Args:
      frames: `[frames, bins]`.
      plans: by label and share; frames of one row have one colour, kept ones are
        white, dropped ones black.
      title: of the picture.

    Returns:
      A figure.
    """
    import matplotlib
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 2.5 + 0.22 * len(plans)))
    ratios = [2.5, 0.22 * len(plans)]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    above.imshow(frames.T, origin="lower", aspect="auto", cmap="magma")
    above.set(title=title, ylabel="mel bin")
    strips = np.zeros((len(plans), len(frames), 3))
    hues = matplotlib.colormaps["tab20"](np.arange(20))[:, :3]
    for strip, plan in zip(strips, plans.values(), strict=True):
        there = plan.assign >= 0
        strip[there] = hues[plan.assign[there] % 20]
        sizes = np.bincount(plan.assign[there], minlength=len(plan.keep))
        alone = there & (sizes[np.maximum(plan.assign, 0)] == 1)
        strip[alone] = 1.0
    below.imshow(strips, aspect="auto", interpolation="nearest")
    names = [f"{label}, {share:.1%}" for label, share in plans]
    below.set_yticks(range(len(names)), names, fontsize=6)
    below.set_xlabel("frame, 10 ms")
    return figure


def pareto(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy against FLOPs, one line a method, one colour a family.

    Args:
      rows: of the table.

    Returns:
      A figure.
    """
    figure = survey_pictures.pareto(rows)
    figure.axes[0].set_xlabel("MFLOPs of the encoder, a recording")
    return figure
