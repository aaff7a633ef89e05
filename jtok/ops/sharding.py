"""Logical axis names, and the one table that maps them to the axes of a mesh.

Methods say what an axis means (`"batch"`, `"heads"`); only `DEFAULT_RULES` says which
mesh axis that is. Without a mesh everything here does nothing.
"""

import contextlib
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, ArgumentTypeError, check, near

__all__ = [
    "DEFAULT_RULES",
    "abstract_tree",
    "auto_mesh",
    "check_split",
    "constrain",
    "current_mesh",
    "entered_mesh",
    "mesh_from",
    "onto_mesh",
    "partition_spec",
    "place",
    "shard_tree",
    "sharding_for",
    "to_host",
]

Rules = Mapping[str, str | tuple[str, ...] | None]
Units = Mapping[str, int]
AnyMesh = Mesh | AbstractMesh

# Logical axis -> mesh axis; None keeps the axis whole on every device.
DEFAULT_RULES: Rules = types.MappingProxyType(
    {
        "batch": "data",
        "vocab": "model",
        "heads": "model",
        "kv_heads": "model",
        "experts": "model",
        "mlp": "model",
        "embed": None,
        "head_dim": None,
        "layers": None,
        "seq": None,
    }
)


def current_mesh(mesh: AnyMesh | None = None) -> AnyMesh | None:
    """The mesh to use: the one given, else that of `jax.set_mesh`, else None.

    Args:
      mesh: what the caller was given; wins where it is not None.

    Returns:
      A concrete mesh outside `jit`, an abstract one inside, None without any.

    Example:
      >>> current_mesh() is None
      True
    """
    if mesh is None:
        try:
            mesh = jax.sharding.get_mesh()
        except ValueError:  # inside jit only the abstract one is known
            mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def mesh_from(spec: str, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh that a command line asks for, as in `--mesh data=4,model=2`.

    The compiler places what is inside (`AxisType.Auto`); enter it with
    `jax.set_mesh`.

    Args:
      spec: `name=size` pairs, comma separated; one size may be -1: all that is left.
      devices: the devices to spread over; None takes all of them.

    Returns:
      The mesh, whose axes stand in the order of `spec`.

    Raises:
      ArgumentError: `spec` cannot be read or does not fit the number of devices.

    Example:
      >>> mesh_from("data=-1,model=1").axis_names
      ('data', 'model')
    """
    sizes = _parse(spec)
    count = len(jax.devices() if devices is None else devices)
    known = math.prod(size for size in sizes.values() if size > 0)
    if -1 in sizes.values():
        check(count % known == 0, "spec", spec, f"sizes that divide {count} devices")
        sizes = {name: count // known if n < 0 else n for name, n in sizes.items()}
        known = count
    check(known == count, "spec", spec, f"sizes whose product is {count} devices")
    types_ = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=types_, devices=devices
    )


def _parse(spec: str) -> dict[str, int]:
    expected = "name=size pairs as in 'data=4,model=2', at most one size -1"
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        name, _, size = (text.strip() for text in part.partition("="))
        good = name.isidentifier() and name not in sizes
        try:
            sizes[name] = int(size)
        except ValueError:
            good = False
        check(good and (sizes[name] > 0 or sizes[name] == -1), "spec", spec, expected)
    check(list(sizes.values()).count(-1) <= 1, "spec", spec, expected)
    return sizes


def auto_mesh(mesh: AnyMesh | None = None) -> AnyMesh | None:
    """The same mesh with every axis placed by the compiler (`AxisType.Auto`).

    `jax.make_mesh` makes axes explicit unless told otherwise; code that does a whole
    job enters the twin, so that both kinds of mesh serve.

    Args:
      mesh: None means the mesh of `jax.set_mesh`.

    Returns:
      The twin over the same devices, or None without a mesh.

    Example:
      >>> auto_mesh() is None
      True
    """
    mesh = current_mesh(mesh)
    if mesh is None or all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    if isinstance(mesh, AbstractMesh):
        return mesh.update(axis_types=kinds)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


@contextlib.contextmanager
def entered_mesh(mesh: AnyMesh | None = None) -> Iterator[AnyMesh | None]:
    """Enters the twin of the mesh whose axes the compiler places, see `auto_mesh`.

    Args:
      mesh: None means the mesh of `jax.set_mesh`.

    Yields:
      The twin, or None without a mesh.

    Example:
      >>> with entered_mesh() as mesh:
      ...     mesh is None
      True
    """
    twin = auto_mesh(mesh)
    if isinstance(twin, Mesh):
        with jax.set_mesh(twin):
            yield twin
    else:
        yield twin


def partition_spec(
    logical_axes: Sequence[str | None],
    mesh: AnyMesh | None = None,
    *,
    shape: Sequence[int] | None = None,
    units: Units | None = None,
    rules: Rules = DEFAULT_RULES,
) -> PartitionSpec:
    """Translates logical axis names to a `PartitionSpec` of the mesh.

    An axis stays whole where its rule is None, the mesh lacks the mesh axis, the mesh
    axis already serves an earlier dimension, or it does not divide the dimension (or
    its units).

    Args:
      logical_axes: one name, or None for "whole", per dimension.
      mesh: None means the mesh of `jax.set_mesh`.
      shape: sizes of the dimensions; None skips the division test.
      units: logical axis -> number of parts that must not be cut, such as heads in a
        dimension of heads times head size.
      rules: logical axis -> mesh axis, several mesh axes, or None.

    Returns:
      The spec, as long as `logical_axes`; all None without a mesh.

    Raises:
      ArgumentError: a name without a rule, or a length unlike that of `shape`.

    Example:
      >>> tuple(partition_spec(("batch", "embed")))
      (None, None)
    """
    for name in logical_axes:
        if name is not None and name not in rules:
            hint = near(name, rules)
            raise ArgumentError(f"logical_axes: got {name!r}, which has no rule{hint}")
    if shape is not None and len(shape) != len(logical_axes):
        expected = f"one name for each dimension of shape {tuple(shape)}"
        check(False, "logical_axes", tuple(logical_axes), expected)
    mesh = current_mesh(mesh)
    sizes = {} if mesh is None else dict(mesh.shape)
    used: set[str] = set()
    spec = []
    for index, name in enumerate(logical_axes):
        rule = None if name is None else rules[name]
        axes = (rule,) if isinstance(rule, str) else rule or ()
        axes = tuple(axis for axis in axes if axis in sizes and axis not in used)
        parts = math.prod(sizes[axis] for axis in axes)
        size = 0 if shape is None else shape[index]
        if size % parts or (units or {}).get(str(name), 0) % parts:
            axes = ()
        used.update(axes)
        spec.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*spec)


def sharding_for(
    logical_axes: Sequence[str | None],
    mesh: AnyMesh | None = None,
    *,
    shape: Sequence[int] | None = None,
    units: Units | None = None,
    rules: Rules = DEFAULT_RULES,
) -> NamedSharding | None:
    """The sharding of an array whose dimensions have these logical names.

    Args:
      logical_axes: one name, or None for "whole", per dimension.
      mesh: None means the mesh of `jax.set_mesh`.
      shape: with it, mesh axes that do not divide their dimension are dropped.
      units: as for `partition_spec`.
      rules: logical axis -> mesh axis.

    Returns:
      A `NamedSharding`, or None without a mesh.

    Raises:
      ArgumentError: a name without a rule, or a length unlike that of `shape`.

    Example:
      >>> sharding_for(("vocab", "embed")) is None
      True
    """
    mesh = current_mesh(mesh)
    spec = partition_spec(logical_axes, mesh, shape=shape, units=units, rules=rules)
    return None if mesh is None else NamedSharding(mesh, spec)


def shard_tree(
    tree: Any,
    logical_axes: Any,
    mesh: AnyMesh | None = None,
    *,
    units: Units | None = None,
    rules: Rules = DEFAULT_RULES,
) -> Any:
    """Places every array of a tree on the mesh by the names of its dimensions.

    On a mesh of several processes each gives the whole arrays, the same in all; every
    process copies what its own devices hold.

    Args:
      tree: arrays, of JAX or NumPy.
      logical_axes: the same tree with, at each array, a tuple of names (or None to
        keep that array whole on every device).
      mesh: None means the mesh of `jax.set_mesh`; without one `tree` comes back.
      units: as for `partition_spec`.
      rules: logical axis -> mesh axis.

    Returns:
      The tree with its arrays placed.

    Raises:
      ArgumentError: `logical_axes` has another structure, a name without a rule, or a
        tuple whose length is not the rank of its array.

    Example:
      >>> shard_tree({"w": 1.0}, {"w": ()})
      {'w': 1.0}
    """
    return _map_shardings(place, tree, logical_axes, current_mesh(mesh), units, rules)


def place(leaf: Any, sharding: NamedSharding | None) -> Any:
    """Puts one array where a sharding says, also over several processes.

    Args:
      leaf: an array, of JAX or NumPy; the same in every process, or a global one.
      sharding: None leaves `leaf` as it is.

    Returns:
      The placed array.

    Example:
      >>> place(3.0, None)
      3.0
    """
    if sharding is None:
        return leaf
    is_local = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    if is_local and not sharding.is_fully_addressable:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = place(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        # Not `device_put`, which would send the whole array around to compare it.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
    return jax.device_put(leaf, sharding)


def onto_mesh(
    tree: Any,
    logical_axes: Any = None,
    mesh: AnyMesh | None = None,
    *,
    units: Units | None = None,
) -> Any:
    """Brings arrays onto the mesh; those that lie on its devices keep their layout.

    Args:
      tree: arrays, of JAX or NumPy.
      logical_axes: as for `shard_tree`, for arrays that are elsewhere; None puts them
        whole on every device.
      mesh: None means the mesh of `jax.set_mesh`; without one `tree` comes back.
      units: as for `partition_spec`.

    Returns:
      The tree with every array on the mesh.

    Raises:
      ArgumentError: as for `shard_tree`.

    Example:
      >>> onto_mesh({"w": 1.0})
      {'w': 1.0}
    """
    mesh = current_mesh(mesh)
    if mesh is None:
        return tree
    if logical_axes is None:
        logical_axes = [None] * len(jax.tree.leaves(tree))

    def bring(leaf: Any, sharding: NamedSharding | None) -> Any:
        own = getattr(leaf, "sharding", None)
        if own == sharding or sharding is None:
            return leaf
        if isinstance(own, NamedSharding) and _is_twin(own.mesh, sharding.mesh):
            sharding = NamedSharding(sharding.mesh, own.spec)
        return place(leaf, sharding)

    return _map_shardings(bring, tree, logical_axes, mesh, units, DEFAULT_RULES)


def _is_twin(one: AnyMesh, other: AnyMesh) -> bool:
    same = (
        isinstance(one, Mesh) and isinstance(other, Mesh) and one.shape == other.shape
    )
    return same and bool((one.devices == other.devices).all())


def to_host(tree: Any) -> Any:
    """Fetches arrays, also those of which this process has only a part.

    With several processes all must call it, with the same arrays in the same order.

    Args:
      tree: arrays.

    Returns:
      The same tree of NumPy arrays, whole in every process.

    Example:
      >>> import jax.numpy as jnp
      >>> to_host({"x": jnp.arange(2)})["x"].tolist()
      [0, 1]
    """
    leaves, treedef = jax.tree.flatten(tree)
    for leaf in leaves:
        if getattr(leaf, "is_fully_addressable", False):
            leaf.copy_to_host_async()
    return jax.tree.unflatten(treedef, [_fetch(leaf) for leaf in leaves])


def _fetch(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def abstract_tree(
    tree: Any,
    logical_axes: Any,
    mesh: AnyMesh | None = None,
    *,
    units: Units | None = None,
    rules: Rules = DEFAULT_RULES,
) -> Any:
    """The tree as `shard_tree` would place it, as shapes: nothing is allocated.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.
      logical_axes: as for `shard_tree`.
      mesh: None means the mesh of `jax.set_mesh`.
      units: as for `partition_spec`.
      rules: logical axis -> mesh axis.

    Returns:
      `jax.ShapeDtypeStruct`s with shardings, for `jax.jit(f).lower`.

    Raises:
      ArgumentError: as for `shard_tree`.

    Example:
      >>> shape = jax.ShapeDtypeStruct((4, 2), "float32")
      >>> abstract_tree({"w": shape}, {"w": ("mlp", "embed")})["w"].shape
      (4, 2)
    """
    mesh = current_mesh(mesh)

    def describe(leaf: Any, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return _map_shardings(describe, tree, logical_axes, mesh, units, rules)


def check_split(
    logical_axis: str,
    size: int,
    mesh: AnyMesh | None = None,
    *,
    rules: Rules = DEFAULT_RULES,
) -> None:
    """Refuses a mesh whose devices cannot share `size` parts equally.

    Args:
      logical_axis: what the parts are, such as "heads".
      size: how many there are.
      mesh: None means the mesh of `jax.set_mesh`; without one all is well.
      rules: logical axis -> mesh axis.

    Raises:
      ArgumentError: the mesh axis of that rule does not divide `size`.

    Example:
      >>> check_split("heads", 12)
    """
    mesh = current_mesh(mesh)
    spec = partition_spec((logical_axis,), mesh, rules=rules)[0] or ()
    axes = (spec,) if isinstance(spec, str) else spec
    parts = math.prod(dict(mesh.shape)[axis] for axis in axes) if mesh else 1
    if size % parts == 0:
        return
    fits = [n for n in range(1, size + 1) if size % n == 0]
    check(
        False,
        "mesh",
        "x".join(f"{axis}={dict(mesh.shape)[axis]}" for axis in axes) if mesh else "",
        f"a size that divides the {size} {logical_axis}: one of "
        f"{', '.join(map(str, fits))}",
    )


def _map_shardings(
    do: Callable[[Any, NamedSharding | None], Any],
    tree: Any,
    logical_axes: Any,
    mesh: AnyMesh | None,
    units: Units | None,
    rules: Rules,
) -> Any:
    leaves, names, treedef = _paired(tree, logical_axes)
    placed = []
    for leaf, axes in zip(leaves, names):
        shape = getattr(leaf, "shape", ())
        axes = (None,) * len(shape) if axes is None else axes
        sharding = sharding_for(axes, mesh, shape=shape, units=units, rules=rules)
        placed.append(do(leaf, sharding))
    return jax.tree.unflatten(treedef, placed)


def _is_axes(node: Any) -> bool:
    names = isinstance(node, tuple) and all(
        name is None or isinstance(name, str) for name in node
    )
    return node is None or (names and not hasattr(node, "_fields"))


def _paired(tree: Any, logical_axes: Any) -> tuple[list[Any], list[Any], Any]:
    leaves, treedef = jax.tree.flatten(tree)
    names = jax.tree.leaves(logical_axes, is_leaf=_is_axes)
    if len(names) != len(leaves) or not all(_is_axes(name) for name in names):
        raise ArgumentError(
            f"logical_axes: got {len(names)} entries, expected a tuple of axis names "
            f"for each of the {len(leaves)} arrays of the tree."
        )
    return leaves, names, treedef


def constrain(
    x: jax.Array,
    *logical_axes: str | None,
    mesh: AnyMesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> jax.Array:
    """Tells the compiler how `x` lies on the mesh; for use inside `jit`.

    Mesh axes that are missing, or that do not divide the dimension, are dropped. On a
    mesh with explicit axes `x` is resharded.

    Args:
      x: any array.
      logical_axes: one name, or None, for each dimension of `x`.
      mesh: None means the mesh of `jax.set_mesh`; without one `x` comes back.
      rules: logical axis -> mesh axis.

    Returns:
      `x`, same values.

    Raises:
      ArgumentTypeError: `x` has no shape.
      ArgumentError: a name without a rule, or another number of names than dimensions.

    Example:
      >>> import jax.numpy as jnp
      >>> constrain(jnp.ones((4, 2)), "batch", "embed").shape
      (4, 2)
    """
    if not hasattr(x, "shape"):
        raise ArgumentTypeError(f"x: got {type(x).__name__}, expected an array.")
    sharding = sharding_for(logical_axes, mesh, shape=x.shape, rules=rules)
    if sharding is None:
        return x
    if any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types):
        return jax.sharding.reshard(x, sharding)
    return jax.lax.with_sharding_constraint(x, sharding)
