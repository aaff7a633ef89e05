"""Folders of text classifiers: `config.json`, safetensors, `words.json`."""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from jtok import files, nn
from jtok.classify.head import HeadConfig
from jtok.classify.prediction import TextClassifier, check_words
from jtok.classify.texts import ClassifierConfig, init_classifier
from jtok.classify.words import WordList
from jtok.errors import ArgumentError, ArgumentTypeError, MissingFileError
from jtok.models.trees import read_tree, write_tree

__all__ = ["load_classifier", "save_classifier"]

_KIND = "jtok_text_classifier"
_WORDS = "words.json"
_POOLERS: dict[str, Any] = {
    "additive": nn.AdditivePooler,
    "lama": nn.LamaPooler,
    "last": nn.LastPooler,
    "max": nn.MaxPooler,
    "mean": nn.MeanPooler,
    "structured": nn.StructuredPooler,
}


def save_classifier(model: TextClassifier, folder: str | os.PathLike[str]) -> None:
    """Saves a folder that `load_classifier` reads, replacing one that is there.

    A kill at any moment leaves the old folder or the new one. With several processes
    all call it, and the first writes.

    Args:
      model: the classifier.
      folder: the folder to make; an existing one must hold a checkpoint.

    Raises:
      ArgumentError: a pooler that is not jtok's own, or parameters (as folded ones) of
        another layout than the configuration's.
      ArgumentTypeError: no `TextClassifier`.
      VocabMismatchError: the words are not those of the embedding.
      WriteError: the folder cannot be written; what was there still is.

    Source: none; the model is that of Mehta et al. 2019, arXiv 1912.00835.

    Example:
      >>> import os, tempfile
      >>> from jtok import nn
      >>> config = ClassifierConfig(3, HeadConfig(nn.LamaPooler(4), classes=2), state=2)
      >>> params = init_classifier(config, jax.random.key(0))
      >>> folder = tempfile.mkdtemp() + "/classifier"
      >>> save_classifier(TextClassifier(params, config, WordList(("a",))), folder)
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors', 'words.json']
    """
    if not isinstance(model, TextClassifier):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a TextClassifier."
        )
    check_words(model)
    given = type(model.config.head.pooler)
    kind = next((kind for kind, known in _POOLERS.items() if known is given), None)
    if kind is None:
        raise ArgumentError(
            f"model: its pooler is a {given.__name__}, expected one of "
            f"{[*_POOLERS]} to be saved."
        )
    look = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    if look(model.params) != look(_shapes(model.config)):
        raise ArgumentError(
            "model: its parameters are not laid out as its configuration says; "
            "expected those of init_classifier, not folded ones."
        )
    fields = dataclasses.asdict(model.config)
    fields["head"]["pooler"]["kind"] = kind
    words = model.words.to_json() + "\n"
    write_tree(
        folder, _KIND, fields, model.params,
        beside=lambda staged: files.write_atomic(staged / _WORDS, words),
    )  # fmt: skip


def load_classifier(folder: str | os.PathLike[str]) -> TextClassifier:
    """Loads what `save_classifier` wrote.

    Args:
      folder: the folder.

    Returns:
      `TextClassifier`.

    Raises:
      MissingFileError: the folder or a file of it is not there.
      CheckpointError: a file is damaged, or tensors contradict the configuration; all
        problems are listed.
      UnsupportedCheckpointError: the folder holds another kind of model.
      VocabMismatchError: the words are not those of the embedding.

    Source: none; the model is that of Mehta et al. 2019, arXiv 1912.00835.

    Example:
      >>> load_classifier("nowhere")
      Traceback (most recent call last):
      jtok.errors.MissingFileError: folder: there is no folder 'nowhere'.
    """
    config, params, words = read_tree(
        folder, (_KIND,), _config, _shapes, beside=lambda place, _: _words(place)
    )
    model = TextClassifier(params, config, words)
    check_words(model)
    return model


def _shapes(config: ClassifierConfig) -> Any:
    return jax.eval_shape(lambda key: init_classifier(config, key), jax.random.key(0))


def _config(fields: dict[str, Any]) -> ClassifierConfig:
    given = {name: value for name, value in fields.items() if name != "model_type"}
    head = dict(given.pop("head"))
    pooler = dict(head.pop("pooler"))
    made = _POOLERS[pooler.pop("kind")](**pooler)
    return ClassifierConfig(**given, head=HeadConfig(**head, pooler=made))


def _words(place: pathlib.Path) -> WordList:
    file = place / _WORDS
    if not file.is_file():
        raise MissingFileError(f"{file}: is missing; expected the words of the model.")
    return WordList.from_json(file.read_text(encoding="utf-8", errors="replace"))
