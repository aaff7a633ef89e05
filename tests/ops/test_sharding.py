"""Logical axis names on 8 simulated devices (`jtok.ops.sharding`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jtok.errors import ArgumentError
from jtok.ops.sharding import (
    abstract_tree,
    auto_mesh,
    check_split,
    constrain,
    current_mesh,
    entered_mesh,
    mesh_from,
    onto_mesh,
    partition_spec,
    place,
    shard_tree,
    sharding_for,
    to_host,
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


def test_units_are_not_cut(mesh):
    """Six columns of three heads: two devices would get a head and a half each."""
    cut = partition_spec(("embed", "heads"), mesh, shape=(4, 6))
    whole = partition_spec(("embed", "heads"), mesh, shape=(4, 6), units={"heads": 3})
    assert (cut, whole) == (P(None, "model"), P(None, None))
    even = partition_spec(("heads",), mesh, shape=(12,), units={"heads": 4})
    assert even == P("model")


def test_a_split_that_is_not_even_names_what_would_fit(mesh):
    check_split("heads", 6, mesh)
    check_split("embed", 7, mesh)
    check_split("heads", 7)  # without a mesh
    with pytest.raises(ArgumentError) as caught:
        check_split("heads", 15, mesh)
    said = "mesh: got 'model=2', expected a size that divides the 15 heads: one of"
    assert str(caught.value) == f"{said} 1, 3, 5, 15."
    rules = {"heads": ("data", "model")}
    with pytest.raises(ArgumentError, match="'data=4xmodel=2'"):
        check_split("heads", 4, mesh, rules=rules)


def test_shapes_are_laid_out_as_arrays_would_be(mesh):
    tree, axes = {"w": np.ones((8, 6), np.float32)}, {"w": ("vocab", "embed")}
    with jax.set_mesh(mesh):
        shapes, placed = abstract_tree(tree, axes), shard_tree(tree, axes)
    assert shapes["w"].sharding == placed["w"].sharding
    assert (shapes["w"].shape, shapes["w"].dtype) == ((8, 6), np.float32)


def test_what_lies_on_the_mesh_keeps_its_layout(mesh):
    axes = {"here": ("vocab",), "there": ("vocab",), "no": None}
    odd = NamedSharding(mesh, P(("data", "model")))
    other = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    tree = {
        "here": jax.device_put(np.arange(8.0), odd),
        "there": jax.device_put(np.arange(8.0), NamedSharding(other, P("model"))),
        "no": np.ones(3),
    }
    with entered_mesh(mesh) as twin:
        assert current_mesh() == twin
        placed = onto_mesh(tree, axes)
        again = onto_mesh(placed, axes)
        whole = onto_mesh(np.arange(8.0))
    assert all(kind == AxisType.Auto for kind in twin.axis_types)
    assert placed["here"].sharding == NamedSharding(twin, odd.spec)
    assert placed["there"].sharding == NamedSharding(twin, P("model"))
    assert placed["no"].sharding.is_fully_replicated and whole.is_fully_replicated
    assert all(again[name] is placed[name] for name in tree)
    for name in tree:
        np.testing.assert_array_equal(to_host(placed)[name], np.asarray(tree[name]))


def test_placing_one_array(mesh):
    lies = NamedSharding(auto_mesh(mesh), P("data"))
    assert place(np.arange(8), lies).sharding == lies
    key = place(jax.random.key(3), NamedSharding(auto_mesh(mesh), P()))
    assert jax.random.key_data(key).tolist() == [0, 3]
    x = np.ones(2)
    assert place(x, None) is x
