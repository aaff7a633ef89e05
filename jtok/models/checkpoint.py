"""Loading and saving models as Hugging Face folders, and making new ones."""

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
from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
    check,
)
from jtok.models import mamba, storage, weights
from jtok.models.backbone import backbone_of
from jtok.models.families import FAMILIES, family_of
from jtok.models.model import GenerationConfig, Model, parsed, split_layers
from jtok.ops.sharding import shard_tree
from jtok.text import Vocabulary

__all__ = ["config_from", "init", "load", "save"]

PyTree = Any
_DTYPES = ("float32", "bfloat16")

# Logical names of the axes of a parameter, by the end of its path.
_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("embed/tokens", ("vocab", "embed")),
    ("embed/positions", (None, "embed")),
    ("unembed/kernel", ("vocab", "embed")),
    ("query/kernel", ("embed", "heads")),
    ("key/kernel", ("embed", "kv_heads")),
    ("value/kernel", ("embed", "kv_heads")),
    ("out/kernel", ("heads", "embed")),
    ("gate/kernel", ("embed", "mlp")),
    ("up/kernel", ("embed", "mlp")),
    ("down/kernel", ("mlp", "embed")),
    ("query/bias", ("heads",)),
    ("key/bias", ("kv_heads",)),
    ("value/bias", ("kv_heads",)),
    ("gate/bias", ("mlp",)),
    ("up/bias", ("mlp",)),
    *mamba.AXES,
)


def param_axes(params: PyTree) -> PyTree:
    """Logical axis names of every parameter, for `jtok.ops.sharding`."""

    def axes(path: Any, leaf: Any) -> tuple[str | None, ...]:
        name = "/".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path)
        found = next((axes for end, axes in _AXES if name.endswith(end)), None)
        found = (None,) * leaf.ndim if found is None else found
        return ("layers",) * (leaf.ndim - len(found)) + found

    return jax.tree_util.tree_map_with_path(axes, params)


def config_from(fields: Mapping[str, Any], *, dtype: str | None = None) -> Any:
    """Translates the fields of a `config.json`.

    Args:
      fields: as the file has them.
      dtype: "float32" or "bfloat16"; None takes what the file says, else float32.

    Returns:
      The family's configuration (`DecoderConfig`, `MambaConfig`), which remembers
      `fields`.

    Raises:
      UnsupportedCheckpointError: an unknown family or option.
      CheckpointError: a field is missing.
      ArgumentError: another `dtype`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> from jtok.models.families import FAMILIES
      >>> fields = FAMILIES["llama"].write(tiny_model().config)
      >>> config_from(fields).width
      32
    """
    fields = dict(fields)
    stored = str(fields.get("dtype") or fields.get("torch_dtype") or "float32")
    if dtype is None:
        dtype = "bfloat16" if stored.endswith("bfloat16") else "float32"
    check(dtype in _DTYPES, "dtype", dtype, " or ".join(map(repr, _DTYPES)))
    family = family_of(fields)
    try:
        translated = family.read(fields)
    except KeyError as missing:
        raise CheckpointError(f"config.json: there is no field {missing}.") from None
    return family.config(
        family=fields["model_type"],
        dtype=dtype,
        source=json.dumps(fields),
        **translated,
    )


def _init_params(config: Any, key: jax.Array) -> PyTree:
    return backbone_of(config).init_params(config, key)


