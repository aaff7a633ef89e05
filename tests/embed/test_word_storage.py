"""Folders of word-pooled models: whole or not at all, with their alphabet."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import embed
from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    VocabMismatchError,
    WriteError,
)
from jtok.models import storage
from jtok.text import byte_alphabet, char_alphabet, subword_alphabet
from tests.embed.word_models import TINY, tiny_model
from tests.text import kinds

CHARS = char_alphabet(["abcdefghi"])


def model_of(config=TINY, alphabet=CHARS):
    return embed.WordModel(params=tiny_model(config), config=config, alphabet=alphabet)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_loaded(dtype, tmp_path):
    config = dataclasses.replace(TINY, dtype=dtype, bos=True)
    embed.save_words(model_of(config), tmp_path / "out")
    again = embed.load_words(tmp_path / "out")
    assert again.config == config and again.alphabet == CHARS
    jax.tree.map(np.testing.assert_array_equal, again.params, tiny_model(config))
    kept = jax.tree.map(lambda x: x.dtype == dtype, again.params)
    assert all(jax.tree.leaves(kept))


def test_the_names_of_the_tensors_are_a_format(tmp_path):
    embed.save_words(model_of(), tmp_path / "out")
    with storage.TensorFiles.open(tmp_path / "out") as tensors:
        names = set(tensors)
    assert {
        "embed.units", "embed.unit_positions", "embed.word_positions", "head.kernel",
        "encoder.layers.qkv.kernel", "encoder.layers.norm2.scale",
        "main.layers.query.kernel", "main.final_norm.scale", "decoder.layers.up.bias",
    } <= names  # fmt: skip


def test_a_tokenizer_is_saved_with_its_subwords(tmp_path):
    alphabet = subword_alphabet(kinds.byte_bpe())
    config = embed.UnitConfig(vocab_size=alphabet.size, width=8, layers=1, heads=2)
    shapes = jax.eval_shape(
        lambda key: embed.init_units(config, key), jax.random.key(0)
    )
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    model = embed.WordModel(params=params, config=config, alphabet=alphabet)
    embed.save_words(model, tmp_path / "out")
    again = embed.load_words(tmp_path / "out")
    assert again.alphabet == alphabet and again.config == config
    (tmp_path / "out" / "tokenizer.json").write_text(
        kinds.byte_bpe(290).tokenizer_json()
    )
    with pytest.raises(VocabMismatchError, match="the hash"):
        embed.load_words(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(MissingFileError, match="its tokenizer is missing"):
        embed.load_words(tmp_path / "out")


def test_damaged_folders_are_refused(tmp_path):
    out = tmp_path / "out"
    embed.save_words(model_of(), out)
    fields = json.loads((out / "config.json").read_text())

    def refused(error, match, **change):
        (out / "config.json").write_text(json.dumps(fields | change))
        with pytest.raises(error, match=match):
            embed.load_words(out)

    refused(UnsupportedCheckpointError, "model_type 'gpt2'", model_type="gpt2")
    refused(
        CheckpointError, r"embed.units is \(14, 8\), expected \(15, 8\)", prefixes=3
    )
    refused(CheckpointError, "damaged: heads: got 3", heads=3)
    refused(VocabMismatchError, "12 units, the embedding 13", vocab_size=13)
    refused(CheckpointError, "unknown tensor embed.bos|no tensor embed.bos", bos=True)
    (out / "config.json").write_text(json.dumps(fields))
    (out / "alphabet.json").write_text("{")
    with pytest.raises(CheckpointError, match="alphabet: damaged"):
        embed.load_words(out)
    with pytest.raises(MissingFileError, match="no folder"):
        embed.load_words(tmp_path / "nothing")


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    embed.save_words(model_of(), out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_tensors", full)
    with pytest.raises(WriteError, match="No space left"):
        embed.save_words(model_of(), out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    with pytest.raises(VocabMismatchError, match="259 units, the embedding 12"):
        embed.save_words(model_of(alphabet=byte_alphabet()), out)
    with pytest.raises(ArgumentTypeError, match="model: got dict"):
        embed.save_words.__wrapped__(tiny_model(), out)


def test_official_tensors_are_checked(golden):
    file = golden("learn_your_tokens/official_base.npz")
    config = embed.UnitConfig(
        vocab_size=15, width=24, length=12, layers=2, heads=2, positions=False
    )
    tensors = {n[2:]: file[n] for n in file if n.startswith("w_")}
    # A state dict of the code holds its causal masks, too.
    masks = {"blocks.0.attn.mask": np.ones((1, 1, 12, 12), np.float32)}
    jax.tree.map(
        np.testing.assert_array_equal,
        embed.words_from_tensors(tensors | masks, config),
        embed.words_from_tensors(tensors, config),
    )
    tensors["extra"] = tensors.pop("head.weight")
    tensors["ln_f.bias"] = np.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        embed.words_from_tensors(tensors, config)
    text = str(caught.value)
    assert "no tensor head.weight" in text and "unknown tensor extra" in text
    assert "ln_f.bias gives (5,), expected (24,)" in text
