"""Heads on disk: a folder of their own, and the layout of published heads.

Tensors are called as the official code calls them, `{head}.layers.{block}.` and then
what the model's family calls the weights of a layer. Its `heads.pth` is a pickle, which
is never read: convert it to safetensors where you trust it.

Source: the code of Chen et al. 2025, arXiv 2506.07833.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files
from jtok.errors import CheckpointError, MissingFileError, check
from jtok.models import FAMILIES, Model, storage, weights
from jtok.models.checkpoint import axis_units, param_axes
from jtok.models.fields import read_object
from jtok.models.weights import Weight
from jtok.ops.sharding import onto_mesh, to_host
from jtok.predict.auxiliary import AuxiliaryHeads, HeadsConfig, init_heads, split_heads

__all__ = ["heads_from_tensors", "load_heads", "save_heads"]

PyTree = Any

_CONFIG = "heads.json"
_FORMAT = 1
# What trainers and wrappers put before the names of the official code.
_PREFIX = re.compile(
    r"^(?:module\.)?(?:base_model\.model\.)?(?:auxiliary_head\.|aux\.)?"
)
# What must agree between the model that heads were made for and the one they go to.
_SIZES = ("family", "width", "vocab_size", "num_layers", "num_heads", "num_kv_heads",
          "head_dim", "mlp_width")  # fmt: skip


def save_heads(heads: AuxiliaryHeads, folder: str | os.PathLike[str]) -> None:
    """Saves heads as a folder, replacing one that is there; all or nothing.

    With several processes all call it; the first one writes.

    Args:
      heads: without adapters.
      folder: the folder to make; an existing one must hold heads.

    Raises:
      ArgumentError: there are no heads to save, or they have adapters.
      WriteError: the folder cannot be written; what was there still is.

    Source: names as in the code of arXiv 2506.07833.

    Example:
      >>> import os, tempfile
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> folder = tempfile.mkdtemp() + "/heads"
      >>> save_heads(init_heads(tiny_model()), folder)
      >>> sorted(os.listdir(folder))
      ['heads.json', 'model.safetensors']
    """
    count = heads.config.num_auxiliary
    check(count > 0, "heads", count, "at least one head")
    names = {str(getattr(p[-1], "key", "")) for p, _ in _paths(heads.params)}
    good = not names & {"lora_a", "lora_b"}
    check(good, "heads", "adapters", "heads without adapters: merge them first")
    tensors = {}
    for index, head in enumerate(split_heads(to_host(heads.params))):
        for planned in _plan(heads, head, index):
            tensors[planned.name] = weights.to_tensor(planned, head)
    sizes = {name: getattr(heads.base, name) for name in _SIZES}
    fields = {"format": _FORMAT, "heads": dataclasses.asdict(heads.config)}
    text = json.dumps({**fields, "model": sizes}, indent=2, sort_keys=True) + "\n"

    def write() -> None:
        with files.replace_folder(folder, marker=_CONFIG) as staged:
            storage.write_tensors(staged, tensors)
            files.write_atomic(staged / _CONFIG, text)

    storage.write_together(write, folder)


def load_heads(
    folder: str | os.PathLike[str], model: Model, *, config: HeadsConfig | None = None
) -> AuxiliaryHeads:
    """Loads heads for a model, onto the current mesh.

    Args:
      folder: from `save_heads`, or a folder with published heads as
        `model.safetensors`.
      model: the model they are for.
      config: for folders that do not say which heads they hold; None takes the
        official code's choices with as many heads and blocks as there are.

    Returns:
      `AuxiliaryHeads` in the dtype of the model.

    Raises:
      CheckpointError: a damaged file, heads for another model, or tensors that do not
        agree with the configuration; all problems are listed.
      MissingFileError: there are no heads.
      UnsupportedCheckpointError: heads as a pickle.

    Source: names as in the code of arXiv 2506.07833.

    Example:
      >>> import tempfile
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> folder = tempfile.mkdtemp() + "/heads"
      >>> save_heads(init_heads(tiny_model()), folder)
      >>> load_heads(folder, tiny_model()).config.num_auxiliary
      4
    """
    place = pathlib.Path(folder).expanduser()
    files.recover_folder(place)
    if not place.is_dir():
        raise MissingFileError(f"{place}: there is no such folder.")
    with files.folder_lock(place, shared=True):
        if (place / _CONFIG).is_file():
            config = _read_config(place / _CONFIG, model)
        opened = storage.TensorFiles.open(place)
    with opened as tensors:
        shapes = {name: tensors.shape(name) for name in tensors.names()}
        return _assembled(shapes, tensors.view, model, config, str(place))


def heads_from_tensors(
    tensors: Mapping[str, Any],
    model: Model,
    config: HeadsConfig | None = None,
    *,
    where: str = "tensors",
) -> AuxiliaryHeads:
    """Makes heads of tensors that are called as the official code calls them.

    Args:
      tensors: name -> array, such as `0.layers.0.self_attn.q_proj.weight`, with or
        without `auxiliary_head.` before it.
      model: the model they are for.
      config: which heads; None takes the official code's choices with as many heads
        and blocks as there are.
      where: what they come from, for messages.

    Returns:
      `AuxiliaryHeads` in the dtype of the model, on the current mesh.

    Raises:
      CheckpointError: missing, unknown or misshapen tensors; all are listed.

    Source: names as in the code of arXiv 2506.07833.

    Example:
      >>> from jtok.testing import tiny_model
      >>> zeros = np.zeros((32, 32), np.float32)
      >>> names = ("0.layers.0.linear.weight", "0.layers.0.linear.bias")
      >>> given = dict(zip(names, (zeros, zeros[0])))
      >>> heads_from_tensors(given, tiny_model()).config.arch
      'linear'
    """
    shapes = {name: tuple(np.shape(array)) for name, array in tensors.items()}
    view = lambda name: np.asarray(tensors[name])
    return _assembled(shapes, view, model, config, where)


def _assembled(
    shapes: Mapping[str, tuple[int, ...]],
    view: Callable[[str], np.ndarray],
    model: Model,
    config: HeadsConfig | None,
    where: str,
) -> AuxiliaryHeads:
    """Heads of tensors that are looked at one by one, once all names are known."""
    names = {_PREFIX.sub("", name): name for name in shapes}
    config = _guessed(names, where) if config is None else config
    if config.num_auxiliary * config.depth > len(names):
        raise CheckpointError(
            f"{where}: {config.num_auxiliary} heads of {config.depth} blocks are asked "
            f"for, and there are {len(names)} tensors."
        )
    if config.layer < -model.config.num_layers:
        config = dataclasses.replace(config, layer=-1)
    whole = jax.eval_shape(
        lambda: init_heads(model, config, key=jax.random.key(0)).params
    )
    heads = AuxiliaryHeads(whole, config, model.config)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), whole)
    plans = [_plan(heads, one, index) for index in range(config.num_auxiliary)]
    merged = tuple(planned for plan in plans for planned in plan)
    found = {name: shapes[given] for name, given in names.items()}
    weights.check_names(found, merged, one, ignored=(), where=where)
    made = [_read_head(plan, one, lambda name: view(names[name])) for plan in plans]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    params = onto_mesh(params, param_axes(params), units=axis_units(model.config))
    return dataclasses.replace(heads, params=params)


def _read_head(plan: tuple[Any, ...], shapes: PyTree, view: Any) -> PyTree:
    sources = weights.sources_of(plan)

    def read(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        key = tuple(getattr(p, "key", getattr(p, "idx", p)) for p in path)
        index = tuple(slice(0, extent) for extent in leaf.shape)
        return weights.read_part(sources[key], index, shapes, leaf.dtype, view)

    return jax.tree_util.tree_map_with_path(read, shapes)


def _plan(heads: AuxiliaryHeads, head: PyTree, index: int) -> tuple[Any, ...]:
    """The tensors of one head, by the names of the model's family."""
    if heads.config.arch == "linear":
        rows = [
            Weight("layers.{layer}.linear.weight", ("linear/kernel",), transpose=True),
            Weight("layers.{layer}.linear.bias", ("linear/bias",)),
        ]
    else:
        rows = [
            row._replace(name=f"layers.{{layer}}{row.name.split('{layer}', 1)[1]}")
            for row in FAMILIES[heads.base.family].weights
            if row.per_layer
        ]
    rows += [
        Weight("lm_head.weight", ("unembed/kernel",)),
        Weight("lm_head.bias", ("unembed/bias",)),
    ]
    table = tuple(row._replace(name=f"{index}.{row.name}") for row in rows)
    return tuple(weights.plan_tensors(table, head, heads.base))


