"""Networks that predict rows, as folders: our own, and the released checkpoints.

Our folder holds `network.json` (sizes, languages, hash of the source vocabulary) and
`model.safetensors`; a released one `config.json` and `flax_model.msgpack`.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files, nn
from jtok.embed.hypernetwork import Hypernetwork, check_languages
from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
)
from jtok.models import storage
from jtok.models.fields import read_object
from jtok.nn import HypernetworkConfig
from jtok.ops.sharding import to_host
from jtok.text import Vocabulary

__all__ = ["load_hypernetwork", "save_hypernetwork"]

PyTree = Any
_OWN, _WEIGHTS = "network.json", "flax_model.msgpack"
_PATTERNS = ("*.json", "*.model", "*.txt", _WEIGHTS, "*.safetensors")
_UNUSED = ("inter_token_blocks", "target_priors_projection", "pooler")
_LISTED = 20


def save_hypernetwork(network: Hypernetwork, path: str | os.PathLike[str]) -> None:
    """Writes a network as a folder, replaced whole or not at all.

    With several processes all must call it.

    Args:
      network: the network.
      path: the folder; an existing one must hold a network.

    Raises:
      ArgumentTypeError: no `Hypernetwork`.
      WriteError: the folder cannot be written, or holds something else.

    Source: none; the network is that of arXiv 2405.07883.

    Example:
      >>> import tempfile
      >>> from jtok.embed import init_hypernetwork
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> path = tempfile.mkdtemp() + "/network"
      >>> save_hypernetwork(init_hypernetwork(config, jax.random.key(0)), path)
      >>> load_hypernetwork(path).config == config
      True
    """
    if not isinstance(network, Hypernetwork):
        raise ArgumentTypeError(
            f"network: got {type(network).__name__}, expected a Hypernetwork."
        )
    fields = {
        "kind": "jtok.hypernetwork",
        "config": dataclasses.asdict(network.config),
        "vocabulary": network.vocabulary,
        "languages": list(network.languages),
    }
    named = to_host(_named(network.params))

    def write() -> None:
        with files.replace_folder(path, marker=_OWN) as staged:
            storage.write_tensors(staged, named)
            files.write_atomic(staged / _OWN, json.dumps(fields, indent=1) + "\n")

    storage.write_together(write, path)


def load_hypernetwork(
    name_or_path: str | os.PathLike[str],
    *,
    vocabulary: Vocabulary | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Hypernetwork:
    """Loads a network: a folder of ours, a released one, or a hub id of such a one.

    Known hub ids: `benjamin/zett-hypernetwork-` with `xlm-roberta-base`,
    `Mistral-7B-v0.1`, `multilingual-Mistral-7B-v0.1`,
    `TinyLlama-1.1B-intermediate-step-1431k-3T` or
    `Meta-Llama-3-8B-experimental`. Weights that the network does not use
    (`inter_token_blocks`, `target_priors_projection`, `pooler`) are left out; any
    other leaf without a place is an error.

    Args:
      name_or_path: the folder or hub id.
      vocabulary: the source vocabulary that is wanted; another one is an error where
        the folder knows its own. A released folder that has a tokenizer keeps its
        hash.
      revision: of a hub repository.
      token: for gated repositories.
      local_files_only: use only what was downloaded before.

    Returns:
      `Hypernetwork`, float32.

    Raises:
      MissingFileError: no such folder, repository or file.
      CheckpointError: a file is damaged, or leaves are missing, unknown or of another
        shape; all are listed.
      VocabMismatchError: it was made for another vocabulary.

    Source: arXiv 2405.07883, released weights.

    Example:
      >>> import tempfile
      >>> load_hypernetwork(tempfile.mkdtemp())
      Traceback (most recent call last):
      jtok.errors.MissingFileError: name_or_path: there is no network in ...
    """
    place = storage.resolve(
        name_or_path, revision=revision, token=token,
        local_files_only=local_files_only, patterns=_PATTERNS,
    )  # fmt: skip
    if (place / _OWN).is_file():
        network = _load_own(place)
    elif (place / _WEIGHTS).is_file():
        network = _load_released(place)
    else:
        raise MissingFileError(
            f"name_or_path: there is no network in {place}; expected {_OWN} or "
            f"{_WEIGHTS}."
        )
    if vocabulary is not None and network.vocabulary not in (None, vocabulary.hash):
        raise VocabMismatchError(
            f"{place}: made for the vocabulary {network.vocabulary!r}, got one with "
            f"the hash {vocabulary.hash!r}."
        )
    if vocabulary is not None:
        network = dataclasses.replace(network, vocabulary=vocabulary.hash)
    return network


def _load_own(place: pathlib.Path) -> Hypernetwork:
    with files.folder_lock(place, shared=True):
        fields = read_object(place / _OWN)
        opened = storage.TensorFiles.open(place)
    try:
        config = HypernetworkConfig(**fields["config"])
        languages = tuple(fields["languages"])
        check_languages(config, languages)
        owner = fields["vocabulary"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place / _OWN}: damaged ({error}).") from error
    with opened as tensors:
        leaves = {name: tensors.read(name) for name in tensors}
        params = _fitted(leaves, config, place)
    return Hypernetwork(params, config, owner, languages)


def _load_released(place: pathlib.Path) -> Hypernetwork:
    from flax import serialization, traverse_util

    try:
        tree = serialization.msgpack_restore((place / _WEIGHTS).read_bytes())
        flat = traverse_util.flatten_dict(tree, sep="/")
        if not all(isinstance(leaf, np.ndarray) for leaf in flat.values()):
            raise ValueError("a leaf is no array")
    except Exception as error:  # The reader raises whatever its library does.
        raise CheckpointError(f"{place / _WEIGHTS}: damaged ({error}).") from error
    flat = {name.removeprefix("params/"): leaf for name, leaf in flat.items()}
    used = {
        name: leaf
        for name, leaf in flat.items()
        if not any(part in _UNUSED for part in name.split("/"))
    }
    fields = read_object(place / "config.json")
    config, languages = _released_config(fields, used, place)
    try:
        vocabulary = Vocabulary.load(place).hash
    except MissingFileError:
        vocabulary = None
    return Hypernetwork(_fitted(used, config, place), config, vocabulary, languages)


def _released_config(
    fields: Mapping[str, Any], leaves: Mapping[str, np.ndarray], place: pathlib.Path
) -> tuple[HypernetworkConfig, tuple[str, ...]]:
    file = place / "config.json"
    table = leaves.get("model/embeddings/position_embeddings/embedding")
    names = fields.get("langs") or ()
    spoken = bool(fields.get("hn_embed_lang_id", False))
    hidden = fields.get("hn_hidden_size")
    try:
        width = fields.get("n_embd", fields.get("hidden_size"))
        hidden = width if hidden is None else hidden
        pad: Any = fields.get("pad_token_id")
        pad = fields.get("eos_token_id") if pad is None else pad
        config = HypernetworkConfig(
            row_width=width,
            source_size=fields.get("original_vocab_size", fields.get("vocab_size")),
            pad_id=pad,
            hidden=hidden,
            intermediate=fields.get("hn_intermediate_size", 2 * hidden),
            heads=fields.get("hn_num_attention_heads") or max(hidden // 64, 1),
            layers=fields.get("hn_n_layers", 3),
            maxlen=fields.get("hn_surface_maxlen", 7),
            extra=fields.get("hn_n_extra_tokens", 0),
            tied=not fields.get("separate_out_embeddings", False),
            languages=fields.get("n_langs", len(names)) if spoken else 0,
            predict_bias=fields.get("hn_predict_bias", True),
            rescale=fields.get("hn_rescale_embeddings", False),
            max_positions=514 if table is None else int(table.shape[0]),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged ({error}).") from error
    good = spoken and len(names) == config.languages
    return config, tuple(names) if good else ()


def _fitted(
    leaves: Mapping[str, Any], config: HypernetworkConfig, place: pathlib.Path
) -> PyTree:
    """The tree that the sizes ask for, from leaves that are exactly those."""
    shapes = _named(_abstract(config))
    problems = [f"no leaf {name}" for name in shapes if name not in leaves]
    problems += [f"unknown leaf {name}" for name in leaves if name not in shapes]
    for name, leaf in shapes.items():
        if name in leaves and tuple(leaves[name].shape) != leaf.shape:
            problems.append(f"{name} is {leaves[name].shape}, expected {leaf.shape}")
    if problems:
        more = len(problems) - _LISTED
        tail = f" and {more} more" if more > 0 else ""
        raise CheckpointError(f"{place}: {'; '.join(problems[:_LISTED])}{tail}.")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(leaves[_name(path)], jnp.float32),
        _abstract(config),
    )


def _abstract(config: HypernetworkConfig) -> PyTree:
    forms = jax.ShapeDtypeStruct((1, config.maxlen), jnp.int32)
    size = (config.source_size, config.input_width)
    source = jax.ShapeDtypeStruct(size, jnp.float32)
    language = jax.ShapeDtypeStruct((), jnp.int32) if config.languages else None
    init = nn.Hypernetwork(config).init
    return jax.eval_shape(init, jax.random.key(0), forms, source, language)["params"]


def _named(tree: PyTree) -> dict[str, Any]:
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in flat}


def _name(path: Any) -> str:
    return "/".join(str(part.key) for part in path)
