"""Draft stacks on disk: round trips, damage, and the wrong target."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
    WriteError,
)
from jtok.predict import (
    fusing_config,
    init_fusing,
    init_state_heads,
    load_draft,
    save_draft,
)
from jtok.testing import tiny_model, tiny_vocabulary

MODEL = tiny_model(vocab_size=280)
SMALL = fusing_config(MODEL, heads="light", steps=2)
DRAFTS = {
    "fusing": init_fusing(MODEL, jax.random.key(0)),
    "light": init_fusing(MODEL, jax.random.key(1), SMALL),
    "heads": init_state_heads(MODEL, steps=2, blocks=2),
}


@pytest.mark.parametrize("name", DRAFTS)
def test_what_was_saved_is_loaded(tmp_path, name):
    draft = DRAFTS[name]
    save_draft(draft, tmp_path / "draft")
    found = load_draft(tmp_path / "draft", MODEL)
    assert type(found) is type(draft) and found.config == draft.config
    assert jax.tree.structure(found.params) == jax.tree.structure(draft.params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(draft), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(os.listdir(tmp_path / "draft")) == ["draft.json", "model.safetensors"]


def test_another_target_is_refused(tmp_path):
    model = dataclasses.replace(MODEL, vocabulary=tiny_vocabulary(280))
    save_draft(init_fusing(model, jax.random.key(0), SMALL), tmp_path / "draft")
    other = dataclasses.replace(MODEL, vocabulary=tiny_vocabulary(270))
    with pytest.raises(VocabMismatchError, match="made for another vocabulary"):
        load_draft(tmp_path / "draft", other)
    with pytest.raises(VocabMismatchError, match="model: it has 96 ids and a width"):
        load_draft(tmp_path / "draft", tiny_model())
    load_draft(tmp_path / "draft", MODEL)  # whose vocabulary is not known


def test_damage_is_named(tmp_path):
    folder = tmp_path / "draft"
    save_draft(DRAFTS["light"], folder)
    text = (folder / "draft.json").read_text()
    weights = (folder / "model.safetensors").read_bytes()

    def fails(match, error=CheckpointError):
        with pytest.raises(error, match=match):
            load_draft(folder, MODEL)

    (folder / "draft.json").write_text(text[:50])
    fails("draft.json: damaged")
    (folder / "draft.json").write_text(text.replace("jtok.fusing", "jtok.table"))
    fails("holds a 'table', no draft stack")
    fields = json.loads(text)
    fields["config"]["steps"] = 3
    (folder / "draft.json").write_text(json.dumps(fields))
    fails(r"'heads/kernel' has shape \(2, 64, 32\), expected \(3, 64, 32\)")
    fields["config"] |= {"steps": 2, "trigram": "token"}
    (folder / "draft.json").write_text(json.dumps(fields))
    fails("has 'trigram/inner/bias'")
    (folder / "draft.json").write_text(text)
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    fails("model.safetensors")
    (folder / "model.safetensors").unlink()
    fails("no weights there", MissingFileError)


def test_a_folder_of_something_else_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WriteError):
        save_draft(DRAFTS["light"], tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ArgumentTypeError, match="draft: got str"):
        getattr(save_draft, "__wrapped__", save_draft)("draft", tmp_path / "x")
