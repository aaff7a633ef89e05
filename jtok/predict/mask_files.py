"""What was trained for mask tokens, on disk: PEFT's two files and one beside them."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files
from jtok.errors import CheckpointError, check
from jtok.models import Model, storage
from jtok.nn import DecoderConfig
from jtok.ops.sharding import to_host
from jtok.predict.adapter_files import load_adapters, save_with
from jtok.predict.adapters import decoder_config
from jtok.predict.sampler import sampler_init

__all__ = ["load_masks", "save_masks"]

PyTree = Any
_STEM = "mask_tokens"
_PATTERNS = (
    "adapter_config.json",
    "adapter_model*.safetensors*",
    f"{_STEM}*.safetensors*",
)


def save_masks(
    trained: PyTree,
    folder: str | os.PathLike[str],
    model: Any,
    *,
    scale: int | float = 1.0,
    base: str = "",
) -> None:
    """Saves adapters as PEFT does, with masks and sampler in `mask_tokens.safetensors`.

    A kill at any moment leaves the old folder or the new one.

    Args:
      trained: as `mask_init` makes it.
      folder: the folder to make; an existing one must hold adapters.
      model: what they are for, a decoder's `Model` or `DecoderConfig`.
      scale: factor on the adapters' change.
      base: hub id of the base model, for other libraries.

    Raises:
      ArgumentError: something of another model.
      WriteError: the folder cannot be written; what was there still is.

    Example:
      >>> import tempfile
      >>> from jtok.predict.mask_tokens import mask_init
      >>> from jtok.testing import tiny_model
      >>> folder, model = tempfile.mkdtemp() + "/masks", tiny_model()
      >>> save_masks(mask_init(model, 3, 2, jax.random.key(0)), folder, model)
      >>> load_masks(folder, model)[0]["masks"].shape
      (3, 32)
    """
    width = decoder_config(model).width
    wanted = _shapes(trained["masks"].shape[0], width)
    tensors = {name: to_host(x) for name, x in _named(trained).items()}
    for name, tensor in tensors.items():
        good = wanted.get(name) == tensor.shape
        check(good, "trained", f"{name} of shape {tensor.shape}", f"{wanted.get(name)}")

    def more(staged: pathlib.Path) -> None:
        storage.write_tensors(staged, tensors, stem=_STEM)

    save_with(trained["adapters"], folder, model, scale=scale, base=base, more=more)


def load_masks(
    name_or_path: str | os.PathLike[str],
    model: Model | DecoderConfig,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[PyTree, float]:
    """Loads what `save_masks` saved.

    Args:
      name_or_path: a folder, or a hub id.
      model: what it is for.
      revision: branch, tag or commit on the hub.
      token: for gated repositories.
      local_files_only: use only what was downloaded before.

    Returns:
      What `with_masks` takes, in float32, and its scale.

    Raises:
      CheckpointError: a file is damaged or of another model; all tensors at fault are
        listed.
      MissingFileError: a file is not there.
      UnsupportedCheckpointError: as `load_adapters`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> load_masks("/nowhere/at/all", tiny_model())
      Traceback (most recent call last):
      jtok.errors.ArgumentError: name_or_path: got '/nowhere/at/all', expected an \
existing folder, or a hub id such as 'org/name'.
    """
    folder = storage.resolve(
        name_or_path,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
        patterns=_PATTERNS,
    )
    width = decoder_config(model).width
    with files.folder_lock(folder, shared=True):
        adapters, scale = load_adapters(folder, model)
        opened = storage.TensorFiles.open(folder, stem=_STEM)
    with opened as tensors:
        found = {name: tensors.read(name) for name in tensors.names()}
    masks = found.get("masks", np.zeros((0, 0)))
    # Without a single mask the wanted shape says what is wrong.
    wanted = _shapes(max(1, masks.shape[0]) if masks.ndim else 1, width)
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [
        f"{name} has shape {list(x.shape)}, expected {list(wanted.get(name, ()))}"
        for name, x in found.items()
        if wanted.get(name) != x.shape
    ]
    if problems:
        text = "; ".join(problems[:12])
        raise CheckpointError(f"{folder}: not of this model of width {width}: {text}.")
    flat, tree = jax.tree_util.tree_flatten_with_path(_sampler_shapes(width))
    leaves = [jnp.asarray(found[_name(path)], jnp.float32) for path, _ in flat]
    sampler, rows = jax.tree.unflatten(tree, leaves), jnp.asarray(masks, jnp.float32)
    return {"adapters": adapters, "masks": rows, "sampler": sampler}, scale


def _name(path: Any) -> str:
    return ".".join(["sampler", *(part.key for part in path)])


def _named(trained: PyTree) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(trained["sampler"])[0]
    return {"masks": trained["masks"], **{_name(path): x for path, x in flat}}


def _sampler_shapes(width: int) -> PyTree:
    return jax.eval_shape(lambda: sampler_init(width, jax.random.key(0)))


def _shapes(count: int, width: int) -> dict[str, tuple[int, ...]]:
    masks = jax.ShapeDtypeStruct((count, width), np.float32)  # no memory: any count
    fake = {"masks": masks, "sampler": _sampler_shapes(width)}
    return {name: tuple(x.shape) for name, x in _named(fake).items()}
