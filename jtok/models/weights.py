"""Weight tables: how a family names on disk what jtok keeps in a tree."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jtok.errors import CheckpointError
from jtok.ops.sharding import to_host

__all__ = ["Weight", "plan_tensors", "to_leaves", "to_tensor"]

PyTree = Any


class Weight(NamedTuple):
    """One tensor on disk and the parameters it holds.

    Attributes:
      name: tensor name, with `{layer}` where there is one a layer.
      paths: parameter paths, slash separated, relative to the layer for such tensors;
        several paths stand side by side on the last axis.
      transpose: whether the file holds `[out, in]` where the tree holds `[in, out]`.
    """

    name: str
    paths: tuple[str, ...]
    transpose: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.name


class Planned(NamedTuple):
    """A tensor to read or write: its name, its row of the table, its layer or None."""

    name: str
    weight: Weight
    layer: int | None

    @property
    def keys(self) -> tuple[tuple[Any, ...], ...]:
        """Where the parameters lie in the tree."""
        root = () if self.layer is None else ("layers", self.layer)
        return tuple((*root, *path.split("/")) for path in self.weight.paths)


def plan_tensors(table: tuple[Weight, ...], params: PyTree) -> Iterator[Planned]:
    """Every tensor that a tree of parameters is made of, in the order of the table.

    Rows whose parameters the tree does not have (an optional bias) are left out.
    """
    for weight in table:
        layers = range(len(params["layers"])) if weight.per_layer else (None,)
        for layer in layers:
            name = weight.name if layer is None else weight.name.format(layer=layer)
            planned = Planned(name, weight, layer)
            if all(get(params, key) is not None for key in planned.keys):
                yield planned


def get(tree: PyTree, key: tuple[Any, ...]) -> Any:
    """The entry at a path of keys, None where there is none."""
    for part in key:
        if isinstance(tree, Mapping) and part not in tree:
            return None
        tree = tree[part]
    return tree


def disk_shape(planned: Planned, params: PyTree) -> tuple[int, ...]:
    """The shape that the tensor must have on disk."""
    shapes = [get(params, key).shape for key in planned.keys]
    whole = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    return whole[::-1] if planned.weight.transpose else whole


def to_leaves(
    planned: Planned, tensor: np.ndarray, params: PyTree
) -> list[tuple[tuple[Any, ...], np.ndarray]]:
    """Cuts a tensor from disk into (key, parameter) pairs."""
    whole = tensor.T if planned.weight.transpose else tensor
    sizes = [get(params, key).shape[-1] for key in planned.keys]
    parts = np.split(whole, np.cumsum(sizes)[:-1], axis=-1)
    return [(key, part) for key, part in zip(planned.keys, parts, strict=True)]


def to_tensor(planned: Planned, params: PyTree) -> np.ndarray:
    """Joins parameters into the tensor that goes to disk."""
    parts = [to_host(get(params, key)) for key in planned.keys]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(whole.T if planned.weight.transpose else whole)


def check_names(
    found: Mapping[str, tuple[int, ...]],
    plan: tuple[Planned, ...],
    params: PyTree,
    *,
    ignored: tuple[str, ...],
    where: str,
) -> None:
    """Raises one error that lists every missing, unknown and misshapen tensor."""
    problems = []
    for planned in plan:
        wanted = disk_shape(planned, params)
        if planned.name not in found:
            problems.append(f"missing {planned.name} {list(wanted)}")
        elif tuple(found[planned.name]) != wanted:
            got = list(found[planned.name])
            problems.append(
                f"{planned.name} has shape {got}, the configuration says {list(wanted)}"
            )
    known = {planned.name for planned in plan}
    for name in found:
        if name not in known and not any(re.fullmatch(p, name) for p in ignored):
            problems.append(f"unknown {name} {list(found[name])}")
    if problems:
        shown = "; ".join(problems[:12])
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise CheckpointError(
            f"{where}: tensors and config.json do not agree: {shown}{more}."
        )
