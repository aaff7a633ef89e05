"""Orthogonal matching pursuit that keeps the products with all atoms up to date.

A step of the direct way costs a product of the residual with every atom. Here the
products of each new direction with every atom follow from those of the atoms with each
other (the Gram matrix) and of the directions before, and the residual's from both:
`k` numbers an atom in place of `dim`. Targets are taken a few at a time, so that their
directions' products stay in the cache of a CPU.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["gram_is_cheaper", "gram_matrix", "gram_pursuit"]

_MOST = 40_000  # atoms whose products with each other are kept: 6 GiB
_STREAMED = 6.0  # how much longer a number takes that streams from cache
_TOGETHER = 1  # targets at a time
_STAGE = 16  # steps between two sizes of what is read
_HIGHEST = jax.lax.Precision.HIGHEST


def gram_is_cheaper(targets: int, atoms: int, dim: int, k: int) -> bool:
    """Whether keeping products up to date costs less than taking them anew."""
    direct = 2.0 * targets * atoms * dim * k
    kept = 1.2 * atoms**2 * dim + 2.0 * targets * atoms * (dim + _STREAMED * k * k / 2)
    small = 2.0 * targets * atoms * k * 200  # an overhead of each step
    return atoms <= _MOST and direct > kept + small


@functools.partial(jax.jit, static_argnames=("start", "stop"), donate_argnums=0)
def _gram_rows(gram: Array, atoms: Array, start: int, stop: int) -> Array:
    """Fills rows from the diagonal on, and their mirror image."""
    rows = jnp.einsum("id,jd->ij", atoms[start:stop], atoms[start:], precision=_HIGHEST)
    gram = gram.at[start:, start:stop].set(rows.T)
    return gram.at[start:stop, start:].set(rows)


def gram_matrix(atoms: Float[Array, "atoms dim"]) -> Float[Array, "atoms atoms"]:
    """Inner products of all atoms, each pair once."""
    count = atoms.shape[0]
    size = max(256, -(-count // 8))
    gram = jnp.zeros((count, count), atoms.dtype)
    for start in range(0, count, size):
        gram = _gram_rows(gram, atoms, start, min(start + size, count))
    return gram


class _State(NamedTuple):
    scores: jax.Array  # [few, atoms] products of the residual with all atoms
    residual: jax.Array  # [few, dim]
    basis: jax.Array  # [few, stage, dim] directions of this stage
    spread: jax.Array  # [few, stage, atoms] their products with all atoms
    factor: jax.Array  # [few, k, k]
    parts: jax.Array  # [few, k]
    tried: jax.Array  # [few, k]
    chosen: jax.Array  # [few, k]
    norms: jax.Array  # [few, k + 1]


class _Shared(NamedTuple):
    atoms: jax.Array
    gram: jax.Array
    lengths: jax.Array
    scale: jax.Array


def gram_pursuit(
    targets: Float[Array, "targets dim"],
    atoms: Float[Array, "atoms dim"],
    k: int,
    normalize_atoms: bool,
    *,
    rules: tuple[float, float],
    gram: Any = None,
) -> tuple[Array, Array, Array]:
    """Indices, coefficients and norms as `orthogonal_pursuit` returns them."""
    gram = gram_matrix(atoms) if gram is None else gram
    return _solve(targets, atoms, gram, k, normalize_atoms, rules)


@functools.partial(jax.jit, static_argnames=("k", "normalize_atoms", "rules"))
def _solve(
    targets: Array,
    atoms: Array,
    gram: Array,
    k: int,
    normalize_atoms: bool,
    rules: tuple[float, float],
) -> tuple[Array, Array, Array]:
    count = targets.shape[0]
    pad = -count % _TOGETHER
    padded = jnp.pad(targets, ((0, pad), (0, 0)))
    products = jnp.einsum("nd,ad->na", padded, atoms, precision=_HIGHEST)
    lengths = jnp.linalg.norm(atoms, axis=1)
    over = jnp.where(lengths > 0, 1.0 / jnp.maximum(lengths, 1e-30), 0.0)
    scale = over if normalize_atoms else jnp.sign(over)
    shared = _Shared(atoms, gram, lengths, scale)
    few = functools.partial(_few, shared, k, rules)
    grouped = jax.tree.map(
        lambda x: x.reshape(-1, _TOGETHER, x.shape[1]), (padded, products)
    )
    done = jax.lax.map(few, grouped)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], done)


def _few(
    shared: _Shared,
    k: int,
    rules: tuple[float, float],
    group: tuple[Array, Array],
) -> tuple[Array, Array, Array]:
    """A few targets, whose working set fits a cache."""
    targets, products = group
    (rows, dim), dtype = targets.shape, targets.dtype
    size = jnp.linalg.norm(targets, axis=1)
    state = _State(
        products,
        targets,
        targets[:, :0],
        targets[:, :0],
        jnp.zeros((rows, k, k), dtype),
        jnp.zeros((rows, k), dtype),
        jnp.full((rows, k), -1, jnp.int32),
        jnp.zeros((rows, k), bool),
        jnp.zeros((rows, k + 1), dtype).at[:, 0].set(size),
    )
    done: tuple[tuple[Array, Array], ...] = ()
    for start in range(0, k, _STAGE):
        stop = min(start + _STAGE, k)
        state = state._replace(
            basis=jnp.zeros((rows, stop - start, dim), dtype),
            spread=jnp.zeros((rows, stop - start, products.shape[1]), dtype),
        )
        step = functools.partial(_step, shared, done, start, rules[0], rules[1] * size)
        state = jax.lax.fori_loop(start, stop, step, state)
        done += ((state.basis, state.spread),)
    solve = functools.partial(jax.scipy.linalg.solve_triangular, lower=False)
    found = jax.vmap(solve)(state.factor, state.parts)
    return jnp.where(state.chosen, state.tried, -1), found, state.norms


def _step(
    shared: _Shared,
    done: tuple[tuple[Array, Array], ...],
    start: int,
    rank: float,
    least: Array,
    t: Array,
    state: _State,
) -> _State:
    """One step of a stage; what earlier stages found is `done`."""
    rows = jnp.arange(state.scores.shape[0])
    score = jnp.abs(state.scores) * shared.scale[None, :]
    score = score.at[rows[:, None], jnp.where(state.tried >= 0, state.tried, 0)].min(
        jnp.where(state.tried >= 0, -1.0, jnp.inf)
    )
    place = _first_at(score)
    going = state.norms[:, t] > least
    atom = shared.atoms[place]
    bases = [*(basis for basis, _ in done), state.basis]
    spreads = [*(spread for _, spread in done), state.spread]
    along, rest = _taken(atom, bases)
    again, rest = _taken(rest, bases)
    along = [first + second for first, second in zip(along, again, strict=True)]
    pivot = jnp.linalg.norm(rest, axis=1)
    good = going & (pivot > rank * shared.lengths[place])
    over = jnp.where(good, 1.0 / jnp.maximum(pivot, 1e-30), 0.0)
    unit = rest * over[:, None]
    part = jnp.einsum("nd,nd->n", unit, state.residual, precision=_HIGHEST)
    residual = state.residual - part[:, None] * unit
    new = shared.gram[place]
    for weights, spread in zip(along, spreads, strict=True):
        new = new - jnp.einsum("nk,nka->na", weights, spread, precision=_HIGHEST)
    new = new * over[:, None]
    column = jnp.where(good[:, None], jnp.concatenate(along, axis=1), 0.0)
    column = jnp.pad(column, ((0, 0), (0, state.parts.shape[1] - column.shape[1])))
    column = column.at[:, t].set(jnp.where(good, pivot, 1.0))
    return _State(
        state.scores - part[:, None] * new,
        residual,
        state.basis.at[:, t - start].set(unit),
        state.spread.at[:, t - start].set(new),
        state.factor.at[:, :, t].set(column),
        state.parts.at[:, t].set(part),
        state.tried.at[:, t].set(jnp.where(going, place, -1)),
        state.chosen.at[:, t].set(good),
        state.norms.at[:, t + 1].set(jnp.linalg.norm(residual, axis=1)),
    )


def _taken(vector: Array, bases: list[Array]) -> tuple[list[Array], Array]:
    """What of a vector lies along the directions, and the rest."""
    along = [
        jnp.einsum("nkd,nd->nk", basis, vector, precision=_HIGHEST) for basis in bases
    ]
    for weights, basis in zip(along, bases, strict=True):
        vector = vector - jnp.einsum("nk,nkd->nd", weights, basis, precision=_HIGHEST)
    return along, vector


def _first_at(score: Array) -> Array:
    best = score.max(axis=1)
    places = jnp.arange(score.shape[1], dtype=jnp.int32)[None, :]
    at = jnp.where(score == best[:, None], places, score.shape[1] - 1)
    return at.min(axis=1)
