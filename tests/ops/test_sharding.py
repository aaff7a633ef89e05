"""Logical axis names on 8 simulated devices (`jtok.ops.sharding`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jtok.errors import ArgumentError
from jtok.ops.sharding import (
    auto_mesh,
    constrain,
    current_mesh,
    mesh_from,
    partition_spec,
    shard_tree,
    sharding_for,
)


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    kinds = (request.param,) * 2
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((4, 2))
    assert current_mesh() is None and auto_mesh() is None
    assert constrain(x, "batch", "embed") is x
    assert sharding_for(("vocab", "embed")) is None
    tree = {"w": x}
    assert shard_tree(tree, {"w": ("vocab", "embed")})["w"] is x


def test_rules_and_what_is_dropped(mesh):
    assert partition_spec(("batch", "seq", "heads", None), mesh) == P(
        "data", None, "model", None
    )
    # Too small, then a mesh axis that is used up, then one that is not there.
    assert partition_spec(("batch", "vocab"), mesh, shape=(6, 8)) == P(None, "model")
    assert partition_spec(("heads", "mlp"), mesh) == P("model", None)
    small = jax.make_mesh((8,), ("data",))
    assert partition_spec(("batch", "mlp"), small) == P("data", None)
    rules = {"batch": ("data", "model"), "seq": None}
    assert partition_spec(("batch", "seq"), mesh, rules=rules) == P(
        ("data", "model"), None
    )


def test_mesh_of_the_context_inside_and_outside_jit(mesh):
    seen = []

    @jax.jit
    def double(x):
        seen.append(current_mesh().shape)
        return constrain(2 * x, "batch", "mlp")

    with jax.set_mesh(mesh):
        assert current_mesh() == mesh
        y = double(jnp.ones((8, 6)))
    assert dict(seen[0]) == {"data": 4, "model": 2}
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("data", "model")), 2)
    np.testing.assert_array_equal(y, 2 * np.ones((8, 6)))


def test_tree_is_placed_and_none_is_whole(mesh):
    tree = {"table": np.ones((6, 4)), "norm": np.ones(4), "step": np.ones(())}
    axes = {"table": ("vocab", "embed"), "norm": None, "step": ()}
    with jax.set_mesh(mesh):
        placed = shard_tree(tree, axes)
    assert placed["table"].sharding.shard_shape((6, 4)) == (3, 4)
    assert placed["norm"].sharding.is_fully_replicated
    assert len(placed["step"].sharding.device_set) == 8


def test_auto_twin_is_over_the_same_devices(mesh):
    twin = auto_mesh(mesh)
    assert all(kind == AxisType.Auto for kind in twin.axis_types)
    np.testing.assert_array_equal(twin.devices, mesh.devices)


def test_mesh_of_a_command_line():
    mesh = mesh_from("data=4, model=2")
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert dict(mesh_from("data=-1,model=2").shape) == {"data": 4, "model": 2}
    for spec in ("data", "data=x", "data=0", "data=-1,model=-1", "", "a=2,a=4"):
        with pytest.raises(ArgumentError, match="spec: got"):
            mesh_from(spec)
    with pytest.raises(ArgumentError, match="product is 8"):
        mesh_from("data=3")
    with pytest.raises(ArgumentError, match="divide 8"):
        mesh_from("data=-1,model=3")


def test_unknown_names_and_wrong_ranks(mesh):
    with pytest.raises(ArgumentError, match="did you mean batch"):
        partition_spec(("bach",), mesh)
    with pytest.raises(ArgumentError, match="one name for each dimension"):
        constrain(jnp.ones((4, 2)), "batch", mesh=mesh)
    with pytest.raises(ArgumentError, match="each of the 2 arrays"):
        shard_tree({"a": np.ones(2), "b": np.ones(2)}, {"a": ("mlp",)}, mesh)
