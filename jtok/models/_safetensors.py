"""One safetensors file: its header checked against its size, and its writing."""

import json
import math
import mmap
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jtok.errors import (
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
)

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Weights of 8 and fewer bits; the second list is how packed ones are called.
_QUANTISED_DTYPES = re.compile(r"I8|I4|U4|F8_.*|F6_.*|F4.*")
_QUANTISED_NAMES = re.compile(
    r".*\.(qweight|qzeros|weight_packed|SCB|weight\.absmax|weight\.quant_map)"
)
_MAX_HEADER = 100_000_000  # bytes; the limit of the format
_MAX_RANK = 32
_MAX_EXTENT = 2**62  # what NumPy can count, times an element's bytes


class Entry(NamedTuple):
    """Where a tensor lies: `start` and `stop` are bytes from the file's beginning."""

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def map_file(file: pathlib.Path) -> mmap.mmap:
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size < 8:
                raise CheckpointError(
                    f"{file}: truncated, it has {size} bytes and its header 8 or more."
                )
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{file}: it is gone.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{file}: cannot be read ({reason}).") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def read_header(file: pathlib.Path, view: mmap.mmap) -> dict[str, Entry]:
    """Reads and checks a safetensors header against the size of its file."""
    length = int.from_bytes(view[:8], "little")
    if length > _MAX_HEADER:
        raise CheckpointError(f"{file}: damaged, its header would have {length} bytes.")
    data = 8 + length
    if data > len(view):
        raise CheckpointError(
            f"{file}: truncated, it has {len(view)} bytes, of {data} for its header."
        )
    try:
        text = view[8:data].decode("utf-8")
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged header ({error}).") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: damaged header, expected a JSON object.")
    header.pop("__metadata__", None)
    entries = {
        name: _entry_of(file, name, entry, data) for name, entry in header.items()
    }
    _check_layout(file, entries, data, len(view))
    return entries


def _entry_of(file: pathlib.Path, name: str, entry: Any, data: int) -> Entry:
    fields = entry if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    shape, offsets = map(_counts, map(fields.get, ("shape", "data_offsets")))
    if (
        not isinstance(dtype, str)
        or shape is None
        or offsets is None
        or len(shape) > _MAX_RANK
        or len(offsets) != 2
    ):
        shown = json.dumps(entry)[:200]
        raise CheckpointError(f"{file}: damaged header, {name[:200]!r} is {shown}.")
    if _QUANTISED_DTYPES.fullmatch(dtype) or _QUANTISED_NAMES.fullmatch(name):
        raise UnsupportedCheckpointError(
            f"{file}: {name!r} is quantised ({dtype}); expected the unquantised "
            "checkpoint, in float32, bfloat16 or float16."
        )
    if dtype not in DTYPES:
        raise UnsupportedCheckpointError(
            f"{file}: {name!r} has the type {dtype!r}, expected {', '.join(DTYPES)}."
        )
    start, stop = (data + offset for offset in offsets)
    return Entry(file, DTYPES[dtype], shape, start, stop)


def _counts(value: Any) -> tuple[int, ...] | None:
    """A list of integers that are not negative, else None."""
    if not isinstance(value, list):
        return None
    good = all(type(item) is int and 0 <= item < _MAX_EXTENT for item in value)
    return tuple(value) if good else None


def _check_layout(
    file: pathlib.Path, entries: Mapping[str, Entry], start: int, size: int
) -> None:
    """Tensors must tile the file from the header to its end."""
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1][3:]):
        count = math.prod(entry.shape) * entry.dtype.itemsize
        # An empty tensor too must have a shape that NumPy takes.
        extents = math.prod(max(extent, 1) for extent in entry.shape)
        huge = extents * entry.dtype.itemsize >= _MAX_EXTENT
        if huge or entry.start != end or entry.stop - entry.start != count:
            raise CheckpointError(
                f"{file}: damaged header, {name!r} {entry.shape} {entry.dtype} cannot "
                f"lie at bytes {entry.start} to {entry.stop}."
            )
        end = entry.stop
    if end != size:
        word = "truncated" if size < end else "damaged"
        raise CheckpointError(f"{file}: {word}, it has {size} bytes, expected {end}.")


def dtype_of(array: Any) -> np.dtype:
    return np.dtype(array.dtype).newbyteorder("=")


def bytes_of(array: Any) -> int:
    return math.prod(array.shape) * dtype_of(array).itemsize


def write_file(file: pathlib.Path, shard: Mapping[str, Any]) -> int:
    """Writes one file; widest elements first, so that all are aligned."""
    names = sorted(shard, key=lambda name: (-dtype_of(shard[name]).itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + bytes_of(shard[name])
        header[name] = {
            "dtype": DTYPE_NAMES[dtype_of(shard[name])],
            "shape": list(shard[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = np.asarray(shard[name])
            flat = np.ascontiguousarray(array, dtype_of(array)).reshape(-1)
            opened.write(flat.view(np.uint8).data)
    return end
