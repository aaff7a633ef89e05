"""Folders of lexinvariant models: `config.json`, safetensors, tokenizer.

Source: the model is that of Huang et al. 2023, arXiv 2305.16349.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from jtok import models, nn
from jtok.embed.random_tables import (
    LexinvariantConfig,
    LexinvariantModel,
    lexinvariant_from,
)
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingFileError,
    VocabMismatchError,
)
from jtok.models.trees import read_tree, write_tree
from jtok.text import Vocabulary

__all__ = ["load_lexinvariant", "save_lexinvariant"]

PyTree = Any
_KIND = "jtok_lexinvariant"
_BODIES: dict[str, Any] = {"decoder": nn.DecoderConfig, "mamba": nn.MambaConfig}


def save_lexinvariant(model: LexinvariantModel, folder: str | os.PathLike[str]) -> None:
    """Saves a folder that `load_lexinvariant` reads, replacing one that is there.

    A kill at any moment leaves the old folder or the new one. With several processes
    all call it, and the first writes.

    Args:
      model: with split or stacked layers, with or without its vocabulary.
      folder: the folder to make; an existing one must hold a checkpoint.

    Raises:
      ArgumentError: a body that is neither a decoder nor a Mamba model.
      ArgumentTypeError: no `LexinvariantModel`.
      VocabMismatchError: the tokenizer has more ids than the model has symbols.
      WriteError: the folder cannot be written; what was there still is.

    Source: none; the model is that of Huang et al. 2023, arXiv 2305.16349.

    Example:
      >>> import os, tempfile
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> folder = tempfile.mkdtemp() + "/lex"
      >>> save_lexinvariant(model, folder)
      >>> "config.json" in os.listdir(folder)
      True
    """
    if not isinstance(model, LexinvariantModel):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a LexinvariantModel."
        )
    inner = model.config.model
    kind = next((k for k, c in _BODIES.items() if isinstance(inner, c)), None)
    if kind is None:
        raise ArgumentError(
            f"model: its body has a {type(inner).__name__}, expected one of "
            f"{[c.__name__ for c in _BODIES.values()]} to be saved."
        )
    vocabulary = model.vocabulary
    _check_vocabulary(vocabulary, model.config, "model")
    params = {**model.params, "body": models.split_layers(model.params["body"])}
    fields = {**dataclasses.asdict(model.config), "body": kind}
    write_tree(
        folder, _KIND, fields, params,
        beside=None if vocabulary is None else vocabulary.save,
    )  # fmt: skip


def load_lexinvariant(folder: str | os.PathLike[str]) -> LexinvariantModel:
    """Loads what `save_lexinvariant` wrote.

    Args:
      folder: the folder.

    Returns:
      `LexinvariantModel` with split layers, and its vocabulary where there is one.

    Raises:
      MissingFileError: the folder or a file of it is not there.
      CheckpointError: a file is damaged, or tensors contradict the configuration; all
        problems are listed.
      UnsupportedCheckpointError: the folder holds another kind of model.
      VocabMismatchError: the tokenizer has more ids than the model has symbols.

    Source: none; the model is that of Huang et al. 2023, arXiv 2305.16349.

    Example:
      >>> load_lexinvariant("nowhere")
      Traceback (most recent call last):
      jtok.errors.MissingFileError: folder: there is no folder 'nowhere'.
    """
    config, params, vocabulary = read_tree(
        folder, (_KIND,), _config, _shapes, beside=_vocabulary
    )
    return LexinvariantModel(params, config, vocabulary)


def _config(fields: dict[str, Any]) -> LexinvariantConfig:
    given = {name: _frozen(value) for name, value in fields.items()}
    kind, inner = _BODIES[given.pop("body")], fields["model"]
    del given["model_type"]
    given["model"] = kind(**{name: _frozen(value) for name, value in inner.items()})
    return LexinvariantConfig(**given)


def _frozen(value: Any) -> Any:
    """JSON knows no tuples; a configuration holds nothing else."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _shapes(config: LexinvariantConfig) -> PyTree:
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "model"
    }

    def made(params: PyTree, key: jax.Array) -> PyTree:
        body = models.Model(params, config.model)
        return lexinvariant_from(body, key=key, **options).params

    body = models.abstract(config.model).params
    return jax.eval_shape(made, body, jax.random.key(0))


def _vocabulary(place: pathlib.Path, config: LexinvariantConfig) -> Vocabulary | None:
    try:
        vocabulary = Vocabulary.load(place)
    except MissingFileError:
        return None
    _check_vocabulary(vocabulary, config, str(place))
    return vocabulary


def _check_vocabulary(vocabulary: Any, config: LexinvariantConfig, where: str) -> None:
    size = config.model.vocab_size
    if vocabulary is not None and vocabulary.size > size:
        raise VocabMismatchError(
            f"{where}: the tokenizer has {vocabulary.size} ids, the model {size} "
            "symbols; expected at most as many."
        )
