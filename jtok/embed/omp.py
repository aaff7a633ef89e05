"""Rows for new tokens: sparse combinations of shared ones, found in a donor's space."""

import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok import files
from jtok.embed._gram_pursuit import gram_is_cheaper, gram_matrix
from jtok.embed.donors import DonorRows, donor_rows, donor_view
from jtok.embed.init import (
    MADE,
    ZERO,
    EmbeddingInit,
    Made,
    Options,
    Task,
    initialiser,
)
from jtok.embed.pursuit import Pursuit, combine, orthogonal_pursuit
from jtok.errors import check
from jtok.ops.sharding import constrain, current_mesh

__all__ = ["omp"]

Progress = Callable[[str, int, int], None]


def omp(
    donor: Any,
    *,
    k: int = 64,
    normalize_atoms: bool = False,
    batch: int = 512,
    implementation: Literal["direct", "gram"] | None = None,
    progress: Progress | None = None,
    resume: str | os.PathLike[str] | None = None,
    options: Options | None = None,
) -> EmbeddingInit:
    """New rows from the shared tokens that spell them in another model.

    In the donor's space each new token is approximated by `k` shared tokens; the same
    combination of the source's rows is its row. Input and output matrix are solved
    apart; a tied donor's embedding serves for both. A token that the donor has no row
    for, or a row of zeros, gets zeros. Under a mesh, targets are split over "batch".

    Args:
      donor: a `Model`, `Rows`, folder or hub id; its vocabulary is the target's, or
        shares tokens with it.
      k: shared tokens in a combination, at least 1.
      normalize_atoms: choose by cosine, not by inner product.
      batch: targets at a time; the choices do not depend on it.
      implementation: see `orthogonal_pursuit`.
      progress: called with the matrix, targets done and all, after each batch.
      resume: folder for finished batches, so that a run that was killed goes on; they
        stay there.
      options: what all methods take.

    Returns:
      `EmbeddingInit`; its report's extras have the mean relative residual in the
      donor's space (`residual`) and the number of shared tokens (`anchors`).

    Raises:
      ArgumentError: `k` or `batch` below 1; when it runs, more than the shared tokens.
      VocabMismatchError: when it runs, nothing is shared.

    Source: Goddard and Fernandes Neto 2025, arXiv 2506.06607.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> old = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> donor = Rows(jnp.ones((280, 3)), None, tiny_vocabulary())
      >>> made, _, _ = omp(donor, k=1)(donor.vocabulary, old, jax.random.key(0))
      >>> made[-1].round(3).tolist()  # its donor row is that of a shared token
      [1.0, 1.0]
    """
    check(k >= 1, "k", k, "at least 1")
    check(batch >= 1, "batch", batch, "at least 1")
    giver = donor_rows(donor)
    settings = _Settings(k, normalize_atoms, batch, implementation, progress, resume)

    def make(task: Task) -> Made:
        view = donor_view(task, giver, least=k)
        return _made(task, view, settings)

    return initialiser("omp", make, options)


class _Settings(NamedTuple):
    k: int
    normalize_atoms: bool
    batch: int
    implementation: Any
    progress: Progress | None
    resume: Any


def _made(task: Task, view: DonorRows, settings: _Settings) -> Made:
    targets = view.targets.astype(_working(view.targets))
    parts, lost, count = [], [], targets.shape[0]
    for found in _batches(task.name, targets, view, settings):
        parts.append(combine(found, view.base.astype(jnp.float32)))
        size = np.asarray(found.residuals[:, 0])
        left = np.asarray(found.residuals[:, -1])
        lost.append(left / np.where(size > 0, size, 1.0))
    rows = jnp.zeros((len(view.found), task.source.shape[1]))
    if count:
        places = np.flatnonzero(view.found)
        rows = rows.at[places].set(jnp.concatenate(parts).astype(jnp.float32))
    how = np.full(len(view.found), ZERO, np.int8)
    sizes = np.asarray(jnp.abs(targets).max(axis=1)) if count else np.zeros(0)
    how[view.found] = np.where(sizes > 0, MADE, ZERO)
    residual = float(np.concatenate(lost).mean()) if count else 0.0
    extras = {"anchors": int(view.atoms.shape[0]), "residual": residual}
    return Made(rows, how, extras)


def _working(rows: jax.Array) -> Any:
    return jnp.float64 if rows.dtype == jnp.float64 else jnp.float32


def _batches(
    name: str, targets: jax.Array, view: DonorRows, settings: _Settings
) -> Any:
    """Solves batch by batch; those that a killed run left are read."""
    k, normalize = settings.k, settings.normalize_atoms
    atoms = view.atoms.astype(targets.dtype)
    count = targets.shape[0]
    size = min(settings.batch, max(count, 1))
    solve, gram = _solver(targets, atoms, settings)
    stamp = _stamp(targets, atoms, k, normalize) if settings.resume else ""
    for start in range(0, count, size):
        part = targets[start : start + size]
        padded = jnp.pad(part, ((0, size - len(part)), (0, 0)))
        file = None
        if settings.resume:
            place = f"{name}-{stamp}-{size}-{start}.npz"
            file = pathlib.Path(settings.resume) / place
        found = _read(file) or solve(padded, gram)
        found = Pursuit(*(field[: len(part)] for field in found))
        _write(file, found)
        if settings.progress is not None:
            settings.progress(name, start + len(part), count)
        yield found


def _solver(targets: jax.Array, atoms: jax.Array, settings: _Settings) -> Any:
    """How a batch is solved, and the Gram matrix if it pays for all together."""
    k, implementation = settings.k, settings.implementation
    mesh = current_mesh()
    if implementation is None:
        cheap = gram_is_cheaper(len(targets), len(atoms), atoms.shape[1], k)
        cpu = jax.default_backend() == "cpu" and mesh is None
        implementation = "gram" if cheap and cpu else "direct"
    gram = gram_matrix(atoms) if implementation == "gram" else None

    def solve(part: jax.Array, gram: Any) -> Pursuit:
        if mesh is not None and part.shape[0] % mesh.shape.get("data", 1) == 0:
            part = jax.jit(lambda x: constrain(x, "batch", None))(part)
        return orthogonal_pursuit(
            part, atoms, k, normalize_atoms=settings.normalize_atoms,
            implementation=implementation, gram=gram,
        )  # fmt: skip

    return solve, gram


def _stamp(targets: jax.Array, atoms: jax.Array, k: int, normalize: bool) -> str:
    """A name for what is solved, so that another run's batches are not taken."""
    digest = hashlib.sha256(f"{k} {normalize} {targets.dtype}".encode())
    for rows in (targets, atoms):
        digest.update(f"{rows.shape}".encode())
        digest.update(np.ascontiguousarray(np.asarray(rows)).view(np.uint8).data)
    return digest.hexdigest()[:16]


def _read(file: pathlib.Path | None) -> Pursuit | None:
    if file is None or not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        return Pursuit(*(jnp.asarray(stored[name]) for name in Pursuit._fields))


def _write(file: pathlib.Path | None, found: Pursuit) -> None:
    if file is None or file.is_file():
        return
    content = io.BytesIO()
    arrays: dict[str, Any] = {
        name: np.asarray(x) for name, x in zip(found._fields, found, strict=True)
    }
    np.savez(content, **arrays)
    files.write_atomic(file, content.getvalue())
