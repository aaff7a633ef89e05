"""Benchmark figures as Spec-Bench computes them."""

import numpy as np
import pytest

from jtok.decode import spec_bench_summary
from jtok.errors import ArgumentError
from jtok.testing import assert_close

TURNS = {
    "question": [0, 0, 1],
    "new_tokens": [10, 20, 8],
    "seconds": [1.0, 2.0, 1.0],
    "baseline_tokens": [10, 20, 8],
    "baseline_seconds": [2.0, 4.0, 4.0],
    "call_question": [0, 0, 0, 1],
    "call_tokens": [5, 5, 20, 8],
}


def test_figures_of_the_official_code(golden):
    file = golden("speculative_verification/metrics.npz")
    names = file["categories"][file["category"]]
    chats = {"writing", "math", "coding"}  # those of MT-bench that occur
    task = ["mt_bench" if name in chats else str(name) for name in names]
    got = spec_bench_summary(
        file["question"],
        file["turn_new_tokens"],
        file["turn_wall"],
        baseline_tokens=file["turn_base_tokens"],
        baseline_seconds=file["turn_base_wall"],
        call_question=file["accept_question"],
        call_tokens=file["accept_lengths"],
        task=task,
    )
    assert set(got) == set(file["tasks"].tolist())
    for name, expected in zip(file["tasks"], file["results"], strict=True):
        # The walls were stored in float32.
        assert_close(np.array(got[str(name)]), expected, rtol=1e-6)


def test_the_speedup_is_a_ratio_of_means():
    out = spec_bench_summary(**TURNS)["overall"]
    assert out.tokens_per_second == (10 + 8) / 2
    assert out.baseline_tokens_per_second == (5 + 2) / 2
    assert out.speedup == 9 / 3.5
    assert out.mean_accepted == 38 / 4


def test_tasks_are_taken_apart():
    out = spec_bench_summary(**TURNS, task=["chat", "chat", "code"])
    assert list(out) == ["chat", "code", "overall"]
    assert out["chat"].mean_accepted == 10 and out["code"].mean_accepted == 8
    assert out["chat"].speedup == 2 and out["code"].speedup == 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"question": []}, "question: .* at least one turn"),
        ({"seconds": [1.0]}, r"seconds: got 'shape \(1,\)', expected \[3\]"),
        ({"baseline_seconds": [1.0, 0.0, 1.0]}, "baseline_seconds: got .*positive"),
        ({"call_question": [0, 0, 0, 2]}, "call_question"),
        ({"call_tokens": [1]}, "call_tokens"),
        ({"task": ["a", "b", "a"]}, "task: a question has turns of two tasks"),
        ({"task": ["a"]}, "task"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ArgumentError, match=message):
        spec_bench_summary(**{**TURNS, **change})
