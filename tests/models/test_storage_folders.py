"""Folders as users have them: odd places, damaged neighbours, replaced while read."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jtok import files, models
from jtok.errors import ArgumentError, CheckpointError, MissingFileError
from jtok.models import checkpoint, storage
from jtok.testing import tiny_config, tiny_model, tiny_vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def whole(tmp_path):
    """A folder with everything a checkpoint can have."""
    vocabulary = tiny_vocabulary()
    model = models.init(tiny_config(vocab_size=320), jax.random.key(0))
    generation = models.GenerationConfig((1,), source='{"eos_token_id": 1}')
    model = model.replace(vocabulary=vocabulary, generation_config=generation)
    models.save(model, tmp_path / "whole")
    return tmp_path / "whole"


def same(one, other):
    for got, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(got, wanted)


# ---- options of save


def test_save_in_shards(tmp_path):
    model = tiny_model()
    models.save(model, tmp_path / "out", max_shard_bytes=30_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) >= 3
    sizes = [shard.stat().st_size for shard in shards]
    assert max(sizes) < 30_000 + 4_000  # the header comes on top
    same(models.load(tmp_path / "out").params, model.params)
    models.save(model, tmp_path / "out")
    assert not list((tmp_path / "out").glob("model-*"))


@pytest.mark.parametrize("limit", [0, -1])
def test_save_refuses_shards_without_room(tmp_path, limit):
    with pytest.raises(ArgumentError, match=f"max_shard_bytes: got {limit}"):
        models.save(tiny_model(), tmp_path / "out", max_shard_bytes=limit)
    assert not list(tmp_path.iterdir())


def test_save_in_another_dtype(tmp_path):
    model = tiny_model()
    models.save(model, tmp_path / "half", dtype="bfloat16")
    half = models.load(tmp_path / "half")
    assert half.config.dtype == "bfloat16"
    same(half.params, jax.tree.map(lambda x: x.astype("bfloat16"), model.params))
    fields = json.loads((tmp_path / "half" / "config.json").read_text())
    assert fields["dtype"] == "bfloat16"
    models.save(half, tmp_path / "wide", dtype="float32")
    wide = models.load(tmp_path / "wide")
    assert wide.config.dtype == "float32"
    same(wide.params, jax.tree.map(lambda x: x.astype("float32"), half.params))
    assert model.config.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_save_refuses_other_dtypes_by_name(tmp_path, dtype):
    message = f"dtype: got '{dtype}', expected 'float32' or 'bfloat16'"
    with pytest.raises(ArgumentError, match=message):
        models.save(tiny_model(), tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.iterdir())


# ---- places


@pytest.mark.parametrize(
    "name", ["with space", "ünïcødé-日本", "a.b;c'd", "-x", "[1]*"]
)
def test_odd_names(tmp_path, name):
    models.save(tiny_model(), tmp_path / name)
    models.save(tiny_model(seed=1), tmp_path / name)
    same(models.load(tmp_path / name).params, tiny_model(seed=1).params)
    assert [child.name for child in tmp_path.iterdir()] == [name]


def test_a_linked_folder_and_linked_files(tmp_path, whole):
    (tmp_path / "link").symlink_to(whole, target_is_directory=True)
    same(models.load(tmp_path / "link").params, models.load(whole).params)
    models.save(tiny_model(seed=1), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    same(models.load(whole).params, tiny_model(seed=1).params)
    # As the cache of the hub has it.
    (tmp_path / "linked").mkdir()
    for file in whole.iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    same(models.load(tmp_path / "linked").params, tiny_model(seed=1).params)
    (whole / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"linked: no weights there"):
        models.load(tmp_path / "linked")


# A process without the rights of its owner; the parent may be root, who has all.
UNPRIVILEGED = """
import json, os, pathlib, sys
from jtok import files
from jtok.errors import JtokError
from jtok.models import storage

place = pathlib.Path(sys.argv[1])
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)

def read():
    folder = storage.resolve(place)
    with files.folder_lock(folder, shared=True):
        with storage.TensorFiles.open(folder) as tensors:
            return [storage.read_config(folder)["model_type"], len(tensors)]

def write():
    with files.replace_folder(place):
        return "written"

said = []
for action in (read, write):
    try:
        said.append(action())
    except JtokError as error:
        said.append([type(error).__name__, str(error)])
print(json.dumps(said))
"""


def unprivileged(place):
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(place)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def public(tmp_path):
    """A folder that everybody may reach; those of pytest are their owner's alone."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        place.chmod(0o755)
        models.save(tiny_model(), place / "out")
        yield place
        for child in (place, *place.rglob("*")):
            child.chmod(0o755)


@pytest.mark.medium
def test_a_read_only_folder_is_read_and_not_written(public):
    for child in (*public.rglob("*"), public):
        child.chmod(0o555 if child.is_dir() else 0o444)
    read, written = unprivileged(public / "out")
    assert read == ["llama", len(jax.tree.leaves(tiny_model().params))]
    assert written[0] == "WriteError"
    assert f"{public}/out" in written[1]


