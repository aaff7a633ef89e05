"""Finds the experiments of this folder without importing any of them.

An experiment is a module that defines `Config`, `PRESETS` and `run`. What a
listing shows is read from its syntax tree, so that listing thirty experiments
costs no heavy import.
"""

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jtok.errors import JtokError

__all__ = ["CatalogError", "Entry", "find", "folder", "read", "root"]


class CatalogError(JtokError, ValueError):
    """An experiment file does not say what every experiment must say."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What an experiment file says about itself.

    `slug` is the module's name, `claim` the first line of its docstring,
    `presets`, `claims` and `sources` its declarations, `minutes` the expected
    wall time by preset on 2 CPU cores (empty where it gives none).
    """

    slug: str
    path: Path
    claim: str
    presets: tuple[str, ...]
    claims: tuple[str, ...]
    sources: tuple[str, ...]
    minutes: Mapping[str, float]


def folder() -> Path:
    """Returns the folder that holds the experiment files."""
    return Path(__file__).resolve().parent


def root() -> Path:
    """Returns the repository root, to which `SOURCES` globs are relative."""
    return folder().parent


def find(where: Path | None = None) -> dict[str, Entry]:
    """Lists the experiments of a folder, sorted by slug.

    Args:
      where: folder to search; this package's own by default.

    Returns:
      Slug -> `Entry`.

    Raises:
      CatalogError: an experiment declares something that cannot be read.
    """
    entries = {}
    for path in sorted((where or folder()).glob("*.py")):
        entry = read(path)
        if entry is not None:
            entries[entry.slug] = entry
    return entries


def read(path: Path) -> Entry | None:
    """Reads one file's declarations; `None` when it is not an experiment.

    Args:
      path: a Python file.

    Returns:
      Its `Entry`, or `None` without `Config`, `PRESETS` and `run`.

    Raises:
      CatalogError: `PRESETS`, `CLAIMS`, `SOURCES` or `MINUTES` is not written out
        as a literal, or a docstring or a required declaration is missing.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values = _assignments(tree)
    names = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    if not {"Config", "run"} <= names or "PRESETS" not in values:
        return None
    docstring = ast.get_docstring(tree) or ""
    if not docstring:
        raise CatalogError(f"{path.name}: the first docstring line must be the claim.")
    return Entry(
        slug=path.stem,
        path=path,
        claim=docstring.splitlines()[0],
        presets=_keys(path, values["PRESETS"]),
        claims=tuple(_literal(path, values, "CLAIMS")),
        sources=tuple(_literal(path, values, "SOURCES")),
        minutes=_literal(path, values, "MINUTES", default={}),
    )


def _assignments(tree: ast.Module) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = value
    return found


def _keys(path: Path, value: ast.expr) -> tuple[str, ...]:
    keys = value.keys if isinstance(value, ast.Dict) else [None]
    if not all(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys):
        raise CatalogError(f"{path.name}: PRESETS must be a dict with literal names.")
    return tuple(key.value for key in keys)  # type: ignore[union-attr]


def _literal(
    path: Path, values: Mapping[str, ast.expr], name: str, default: Any = None
) -> Any:
    if name not in values:
        if default is not None:
            return default
        raise CatalogError(f"{path.name}: {name} is missing.")
    try:
        return ast.literal_eval(values[name])
    except ValueError as error:
        raise CatalogError(f"{path.name}: {name} must be a plain literal.") from error
