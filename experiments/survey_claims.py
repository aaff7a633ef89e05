"""The table and the claims of `experiments.token_compression_survey`."""

import functools
from typing import Any, NamedTuple

import numpy as np

from experiments.intervals import student_interval
from jtok.compress import Method, flops

__all__ = ["Case", "Results", "claim_all", "table"]

_AROUND = 3  # tokens of the prompt that are not visual: small beside them


class Case(NamedTuple):
    """One line of the table.

    Attributes:
      label: its name there.
      method: of the menu.
      attn: whose attention ranks: "class", "wide" (one head as wide as the tower),
        "mean" (of all queries), "last" or "words" inside the decoder; None for none.
      inside: it acts inside the decoder.
    """

    label: str
    method: Method
    attn: str | None = None
    inside: bool = False


class Results(NamedTuple):
    """What was measured.

    Attributes:
      layer: the decoder layer before which methods inside of it act.
      cases: what is compared.
      lm: configuration of the decoder.
      whole: rows with all tokens, one a seed.
      found: rows by label and budget, one a seed.
      count: visual tokens.
    """

    layer: int
    cases: list[Case]
    lm: Any
    whole: list[dict[str, Any]]
    found: dict[tuple[str, int], list[dict[str, Any]]]
    count: int

    @property
    def budgets(self) -> list[int]:
        """Numbers of tokens that were left, descending."""
        return sorted({budget for _, budget in self.found}, reverse=True)

    def points(self, label: str, budget: int) -> np.ndarray:
        """Per cent of right answers, one a seed."""
        return np.array([100 * row["accuracy"] for row in self.found[label, budget]])

    def best(self, budget: int, *, inside: bool | None = None) -> str:
        """Label of the method that is right most often."""
        there = [
            case.label
            for case in self.cases
            if (case.label, budget) in self.found and inside in (None, case.inside)
        ]
        return max(there, key=lambda label: self.points(label, budget).mean())


def _cost(results: Results, budget: int, inside: bool = False) -> Any:
    """What the decoder's layers cost with so many visual tokens."""
    counts = [_AROUND + budget] * results.lm.num_layers
    if inside:
        counts[: results.layer] = [_AROUND + results.count] * results.layer
    return flops(results.lm, counts, tokens="entering")


def table(results: Results) -> list[dict[str, Any]]:
    """A row for each method and budget, largest budgets first.

    Args:
      results: what was measured.

    Returns:
      The rows.
    """
    cases = {case.label: case for case in results.cases}
    whole = Case("none", Method("none", "", (), False, (), lambda x: x, "", ""))
    rows = [_row(results, whole, results.count, results.whole)]
    for (label, budget), each in sorted(
        results.found.items(), key=lambda item: -item[0][1]
    ):
        rows.append(_row(results, cases[label], budget, each))
    return rows


def _row(
    results: Results, case: Case, budget: int, each: list[dict[str, Any]]
) -> dict[str, Any]:
    points = [100 * row["accuracy"] for row in each]
    low, high = student_interval(points) or (None, None)
    cost = _cost(results, budget, case.inside)
    gathered = [100 * row["gathered"] for row in each if "gathered" in row]
    return {
        "method": case.label,
        "family": case.method.family,
        "tokens": budget,
        "accuracy": round(float(np.mean(points)), 1),
        "low": None if low is None else round(low, 1),
        "high": None if high is None else round(high, 1),
        "gathered": round(float(np.mean(gathered)), 1) if gathered else None,
        "MFLOPs": round(cost.flops / 1e6, 1),
        "KV KiB": round(cost.kv_bytes / 1024, 1),
        "ms": round(each[0]["ms"], 3),
    }


def claim_all(results: Results, report: Any) -> None:
    """Reports every claim of the experiment.

    Args:
      results: what was measured.
      report: where they go.
    """
    _accuracy_claims(results, report)
    _method_claims(results, report)
    _position_claim(results.found, report)
    _cost_claims(results, report)


def _full(results: Results) -> np.ndarray:
    """Per cent of right answers with all tokens, one a seed."""
    return np.array([100 * row["accuracy"] for row in results.whole])


def _seen(results: Results, at: int, *labels: str) -> str:
    each = (f"{label} {results.points(label, at).mean():.1f} %" for label in labels)
    return (
        f"right at {at} tokens: {', '.join(each)}; with all "
        f"{_full(results).mean():.1f} %"
    )


