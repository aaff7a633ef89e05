"""Connectors: what NumPy makes of the same weights, masks, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok.errors import ArgumentError
from jtok.nn import (
    FrameConnector,
    PoolingConnector,
    SpaceTimeConnector,
    UnshuffleConnector,
)
from jtok.testing import assert_close

KEY = jax.random.key(0)
# The module, and the shape of what it reads.
CASES = {
    "unshuffle": (UnshuffleConnector(5), (2, 4, 6, 3)),
    "frames": (FrameConnector(5, hidden=7, count=3), (2, 8, 4)),
    "pooling": (PoolingConnector(5), (2, 4, 6, 3)),
    "space-time": (SpaceTimeConnector(5, hidden=8, depth=1), (2, 2, 4, 4, 3)),
}
EACH = pytest.mark.parametrize("name", CASES)


def drawn(shapes):
    """Parameters larger than fresh ones, and biases that are not zero."""
    rng = np.random.default_rng(5)
    each = lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32)
    return jax.tree.map(each, shapes)


@pytest.fixture(scope="module")
def made():
    """Of each connector the parameters and a compiled call."""
    found = {}
    for name, (module, shape) in CASES.items():
        x = jnp.zeros(shape)
        shapes = jax.eval_shape(module.init, KEY, x)["params"]
        params = drawn(shapes)
        run = jax.jit(lambda p, x, v, m=module: m.apply({"params": p}, x, v))
        found[name] = params, run
    return found


def noise(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def numpy_norm(params, x, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * params["scale"] + params["bias"]


def numpy_gelu(x):
    return np.asarray(jax.nn.gelu(jnp.asarray(x), approximate=False))


def silu(x):
    return x / (1 + np.exp(-x))


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def depthwise(kernel, x):
    """3 x 3 over `[height, width, dim]`, zeros behind the edge."""
    wide = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    height, width, _ = x.shape
    return sum(
        wide[i : i + height, j : j + width] * kernel[i, j, 0]
        for i in range(3)
        for j in range(3)
    )


def test_unshuffle_connector_is_that_of_numpy(made):
    params, run = made["unshuffle"]
    x = noise(CASES["unshuffle"][1])
    p = jax.tree.map(np.asarray, params)
    wide = np.zeros((2, 2, 3, 12))
    for i in range(2):
        for j in range(3):
            square = np.asarray(x)[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            wide[:, i, j] = square.reshape(2, -1)
    hidden = numpy_gelu(dense(p["up"], numpy_norm(p["norm"], wide, 1e-5)))
    assert_close(run(params, x, None)[0], dense(p["down"], hidden), atol=1e-5)


def test_frame_connector_is_that_of_numpy(made):
    params, run = made["frames"]
    x, p = noise(CASES["frames"][1]), jax.tree.map(np.asarray, params)
    stacks = np.asarray(x)[:, :6].reshape(2, 2, 12)
    want = dense(p["down"], np.maximum(dense(p["up"], stacks), 0))
    assert_close(run(params, x, None)[0], want, atol=1e-5)


def test_pooling_connector_is_that_of_numpy(made):
    params, run = made["pooling"]
    x, p = noise(CASES["pooling"][1]), jax.tree.map(np.asarray, params)
    got = run(params, x, None)[0]
    for b in range(2):
        wide = dense(p["down"], numpy_gelu(dense(p["up"], np.asarray(x)[b])))
        pooled = wide.reshape(2, 2, 3, 2, 5).mean((1, 3))
        near = depthwise(p["place"]["kernel"], pooled) + p["place"]["bias"]
        assert_close(got[b], pooled + near, atol=1e-5)


def numpy_block(p, x):
    """A block of RegNet with layer norms over channels, of one frame."""
    norm = lambda name, y: numpy_norm(p[f"{name}_norm"], y, 1e-6)
    inner = silu(norm("reduce", x @ p["reduce"]["kernel"][0, 0]))
    inner = silu(norm("spatial", depthwise(p["spatial"]["kernel"], inner)))
    gate = dense(p["gate"]["up"], silu(dense(p["gate"]["down"], inner.mean((0, 1)))))
    inner = inner / (1 + np.exp(-gate))
    inner = norm("expand", inner @ p["expand"]["kernel"][0, 0])
    short = x
    if "shortcut" in p:
        short = norm("shortcut", x @ p["shortcut"]["kernel"][0, 0])
    return silu(inner + short)


def test_space_time_connector_is_that_of_numpy(made):
    params, run = made["space-time"]
    x, p = noise(CASES["space-time"][1]), jax.tree.map(np.asarray, params)
    assert "shortcut" in p["before_0"] and "shortcut" not in p["behind_0"]
    got = run(params, x, None)[0]
    for b in range(2):
        first = np.stack([numpy_block(p["before_0"], f) for f in np.asarray(x)[b]])
        cut = first.reshape(2, 2, 2, 2, 2, 8).transpose(1, 3, 0, 2, 4, 5)
        kernel = p["sampler"]["kernel"].reshape(8, 8, 8)
        mixed = np.einsum("rcnd,ndf->rcf", cut.reshape(2, 2, 8, 8), kernel)
        mixed = silu(mixed + p["sampler"]["bias"])
        hidden = numpy_gelu(dense(p["up"], numpy_block(p["behind_0"], mixed)))
        assert_close(got[b, 0], dense(p["down"], hidden), atol=2e-5, rtol=1e-4)


@EACH
def test_what_is_not_real_changes_nothing(made, name):
    params, run = made[name]
    shape = CASES[name][1]
    x, rng = noise(shape), np.random.default_rng(1)
    whole, there = run(params, x, jnp.ones(shape[:-1], bool))
    assert there.all()
    assert_close(whole, run(params, x, None)[0], atol=1e-6)
    valid = jnp.asarray(rng.random(shape[:-1]) < 0.7).at[1].set(False)
    got, there = run(params, x, valid)
    other = jnp.where(valid[..., None], x, 9.0)
    np.testing.assert_array_equal(run(params, other, valid)[0], got)
    assert not there[1].any() and float(jnp.abs(got[1]).max()) == 0
    assert np.isfinite(got).all()


@EACH
def test_narrow_tokens_come_out_narrow(made, name):
    params, run = made[name]
    x = noise(CASES[name][1])
    got = run(params, x.astype(jnp.bfloat16), None)[0]
    assert got.dtype == jnp.bfloat16
    wide = run(params, x, None)[0]
    assert np.abs(got - wide).mean() < 0.1 * np.abs(wide).mean() + 0.02


@EACH
def test_gradients_reach_every_parameter_and_fit(made, name):
    params, _ = made[name]
    module, shape = CASES[name]
    x = noise(shape, 3)
    aim = noise(jax.eval_shape(module.apply, {"params": params}, x)[0].shape, 4)
    optimizer = optax.adam(0.02)

    def loss(params):
        return jnp.mean((module.apply({"params": params}, x)[0] - aim) ** 2)

    @jax.jit
    def fit(params):
        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            change, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, change), state), (value, grad)

        start = params, optimizer.init(params)
        _, (values, grads) = jax.lax.scan(step, start, None, length=60)
        return values, jax.tree.map(lambda g: jnp.abs(g).max(), grads)

    values, grads = fit(params)
    assert all(float(leaf) > 0 for leaf in jax.tree.leaves(grads))
    assert values[-1] < 0.5 * values[0]


def test_odd_frame_counts_are_refused():
    module, x = SpaceTimeConnector(5), jnp.ones((1, 3, 4, 4, 2))
    with pytest.raises(ArgumentError, match=r"grid: got \(3, 4, 4\)"):
        jax.eval_shape(module.init, KEY, x)
    with pytest.raises(ArgumentError, match="factor: got 2"):
        jax.eval_shape(UnshuffleConnector(5).init, KEY, jnp.ones((1, 5, 4, 2)))
