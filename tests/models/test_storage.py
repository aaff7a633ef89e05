"""Checkpoint files: every kind of damage is named before anything is read."""

import json
import os
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    WriteError,
)
from jtok.models import storage
from jtok.testing import data


def tensors(seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return {
        "layer.w": draw((3, 4)).astype(np.float32),
        "layer.half": draw((5,)).astype(np.float16),
        "layer.brain": draw((2, 3)).astype(ml_dtypes.bfloat16),
        "scale": np.asarray(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "ids": np.arange(6, dtype=np.int64).reshape(2, 3),
        "mask": np.asarray([True, False, True]),
    }


def assert_equal(opened, expected):
    assert opened.names() == tuple(sorted(expected))
    for name, array in expected.items():
        read = opened.read(name)
        assert opened.shape(name) == read.shape == array.shape
        assert opened.dtype(name) == read.dtype == array.dtype
        assert read.tobytes() == array.tobytes()


def write_raw(file, header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + payload)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ---- writing and reading


def test_single_file_round_trip_agrees_with_safetensors(tmp_path):
    expected = tensors()
    storage.write_tensors(tmp_path, expected)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    with storage.TensorFiles.open(tmp_path) as opened:
        assert_equal(opened, expected)
        assert len(opened) == 7
        assert "scale" in opened
        assert list(opened) == sorted(expected)
    peer = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for name, array in expected.items():
        np.testing.assert_array_equal(peer[name], array)
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_reads_what_safetensors_wrote(tmp_path):
    expected = tensors()
    safetensors.numpy.save_file(expected, tmp_path / "model.safetensors")
    assert_equal(storage.TensorFiles.open(tmp_path), expected)


@pytest.mark.parametrize("as_pairs", [False, True])
def test_shards_hold_everything_within_the_limit(tmp_path, as_pairs):
    expected = {f"w{n}": np.full(10, n, np.float32) for n in range(7)}
    expected["big"] = np.zeros(100, np.float32)
    given = iter(expected.items()) if as_pairs else expected
    storage.write_tensors(tmp_path, given, max_shard_bytes=85)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 680
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)]
    assert sorted(os.listdir(tmp_path)) == [*files, "model.safetensors.index.json"]
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / file)
    assert_equal(storage.TensorFiles.open(tmp_path), expected)


def test_jax_strided_and_big_endian_arrays_are_written_as_their_values(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    given = {
        "jax": jnp.asarray(base, jnp.bfloat16),
        "transposed": base.T,
        "big_endian": base.astype(">f4"),
    }
    storage.write_tensors(tmp_path, given)
    opened = storage.TensorFiles.open(tmp_path)
    np.testing.assert_array_equal(opened.read("jax").astype(np.float32), base)
    np.testing.assert_array_equal(opened.read("transposed"), base.T)
    np.testing.assert_array_equal(opened.read("big_endian"), base)


def test_read_of_a_part_and_of_unaligned_data(tmp_path):
    values = np.arange(12, dtype="<f4")
    header = json.dumps({"w": entry(shape=(3, 4), offsets=(0, 48))}).encode()
    header += b" " * ((3 - len(header)) % 8)
    write_raw(tmp_path / "model.safetensors", header, values.tobytes())
    opened = storage.TensorFiles.open(tmp_path)
    table = values.reshape(3, 4)
    np.testing.assert_array_equal(opened.read("w", 1), table[1])
    part = opened.read("w", (slice(0, 2), slice(1, None)))
    np.testing.assert_array_equal(part, table[:2, 1:])
    part[:] = 0
    np.testing.assert_array_equal(opened.read("w"), table)


def test_opened_tensors_outlive_a_replaced_folder(tmp_path):
    storage.write_tensors(tmp_path, {"w": np.ones(3)})
    opened = storage.TensorFiles.open(tmp_path)
    os.rename(tmp_path / "model.safetensors", tmp_path / "old")
    storage.write_tensors(tmp_path, {"w": np.zeros(3)})
    os.unlink(tmp_path / "old")
    np.testing.assert_array_equal(opened.read("w"), np.ones(3))


def test_unknown_name_is_named(tmp_path):
    storage.write_tensors(tmp_path, {"w": np.ones(3)})
    with pytest.raises(CheckpointError, match=r"no tensor 'v' among its 1"):
        storage.TensorFiles.open(tmp_path).read("v")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one"),
        ({"w": np.zeros(2, np.complex64)}, r"tensors\['w'\].dtype: got 'complex64'"),
        ([("w", np.zeros(2)), ("w", np.zeros(2))], "'w', expected each name once"),
        ({"__metadata__": np.zeros(2)}, "a name that the format takes"),
    ],
)
@pytest.mark.parametrize("limit", [1, 1e9])
def test_write_refuses(tmp_path, given, message, limit):
    with pytest.raises(ArgumentError, match=message):
        storage.write_tensors(tmp_path, given, max_shard_bytes=limit)


