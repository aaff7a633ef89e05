"""Batches and conversations of the experiment on drafts from states."""

import dataclasses

import numpy as np

from experiments import chimera
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
    assert mask.sum() < 400 and not np.any(labels[~mask] != IGNORE)


def test_every_epoch_sees_every_row_once():
    rows = {"tokens": np.arange(7)[:, None]}
    steps = [chimera._batch(rows, 2, 0, step)["tokens"].ravel() for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        assert len(set(np.concatenate(epoch).tolist())) == 6
    assert np.concatenate(steps[:3]).tolist() != np.concatenate(steps[3:]).tolist()
    again = chimera._batch(rows, 2, 0, 4)["tokens"].ravel()
    np.testing.assert_array_equal(again, steps[4])
