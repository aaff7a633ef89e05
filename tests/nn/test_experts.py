"""Experts against a loop over tokens in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.nn import Experts, route
from jtok.testing import assert_close, tiny_config

CONFIG = tiny_config(family="mixtral")


def params_of(config=CONFIG, seed=0):
    module = Experts(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 32)))
    rng = np.random.default_rng(seed)
    make = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
    return jax.tree.map(make, shapes["params"])


def tokens(count, seed=1):
    return np.random.default_rng(seed).normal(size=(1, count, 32)).astype(np.float32)


def by_hand(params, x, config):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    kernels = [wide[f"expert_{name}"]["kernel"] for name in ("gate", "up", "down")]
    out = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        logits = x[at] @ wide["router"]["kernel"]
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        chosen = np.argsort(-probabilities, kind="stable")[: config.experts_per_token]
        weights = probabilities[chosen]
        weights = weights / weights.sum() if config.experts_sum_to_one else weights
        for expert, weight in zip(chosen, weights):
            gate, up, down = (kernel[expert] for kernel in kernels)
            hidden = x[at] @ gate
            hidden = hidden / (1 + np.exp(-hidden)) * (x[at] @ up)
            out[at] += weight * (hidden @ down)
    return out.astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 17])
@pytest.mark.parametrize("sum_to_one", [True, False])
def test_experts_are_a_weighted_sum_of_mlps(count, sum_to_one):
    # 1 and 2 tokens gather the kernels, 3 and 17 are sorted by expert.
    config = dataclasses.replace(CONFIG, experts_sum_to_one=sum_to_one)
    params, x = params_of(config), tokens(count)
    apply = jax.jit(lambda params, x: Experts(config).apply({"params": params}, x))
    expected = by_hand(params, x, config)
    assert_close(apply(params, jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


def test_one_expert_may_take_every_token():
    params = params_of()
    router = np.zeros((32, 4), np.float32)
    router[0, 3], router[0, 1] = 9.0, 5.0
    params["router"]["kernel"] = jnp.asarray(router)
    x = tokens(9)
    x[..., 0] = 1.0
    out = Experts(CONFIG).apply({"params": params}, jnp.asarray(x))
    assert_close(out, by_hand(params, x, CONFIG), rtol=1e-5, atol=1e-5)


def test_shapes_of_a_batch_and_its_dtype():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    x = jnp.asarray(tokens(12).reshape(3, 4, 32), jnp.bfloat16)
    out = Experts(config).apply({"params": params_of(config)}, x)
    assert out.shape == (3, 4, 32) and out.dtype == jnp.bfloat16


@pytest.mark.parametrize("count", [2, 9])
def test_gradients_reach_the_chosen_experts_and_the_router(count):
    params, x = params_of(), jnp.asarray(tokens(count))

    def loss(params, x):
        return jnp.sum(jnp.square(Experts(CONFIG).apply({"params": params}, x)))

    found = jax.jit(jax.grad(loss))(params, x)
    step = 1e-2
    for name in ("router", "expert_gate", "expert_up", "expert_down"):
        grad = np.asarray(found[name]["kernel"])
        at = np.unravel_index(np.abs(grad).argmax(), grad.shape)
        shifted = [
            loss({**params, name: {"kernel": params[name]["kernel"].at[at].add(d)}}, x)
            for d in (step, -step)
        ]
        slope = float(shifted[0] - shifted[1]) / (2 * step)
        # Differences over 2e-2 are right to their second order.
        assert grad[at] == pytest.approx(slope, rel=2e-2), name


def test_ties_go_to_the_lower_expert_and_weights_are_probabilities():
    logits = jnp.array([[1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    experts, weights = route(logits, count=2, sum_to_one=False)
    assert experts.tolist() == [[1, 2], [0, 1]] and experts.dtype == jnp.int32
    every = np.exp([1.0, 2.0, 2.0, 0.0])
    expected = np.array([every[1:3] / every.sum(), [0.25, 0.25]], np.float32)
    assert_close(weights, expected)
    _, scaled = route(logits, count=2, sum_to_one=True)
    assert_close(scaled, np.full((2, 2), 0.5, np.float32))
