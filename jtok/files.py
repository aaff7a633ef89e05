"""Files and folders that are replaced whole or not at all, whatever kills the writer.

For a folder `out/` everything that is in flight lies beside it, under hidden names:
`.out.tmp-*` (being written), `.out.backup` (the old content during a swap) and
`.out.lock`. The kernel drops locks of a dead process, so none of them can go stale.
"""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
import threading
from collections.abc import Iterator

from jtok.errors import ArgumentError, WriteError, check

try:
    import fcntl
except ImportError:  # not POSIX: atomic renames still hold, locks do nothing
    fcntl = None  # type: ignore[assignment]

__all__ = ["folder_lock", "recover_folder", "replace_folder", "write_atomic"]

# What a failed write looks like when the caller's own code does the writing.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes one file so that readers see the old bytes or the new, never a part.

    Missing parent folders are made. Text is written as UTF-8.

    Args:
      path: the file to create or replace.
      data: its whole content.

    Raises:
      WriteError: the file cannot be written; what stood at `path` still stands.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "a.json")
      >>> write_atomic(path, "{}")
      >>> path.read_text()
      '{}'
    """
    target = _resolved(path)
    content = data.encode() if isinstance(data, str) else data
    with _as_write_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target, folders=False)
        temp, handle = _new_temp_file(target)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temp, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp)
            raise
        # The new bytes stand; no error may say that the old ones do.
        with contextlib.suppress(OSError):
            _sync_folder(target.parent)


@contextlib.contextmanager
def replace_folder(
    path: str | os.PathLike[str], *, marker: str | None = None
) -> Iterator[pathlib.Path]:
    """Stages a new folder beside `path` and swaps it in when the block ends well.

    A writer killed at any point leaves the old content or the new: readers call
    `recover_folder` first. Two writers of one path do not mix; the last one wins.

    Args:
      path: the folder to create or replace; missing parents are made.
      marker: a file that an existing non-empty folder must hold to be replaced, so
        that a mistyped path does not cost the user other work; None replaces any.

    Yields:
      The empty staging folder. An exception removes it and leaves `path` alone.

    Raises:
      WriteError: the folder cannot be written (also for a full disk inside the
        block), is a file, or lacks `marker`.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "out")
      >>> with replace_folder(path) as staged:
      ...     _ = (staged / "a.txt").write_text("new")
      >>> (path / "a.txt").read_text()
      'new'
    """
    target = _resolved(path)
    with _as_write_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(target, marker)
        with folder_lock(target):
            temp, alive = _new_temp_folder(target)
    try:
        with _as_write_error(target, only=DISK_ERRORS), _named(temp, target):
            yield temp
        with _as_write_error(target):
            _sync_tree(temp)
            with folder_lock(target):
                _check_replaceable(target, marker)
                _swap(temp, target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        if alive is not None:
            os.close(alive)


def recover_folder(path: str | os.PathLike[str]) -> None:
    """Completes or rolls back a swap of `path` that was cut short; every load calls it.

    Nothing is touched while another process is writing. A folder that needs no
    recovery may lie on read-only storage.

    Args:
      path: the folder about to be read; it need not exist.

    Raises:
      WriteError: only the backup is left and it cannot be moved back.

    Example:
      >>> import pathlib, tempfile
      >>> root = pathlib.Path(tempfile.mkdtemp())
      >>> (root / ".out.backup").mkdir()
      >>> recover_folder(root / "out")
      >>> [child.name for child in root.iterdir()]
      ['out']
    """
    target = _resolved(path)
    backup = _backup_of(target)
    if not target.exists() and backup.exists():
        with _as_write_error(target), folder_lock(target):
            _settle(target)
    elif backup.exists() or next(_temps(target, folders=True), None):
        # Only tidying: never wait for a writer, never fail a load.
        with (
            contextlib.suppress(OSError),
            _locked(target, shared=False, wait=False) as got,
        ):
            if got:
                _settle(target)


@contextlib.contextmanager
def folder_lock(
    path: str | os.PathLike[str], *, shared: bool = False
) -> Iterator[None]:
    """Holds the lock of a folder, against other processes and other threads.

    `replace_folder` takes it for the swap, so readers of several files take it
    `shared` to see one version of them. The same thread may take it again.

    Args:
      path: the folder; it need not exist, its parent is made.
      shared: let other readers in. Without the right to make the lock file a shared
        lock is not taken: nobody without that right can swap the folder either.

    Raises:
      ArgumentError: this thread holds the shared lock and asks for the exclusive one,
        for which it would wait for ever.
      WriteError: the lock file cannot be made.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "out")
      >>> with folder_lock(path):
      ...     [child.name for child in path.parent.iterdir()]
      ['.out.lock']
    """
    with _locked(_resolved(path), shared=shared, wait=True):
        yield


def _resolved(path: str | os.PathLike[str]) -> pathlib.Path:
    """The real place of `path`: a link is followed, so that its target is replaced."""
    target = pathlib.Path(os.path.realpath(os.path.expanduser(path)))
    check(bool(target.name), "path", str(path), "a path below the root of the disk")
    return target


def _backup_of(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.backup")


def _temp_of(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.tmp-{secrets.token_hex(6)}")


def _temps(target: pathlib.Path, *, folders: bool) -> Iterator[pathlib.Path]:
    prefix = f".{target.name}.tmp-"
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.is_dir() == folders:
                yield target.parent / entry.name


@contextlib.contextmanager
def _as_write_error(
    target: pathlib.Path, only: frozenset[int] | None = None
) -> Iterator[None]:
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        reason = error.strerror or str(error)
        raise WriteError(
            f"path: cannot write {str(target)!r} ({reason}); what stood there before "
            "still stands. Give a place that can be written and has room."
        ) from error


@contextlib.contextmanager
def _named(temp: pathlib.Path, target: pathlib.Path) -> Iterator[None]:
    """Errors speak of the folder that was asked for, not of the hidden one."""
    try:
        yield
    except WriteError as error:
        text = str(error)
        if str(temp) not in text:
            raise
        raise WriteError(text.replace(str(temp), str(target))) from error


def _check_replaceable(target: pathlib.Path, marker: str | None) -> None:
    if target.exists() and not target.is_dir():
        raise WriteError(f"path: {str(target)!r} is a file, expected a folder.")
    if marker is None or not target.exists() or (target / marker).exists():
        return
    if any(target.iterdir()):
        raise WriteError(
            f"path: {str(target)!r} holds files but no {marker!r}, so it is not a "
            "folder that this function wrote; expected a new, empty or earlier one."
        )


def _sync_folder(folder: pathlib.Path) -> None:
    if fcntl is None:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def _sync_tree(folder: pathlib.Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(root, name)
            if os.path.islink(file):
                continue
            handle = os.open(file, os.O_RDWR if fcntl is None else os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        _sync_folder(pathlib.Path(root))


def _try_flock(handle: int) -> bool | None:
    """True: now held; False: held by somebody; None: this place has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _new_temp_file(target: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new sibling file, marked as alive by a lock that dies with this process."""
    while True:
        temp = _temp_of(target)
        handle = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # A cleaner may have taken it between its making and its locking.
        if _try_flock(handle) is not False and _is_at(handle, temp):
            return temp, handle
        os.close(handle)


def _new_temp_folder(target: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """The same for a folder; the caller holds the lock that cleaners take."""
    temp = _temp_of(target)
    temp.mkdir()
    if fcntl is None:
        return temp, None
    handle = os.open(temp, os.O_RDONLY)
    _try_flock(handle)
    return temp, handle


def _remove_stale(target: pathlib.Path, *, folders: bool) -> None:
    """Removes the temporaries of writers that are certainly dead."""
    for temp in _temps(target, folders=folders):
        with contextlib.suppress(OSError):
            handle = os.open(temp, os.O_RDONLY)
            try:
                if _try_flock(handle):
                    shutil.rmtree(temp) if folders else os.unlink(temp)
            finally:
                os.close(handle)


def _swap(temp: pathlib.Path, target: pathlib.Path) -> None:
    """Moves `temp` to `target`; the caller holds the lock."""
    backup = _backup_of(target)
    _settle(target)
    try:
        if target.exists():
            os.rename(target, backup)
            _sync_folder(target.parent)
        os.rename(temp, target)
    except BaseException:
        if not target.exists() and backup.exists():
            os.rename(backup, target)
        raise
    # From here the new content stands: what is left of the old is only litter.
    with contextlib.suppress(OSError):
        _sync_folder(target.parent)
        _discard(backup)


def _discard(backup: pathlib.Path) -> None:
    """Removes a backup, first renamed: half of one must never look like content."""
    if not backup.exists():
        return
    target = backup.with_name(backup.name[1 : -len(".backup")])
    trash = _temp_of(target)
    os.rename(backup, trash)
    _sync_folder(backup.parent)
    shutil.rmtree(trash, ignore_errors=True)


def _settle(target: pathlib.Path) -> None:
    """Brings `target` and its siblings to rest; the caller holds the lock."""
    backup = _backup_of(target)
    if target.exists():
        _discard(backup)
    elif backup.exists():
        os.rename(backup, target)
        _sync_folder(target.parent)
    _remove_stale(target, folders=True)


class _Held(threading.local):
    """The locks of this thread: path -> [shared, depth]."""

    def __init__(self) -> None:
        self.locks: dict[pathlib.Path, list[int]] = {}


_held = _Held()


@contextlib.contextmanager
def _locked(target: pathlib.Path, *, shared: bool, wait: bool) -> Iterator[bool]:
    """Yields whether the lock is held, which is False only for `wait=False`."""
    mine = _held.locks.get(target)
    if mine is None:
        handle = _open_lock(target, shared=shared, wait=wait)
        if handle is None:
            yield shared or fcntl is None
            return
        mine = _held.locks[target] = [int(shared), 0]
    elif mine[0] and not shared:
        if not wait:
            yield False
            return
        raise ArgumentError(
            f"shared: got False while this thread holds the shared lock of "
            f"{str(target)!r}, expected the exclusive lock to be taken first."
        )
    else:
        handle = None
    mine[1] += 1
    try:
        yield True
    finally:
        mine[1] -= 1
        if handle is not None:
            del _held.locks[target]
            _close_lock(target, handle)


def _open_lock(target: pathlib.Path, *, shared: bool, wait: bool) -> int | None:
    if fcntl is None:
        return None
    lock = target.with_name(f".{target.name}.lock")
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    flags = os.O_CREAT | (os.O_RDONLY if shared else os.O_RDWR)
    while True:
        try:
            if not shared:
                target.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, flags, 0o666)
        except OSError as error:
            if shared:
                return None
            raise WriteError(
                f"path: cannot write {str(target)!r}, its lock {lock.name!r} cannot be "
                f"made ({error.strerror}); expected a folder that can be written."
            ) from error
        try:
            fcntl.flock(handle, operation | (0 if wait else fcntl.LOCK_NB))
            if _is_at(handle, lock):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder removed the file: lock the new one


def _close_lock(target: pathlib.Path, handle: int) -> None:
    """Releases, and removes the file unless another reader still holds it."""
    lock = target.with_name(f".{target.name}.lock")
    try:
        if _try_flock(handle) and _is_at(handle, lock):
            with contextlib.suppress(OSError):
                os.unlink(lock)
    finally:
        os.close(handle)