def test_write_refuses_a_bad_limit_and_a_missing_folder(tmp_path):
    with pytest.raises(ArgumentError, match="max_shard_bytes"):
        storage.write_tensors(tmp_path, tensors(), max_shard_bytes=0)
    with pytest.raises(WriteError, match="nowhere"):
        storage.write_tensors(tmp_path / "nowhere", tensors())


# ---- damaged files


@pytest.mark.parametrize("kept", [0, 7, 8, 60, -1])
def test_truncated_file_says_its_bytes(tmp_path, kept):
    storage.write_tensors(tmp_path, tensors())
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated") as err:
        storage.TensorFiles.open(tmp_path)
    assert f"it has {len(whole[:kept])} bytes" in str(err.value)
    if kept == -1:
        assert f"expected {len(whole)}" in str(err.value)


@pytest.mark.parametrize(
    ("header", "payload", "message"),
    [
        (b"{not json", b"", "damaged header"),
        (b"[1]", b"", "damaged header"),
        (b'{"w": 1}', b"", "damaged header"),
        ({"w": {"dtype": "F32"}}, b"", "damaged header"),
        ({"w": entry()}, b"12345", "damaged, it has"),
        ({"w": entry(offsets=(0, 8))}, b"12345678", "damaged header, 'w'"),
        ({"w": entry(offsets=(4, 8))}, b"12345678", "damaged header, 'w'"),
        ({"w": entry(shape=(-1,), offsets=(0, -4))}, b"", "damaged header, 'w'"),
        ({"a": entry(), "w": entry()}, b"1234", "damaged header, 'w'"),
        (
            b'{"w":' + json.dumps(entry()).encode() + b',"w":'
            b"" + json.dumps(entry()).encode() + b"}",
            b"1234",
            "twice",
        ),
    ],
)
def test_damaged_header_is_refused(tmp_path, header, payload, message):
    write_raw(tmp_path / "model.safetensors", header, payload)
    with pytest.raises(CheckpointError, match=message) as caught:
        storage.TensorFiles.open(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_absurd_header_length_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="its header would have"):
        storage.TensorFiles.open(tmp_path)


# ---- shards


@pytest.fixture
def sharded(tmp_path):
    expected = {name: np.full(4, n, np.float32) for n, name in enumerate("abc")}
    storage.write_tensors(tmp_path, expected, max_shard_bytes=16)
    return tmp_path


def shard(folder, number):
    return folder / f"model-0000{number}-of-00003.safetensors"


