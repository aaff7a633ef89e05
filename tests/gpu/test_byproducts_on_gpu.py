"""Attention's by-products and energies on a GPU: the CPU's numbers, and the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.ops import attention_byproducts, attention_power, energy
from jtok.ops.byproducts import shapes
from jtok.ops.energy import shapes as energy_shapes
from jtok.testing import assert_close

pytestmark = pytest.mark.gpu


def here_and_there(run, arrays):
    """What the GPU gives, and the CPU."""
    done = jax.jit(run)
    there = jax.device_put(arrays, jax.devices("cpu")[0])
    return done(arrays), jax.tree.map(np.asarray, done(there))


@pytest.mark.parametrize("name", ["vit-b", "vit-l-384", "qwen2-7b", "last-questions"])
def test_byproducts_are_those_of_the_cpu(name):
    case = shapes.cases()[name]
    run = lambda a: attention_byproducts(**a, **case["options"])
    got, expected = here_and_there(run, shapes.inputs(case))
    # Both read the same numbers; products of float32 round to TensorFloat-32.
    near = {"rtol": 2e-2, "atol": 2e-2}
    for field in ("mixed", "lse", "columns", "mass"):
        wide = [
            np.asarray(getattr(x, field), np.float32) for x in (got, expected)
        ]  # fmt: skip
        assert_close(*wide, name=field, **near)


def test_power_is_that_of_the_cpu():
    arrays = shapes.inputs(shapes.cases()["qwen2-7b"])
    run = lambda a: attention_power(
        a["query"], a["key"], scale=0.1, temperature=0.1, causal=True, valid=a["valid"]
    )
    got, expected = here_and_there(run, arrays)
    assert_close(np.asarray(got), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", energy_shapes.cases())
def test_energies_are_those_of_the_cpu(name):
    case = energy_shapes.cases()[name]
    run = lambda a: energy(**a, margin=0.5, kernel=case["kernel"])
    got, expected = here_and_there(run, energy_shapes.inputs(case))
    real = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(np.asarray(got)), real)
    assert_close(np.asarray(got)[real], expected[real], rtol=1e-4, atol=1e-5)


def test_scores_of_16k_tokens_are_never_whole():
    shape = jax.ShapeDtypeStruct((1, 16384, 12, 64), jnp.bfloat16)

    def loss(query, key, value):
        found = attention_byproducts(
            query, key, value, scale=0.125, columns=True,
            on=jnp.ones((1, 16384), bool),
        )  # fmt: skip
        return jnp.sum(found.mixed.astype(jnp.float32)) + jnp.sum(found.columns**2)

    for function in (loss, jax.grad(loss, (0, 1, 2))):
        done = jax.jit(function).lower(shape, shape, shape).compile()
        # All scores would be 12 GB.
        assert done.memory_analysis().temp_size_in_bytes < 5 * 2**30


def test_attention_with_byproducts_takes_no_longer():
    """Within 1.3 of `jax.nn.dot_product_attention`, which gives none of them."""
    from experiments import bench_compress

    config = bench_compress.PRESETS["gpu"]
    for seq in config.attention:
        row = bench_compress._byproducts(seq, config)
        assert row["peer over ours"] >= 1 / 1.3, row
