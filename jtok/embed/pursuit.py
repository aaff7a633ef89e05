"""Sparse combinations of shared vectors: matching pursuit, orthogonal and plain.

All targets are solved at once, in one loop of `k` steps on the device. Ties go to the
lower index.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.embed._gram_pursuit import gram_is_cheaper, gram_pursuit
from jtok.embed.weighted import weighted_rows
from jtok.errors import ArgumentTypeError, check

__all__ = [
    "Pursuit",
    "combine",
    "first_best",
    "matching_pursuit",
    "orthogonal_pursuit",
]

Implementation = Literal["direct", "gram"]
RANK = 1e-4  # a pivot below this share of its atom's norm is no new direction
DONE = 1e-6  # a residual below this share of its target's norm is none
_HIGHEST = jax.lax.Precision.HIGHEST


class Pursuit(NamedTuple):
    """What each target is made of.

    Attributes:
      indices: `[targets, k]` int32 atoms in the order of their choice; -1 where a step
        chose none.
      coefficients: `[targets, k]` of the atoms as they were given; 0 beside -1.
      residuals: `[targets, k + 1]` norms of what is left after 0..k steps.
    """

    indices: jax.Array
    coefficients: jax.Array
    residuals: jax.Array


def orthogonal_pursuit(
    targets: Float[Array, "targets dim"],
    atoms: Float[Array, "atoms dim"],
    k: int,
    *,
    normalize_atoms: bool = False,
    implementation: Implementation | None = None,
    gram: Any = None,
) -> Pursuit:
    """Approximates each target by at most `k` atoms, chosen one after another.

    Each step takes the atom with the largest absolute inner product with what is left
    of the target, then fits all chosen ones by least squares. An atom that adds no
    direction (its part outside of the chosen ones is below 1e-4 of it) is passed over,
    which uses up the step; a target of which less than 1e-6 is left is done. Atoms of
    norm 0 are never chosen. Everything is float32, or float64 where that is given.

    Args:
      targets: `[targets, dim]`.
      atoms: `[atoms, dim]`; either axis may be sharded.
      k: steps, `1 <= k <= atoms` (static).
      normalize_atoms: choose by inner products over the norms of the atoms, as
        textbooks do; coefficients still are of the atoms as given.
      implementation: "direct" compares the residuals with all atoms in each step;
        "gram" keeps these products up to date, for many targets on a CPU; None takes
        the cheaper one.
      gram: `[atoms, atoms]` inner products of the atoms, if they are at hand; for
        "gram".

    Returns:
      `Pursuit`.

    Raises:
      ArgumentError: `k` out of range, or another width of targets and atoms.

    Source: Goddard and Fernandes Neto 2025, arXiv 2506.06607, algorithm 1. Differs:
      aware of rank, where the code clamps small pivots and equal atoms get huge
      coefficients of opposite signs; Gram-Schmidt twice in place of a rare QR.

    Example:
      >>> atoms = jnp.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 1]])
      >>> orthogonal_pursuit(jnp.array([[3.0, 4, 0]]), atoms, 2).indices.tolist()
      [[0, 1]]
    """
    targets, atoms = _checked(targets, atoms, k)
    if implementation is None:
        sizes = (targets.shape[0], atoms.shape[0], atoms.shape[1], k)
        cheaper = gram is not None or gram_is_cheaper(*sizes)
        cheaper = cheaper and _whole(targets, atoms)
        implementation = "gram" if cheaper else "direct"
    rules = (RANK, DONE)
    if implementation == "gram":
        solved = gram_pursuit(
            targets, atoms, k, normalize_atoms, rules=rules, gram=gram
        )
        return Pursuit(*solved)
    block = _block(targets, atoms)
    return _pursue(targets, atoms, k, normalize_atoms, rules, block)


def _checked(targets: Any, atoms: Any, k: int) -> tuple[jax.Array, jax.Array]:
    double = jnp.float64 in (targets.dtype, atoms.dtype)
    dtype = jnp.float64 if double else jnp.float32
    for name, rows in (("targets", targets), ("atoms", atoms)):
        if not jnp.issubdtype(rows.dtype, jnp.floating):
            raise ArgumentTypeError(f"{name}: got {rows.dtype}, expected floats.")
    width = targets.shape[1]
    good = atoms.shape[1] == width
    check(good, "atoms", f"width {atoms.shape[1]}", f"{width} as the targets have")
    count = atoms.shape[0]
    check(k >= 1, "k", k, "at least 1")
    check(k <= count, "k", k, f"at most {count}, the number of atoms")
    return targets.astype(dtype), atoms.astype(dtype)


def _whole(*arrays: jax.Array) -> bool:
    """Whether arrays lie on one CPU device, outside of a trace."""
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return False
    devices: set[Any] = set().union(*(array.devices() for array in arrays))
    return len(devices) == 1 and devices.pop().platform == "cpu"


def _block(targets: jax.Array, atoms: jax.Array) -> int | None:
    """Atoms that are compared at a time, so that scores stay below 256 MiB."""
    most = 2**26 // max(targets.shape[0], 1)
    sharded = not isinstance(atoms, jax.core.Tracer)
    sharded = sharded and len(atoms.sharding.device_set) > 1
    return None if sharded or atoms.shape[0] <= most else max(128, most)


class _State(NamedTuple):
    residual: jax.Array  # [targets, dim]
    basis: jax.Array  # [targets, k, dim] orthonormal, zero where not chosen
    factor: jax.Array  # [targets, k, k] upper triangular
    parts: jax.Array  # [targets, k] of the targets along the basis
    tried: jax.Array  # [targets, k] int32 atoms, -1 where not yet
    chosen: jax.Array  # [targets, k] bool
    norms: jax.Array  # [targets, k + 1]


@functools.partial(jax.jit, static_argnames=("k", "normalize_atoms", "rules", "block"))
def _pursue(
    targets: Float[Array, "targets dim"],
    atoms: Float[Array, "atoms dim"],
    k: int,
    normalize_atoms: bool,
    rules: tuple[float, float],
    block: int | None,
) -> Pursuit:
    count, dtype = targets.shape[0], targets.dtype
    lengths = jnp.linalg.norm(atoms, axis=1)
    over = jnp.where(lengths > 0, 1.0 / jnp.maximum(lengths, 1e-30), -1.0)
    scale = over if normalize_atoms else jnp.sign(over)
    size = jnp.linalg.norm(targets, axis=1)
    state = _State(
        targets,
        jnp.zeros((count, k, targets.shape[1]), dtype),
        jnp.zeros((count, k, k), dtype),
        jnp.zeros((count, k), dtype),
        jnp.full((count, k), -1, jnp.int32),
        jnp.zeros((count, k), bool),
        jnp.zeros((count, k + 1), dtype).at[:, 0].set(size),
    )

    def step(t: Int[Array, ""], state: _State) -> _State:
        place = _best(state.residual, atoms, scale.astype(dtype), state.tried, block)
        going = state.norms[:, t] > rules[1] * size
        return _added(t, state, place, atoms[place], lengths[place], going, rules[0])

    state = jax.lax.fori_loop(0, k, step, state)
    return Pursuit(
        jnp.where(state.chosen, state.tried, -1),
        _solved(state.factor, state.parts),
        state.norms,
    )


def _added(
    t: Int[Array, ""],
    state: _State,
    place: Int[Array, " targets"],
    atom: Float[Array, "targets dim"],
    length: Float[Array, " targets"],
    going: Array,
    rank: float,
) -> _State:
    """The state after trying one atom a target."""
    basis = state.basis
    along = _dots(basis, atom)
    rest = atom - _sums(along, basis)
    again = _dots(basis, rest)
    rest, along = rest - _sums(again, basis), along + again
    pivot = jnp.linalg.norm(rest, axis=1)
    good = going & (pivot > rank * length)
    pivot = jnp.maximum(pivot, 1e-8)
    unit = jnp.where(good[:, None], rest / pivot[:, None], 0.0)
    part = jnp.einsum("nd,nd->n", unit, state.residual, precision=_HIGHEST)
    residual = state.residual - part[:, None] * unit
    column = jnp.where(good[:, None], along, 0.0)
    column = column.at[:, t].set(jnp.where(good, pivot, 1.0))
    return _State(
        residual,
        basis.at[:, t].set(unit),
        state.factor.at[:, :, t].set(column),
        state.parts.at[:, t].set(part),
        state.tried.at[:, t].set(jnp.where(going, place, -1)),
        state.chosen.at[:, t].set(good),
        state.norms.at[:, t + 1].set(jnp.linalg.norm(residual, axis=1)),
    )


def _dots(basis: Array, vectors: Array) -> Array:
    return jnp.einsum("nkd,nd->nk", basis, vectors, precision=_HIGHEST)


def _sums(weights: Array, basis: Array) -> Array:
    return jnp.einsum("nk,nkd->nd", weights, basis, precision=_HIGHEST)


def _solved(factor: Array, parts: Array) -> Array:
    solve = functools.partial(jax.scipy.linalg.solve_triangular, lower=False)
    return jax.vmap(solve)(factor, parts)


def _best(
    residual: Float[Array, "targets dim"],
    atoms: Float[Array, "atoms dim"],
    scale: Float[Array, " atoms"],
    tried: Int[Array, "targets k"],
    block: int | None,
) -> Int[Array, " targets"]:
    """The atom with the largest absolute product; those tried and of norm 0 last."""
    if block is None:
        return _best_of(residual, atoms, scale, tried)[1]
    count = atoms.shape[0]
    pad = -count % block
    parts = jnp.pad(atoms, ((0, pad), (0, 0))).reshape(-1, block, atoms.shape[1])
    scales = jnp.pad(scale, (0, pad), constant_values=-1.0).reshape(-1, block)

    def further(best: Any, part: Any) -> Any:
        number, atoms, scale = part
        here = jnp.where(tried >= 0, tried - number * block, -1)
        here = jnp.where(here < block, here, -1)
        score, place = _best_of(residual, atoms, scale, here)
        better = score > best[0]
        place = jnp.where(better, place + number * block, best[1])
        return (jnp.maximum(score, best[0]), place), None

    rows = residual.shape[0]
    start = (jnp.full(rows, -jnp.inf, residual.dtype), jnp.zeros(rows, jnp.int32))
    numbers = jnp.arange(parts.shape[0], dtype=jnp.int32)
    return jax.lax.scan(further, start, (numbers, parts, scales))[0][1]


def _best_of(
    residual: Array, atoms: Array, scale: Array, tried: Array
) -> tuple[Array, Array]:
    products = jnp.einsum("nd,ad->na", residual, atoms, precision=_HIGHEST)
    score = jnp.where(scale[None, :] < 0, -jnp.inf, jnp.abs(products) * scale[None, :])
    rows = jnp.arange(tried.shape[0])[:, None]
    out = jnp.where(tried >= 0, tried, score.shape[1])  # beyond the end: dropped
    score = score.at[rows, out].set(-jnp.inf, mode="drop")
    best = score.max(axis=1)
    return best, first_best(score)


def first_best(
    score: Float[Array, "rows atoms"],
) -> Int[Array, " rows"]:
    """The first place of each row's maximum; far cheaper than argmax on a CPU.

    Args:
      score: `[rows, atoms]` without NaN.

    Returns:
      `[rows]` int32.

    Example:
      >>> first_best(jnp.array([[1.0, 3.0, 3.0]])).tolist()
      [1]
    """
    best = score.max(axis=1)
    places = jnp.arange(score.shape[1], dtype=jnp.int32)[None, :]
    at = jnp.where(score == best[:, None], places, score.shape[1] - 1)
    return at.min(axis=1)


def combine(
    pursuit: Pursuit, rows: Float[Array, "atoms dim"]
) -> Float[Array, "targets dim"]:
    """The same combinations of other rows.

    Args:
      pursuit: what each target is made of.
      rows: `[atoms, dim]`, the partner of each atom.

    Returns:
      `[targets, dim]` float32 (float64 of float64 coefficients).

    Source: arXiv 2506.06607, equation 3.

    Example:
      >>> atoms = jnp.eye(2)
      >>> found = orthogonal_pursuit(jnp.array([[3.0, 4.0]]), atoms, 2)
      >>> combine(found, 10 * atoms).tolist()
      [[30.0, 40.0]]
    """
    return weighted_rows(pursuit.indices, pursuit.coefficients, rows)


def matching_pursuit(
    targets: Float[Array, "targets dim"],
    atoms: Float[Array, "atoms dim"],
    k: int,
    *,
    compat: Literal["official"] | None = None,
) -> Pursuit:
    """Plain matching pursuit: what an atom explains is taken away, nothing is refitted.

    An atom may be chosen again; its coefficients then add up.

    Args:
      targets: `[targets, dim]`.
      atoms: `[atoms, dim]`.
      k: steps, `1 <= k <= atoms` (static).
      compat: "official" chooses by signed products, and never an atom twice.

    Returns:
      `Pursuit`.

    Raises:
      ArgumentError: as for `orthogonal_pursuit`.

    Source: Mallat and Zhang 1993, with raw inner products as in the code of arXiv
      2506.06607. Differs: absolute products, atoms that return.

    Example:
      >>> atoms = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> matching_pursuit(jnp.array([[3.0, -4.0]]), atoms, 2).coefficients.tolist()
      [[-2.0, 3.0]]
    """
    targets, atoms = _checked(targets, atoms, k)
    return _match(targets, atoms, k, compat is not None)


@functools.partial(jax.jit, static_argnames=("k", "signed"))
def _match(targets: Array, atoms: Array, k: int, signed: bool) -> Pursuit:
    squares = jnp.sum(atoms * atoms, axis=1)
    rows = jnp.arange(targets.shape[0])

    def step(state: Any, _: Any) -> Any:
        residual, used = state
        products = jnp.einsum("nd,ad->na", residual, atoms, precision=_HIGHEST)
        score = products if signed else jnp.abs(products)
        score = jnp.where((squares > 0)[None, :] & ~used, score, -jnp.inf)
        place = first_best(score)
        product = jnp.take_along_axis(products, place[:, None], axis=1)[:, 0]
        found = product / jnp.maximum(squares[place], 1e-30)
        residual = residual - found[:, None] * atoms[place]
        if signed:
            used = used.at[rows, place].set(True)
        return (residual, used), (place, found, jnp.linalg.norm(residual, axis=1))

    start = (targets, jnp.zeros((targets.shape[0], atoms.shape[0]), bool))
    _, (places, found, norms) = jax.lax.scan(step, start, None, length=k)
    norms = jnp.concatenate([jnp.linalg.norm(targets, axis=1)[None], norms])
    return Pursuit(places.T, found.T, norms.T)
