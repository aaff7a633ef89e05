"""Folders of word-pooled and unit-level models: configuration, weights, alphabet."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files
from jtok.embed.unit_lm import init_units
from jtok.embed.word_config import UnitConfig, WordPooledConfig
from jtok.embed.word_pooled import WordModel, init_words
from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    VocabMismatchError,
)
from jtok.models import storage
from jtok.models.fields import read_object
from jtok.ops.sharding import to_host
from jtok.text import Alphabet, Vocabulary

__all__ = ["load_words", "save_words", "words_from_tensors"]

PyTree = Any
Config = WordPooledConfig | UnitConfig
_KINDS: dict[str, type[Config]] = {
    "jtok_word_pooled": WordPooledConfig,
    "jtok_unit_lm": UnitConfig,
}
_ALPHABET = "alphabet.json"


def save_words(model: WordModel, folder: str | os.PathLike[str]) -> None:
    """Saves a folder that `load_words` reads, replacing one that is there.

    A kill at any moment leaves the old folder or the new one. With several processes
    all call it, and the first writes.

    Args:
      model: word-pooled or unit-level, with or without its alphabet.
      folder: the folder to make; an existing one must hold a checkpoint.

    Raises:
      ArgumentTypeError: no `WordModel`.
      VocabMismatchError: the alphabet has another size than the embedding.
      WriteError: the folder cannot be written; what was there still is.

    Source: none; the model is that of Thawani et al. 2023, arXiv 2310.11628.

    Example:
      >>> import os, tempfile
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_words(config, jax.random.key(0))
      >>> folder = tempfile.mkdtemp() + "/words"
      >>> save_words(WordModel(params=params, config=config), folder)
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    if not isinstance(model, WordModel):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a WordModel."
        )
    _check_alphabet(model.config, model.alphabet, "model")
    tensors = _named(to_host(model.params))
    storage.write_together(lambda: _write(model, tensors, folder), folder)


def _write(model: WordModel, tensors: dict[str, Any], folder: Any) -> None:
    kind = next(k for k, cls in _KINDS.items() if isinstance(model.config, cls))
    fields = {"model_type": kind, **dataclasses.asdict(model.config)}
    with files.replace_folder(folder, marker="config.json") as staged:
        storage.write_tensors(staged, tensors)
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        files.write_atomic(staged / "config.json", text)
        if model.alphabet is not None:
            files.write_atomic(staged / _ALPHABET, model.alphabet.to_json() + "\n")
            if model.alphabet.vocabulary is not None:
                model.alphabet.vocabulary.save(staged)


def load_words(folder: str | os.PathLike[str]) -> WordModel:
    """Loads what `save_words` wrote.

    Args:
      folder: the folder.

    Returns:
      `WordModel`, with its alphabet where the folder has one.

    Raises:
      MissingFileError: the folder or a file of it is not there.
      CheckpointError: a file is damaged, or tensors contradict the configuration; all
        problems are listed.
      UnsupportedCheckpointError: the folder holds another kind of model.
      VocabMismatchError: the alphabet or its tokenizer is not the one of the model.

    Source: none; the model is that of Thawani et al. 2023, arXiv 2310.11628.

    Example:
      >>> load_words("nowhere")
      Traceback (most recent call last):
      jtok.errors.MissingFileError: folder: there is no folder 'nowhere'.
    """
    place = pathlib.Path(folder).expanduser()
    files.recover_folder(place)
    if not place.is_dir():
        raise MissingFileError(f"folder: there is no folder {os.fspath(folder)!r}.")
    with files.folder_lock(place, shared=True):
        config = _config(read_object(place / "config.json"), place)
        alphabet = _alphabet(place)
        opened = storage.TensorFiles.open(place)
    _check_alphabet(config, alphabet, str(place))
    with opened as tensors:
        shapes = _shapes(config)
        _check_tensors(tensors, _named(shapes), place)
        read = lambda path, leaf: jnp.asarray(tensors.read(_name(path)))
        params = jax.tree_util.tree_map_with_path(read, shapes)
    return WordModel(params=params, config=config, alphabet=alphabet)


def _shapes(config: Config) -> PyTree:
    init: Any = init_words if isinstance(config, WordPooledConfig) else init_units
    return jax.eval_shape(lambda key: init(config, key), jax.random.key(0))


def _named(tree: PyTree) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    return ".".join(str(getattr(p, "key", p)) for p in path)


def _config(fields: dict[str, Any], place: pathlib.Path) -> Config:
    file, kind = place / "config.json", fields.get("model_type")
    if kind not in _KINDS:
        raise UnsupportedCheckpointError(
            f"{file}: is of model_type {kind!r}, expected one of {[*_KINDS]}."
        )
    given = {name: value for name, value in fields.items() if name != "model_type"}
    try:
        return _KINDS[kind](**given)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error


