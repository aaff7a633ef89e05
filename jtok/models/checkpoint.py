"""Loading and saving models as Hugging Face folders, and making new ones."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files, nn
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    VocabMismatchError,
    check,
)
from jtok.models import mamba, storage, weights
from jtok.models.backbone import backbone_of
from jtok.models.compressor import check_compressor
from jtok.models.families import FAMILIES, family_of
from jtok.models.fields import Fields, check_types, read_text
from jtok.models.generation_config import GenerationConfig
from jtok.models.model import Model, parsed, split_layers
from jtok.models.processor import load_processor
from jtok.ops.sharding import (
    abstract_tree,
    check_split,
    entered_mesh,
    onto_mesh,
    sharding_for,
)
from jtok.text import Vocabulary

__all__ = ["abstract", "config_from", "init", "load", "save"]

PyTree = Any
_DTYPES = ("float32", "bfloat16")
_UNEMBED = ("unembed/kernel",)

# Logical names of the axes of a parameter, by the end of its path.
_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("router/kernel", ("embed", None)),
    ("expert_gate/kernel", ("experts", "embed", "mlp")),
    ("expert_up/kernel", ("experts", "embed", "mlp")),
    ("expert_down/kernel", ("experts", "mlp", "embed")),
    ("embed/tokens", ("vocab", "embed")),
    ("embed/extra", (None, "embed")),
    ("embed/vectors", (None, "embed")),
    # An adapter's inner axis stays whole.
    ("query/lora_b", (None, "heads")),
    ("key/lora_b", (None, "kv_heads")),
    ("value/lora_b", (None, "kv_heads")),
    ("out/lora_a", ("heads", None)),
    ("gate/lora_b", (None, "mlp")),
    ("up/lora_b", (None, "mlp")),
    ("down/lora_a", ("mlp", None)),
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


def axis_units(config: Any) -> dict[str, int]:
    """What devices share as wholes: fewer key-value heads than devices stay whole."""
    names = {"heads": "num_heads", "kv_heads": "num_kv_heads"}
    return {axis: getattr(config, name, 1) for axis, name in names.items()}


def check_mesh(config: Any) -> None:
    """Refuses a mesh that does not divide the heads; not every model has any."""
    if hasattr(config, "num_heads"):
        check_split("heads", config.num_heads)


def place_params(params: PyTree, config: Any) -> PyTree:
    """Parameters on the current mesh; those that lie on it keep their layout.

    Raises:
      ArgumentError: the mesh does not divide the heads.
    """
    check_mesh(config)
    return onto_mesh(params, param_axes(params), units=axis_units(config))


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
      CheckpointError: a field is missing, or of a type that it cannot have.
      ArgumentError: another `dtype`, or sizes that contradict each other.

    Example:
      >>> from jtok.testing import tiny_model
      >>> from jtok.models.families import FAMILIES
      >>> fields = FAMILIES["llama"].write(tiny_model().config)
      >>> config_from(fields).width
      32
    """
    fields = fields if isinstance(fields, Fields) else Fields(fields)
    stored = str(fields.get("dtype") or fields.get("torch_dtype") or "float32")
    if dtype is None:
        dtype = "bfloat16" if stored.endswith("bfloat16") else "float32"
    check(dtype in _DTYPES, "dtype", dtype, " or ".join(map(repr, _DTYPES)))
    family = family_of(fields, where=fields.where)
    try:
        translated = family.read(fields.checked())
    except KeyError as missing:  # from a copy of the fields
        raise CheckpointError(f"{fields.where}: there is no field {missing}.") from None
    except UnsupportedCheckpointError as error:  # families do not know the file
        raise UnsupportedCheckpointError(f"{fields.where}: {error}") from None
    check_types(translated, family.config, where=fields.where)
    try:
        config = family.config(
            family=fields["model_type"],
            dtype=dtype,
            source=json.dumps(fields),
            **translated,
        )
    except ArgumentError as error:
        raise ArgumentError(f"{fields.where}: {error}") from error
    if isinstance(config, nn.DecoderConfig):
        _check_rotary(config, fields.where)
    return config


def _check_rotary(config: nn.DecoderConfig, where: str) -> None:
    """Refuses a scaling that lacks numbers, or gives none."""
    if getattr(config, "positions", None) != "rotary":
        return
    try:
        with np.errstate(all="ignore"):
            found = nn.rotary_frequencies(64, config.rope_theta, config.rotary_scaling)
    except KeyError as missing:
        raise CheckpointError(f"{where}: the rotary scaling lacks {missing}.") from None
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"{where}: rope_theta={config.rope_theta} and {config.rotary_scaling} give "
            "frequencies that are not finite."
        )


