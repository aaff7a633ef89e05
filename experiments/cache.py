"""Trained and built things, made once per machine and found again by their key."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jtok
from jtok.errors import WriteError, check
from jtok.files import folder_lock

__all__ = ["cache_key", "cache_root", "cached"]


def cache_root() -> Path:
    """Returns the cache folder, read from the environment at each call.

    Returns:
      `$JTOK_CACHE`, else `$XDG_CACHE_HOME/jtok`, else `~/.cache/jtok`; it need not
      exist yet.
    """
    if own := os.environ.get("JTOK_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "jtok"


def cache_key(key: Mapping[str, Any]) -> str:
    """Hashes what a cached thing depends on, and jtok's version.

    Args:
      key: JSON-able mapping: config, hashes of the data, versions.

    Returns:
      Hexadecimal SHA-256 of its canonical JSON; key order does not count.
    """
    whole = {"key": key, "jtok": getattr(jtok, "__version__", "0")}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def cached(name: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """Finds a folder in the cache, or builds it once.

    Two processes that ask for the same thing build it once: the second waits. The
    folder appears under its final name only when `build` has returned. Under
    `jax.distributed` every process calls `build` at the same time, on a folder
    that they must share; the first process takes the lock and renames.

    Args:
      name: what it is, e.g. `"small_lm"`; letters, digits, `-` and `_`.
      key: JSON-able mapping of everything that the content depends on.
      build: fills the folder that it is given. After a kill it gets the same
        folder again, with what was written in it, so that it can resume from
        its own checkpoints there.

    Returns:
      The folder, complete.

    Raises:
      ArgumentError: a name that is not a plain word.
      WriteError: the cache cannot be written.
    """
    plain = name.replace("-", "_").isidentifier()
    check(plain, "name", name, "letters, digits, '-' and '_'")
    final = cache_root() / f"{name}-{cache_key(key)[:16]}"
    partial = final.with_name(f"{final.name}.partial")
    first, together = _processes()
    with folder_lock(final) if first else contextlib.nullcontext():
        if not together(final.is_dir()):
            _make(partial, first)
            together(True)
            build(partial)
            together(True)
            if first:
                _describe(partial, name, key)
                _publish(partial, final)
        together(True)
    if not final.is_dir():
        raise WriteError(
            f"{final}: made by process 0 and not seen here; set JTOK_CACHE to a "
            "folder that all processes share."
        )
    return final


def _processes() -> tuple[bool, Callable[[bool], bool]]:
    """Returns whether this process is the first, and how all agree on its value."""
    import jax

    # `process_count` would start a backend, which a cache hit does not need.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return True, lambda value: value
    from jax.experimental import multihost_utils

    def agree(value: bool) -> bool:
        return bool(multihost_utils.broadcast_one_to_all(value))

    return jax.process_index() == 0, agree


def _make(partial: Path, first: bool) -> None:
    if not first:
        return
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write the cache {partial}: {error}") from error


def _describe(folder: Path, name: str, key: Mapping[str, Any]) -> None:
    text = json.dumps({"name": name, "key": key}, indent=1, sort_keys=True)
    (folder / "cache_key.json").write_text(text + "\n", encoding="utf-8")


def _publish(partial: Path, final: Path) -> None:
    # Contents must be on disk before the name that promises them is.
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    os.replace(partial, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
