"""Saving and loading: the same model, or an error that names what is wrong."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    WriteError,
)
from jtok.models import stack_layers
from jtok.models.storage import TensorFiles, write_tensors
from jtok.ops.sharding import mesh_from
from jtok.predict import FutureConfig, init_future, load_future, save_future
from jtok.predict.future import with_encoder
from jtok.testing import tiny_config, tiny_vocabulary
from tests.predict.future_models import tiny_future


def same(a, b):
    assert a.config == b.config
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    kinds = lambda model: jax.tree.map(lambda x: x.dtype, model.params)
    assert kinds(a) == kinds(b)


@pytest.mark.parametrize(
    "options",
    [{}, {"family": "gemma2"}, {"first_input": "last_token"}, {"dtype": "bfloat16"}],
    ids=["gpt2", "gemma2", "last_token", "bfloat16"],
)
def test_what_was_saved_is_loaded(tmp_path, options):
    model = tiny_future(**options)
    save_future(model, tmp_path / "a")
    same(load_future(tmp_path / "a"), model)
    # Stacked layers are saved split, and an older folder is replaced.
    stacked = model.replace(params=with_encoder(model.params, stack_layers))
    save_future(stacked, tmp_path / "a")
    same(load_future(tmp_path / "a"), model)


@pytest.mark.medium
def test_the_vocabulary_goes_along(tmp_path):
    vocabulary = tiny_vocabulary(280)
    config = FutureConfig(encoder=tiny_config(family="gpt2", vocab_size=280))
    model = init_future(config, jax.random.key(0), vocabulary=vocabulary)
    save_future(model, tmp_path / "a")
    assert load_future(tmp_path / "a").vocabulary.hash == vocabulary.hash


@pytest.mark.medium
def test_a_mesh_loads_its_own_parts(tmp_path):
    save_future(tiny_future(), tmp_path / "a")
    with jax.set_mesh(mesh_from("data=2,model=4")):
        loaded = load_future(tmp_path / "a")
        save_future(loaded, tmp_path / "b")
    kernel = loaded.params["decoder"]["layers"][0]["query"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (32, 8)
    same(load_future(tmp_path / "b"), tiny_future())


@pytest.fixture
def saved(tmp_path):
    save_future(tiny_future(), tmp_path / "a")
    return tmp_path / "a"


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(folder, change):
    with TensorFiles.open(folder) as files:
        tensors = {name: files.read(name) for name in files}
    change(tensors)
    (folder / "model.safetensors").unlink()
    write_tensors(folder, tensors)


def test_a_file_that_is_missing(saved, tmp_path):
    with pytest.raises(MissingFileError, match="there is no folder"):
        load_future(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(MissingFileError):
        load_future(saved)


def test_another_kind_of_model(saved):
    change_config(saved, model_type="gpt2")
    with pytest.raises(UnsupportedCheckpointError, match="model_type 'gpt2'"):
        load_future(saved)


@pytest.mark.parametrize(
    "fields",
    [{"horizon": 0}, {"depth": 3}, {"encoder": None}, {"encoder": {"width": 4}}],
    ids=["horizon", "unknown", "no-encoder", "half-an-encoder"],
)
def test_a_damaged_configuration(saved, fields):
    change_config(saved, **fields)
    with pytest.raises(CheckpointError, match=r"config.json: damaged"):
        load_future(saved)


def test_sizes_that_no_file_has_are_never_made(saved):
    encoder = json.loads((saved / "config.json").read_text())["encoder"]
    change_config(saved, encoder={**encoder, "vocab_size": 10**12})
    with pytest.raises(CheckpointError, match="the files hold"):
        load_future(saved)


def test_all_problems_with_tensors_are_listed(saved):
    def change(tensors):
        del tensors["decoder.start"]
        tensors["decoder.stop"] = np.zeros(3, np.float32)
        tensors["expand.bias"] = tensors["expand.bias"][:-1]
        name = "decoder.positions"
        tensors[name] = tensors[name].astype(np.float16)

    change_tensors(saved, change)
    with pytest.raises(CheckpointError) as caught:
        load_future(saved)
    text = str(caught.value)
    for part in (
        "no tensor decoder.start", "unknown tensor decoder.stop",
        "expand.bias is (95,), expected (96,)", "decoder.positions is float16",
    ):  # fmt: skip
        assert part in text


def test_a_truncated_file(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_future(saved)


def test_a_failed_save_leaves_the_old_folder(saved, monkeypatch):
    from jtok.predict import future_storage

    def full(*args):
        raise WriteError("folder: no room")

    monkeypatch.setattr(future_storage.storage, "write_tensors", full)
    with pytest.raises(WriteError, match="no room"):
        save_future(tiny_future(horizon=2), saved)
    same(load_future(saved), tiny_future())


def test_other_work_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="config.json"):
        save_future(tiny_future(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    unchecked = getattr(save_future, "__wrapped__", save_future)
    with pytest.raises(ArgumentTypeError, match="model: got Model"):
        unchecked(tiny_future().encoder, tmp_path / "a")


def test_a_swap_that_was_cut_short_is_settled(saved):
    saved.rename(saved.with_name(".a.backup"))
    same(load_future(saved), tiny_future())


def test_configurations_round_trip():
    """Tuples of tuples, such as scalings and windows have, too."""
    from jtok.predict.future_storage import _config

    encoder = dataclasses.replace(
        tiny_config(), windows=(4, None),
        rope_scaling=(("rope_type", "linear"), ("factor", 2.0)),
    )  # fmt: skip
    config = FutureConfig(encoder=encoder, horizon=5)
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    found = _config({**fields, "model_type": "jtok_future"}, pathlib.Path("a"))
    assert found == config
