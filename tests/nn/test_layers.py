"""Linear maps, norms and MLPs against NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.nn import Linear, Mlp, Norm, activation
from jtok.testing import assert_close, tiny_config

X = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)

REFERENCES = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


def random_like(module, seed=1):
    """Parameters of a module, all random, so that a forgotten one shows."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(X))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("name", REFERENCES)
def test_activations(name):
    x = np.linspace(-6, 6, 101)
    found = activation(name)(jnp.asarray(x, jnp.float32))
    assert_close(found, REFERENCES[name](x).astype(np.float32))


def test_an_unknown_activation_names_near_ones():
    with pytest.raises(ArgumentError, match=r"'gelu_tan'; did you mean gelu_tanh"):
        activation("gelu_tan")


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias):
    module = Linear(5, bias)
    params = random_like(module)
    assert set(params) == ({"kernel", "bias"} if bias else {"kernel"})
    expected = X @ wide(params)["kernel"] + (wide(params)["bias"] if bias else 0)
    found = module.apply({"params": params}, jnp.asarray(X))
    assert_close(found, expected.astype(np.float32))


def test_a_norm_with_offset_multiplies_by_one_more():
    config = tiny_config(family="gemma")
    module = Norm(config)
    params = random_like(module)
    scale = wide(params)["scale"]
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)
    found = module.apply({"params": params}, jnp.asarray(X))
    assert_close(found, expected.astype(np.float32))
    fresh = module.init(jax.random.key(0), jnp.asarray(X))["params"]["scale"]
    np.testing.assert_array_equal(fresh, np.zeros(32))
    # In bfloat16 the scale is added and multiplied in float32, and rounded once.
    narrow = Norm(dataclasses.replace(config, dtype="bfloat16"))
    x = jnp.asarray(X, jnp.bfloat16)
    out = narrow.apply({"params": {"scale": jnp.full(32, 2.0**-9, x.dtype)}}, x)
    precise = module.apply(
        {"params": {"scale": jnp.full(32, 2.0**-9)}}, x.astype(jnp.float32)
    )
    np.testing.assert_array_equal(out, precise.astype(jnp.bfloat16))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_norms(family):
    module = Norm(dataclasses.replace(tiny_config(family=family), norm_eps=0.1))
    params = random_like(module)
    scale, bias = wide(params)["scale"], wide(params).get("bias", 0.0)
    x = 3 * X + 1
    centred = x - x.mean(-1, keepdims=True) if family == "gpt2" else x
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1)
    expected = (centred / spread * scale + bias).astype(np.float32)
    assert set(params) == ({"scale", "bias"} if family == "gpt2" else {"scale"})
    assert_close(module.apply({"params": params}, jnp.asarray(x)), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_norms_keep_their_statistics_in_float32(family):
    config = dataclasses.replace(tiny_config(family=family), dtype="bfloat16")
    module = Norm(config)
    params = random_like(module)
    # A mean of squares near 10^4 has steps of 64 in bfloat16, far above the spread.
    x = jnp.asarray(100 + X, jnp.bfloat16)
    found = module.apply({"params": params}, x)
    assert found.dtype == jnp.bfloat16
    precise = Norm(dataclasses.replace(config, dtype="float32"))
    up = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    expected = precise.apply({"params": up(params)}, x.astype(jnp.float32))
    assert_close(found.astype(jnp.float32), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_mlp(kind, bias):
    module = Mlp(dataclasses.replace(tiny_config(), mlp=kind, mlp_bias=bias))
    params = random_like(module)
    assert set(params) == {"up", "down"} | ({"gate"} if kind == "gated" else set())

    def linear(name, x):
        part = wide(params)[name]
        return x @ part["kernel"] + part.get("bias", 0.0)

    act = REFERENCES["silu"]
    up = linear("up", X)
    hidden = act(linear("gate", X)) * up if kind == "gated" else act(up)
    expected = linear("down", hidden)
    found = module.apply({"params": params}, jnp.asarray(X))
    assert_close(found, expected.astype(np.float32), rtol=1e-5, atol=1e-4)


def adapted(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    normal = jax.random.normal
    return {
        "kernel": normal(keys[0], (4, 3)),
        "lora_a": normal(keys[1], (4, 2)),
        "lora_b": normal(keys[2], (2, 3)),
    }, normal(keys[3], (2, 5, 4))


def test_an_adapter_is_a_low_rank_change_of_the_kernel():
    params, x = adapted()
    merged = {"kernel": params["kernel"] + params["lora_a"] @ params["lora_b"]}
    layer = Linear(3)
    np.testing.assert_allclose(
        layer.apply({"params": params}, x),
        layer.apply({"params": merged}, x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_closed_gate_leaves_every_bit_and_an_open_one_none():
    params, x = adapted()
    params["lora_b"] = params["lora_b"].at[0].set(jnp.inf)  # 0 * inf would be NaN
    layer = Linear(3)
    plain = layer.apply({"params": {"kernel": params["kernel"]}}, x)
    gates = jnp.zeros((2, 5)).at[:, 3:].set(1.0)
    got = layer.apply({"params": params}, x, gates)
    np.testing.assert_array_equal(got[:, :3], plain[:, :3])
    assert not jnp.isfinite(got[:, 3:]).any()


def test_gates_scale_the_change():
    params, x = adapted()
    layer = Linear(3)
    plain = layer.apply({"params": {"kernel": params["kernel"]}}, x)
    whole = layer.apply({"params": params}, x, jnp.ones((2, 5)))
    half = layer.apply({"params": params}, x, jnp.full((2, 5), 0.5))
    np.testing.assert_allclose(half - plain, (whole - plain) / 2, rtol=1e-4, atol=1e-5)