def init_decoder(config: nn.DecoderConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    keys = jax.random.split(key, config.num_layers + 3)
    x = jnp.zeros((1, 1, config.width), config.dtype)
    positions = jnp.zeros((1, 1), jnp.int32)

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return (0.02 * jax.random.normal(key, shape)).astype(config.dtype)

    def layer(key: jax.Array) -> PyTree:
        heads = (1, 1, config.num_heads, config.head_dim)
        attend = lambda q, k, v: (jnp.zeros(heads, q.dtype), (k, v))
        block = nn.Block(config)
        made = block.init(key, x, positions, attend, lambda _, value: value)["params"]
        # Residual branches start small, so that depth does not change the scale.
        shrink = (2 * config.num_layers) ** -0.5
        for branch in (made["out"], made["mlp"]["down"]):
            branch["kernel"] = branch["kernel"] * jnp.asarray(shrink, config.dtype)
        return made

    embed = {"tokens": normal(keys[0], config.vocab_size, config.width)}
    if config.positions == "learned":
        embed["positions"] = normal(keys[1], config.max_positions, config.width)
    params = {
        "embed": embed,
        "layers": tuple(layer(key) for key in keys[3:]),
        "final_norm": nn.Norm(config).init(keys[2], x)["params"],
    }
    if not config.tied:
        params["unembed"] = {"kernel": normal(keys[2], config.vocab_size, config.width)}
    return params


def init(
    config: Any,
    key: jax.Array,
    *,
    vocabulary: Vocabulary | None = None,
) -> Model:
    """Makes a model with random parameters, split by layer, on the current mesh.

    Args:
      config: a `DecoderConfig` or `MambaConfig`, or the fields of a `config.json`.
      key: typed PRNG key, consumed.
      vocabulary: the tokenizer, or None.

    Returns:
      `Model`.

    Raises:
      VocabMismatchError: the tokenizer has more ids than the embedding has rows.

    Example:
      >>> from jtok import nn
      >>> sizes = dict(vocab_size=8, width=4, num_layers=1, num_heads=1,
      ...              num_kv_heads=1, head_dim=4, mlp_width=8, max_positions=16)
      >>> model = init(nn.DecoderConfig(**sizes), jax.random.key(0))
      >>> model.params["embed"]["tokens"].shape
      (8, 4)
    """
    made = config_from(config) if isinstance(config, Mapping) else config
    return _init(made, key, vocabulary)


def _init(config: Any, key: jax.Array, vocabulary: Vocabulary | None) -> Model:
    _check_vocabulary(vocabulary, config, "vocabulary")
    params = jax.jit(_init_params, static_argnums=0)(config, key)
    params = shard_tree(params, param_axes(params))
    generation = GenerationConfig()
    if vocabulary is not None and "eos" in vocabulary.special:
        generation = GenerationConfig((vocabulary.special["eos"],))
    return Model(params, config, vocabulary, generation_config=generation)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Model:
    """Loads a hub id or a folder in the Hugging Face format, onto the current mesh.

    Every tensor is checked against the configuration before one is read; layers come
    split, ready for decoding.

    Args:
      name_or_path: a folder, or a hub id such as "Qwen/Qwen2.5-0.5B".
      dtype: "float32" or "bfloat16"; None keeps the dtype of the file (float16
        becomes float32).
      revision: branch, tag or commit on the hub.
      token: for gated repositories.
      local_files_only: use only what was downloaded before.

    Returns:
      `Model` with vocabulary (None where the folder has no tokenizer) and generation
      configuration.

    Raises:
      MissingFileError: a file is not there.
      CheckpointError: a file is damaged, or tensors contradict the configuration; all
        problems are listed.
      UnsupportedCheckpointError: a family or a format that jtok does not read.
      VocabMismatchError: the tokenizer has more ids than the embedding has rows.

    Example:
      >>> import tempfile
      >>> from jtok.testing import tiny_model
      >>> folder = tempfile.mkdtemp() + "/tiny"
      >>> save(tiny_model(), folder)
      >>> load(folder).config.width
      32
    """
    folder = storage.resolve(
        name_or_path,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
    )
    fields = storage.read_config(folder)
    family = family_of(fields, where=str(folder / "config.json"))
    vocabulary = _load_vocabulary(folder)
    with storage.TensorFiles.open(folder) as tensors:
        config = config_from(fields, dtype=dtype or _stored_dtype(tensors))
        _check_vocabulary(vocabulary, config, str(folder))
        shapes = jax.eval_shape(lambda: _init_params(config, jax.random.key(0)))
        plan = tuple(weights.plan_tensors(family.weights, shapes))
        found = {_prefixed(name, plan, family.prefix): name for name in tensors.names()}
        ignored = family.ignored + (("lm_head.weight",) if config.tied else ())
        weights.check_names(
            {name: tensors.shape(file) for name, file in found.items()},
            plan,
            shapes,
            ignored=ignored,
            where=str(folder),
        )
        params = _read_params(tensors, plan, found, shapes, config.dtype)
    return Model(
        params,
        config,
        vocabulary,
        generation_config=_generation(folder, fields),
    )


def _prefixed(name: str, plan: tuple[Any, ...], prefix: str) -> str:
    """Adds the prefix that some files leave out (GPT-2 on the hub)."""
    known = {planned.name for planned in plan}
    return prefix + name if name not in known and prefix + name in known else name


def _stored_dtype(tensors: storage.TensorFiles) -> str:
    kinds = {str(tensors.dtype(name)) for name in tensors.names()}
    return "bfloat16" if kinds == {"bfloat16"} else "float32"


def _read_params(
    tensors: storage.TensorFiles,
    plan: tuple[Any, ...],
    found: dict[str, str],
    shapes: PyTree,
    dtype: str,
) -> PyTree:
    """Reads one tensor at a time and places it before the next is read."""
    axes = param_axes(shapes)
    leaves: dict[tuple[Any, ...], jax.Array] = {}
    for planned in plan:
        tensor = tensors.read(found[planned.name])
        for key, part in weights.to_leaves(planned, tensor, shapes):
            # A copy on the host: jax may otherwise keep the memory-mapped file.
            host = np.array(part, dtype=jnp.dtype(dtype), order="C")
            placed = shard_tree({"x": host}, {"x": weights.get(axes, key)})["x"]
            leaves[key] = jnp.asarray(placed)
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    order = [tuple(getattr(p, "key", getattr(p, "idx", p)) for p in k) for k, _ in flat]
    return jax.tree.unflatten(treedef, [leaves[key] for key in order])


def _load_vocabulary(folder: pathlib.Path) -> Vocabulary | None:
    try:
        return Vocabulary.load(folder)
    except MissingFileError:
        return None


def _check_vocabulary(vocabulary: Vocabulary | None, config: Any, where: str) -> None:
    if vocabulary is not None and vocabulary.size > config.vocab_size:
        raise VocabMismatchError(
            f"{where}: the tokenizer has {vocabulary.size} ids, the embedding "
            f"{config.vocab_size} rows; expected at most as many ids as rows."
        )


def _generation(folder: pathlib.Path, fields: dict[str, Any]) -> GenerationConfig:
    generation = storage.read_generation_config(folder)
    read = GenerationConfig.from_dict(fields if generation is None else generation)
    if generation is None:
        return read
    source = (folder / "generation_config.json").read_text()
    if not read.eos_token_ids:
        fallback = GenerationConfig.from_dict(fields)
        read = dataclasses.replace(read, eos_token_ids=fallback.eos_token_ids)
    return dataclasses.replace(read, source=source)


def save(model: Model, folder: str | os.PathLike[str]) -> None:
    """Saves a folder that `load` and `transformers` read, replacing one that is there.

    What was loaded and not changed is written as it was, tensor for tensor. A kill at
    any moment leaves the old folder or the new one.

    Args:
      model: with split or stacked layers.
      folder: the folder to make; an existing one must hold a checkpoint.

    Raises:
      WriteError: the folder cannot be written; what was there still is.

    Example:
      >>> import os, tempfile
      >>> from jtok.testing import tiny_model
      >>> folder = tempfile.mkdtemp() + "/tiny"
      >>> save(tiny_model(), folder)
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"model: got {type(model).__name__}, expected a Model.")
    params = split_layers(model.params)
    family = FAMILIES[model.config.family]
    plan = weights.plan_tensors(family.weights, params)
    with files.replace_folder(folder, marker="config.json") as staged:
        named = ((item.name, weights.to_tensor(item, params)) for item in plan)
        storage.write_tensors(staged, named)
        text = json.dumps(_fields(model), indent=2, sort_keys=True) + "\n"
        files.write_atomic(staged / "config.json", text)
        if model.generation_config and (source := model.generation_config.to_json()):
            files.write_atomic(staged / "generation_config.json", source)
        if model.vocabulary is not None:
            model.vocabulary.save(staged)


def _fields(model: Model) -> dict[str, Any]:
    """The configuration to write: what was read, with what has changed since."""
    config = model.config
    source = dict(parsed(config.source))
    written = FAMILIES[config.family].write(config)
    if source and config_from(source, dtype=config.dtype) == config:
        name = "dtype" if "dtype" in source or "torch_dtype" not in source else None
        return {**source, (name or "torch_dtype"): config.dtype}
    generation = model.generation_config
    if generation is not None and generation.eos_token_ids:
        ids = list(generation.eos_token_ids)
        written["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    return {**source, **written}
