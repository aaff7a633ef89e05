"""Texts -> one flat array of ids -> packed rows -> batches by step, through Grain.

The batch of step t is a function of (seed, t, process) alone, so resuming needs no
more than t, and any number of processes sees the same rows in the same step.
"""

import gzip
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from jtok.errors import ArgumentError, ArgumentTypeError, DataNotFoundError, check

__all__ = [
    "PackedRows",
    "jsonl_documents",
    "packed_batches",
    "text_documents",
    "tokenize_documents",
]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


# ---- documents


def text_documents(
    paths: Paths, *, separator: str | None = None, suffixes: tuple[str, ...] = (".txt",)
) -> Iterator[str]:
    """Yields the documents of text files, in the order given.

    Files are UTF-8, `.gz` ones are unpacked. Texts already in memory need no reader:
    any iterable of strings is a source of documents.

    Args:
      paths: a file, a folder, or several; a folder stands for the files below it,
        sorted by path.
      separator: what divides the documents of one file; None takes a file as one.
      suffixes: endings of the files to take from folders; `.gz` may follow.

    Yields:
      The documents that are not blank.

    Raises:
      DataNotFoundError: a path that does not exist, or a folder without such files.
      ArgumentError: a file that is not UTF-8 text.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "a.txt")
      >>> _ = path.write_text("one%two")
      >>> list(text_documents(path, separator="%"))
      ['one', 'two']
    """
    check(separator is None or bool(separator), "separator", separator, "text or None")
    for path in _files(paths, suffixes):
        try:
            with _open(path) as file:
                text = file.read()
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise ArgumentError(f"paths: {str(path)!r} is damaged: {error}") from error
        parts = [text] if separator is None else text.split(separator)
        yield from (part for part in parts if part.strip())


def jsonl_documents(paths: Paths, *, field: str = "text") -> Iterator[str]:
    """Yields one field of every line of JSONL files, in the order given.

    Args:
      paths: a file, a folder (its `.jsonl` and `.jsonl.gz` files), or several.
      field: the key whose value, a string, is the document.

    Yields:
      The documents that are not blank.

    Raises:
      DataNotFoundError: a path that does not exist, or a folder without such files.
      ArgumentError: a line that is no JSON object or has no such string; the message
        names the file, the line and the keys there.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "a.jsonl")
      >>> _ = path.write_text('{"text": "one"}')
      >>> list(jsonl_documents(path))
      ['one']
    """
    for path in _files(paths, (".jsonl",)):
        try:
            with _open(path) as file:
                for number, line in enumerate(file, 1):
                    document = _field_of(line, field, f"{path}:{number}")
                    if document.strip():
                        yield document
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise ArgumentError(f"paths: {str(path)!r} is damaged: {error}") from error


def _field_of(line: str, field: str, where: str) -> str:
    if not line.strip():
        return ""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"paths: {where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ArgumentError(f"paths: {where} is not a JSON object.")
    if not isinstance(record.get(field), str):
        keys = sorted(key for key, value in record.items() if isinstance(value, str))
        raise ArgumentError(
            f"field: got {field!r}, which is no string at {where}; the strings there "
            f"are {keys}."
        )
    return record[field]


def _files(paths: Paths, suffixes: tuple[str, ...]) -> Iterator[pathlib.Path]:
    single = isinstance(paths, str | os.PathLike)
    for item in [paths] if single else paths:  # type: ignore[union-attr]
        path = pathlib.Path(item).expanduser()  # type: ignore[arg-type]
        if path.is_dir():
            endings = (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))
            found = sorted(p for p in path.rglob("*") if p.name.endswith(endings))
            if not found:
                raise DataNotFoundError(
                    f"paths: {str(path)!r} holds no file that ends in {endings}."
                )
            yield from found
        elif path.is_file():
            yield path
        else:
            raise DataNotFoundError(f"paths: there is no file or folder {str(path)!r}.")


