"""Adapters on disk, in the format of PEFT: other libraries read them, and ours theirs.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, whose tensors are
named after the base model's own. Families that fuse linear maps on disk (phi3, gpt2,
gpt_neox) keep one adapter for the fused map; it is split, or put together, exactly.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files
from jtok.errors import CheckpointError, UnsupportedCheckpointError, check
from jtok.models import FAMILIES, split_layers, storage
from jtok.models.fields import read_object
from jtok.nn import DecoderConfig
from jtok.ops.sharding import to_host
from jtok.predict.adapters import (
    as_stacked,
    decoder_config,
    flatten,
    kernel_shapes,
    nest,
)

__all__ = ["load_adapters", "save_adapters"]

PyTree = Any
_CONFIG, _STEM, _PREFIX = "adapter_config.json", "adapter_model", "base_model.model."
_PATTERNS = ("adapter_config.json", "adapter_model*.safetensors*")
# Options that change numbers in a way that jtok does not compute.
_USUAL = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
}


class Fused(NamedTuple):
    """One linear map as the file has it.

    Attributes:
      name: module, as the base model calls it.
      layer: its layer.
      paths: names of the maps that it holds.
      groups: how often they take turns on the last axis.
    """

    name: str
    layer: int
    paths: tuple[str, ...]
    groups: int


def save_adapters(
    adapters: PyTree,
    folder: str | os.PathLike[str],
    model: Any,
    *,
    scale: int | float = 1.0,
    base: str = "",
) -> None:
    """Saves adapters as PEFT does, replacing a folder of adapters that is there.

    A kill at any moment leaves the old folder or the new one.

    Args:
      adapters: as `lora_init` makes them, in either form.
      folder: the folder to make.
      model: what they are for.
      scale: factor on the change, more than 0; written as alpha / rank.
      base: hub id of the base model, for other libraries.

    Raises:
      ArgumentError: adapters of another model, or a scale out of range.
      WriteError: the folder cannot be written; what was there still is.

    Example:
      >>> import os, tempfile
      >>> from jtok.predict.adapters import lora_init
      >>> from jtok.testing import tiny_model
      >>> folder = tempfile.mkdtemp() + "/adapter"
      >>> save_adapters(lora_init(tiny_model(), 2, jax.random.key(0)), folder,
      ...               tiny_model())
      >>> sorted(os.listdir(folder))
      ['adapter_config.json', 'adapter_model.safetensors']
    """
    save_with(adapters, folder, model, scale=scale, base=base)


def save_with(
    adapters: PyTree,
    folder: str | os.PathLike[str],
    model: Any,
    *,
    scale: int | float,
    base: str,
    more: Callable[[pathlib.Path], None] = lambda staged: None,
) -> None:
    """`save_adapters`, where `more` writes further files into the same folder."""
    config = decoder_config(model)
    check(scale > 0, "scale", scale, "more than 0")
    tensors = _tensors(adapters, config)
    text = json.dumps(_fields(tensors, config, scale, base), indent=2) + "\n"

    def write() -> None:
        with files.replace_folder(folder, marker=_CONFIG) as staged:
            named = {name: x for pair in tensors.values() for name, x in pair.items()}
            storage.write_tensors(staged, named, stem=_STEM)
            more(staged)
            files.write_atomic(staged / _CONFIG, text)

    storage.write_together(write, folder)


def load_adapters(
    name_or_path: str | os.PathLike[str],
    model: Any,
    *,
    rank: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[PyTree, float]:
    """Loads adapters that this library or PEFT saved.

    Args:
      name_or_path: a folder, or a hub id.
      model: what they are for.
      rank: what the file must say; None takes any.
      revision: branch, tag or commit on the hub.
      token: for gated repositories.
      local_files_only: use only what was downloaded before.

    Returns:
      Adapters in float32, as `lora_init` makes them, and the scale for `attach`.
      Modules with a rank or an alpha of their own are brought to the common ones:
      zeros fill up, and `lora_b` takes the factor.

    Raises:
      CheckpointError: a file is damaged, another rank than `rank`, or adapters of
        another architecture; all tensors at fault are listed.
      MissingFileError: a file is not there.
      UnsupportedCheckpointError: no LoRA, or a variant of it that changes the sum.

    Example:
      >>> import tempfile
      >>> from jtok.predict.adapters import lora_init
      >>> from jtok.testing import tiny_model
      >>> folder = tempfile.mkdtemp() + "/adapter"
      >>> made = lora_init(tiny_model(), 2, jax.random.key(0))
      >>> save_adapters(made, folder, tiny_model(), scale=4.0)
      >>> load_adapters(folder, tiny_model(), rank=2)[1]
      4.0
    """
    config = decoder_config(model)
    folder = storage.resolve(
        name_or_path,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
        patterns=_PATTERNS,
    )
    with files.folder_lock(folder, shared=True):
        fields = _read_fields(folder / _CONFIG, rank)
        opened = storage.TensorFiles.open(folder, stem=_STEM)
    with opened as tensors:
        found = {name: tensors.read(name) for name in tensors.names()}
    scale = _scale(fields, fields["lora_alpha"], fields["r"])
    return _adapters(found, config, fields, scale, str(folder)), scale


# ---- names


def _modules(config: DecoderConfig) -> Iterator[Fused]:
    """Every linear map of the base model's file that takes an adapter."""
    shapes = kernel_shapes(config)
    for weight in FAMILIES[config.family].weights:
        ends = tuple(path.removesuffix("/kernel") for path in weight.paths)
        if not weight.per_layer or weight.per_expert or ends == weight.paths:
            continue
        names = tuple(path.rsplit("/", 1)[-1] for path in ends)
        groups = config.num_heads if weight.by_head else 1
        for layer in range(config.num_layers):
            if all(name in shapes[layer] for name in names):
                name = weight.name.format(layer=layer).removesuffix(".weight")
                yield Fused(name, layer, names, groups)


