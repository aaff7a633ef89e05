"""The readout on shards and its TPU kernel, as far up the ladder as may be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import UnsupportedImplementationError
from jtok.ops import Draw, Want, gumbel_at, readout, row_keys
from jtok.ops.sharding import mesh_from
from jtok.ops.unembed import shapes
from jtok.testing import assert_close
from tests.ops.kernels import compiled, lowered, race_checked
from tests.ops.topologies import NAMES, one_device, tpu_mesh

NAME = "jtok_readout"
CASES = shapes.cases()


def small(kind="greedy", dtype="float32", vocab=300, top_k=5, nodes=5):
    """A case whose vocabulary ends within a tile of 128."""
    return {
        "batch": 2, "nodes": nodes, "dim": 16, "vocab": vocab, "dtype": dtype,
        "kind": kind, "top_k": top_k,
    }  # fmt: skip


SMALL = {
    "greedy": small(),
    "gumbel": small("gumbel"),
    "drawn from the best": small("top-k"),
    "bfloat16": small("gumbel", "bfloat16"),
    "one tile": small("gumbel", vocab=100),
    "one node": small("gumbel", nodes=1, top_k=0),
    "long list": small(top_k=32),
    "list above the vocabulary's tile": small(vocab=130, top_k=17),
}


def same(got, expected):
    """Ids exactly, numbers to the tolerance of float32."""
    for name in ("choice", "top_ids"):
        if getattr(expected, name) is not None:
            a, b = (np.asarray(getattr(x, name)) for x in (got, expected))
            np.testing.assert_array_equal(a, b, err_msg=name)
    jax.tree.map(lambda a, b: assert_close(np.asarray(a), np.asarray(b)), got, expected)


def kernel(args, interpret=True, **options):
    return readout(
        **args, block=128, implementation="pallas_tpu", interpret=interpret, **options
    )


@pytest.mark.parametrize("name", SMALL)
def test_kernel_equals_xla(name):
    args = shapes.inputs(SMALL[name])
    same(jax.jit(kernel)(args), jax.jit(lambda a: readout(**a))(args))


def test_kernel_takes_bias_and_softcap():
    args = shapes.inputs(small())
    bias = jnp.asarray(np.random.default_rng(0).normal(size=300), jnp.float32)
    options = {"bias": bias, "softcap": 0.7}
    got = jax.jit(lambda a: kernel(a, **options))(args)
    same(got, readout(**args, **options))
    logits = np.einsum("bnd,vd->bnv", args["hidden"], args["weight"]) + np.asarray(bias)
    capped = 0.7 * np.tanh(logits / 0.7)
    order = np.argsort(-capped, axis=-1, kind="stable")[..., :5]
    expected = np.take_along_axis(capped, order, -1)
    assert_close(got.top_logits, expected.astype(np.float32))


@pytest.mark.parametrize("implementation", ["xla", "pallas_tpu"])
def test_ties_go_to_the_lower_id(implementation):
    # Small integers: every logit is exact and most of them are equal.
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.integers(-1, 2, (2, 9, 4)), jnp.float32)
    weight = jnp.asarray(rng.integers(-1, 2, (300, 4)), jnp.float32)
    logits = np.einsum("bnd,vd->bnv", hidden, weight)
    order = np.argsort(-logits, axis=-1, kind="stable")
    got = jax.jit(
        lambda hidden, weight: readout(
            hidden, weight, Want(top_k=20, gap=True), block=128,
            implementation=implementation, interpret=implementation != "xla",
        )
    )(hidden, weight)  # fmt: skip
    np.testing.assert_array_equal(got.choice, order[..., 0])
    np.testing.assert_array_equal(got.top_ids, order[..., :20])
    assert (np.asarray(got.gap) == 0).any()


def test_noise_of_the_kernel_is_that_of_the_position():
    # Without logits the choice is the arg-max of the noise.
    keys, depth = row_keys(jnp.array([4, 9])), jnp.array([[0, 1, 1], [0, 2, 3]])
    start = jnp.array([3, 70])
    draw = Draw(keys, start, depth, jnp.array([1.0, 2.5]), max_depth=3)
    args = {"hidden": jnp.zeros((2, 3, 8)), "weight": jnp.zeros((500, 8))}
    got = kernel({**args, "want": Want(draw=draw, gap=True)})
    ids = jnp.broadcast_to(jnp.arange(500), (2, 3, 500))
    noise = np.asarray(gumbel_at(keys, start[:, None] + depth, ids))
    best = np.sort(noise, axis=-1)
    np.testing.assert_array_equal(got.choice, noise.argmax(-1))
    assert_close(got.gap, best[..., -1] - best[..., -2])
    assert got.choice[0, 1] == got.choice[0, 2]


@pytest.mark.parametrize("name", ["gumbel", "drawn from the best"])
def test_kernel_has_no_race_and_reads_nothing_uninitialised(name):
    args = shapes.inputs(SMALL[name])
    same(race_checked(lambda how: kernel(args, how)), readout(**args))


# ---- shards


def shardings(args, mesh, vocab="model"):
    rows = NamedSharding(mesh, PartitionSpec("data"))
    placed = jax.tree.map(lambda _: rows, args)
    return {**placed, "weight": NamedSharding(mesh, PartitionSpec(vocab))}


@pytest.mark.parametrize("kind", ["greedy", "gumbel", "top-k"])
@pytest.mark.parametrize("implementation", ["xla", "pallas_tpu"])
def test_shards_give_what_one_device_gives(kind, implementation):
    args = shapes.inputs(small(kind))
    expected = readout(**args)
    mesh = mesh_from("data=2,model=4")
    run = functools.partial(
        readout, block=32, implementation=implementation,
        interpret=implementation == "pallas_tpu",
    )  # fmt: skip
    with jax.set_mesh(mesh):
        placed = jax.device_put(args, shardings(args, mesh))
        program = jax.jit(lambda a: run(**a)).lower(placed).compile()
        same(program(placed), expected)
    # The unembedding stays where it is; what the shards found is gathered once.
    assert program.as_text().count("all-gather(") == 1


def test_ties_between_shards_go_to_the_lower_id():
    weight = jnp.zeros((32, 4)).at[jnp.array([9, 10, 20, 31])].set(1.0)
    args = (jnp.ones((2, 1, 4)), weight, Want(top_k=6, gap=True, log_sum_exp=True))
    expected = readout(*args)
    assert expected.top_ids[0, 0].tolist() == [9, 10, 20, 31, 0, 1]
    with jax.set_mesh(mesh_from("data=2,model=4")):
        same(jax.jit(readout)(*args), expected)


def test_dense_readouts_run_on_a_mesh():
    args = shapes.inputs(small("gumbel"))
    draw = args["want"].draw.replace(top_p=jnp.array([0.5, 0.9]))
    args["want"] = args["want"].replace(draw=draw, rows=True)
    expected = readout(**args)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        same(jax.jit(lambda a: readout(**a))(args), expected)


# ---- which implementation


def test_the_platform_decides():
    args = shapes.inputs(SMALL["gumbel"])
    for platform, low in (("tpu", "tpu"), ("gpu", "cuda"), ("cpu", "cpu")):
        text = lowered(lambda a, p=platform: readout(**a, platform=p), args, low)
        assert (NAME in text) == (platform == "tpu")


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda a: {**a, "want": a["want"].replace(rows=True)}, "all logits at once"),
        (lambda a: {**a, "want": a["want"].replace(top_k=33)}, "top list of 33"),
        (lambda a: {**a, "weight": a["weight"].astype(jnp.bfloat16)}, "dtypes"),
    ],
)
def test_what_the_kernel_does_not_take_goes_to_xla(change, match):
    args = change(shapes.inputs(small()))
    assert NAME not in lowered(lambda a: readout(**a, platform="tpu"), args)
    with pytest.raises(UnsupportedImplementationError, match=match):
        readout(**args, platform="tpu", implementation="pallas_tpu")


# ---- lowered and compiled for hardware that is not here


def large(name):
    args = jax.eval_shape(lambda: shapes.inputs(CASES[name]))
    return args, lambda args: readout(**args, platform="tpu")


@pytest.mark.parametrize("name", CASES)
def test_kernel_lowers_for_tpu(name):
    args, call = large(name)
    assert NAME in lowered(call, args)


@pytest.mark.parametrize("vocab", [1, 100, 1000])
def test_odd_vocabularies_compile(vocab):
    args = jax.eval_shape(lambda: shapes.inputs(small(vocab=vocab, top_k=1)))
    args["bias"] = jax.ShapeDtypeStruct((vocab,), jnp.float32)
    call = lambda args: readout(**args, platform="tpu")
    assert NAME in compiled(call, args, one_device("v5e:2x2"))[0]


@pytest.mark.parametrize("topology", NAMES)
def test_kernel_compiles_for(topology):
    args, call = large("token-8b")
    text, done = compiled(call, args, one_device(topology))
    assert NAME in text
    # No logits outside of the kernel.
    logits = 4 * 8 * CASES["token-8b"]["vocab"]
    assert done.memory_analysis().temp_size_in_bytes < logits / 2


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
    case = {**CASES["tree-0.5b"], "batch": mesh.shape["data"]}
    args = jax.eval_shape(lambda: shapes.inputs(case))
    with jax.set_mesh(mesh):
        text, done = compiled(lambda a: readout(**a), args, shardings(args, mesh))
    assert NAME in text
    assert "all-to-all" not in done.as_text()


@pytest.mark.tpu
@pytest.mark.parametrize("name", CASES)
def test_on_hardware(name):
    args = shapes.inputs(CASES[name])
    run = lambda how: jax.jit(lambda a: readout(**a, implementation=how))(args)
    got, expected = run("pallas_tpu"), run("xla")
    assert_close(got.log_sum_exp, expected.log_sum_exp)
    assert_close(got.top_logits, expected.top_logits)
    # Where the two best scores are apart the choice is the same.
    sure = np.asarray(expected.gap) > 1e-1
    np.testing.assert_array_equal(got.choice[sure], expected.choice[sure])
