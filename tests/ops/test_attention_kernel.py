"""The TPU kernel of cached attention, as far up the ladder as the machine allows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, UnsupportedImplementationError
from jtok.ops import cached_attention
from jtok.ops.attention import shapes
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close
from tests.ops.kernels import compiled, lowered, race_checked
from tests.ops.topologies import NAMES, one_device, tpu_mesh

NAME = "jtok_cached_attention"
CASES = shapes.cases()


def small(
    dtype="float32", batch=3, nodes=5, heads=4, kv_heads=2, capacity=300, **options
):
    """A case whose cache ends within a block of 128."""
    return {
        "batch": batch, "nodes": nodes, "heads": heads, "kv_heads": kv_heads,
        "head_dim": 16, "capacity": capacity, "dtype": dtype,
        "options": {"scale": 0.3, "block": 128, **options},
    }  # fmt: skip


SMALL = {
    "tree": small(),
    "bfloat16": small("bfloat16"),
    "one node": small(nodes=1, kv_heads=1),
    "no groups": small(nodes=9, kv_heads=4, capacity=128),
    "a cache below a block": small(nodes=17, capacity=40),
    "window": small(window=70),
    "window of one": small("bfloat16", nodes=11, window=1, softcap=2.0),
    "softcap": small(batch=2, softcap=0.5),
}


def arguments(case, seed=0):
    args = shapes.inputs(case, seed=seed)
    if "window" not in case["options"]:
        del args["positions"]
    return args


def run(args, case, **how):
    return cached_attention(**args, **case["options"], **how)


@functools.cache
def jitted(name, implementation, interpret=False):
    """Both implementations of a small case, compiled."""
    how = {"implementation": implementation, "interpret": interpret}
    return jax.jit(lambda args: run(args, SMALL[name], **how))


# ---- interpreted


@pytest.mark.parametrize("name", SMALL)
def test_kernel_equals_xla(name):
    args = arguments(SMALL[name])
    expected = jitted(name, "xla")(args)
    got = jitted(name, "pallas_tpu", True)(args)
    assert got.dtype == expected.dtype
    assert_close(got, expected)


@pytest.mark.parametrize("length", [(0, 0, 0), (1, 128, 129), (300, 256, 299)])
def test_kernel_at_the_borders_of_blocks(length):
    args = {**arguments(SMALL["tree"]), "length": jnp.array(length)}
    got = jitted("tree", "pallas_tpu", True)(args)
    assert_close(got, jitted("tree", "xla")(args))


@pytest.mark.parametrize("name", ["tree", "window of one"])
def test_kernel_has_no_race_and_reads_nothing_uninitialised(name):
    case = SMALL[name]
    args = arguments(case)
    got = race_checked(
        lambda how: run(args, case, implementation="pallas_tpu", interpret=how)
    )
    assert_close(got, jitted(name, "xla")(args))


@pytest.mark.parametrize("implementation", ["xla", "pallas_tpu"])
def test_a_node_that_sees_nothing_gets_the_mean_of_the_nodes(implementation):
    args = arguments(SMALL["tree"])
    args["length"] = jnp.zeros(3, jnp.int32)
    args["allow"] = args["allow"].at[:, 2].set(False)
    got = jitted("tree", implementation, implementation == "pallas_tpu")(args)
    mean = jnp.repeat(jnp.mean(args["value"], axis=2), 2, axis=1)
    assert_close(got[:, 2], mean)


@pytest.mark.parametrize("garbage", [jnp.nan, jnp.inf])
def test_kernel_ignores_what_lies_above_the_length(garbage):
    args = arguments(SMALL["tree"])
    clean = jitted("tree", "pallas_tpu", True)(args)
    unused = (jnp.arange(300)[None] >= args["length"][:, None])[:, None, :, None]
    for name in ("cache_key", "cache_value"):
        args[name] = jnp.where(unused, garbage, args[name])
    spoilt = jitted("tree", "pallas_tpu", True)(args)
    np.testing.assert_array_equal(np.asarray(spoilt), np.asarray(clean))


def test_kernel_does_not_use_blocks_below_the_window():
    args = arguments(SMALL["window"])
    args["length"] = jnp.full(3, 300)
    args["positions"] = jnp.full((3, 5), 300)  # sees from slot 231 on
    clean = jitted("window", "pallas_tpu", True)(args)
    args["cache_value"] = args["cache_value"].at[:, :, :128].set(jnp.nan)
    spoilt = jitted("window", "pallas_tpu", True)(args)
    np.testing.assert_array_equal(np.asarray(spoilt), np.asarray(clean))


@pytest.mark.medium
@pytest.mark.parametrize("spec", ["data=2,model=4", "data=4,model=2"])
def test_shards_give_what_one_device_gives(spec):
    case = small(batch=4, heads=8, kv_heads=4, window=70)
    args = arguments(case)
    how = {"implementation": "pallas_tpu", "interpret": True}
    expected = run(args, case, implementation="xla")
    mesh = mesh_from(spec)
    with jax.set_mesh(mesh):
        args = jax.device_put(args, shardings(args, mesh))
        got = jax.jit(lambda args: run(args, case, **how))(args)
    assert got.sharding.spec[0] == "data"
    assert_close(np.asarray(got), np.asarray(expected))


def test_heads_that_do_not_divide_stay_whole():
    case = small(batch=2, heads=6, kv_heads=3)
    args = arguments(case)
    expected = run(args, case, implementation="xla")
    with jax.set_mesh(mesh_from("data=2,model=4")):
        got = jax.jit(
            lambda args: run(args, case, implementation="pallas_tpu", interpret=True)
        )(args)
    assert_close(np.asarray(got), np.asarray(expected))


def shardings(args, mesh):
    """Rows over "data" and heads over "model"."""
    by_head = {"query": PartitionSpec("data", None, "model")}
    heads = ("key", "value", "cache_key", "cache_value")
    by_head |= dict.fromkeys(heads, PartitionSpec("data", "model"))
    spec = lambda name: by_head.get(name, PartitionSpec("data"))
    return {name: NamedSharding(mesh, spec(name)) for name in args}


# ---- which implementation


def test_the_platform_decides():
    case = SMALL["tree"]
    args = arguments(case)
    for platform, low in (("tpu", "tpu"), ("gpu", "cuda"), ("cpu", "cpu")):
        text = lowered(lambda a, p=platform: run(a, case, platform=p), args, low)
        assert (NAME in text) == (platform == "tpu")


@pytest.mark.parametrize(
    "how, match",
    [
        ({"implementation": "pallas_tpu"}, "needs the platform 'tpu'"),
        ({"implementation": "pallas_gpu"}, "XLA is the GPU path"),
        ({"implementation": "pallas_gpu", "platform": "cuda"}, "XLA is the GPU path"),
    ],
)
def test_a_name_that_cannot_run_says_why(how, match):
    with pytest.raises(UnsupportedImplementationError, match=match):
        run(arguments(SMALL["tree"]), SMALL["tree"], **how)


def test_what_the_kernel_does_not_take_goes_to_xla():
    case = small("float16")
    args = arguments(case)
    assert NAME not in lowered(lambda a: run(a, case, platform="tpu"), args)
    with pytest.raises(UnsupportedImplementationError, match="float16"):
        run(args, case, platform="tpu", implementation="pallas_tpu")


@pytest.mark.parametrize(
    "name, value", [("implementation", "triton"), ("platform", "tpuv5"), ("block", 0)]
)
def test_unknown_names_are_refused(name, value):
    case = SMALL["tree"]
    with pytest.raises(ArgumentError, match=name):
        cached_attention(**arguments(case), **{"scale": 1.0, name: value})


# ---- lowered and compiled for hardware that is not here


def large(name):
    """Shapes of a case of `shapes.cases()`, and the call."""
    case = CASES[name]
    args = jax.eval_shape(lambda: arguments(case))
    return args, lambda args: run(args, case, platform="tpu")


@pytest.mark.parametrize("name", CASES)
def test_kernel_lowers_for_tpu(name):
    args, call = large(name)
    assert NAME in lowered(call, args)


def test_xla_lowers_for_cuda():
    case = CASES["tree-8b"]
    args = jax.eval_shape(lambda: arguments(case))
    text = lowered(lambda args: run(args, case, platform="cuda"), args, "cuda")
    assert "custom_call" not in text


@pytest.mark.parametrize("topology", NAMES)
def test_kernel_compiles_for(topology):
    args, call = large("token-8b")
    text, _ = compiled(call, args, one_device(topology))
    assert NAME in text


@pytest.mark.slow
@pytest.mark.parametrize("topology", NAMES)
@pytest.mark.parametrize("name", CASES)
def test_every_shape_compiles_for(name, topology):
    args, call = large(name)
    compiled(call, args, one_device(topology))


@pytest.mark.medium
@pytest.mark.parametrize("topology, model", [("v5e:2x2", 2), ("v5e:16x16", 8)])
def test_kernel_compiles_on_a_mesh(topology, model):
    mesh = tpu_mesh(topology, model)
    case = {**CASES["token-8b"], "batch": mesh.shape["data"]}
    args = jax.eval_shape(lambda: arguments(case))
    with jax.set_mesh(mesh):
        # The mesh says that it is a TPU's.
        text, done = compiled(lambda a: run(a, case), args, shardings(args, mesh))
    assert NAME in text
    moved = ("all-gather", "all-reduce", "collective-permute", "all-to-all")
    assert not [word for word in moved if word in done.as_text()]


@pytest.mark.tpu
@pytest.mark.parametrize("name", CASES)
def test_on_hardware(name):
    case = CASES[name]
    args = arguments(case)
    got = jax.jit(lambda a: run(a, case, implementation="pallas_tpu"))(args)
    assert_close(got, jax.jit(lambda a: run(a, case, implementation="xla"))(args))
