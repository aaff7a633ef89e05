"""The table, the picture and the claims of `experiments.aim` about answers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.intervals import student_interval

__all__ = ["answers"]

Gap = Callable[[str, str], np.ndarray]
_LATE, _MIDDLE, _EARLY = (
    f"{name} ramp, PageRank" for name in ("late", "middle", "early")
)


class Row(NamedTuple):
    """One claim, of a share for each seed."""

    id: str
    claim: str
    paper: str
    values: np.ndarray
    op: str
    bound: float
    reason: str


def answers(found: list[Any], report: Any) -> None:
    """Reports a table and a picture of all settings, and the claims about them.

    Args:
      found: what each seed's model answered.
      report: where the figures go.
    """
    names = list(found[0]["rows"])
    of = lambda name, what: [row["rows"][name].get(what) for row in found]
    base_cost = of(names[0], "flops")[0]
    table = []
    for name in names:
        values, row = of(name, "accuracy"), {"setting": name}
        row["FLOPs, % of base"] = round(100 * of(name, "flops")[0] / base_cost, 1)
        row["accuracy"] = round(float(np.mean(values)), 4)
        for what in ("mean place", "asked object kept"):
            there = of(name, what)
            row[what] = None if None in there else round(float(np.mean(there)), 3)
        row |= {
            f"seed {r['seed']}": round(v, 4) for r, v in zip(found, values, strict=True)
        }
        table.append(row)
        report.metric(**row)
    report.table("Answers with fewer visual tokens", table)
    _figure(table, report)
    gap = lambda one, two: np.array(of(one, "accuracy")) - np.array(of(two, "accuracy"))
    _claim_modes(found, report)
    for row in (*_losses(gap), *_choices(of, gap)):
        _claim(row, report)


def _claim_modes(found: list[Any], report: Any) -> None:
    """Both modes keep and compute the same."""
    n = len(found)
    report.claim(
        "same_tokens_in_both_modes", "share of tokens on which both modes agree",
        paper="none", measured=float(np.mean([r["same"] for r in found])), unit="share",
        op=">=", bound=0.999, n=n,
        reason="importances so near that rounding decides",
    )  # fmt: skip
    report.claim(
        "compact_equals_mask", "largest difference of logits for the same kept tokens",
        paper="section 2.4: exactly zero", unit="nats", op="<=", bound=1e-3, n=n,
        measured=max(r["difference"] for r in found), reason="a bug: please report it",
    )  # fmt: skip


def _losses(gap: Gap) -> tuple[Row, ...]:
    """What ramps and merging cost."""
    return (
        Row(
            "late_ramp_is_free", "accuracy lost by the late ramp",
            "58.0 to 58.1 of VideoMME", gap("base", _LATE), "<", 0.02,
            "the answer is read from visual tokens later than the ramp begins",
        ),
        Row(
            "early_ramp_costs", "accuracy lost by the early ramp", "58.0 to 41.9",
            gap("base", _EARLY), ">", 0.1,
            "the few layers before it have read what is asked",
        ),
        Row(
            "merging_is_free", "accuracy lost by merging to 25 %", "58.2 to 58.0",
            gap("base", "merged to 25 %"), "<", 0.02,
            "a fact is one patch here: averaged with background it is lost, where a "
            "real image or video repeats it",
        ),
        Row(
            "merging_and_ramp_are_free", "accuracy lost by 25 % and the late ramp",
            "58.2 to 58.2", gap("base", "AIM: 25 % and late ramp"), "<", 0.02,
            "as for merging alone",
        ),
    )  # fmt: skip


def _choices(of: Any, gap: Gap) -> tuple[Row, ...]:
    """What the score chooses, beside other scores and methods."""
    there = lambda name: np.array([v or 0.0 for v in of(name, "asked object kept")])
    return (
        Row(
            "pagerank_beats_random", "accuracy above random tokens, middle ramp",
            "importance chooses", gap(_MIDDLE, "middle ramp, random"), ">", 0.0,
            "a model that reads all it needs in its first layer loses nothing by any "
            "choice, or the walk ends at the first tokens, whatever they hold",
        ),
        Row(
            "pagerank_finds_the_object", "how much oftener than a random choice the "
            "middle ramp keeps the object that is asked about", "importance chooses",
            there(_MIDDLE) - there("middle ramp, random"), ">", 0.0,
            "the walk ends at the first tokens, whatever they hold",
        ),
        Row(
            "pagerank_near_last_token", "accuracy below the last token's attention",
            "none", -gap(_MIDDLE, "middle ramp, last token"), "<", 0.02,
            "only the last token knows what is asked; the walk starts at all",
        ),
        Row(
            "beats_fastv_at_equal_flops", "accuracy above FastV at equal FLOPs",
            "58.2 against 55.9", gap(_MIDDLE, "FastV, layer 1"), ">", 0.0,
            "the score of FastV reads the question, and prunes where it is read",
        ),
        Row(
            "beats_vtw_at_equal_flops", "accuracy above VTW at equal FLOPs",
            "58.2 against 41.0", gap(_MIDDLE, "VTW"), ">", 0.0,
            "visual tokens are read before VTW drops them",
        ),
        Row(
            "position_bias", "mean place of kept tokens, 0 first and 1 last",
            "none: with flat attention the earliest tokens win",
            np.array([0.5 if v is None else v for v in of(_MIDDLE, "mean place")]),
            "<", 0.5, "attention here is sharp",
        ),
    )  # fmt: skip


def _claim(row: Row, report: Any) -> None:
    report.claim(
        row.id, row.claim, paper=row.paper,
        measured=round(float(np.mean(row.values)), 4), unit="share", op=row.op,
        bound=row.bound, ci95=student_interval(row.values), n=len(row.values),
        reason=row.reason,
    )  # fmt: skip


def _figure(table: list[Any], report: Any) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7, 4))
    axes = fig.subplots()
    groups = {"PageRank": "o", "last token": "s", "first tokens": "^", "random": "x"}
    for row in table:
        x, y, name = row["FLOPs, % of base"], row["accuracy"], row["setting"]
        score = name.split(", ")[-1]
        axes.plot(x, y, groups.get(score, "*"), color="k" if score in groups else "r")
        axes.annotate(
            name, (x, y), fontsize=5, xytext=(3, 2), textcoords="offset points"
        )
    axes.set(xlabel="FLOPs of the decoder, % of base", ylabel="accuracy")
    report.figure("Accuracy against FLOPs", fig)