def _init_params(config: Any, key: jax.Array) -> PyTree:
    return backbone_of(config).init_params(config, key)


def init_decoder(config: nn.DecoderConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    keys = jax.random.split(key, config.num_layers + 3)
    vocab, x = config.vocab_size, jnp.zeros((1, 1, config.width), config.dtype)
    embed = {"tokens": _normal(keys[0], (vocab, config.width), config.dtype)}
    if config.positions == "learned":
        shape = (config.max_positions, config.width)
        embed["positions"] = _normal(keys[1], shape, config.dtype)
    layers = [
        _init_layer(config, config.sparse(index), key)
        for index, key in enumerate(keys[3:])
    ]
    params = {
        "embed": embed,
        "layers": tuple(layers),
        "final_norm": nn.Norm(config).init(keys[2], x)["params"],
    }
    if not config.tied:
        kernel = _normal(keys[2], (vocab, config.width), config.dtype)
        params["unembed"] = {"kernel": kernel}
    return params


# Compiled once for all layers of a kind: together they take a GPU's compiler minutes.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_layer(config: nn.DecoderConfig, sparse: bool, key: jax.Array) -> PyTree:
    x = jnp.zeros((1, 1, config.width), config.dtype)
    positions = jnp.zeros((1, 1), jnp.int32)
    heads = (1, 1, config.num_heads, config.head_dim)
    attend = lambda q, k, v: (jnp.zeros(heads, q.dtype), (k, v))
    block = nn.Block(config, sparse)
    made = block.init(key, x, positions, attend, lambda _, value: value)["params"]
    # Residual branches start small, so that depth does not change the scale.
    shrink = (2 * config.num_layers) ** -0.5
    for branch in (made["out"], made["mlp"]["expert_down" if sparse else "down"]):
        branch["kernel"] = branch["kernel"] * jnp.asarray(shrink, config.dtype)
    return made


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return (0.02 * jax.random.normal(key, shape)).astype(dtype)


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
      ArgumentError: the mesh does not divide the heads. (Fewer key-value heads than
        devices are no fault: each device then has all of them.)

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
    check_mesh(config)
    with entered_mesh() as mesh:
        # Each device makes its own part: no device need hold the whole.
        shapes = abstract(config).params
        shardings = None if mesh is None else jax.tree.map(lambda x: x.sharding, shapes)
        make = _init_params
        if mesh is not None:
            make = jax.jit(_init_params, static_argnums=0, out_shardings=shardings)
        params = make(config, onto_mesh(key))
    params = place_params(params, config)
    generation = GenerationConfig()
    if vocabulary is not None and "eos" in vocabulary.special:
        generation = GenerationConfig((vocabulary.special["eos"],))
    return Model(params, config, vocabulary, generation_config=generation)


def abstract(config: Any) -> Model:
    """A model of shapes without numbers, laid out on the current mesh.

    For compiling ahead of time: the mesh may be of devices that are not here, and the
    model larger than this machine.

    Args:
      config: as for `init`.

    Returns:
      `Model` whose parameters are `jax.ShapeDtypeStruct`s, split by layer.

    Raises:
      ArgumentError: the mesh does not divide the heads.

    Example:
      >>> from jtok.testing import tiny_config
      >>> abstract(tiny_config()).params["embed"]["tokens"].shape
      (96, 32)
    """
    made = config_from(config) if isinstance(config, Mapping) else config
    check_mesh(made)
    shapes = jax.eval_shape(lambda: _init_params(made, jax.random.key(0)))
    axes, units = param_axes(shapes), axis_units(made)
    return Model(abstract_tree(shapes, axes, units=units), made)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    compress: Any = None,
) -> Model:
    """Loads a hub id or a folder in the Hugging Face format, onto the current mesh.

    Every tensor is checked against the configuration before one is read; each device
    is given its part of each, so that no process holds a sharded tensor whole. Layers
    come split, ready for decoding.

    Args:
      name_or_path: a folder, or a hub id such as "Qwen/Qwen2.5-0.5B".
      dtype: "float32" or "bfloat16"; None keeps the dtype of the file (float16
        becomes float32).
      revision: branch, tag or commit on the hub.
      token: for gated repositories.
      local_files_only: use only what was downloaded before.
      compress: what its layers do with tokens where a call says nothing else, see
        `Model`; decoders of text have no place for one.

    Returns:
      `Model` with vocabulary and processor (None where the folder has none) and
      generation configuration.

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
    # Of a folder that is replaced meanwhile, all files are of one version.
    with files.folder_lock(folder, shared=True):
        fields = storage.read_config(folder)
        family = family_of(fields, where=fields.where)
        vocabulary = _load_vocabulary(folder)
        generation = _generation(folder, fields)
        make_processor = lambda config: load_processor(folder, config, vocabulary)
        opened = storage.TensorFiles.open(folder)
    with opened as tensors:
        config = config_from(fields, dtype=dtype or _stored_dtype(tensors))
        _check_sizes(config, tensors, fields.where)  # first: others list what fits
        check_mesh(config)
        check_compressor(compress, config)
        _check_vocabulary(vocabulary, config, str(folder))
        processor = make_processor(config)
        shapes = jax.eval_shape(lambda: _init_params(config, jax.random.key(0)))
        plan = tuple(weights.plan_tensors(family.weights, shapes, config))
        known = frozenset(planned.name for planned in plan)
        found = {_table_name(name, known, family): name for name in tensors.names()}
        heads = (row.name for row in family.weights if row.paths == _UNEMBED)
        ignored = (*family.ignored, *(heads if config.tied else ()))
        weights.check_names(
            {name: tensors.shape(file) for name, file in found.items()},
            plan,
            shapes,
            ignored=ignored,
            where=str(folder),
        )
        params = _read_params(tensors, plan, found, shapes, config)
    return Model(params, config, vocabulary, processor, generation, compress)


def _check_sizes(config: Any, tensors: storage.TensorFiles, where: str) -> None:
    """Refuses sizes that no tensor can have, before anything of that size is made."""
    numbers = sum(math.prod(tensors.shape(name)) for name in tensors)
    names: tuple[str, ...] = ("vocab_size", "width", "mlp_width")
    names += ("num_experts", "expert_width")
    names += ("inner_width", "state_size", "conv_size", "dt_rank")
    # Not every kind of model has all of these.
    extents = {name: getattr(config, name, None) or 0 for name in names}
    heads = getattr(config, "num_heads", 0) * getattr(config, "head_dim", 0)
    extents["num_heads * head_dim"] = heads
    if getattr(config, "positions", None) == "learned":
        extents["max_positions"] = config.max_positions
    problems = [
        f"{name}={extent}, and the files hold {numbers} numbers"
        for name, extent in extents.items()
        if extent > numbers
    ]
    if config.num_layers > len(tensors):
        problems.append(
            f"num_layers={config.num_layers}, and the files hold {len(tensors)} tensors"
        )
    if problems:
        raise CheckpointError(f"{where}: its fields give {'; '.join(problems)}.")


def _table_name(name: str, known: frozenset[str], family: Any) -> str:
    """Adds what some files leave out (GPT-2 on the hub), and cuts what old ones add."""
    if name in known:
        return name
    others = (family.prefix + name, name.replace(family.older, "", 1))
    return next((other for other in others if other in known), name)


def _stored_dtype(tensors: storage.TensorFiles) -> str:
    kinds = {str(tensors.dtype(name)) for name in tensors.names()}
    return "bfloat16" if kinds == {"bfloat16"} else "float32"


def _read_params(
    tensors: storage.TensorFiles,
    plan: tuple[Any, ...],
    found: dict[str, str],
    shapes: PyTree,
    config: Any,
) -> PyTree:
    """Reads every parameter, of each only what the devices of this process hold."""
    axes, units = param_axes(shapes), axis_units(config)
    sources = weights.sources_of(plan)
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    order = [tuple(getattr(p, "key", getattr(p, "idx", p)) for p in k) for k, _ in flat]
    leaves: dict[tuple[Any, ...], jax.Array] = {}
    # The largest first, as each is held twice for a moment: here and on its device.
    for key in sorted(order, key=lambda key: -weights.get(shapes, key).size):
        leaf = weights.get(shapes, key)

        def read(index: tuple[slice, ...], key: Any = key) -> np.ndarray:
            view = lambda name: tensors.view(found[name])
            return weights.read_part(sources[key], index, shapes, config.dtype, view)

        names = weights.get(axes, key)
        sharding = sharding_for(names, shape=leaf.shape, units=units)
        leaves[key] = _placed(read, leaf.shape, sharding)
    return jax.tree.unflatten(treedef, [leaves[key] for key in order])


def _placed(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    shape: tuple[int, ...],
    sharding: Any,
) -> jax.Array:
    """An array whose shards are read one after the other, each part of it once."""
    # Without aliasing, as jax may otherwise keep the host's copy for the array's.
    if sharding is None:
        whole = read(tuple(slice(0, extent) for extent in shape))
        return jax.block_until_ready(jax.device_put(whole, may_alias=False))
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        spans = tuple(part.indices(extent)[:2] for part, extent in zip(index, shape))
        holders.setdefault(spans, []).append(device)
    shards = []
    for spans, devices in holders.items():
        part = read(tuple(slice(*span) for span in spans))
        for device in devices:
            shard = jax.device_put(part, device, may_alias=False)
            shards.append(jax.block_until_ready(shard))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _load_vocabulary(folder: pathlib.Path) -> Vocabulary | None:
    try:
        return Vocabulary.load(folder)
    except MissingFileError:
        return None


def _check_vocabulary(vocabulary: Vocabulary | None, config: Any, where: str) -> None:
    rows = getattr(config, "vocab_size", None)  # towers of images have none
    if vocabulary is not None and rows is not None and vocabulary.size > rows:
        raise VocabMismatchError(
            f"{where}: the tokenizer has {vocabulary.size} ids, the embedding "
            f"{rows} rows; expected at most as many ids as rows."
        )


def _generation(folder: pathlib.Path, fields: dict[str, Any]) -> GenerationConfig:
    generation = storage.read_generation_config(folder)
    read = GenerationConfig.from_dict(fields if generation is None else generation)
    if generation is None:
        return read
    source = read_text(folder / "generation_config.json")
    if not read.eos_token_ids:
        fallback = GenerationConfig.from_dict(fields)
        read = dataclasses.replace(read, eos_token_ids=fallback.eos_token_ids)
    return dataclasses.replace(read, source=source)


def save(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int | float = 5_000_000_000,
) -> None:
    """Saves a folder that `load` and `transformers` read, replacing one that is there.

    What was loaded and not changed is written as it was, tensor for tensor. A kill at
    any moment leaves the old folder or the new one. With several processes all call
    it: tensors are gathered one at a time, process 0 writes, and all return together.

    Args:
      model: with split or stacked layers.
      folder: the folder to make; an existing one must hold a checkpoint.
      dtype: "float32" or "bfloat16" to round or widen to; None keeps the model's.
      max_shard_bytes: bytes after which the tensors go on in another file.

    Raises:
      ArgumentError: another `dtype`, no room for a byte in a shard, or a model with
        adapters, mask tokens or vectors, for which the format has no place.
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
    if dtype is not None:
        check(dtype in _DTYPES, "dtype", dtype, " or ".join(map(repr, _DTYPES)))
        config = dataclasses.replace(model.config, dtype=dtype)
        model = dataclasses.replace(model, config=config)
    params = split_layers(model.params)
    _refuse_adapters(params)
    family = FAMILIES[model.config.family]
    plan = weights.plan_tensors(family.weights, params, model.config)
    named = ((item.name, weights.to_tensor(item, params)) for item in plan)
    write = lambda: _write(model, folder, named, dtype, max_shard_bytes)
    storage.write_together(write, folder, gathered=named)


