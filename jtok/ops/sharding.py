"""Logical axis names, and the one table that maps them to the axes of a mesh.

Methods say what an axis means (`"batch"`, `"heads"`); only `DEFAULT_RULES` says which
mesh axis that is. Without a mesh everything here does nothing.
"""

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, ArgumentTypeError, check, near

__all__ = [
    "DEFAULT_RULES",
    "auto_mesh",
    "constrain",
    "current_mesh",
    "mesh_from",
    "partition_spec",
    "shard_tree",
    "sharding_for",
]

Rules = Mapping[str, str | tuple[str, ...] | None]
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


def partition_spec(
    logical_axes: Sequence[str | None],
    mesh: AnyMesh | None = None,
    *,
    shape: Sequence[int] | None = None,
    rules: Rules = DEFAULT_RULES,
) -> PartitionSpec:
    """Translates logical axis names to a `PartitionSpec` of the mesh.

    An axis stays whole where its rule is None, the mesh lacks the mesh axis, the mesh
    axis already serves an earlier dimension, or it does not divide the dimension.

    Args:
      logical_axes: one name, or None for "whole", per dimension.
      mesh: None means the mesh of `jax.set_mesh`.
      shape: sizes of the dimensions; None skips the division test.
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
        if shape is not None and shape[index] % math.prod(sizes[a] for a in axes):
            axes = ()
        used.update(axes)
        spec.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*spec)


def sharding_for(
    logical_axes: Sequence[str | None],
    mesh: AnyMesh | None = None,
    *,
    shape: Sequence[int] | None = None,
    rules: Rules = DEFAULT_RULES,
) -> NamedSharding | None:
    """The sharding of an array whose dimensions have these logical names.

    Args:
      logical_axes: one name, or None for "whole", per dimension.
      mesh: None means the mesh of `jax.set_mesh`.
      shape: with it, mesh axes that do not divide their dimension are dropped.
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
    spec = partition_spec(logical_axes, mesh, shape=shape, rules=rules)
    return None if mesh is None else NamedSharding(mesh, spec)


def shard_tree(
    tree: Any,
    logical_axes: Any,
    mesh: AnyMesh | None = None,
    *,
    rules: Rules = DEFAULT_RULES,
) -> Any:
    """Places every array of a tree on the mesh by the names of its dimensions.

    Args:
      tree: arrays, of JAX or NumPy.
      logical_axes: the same tree with, at each array, a tuple of names (or None to
        keep that array whole on every device).
      mesh: None means the mesh of `jax.set_mesh`; without one `tree` comes back.
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
    leaves, names, treedef = _paired(tree, logical_axes)
    mesh = current_mesh(mesh)
    placed = []
    for leaf, axes in zip(leaves, names):
        shape = getattr(leaf, "shape", ())
        axes = (None,) * len(shape) if axes is None else axes
        sharding = sharding_for(axes, mesh, shape=shape, rules=rules)
        placed.append(leaf if sharding is None else jax.device_put(leaf, sharding))
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
