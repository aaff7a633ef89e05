"""The table and the claims of `experiments.spoken_digits`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.intervals import student_interval
from experiments.spoken_models import Arm

__all__ = ["Results", "claim_all", "table"]

_LEFT_OUT = "not measured: this preset leaves out an arm that it needs"


class Results(NamedTuple):
    """What was measured.

    Attributes:
      arms: what is compared.
      keep: shares of frames that are left, descending.
      whole: rows with all frames, one a seed.
      found: rows by label and share, one a seed.
      names: what a seed holds out.
    """

    arms: Sequence[Arm]
    keep: Sequence[float]
    whole: list[dict[str, float]]
    found: dict[tuple[str, float], list[dict[str, float]]]
    names: tuple[str, ...]

    def points(self, label: str, share: float) -> np.ndarray:
        """Per cent that is right, one a seed."""
        return np.array([row["accuracy"] for row in self.found[label, share]])

    @property
    def full(self) -> np.ndarray:
        """The same with all frames."""
        return np.array([row["accuracy"] for row in self.whole])


def table(results: Results) -> list[dict[str, Any]]:
    """A row for each method and share, largest shares first.

    Args:
      results: what was measured.

    Returns:
      The rows.
    """
    none = Arm("all frames", "", "")
    rows = [_row(results, none, 1.0, results.whole)]
    for share in results.keep:
        for arm in results.arms:
            if (arm.label, share) in results.found:
                rows.append(_row(results, arm, share, results.found[arm.label, share]))
    return rows


def _row(
    results: Results, arm: Arm, share: float, each: list[dict[str, float]]
) -> dict[str, Any]:
    points = np.array([row["accuracy"] for row in each])
    lost = results.full - points
    low, high = student_interval(lost) or (None, None)
    mean = lambda name: float(np.mean([row[name] for row in each]))
    by_name = zip(results.names, points.tolist(), strict=True)
    return {
        "method": arm.label,
        "family": arm.family,
        "share": f"{share:.1%}",
        "tokens": round(mean("rows"), 1),
        "accuracy": round(float(points.mean()), 1),
        "points lost": round(float(lost.mean()), 1),
        "low": None if low is None else round(low, 1),
        "high": None if high is None else round(high, 1),
        "MFLOPs": round(mean("MFLOPs"), 3),
        "MFLOPs of choosing": round(each[0]["choosing"], 3),
        "ms": round(each[0]["ms"], 4),
        **{name: round(value, 1) for name, value in by_name},
    }


def claim_all(results: Results, report: Any) -> None:
    """Reports every claim of the experiment.

    Args:
      results: what was measured.
      report: where they go.
    """
    full, count = results.full, len(results.whole)
    nearest = lambda share: min(results.keep, key=lambda other: abs(other - share))
    quarter, eighth = nearest(1 / 4), nearest(1 / 8)
    report.claim(
        "informative", "with all frames the held-out speaker is understood",
        paper="none: it says whether the task can tell", unit="%", op=">=", bound=60.0,
        measured=round(float(full.mean()), 2), n=count, ci95=_ends(full),
        reason=f"{count} seeds: {_list(results, full)}; ten digits, 10 % is chance.",
    )  # fmt: skip
    odd = [row["odd"] for each in results.found.values() for row in each]
    report.claim(
        "budgets", "every method leaves exactly its share of rows",
        paper="section 2: K is static", measured=max(odd), unit="rows", op="==",
        bound=0.0, n=len(odd),
    )  # fmt: skip
    lost = lambda *given: _difference(results, report, *given)
    lost(
        "averages", "averages of four frames, with a head of their own, lose little",
        "average pooling is nearly free to 25 %", None, "average pooling, head",
        quarter, "<=", 2.0,
    )  # fmt: skip
    lost(
        "neighbours", "neighbours that are alike, merged to a quarter, lose little",
        "adjacent merging is nearly free to 25 %", None, "adjacent merging", quarter,
        "<=", 2.0,
    )  # fmt: skip
    lost(
        "random", "random frames are clearly worse than merged neighbours at an eighth",
        "training-free random is clearly worse at 12.5 %", "adjacent merging", "random",
        eighth, ">=", 5.0,
    )  # fmt: skip
    lost(
        "attention", "frames that receive most attention are not better than evenly "
        "spaced ones at an eighth: points gained",
        "attention ranking is not better than uniform on stationary speech",
        "top attention", "uniform", eighth, "<=", 0.0,
    )  # fmt: skip
    lost(
        "head", "averages of eight frames gain by a head of their own",
        "averaging with a retrained head", "average pooling, head", "average pooling",
        eighth, ">=", 0.0,
    )  # fmt: skip
    lost(
        "stacking", "stacks of eight frames, trained, lose little",
        "speech models stack 5 frames (SLAM-ASR)", None, "stacking, trained", eighth,
        "<=", 3.0,
    )  # fmt: skip
    lost(
        "windows", "a Q-Former on windows beats a Perceiver over all at an eighth",
        "windows keep the order of speech (SALMONN)", "Q-Former on windows, trained",
        "Perceiver, trained", eighth, ">=", 0.0,
    )  # fmt: skip
    _costs(results, eighth, report)


def _difference(
    results: Results, report: Any, name: str, what: str, paper: str, over: str | None,
    under: str, share: float, op: str, bound: float,
) -> None:  # fmt: skip
    """Points by which one arm, or all frames, is above another; seeds are paired."""
    shared: dict[str, Any] = {
        "paper": paper, "unit": "points", "op": op, "bound": bound,
        "n": len(results.whole),
    }  # fmt: skip
    asked = [label for label in (over, under) if label]
    if any((label, share) not in results.found for label in asked):
        worst = bound - 1.0 if op == ">=" else bound + 1.0
        shared["n"] = 0
        what = f"not measured: {what}"
        report.claim(name, what, measured=worst, reason=_LEFT_OUT, **shared)
        return
    high = results.points(over, share) if over else results.full
    each = high - results.points(under, share)
    said = "; ".join(
        f"{label} {_list(results, results.points(label, share))}" for label in asked
    )
    report.claim(
        name, what, measured=round(float(each.mean()), 2), ci95=_ends(each),
        reason=f"per cent right at a share of {share:.1%}: {said}; with all frames "
        f"{_list(results, results.full)}",
        **shared,
    )  # fmt: skip


def _ends(each: np.ndarray) -> tuple[float, float] | None:
    ends = student_interval(each)
    return None if ends is None else (round(ends[0], 2), round(ends[1], 2))


def _list(results: Results, points: np.ndarray) -> str:
    pairs = zip(points.tolist(), results.names, strict=True)
    return ", ".join(f"{value:.1f} ({name})" for value, name in pairs)


def _costs(results: Results, share: float, report: Any) -> None:
    """How much cheaper and faster an eighth of the frames is."""
    there = [arm for arm in results.arms if (arm.label, share) in results.found]
    first = lambda arm, name: results.found[arm.label, share][0][name]
    whole = results.whole[0]
    plain = [arm for arm in there if not arm.trained]
    ratio = max(first(arm, "MFLOPs") for arm in plain) / whole["MFLOPs"]
    report.claim(
        "cheaper", "FLOPs of the blocks at an eighth of the frames, of those with all",
        paper="the first of three blocks reads all frames", unit="ratio", op="<=",
        measured=round(ratio, 4), bound=0.45,
        reason="the first block is a larger part than a third of the encoder",
    )  # fmt: skip
    times = {arm.label: first(arm, "ms") for arm in plain}
    middle = float(np.median(list(times.values())))
    quick, slow = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    report.claim(
        "faster", "time of a recording at an eighth of its frames, of that with all: "
        "the median of the methods without training",
        paper="measured ms beside counted FLOPs", unit="ratio", op="<=", bound=0.6,
        measured=round(middle / whole["ms"], 3), n=len(times),
        reason=f"all frames take {whole['ms']:.4f} ms, {quick} {times[quick]:.4f}, "
        f"{slow} {times[slow]:.4f}: choosing costs as much as small blocks save",
    )  # fmt: skip
