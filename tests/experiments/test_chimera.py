"""Batches and conversations of the experiment on drafts from states."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import chimera
from jtok import testing
from jtok.errors import DataNotFoundError
from jtok.predict import IGNORE
from jtok.testing import tiny_vocabulary


def test_only_answers_of_a_conversation_are_learnt():
    turns = [("human", "the cat"), ("gpt", "sat on"), ("human", "so"), ("gpt", "is")]
    talk = {"conversations": [{"from": a, "value": b} for a, b in turns]}
    vocabulary = tiny_vocabulary()
    config = dataclasses.replace(chimera.Config(), length=400)
    rows = chimera.chat_rows([talk, {"conversations": []}], vocabulary, config)
    assert rows["tokens"].shape == (1, 400)
    tokens, labels, mask = (rows[name][0] for name in ("tokens", "labels", "mask"))
    end = vocabulary.special["eos"]
    learnt = [int(x) for x in labels[labels != IGNORE]]
    assert learnt.count(end) == 2
    stop = learnt.index(end)
    said = [vocabulary.decode(part) for part in (learnt[:stop], learnt[stop + 1 : -1])]
    assert said == [" sat on", " is"]
    np.testing.assert_array_equal(labels[labels >= 0], tokens[labels >= 0])
    whole = vocabulary.decode([int(x) for x in tokens[mask] if x != end])
    assert whole.endswith("USER: the cat ASSISTANT: sat onUSER: so ASSISTANT: is")
    asked = chimera.question_prompts(
        [{"category": "qa", "turns": ["the cat"]}], vocabulary,
        dataclasses.replace(config, prompt_tokens=400),
    )  # fmt: skip
    begin = len(asked["qa"][0])  # a question is asked as it was learnt
    np.testing.assert_array_equal(asked["qa"][0], tokens[:begin])
    assert (labels[:begin] == IGNORE).all() and labels[begin] != IGNORE
    assert mask.sum() < 400 and not np.any(labels[~mask] != IGNORE)


def test_what_has_no_question_or_no_answer_is_left_out():
    vocabulary = tiny_vocabulary()
    config = dataclasses.replace(chimera.Config(), length=400)
    row = lambda *turns: chimera.chat_rows(
        [{"conversations": [{"from": a, "value": b} for a, b in turns]}],
        vocabulary, config,
    )["tokens"]  # fmt: skip
    pair = ("human", "the cat"), ("gpt", "sat on")
    np.testing.assert_array_equal(
        row(("gpt", "hello"), *pair, ("human", "why")), row(*pair)
    )
    assert len(row(("human", "the cat"))) == 0


def test_questions_are_asked_by_group():
    try:
        path = testing.data("tasks/spec_bench_questions.jsonl")
    except DataNotFoundError:
        pytest.skip("the questions of Spec-Bench are not there")
    lines = path.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    vocabulary = tiny_vocabulary()
    size = lambda words: len(vocabulary.encode(words))
    config = dataclasses.replace(chimera.Config(), prompts=3, prompt_tokens=900)
    found = chimera.question_prompts(questions, vocabulary, config)
    assert set(found) <= {"mt_bench", *chimera._GROUPS} and len(found) > 2
    for kind, prompts in found.items():
        group = lambda q: (
            q["category"] if q["category"] in chimera._GROUPS else "mt_bench"
        )
        wanted = [
            f"{chimera._SYSTEM}USER: {q['turns'][0]} ASSISTANT:"
            for q in questions
            if group(q) == kind
        ]
        wanted = [words for words in wanted if size(words) <= 900][:3]
        assert [vocabulary.decode(ids) for ids in prompts] == wanted


def test_every_epoch_sees_every_row_once():
    rows = {"tokens": np.arange(7)[:, None]}
    steps = [chimera._batch(rows, 2, 0, step)["tokens"].ravel() for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        assert len(set(np.concatenate(epoch).tolist())) == 6
    assert np.concatenate(steps[:3]).tolist() != np.concatenate(steps[3:]).tolist()
    again = chimera._batch(rows, 2, 0, 4)["tokens"].ravel()
    np.testing.assert_array_equal(again, steps[4])


def test_in_a_row_counts_what_is_right_so_far(monkeypatch):
    """Heads that are right, in turns: each alone, and all up to each."""
    ids = np.array([[7, 1, 2, 3, 4, 5]])
    own = np.array([[False, True, True, True, True, True]])
    right = {2: (0, 1, 3), 3: (0, 2), 4: (0, 1)}  # offset -> places where it is right
    logits = np.zeros((3, 1, 6, 9), np.float32)
    logits[..., 8] = 1
    for offset, places in right.items():
        for place in places:
            logits[offset - 2, 0, place, ids[0, place + offset]] = 2

    class Model:
        def __call__(self, ids, **options):
            return types.SimpleNamespace(hidden=jnp.zeros((*ids.shape, 4)))

    draft = types.SimpleNamespace(config=types.SimpleNamespace(num_heads=3, steps=3))
    monkeypatch.setattr(chimera, "_logits", lambda *given: jnp.asarray(logits))
    hits = chimera._hits.__wrapped__(Model(), draft, jnp.asarray(ids), jnp.asarray(own))
    within, row, counts = (np.asarray(x) for x in hits)
    assert counts[:, 0].tolist() == [4, 3, 2]
    assert within[:, 0].tolist() == [3, 2, 2]
    assert row[:, 0].tolist() == [3, 1, 1]
