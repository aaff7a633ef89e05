"""The files of a checkpoint folder in the Hugging Face format; knows no model."""

import json
import math
import mmap
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from jtok import files
from jtok.errors import (
    ArgumentError,
    CheckpointError,
    JtokError,
    MissingFileError,
    UnsupportedCheckpointError,
    WriteError,
    check,
)
from jtok.models import _hub, _safetensors
from jtok.models.fields import Fields, read_object

__all__ = [
    "TensorFiles",
    "read_config",
    "read_generation_config",
    "resolve",
    "write_tensors",
]

PATTERNS = ("model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_INDEX = ".safetensors.index.json"
_REFUSED_ENDINGS = {
    ".gguf": "GGUF",
    ".bin": "a PyTorch pickle",
    ".pt": "a PyTorch pickle",
    ".pth": "a PyTorch pickle",
    ".ckpt": "a PyTorch or TensorFlow checkpoint",
    ".pkl": "a pickle",
    ".h5": "a Keras file",
    ".msgpack": "a Flax msgpack file",
}
_MAX_LISTED = 50  # problems of one message
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    patterns: Sequence[str] = PATTERNS,
) -> pathlib.Path:
    """Finds a checkpoint: a folder as it is, else a snapshot of a hub repository.

    A swap of the folder that was cut short is settled first.

    Args:
      name_or_path: a folder, or a hub id such as `"org/name"`. A folder goes first.
      revision: branch, tag or commit of a hub repository; None is its main branch.
      token: for gated repositories; None uses the one that the hub's tools stored.
      local_files_only: use only what was downloaded before.
      patterns: which files to download; the default takes no pickles.

    Returns:
      The folder.

    Raises:
      ArgumentError: neither a folder nor a valid hub id.
      CheckpointError: a folder that may not be read.
      MissingFileError: the repository, the revision or the network is not there.
      UnsupportedCheckpointError: a file in a format that jtok does not read.
      WriteError: the disk has no room for the download.

    Example:
      >>> import pathlib, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> resolve(folder) == pathlib.Path(folder)
      True
    """
    name = os.fspath(name_or_path)
    path = pathlib.Path(name).expanduser()
    check(bool(name), "name_or_path", name, "a folder or a hub id")
    if _is_file(path):
        _refuse_file(path)
        raise ArgumentError(
            f"name_or_path: got the file {name!r}, expected the folder it lies in."
        )
    try:
        files.recover_folder(path)
        if path.is_dir():
            return path
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    valid = _HUB_ID.fullmatch(name) and "--" not in name and ".." not in name
    check(
        bool(valid) and len(name) <= 96,
        "name_or_path",
        name,
        "an existing folder, or a hub id such as 'org/name'",
    )
    return _hub.download(name, revision, token, local_files_only, patterns)


def read_config(folder: str | os.PathLike[str]) -> Fields:
    """Reads `config.json`.

    Args:
      folder: the checkpoint.

    Returns:
      Its content, a dict whose fields are checked when they are asked for. Where the
      tensors beside it say that a bare encoder has no pooler, so does a field.

    Raises:
      CheckpointError: it is damaged.
      MissingFileError: it is not there.
      UnsupportedCheckpointError: it asks for code from the repository (`auto_map`),
        which is never run, or describes quantised weights.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "config.json").write_text('{"model_type": "llama"}')
      >>> read_config(folder)
      {'model_type': 'llama'}
    """
    file = pathlib.Path(folder) / "config.json"
    config = read_object(file)
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        if part.get("auto_map"):
            raise UnsupportedCheckpointError(
                f"{file}: asks for code from the repository (auto_map), which jtok "
                "never runs; expected a model_type that jtok knows and no auto_map."
            )
        if part.get("quantization_config"):
            raise UnsupportedCheckpointError(
                f"{file}: describes quantised weights (quantization_config); expected "
                "the unquantised checkpoint, in float32, bfloat16 or float16."
            )
    _say_pooler(file.parent, config)
    return config


# Families whose bare models usually have a pooler.
_POOLED = ("bert", "deit", "ernie", "roberta", "vit", "xlm-roberta")


def _say_pooler(folder: pathlib.Path, config: Fields) -> None:
    """Writes down of a bare encoder that its files have no pooler, as none else does.

    Whoever made the model without one passed that to its constructor.
    """
    plain = dict(config)
    kind, named = plain.get("model_type"), plain.get("architectures") or ["Model"]
    bare = isinstance(named, list) and str(named[0]).endswith("Model")
    if kind not in _POOLED or not bare or "add_pooling_layer" in config:
        return
    try:
        with TensorFiles.open(folder) as tensors:
            names = tensors.names()
    except JtokError:
        return  # `load` opens them again, and says what is wrong
    if not any(name.endswith("pooler.dense.weight") for name in names):
        config["add_pooling_layer"] = False