def _keys(name: str) -> tuple[str, str]:
    return f"{_PREFIX}{name}.lora_A.weight", f"{_PREFIX}{name}.lora_B.weight"


# ---- writing


def _tensors(
    adapters: PyTree, config: DecoderConfig
) -> dict[str, dict[str, np.ndarray]]:
    """For each module its two tensors, `[rank, in]` and `[out, rank]`."""
    layers = [flatten(layer) for layer in split_layers(adapters)["layers"]]
    good = len(layers) == config.num_layers
    check(good, "adapters", f"{len(layers)} layers", f"{config.num_layers}")
    shapes = kernel_shapes(config)
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for index, layer in enumerate(layers):
        for name, adapter in layer.items():
            there = shapes[index].get(name)
            down, up = adapter["lora_a"].shape, adapter["lora_b"].shape
            got = f"layers/{index}/{name} of shapes {down} and {up}"
            good = there == (down[0], up[-1]) and down[1:] == up[:1]
            check(good, "adapters", got, f"sides {there}, as the model has")
    for module in _modules(config):
        held = [layers[module.layer].get(name) for name in module.paths]
        if any(held):
            sides = [shapes[module.layer][name][1] for name in module.paths]
            tensors[module.name] = _joined(module, held, sides)
    check(bool(tensors), "adapters", "none", "at least one linear map")
    return tensors


def _joined(module: Fused, held: list[Any], sides: list[int]) -> dict[str, np.ndarray]:
    """One adapter for maps that stand side by side: blocks, or a common `lora_a`."""
    some = [(None if x is None else jax.tree.map(to_host, x)) for x in held]
    downs = [x["lora_a"] for x in some if x is not None]
    common = all(np.array_equal(downs[0], down) for down in downs[1:])
    rank = downs[0].shape[1] if common else sum(down.shape[1] for down in downs)
    ups: list[np.ndarray] = []
    start = 0
    for adapter, side in zip(some, sides):
        up = np.zeros((rank, side), downs[0].dtype)
        if adapter is not None:
            size = adapter["lora_b"].shape[0]
            up[start : start + size] = adapter["lora_b"]
            start += 0 if common else size
        ups.append(up.reshape(rank, module.groups, -1))
    whole = np.concatenate(ups, axis=-1).reshape(rank, -1)
    down = downs[0] if common else np.concatenate(downs, axis=1)
    return {
        key: np.ascontiguousarray(x.T)
        for key, x in zip(_keys(module.name), (down, whole))
    }


def _fields(
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    config: DecoderConfig,
    scale: int | float,
    base: str,
) -> dict[str, Any]:
    ranks = {name: pair[_keys(name)[0]].shape[0] for name, pair in tensors.items()}
    common = min(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": common,
        "lora_alpha": scale * common,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": config.family == "gpt2",
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in tensors}),
        "rank_pattern": others,
        "alpha_pattern": {name: scale * rank for name, rank in others.items()},
    }


# ---- reading


def _read_fields(file: pathlib.Path, rank: int | None) -> dict[str, Any]:
    fields = dict(read_object(file))
    for name, usual in _USUAL.items():
        if (found := fields.get(name, usual)) != usual and found:
            raise UnsupportedCheckpointError(
                f"{file}: {name}={found!r} is not supported, only {usual!r}."
            )
    r: Any = fields.get("r")
    alpha: Any = fields.get("lora_alpha")
    good = type(r) is int and r >= 1
    good = good and isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not good or not alpha > 0:
        raise CheckpointError(
            f"{file}: r={r!r}, lora_alpha={alpha!r}, expected a count and a number "
            "above 0."
        )
    if rank is not None and r != rank:
        raise CheckpointError(f"{file}: r={r}, expected rank {rank}.")
    return fields


