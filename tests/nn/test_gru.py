"""The recurrent layer against PyTorch's cell, and what padding may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, CheckpointError
from jtok.nn import bi_gru, bi_gru_from_tensors, init_bi_gru
from jtok.testing import assert_close, load_golden

run = jax.jit(bi_gru)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive(params, row):
    """States of one direction over one row, token by token."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    width = p["state"].shape[0]
    state, states = np.zeros(width), []
    for x in np.asarray(row, np.float64):
        theirs = np.split(x @ p["input"] + p["input_bias"], 3)
        own = np.split(state @ p["state"] + p["state_bias"], 3)
        r, z = sigmoid(theirs[0] + own[0]), sigmoid(theirs[1] + own[1])
        n = np.tanh(theirs[2] + r * own[2])
        state = (1 - z) * n + z * state
        states.append(state)
    return np.array(states)


@pytest.fixture(scope="module")
def params():
    made = init_bi_gru(3, 4, jax.random.key(0))
    draw = lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return jax.tree.map(lambda x: x + 0.3 * draw(x), made)


def test_both_directions_of_every_row_against_a_loop(params):
    x = np.random.default_rng(0).normal(size=(3, 6, 3)).astype(np.float32)
    lengths = [6, 4, 1]
    mask = np.arange(6) < np.array(lengths)[:, None]
    got = np.asarray(run(params, x, mask))
    for row, length in enumerate(lengths):
        text = x[row, :length]
        back = naive(params["backward"], text[::-1])[::-1]
        expected = np.concatenate([naive(params["forward"], text), back], axis=-1)
        assert_close(got[row, :length], expected.astype(np.float32))
        assert not got[row, length:].any()


def test_states_of_the_golden():
    file = load_golden("lama/lama_full_a.npz")
    params = bi_gru_from_tensors({n: file[n] for n in file if n[:4] == "gru."}, "gru.")
    x = jnp.asarray(file["emb"])[file["ids"]]
    assert_close(run(params, x, file["mask"]), file["learned.h"])
    assert_close(run(params, x, file["mask"]), file["mean.h"])


def test_padding_before_behind_and_between_is_stepped_over(params):
    x = np.random.default_rng(1).normal(size=(1, 8, 3)).astype(np.float32)
    real = np.array([[False, True, True, False, True, False, True, False]])
    got = np.asarray(run(params, np.where(real[..., None], x, np.nan), real))
    short = np.asarray(run(params, x[:, real[0]], None))
    assert_close(got[:, real[0]], short, atol=1e-6)
    assert not got[:, ~real[0]].any()


def test_unrolled_steps_are_the_same(params):
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    assert_close(bi_gru(params, x, unroll=5), run(params, x))


def test_half_precision_parameters(params):
    x = jax.random.normal(jax.random.key(2), (2, 5, 3))
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    made = run(low, x.astype(jnp.bfloat16))
    assert made.dtype == jnp.bfloat16
    assert_close(made, run(params, x), atol=5e-2)  # five steps of rounded products


def test_rows_may_lie_on_eight_devices(params):
    x = jax.random.normal(jax.random.key(3), (8, 5, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    apart = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    made = run(params, apart)
    assert len(made.sharding.device_set) == 8
    assert_close(made, run(params, x))


def test_errors_name_the_argument(params):
    with pytest.raises(ArgumentError, match="x: got 'width 2', expected width 3"):
        bi_gru(params, jnp.ones((1, 2, 2)))
    with pytest.raises(ArgumentError, match=r"mask: got 'shape \(1, 3\)'"):
        bi_gru(params, jnp.ones((1, 2, 3)), np.ones((1, 3), bool))
    with pytest.raises(ArgumentError, match="width: got 0"):
        init_bi_gru(3, 0, jax.random.key(0))
    with pytest.raises(ArgumentError, match="dtype: got 'int8'"):
        init_bi_gru(3, 2, jax.random.key(0), "int8")
    with pytest.raises(CheckpointError, match="no tensor g.weight_ih_l0, g.weight_hh"):
        bi_gru_from_tensors({}, "g.")