def read_generation_config(folder: str | os.PathLike[str]) -> Fields | None:
    """Reads `generation_config.json`.

    Args:
      folder: the checkpoint.

    Returns:
      Its content, or None where there is no such file.

    Raises:
      CheckpointError: it is damaged.

    Example:
      >>> import tempfile
      >>> read_generation_config(tempfile.mkdtemp()) is None
      True
    """
    file = pathlib.Path(folder) / "generation_config.json"
    return read_object(file) if os.path.lexists(file) else None


class TensorFiles:
    """The tensors of a checkpoint folder, checked as a whole and read one at a time.

    Files are mapped, so that only tensors that are read take memory, and a folder that
    is replaced meanwhile goes on giving what was opened. Also a context manager.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> write_tensors(folder, {"w": np.arange(4.0)})
      >>> with TensorFiles.open(folder) as tensors:
      ...     tensors.names(), tensors.read("w", slice(1, 3))
      (('w',), array([1., 2.]))
    """

    def __init__(
        self, folder: pathlib.Path, entries: dict[str, _safetensors.Entry], maps: dict
    ) -> None:
        """Use `open`."""
        self.folder = folder
        self._entries = entries
        self._maps = maps

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, stem: str = "model"
    ) -> "TensorFiles":
        """Opens `model.safetensors`, else the shards of `model.safetensors.index.json`.

        Every header is checked against its file, and the index against every shard,
        before anything is read; all problems are listed at once.

        Args:
          folder: the checkpoint.
          stem: what the names of its files begin with.

        Returns:
          The tensors.

        Raises:
          CheckpointError: a file is truncated or damaged, or the index and the shards
            disagree.
          MissingFileError: no weights, or no shard of the index's, are there.
          UnsupportedCheckpointError: weights in another format, or quantised.

        Example:
          >>> import tempfile
          >>> from jtok.errors import MissingFileError
          >>> try:
          ...     TensorFiles.open(tempfile.mkdtemp())
          ... except MissingFileError:
          ...     print("no weights")
          no weights
        """
        place = pathlib.Path(folder)
        whole, index = f"{stem}.safetensors", place / f"{stem}{_INDEX}"
        weight_map = None
        if _is_file(place / whole):
            shards = [whole]
        elif _is_file(index):
            weight_map = _read_weight_map(index)
            shards = sorted(set(weight_map.values()))
        else:
            _refuse_folder(place, stem)
        absent = [name for name in shards if not _is_file(place / name)]
        if absent:
            raise MissingFileError(
                f"{index}: {len(absent)} of its {len(shards)} shards are not "
                f"in the folder: {_listed(absent)}."
            )
        entries, maps = _open_shards(place, shards, weight_map, index.name)
        return cls(place, _renamed(entries), maps)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted.

        Returns:
          The names.
        """
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Args:
          name: the tensor.

        Returns:
          The shape.

        Raises:
          CheckpointError: there is no such tensor.
        """
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Element type of a tensor.

        Args:
          name: the tensor.

        Returns:
          The NumPy type; bfloat16 is that of `ml_dtypes`.

        Raises:
          CheckpointError: there is no such tensor.
        """
        return self._entry(name).dtype

    def read(self, name: str, index: Any = None) -> Shaped[np.ndarray, "..."]:
        """Reads a tensor, or a part of it, into memory of its own.

        Args:
          name: the tensor.
          index: slices or integers as for NumPy; only these elements are read.

        Returns:
          The array.

        Raises:
          CheckpointError: there is no such tensor.
        """
        view = self.view(name)
        return np.array(view if index is None else view[index])

    def view(self, name: str) -> Shaped[np.ndarray, "..."]:
        """A tensor as it lies in its mapped file, which takes no memory.

        Args:
          name: the tensor.

        Returns:
          A read-only array; it must be gone before `close`.

        Raises:
          CheckpointError: there is no such tensor.
        """
        entry = self._entry(name)
        return np.frombuffer(
            self._maps[entry.file],
            entry.dtype,
            count=math.prod(entry.shape),
            offset=entry.start,
        ).reshape(entry.shape)

    def close(self) -> None:
        """Lets go of the files."""
        for view in self._maps.values():
            view.close()
        self._maps.clear()
        self._entries.clear()

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _entry(self, name: str) -> _safetensors.Entry:
        if name not in self._entries:
            raise CheckpointError(
                f"{self.folder}: no tensor {name!r} among its {len(self)}."
            )
        return self._entries[name]


def write_together(
    write: Callable[[], None],
    folder: str | os.PathLike[str],
    *,
    gathered: Iterable[Any] = (),
) -> None:
    """Lets the first of all processes write; a failure there is one everywhere.

    Args:
      write: writes the folder; only the first process calls it.
      folder: for the message of the others.
      gathered: what `write` takes from all processes, one by one; the others draw it
        to its end, as does a first one that failed.

    Raises:
      WriteError: in the other processes, where the first could not write. The first
        raises its own error.

    Example:
      >>> written = []
      >>> write_together(lambda: written.append(1), "folder")
      >>> written
      [1]
    """
    if jax.process_count() == 1:
        write()
        return
    from jax.experimental import multihost_utils

    fault: Exception | None = None
    if jax.process_index() == 0:
        try:
            write()
        except Exception as error:
            fault = error
    for _ in gathered:
        pass
    good = multihost_utils.broadcast_one_to_all(np.int32(fault is None))
    if fault is not None:
        raise fault
    if not good:
        raise WriteError(f"folder: process 0 could not write {os.fspath(folder)!r}.")


def write_tensors(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Any] | Iterable[tuple[str, Any]],
    *,
    max_shard_bytes: int | float = 5_000_000_000,
    stem: str = "model",
) -> None:
    """Writes `model.safetensors`, or shards and an index, as `transformers` does.

    Not atomic by itself: write into a folder staged by `jtok.files.replace_folder`.

    Args:
      folder: an existing folder.
      tensors: name -> array (NumPy or JAX), or pairs; arrays go to the host one at a
        time, and of pairs one shard is held at a time.
      max_shard_bytes: bytes after which a new shard begins, except within a tensor.
      stem: what the names of the files begin with.

    Raises:
      ArgumentError: no tensors, a repeated name, or a type that the format lacks.
      WriteError: a file cannot be written.

    Example:
      >>> import os, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> write_tensors(folder, {"w": np.zeros(2, np.float16)})
      >>> os.listdir(folder)
      ['model.safetensors']
    """
    check(max_shard_bytes > 0, "max_shard_bytes", max_shard_bytes, "more than 0")
    place = pathlib.Path(folder)
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    weight_map: dict[str, int] = {}
    total = count = 0
    try:
        for count, shard in enumerate(_shards(pairs, max_shard_bytes), 1):
            _check_new(shard, weight_map)
            weight_map.update(dict.fromkeys(shard, count))
            total += _safetensors.write_file(place / _part(stem, count), shard)
        check(count > 0, "tensors", {}, "at least one")
        _name_shards(place, weight_map, total, count, stem)
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        reason = error.strerror or error
        raise WriteError(f"folder: cannot write {str(place)!r} ({reason}).") from error


# ---- reading


def _renamed(entries: dict[str, _safetensors.Entry]) -> dict[str, _safetensors.Entry]:
    """Layer norms by the names that they have now, as `transformers` reads them.

    The first BERT files called them gamma and beta.
    """
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    found = dict(entries)
    for name in entries:
        for ending, now in old.items():
            new = name.removesuffix(ending) + now
            if name.endswith(ending) and new not in entries:
                found[new] = found.pop(name)
    return found


def _is_file(file: pathlib.Path) -> bool:
    """Whether it is there; a name that no disk takes, or a closed folder, is not."""
    try:
        return file.is_file()
    except OSError:
        return False


def _read_weight_map(file: pathlib.Path) -> dict[str, str]:
    weight_map = read_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file}: damaged, it has no weight_map.")
    for shard in weight_map.values():
        good = isinstance(shard, str) and pathlib.PurePath(shard).name == shard
        if not good or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{file}: names the shard {_short(shard)}, expected a safetensors file "
                "of the same folder."
            )
    return dict(weight_map)


def _listed(items: Sequence[str], *, separator: str = ", ") -> str:
    """The first of them; a damaged index may have a million."""
    shown = [item[:400] for item in items[:_MAX_LISTED]]
    more = len(items) - len(shown)
    return separator.join([*shown, f"and {more} more"] if more else shown)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _open_shards(
    place: pathlib.Path,
    shards: Sequence[str],
    weight_map: dict[str, str] | None,
    index: str,
) -> tuple[dict[str, _safetensors.Entry], dict[pathlib.Path, mmap.mmap]]:
    maps: dict[pathlib.Path, mmap.mmap] = {}
    holders: dict[str, list[_safetensors.Entry]] = {}
    problems = []
    try:
        for shard in shards:
            file = place / shard
            try:
                maps[file] = _safetensors.map_file(file)
                for name, entry in _safetensors.read_header(file, maps[file]).items():
                    holders.setdefault(name, []).append(entry)
            except UnsupportedCheckpointError:
                raise
            except CheckpointError as error:
                problems.append(str(error))
        if not problems:  # a damaged shard would repeat itself for each of its tensors
            problems = _disagreements(place, holders, weight_map, index)
        if problems:
            raise CheckpointError(_listed(problems, separator="\n"))
    except BaseException:
        for view in maps.values():
            view.close()
        raise
    return {name: entries[0] for name, entries in holders.items()}, maps


def _disagreements(
    place: pathlib.Path,
    holders: Mapping[str, Sequence[_safetensors.Entry]],
    weight_map: Mapping[str, str] | None,
    index: str,
) -> list[str]:
    """What the index and the shards say differently, one line a tensor."""
    problems = []
    for name, entries in holders.items():
        where = [entry.file.name for entry in entries]
        if len(where) > 1:
            problems.append(f"{place}: {name!r} is in two shards: {', '.join(where)}.")
        elif weight_map is not None and name not in weight_map:
            problems.append(f"{place / where[0]}: {name!r} is not in {index}.")
    for name, shard in (weight_map or {}).items():
        if shard not in [entry.file.name for entry in holders.get(name, ())]:
            problems.append(
                f"{place / shard}: lacks {name!r}, which {index} puts there."
            )
    return problems


def _refuse_file(file: pathlib.Path) -> None:
    if (name := _REFUSED_ENDINGS.get(file.suffix)) is not None:
        raise UnsupportedCheckpointError(
            f"{file}: {name}, which jtok does not read; expected safetensors in the "
            "Hugging Face format."
        )


def _refuse_folder(place: pathlib.Path, stem: str) -> None:
    """No weights under the names that jtok reads: says what is there instead."""
    try:
        present = sorted(place.iterdir())
    except FileNotFoundError:
        present = []
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read ({error.strerror}).") from error
    for child in present:
        # Trainers leave these beside weights of any format.
        if child.name not in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
            _refuse_file(child)
    others = [child.name for child in present if child.suffix == ".safetensors"]
    found = f", found {', '.join(others)}" if others else ""
    raise MissingFileError(
        f"{place}: no weights there; expected {stem}.safetensors or "
        f"{stem}{_INDEX}{found}."
    )


# ---- writing


def _part(stem: str, number: int) -> str:
    return f"{stem}-{number:05d}.part"


def _shards(
    pairs: Iterable[tuple[str, Any]], limit: int | float
) -> Iterator[dict[str, Any]]:
    shard: dict[str, Any] = {}
    held = 0
    for name, array in pairs:
        if shard and held + _safetensors.bytes_of(array) > limit:
            yield shard
            shard, held = {}, 0
        check(name not in shard, "tensors", name, "each name once")
        shard[name] = array
        held += _safetensors.bytes_of(array)
    if shard:
        yield shard


def _check_new(shard: Mapping[str, Any], written: Mapping[str, int]) -> None:
    for name, array in shard.items():
        good = isinstance(name, str) and name not in ("", "__metadata__")
        check(good, "tensors", name, "a name that the format takes")
        check(name not in written, "tensors", name, "each name once")
        known = _safetensors.dtype_of(array) in _safetensors.DTYPE_NAMES
        types = ", ".join(str(dtype) for dtype in _safetensors.DTYPE_NAMES)
        check(known, f"tensors[{name!r}].dtype", str(array.dtype), f"one of {types}")


def _name_shards(
    place: pathlib.Path,
    weight_map: Mapping[str, int],
    total: int,
    count: int,
    stem: str,
) -> None:
    if count == 1:
        os.replace(place / _part(stem, 1), place / f"{stem}.safetensors")
        return
    names = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for number, name in enumerate(names, 1):
        os.replace(place / _part(stem, number), place / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {
            name: names[weight_map[name] - 1] for name in sorted(weight_map)
        },
    }
    (place / f"{stem}{_INDEX}").write_text(json.dumps(index, indent=2) + "\n")
