"""Folders of models that are a configuration and a tree of arrays.

`config.json` holds the fields, `model.safetensors` the arrays under their paths, joined
by dots. A folder is replaced whole or not at all.
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jtok import files
from jtok.errors import CheckpointError, MissingFileError, UnsupportedCheckpointError
from jtok.models import storage
from jtok.models.fields import read_object
from jtok.ops.sharding import to_host

__all__ = ["read_tree", "write_tree"]

PyTree = Any
Config = TypeVar("Config")
_MARK = "config.json"
_MAX_LISTED = 20  # problems of one message


def write_tree(
    folder: str | os.PathLike[str],
    kind: str,
    fields: dict[str, Any],
    params: PyTree,
    *,
    beside: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Saves a folder that `read_tree` reads, replacing one that is there.

    A kill at any moment leaves the old folder or the new one. With several processes
    all call it, and the first writes.

    Args:
      folder: the folder to make; an existing one must hold a checkpoint.
      kind: what `model_type` in `config.json` will say.
      fields: the configuration, as JSON takes it.
      params: the tree of arrays.
      beside: writes other files into the folder that it is given.

    Raises:
      WriteError: the folder cannot be written; what was there still is.

    Example:
      >>> import os, tempfile
      >>> folder = tempfile.mkdtemp() + "/model"
      >>> write_tree(folder, "mine", {"size": 2}, {"w": jnp.ones(2)})
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    tensors = _named(to_host(params))
    text = json.dumps({"model_type": kind, **fields}, indent=2, sort_keys=True) + "\n"

    def write() -> None:
        with files.replace_folder(folder, marker=_MARK) as staged:
            storage.write_tensors(staged, tensors)
            files.write_atomic(staged / _MARK, text)
            if beside is not None:
                beside(staged)

    storage.write_together(write, folder)


def read_tree(
    folder: str | os.PathLike[str],
    kinds: Sequence[str],
    configure: Callable[[dict[str, Any]], Config],
    shapes_of: Callable[[Config], PyTree],
    *,
    beside: Callable[[pathlib.Path, Config], Any] | None = None,
) -> tuple[Config, PyTree, Any]:
    """Loads what `write_tree` wrote.

    Every tensor is checked against the configuration before one is read.

    Args:
      folder: the folder.
      kinds: values of `model_type` that are read here.
      configure: the configuration of the fields (`model_type` among them); a
        `TypeError`, `ValueError`, `KeyError` or `AttributeError` of it means damage.
      shapes_of: the tree that a configuration has, as arrays or shapes.
      beside: reads the other files, and is given the configuration.

    Returns:
      The configuration, the tree, and what `beside` gave.

    Raises:
      MissingFileError: the folder or a file of it is not there.
      CheckpointError: a file is damaged, or tensors contradict the configuration; all
        problems are listed.
      UnsupportedCheckpointError: the folder holds another kind of model.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp() + "/model"
      >>> write_tree(folder, "mine", {"size": 2}, {"w": jnp.ones(2)})
      >>> shapes = lambda fields: {"w": jnp.zeros(fields["size"])}
      >>> read_tree(folder, ["mine"], dict, shapes)[1]["w"].tolist()
      [1.0, 1.0]
    """
    place = pathlib.Path(folder).expanduser()
    files.recover_folder(place)
    if not place.is_dir():
        raise MissingFileError(f"folder: there is no folder {os.fspath(folder)!r}.")
    with files.folder_lock(place, shared=True):
        fields = read_object(place / _MARK)
        if fields.get("model_type") not in kinds:
            raise UnsupportedCheckpointError(
                f"{place / _MARK}: is of model_type {fields.get('model_type')!r}, "
                f"expected one of {list(kinds)}."
            )
        try:
            config = configure(fields)
            shapes = shapes_of(config)
        except CheckpointError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{place / _MARK}: damaged: {error}") from error
        extra = None if beside is None else beside(place, config)
        opened = storage.TensorFiles.open(place)
    with opened as tensors:
        _check_tensors(tensors, _named(shapes), place)
        read = lambda path, leaf: jnp.asarray(tensors.read(_name(path)))
        params = jax.tree_util.tree_map_with_path(read, shapes)
    return config, params, extra


def _named(tree: PyTree) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    return ".".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path)


def _check_tensors(
    tensors: storage.TensorFiles, expected: dict[str, Any], place: pathlib.Path
) -> None:
    problems = [f"no tensor {name}" for name in expected if name not in tensors]
    problems += [f"unknown tensor {name}" for name in tensors if name not in expected]
    for name, leaf in expected.items():
        if name not in tensors:
            continue
        if tensors.shape(name) != leaf.shape:
            problems.append(f"{name} is {tensors.shape(name)}, expected {leaf.shape}")
        elif tensors.dtype(name) != leaf.dtype:
            problems.append(f"{name} is {tensors.dtype(name)}, expected {leaf.dtype}")
    if problems:
        raise CheckpointError(f"{place}: {'; '.join(problems[:_MAX_LISTED])}.")
