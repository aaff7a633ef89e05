"""The JSONL file of a run's metrics: one line for each step, each step once."""

import array
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jtok.errors import WriteError
from jtok.files import write_atomic

__all__ = ["MetricsLog"]


class MetricsLog:
    """Metrics by step, in memory and (where a path is given) in a JSONL file.

    Opening it at a step cuts off what a killed run wrote beyond that step, and a last
    line that it did not finish; so a resumed run has each step once. Values that are
    not finite are written as null.

    Args:
      path: the file; None keeps the metrics in memory only.
      step: updates done; lines of later steps go.

    Raises:
      WriteError: the file cannot be read or written.

    Example:
      >>> log = MetricsLog(None, step=0)
      >>> log.append([{"step": 1, "loss": 2.5}])
      >>> log.columns()
      {'step': array([1.]), 'loss': array([2.5])}
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, step: int) -> None:
        self.path = None if path is None else pathlib.Path(path).expanduser()
        self._columns: dict[str, array.array] = {}
        self._length = 0
        if self.path is not None:
            self._reopen(self.path, step)

    def _reopen(self, path: pathlib.Path, step: int) -> None:
        try:
            old = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise _write_error(path, error) from error
        kept = []
        for line in old.splitlines(keepends=True):
            row = _parsed(line)
            # Steps rise: the first later or torn line ends what stands.
            if row is None or row["step"] > step:
                break
            kept.append(line)
            self._remember(row)
        content = b"".join(kept)
        if content != old or not path.exists():
            write_atomic(path, content)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one row a step, in one write.

        Args:
          rows: each with an int `step`, rising.

        Raises:
          WriteError: the disk refuses.

        Example: see the class.
        """
        rows = list(rows)
        for row in rows:
            self._remember(row)
        if self.path is None or not rows:
            return
        text = "".join(json.dumps(_finite(row)) + "\n" for row in rows)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise _write_error(self.path, error) from error

    def sync(self) -> None:
        """Returns when every row stands on disk; called before a checkpoint.

        Raises:
          WriteError: the disk refuses.

        Example:
          >>> MetricsLog(None, step=0).sync()
        """
        if self.path is None:
            return
        try:
            with self.path.open("ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise _write_error(self.path, error) from error

    def columns(self) -> dict[str, np.ndarray]:
        """All rows as one float64 array a metric, NaN where a row lacks it.

        Returns:
          name -> `[rows]`.

        Example: see the class.
        """
        return {name: np.array(values) for name, values in self._columns.items()}

    def _remember(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None:
                column = array.array("d", [math.nan] * self._length)
                self._columns[name] = column
            column.append(math.nan if value is None else value)
        self._length += 1
        for column in self._columns.values():
            if len(column) < self._length:
                column.append(math.nan)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line; None for one that was not finished."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(row, dict)
    return row if whole and isinstance(row.get("step"), int) else None


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if math.isfinite(value) else None for name, value in row.items()
    }


def _write_error(path: pathlib.Path, error: OSError) -> WriteError:
    return WriteError(f"metrics_file: cannot use {str(path)!r} ({error.strerror}).")
