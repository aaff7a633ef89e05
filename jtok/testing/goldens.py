"""Golden files: arrays that an independent implementation produced."""

import fnmatch
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jtok.errors import CheckpointError, DataNotFoundError, check, near

__all__ = ["Golden", "load_golden"]


class Golden(Mapping[str, Any]):
    """The arrays of one golden file, which remembers which were read.

    Reading is `golden["name"]`; listing the names reads nothing. What a test does not
    read it lists with `ignore`, so that no array is forgotten silently.

    Example:
      >>> golden = Golden("demo.npz", {"logits": 1.0, "meta": 2.0})
      >>> golden["logits"]
      1.0
      >>> golden.unread()
      ['meta']
    """

    def __init__(self, name: str, arrays: Mapping[str, Any]):
        self.name = name
        self._arrays = dict(arrays)
        self._read: set[str] = set()
        self._ignored: dict[str, str] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._arrays:
            raise KeyError(f"{self.name} has no array {key!r}{near(key, self._arrays)}")
        self._read.add(key)
        return self._arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, key: object) -> bool:
        return key in self._arrays  # Mapping's own would count as reading.

    def ignore(self, *names: str, reason: str) -> None:
        """Lists arrays that no test reads.

        Args:
          *names: names, or shell patterns such as `"grad_*"`; each must match.
          reason: why they are not read; not empty.

        Raises:
          ArgumentError: no reason, or a name that matches no array.
        """
        check(bool(reason.strip()), "reason", reason, "why the arrays are not read")
        for name in names:
            matches = fnmatch.filter(self._arrays, name)
            check(bool(matches), "names", name, f"an array of {self.name}")
            self._ignored.update(dict.fromkeys(matches, reason))

    def unread(self) -> list[str]:
        """Names that were neither read nor listed with a reason, sorted."""
        return sorted(set(self._arrays) - self._read - set(self._ignored))


_LOADED: dict[pathlib.Path, Golden] = {}


def load_golden(name: str, *, root: str | pathlib.Path | None = None) -> Golden:
    """Loads a golden file; a second call gives the same object, reads included.

    Args:
      name: path below `root`, such as `"token_recycling/draft.npz"`; npz or JSON.
      root: folder of the goldens; `tests/goldens` of the checkout if None.

    Returns:
      Its arrays by name. The top-level keys of a JSON object count as arrays.

    Raises:
      DataNotFoundError: there is no such file.
      CheckpointError: the file cannot be read as what its name says.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> np.savez(f"{folder}/a.npz", tree=np.arange(3))
      >>> load_golden("a.npz", root=folder)["tree"]
      array([0, 1, 2])
    """
    path = (_goldens_folder() if root is None else pathlib.Path(root)) / name
    path = path.resolve()
    if path not in _LOADED:
        _LOADED[path] = Golden(name, _read_arrays(path))
    return _LOADED[path]


def _goldens_folder() -> pathlib.Path:
    return pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens"


def _read_arrays(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataNotFoundError(f"{path}: no such golden file.")
    check(path.suffix in (".npz", ".json"), "name", path.name, "an npz or JSON file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
