"""Where a figure comes from: the code, the versions and the device that made it."""

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jtok.errors import ArgumentError

__all__ = [
    "device",
    "device_slug",
    "git_state",
    "sha256",
    "source_hash",
    "versions",
]


def sha256(content: bytes | str | os.PathLike[str] | Sequence[Path]) -> str:
    """Hashes bytes, a file, a folder or several of them.

    Args:
      content: bytes; or a path. A folder counts with the relative names and
        contents of all of its files; a sequence of paths with their names and
        contents, in order.

    Returns:
      Hexadecimal SHA-256.
    """
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    elif isinstance(content, str | os.PathLike):
        path = Path(content)
        if path.is_dir():
            _update_named(digest, path, sorted(p for p in path.rglob("*")))
        else:
            _update(digest, path)
    else:
        for path in content:
            _update_named(digest, path.parent, [path])
    return digest.hexdigest()


def _update_named(digest: Any, base: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_file():
            digest.update(f"{path.relative_to(base).as_posix()}\0".encode())
            digest.update(f"{path.stat().st_size}\0".encode())
            _update(digest, path)


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def source_hash(experiment: Path, sources: Sequence[str], root: Path) -> str:
    """Hashes the code behind a figure: the experiment and the files it names.

    Docstrings, comments and layout do not count, so that documentation edits do
    not invalidate results; neither does the Python version.

    Args:
      experiment: the experiment's file.
      sources: globs relative to `root`, e.g. `"jtok/decode/*.py"`.
      root: repository root.

    Returns:
      Hexadecimal SHA-256.

    Raises:
      ArgumentError: a glob matches no file.
    """
    files = {experiment.resolve()}
    for pattern in sources:
        matched = [p.resolve() for p in root.glob(pattern) if p.is_file()]
        if not matched:
            raise ArgumentError(
                f"SOURCES of {experiment.name}: {pattern!r} matches no file."
            )
        files.update(matched)
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: _relative(p, root)):
        digest.update(f"{_relative(path, root)}\n".encode())
        for piece in _canonical(ast.parse(path.read_text(encoding="utf-8"))):
            digest.update(piece.encode())
    return digest.hexdigest()


def _relative(path: Path, root: Path) -> str:
    root = root.resolve()
    return path.relative_to(root).as_posix() if root in path.parents else path.name


def _canonical(node: Any) -> Iterator[str]:
    # `ast.dump` and `ast.unparse` differ between Python versions; empty fields
    # are skipped because later versions add fields that older code leaves empty.
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value is None or value == [] or name in ("ctx", "kind", "type_comment"):
                continue
            yield f" {name}="
            yield from _canonical(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in _merge_strings([item for item in node if not _is_text(item)]):
            yield from _canonical(item)
            yield ","
        yield "]"
    else:
        yield f"{type(node).__name__}:{node!r}"


def _merge_strings(items: list[Any]) -> list[Any]:
    # Neighbouring literal pieces of an f-string are one in some versions and
    # two in others. Elsewhere in a list such neighbours (two arguments) matter:
    # only f-strings mix them with formatted values.
    if not any(isinstance(item, ast.FormattedValue) for item in items):
        return items
    merged: list[Any] = []
    for item in items:
        last = merged[-1] if merged else None
        if isinstance(item, ast.Constant) and isinstance(last, ast.Constant):
            merged[-1] = ast.Constant(str(last.value) + str(item.value))
        else:
            merged.append(item)
    return merged


def _is_text(item: Any) -> bool:
    # A statement that is a bare string: a docstring of a module, class, function
    # or attribute.
    return (
        isinstance(item, ast.Expr)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    )


def versions() -> dict[str, str]:
    """Returns the versions of jtok, JAX, Flax, NumPy and Python in use."""
    import jtok

    found = {"jtok": getattr(jtok, "__version__", "0")}
    for name in ("jax", "jaxlib", "flax", "numpy"):
        found[name] = importlib.metadata.version(name)
    return found | {"python": platform.python_version()}


def device() -> dict[str, Any]:
    """Describes the device: platform, kind, counts and the host's processor."""
    import jax

    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "cpus": _cpus(),
        "cpu": _cpu_model(),
    }


def device_slug(described: dict[str, Any]) -> str:
    """Names a device in a file name: `cpu-2core`, `nvidia-h200`, `tpu-v5e-x8`.

    Args:
      described: what `device()` returned.

    Returns:
      Lower-case letters, digits and hyphens; `-xN` for more than one device.
    """
    if described["platform"] == "cpu":
        name = f"cpu-{described['cpus']}core"
    else:
        name = re.sub(r"[^a-z0-9]+", "-", described["kind"].lower()).strip("-")
    return name if described["count"] == 1 else f"{name}-x{described['count']}"


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def git_state(root: Path) -> dict[str, Any] | None:
    """Returns the checkout's revision and whether it has local changes.

    Args:
      root: repository root.

    Returns:
      `{"revision", "dirty"}`, or `None` outside a checkout or without git.
    """
    try:
        revision = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "dirty": bool(changes)}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return done.stdout.strip()
