"""The TPU kernels of attention's by-products, as far up the ladder as possible."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import UnsupportedImplementationError
from jtok.ops import attention_byproducts, attention_power
from jtok.ops.byproducts import pallas_tpu, shapes
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close
from tests.ops.kernels import compiled, lowered, race_checked
from tests.ops.topologies import NAMES, one_device, tpu_mesh

CASES = shapes.cases()
KERNELS = (pallas_tpu.FORWARD, pallas_tpu.COLUMNS)


def small(batch=2, seq=19, keys=23, heads=4, kv_heads=2, dtype="float32", **options):
    return {
        "batch": batch, "seq": seq, "keys": keys, "heads": heads, "kv_heads": kv_heads,
        "head_dim": 16, "dtype": dtype,
        "options": {"scale": 0.3, "columns": True, **options},
    }  # fmt: skip


SMALL = {
    "one tile": small(),
    "causal": small(causal=True),
    "bfloat16, more tiles": small(
        1, 40, 300, 2, 1, "bfloat16", causal=True, temperature=0.5
    ),
    "two tiles of queries": small(1, 150, 300, 1, 1, causal=True),
    "more queries than keys": small(seq=23, keys=9, causal=True),
    "one query": small(seq=1, kv_heads=1, causal=True),
}


def run(args, case, **how):
    return attention_byproducts(**args, **case["options"], **how)


@pytest.fixture
def tiles_of_128(monkeypatch):
    """Several tiles of keys, and with 128 or more queries of those, too."""
    monkeypatch.setattr(pallas_tpu, "_TILE", 128)


def equal(got, expected, **near):
    for name in ("mixed", "lse", "columns", "mass"):
        ours, theirs = getattr(got, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            wide = (np.asarray(x.astype(jnp.float32)) for x in (ours, theirs))
            assert ours.dtype == theirs.dtype, name
            assert_close(*wide, name=name, **near)


@functools.cache
def jitted(name, implementation, interpret=False):
    how = {"implementation": implementation, "interpret": interpret}
    return jax.jit(lambda args: run(args, SMALL[name], **how))


# ---- interpreted


@pytest.mark.parametrize("name", SMALL)
def test_kernels_equal_xla(name, tiles_of_128):
    args = shapes.inputs(SMALL[name])
    near = {"rtol": 2e-2, "atol": 2e-2} if "bfloat16" in name else {}
    equal(jitted(name, "pallas_tpu", True)(args), jitted(name, "xla")(args), **near)


def test_tiles_of_both_kinds_meet_at_the_diagonal(tiles_of_128):
    case = small(1, 300, 300, 1, 1, causal=True)
    args = {**shapes.inputs(case), "valid": jnp.arange(300)[None] >= 140}
    how = {"implementation": "pallas_tpu", "interpret": True}
    got = jax.jit(lambda args: run(args, case, **how))(args)
    equal(got, run(args, case, implementation="xla"))
    # The first 140 queries see nothing.
    assert np.asarray(got.lse)[0, 0, :140].max() == -np.inf
    assert not np.asarray(got.mixed)[0, :140].any()


@pytest.mark.medium
def test_kernels_have_no_race_and_read_nothing_uninitialised(tiles_of_128):
    case = small(1, 140, 200, 2, 1, causal=True)
    args = shapes.inputs(case)
    got = race_checked(
        lambda how: run(args, case, implementation="pallas_tpu", interpret=how)
    )
    equal(got, run(args, case, implementation="xla"))


def test_what_was_not_asked_for_is_not_computed():
    case = small()
    args = shapes.inputs(case)
    bare = {name: args[name] for name in ("query", "key")}
    how = {"implementation": "pallas_tpu", "interpret": True}
    got = attention_byproducts(**bare, scale=0.3, **how)
    assert got.mixed is got.columns is got.mass is None
    assert_close(got.lse, attention_byproducts(**bare, scale=0.3).lse)


def test_gradients_are_those_of_xla():
    case = small(causal=True)
    args = shapes.inputs(case)

    def loss(how, query, key, value, bias):
        given = {**args, "query": query, "key": key, "value": value, "key_bias": bias}
        found = run(given, case, **how)
        parts = (found.mixed, found.columns, found.mass)
        return sum(jnp.sum(jnp.sin(x)) for x in parts)

    names = ("query", "key", "value", "key_bias")
    values = [args[name] for name in names]
    kernel = {"implementation": "pallas_tpu", "interpret": True}
    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, how), (0, 1, 2, 3)))(*values)
        for how in (kernel, {"implementation": "xla"})
    )
    jax.tree.map(assert_close, got, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_power_equals_xla(causal):
    args = shapes.inputs(small(seq=23))
    call = lambda **how: attention_power(
        args["query"], args["key"], scale=0.3, temperature=0.2, iterations=3,
        damping=0.1, valid=args["valid"], causal=causal, **how,
    )  # fmt: skip
    got = call(implementation="pallas_tpu", interpret=True)
    assert_close(got, call(implementation="xla"))


def test_shards_give_what_one_device_gives():
    case = small(batch=4, heads=8, kv_heads=4)
    args = shapes.inputs(case)
    how = {"implementation": "pallas_tpu", "interpret": True}
    expected = run(args, case, implementation="xla")
    mesh = mesh_from("data=2,model=4")
    with jax.set_mesh(mesh):
        args = jax.device_put(args, shardings(args, mesh))
        got = jax.jit(lambda args: run(args, case, **how))(args)
    assert got.columns.sharding.spec[:2] == ("data", "model")
    equal(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, expected))


def shardings(args, mesh):
    """Rows over "data" and heads over "model"."""
    heads = PartitionSpec("data", None, "model")
    spec = lambda name: heads if args[name].ndim == 4 else PartitionSpec("data")
    return {name: NamedSharding(mesh, spec(name)) for name in args}


# ---- which implementation


def test_the_platform_decides():
    case = SMALL["causal"]
    args = shapes.inputs(case)
    for platform, low in (("tpu", "tpu"), ("gpu", "cuda"), ("cpu", "cpu")):
        text = lowered(lambda a, p=platform: run(a, case, platform=p), args, low)
        assert all((name in text) == (platform == "tpu") for name in KERNELS)


@pytest.mark.parametrize(
    "changed, match", [({"dtype": "float16"}, "float16"), ({"head_dim": 640}, "640")]
)
def test_what_the_kernels_do_not_take_goes_to_xla(changed, match):
    case = {**small(), **changed}
    args = shapes.inputs(case)
    text = lowered(lambda a: run(a, case, platform="tpu"), args)
    assert not any(name in text for name in KERNELS)
    with pytest.raises(UnsupportedImplementationError, match=match):
        run(args, case, platform="tpu", implementation="pallas_tpu")


# ---- lowered and compiled for hardware that is not here


def large(name):
    case = CASES[name]
    args = jax.eval_shape(lambda: shapes.inputs(case))
    return args, lambda args: run(args, case, platform="tpu")


@pytest.mark.parametrize("name", CASES)
def test_kernels_lower_for_tpu(name):
    args, call = large(name)
    text = lowered(call, args)
    assert all(kernel in text for kernel in KERNELS)


@pytest.mark.parametrize("topology", NAMES)
def test_kernels_compile_for(topology):
    args, call = large("qwen2-7b")
    text, done = compiled(call, args, one_device(topology))
    assert all(kernel in text for kernel in KERNELS)
    case = CASES["qwen2-7b"]
    whole = case["heads"] * case["seq"] * case["keys"] * 4
    assert done.memory_analysis().temp_size_in_bytes < whole / 2


@pytest.mark.slow
@pytest.mark.parametrize("topology", NAMES)
@pytest.mark.parametrize("name", CASES)
def test_every_shape_compiles_for(name, topology):
    args, call = large(name)
    compiled(call, args, one_device(topology))


@pytest.mark.slow
@pytest.mark.parametrize("topology", NAMES)
def test_gradient_and_power_compile_for(topology):
    args, call = large("qwen2-7b")
    loss = lambda query, rest: jnp.sum(call({**rest, "query": query}).mixed)
    gradient = lambda args: jax.value_and_grad(loss)(args["query"], args)
    text, _ = compiled(gradient, args, one_device(topology))
    assert pallas_tpu.FORWARD in text
    power = lambda args: attention_power(
        args["query"], args["key"], scale=0.1, causal=True, platform="tpu"
    )
    text, _ = compiled(power, args, one_device(topology))
    assert all(kernel in text for kernel in KERNELS)


@pytest.mark.medium
@pytest.mark.parametrize("topology, model", [("v5e:2x2", 2), ("v5e:16x16", 4)])
def test_kernels_compile_on_a_mesh(topology, model):
    mesh = tpu_mesh(topology, model)
    case = {**CASES["qwen2-7b"], "batch": mesh.shape["data"]}
    args = jax.eval_shape(lambda: shapes.inputs(case))
    with jax.set_mesh(mesh):
        # The mesh says that it is a TPU's.
        text, done = compiled(lambda a: run(a, case), args, shardings(args, mesh))
    assert all(kernel in text for kernel in KERNELS)
    moved = ("all-gather", "all-reduce", "collective-permute", "all-to-all")
    assert not [word for word in moved if word in done.as_text()]


@pytest.mark.tpu
@pytest.mark.parametrize("name", CASES)
def test_on_hardware(name):
    case = CASES[name]
    args = shapes.inputs(case)
    got = jax.jit(lambda a: run(a, case, implementation="pallas_tpu"))(args)
    expected = jax.jit(lambda a: run(a, case, implementation="xla"))(args)
    equal(got, expected, rtol=2e-2, atol=2e-2)
