"""Public tasks: their prompts, chats with who said what, and code that is tried."""

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jtok import testing
from jtok.errors import check

__all__ = ["TASKS", "chat_spans", "problems", "solves", "task_prompts"]

_HUMANEVAL = "tasks/HumanEval.jsonl.gz"
TASKS = {
    "GSM8K": "tasks/gsm8k_train.jsonl",
    "HumanEval": _HUMANEVAL,
    "MT-bench": "tasks/spec_bench_questions.jsonl",
}
_MT_BENCH = 80  # the first questions of that file


def task_prompts(name: str, count: int) -> list[str]:
    """Prompts of a public task, as users would write them.

    Args:
      name: one of `TASKS`. Of GSM8K there are training questions only, the last ones.
      count: at most so many.

    Returns:
      Texts.

    Raises:
      ArgumentError: another name.
      DataNotFoundError: the task's file is not there.
    """
    check(name in TASKS, "name", name, f"one of {', '.join(TASKS)}")
    if name == "HumanEval":
        return [row["prompt"] for row in problems(count)]
    text = testing.data(TASKS[name]).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    if name == "GSM8K":
        return [row["question"] for row in rows[len(rows) - count :]]
    return [row["turns"][0] for row in rows[: min(count, _MT_BENCH)]]


def problems(count: int | None = None) -> list[dict[str, str]]:
    """Problems of HumanEval.

    Args:
      count: the first ones, None for all 164.

    Returns:
      Mappings with `task_id`, `prompt`, `entry_point`, `test` and a solution.

    Raises:
      DataNotFoundError: their file is not there.
    """
    with gzip.open(testing.data(_HUMANEVAL), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][:count]


def solves(problem: Mapping[str, str], completion: str, seconds: float = 10.0) -> bool:
    """Runs a completion and the problem's tests in a process of its own.

    The process is ended after a while, but nothing keeps it from the files or the
    network of this machine: call it where the machine may be lost.

    Args:
      problem: from `problems`.
      completion: what a model wrote after its prompt.
      seconds: after which it has failed.

    Returns:
      Whether all tests passed.
    """
    program = "\n".join(
        [
            problem["prompt"] + completion, problem["test"],
            f"check({problem['entry_point']})", "print('passed', end='')",
        ]
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tried.py"
        file.write_text(program, encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(file)], cwd=folder, capture_output=True,
                stdin=subprocess.DEVNULL, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    # A completion that leaves early has passed no test.
    return done.returncode == 0 and done.stdout.endswith(b"passed")


def chat_spans(vocabulary: Any, turns: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a conversation, and the spans that the assistant wrote: all its turns.

    Args:
      vocabulary: with a chat template.
      turns: mappings with "role" and "content".

    Returns:
      `[tokens]` int32 ids, and `[turns, 2]` int32 spans, for `jtok.predict.pad_rows`.
    """
    ids = vocabulary.encode_chat(turns, add_generation_prompt=False)
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = vocabulary.encode_chat(turns[:index]) if index else ()
            after = vocabulary.encode_chat(
                turns[: index + 1], add_generation_prompt=False
            )
            spans.append((len(before), len(after)))
    return ids, np.asarray(spans, np.int32).reshape(-1, 2)
