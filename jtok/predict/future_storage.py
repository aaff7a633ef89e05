"""Folders of models that predict several future tokens: `config.json`, safetensors."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files, models, nn
from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    VocabMismatchError,
)
from jtok.models import storage
from jtok.models.checkpoint import check_mesh
from jtok.models.fields import read_object
from jtok.ops.sharding import to_host
from jtok.predict.future import (
    FutureModel,
    abstract_future,
    place_future,
    with_encoder,
)
from jtok.predict.future_slots import FutureConfig
from jtok.text import Vocabulary

__all__ = ["load_future", "save_future"]

_KIND = "jtok_future"
PyTree = Any


def save_future(model: FutureModel, folder: str | os.PathLike[str]) -> None:
    """Saves a folder that `load_future` reads, replacing one that is there.

    A kill at any moment leaves the old folder or the new one. With several processes
    all call it, and the first writes.

    Args:
      model: with split or stacked layers of the encoder.
      folder: the folder to make; an existing one must hold a checkpoint.

    Raises:
      ArgumentTypeError: no `FutureModel`.
      WriteError: the folder cannot be written; what was there still is.

    Source: none; the model is that of Walker 2024, arXiv 2410.18160.

    Example:
      >>> import os, tempfile
      >>> from jtok.predict import FutureConfig, init_future
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"))
      >>> folder = tempfile.mkdtemp() + "/future"
      >>> save_future(init_future(config, jax.random.key(0)), folder)
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    if not isinstance(model, FutureModel):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a FutureModel."
        )
    params = to_host(with_encoder(model.params, models.split_layers))
    storage.write_together(lambda: _write(model, _named(params), folder), folder)


def _write(model: FutureModel, tensors: dict[str, Any], folder: Any) -> None:
    fields = {"model_type": _KIND, **dataclasses.asdict(model.config)}
    with files.replace_folder(folder, marker="config.json") as staged:
        storage.write_tensors(staged, tensors)
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        files.write_atomic(staged / "config.json", text)
        if model.vocabulary is not None:
            model.vocabulary.save(staged)


def load_future(folder: str | os.PathLike[str]) -> FutureModel:
    """Loads what `save_future` wrote, onto the current mesh.

    Every tensor is checked against the configuration before one is read.

    Args:
      folder: the folder.

    Returns:
      `FutureModel`, with its vocabulary where the folder has one.

    Raises:
      MissingFileError: the folder or a file of it is not there.
      CheckpointError: a file is damaged, or tensors contradict the configuration; all
        problems are listed.
      UnsupportedCheckpointError: the folder holds another kind of model.
      VocabMismatchError: the tokenizer has more ids than the embedding has rows.

    Source: none; the model is that of Walker 2024, arXiv 2410.18160.

    Example:
      >>> load_future("nowhere")
      Traceback (most recent call last):
      jtok.errors.MissingFileError: folder: there is no folder 'nowhere'.
    """
    place = pathlib.Path(folder).expanduser()
    files.recover_folder(place)
    if not place.is_dir():
        raise MissingFileError(f"folder: there is no folder {os.fspath(folder)!r}.")
    with files.folder_lock(place, shared=True):
        config = _config(read_object(place / "config.json"), place)
        try:
            vocabulary = Vocabulary.load(place)
        except MissingFileError:
            vocabulary = None
        opened = storage.TensorFiles.open(place)
    rows = config.encoder.vocab_size
    if vocabulary is not None and vocabulary.size > rows:
        raise VocabMismatchError(
            f"{place}: the tokenizer has {vocabulary.size} ids, the embedding {rows} "
            "rows; expected at most as many ids as rows."
        )
    with opened as tensors:
        check_mesh(config.encoder)
        numbers = sum(int(np.prod(tensors.shape(name))) for name in tensors)
        if _least(config) > numbers:
            raise CheckpointError(
                f"{place}: config.json speaks of {_least(config)} numbers or more, the "
                f"files hold {numbers}."
            )
        shapes = abstract_future(config)
        expected = _named(shapes)
        _check_tensors(tensors, expected, place)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: tensors.read(_name(path)), shapes
        )
    params = jax.tree.map(jnp.asarray, params)
    return FutureModel(place_future(params, config), config, vocabulary)


def _named(tree: PyTree) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    return ".".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path)


def _least(config: FutureConfig) -> int:
    """A lower bound on the parameters, so that none of a wrong size is ever made."""
    encoder = config.encoder
    blocks = encoder.num_layers + config.decoder_layers
    block = encoder.width * (encoder.mlp_width + encoder.num_heads * encoder.head_dim)
    return encoder.vocab_size * encoder.width + blocks * block


def _config(fields: dict[str, Any], place: pathlib.Path) -> FutureConfig:
    file = place / "config.json"
    if fields.get("model_type") != _KIND:
        raise UnsupportedCheckpointError(
            f"{file}: is of model_type {fields.get('model_type')!r}, expected "
            f"{_KIND!r}."
        )
    given = {name: value for name, value in fields.items() if name != "model_type"}
    inner = given.get("encoder")
    if not isinstance(inner, dict):
        raise CheckpointError(f"{file}: damaged, it describes no encoder.")
    try:
        encoder = nn.DecoderConfig(**{k: _frozen(v) for k, v in inner.items()})
        return FutureConfig(**{**given, "encoder": encoder})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error


def _frozen(value: Any) -> Any:
    """JSON knows no tuples; a configuration holds nothing else."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


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
        raise CheckpointError(f"{place}: {'; '.join(problems[:20])}.")