def edit_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def test_all_missing_shards_are_listed(sharded):
    shard(sharded, 1).unlink()
    shard(sharded, 3).unlink()
    with pytest.raises(MissingFileError, match="2 of its 3 shards") as caught:
        storage.TensorFiles.open(sharded)
    assert "00001-of" in str(caught.value)
    assert "00003-of" in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_all_truncated_shards_are_listed(sharded):
    for number in (1, 2):
        shard(sharded, number).write_bytes(shard(sharded, number).read_bytes()[:-3])
    with pytest.raises(CheckpointError) as caught:
        storage.TensorFiles.open(sharded)
    assert len(re.findall("truncated,", str(caught.value))) == 2
    assert "00003-of" not in str(caught.value)


def test_every_disagreement_with_the_index_is_listed(sharded):
    def change(weight_map):
        weight_map["ghost"] = shard(sharded, 1).name
        weight_map["a"] = shard(sharded, 2).name
        del weight_map["c"]
        weight_map["d"] = shard(sharded, 3).name

    edit_index(sharded, change)
    # Shard 1 must still be named for it to be looked into.
    with pytest.raises(CheckpointError) as caught:
        storage.TensorFiles.open(sharded)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for name in ("ghost", "a", "d"):
        assert any(f"lacks '{name}'" in line for line in lines)
    assert any("'c' is not in" in line for line in lines)


def test_tensor_in_two_shards_is_refused(sharded):
    both = {name: np.zeros(4, np.float32) for name in "ab"}
    safetensors.numpy.save_file(both, shard(sharded, 2))
    with pytest.raises(CheckpointError, match=r"'a' is in two shards: .*00001.*00002"):
        storage.TensorFiles.open(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "x.bin"])
def test_index_may_not_leave_the_folder_or_the_format(sharded, name):
    edit_index(sharded, lambda weight_map: weight_map.update(a=name))
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        storage.TensorFiles.open(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}'])
def test_damaged_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        storage.TensorFiles.open(sharded)


# ---- formats that are refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-q4.gguf", "GGUF"),
        ("pytorch_model.bin", "PyTorch pickle"),
        ("consolidated.00.pth", "PyTorch pickle"),
        ("model.pt", "PyTorch pickle"),
        ("model.ckpt", "checkpoint"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    for open_it in (storage.TensorFiles.open, lambda f: storage.resolve(f / name)):
        with pytest.raises(UnsupportedCheckpointError, match=message) as caught:
            open_it(tmp_path)
        assert name in str(caught.value)


def test_missing_weights_say_what_is_expected(tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(MissingFileError, match=r"expected model\.safetensors or"):
        storage.TensorFiles.open(tmp_path)
    with pytest.raises(MissingFileError, match="nowhere"):
        storage.TensorFiles.open(tmp_path / "nowhere")
    storage.write_tensors(tmp_path, tensors())
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(MissingFileError, match=r"found adapter_model\.safetensors"):
        storage.TensorFiles.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("w", "F8_E4M3", r"'w' is quantised \(F8_E4M3\)"),
        ("w", "I8", r"quantised \(I8\)"),
        ("layer.qweight", "U8", "quantised"),
        ("w", "C64", "type 'C64', expected F64"),
    ],
)
def test_quantised_and_unknown_types_are_refused(tmp_path, name, dtype, message):
    header = {name: entry(dtype, (4,), (0, 4))}
    write_raw(tmp_path / "model.safetensors", header, b"1234")
    with pytest.raises(UnsupportedCheckpointError, match=message):
        storage.TensorFiles.open(tmp_path)


# ---- configs


def test_read_config(tmp_path):
    with pytest.raises(MissingFileError, match=r"config\.json: not there"):
        storage.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert storage.read_config(str(tmp_path)) == {"model_type": "llama"}
    for text in (b'{"model_type": "lla', b"[1]", b"\xff\xfe\xfa", b""):
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
            storage.read_config(tmp_path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("auto_map", {"AutoModel": "modeling_x.X"}, "never runs"),
        ("quantization_config", {"quant_method": "gptq"}, "quantised weights"),
    ],
)
def test_remote_code_and_quantised_configs_are_refused(
    tmp_path, key, value, message, nested
):
    config = {"text_config": {key: value}} if nested else {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpointError, match=f"{key}.*|{message}"):
        storage.read_config(tmp_path)