_BESIDE = ("/lora_a", "embed/extra", "embed/vectors")


def _refuse_adapters(params: PyTree) -> None:
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = (
        "/".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in key)
        for key, _ in flat
    )
    more = [name for name in names if name.endswith(_BESIDE)]
    if more:
        raise ArgumentError(
            f"model: got parameters with {more[0]!r}, which a checkpoint has no place "
            "for, expected a plain model: merge adapters (jtok.predict.merge), or save "
            "them beside it (jtok.predict.save_adapters) and detach them."
        )


def _write(
    model: Model,
    folder: Any,
    named: Iterator[tuple[str, np.ndarray]],
    dtype: str | None,
    max_shard_bytes: int | float,
) -> None:
    with files.replace_folder(folder, marker="config.json") as staged:
        tensors: Iterator[tuple[str, np.ndarray]] = named
        if dtype is not None:
            tensors = ((name, x.astype(jnp.dtype(dtype))) for name, x in named)
        storage.write_tensors(staged, tensors, max_shard_bytes=max_shard_bytes)
        text = json.dumps(_fields(model), indent=2, sort_keys=True) + "\n"
        files.write_atomic(staged / "config.json", text)
        if model.generation_config and (source := model.generation_config.to_json()):
            files.write_atomic(staged / "generation_config.json", source)
        if model.vocabulary is not None:
            model.vocabulary.save(staged)
        if model.processor is not None:
            model.processor.save(staged)


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
