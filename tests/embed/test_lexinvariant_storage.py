"""Folders of lexinvariant models, whole, damaged and of another kind."""

import json

import jax
import numpy as np
import pytest

from jtok import models
from jtok.embed import lexinvariant_from, load_lexinvariant, save_lexinvariant
from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    VocabMismatchError,
)
from jtok.models import storage
from jtok.testing import tiny_model, tiny_vocabulary

KEY = jax.random.key(0)
OPTIONS = {
    "plain": {},
    "everything": {
        "fixed_ids": (1, 5), "excluded_ids": (0,), "previous_token": True,
        "logit_scale": "learned", "row_scale": 0.5,
    },
    "partial": {"q": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.parametrize("name", OPTIONS)
def test_round_trip(tmp_path, name, family):
    model = lexinvariant_from(tiny_model(family=family), key=KEY, **OPTIONS[name])
    save_lexinvariant(model, tmp_path / "lex")
    again = load_lexinvariant(tmp_path / "lex")
    assert again.config == model.config and again.vocabulary is None
    body = models.split_layers(model.params["body"])
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params | {"body": body})  # noqa: E501  # fmt: skip


def test_stacked_layers_and_a_vocabulary(tmp_path):
    base = tiny_model(vocab_size=tiny_vocabulary().size + 3)
    model = lexinvariant_from(base.replace(vocabulary=tiny_vocabulary()), key=KEY)
    stacked = model.params | {"body": models.stack_layers(model.params["body"])}
    save_lexinvariant(model.replace(params=stacked), tmp_path / "lex")
    again = load_lexinvariant(tmp_path / "lex")
    assert again.vocabulary.hash == tiny_vocabulary().hash
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_what_cannot_be_saved(tmp_path):
    model = lexinvariant_from(tiny_model(vocab_size=9), key=KEY)
    with pytest.raises(VocabMismatchError, match="the model 9 symbols"):
        save_lexinvariant(model.replace(vocabulary=tiny_vocabulary()), tmp_path / "l")
    with pytest.raises(TypeError):  # ArgumentTypeError, if the tests' hook were not
        save_lexinvariant(tiny_model(), tmp_path / "l")
    other = model.replace(config=model.config.__class__(model=tiny_model(family="bert").config))  # noqa: E501  # fmt: skip
    with pytest.raises(ArgumentError, match="its body has a EncoderConfig"):
        save_lexinvariant(other, tmp_path / "l")


def test_damage_is_told(tmp_path):
    folder = tmp_path / "lex"
    with pytest.raises(MissingFileError, match="there is no folder"):
        load_lexinvariant(folder)
    save_lexinvariant(lexinvariant_from(tiny_model(), key=KEY), folder)
    file = folder / "config.json"
    fields = json.loads(file.read_text())

    def edited(**changes):
        file.write_text(json.dumps(fields | changes))
        return pytest.raises

    with edited(model_type="bert")(UnsupportedCheckpointError, match="'bert'"):
        load_lexinvariant(folder)
    with edited(q=2.0)(CheckpointError, match="damaged: q: got 2.0"):
        load_lexinvariant(folder)
    with edited(body="tower")(CheckpointError, match="damaged: 'tower'"):
        load_lexinvariant(folder)
    with edited(q=0.5)(CheckpointError, match="no tensor learned"):
        load_lexinvariant(folder)
    edited()
    tensors = {"body.extra": np.ones(2, np.float32)}
    storage.write_tensors(folder, tensors)
    with pytest.raises(CheckpointError, match="unknown tensor body.extra"):
        load_lexinvariant(folder)
