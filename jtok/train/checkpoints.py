"""Checkpoints of a training run, written by Orbax while the next steps compute."""

import json
import os
import pathlib
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jtok.errors import CheckpointError, MissingFileError, WriteError, check

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints below one folder, the newest `keep` of them.

    Each is a folder named by its step with two Orbax items: `arrays` (a standard
    tree) and `position` (JSON). It is written under a temporary name and renamed when
    whole, so a half-written one is never picked up; what a killed writer left is
    removed when the folder is opened. In a run of several processes all make the same
    calls.

    Args:
      folder: made if missing.
      keep: newest checkpoints to keep, >= 1.

    Raises:
      ArgumentError: `keep` < 1.
      WriteError: the folder cannot be made.

    Example:
      >>> import jax.numpy as jnp, tempfile
      >>> tree = {"w": jnp.arange(3.0)}
      >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
      ...     checkpoints.save(7, tree, {"epoch": 1})
      >>> with Checkpoints(checkpoints.folder) as again:
      ...     restored, position = again.restore(again.latest(), tree)
      >>> again.latest(), position
      (7, {'epoch': 1})
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3) -> None:
        import orbax.checkpoint as ocp

        check(isinstance(keep, int) and keep >= 1, "keep", keep, "a count >= 1")
        self.folder = pathlib.Path(os.path.abspath(os.path.expanduser(folder)))
        policy = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, cleanup_tmp_directories=True
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                # Named here so that the metadata of old checkpoints can be read too.
                item_handlers={
                    "arrays": ocp.StandardCheckpointHandler(),
                    "position": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise _write_error(self.folder, error) from error
        self._latest: int | None = self._manager.latest_step()

    def latest(self) -> int | None:
        """Step of the newest checkpoint, being written or whole; None without any.

        Example:
          >>> import tempfile
          >>> Checkpoints(tempfile.mkdtemp()).latest() is None
          True
        """
        return self._latest

    def steps(self) -> list[int]:
        """Steps of the checkpoints that stand, rising.

        Example:
          >>> import tempfile
          >>> Checkpoints(tempfile.mkdtemp()).steps()
          []
        """
        self.wait()
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, position: Any) -> None:
        """Starts writing a checkpoint; returns once `tree` may be donated.

        Waits first for the checkpoint before, if that is still being written.

        Args:
          step: updates done so far; more than `latest()`.
          tree: the arrays, any pytree.
          position: anything that JSON takes; each process may give its own.

        Raises:
          ArgumentError: `step` is not above `latest()`.
          WriteError: the disk refuses, now or for the checkpoint before.

        Example:
          >>> import jax.numpy as jnp, tempfile
          >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
          ...     checkpoints.save(1, {"w": jnp.ones(2)}, None)
        """
        import orbax.checkpoint as ocp

        newer = self._latest is None or step > self._latest
        check(newer, "step", step, f"more than the latest, {self._latest}")
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(tree),
            position=ocp.args.JsonSave({"processes": _of_all_processes(position)}),
        )
        try:
            self._manager.save(step, args=items)
        except OSError as error:
            raise _write_error(self.folder, error) from error
        self._latest = step

    def restore(self, step: int, target: Any) -> tuple[Any, Any]:
        """Reads a checkpoint into the structure, types and shardings of `target`.

        Args:
          step: one of `steps()`.
          target: arrays, or `jax.ShapeDtypeStruct`s with the shardings wanted now;
            those the checkpoint was written with do not matter.

        Returns:
          The arrays, and this process's `position`.

        Raises:
          MissingFileError: there is no checkpoint of that step.
          CheckpointError: it is damaged, or has other arrays than `target`; all
            differences are listed.

        Example: see the class.
        """
        import orbax.checkpoint as ocp

        path = self.folder / str(step)
        if step not in self.steps():
            raise MissingFileError(
                f"step: got {step}, but {str(self.folder)!r} has {self.steps()}."
            )
        abstract = jax.tree.map(_abstract, target)
        try:
            self._check_arrays(path, step, abstract)
            items = ocp.args.Composite(
                arrays=ocp.args.StandardRestore(abstract),
                position=ocp.args.JsonRestore(),
            )
            read = self._manager.restore(step, args=items)
            positions = read["position"]["processes"]
        except CheckpointError:
            raise
        # Orbax and TensorStore have no common class for what a damaged file raises.
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint {str(path)!r} is damaged: {_first_line(error)} "
                "Remove it to go on from the one before."
            ) from error
        return read["arrays"], _of_this_process(path, positions)

    def _check_arrays(self, path: pathlib.Path, step: int, abstract: Any) -> None:
        metadata = self._manager.item_metadata(step)["arrays"]
        if metadata is None:
            raise CheckpointError(f"{str(path)!r}: the item 'arrays' is missing.")
        stored = _named_leaves(metadata.tree)
        wanted = _named_leaves(abstract)
        problems = [
            f"{name}: only in the checkpoint" for name in stored.keys() - wanted.keys()
        ]
        problems += [
            f"{name}: not in the checkpoint" for name in wanted.keys() - stored.keys()
        ]
        for name in wanted.keys() & stored.keys():
            have, want = stored[name], wanted[name]
            if jax.dtypes.issubdtype(want.dtype, jax.dtypes.extended):
                continue  # random keys are stored as their words
            have_is, want_is = (
                (tuple(x.shape), np.dtype(x.dtype).name) for x in (have, want)
            )
            if have_is != want_is:
                problems.append(f"{name}: stored {have_is}, expected {want_is}")
        if problems:
            lines = "\n  ".join(sorted(problems))
            raise CheckpointError(
                f"the checkpoint {str(path)!r} is of another run; give that run's "
                f"model and optimizer, or another folder:\n  {lines}"
            )

    def wait(self) -> None:
        """Returns when everything saved stands on disk.

        Raises:
          WriteError: the disk refused.

        Example:
          >>> import tempfile
          >>> Checkpoints(tempfile.mkdtemp()).wait()
        """
        try:
            self._manager.wait_until_finished()
        except OSError as error:
            raise _write_error(self.folder, error) from error

    def close(self) -> None:
        """Waits, and ends the threads that write; leaving a `with` block calls it.

        Raises:
          WriteError: the disk refused.

        Example:
          >>> import tempfile
          >>> Checkpoints(tempfile.mkdtemp()).close()
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _write_error(folder: pathlib.Path, error: OSError) -> WriteError:
    reason = error.strerror or _first_line(error)
    return WriteError(
        f"folder: cannot write checkpoints below {str(folder)!r} ({reason}); those "
        "that stood there still stand."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {
        ".".join(_entry_name(entry) for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _entry_name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _of_all_processes(position: Any) -> list[Any]:
    """What every process gave, in the order of the processes."""
    if jax.process_count() == 1:
        return [position]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(position).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size]))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(row[: int(size)]).decode())
        for row, size in zip(rows, sizes.reshape(-1))
    ]


def _of_this_process(path: pathlib.Path, positions: list[Any]) -> Any:
    if all(position == positions[0] for position in positions):
        return positions[0]
    if len(positions) != jax.process_count():
        raise CheckpointError(
            f"the checkpoint {str(path)!r} has a data position for each of "
            f"{len(positions)} processes, and there are {jax.process_count()} now."
        )
    return positions[jax.process_index()]
