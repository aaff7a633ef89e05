"""Draft stacks as folders, replaced whole or not at all.

A folder holds `draft.json` (what it is, its sizes, and which target it is for) and
`model.safetensors`. What belongs to the target is not in it.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from jtok import files, nn
from jtok.errors import (
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
)
from jtok.models import Model, storage
from jtok.ops.sharding import onto_mesh, to_host
from jtok.predict.fusing import Fusing, FusingConfig, base_of, fusing_axes, init_fusing
from jtok.predict.state_heads import (
    StateHeads,
    StateHeadsConfig,
    init_state_heads,
    state_heads_axes,
)

__all__ = ["load_draft", "save_draft"]

PyTree = Any
_FILE = "draft.json"
_KINDS = {"fusing": Fusing, "state_heads": StateHeads}


def save_draft(draft: Fusing | StateHeads, path: str | os.PathLike[str]) -> None:
    """Writes a draft stack as a folder; with several processes all must call it.

    Args:
      draft: the draft stack.
      path: the folder, made or replaced whole.

    Raises:
      ArgumentTypeError: something else than a draft stack.
      WriteError: the folder cannot be written, or holds something else.

    Example:
      >>> import tempfile
      >>> from jtok.testing import tiny_model
      >>> path = tempfile.mkdtemp() + "/draft"
      >>> save_draft(init_state_heads(tiny_model()), path)
      >>> load_draft(path, tiny_model()).config.steps
      4
    """
    kind = next((k for k, made in _KINDS.items() if isinstance(draft, made)), None)
    if kind is None:
        raise ArgumentTypeError(
            f"draft: got {type(draft).__name__}, expected a Fusing or StateHeads."
        )
    fields = {
        "kind": f"jtok.{kind}",
        "config": dataclasses.asdict(draft.config),
        "vocabulary": draft.vocabulary,
    }
    named = to_host(_named(draft.params))

    def write() -> None:
        with files.replace_folder(path, marker=_FILE) as staged:
            storage.write_tensors(staged, named)
            files.write_atomic(staged / _FILE, json.dumps(fields, indent=1) + "\n")

    storage.write_together(write, path)


def load_draft(path: str | os.PathLike[str], model: Model) -> Fusing | StateHeads:
    """Reads what `save_draft` wrote, for its target, onto the current mesh.

    Args:
      path: the folder.
      model: the target that it was trained for.

    Returns:
      `Fusing` or `StateHeads`, as it was saved.

    Raises:
      MissingFileError: there is no such folder, or a file of it is missing.
      CheckpointError: a file is damaged, or the weights contradict the sizes.
      VocabMismatchError: the target has another vocabulary or width.

    Example:
      >>> from jtok.testing import tiny_model
      >>> load_draft("nowhere", tiny_model())
      Traceback (most recent call last):
      jtok.errors.MissingFileError: path: there is no draft stack in nowhere.
    """
    folder = pathlib.Path(path).expanduser()
    files.recover_folder(folder)
    if not (folder / _FILE).is_file():
        raise MissingFileError(f"path: there is no draft stack in {folder}.")
    with files.folder_lock(folder, shared=True):
        kind, config, vocabulary = _described(folder / _FILE)
        opened = storage.TensorFiles.open(folder)
    with opened as tensors:
        _check_target(folder, config, vocabulary, model)
        shapes = _shapes(kind, config, model)
        params = _read(folder, tensors, shapes)
    base = base_of(model)
    if kind == "fusing":
        placed = onto_mesh(params, fusing_axes(params, config))
        return Fusing(placed, base, config, vocabulary)
    placed = onto_mesh(params, state_heads_axes(params))
    return StateHeads(placed, base, config, vocabulary)


def _named(params: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(part.key for part in path): leaf for path, leaf in leaves}


def _described(file: pathlib.Path) -> tuple[str, Any, str | None]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        kind = fields["kind"].removeprefix("jtok.")
        sizes = dict(fields["config"])
        if kind == "fusing":
            layer = {name: _hashable(x) for name, x in sizes.pop("layer").items()}
            made: Any = FusingConfig(layer=nn.DecoderConfig(**layer), **sizes)
        elif kind == "state_heads":
            made = StateHeadsConfig(**sizes)
        else:
            raise CheckpointError(f"{file}: holds a {kind!r}, no draft stack.")
        return kind, made, fields["vocabulary"]
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error}).") from None


def _hashable(value: Any) -> Any:
    """JSON turns the tuples of a configuration into lists."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _check_target(
    folder: pathlib.Path, config: Any, vocabulary: str | None, model: Model
) -> None:
    sizes = getattr(config, "layer", config)
    ours, theirs = (sizes.vocab_size, sizes.width), model.unembedding()[0].shape
    if ours != theirs:
        raise VocabMismatchError(
            f"model: it has {theirs[0]} ids and a width of {theirs[1]}, the draft "
            f"stack in {folder} is for {ours[0]} and {ours[1]}."
        )
    other = getattr(model.vocabulary, "hash", None)
    if vocabulary is not None and other is not None and vocabulary != other:
        raise VocabMismatchError(
            f"model: the draft stack in {folder} was made for another vocabulary."
        )


def _shapes(kind: str, config: Any, model: Model) -> PyTree:
    if kind == "fusing":
        make = lambda: init_fusing(model, jax.random.key(0), config).params
        return jax.eval_shape(make)
    options = {"steps": config.steps, "blocks": config.blocks, "heads": config.heads}
    made = jax.eval_shape(lambda: init_state_heads(model, **options).params)
    typed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.dtype)
    return jax.tree.map(typed, made)


def _read(folder: pathlib.Path, tensors: storage.TensorFiles, shapes: PyTree) -> PyTree:
    wanted = _named(shapes)
    problems = [f"lacks {name!r}" for name in wanted if name not in tensors]
    problems += [f"has {name!r}" for name in tensors.names() if name not in wanted]
    problems += [
        f"{name!r} has shape {tensors.shape(name)}, expected {leaf.shape}"
        for name, leaf in wanted.items()
        if name in tensors and tensors.shape(name) != leaf.shape
    ]
    if problems:
        raise CheckpointError(f"{folder}: {'; '.join(problems)}.")
    made = {
        name: jnp.asarray(tensors.read(name), x.dtype) for name, x in wanted.items()
    }
    treedef = jax.tree.structure(shapes)
    return jax.tree.unflatten(treedef, [made[name] for name in wanted])
