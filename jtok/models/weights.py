"""Weight tables: how a family names on disk what jtok keeps in a tree."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jtok.errors import CheckpointError
from jtok.ops.sharding import to_host

__all__ = ["Weight", "plan_tensors", "read_part", "sources_of", "to_tensor"]

PyTree = Any


class Weight(NamedTuple):
    """One tensor on disk and the parameters it holds.

    Attributes:
      name: tensor name, with `{layer}` where there is one a layer, and `{expert}` where
        there is one an expert: one row of the parameter's leading axis; `{stem}` is
        that of the configuration.
      paths: parameter paths, slash separated, relative to the layer for such tensors;
        several paths stand side by side on the last axis.
      transpose: whether the file holds `[out, in]` where the tree holds `[in, out]`.
      by_head: several paths alternate: head 0 of each, then head 1 of each.
      beside: a parameter path; where the tree lacks it, the row is left out.
      without: a parameter path; where the tree has it, the row is left out.
      under: the part of the tree whose layers `{layer}` counts, "" for the tree itself;
        paths of such tensors are relative to a layer of it.
      classes: what `config.architecture` must be for the row, where files name tensors
        otherwise for other classes of model; empty for any.
      lead: axes of size 1 that the file has before those of the parameter; -1 where it
        lacks the first, of size 1.
      kind: the row is of models only whose configuration has it among its `kinds`.
    """

    name: str
    paths: tuple[str, ...]
    transpose: bool = False
    by_head: bool = False
    beside: str = ""
    without: str = ""
    under: str = ""
    classes: tuple[str, ...] = ()
    lead: int = 0
    kind: str = ""

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.name

    @property
    def per_expert(self) -> bool:
        """Whether every expert has one."""
        return "{expert}" in self.name


class Planned(NamedTuple):
    """A tensor to read or write.

    Attributes:
      name: on disk.
      weight: its row of the table.
      layer: its layer, or None.
      expert: its expert, or None.
      groups: how often its paths take turns on the last axis.
    """

    name: str
    weight: Weight
    layer: int | None
    expert: int | None = None
    groups: int = 1

    @property
    def keys(self) -> tuple[tuple[Any, ...], ...]:
        """Where the parameters lie in the tree."""
        root = _root(self.weight, self.layer)
        return tuple((*root, *path.split("/")) for path in self.weight.paths)


def _root(weight: Weight, layer: int | None) -> tuple[Any, ...]:
    """Where the paths of a row start."""
    if layer is None:
        return ()
    return (*([weight.under] if weight.under else []), "layers", layer)


def plan_tensors(
    table: tuple[Weight, ...], params: PyTree, config: Any
) -> Iterator[Planned]:
    """Every tensor that a tree of parameters is made of, in the order of the table.

    Rows whose parameters the tree does not have (an optional bias) are left out.
    """
    kinds, stem = getattr(config, "kinds", ()), getattr(config, "stem", "")
    for weight in table:
        if weight.classes and config.architecture not in weight.classes:
            continue
        if weight.kind and weight.kind not in kinds:
            continue
        stack = params[weight.under] if weight.under else params
        layers = range(len(stack["layers"])) if weight.per_layer else (None,)
        groups = config.num_heads if weight.by_head else 1
        for layer in layers:
            planned = Planned(weight.name, weight, layer, None, groups)
            leaves = [get(params, key) for key in planned.keys]
            if any(leaf is None for leaf in leaves) or _excluded(planned, params):
                continue
            experts = range(leaves[0].shape[0]) if weight.per_expert else (None,)
            for expert in experts:
                name = weight.name.format(layer=layer, expert=expert, stem=stem)
                yield planned._replace(name=name, expert=expert)


def _excluded(planned: Planned, params: PyTree) -> bool:
    weight = planned.weight
    root = _root(weight, planned.layer)

    def has(path: str) -> bool:
        return get(params, (*root, *path.split("/"))) is not None

    return bool(
        (weight.beside and not has(weight.beside))
        or (weight.without and has(weight.without))
    )


def get(tree: PyTree, key: tuple[Any, ...]) -> Any:
    """The entry at a path of keys, None where there is none."""
    for part in key:
        if isinstance(tree, Mapping) and part not in tree:
            return None
        tree = tree[part]
    return tree


def disk_shape(planned: Planned, params: PyTree) -> tuple[int, ...]:
    """The shape that the tensor must have on disk."""
    shapes = _shapes(planned, params)
    whole = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    whole = whole[::-1] if planned.weight.transpose else whole
    lead = planned.weight.lead
    return (1,) * lead + whole if lead >= 0 else whole[-lead:]


def _shapes(planned: Planned, params: PyTree) -> list[tuple[int, ...]]:
    """Shapes of the parameters, of one expert where the tensor holds one."""
    start = 0 if planned.expert is None else 1
    return [tuple(get(params, key).shape)[start:] for key in planned.keys]


Sources = dict[tuple[Any, ...], list[tuple[Planned, int]]]


def sources_of(plan: Iterable[Planned]) -> Sources:
    """For every parameter the tensors it comes from, and its place in their paths.

    There is one tensor, or one an expert, in the order of the experts.
    """
    sources: Sources = {}
    for planned in plan:
        for place, key in enumerate(planned.keys):
            sources.setdefault(key, []).append((planned, place))
    return sources


def read_part(
    sources: list[tuple[Planned, int]],
    index: tuple[slice, ...],
    params: PyTree,
    dtype: Any,
    view: Callable[[str], np.ndarray],
) -> np.ndarray:
    """Reads a part of a parameter from the tensors that hold it, and nothing else.

    Args:
      sources: of the parameter, from `sources_of`.
      index: slices with start and stop, one for each axis of the parameter.
      params: tree of arrays or shapes.
      dtype: of the result.
      view: name of a tensor -> the tensor, as it lies in the file.

    Returns:
      A contiguous array in memory of its own.
    """
    part = np.empty([item.stop - item.start for item in index], dtype)
    if sources[0][0].expert is None:
        _copy(part, *sources[0], index, params, view)
    else:
        chosen = sources[index[0].start : index[0].stop]
        for row, source in zip(part, chosen, strict=True):
            _copy(row, *source, index[1:], params, view)
    return part


def _copy(
    part: np.ndarray,
    planned: Planned,
    place: int,
    index: tuple[slice, ...],
    params: PyTree,
    view: Callable[[str], np.ndarray],
) -> None:
    """Fills `part` from one tensor: one copy, which transposes and casts."""
    sizes = [shape[-1] // planned.groups for shape in _shapes(planned, params)]
    before, size = sum(sizes[:place]), sizes[place]
    last = index[-1]
    columns: Any = slice(before + last.start, before + last.stop)
    if planned.groups > 1:
        group, inside = np.divmod(np.arange(last.start, last.stop), size)
        columns = group * sum(sizes) + before + inside
    where = (*index[:-1], columns)
    tensor = view(planned.name)
    if planned.weight.lead:
        tensor = tensor.reshape(_shapes(planned, params)[0])
    cut = tensor[where[::-1]].T if planned.weight.transpose else tensor[where]
    np.copyto(part, cut, casting="unsafe")


def to_tensor(planned: Planned, params: PyTree) -> np.ndarray:
    """Joins parameters into the tensor that goes to disk."""
    parts = []
    for key in planned.keys:
        leaf = get(params, key)
        part = to_host(leaf if planned.expert is None else leaf[planned.expert])
        parts.append(part.reshape(*part.shape[:-1], planned.groups, -1))
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    whole = joined.reshape(*joined.shape[:-2], -1)
    whole = whole.T if planned.weight.transpose else whole
    return np.ascontiguousarray(whole).reshape(disk_shape(planned, params))


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
