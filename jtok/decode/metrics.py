"""Speed and acceptance over a benchmark, counted as Spec-Bench counts them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jtok.errors import ArgumentError, check

__all__ = ["SpecBenchSummary", "spec_bench_summary"]

Numbers = Sequence[Any] | np.ndarray


class SpecBenchSummary(NamedTuple):
    """The figures of one task.

    Attributes:
      mean_accepted: tokens a call, over all calls of all turns ("#mean accepted
        tokens"); plain decoding has 1.0.
      tokens_per_second: mean over questions of each question's rate.
      baseline_tokens_per_second: the same of plain decoding.
      speedup: ratio of these two means.
    """

    mean_accepted: float
    tokens_per_second: float
    baseline_tokens_per_second: float
    speedup: float


def spec_bench_summary(
    question: Numbers,
    new_tokens: Numbers,
    seconds: Numbers,
    *,
    baseline_tokens: Numbers,
    baseline_seconds: Numbers,
    call_question: Numbers,
    call_tokens: Numbers,
    task: Sequence[str] | None = None,
) -> dict[str, SpecBenchSummary]:
    """Summarises turns of questions, by task and overall.

    A question's rate is all tokens of its turns over all their wall time, prefill
    included. Rates are averaged over questions, and the speedup is the ratio of the
    averages, not the average of ratios; calls are averaged over all of them, so that
    long answers weigh more.

    Args:
      question: `[turns]` id of the question that each turn belongs to.
      new_tokens: `[turns]` tokens emitted.
      seconds: `[turns]` wall time.
      baseline_tokens: `[turns]` tokens of plain decoding.
      baseline_seconds: `[turns]` wall time of plain decoding.
      call_question: `[calls]` id of the question of each call.
      call_tokens: `[calls]` tokens emitted by each call.
      task: `[turns]` name of each turn's task, the same for all turns of a question;
        None gives the overall figures only.

    Returns:
      `SpecBenchSummary` by task, and "overall".

    Raises:
      ArgumentError: lengths that differ, times that are not positive, a question of
        two tasks, or a question with turns and without calls or the reverse.

    Source: Xia et al. 2024, arXiv 2401.07851, and the evaluation code of Spec-Bench.

    Example:
      >>> got = spec_bench_summary(
      ...     [0, 1], [8, 6], [2.0, 1.0], baseline_tokens=[8, 6],
      ...     baseline_seconds=[4.0, 3.0],
      ...     call_question=[0, 0, 1], call_tokens=[4, 4, 6],
      ... )
      >>> got["overall"].tokens_per_second, got["overall"].speedup
      (5.0, 2.5)
    """
    turns = {
        "new_tokens": np.asarray(new_tokens, np.float64),
        "seconds": np.asarray(seconds, np.float64),
        "baseline_tokens": np.asarray(baseline_tokens, np.float64),
        "baseline_seconds": np.asarray(baseline_seconds, np.float64),
    }
    ids = np.asarray(question)
    check(ids.ndim == 1 and ids.size > 0, "question", question, "at least one turn")
    for name, values in turns.items():
        _check_length(name, values, ids)
    for name in ("seconds", "baseline_seconds"):
        good = bool(np.all(turns[name] > 0))
        check(good, name, turns[name].min(), "positive times")
    call_ids, sizes = np.asarray(call_question), np.asarray(call_tokens, np.float64)
    _check_length("call_tokens", sizes, call_ids)
    if set(ids.tolist()) != set(call_ids.tolist()):
        raise ArgumentError("call_question: its questions are not those of question.")
    groups = {} if task is None else _by_task(ids, np.asarray(task))
    groups["overall"] = np.unique(ids)
    return {
        name: _summary(members, ids, turns, call_ids, sizes)
        for name, members in groups.items()
    }


def _check_length(name: str, values: np.ndarray, ids: np.ndarray) -> None:
    good = values.shape == ids.shape
    check(good, name, f"shape {values.shape}", f"[{ids.shape[0]}]")


def _by_task(ids: np.ndarray, task: np.ndarray) -> dict[str, np.ndarray]:
    _check_length("task", task, ids)
    pairs = sorted({(int(i), str(name)) for i, name in zip(ids, task, strict=True)})
    if len(pairs) != len(np.unique(ids)):
        raise ArgumentError("task: a question has turns of two tasks.")
    names = dict.fromkeys(str(name) for name in task)
    return {
        name: np.array([i for i, other in pairs if other == name]) for name in names
    }


def _summary(
    members: np.ndarray, ids: np.ndarray, turns: Any, call_ids: Any, sizes: Any
) -> SpecBenchSummary:
    def rate(tokens: str, seconds: str) -> float:
        rates = [
            turns[tokens][ids == i].sum() / turns[seconds][ids == i].sum()
            for i in members
        ]
        return float(np.mean(rates))

    ours = rate("new_tokens", "seconds")
    plain = rate("baseline_tokens", "baseline_seconds")
    accepted = float(sizes[np.isin(call_ids, members)].mean())
    return SpecBenchSummary(accepted, ours, plain, ours / plain)