def _accuracy_claims(results: Results, report: Any) -> None:
    """Whether the task can tell, budgets, and what the best methods lose."""
    full, points, best = _full(results), results.points, results.best
    quarter, ninth = results.budgets[-2:]
    claim, seen = (functools.partial(f, x) for f, x in
                   ((_difference, report), (_seen, results)))  # fmt: skip
    claim(
        "informative", "random tokens at the smallest budget lose much", "baselines",
        full - points("random", ninth), ">=", 20.0,
        seen(ninth, "random", "uniform"),
    )  # fmt: skip
    counts = [
        row["rows"] - at for (_, at), each in results.found.items() for row in each
    ]
    report.claim(
        "budgets", "every method leaves exactly its budget of rows",
        paper="section 2: K is static", measured=int(np.abs(counts).max()),
        unit="rows", op="==", bound=0, n=len(counts),
    )  # fmt: skip
    claim(
        "quarter", f"a method ({best(quarter)}) loses little at a quarter",
        "compression is nearly free down to a quarter",
        full - points(best(quarter), quarter), "<=", 2.0, seen(quarter, best(quarter)),
    )  # fmt: skip
    claim(
        "ninth", f"a method ({best(ninth)}) loses little at a ninth",
        "1/9 of 576 tokens keeps about 94 % (VisionZip, DivPrune)",
        full - points(best(ninth), ninth), "<=", 5.0, seen(ninth, best(ninth)),
    )  # fmt: skip


def _method_claims(results: Results, report: Any) -> None:
    """Which kinds of method do better at a ninth."""
    points, ninth = results.points, results.budgets[-1]
    claim = functools.partial(_difference, report)
    seen = functools.partial(_seen, results, ninth)
    reads, blind = results.best(ninth, inside=True), results.best(ninth, inside=False)
    claim(
        "question",
        f"{reads}, which sees the question, beats {blind}, which does not, at a ninth",
        "text-guided methods keep what is asked for",
        points(reads, ninth) - points(blind, ninth), ">=", 0.0,
        seen(reads, blind) + ": a ninth has room for all objects of a scene",
    )  # fmt: skip
    claim(
        "attention", "class attention beats even spacing at a ninth",
        "attention ranks better than a uniform stride",
        points("class attention", ninth) - points("uniform", ninth), ">=", 5.0,
        seen("class attention", "column means", "uniform"),
    )  # fmt: skip
    claim(
        "diversity", "DivPrune beats even spacing at a ninth",
        "diversity covers rare things", points("divprune", ninth)
        - points("uniform", ninth), ">=", 5.0, seen("divprune", "uniform"),
    )  # fmt: skip
    claim(
        "averages", "averages of squares lose much at a ninth",
        "fixed pooling is content-blind",
        _full(results) - points("average_pooling", ninth), ">=", 5.0,
        seen("average_pooling"),
    )  # fmt: skip


def _cost_claims(results: Results, report: Any) -> None:
    """FLOPs and time at a ninth."""
    ninth, whole = results.budgets[-1], results.whole[0]["ms"]
    cost = lambda at: _cost(results, at).flops
    report.claim(
        "cheaper", "FLOPs of the decoder at a ninth, of those with all tokens",
        paper="1.35 of 8.18 T at 64 of 576 (LLaVA-1.5-7B)",
        measured=round(cost(ninth) / cost(results.count), 4), unit="ratio", op="<=",
        bound=0.2,
    )  # fmt: skip
    time_of = {
        case.label: results.found[case.label, ninth][0]["ms"]
        for case in results.cases
        if not case.inside and (case.label, ninth) in results.found
    }
    quick = min(time_of, key=lambda label: time_of[label])
    report.claim(
        "faster", "time of a question at a ninth, of that with all tokens: the median "
        "of the methods before the decoder", paper="measured speed-ups of 2 to 8",
        measured=round(float(np.median(list(time_of.values()))) / whole, 3),
        unit="ratio", op="<=", bound=0.5, n=len(time_of),
        reason=f"the fastest ({quick}) takes {time_of[quick]:.3f} ms, all tokens "
        f"{whole:.3f} ms: choosing costs as much as small layers save",
    )  # fmt: skip


def _position_claim(found: dict[Any, list[dict[str, Any]]], report: Any) -> None:
    """How far the two policies of positions are apart."""
    seeds = len(next(iter(found.values())))
    gaps = [
        np.mean(
            [
                100 * (each[seed]["gathered"] - each[seed]["accuracy"])
                for each in found.values()
                if "gathered" in each[seed]
            ]
        )
        for seed in range(seeds)
    ]
    report.claim(
        "positions", "gathered positions are as good as renumbered ones, in the mean "
        "of all methods", paper="FastV and SparseVLM 2.0 keep them, others renumber",
        measured=round(float(np.mean(np.abs(gaps))), 2), unit="points", op="<=",
        bound=2.0, n=seeds, reason="the decoder was trained with neighbours side by "
        "side; gaps between positions are new to it",
    )  # fmt: skip


def _difference(
    report: Any, name: str, what: str, paper: str, each: np.ndarray, op: str,
    bound: float, reason: str,
) -> None:  # fmt: skip
    ends = student_interval(each)
    report.claim(
        name, what, paper=paper, measured=round(float(each.mean()), 2), unit="points",
        op=op, bound=bound, n=len(each), reason=reason,
        ci95=None if ends is None else (round(ends[0], 2), round(ends[1], 2)),
    )  # fmt: skip
