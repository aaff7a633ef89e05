"""Checkpoints: round trips, keeping n, half-written and damaged folders."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok.errors import ArgumentError, CheckpointError, MissingFileError, WriteError
from jtok.train import Checkpoints


def make_tree():
    params = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(4, jnp.bfloat16)}
    return {
        "trainable": params,
        "opt_state": optax.adam(1e-3).init(params),
        "state": {"key": jax.random.key(3), "count": jnp.int32(7), "none": None},
    }


def words(tree):
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        ),
        tree,
    )


@pytest.fixture
def folder(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 5, 9):
            checkpoints.save(step, make_tree(), {"batches": step})
    return tmp_path / "c"


def test_round_trip_and_keep(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps() == [5, 9]
        assert checkpoints.latest() == 9
        tree, position = checkpoints.restore(9, make_tree())
    assert position == {"batches": 9}
    assert jax.tree.structure(tree) == jax.tree.structure(make_tree())
    jax.tree.map(np.testing.assert_array_equal, words(tree), words(make_tree()))


def test_target_may_be_abstract(folder):
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        make_tree(),
    )
    with Checkpoints(folder) as checkpoints:
        tree, _ = checkpoints.restore(5, target)
    np.testing.assert_array_equal(tree["trainable"]["w"], make_tree()["trainable"]["w"])


def test_half_written_checkpoint_is_never_picked_up(folder):
    # What a killed writer leaves: the temporary name, with any part of the files.
    shutil.copytree(folder / "9", folder / "12.orbax-checkpoint-tmp")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 9
        checkpoints.save(12, make_tree(), None)
        assert checkpoints.steps() == [5, 9, 12]
    assert sorted(path.name for path in folder.iterdir()) == ["12", "5", "9"]


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1_000_000)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for number in range(1, 5):
            checkpoints.save(number, {"x": x}, None)
            for _ in range(3):
                x = step(x)
        for number in range(1, 5):
            tree, _ = checkpoints.restore(number, {"x": x})
            expected = np.full(1_000_000, 3.0 * (number - 1))
            np.testing.assert_array_equal(tree["x"], expected)


def test_other_arrays_are_all_listed(folder):
    target = make_tree()
    target["trainable"]["w"] = jnp.zeros((3, 5))
    target["trainable"]["b"] = jnp.ones(4)
    target["state"]["new"] = jnp.ones(1)
    del target["state"]["count"]
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(9, target)
    message = str(caught.value)
    assert "trainable.w: stored ((3, 4), 'float32'), expected ((3, 5)" in message
    assert (
        "trainable.b: stored ((4,), 'bfloat16'), expected ((4,), 'float32')" in message
    )
    assert "state.new: not in the checkpoint" in message
    assert "state.count: only in the checkpoint" in message


@pytest.mark.parametrize("lost", ["arrays", "arrays/_METADATA", "position"])
def test_damaged_checkpoint_is_named(folder, lost):
    path = folder / "9" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"/c/9'"),
    ):
        checkpoints.restore(9, make_tree())


@pytest.mark.parametrize("size", [0, 10])
def test_truncated_array_file_is_named(tmp_path, size):
    # One array: TensorStore reports further failed reads to a loop that has ended.
    tree = {"w": jnp.arange(1000.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, tree, None)
    for file in (tmp_path / "9" / "arrays").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:size])
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"/9' is damaged"),
    ):
        checkpoints.restore(9, tree)


def test_bad_arguments(folder, tmp_path):
    with pytest.raises(ArgumentError, match="keep: got 0"):
        Checkpoints(folder, keep=0)
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(ArgumentError, match="step: got 9"):
            checkpoints.save(9, make_tree(), None)
        with pytest.raises(MissingFileError, match=r"step: got 4.*\[5, 9\]"):
            checkpoints.restore(4, make_tree())
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="folder: cannot write"):
        Checkpoints(tmp_path / "file")