def _guessed(named: Mapping[str, Any], where: str) -> HeadsConfig:
    """The official code's choices for so many heads, blocks and kinds of them."""
    # Nine digits: longer ones are no counts, and Python refuses to read very long ones.
    form = re.compile(r"([0-9]{1,9})\.layers\.([0-9]{1,9})\.(linear\.)?")
    found = [match for name in named if (match := form.match(name))]
    if not found:
        shown = ", ".join(sorted(named)[:3]) or "nothing"
        raise CheckpointError(
            f"{where}: no heads there; expected tensors such as "
            f"'0.layers.0.self_attn.q_proj.weight', found {shown}."
        )
    count, depth = (1 + max(int(match[at]) for match in found) for at in (1, 2))
    if count * depth > len(found):
        raise CheckpointError(
            f"{where}: names speak of {count} heads of {depth} blocks, and there are "
            f"{len(found)} tensors of blocks."
        )
    return HeadsConfig.official(
        num_auxiliary=count,
        depth=depth,
        arch="linear" if found[0][3] else "decoder",
        separate_unembedding=any(".lm_head." in f".{name}" for name in named),
    )


def _read_config(file: pathlib.Path, model: Model) -> HeadsConfig:
    fields = dict(read_object(file))
    if fields.get("format") != _FORMAT:
        got = fields.get("format")
        raise CheckpointError(f"{file}: format {got!r}, expected {_FORMAT}.")
    sizes, choices = fields.get("model"), fields.get("heads")
    if not isinstance(sizes, dict) or not isinstance(choices, dict):
        raise CheckpointError(f"{file}: damaged, it lacks 'model' or 'heads'.")
    problems = [
        f"{name}={sizes.get(name)!r}, the model has {getattr(model.config, name)!r}"
        for name in _SIZES
        if sizes.get(name) != getattr(model.config, name)
    ]
    if problems:
        raise CheckpointError(f"{file}: heads for {'; '.join(problems)}.")
    try:
        return HeadsConfig(**choices)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged, {error}") from error


def _paths(tree: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]
