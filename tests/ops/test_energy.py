"""Energies: what they are, whatever computes them, on whatever device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, UnsupportedImplementationError
from jtok.ops import energy
from jtok.ops.energy import pallas_tpu, shapes
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close
from tests.ops.kernels import compiled, lowered, race_checked
from tests.ops.topologies import NAMES, one_device, tpu_mesh

CASES = shapes.cases()
KERNELS = ("elu", "gaussian", "paper")
KERNEL = {"implementation": "pallas_tpu", "interpret": True}


def small(batch=2, seq=23, dim=8, dtype="float32", kernel="elu"):
    case = {"batch": batch, "seq": seq, "dim": dim, "dtype": dtype, "kernel": kernel}
    return shapes.inputs(case)


def brute(metric, margin, kernel, alpha, valid):
    """Float64 NumPy."""
    wide = np.asarray(metric, np.float64)
    unit = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    cosine = unit @ unit.swapaxes(1, 2)
    z = cosine - margin
    low = alpha * np.expm1(np.minimum(z, 0))
    deviation = 1 - margin
    value = {
        "elu": np.where(z > 0, z, low),
        "paper": np.where(z > 0, cosine, low),
        "gaussian": np.exp(-0.5 * ((1 - cosine) / deviation) ** 2)
        / (deviation * np.sqrt(2 * np.pi)),
    }[kernel]
    seen = np.asarray(valid, np.float64)[:, None]
    mean = (value * seen).sum(axis=-1) / seen.sum(axis=-1)
    return np.where(valid, mean, -np.inf).astype(np.float32)


@pytest.fixture
def tiles_of_128(monkeypatch):
    monkeypatch.setattr(pallas_tpu, "_TILE", 128)


def finite(x):
    """-inf of padding, which no tolerance can compare, as a number."""
    return np.where(np.isneginf(x), -1e3, np.asarray(x))


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_the_mean_over_the_neighbours(kernel):
    args = small()
    expected = brute(args["metric"], 0.45, kernel, 0.7, np.asarray(args["valid"]))
    call = functools.partial(energy, **args, margin=0.45, kernel=kernel, alpha=0.7)
    assert_close(finite(call(block=5)), finite(expected))
    assert_close(finite(call()), finite(expected))
    assert_close(finite(call(**KERNEL)), finite(expected))


@pytest.mark.parametrize("seq", [128, 300])
def test_kernel_equals_xla_over_tiles(seq, tiles_of_128):
    args = small(seq=seq, dtype="bfloat16")
    margin = jnp.float32(0.6)
    got = jax.jit(lambda a, m: energy(**a, margin=m, **KERNEL))(args, margin)
    assert_close(finite(got), finite(energy(**args, margin=0.6)))


def test_kernel_has_no_race_and_reads_nothing_uninitialised(tiles_of_128):
    args = small(1, 200)
    got = race_checked(
        lambda how: energy(
            **args, margin=0.5, implementation="pallas_tpu", interpret=how
        )
    )
    assert_close(finite(got), finite(energy(**args, margin=0.5)))


def test_gradients_are_those_of_xla():
    metric = small()["metric"]
    loss = lambda x, how: jnp.sum(jnp.sin(energy(x, 0.45, **how)))
    slope = lambda **how: jax.jit(jax.grad(lambda x: loss(x, how)))(metric)
    assert_close(slope(**KERNEL), slope())


def test_all_padding_has_no_energy():
    args = small()
    args["valid"] = args["valid"].at[1].set(False)
    for how in ({}, KERNEL):
        got = np.asarray(energy(**args, margin=0.5, **how))
        assert np.isneginf(got[1]).all() and np.isfinite(got[0]).all()


def test_shards_give_what_one_device_gives():
    args = small(batch=4)
    expected = energy(**args, margin=0.5)
    mesh = mesh_from("data=4,model=2")
    with jax.set_mesh(mesh):
        placed = jax.device_put(args, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.jit(lambda a: energy(**a, margin=0.5, **KERNEL))(placed)
    assert got.sharding.spec[0] == "data"
    assert_close(finite(got), finite(expected))


@pytest.mark.parametrize(
    "name, value", [("block", 0), ("implementation", "triton"), ("platform", "tpuv5")]
)
def test_what_cannot_be_is_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        energy(**small(), margin=0.5, **{name: value})


def test_the_platform_decides():
    args = small()
    for platform, low in (("tpu", "tpu"), ("gpu", "cuda"), ("cpu", "cpu")):
        call = lambda a, p=platform: energy(**a, margin=0.5, platform=p)
        assert (pallas_tpu.NAME in lowered(call, args, low)) == (platform == "tpu")


def test_vectors_too_wide_for_the_kernel_go_to_xla():
    args = small(dim=4096)
    text = lowered(lambda a: energy(**a, margin=0.5, platform="tpu"), args)
    assert pallas_tpu.NAME not in text
    with pytest.raises(UnsupportedImplementationError, match="4096"):
        energy(**args, margin=0.5, platform="tpu", implementation="pallas_tpu")


# ---- lowered and compiled for hardware that is not here


def large(name, batch=None):
    case = {**CASES[name], **({} if batch is None else {"batch": batch})}
    args = jax.eval_shape(lambda: shapes.inputs(case))
    return args, lambda a: energy(
        **a, margin=0.5, kernel=case["kernel"], platform="tpu"
    )


@pytest.mark.parametrize("name", CASES)
def test_kernel_lowers_for_tpu(name):
    args, call = large(name)
    assert pallas_tpu.NAME in lowered(call, args)


@pytest.mark.parametrize("topology", NAMES)
def test_kernel_compiles_for(topology):
    args, call = large("long")
    text, done = compiled(call, args, one_device(topology))
    assert pallas_tpu.NAME in text
    # A matrix of all pairs would be 64 MB.
    assert done.memory_analysis().temp_size_in_bytes < 2**25


@pytest.mark.slow
@pytest.mark.parametrize("topology", NAMES)
@pytest.mark.parametrize("name", CASES)
def test_every_shape_compiles_for(name, topology):
    args, call = large(name)
    compiled(call, args, one_device(topology))


@pytest.mark.medium
def test_kernel_compiles_on_a_mesh():
    mesh = tpu_mesh("v5e:2x2", 1)
    args, _ = large("vit-b", mesh.shape["data"])
    with jax.set_mesh(mesh):
        by_row = NamedSharding(mesh, PartitionSpec("data"))
        call = lambda a: energy(**a, margin=0.5)
        text, done = compiled(call, args, by_row)
    assert pallas_tpu.NAME in text
    moved = ("all-gather", "all-reduce", "collective-permute", "all-to-all")
    assert not [word for word in moved if word in done.as_text()]


@pytest.mark.tpu
@pytest.mark.parametrize("name", CASES)
def test_on_hardware(name):
    args = shapes.inputs(CASES[name])
    call = lambda how: energy(
        **args, margin=0.5, kernel=CASES[name]["kernel"], implementation=how
    )
    got, expected = call("pallas_tpu"), call("xla")
    assert_close(finite(got), finite(expected), rtol=1e-4, atol=1e-4)