def _alphabet(place: pathlib.Path) -> Alphabet | None:
    file = place / _ALPHABET
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        vocabulary = Vocabulary.load(place) if '"subword"' in text else None
    except MissingFileError as error:
        raise MissingFileError(f"{file}: its tokenizer is missing: {error}") from error
    return Alphabet.from_json(text, vocabulary)


def _check_alphabet(config: Config, alphabet: Alphabet | None, where: str) -> None:
    if alphabet is not None and alphabet.size != config.vocab_size:
        raise VocabMismatchError(
            f"{where}: the alphabet has {alphabet.size} units, the embedding "
            f"{config.vocab_size}; expected as many."
        )


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


# Weights of the official code ------------------------

_HALVES = {"ln1": "norm1", "ln2": "norm2", "mlp.0": "up", "mlp.2": "down"}
_HALVES |= {f"attn.{name}": name for name in ("query", "key", "value", "proj")}
_POST = {"self_attn.out_proj": "out", "linear1": "up", "linear2": "down"}
_POST |= {"norm1": "norm1", "norm2": "norm2"}


def words_from_tensors(
    tensors: Mapping[str, np.ndarray], config: WordPooledConfig | UnitConfig
) -> PyTree:
    """Parameters from a state dict of the paper's code.

    Args:
      tensors: name -> array, as in `myGPT.state_dict()`; matrices are (out, in), and
        the causal masks among them are left out.
      config: the sizes. Without positions the unit-level model leaves the code's
        table of them out, which that code never reads.

    Returns:
      The parameters, as of `init_words` or `init_units`.

    Raises:
      CheckpointError: a tensor is missing, unknown, or of another shape; all problems
        are listed.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code.

    Example:
      >>> words_from_tensors({}, UnitConfig(vocab_size=9, width=8, layers=1))
      Traceback (most recent call last):
      jtok.errors.CheckpointError: tensors: no tensor in_emb.weight; ...
    """
    table = _official_names(config)
    shapes = _named(_shapes(config))
    unread = set(tensors) - {name for names in table.values() for name, _ in names}
    unread = {name for name in unread if not name.endswith(".attn.mask")}
    if isinstance(config, UnitConfig) and not config.positions:
        unread -= {"in_pe"}
    problems: list[str] = []
    found: dict[str, Any] = {}
    for ours, names in table.items():
        missing = [name for name, _ in names if name not in tensors]
        problems += [f"no tensor {name}" for name in missing]
        if missing:
            continue
        parts = [change(np.asarray(tensors[name])) for name, change in names]
        array = np.stack(parts) if ".layers." in ours else parts[0]
        if array.shape != shapes[ours].shape:
            wanted = shapes[ours].shape
            problems.append(f"{names[0][0]} gives {array.shape}, expected {wanted}")
        found[ours] = jnp.asarray(array, config.dtype)
    problems += [f"unknown tensor {name}" for name in sorted(unread)]
    if problems:
        raise CheckpointError(f"tensors: {'; '.join(problems[:20])}.")
    fill = lambda path, _: found[_name(path)]
    return jax.tree_util.tree_map_with_path(fill, _shapes(config))


def _official_names(config: Config) -> dict[str, list[tuple[str, Any]]]:
    """Our name -> official names, one for each layer, and how each array is turned."""
    same, turn, first = (lambda x: x), (lambda x: x.T), (lambda x: x[0])
    table = {"embed.units": [("in_emb.weight", same)]}
    table["head.kernel"] = [("head.weight", same)]
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        table[f"main.final_norm.{ours}"] = [(f"ln_f.{theirs}", same)]
    if isinstance(config, WordPooledConfig) or config.positions:
        table["embed.unit_positions"] = [("in_pe", first)]
    stacks = [("main", "blocks", config.layers, _HALVES)]
    if isinstance(config, WordPooledConfig):
        table["embed.word_positions"] = [("word_pe", first)]
        stacks.append(("decoder", "decoder_blocks", config.decoder_layers, _HALVES))
        stacks.append(("encoder", "wordenc.layers", config.encoder_layers, _POST))
    for ours, theirs, count, names in stacks:
        for their, our in names.items():
            norm = our.startswith("norm")
            for leaf, kind in (
                ("scale" if norm else "kernel", "weight"),
                ("bias",) * 2,
            ):
                change = same if norm or kind == "bias" else turn
                rows = [(f"{theirs}.{i}.{their}.{kind}", change) for i in range(count)]
                table[f"{ours}.layers.{our}.{leaf}"] = rows
        if names is _POST:
            for leaf, kind, change in (
                ("kernel", "weight", turn),
                ("bias",) * 2 + (same,),
            ):
                rows = [
                    (f"{theirs}.{i}.self_attn.in_proj_{kind}", change)
                    for i in range(count)
                ]
                table[f"{ours}.layers.qkv.{leaf}"] = rows
    return table
