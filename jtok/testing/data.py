"""Finds real data by name, wherever this machine keeps it."""

import os
import pathlib

from jtok.errors import DataNotFoundError, check

__all__ = ["data"]


def data(name: str) -> pathlib.Path:
    """Finds a file or folder of real data.

    Looks under `$JTOK_DATA` if that is set, then in `../shared/data` beside the
    checkout that jtok was imported from, then beside the working directory. The
    environment is read at the call.

    Args:
      name: path below the data folder, with forward slashes.

    Returns:
      The path, which exists.

    Raises:
      ArgumentError: `name` is empty, absolute or climbs out of the data folder.
      DataNotFoundError: it is in none of the places, which are named.

    Example:
      >>> from jtok.errors import DataNotFoundError
      >>> try:
      ...     data("no/such/file")
      ... except DataNotFoundError as error:
      ...     print(str(error).split(":")[0])
      no/such/file
    """
    parts = pathlib.PurePosixPath(name)
    inside = bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts
    check(inside, "name", name, "a relative path below the data folder")
    folders = _folders()
    for folder in folders:
        path = folder / parts
        if path.exists():
            return path
    looked = ", ".join(str(folder) for folder in folders)
    raise DataNotFoundError(
        f"{name}: not on this machine. Looked in {looked}. Set JTOK_DATA to the folder "
        "that holds it."
    )


def _folders() -> list[pathlib.Path]:
    """The places to look, best first, without repeats."""
    # This file is jtok/testing/data.py, so the checkout is three folders up.
    checkout = pathlib.Path(__file__).resolve().parents[2]
    folders = [
        root.parent / "shared" / "data" for root in (checkout, pathlib.Path.cwd())
    ]
    named = os.environ.get("JTOK_DATA")
    if named:
        folders.insert(0, pathlib.Path(named).expanduser())
    return list(dict.fromkeys(folders))
