"""Heads on disk: back as they were, of every family, and never from a pickle."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
)
from jtok.models import storage
from jtok.predict import (
    HeadsConfig,
    attach,
    head_adapters,
    heads_from_tensors,
    init_heads,
    load_heads,
    save_heads,
)
from jtok.testing import tiny_model

MODEL = tiny_model()
CONFIG = HeadsConfig(num_auxiliary=2, depth=2, separate_unembedding=True)


def distinct(heads):
    """Every number another one."""
    leaves, tree = jax.tree.flatten(heads.params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [
        jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return heads.replace(params=jax.tree.unflatten(tree, made))


def assert_same(one, other):
    assert one.config == other.config
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    for a, b in zip(
        jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "phi3", "mixtral"]
)
def test_heads_come_back(family, tmp_path):
    model = tiny_model(family=family)
    heads = distinct(init_heads(model, CONFIG))
    save_heads(heads, tmp_path / "heads")
    assert_same(load_heads(tmp_path / "heads", model), heads)


def test_linear_heads_come_back_in_bfloat16(tmp_path):
    config = dataclasses.replace(MODEL.config, dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), MODEL.params)
    model = dataclasses.replace(MODEL, params=params, config=config)
    heads = distinct(init_heads(model, HeadsConfig(arch="linear", depth=2)))
    save_heads(heads, tmp_path / "heads")
    assert_same(load_heads(tmp_path / "heads", model), heads)


def published(heads, folder, prefix="auxiliary_head."):
    """A folder as one has it who converted the official `heads.pth`."""
    save_heads(heads, folder / "own")
    with storage.TensorFiles.open(folder / "own") as files:
        tensors = {prefix + name: files.read(name) for name in files.names()}
    (folder / "official").mkdir()
    storage.write_tensors(folder / "official", tensors)
    return folder / "official", tensors


def test_published_heads_are_read(tmp_path):
    """Their folder does not say which they are: it takes the official choices."""
    made = HeadsConfig.official(num_auxiliary=3)
    heads = distinct(init_heads(MODEL, made))
    folder, tensors = published(heads, tmp_path)
    assert "auxiliary_head.0.layers.0.self_attn.q_proj.weight" in tensors
    assert_same(load_heads(folder, MODEL), heads)
    wanted = dataclasses.replace(made, head_norm=True)
    assert load_heads(folder, MODEL, config=wanted).config == wanted
    assert_same(heads_from_tensors(tensors, MODEL), heads)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "heads.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedCheckpointError, match="heads.pth: a PyTorch"):
        load_heads(tmp_path, MODEL)


def test_other_models_are_refused(tmp_path):
    heads = init_heads(MODEL, CONFIG)
    save_heads(heads, tmp_path / "heads")
    with pytest.raises(CheckpointError, match=r"heads for family='llama', the model"):
        load_heads(tmp_path / "heads", tiny_model(family="gemma2"))
    _, tensors = published(heads, tmp_path)
    with pytest.raises(CheckpointError, match=r"has shape \[96, 32\], the config"):
        heads_from_tensors(tensors, tiny_model(vocab_size=50))


def test_damage_is_named(tmp_path):
    heads = init_heads(MODEL, CONFIG)
    _, tensors = published(heads, tmp_path)
    short = {n: x for n, x in tensors.items() if "1.layers.0.mlp.up_proj" not in n}
    with pytest.raises(CheckpointError, match=r"missing 1\.layers\.0\.mlp\.up_proj"):
        heads_from_tensors(short, MODEL)
    with pytest.raises(CheckpointError, match="unknown spare"):
        heads_from_tensors({**tensors, "spare": np.zeros(2)}, MODEL)
    with pytest.raises(CheckpointError, match="no heads there"):
        heads_from_tensors({"spare": np.zeros(2)}, MODEL)
    with pytest.raises(MissingFileError, match="no such folder"):
        load_heads(tmp_path / "nothing", MODEL)
    file = tmp_path / "own" / "heads.json"
    for change, message in (
        ({"format": 9}, "format 9, expected 1"),
        ({"heads": 3}, "damaged, it lacks 'model' or 'heads'"),
        ({"heads": {"depth": 0}}, "damaged, depth: got 0"),
        ({"heads": {"color": 0}}, "damaged, .*color"),
    ):
        fields = json.loads(file.read_text())
        file.write_text(json.dumps({**fields, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_heads(file.parent, MODEL)
        file.write_text(json.dumps(fields))


def test_what_cannot_be_saved_is_refused(tmp_path):
    none = init_heads(MODEL, HeadsConfig(num_auxiliary=0))
    with pytest.raises(ArgumentError, match="heads: got 0, expected at least one head"):
        save_heads(none, tmp_path / "heads")
    heads = init_heads(MODEL, CONFIG)
    made = head_adapters(heads, 2, jax.random.key(0))
    adapted = heads.replace(params=attach(heads.params, made))
    with pytest.raises(ArgumentError, match="heads: got 'adapters'"):
        save_heads(adapted, tmp_path / "heads")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="heads.json"):
        save_heads(heads, tmp_path / "full")


def test_names_of_more_heads_than_tensors_are_refused_at_once():
    model = tiny_model()
    zeros = np.zeros((32, 32), np.float32)
    with pytest.raises(CheckpointError, match="1000000000 heads"):
        heads_from_tensors({"999999999.layers.0.linear.weight": zeros}, model)
    for digits in (10, 5000):  # Python reads no number of 5,000 digits
        name = "9" * digits + ".layers.0.linear.weight"
        with pytest.raises(CheckpointError, match="no heads there"):
            heads_from_tensors({name: zeros}, model)
    with pytest.raises(CheckpointError, match="1 heads of 1000 blocks"):
        heads_from_tensors({"0.layers.999.linear.weight": zeros}, model)
    config = HeadsConfig(num_auxiliary=10**9)
    with pytest.raises(CheckpointError, match="1000000000 heads"):
        heads_from_tensors({"0.layers.0.linear.weight": zeros}, model, config=config)
