"""Prompts of public tasks, who said what in a chat, and code that is tried."""

import time

import pytest

from experiments.tasks import TASKS, chat_spans, problems, solves, task_prompts
from jtok import testing
from jtok.errors import ArgumentError


class Chats:
    """A vocabulary: a role's id, the words as letters, and an end."""

    def encode_chat(self, turns, add_generation_prompt=True):
        assert turns, "templates refuse an empty conversation"
        ids = []
        for turn in turns:
            role = 1 if turn["role"] == "user" else 2
            ids += [role, *map(ord, turn["content"]), 3]
        return ids + [2] * add_generation_prompt


def turn(role, content):
    return {"role": role, "content": content}


def test_every_turn_of_the_assistant_is_a_span():
    talk = [turn("user", "ab"), turn("assistant", "c"), turn("user", "d"),
            turn("assistant", "ef")]  # fmt: skip
    ids, spans = chat_spans(Chats(), talk)
    said = [[*ids[start:stop]] for start, stop in spans]
    assert said == [[ord("c"), 3], [ord("e"), ord("f"), 3]]
    _, spans = chat_spans(Chats(), [turn("assistant", "a"), turn("user", "b")])
    assert spans.tolist() == [[0, 3]]
    assert chat_spans(Chats(), talk[:1])[1].shape == (0, 2)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_those_of_the_files(name):
    testing.data(TASKS[name])
    found = task_prompts(name, 3)
    assert len(found) == 3 and all(len(text) > 20 for text in found)
    assert len(task_prompts("MT-bench", 500)) == 80


def test_other_tasks_are_refused():
    with pytest.raises(ArgumentError, match="name: got 'ARC'"):
        task_prompts("ARC", 1)


def test_a_completion_is_right_where_all_tests_pass():
    (problem,) = problems(1)
    assert solves(problem, problem["canonical_solution"])
    for wrong in (
        "    return True\n",
        "    return (\n",
        # Leaving before the tests passes none of them.
        "    return True\nimport os\nos._exit(0)\n",
    ):
        assert not solves(problem, wrong)
    start = time.monotonic()
    assert not solves(problem, "    return True\nwhile True: pass\n", seconds=0.5)
    assert time.monotonic() - start < 5