def _scale(fields: Mapping[str, Any], alpha: int | float, rank: int) -> float:
    return float(alpha / (rank**0.5 if fields.get("use_rslora") else rank))


def _own(pattern: Any, name: str, usual: Any) -> Any:
    """What a table of patterns says of a module; the first that fits decides."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return usual


def _adapters(
    found: dict[str, np.ndarray],
    config: DecoderConfig,
    fields: Mapping[str, Any],
    scale: int | float,
    where: str,
) -> PyTree:
    prefix, shapes = FAMILIES[config.family].prefix, kernel_shapes(config)
    layers: list[dict[str, Any]] = [{} for _ in range(config.num_layers)]
    problems, left = [], dict(found)
    for module in _modules(config):
        keys = _keys(module.name)
        if prefix and keys[0] not in left:
            keys = _keys(module.name.removeprefix(prefix))
        pair = [left.pop(key, None) for key in keys]
        if pair[0] is None and pair[1] is None:
            continue
        rank = _own(fields.get("rank_pattern"), module.name, fields["r"])
        sides = [shapes[module.layer][name] for name in module.paths]
        wanted = ((rank, sides[0][0]), (sum(side[1] for side in sides), rank))
        for key, tensor, shape in zip(keys, pair, wanted):
            if tensor is None:
                problems.append(f"missing {key} {list(shape)}")
            elif tensor.shape != shape:
                got = list(tensor.shape)
                problems.append(f"{key} has shape {got}, expected {list(shape)}")
        if problems:
            continue
        alpha = _own(fields.get("alpha_pattern"), module.name, fields["lora_alpha"])
        ratio = _scale(fields, alpha, rank) / scale
        layers[module.layer].update(_split(module, pair, sides, ratio))
    problems += [f"unknown {name} {list(x.shape)}" for name, x in left.items()]
    if problems or not any(layers):
        shown = "; ".join(problems[:12]) or "no tensor"
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise CheckpointError(
            f"{where}: these adapters are not of this {config.family} with "
            f"{config.num_layers} layers of width {config.width}: {shown}{more}."
        )
    return as_stacked({"layers": _filled(layers, shapes)})


def _split(
    module: Fused, pair: list[Any], sides: list[tuple[int, int]], ratio: float
) -> dict[str, Any]:
    """The adapters of the maps that stand side by side in one."""
    down, up = (np.asarray(x, np.float32).T for x in pair)
    parts = up.reshape(up.shape[0], module.groups, -1)
    sizes = [side[1] // module.groups for side in sides]
    cuts = np.split(parts, np.cumsum(sizes)[:-1], axis=-1)
    return {
        name: _trimmed(down, ratio * cut.reshape(up.shape[0], -1))
        for name, cut in zip(module.paths, cuts)
    }


def _trimmed(down: np.ndarray, up: np.ndarray) -> dict[str, np.ndarray]:
    """Without inner dimensions that do nothing here, unless all do nothing."""
    used = up.any(axis=1)
    kept = used if used.any() and len(up) > 1 else np.ones_like(used)
    return {"lora_a": down[:, kept], "lora_b": up[kept]}


def _filled(
    layers: list[dict[str, Any]], shapes: list[dict[str, tuple[int, int]]]
) -> tuple[PyTree, ...]:
    """Every layer with the same maps and inner sizes: zeros fill up."""
    ranks: dict[str, int] = {}
    for layer in layers:
        for name, adapter in layer.items():
            ranks[name] = max(ranks.get(name, 0), adapter["lora_a"].shape[1])

    def full(index: int, name: str) -> PyTree:
        rows, columns = shapes[index][name]
        empty = {"lora_a": np.zeros((rows, 0)), "lora_b": np.zeros((0, columns))}
        adapter = layers[index].get(name, empty)
        more = ranks[name] - adapter["lora_a"].shape[1]
        down = np.pad(adapter["lora_a"], ((0, 0), (0, more)))
        up = np.pad(adapter["lora_b"], ((0, more), (0, 0)))
        pair = {"lora_a": down, "lora_b": up}
        return {key: jnp.asarray(x, jnp.float32) for key, x in pair.items()}

    return tuple(
        nest({name: full(index, name) for name in ranks if name in shapes[index]})
        for index in range(len(layers))
    )