def _open(path: pathlib.Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


# ---- ids


def tokenize_documents(
    documents: Iterable[str], vocabulary: Any, *, eos_id: int
) -> Int32[np.ndarray, " tokens"]:
    """Ids of all documents in one array, an end of text after each.

    What `vocabulary` itself adds around a text (a BOS) stays.

    Args:
      documents: the texts.
      vocabulary: anything with `encode(text) -> ids`, or such a function. With an
        `encode_batch` too, that is used on many documents at a time.
      eos_id: id put after every document, >= 0.

    Returns:
      `[tokens]` int32.

    Raises:
      ArgumentTypeError: `documents` is one string, or holds something else than
        strings; `vocabulary` can encode nothing.
      ArgumentError: no document, or `eos_id` < 0.

    Example:
      >>> tokenize_documents(["ab", "c"], lambda text: list(text.encode()), eos_id=0)
      array([97, 98,  0, 99,  0], dtype=int32)
    """
    if isinstance(documents, str | bytes):
        raise ArgumentTypeError("documents: got one string, expected several.")
    check(eos_id >= 0, "eos_id", eos_id, "an id >= 0")
    encode_many = _encoder(vocabulary)
    eos = np.array([eos_id], np.int32)
    pieces: list[np.ndarray] = []
    documents = iter(documents)
    while group := list(itertools.islice(documents, 256)):
        for text in group:
            if not isinstance(text, str):
                kind = type(text).__name__
                raise ArgumentTypeError(f"documents: got a {kind}, expected strings.")
        for ids in encode_many(group):
            pieces += [np.asarray(ids, np.int32), eos]
    check(bool(pieces), "documents", [], "at least one document")
    return np.concatenate(pieces)


def _encoder(vocabulary: Any) -> Callable[[list[str]], Iterable[Any]]:
    if hasattr(vocabulary, "encode_batch"):
        return vocabulary.encode_batch
    encode = getattr(vocabulary, "encode", vocabulary)
    if not callable(encode):
        raise ArgumentTypeError(
            f"vocabulary: got {type(vocabulary).__name__}, expected an object with "
            "encode(text) or a function."
        )
    return lambda texts: map(encode, texts)


# ---- rows


class PackedRows:
    """Rows of `length + 1` ids cut from one flat array, without copying it.

    Row r starts at token `r * length`: it shares one token with the row before, so
    each token but the first is a target exactly once. The last row is filled up with
    `eos_id`, masked. Documents follow one another; a row may hold several.

    Args:
      ids: `[tokens]` integers, at least 2; may be a memory map.
      length: predictions a row, >= 1.
      eos_id: the id that ends documents.
      documents: add `segments` (number of the document within its row) and
        `positions` (0-based within the document, or within the row for the document
        that the row starts in the middle of), int32.

    Raises:
      ArgumentError: `length` < 1 or fewer than 2 ids.

    Example:
      >>> rows = PackedRows(np.arange(6), 2, eos_id=0)
      >>> len(rows), rows[2]["tokens"], rows[2]["mask"]
      (3, array([4, 5, 0], dtype=int32), array([ True,  True, False]))
    """

    def __init__(
        self,
        ids: Int[np.ndarray, " tokens"],
        length: int,
        *,
        eos_id: int,
        documents: bool = False,
    ) -> None:
        check(length >= 1, "length", length, "a count >= 1")
        check(len(ids) >= 2, "ids", f"{len(ids)} ids", "at least 2")
        self.ids, self.length, self.eos_id = ids, length, eos_id
        self.documents = documents

    def __len__(self) -> int:
        return -(-(len(self.ids) - 1) // self.length)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        """One row, `[length + 1]`, or those of an index array, `[rows, length + 1]`.

        Args:
          index: 0-based, in range; negative ones do not count from the end.

        Returns:
          `tokens` int32 and `mask` bool (True = a real token), and on request
          `segments` and `positions`.

        Raises:
          IndexError: out of range.
        """
        rows = np.atleast_1d(np.asarray(index))
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"row {index} of {len(self)}")
        tokens = np.full((len(rows), self.length + 1), self.eos_id, np.int32)
        sizes = np.minimum(len(self.ids) - rows * self.length, self.length + 1)
        for out, row, size in zip(tokens, rows, sizes):
            out[:size] = self.ids[row * self.length : row * self.length + size]
        batch = {"tokens": tokens}
        batch["mask"] = np.arange(self.length + 1)[None, :] < sizes[:, None]
        if self.documents:
            batch |= _documents_of(tokens == self.eos_id)
        return batch if np.ndim(index) else {k: v[0] for k, v in batch.items()}


def _documents_of(ends: np.ndarray) -> dict[str, np.ndarray]:
    segments = np.cumsum(ends, axis=1) - ends
    index = np.broadcast_to(np.arange(ends.shape[1]), ends.shape)
    begins = np.zeros_like(index)
    begins[:, 1:] = np.where(ends[:, :-1], index[:, 1:], 0)
    positions = index - np.maximum.accumulate(begins, axis=1)
    return {
        "segments": segments.astype(np.int32),
        "positions": positions.astype(np.int32),
    }


# ---- batches


def packed_batches(
    ids: Int[np.ndarray, " tokens"],
    *,
    length: int,
    batch_size: int,
    seed: int,
    eos_id: int,
    shuffle: bool = True,
    epochs: int | None = None,
    documents: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Any:
    """The batches of a training run on packed rows, one for each step.

    Epochs follow one another without a gap, each shuffled anew; a batch may hold the
    end of one and the start of the next. With several processes each gets its share
    of the rows of the same global batch.

    Args:
      ids: `[tokens]` integers; may be a memory map.
      length: predictions a row.
      batch_size: rows of the global batch, a multiple of the number of processes.
      seed: of the shuffling, in [0, 2**32).
      eos_id: the id that ends documents.
      shuffle: False keeps the order of `ids`.
      epochs: None repeats for ever; else the last batch that is not full is dropped.
      documents: add `segments` and `positions` (see `PackedRows`).
      process_index: None means `jax.process_index()`.
      process_count: None means `jax.process_count()`.

    Returns:
      A `grain.MapDataset` whose element t is the batch of step t: `tokens` int32 and
      `mask` bool, `[batch_size / process_count, length + 1]`.

    Raises:
      ArgumentError: an argument out of its range, or less data than one batch where
        `epochs` is given.

    Example:
      >>> data = packed_batches(np.arange(9), length=2, batch_size=2, seed=0, eos_id=0)
      >>> data[5]["tokens"].shape
      (2, 3)
    """
    import grain
    import jax

    rows = PackedRows(ids, length, eos_id=eos_id, documents=documents)
    count = jax.process_count() if process_count is None else process_count
    index = jax.process_index() if process_index is None else process_index
    check(count >= 1, "process_count", count, "a count >= 1")
    check(0 <= index < count, "process_index", index, f"0 <= index < {count}")
    check(batch_size >= 1, "batch_size", batch_size, "a count >= 1")
    multiple = f"a multiple of the {count} processes"
    check(batch_size % count == 0, "batch_size", batch_size, multiple)
    check(0 <= seed < 2**32, "seed", seed, "a number in [0, 2**32)")
    check(epochs is None or epochs >= 1, "epochs", epochs, "a count >= 1 or None")
    source = _Batches(rows, batch_size, seed if shuffle else None, epochs, index, count)
    enough = f"at least {batch_size} rows of {length} in {epochs} epochs"
    check(len(source) > 0, "ids", f"{len(ids)} ids, {len(rows)} rows", enough)
    return grain.MapDataset.source(source)


class _Batches:
    """Random access by step; shuffles by an index permutation that keeps no table."""

    def __init__(
        self,
        rows: PackedRows,
        batch_size: int,
        seed: int | None,
        epochs: int | None,
        process: int,
        processes: int,
    ) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._process, self._processes = process, processes
        self._steps = sys.maxsize
        if epochs is not None:
            self._steps = epochs * len(rows) // batch_size

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        first = step * self._batch_size
        items = range(first + self._process, first + self._batch_size, self._processes)
        return self._rows[np.array([self._row(item) for item in items])]

    def _row(self, item: int) -> int:
        import grain

        epoch, row = divmod(item, len(self._rows))
        if self._seed is None:
            return row
        # Neighbouring seeds must not give one run's epoch to another.
        mixed = np.random.SeedSequence((self._seed, epoch)).generate_state(1)[0]
        return grain.experimental.index_shuffle(
            row, max_index=len(self._rows) - 1, seed=int(mixed), rounds=4
        )
