"""Checkpoints of a run: onto other meshes, and with every file damaged in turn."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jtok.errors import CheckpointError, MissingFileError
from jtok.ops.sharding import mesh_from
from jtok.train import Checkpoints

ROWS, COLUMNS = 16, 24


def values():
    draw = np.random.default_rng(0).standard_normal
    return {
        "matrix": draw((ROWS, COLUMNS)).astype(np.float32),
        "brain": draw((ROWS, COLUMNS)).astype(jnp.bfloat16),
        "bias": draw(COLUMNS).astype(np.float32),
        "count": np.int32(7),
    }


def shardings(layout):
    if layout == "one device":
        return dict.fromkeys(values(), SingleDeviceSharding(jax.devices()[0]))
    mesh = mesh_from(layout)
    specs = {"matrix": ("data", "model"), "brain": ("model", "data"), "bias": ("data",)}
    if "model" not in mesh.axis_names:
        specs = {"matrix": (None, "data"), "brain": ("data",), "bias": (None,)}
    return {
        name: NamedSharding(mesh, PartitionSpec(*specs.get(name, ())))
        for name in values()
    }


@pytest.mark.parametrize("after", ["data=8", "one device", "data=4,model=2"])
@pytest.mark.parametrize("before", ["data=2,model=4", "one device"])
def test_onto_another_mesh_to_the_same_numbers(tmp_path, before, after):
    placed = jax.tree.map(jax.device_put, values(), shardings(before))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, placed, {"batches": 3})
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s),
        values(),
        shardings(after),
    )
    with Checkpoints(tmp_path) as checkpoints:
        restored, position = checkpoints.restore(3, target)
    assert position == {"batches": 3}
    for name, expected in values().items():
        assert restored[name].sharding == shardings(after)[name]
        assert restored[name].dtype == expected.dtype
        np.testing.assert_array_equal(restored[name], expected)
    if after == "data=8":
        assert restored["matrix"].addressable_shards[0].data.shape == (ROWS, 3)


# ---- damage


# One array: TensorStore reports further failed reads to a loop that has ended.
TREE = {"w": np.arange(1000, dtype=np.float32)}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, {"w": TREE["w"] + step}, {"batches": step})
    return folder


def assert_is_step(restored, step):
    tree, position = restored
    np.testing.assert_array_equal(tree["w"], TREE["w"] + step)
    assert position == {"batches": step}


@pytest.mark.parametrize("damage", ["gone", "empty", "half", "garbled"])
def test_every_damaged_file_is_named_or_does_not_matter(two_steps, tmp_path, damage):
    names = [
        file.relative_to(two_steps)
        for file in sorted((two_steps / "8").rglob("*"))
        if file.is_file()
    ]
    assert len(names) >= 8
    refused = 0
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(two_steps, folder)
        file = folder / name
        data = file.read_bytes()
        if damage == "gone":
            file.unlink()
        elif damage == "garbled":
            file.write_bytes(bytes(byte ^ 0x5A for byte in data))
        else:
            file.write_bytes(data[: 0 if damage == "empty" else len(data) // 2])
        with Checkpoints(folder) as checkpoints:
            if checkpoints.latest() == 4:  # as if it had never been whole
                with pytest.raises(MissingFileError, match=r"step: got 8.*\[4\]"):
                    checkpoints.restore(8, TREE)
                refused += 1
                continue
            try:
                assert_is_step(checkpoints.restore(8, TREE), 8)
            except CheckpointError as error:
                refused += 1
                assert f"{folder}/8'" in str(error)
                assert "Remove it" in str(error) or "missing" in str(error)
            # The one before is whole and is given when it is asked for.
            assert_is_step(checkpoints.restore(4, TREE), 4)
    assert refused >= 4


def test_a_removed_step_gives_way_to_the_one_before(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "8")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() == 4
        assert_is_step(checkpoints.restore(4, TREE), 4)


@pytest.mark.parametrize("name", ["8", "8/arrays", "8/position"])
def test_a_step_that_is_partly_gone_is_never_half_restored(two_steps, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    shutil.rmtree(folder / name)
    (folder / "8").mkdir(exist_ok=True)
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(CheckpointError, match="8"):
            checkpoints.restore(8, TREE)
        assert_is_step(checkpoints.restore(4, TREE), 4)