def test_read_generation_config(tmp_path):
    assert storage.read_generation_config(tmp_path) is None
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert storage.read_generation_config(tmp_path) == {"eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: damaged"):
        storage.read_generation_config(tmp_path)


# ---- finding


def test_resolve_takes_a_folder_and_recovers_it(tmp_path):
    assert storage.resolve(tmp_path) == tmp_path
    (tmp_path / ".out.backup").mkdir()
    assert storage.resolve(str(tmp_path / "out")) == tmp_path / "out"
    assert [child.name for child in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./x", "a/b/c", "~/no-such", "org/na me", "a--b", "a..b"],
)
def test_resolve_refuses_what_is_neither_folder_nor_hub_id(name):
    with pytest.raises(ArgumentError, match="name_or_path: .*hub id such as"):
        storage.resolve(name)


def test_resolve_refuses_a_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArgumentError, match="the folder it lies in"):
        storage.resolve(tmp_path / "config.json")


@pytest.mark.parametrize("local_files_only", [True, False])
def test_resolve_offline_says_what_to_do(local_files_only, monkeypatch, tmp_path):
    import huggingface_hub

    def download(name, *, local_files_only, allow_patterns, **options):
        assert name == "org/name"
        assert not any(pattern.endswith((".bin", ".pt")) for pattern in allow_patterns)
        error = huggingface_hub.errors.LocalEntryNotFoundError("no")
        raise error if local_files_only else ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        MissingFileError, match=r"'org/name' is no folder here"
    ) as caught:
        storage.resolve("org/name", local_files_only=local_files_only)
    assert ("local_files_only" in str(caught.value)) == local_files_only


def test_resolve_names_a_missing_repository_gate_or_revision(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def fail_with(kind):
        def download(name, **options):
            raise kind.__new__(kind)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    for kind, message in (
        (errors.RepositoryNotFoundError, "not on the hub"),
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "revision: .*'v9'"),
    ):
        fail_with(kind)
        with pytest.raises(MissingFileError, match=message):
            storage.resolve("org/name", revision="v9")


def test_resolve_gives_the_downloaded_snapshot(monkeypatch, tmp_path):
    import huggingface_hub

    seen = {}

    def download(name, **options):
        seen.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert storage.resolve("gpt2", revision="main", token="t") == tmp_path
    assert seen["name"] == "gpt2"
    assert seen["revision"] == "main"
    assert seen["token"] == "t"


# ---- real


def test_real_checkpoint_round_trips_bit_for_bit(tmp_path):
    folder = data("checkpoints/draft-3m")
    config = storage.read_config(folder)
    assert storage.read_generation_config(folder)["eos_token_id"] == 0
    with storage.TensorFiles.open(folder) as opened:
        table = opened.read("model.embed_tokens.weight", slice(0, 5))
        assert table.shape == (5, config["hidden_size"])
        assert table.dtype == ml_dtypes.bfloat16
        every = {name: opened.read(name) for name in opened}
        storage.write_tensors(tmp_path, every, max_shard_bytes=1_000_000)
        assert len(os.listdir(tmp_path)) > 3
        with storage.TensorFiles.open(tmp_path) as again:
            assert_equal(again, every)


def test_a_failure_of_the_one_who_writes_reaches_everyone(monkeypatch):
    from jax.experimental import multihost_utils

    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda x: said.append(int(x)) or x
    )

    def broken():
        raise WriteError("the disk is full")

    left = iter([1, 2])
    with pytest.raises(WriteError, match="the disk is full"):
        storage.write_together(broken, "somewhere", gathered=left)
    assert said == [0] and next(left, None) is None
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: 0 * x)
    with pytest.raises(WriteError, match="process 0 could not write 'somewhere'"):
        storage.write_together(broken, "somewhere")