@pytest.mark.medium
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", ".", ".."])
def test_a_file_that_may_not_be_read_is_named(public, name):
    (public / "out" / name).chmod(0)
    read, _ = unprivileged(public / "out")
    assert read[0] in ("CheckpointError", "MissingFileError")
    assert f"{public}/out" in read[1]


# ---- neighbours of the weights


@pytest.mark.parametrize(
    "name, texts",
    [
        ("tokenizer.json", [b"", b"{", b"[]", b'{"model": 3}', b"\xff", b"[" * 20_000]),
        ("tokenizer_config.json", [b"", b"{", b"[]", b'{"eos_token": "?!no"}']),
        (
            "generation_config.json",
            [b"", b"{", b"[]", b'{"eos_token_id": "2"}', b"\xff"],
        ),
        ("config.json", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 20_000]),
    ],
)
def test_a_damaged_neighbour_is_named(whole, name, texts):
    for text in texts:
        (whole / name).write_bytes(text)
        with pytest.raises(CheckpointError, match=rf"whole/tokenizer|whole/{name}"):
            models.load(whole)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_folder_in_place_of_a_file_is_named(whole, name):
    (whole / name).unlink()
    (whole / name).mkdir()
    with pytest.raises(CheckpointError, match=f"whole/{name}: cannot be read"):
        models.load(whole)


def test_a_dangling_link_is_named(whole):
    (whole / "generation_config.json").unlink()
    (whole / "generation_config.json").symlink_to(whole / "nowhere")
    with pytest.raises(MissingFileError, match=r"generation_config\.json: not there"):
        models.load(whole)


def test_a_byte_order_mark_is_read(whole):
    for name in ("config.json", "generation_config.json"):
        data = (whole / name).read_bytes()
        (whole / name).write_bytes(b"\xef\xbb\xbf" + data)
    assert models.load(whole).generation_config.eos_token_ids == (1,)


@pytest.mark.parametrize(
    "shard", ["x" * 300 + ".safetensors", "\0.safetensors", "\ud800.safetensors", 3, []]
)
def test_names_of_shards_that_no_disk_takes(tmp_path, shard):
    storage.write_tensors(
        tmp_path, {"a": np.ones(3), "b": np.ones(3)}, max_shard_bytes=9
    )
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["a"] = shard
    index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        storage.TensorFiles.open(tmp_path)


# ---- while another process writes


@pytest.mark.parametrize("after", ["read_config", "_load_vocabulary", "_generation"])
def test_a_folder_that_vanishes_is_named(whole, monkeypatch, after):
    owner = storage if after == "read_config" else checkpoint
    real = getattr(owner, after)

    def then_remove(*arguments):
        found = real(*arguments)
        shutil.rmtree(whole)
        return found

    monkeypatch.setattr(owner, after, then_remove)
    with pytest.raises(MissingFileError, match="whole"):
        models.load(whole)


def test_a_folder_that_vanishes_once_opened_is_read(whole, monkeypatch):
    expected = models.load(whole)
    real = checkpoint._read_params

    def remove_and_read(*arguments):
        shutil.rmtree(whole)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "_read_params", remove_and_read)
    model = models.load(whole)
    same(model.params, expected.params)
    assert model.vocabulary == expected.vocabulary
    assert model.generation_config == expected.generation_config


REPLACE = """
import pathlib, shutil, sys
import jtok.files as files
new, out = map(pathlib.Path, sys.argv[1:])
print("ready", flush=True)
with files.replace_folder(out) as staged:
    shutil.copytree(new, staged, dirs_exist_ok=True)
print("done", flush=True)
"""


def test_a_folder_replaced_meanwhile_is_read_in_one_version(tmp_path, monkeypatch):
    models.save(tiny_model(seed=1), tmp_path / "out")
    models.save(tiny_model(seed=2), tmp_path / "new", dtype="bfloat16")
    real = storage.read_config
    command = [sys.executable, "-c", REPLACE, tmp_path / "new", tmp_path / "out"]

    def read_and_be_replaced(folder):
        fields = real(folder)
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        writers.append(writer)
        assert writer.stdout.readline() == "ready\n"
        try:  # without the lock it would be done by then
            writer.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return fields
        return fields

    writers = []
    monkeypatch.setattr(storage, "read_config", read_and_be_replaced)
    model = models.load(tmp_path / "out")
    same(model.params, tiny_model(seed=1).params)
    assert model.config.dtype == "float32"
    assert writers[0].communicate(timeout=60)[0] == "done\n"
    monkeypatch.undo()
    model = models.load(tmp_path / "out")
    assert model.config.dtype == "bfloat16"
    assert sorted(child.name for child in tmp_path.iterdir()) == ["new", "out"]


def test_the_lock_is_free_while_tensors_are_read(whole, monkeypatch):
    real = checkpoint._read_params

    def lock_and_read(*arguments):
        with files.folder_lock(whole):  # would raise under the shared lock
            return real(*arguments)

    monkeypatch.setattr(checkpoint, "_read_params", lock_and_read)
    models.load(whole)
