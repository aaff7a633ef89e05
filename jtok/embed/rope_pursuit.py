"""Matching pursuit whose atoms may also be turned, as rotary positions turn them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.embed.donors import donor_rows, donor_view
from jtok.embed.init import EmbeddingInit, Made, Options, Task, initialiser
from jtok.embed.neighbours import _in_blocks, _spread
from jtok.embed.pursuit import first_best
from jtok.errors import ArgumentError, check

__all__ = ["Turned", "fitted_positions", "mp_rope", "rope_pursuit", "turn"]

_HIGHEST = jax.lax.Precision.HIGHEST


class Turned(NamedTuple):
    """What each target is made of.

    Attributes:
      indices: `[targets, k]` int32 atoms, distinct in a row.
      positions: `[targets, k]` float32 rotary position of each.
      coefficients: `[targets, k]` float32 of the turned atoms, by least squares.
      greedy: `[targets, dim]` float32 what the pursuit explained before these.
    """

    indices: jax.Array
    positions: jax.Array
    coefficients: jax.Array
    greedy: jax.Array


def _frequencies(width: int, base: float) -> Array:
    return base ** (-jnp.arange(0, width, 2) / width)


def turn(
    rows: Float[Array, "*rows dim"],
    positions: Float[Array, "*rows"],
    *,
    heads: int,
    base: float,
) -> Float[Array, "*rows dim"]:
    """Turns rows as rotary positions turn queries, head by head.

    Dimension i of the first half of a head turns with i of its second half.

    Args:
      rows: `[..., dim]`.
      positions: `[...]`, not only whole numbers.
      heads: that share `dim` (static).
      base: of the frequencies.

    Returns:
      `[..., dim]` float32.

    Source: Su et al. 2021 (RoPE), arXiv 2104.09864, in the layout of Llama.

    Example:
      >>> turn(jnp.array([1.0, 0.0]), jnp.array(jnp.pi / 2), heads=1, base=1e4).round(3)
      Array([-0.,  1.], dtype=float32)
    """
    one, other = _halves(rows, heads)
    frequencies = _frequencies(2 * one.shape[-1], base)
    shape = (*positions.shape, 1, frequencies.shape[0])
    angle = positions[..., None, None] * jnp.broadcast_to(frequencies, shape)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = [one * cos - other * sin, one * sin + other * cos]
    return jnp.concatenate(turned, axis=-1).reshape(rows.shape)


def _halves(rows: Array, heads: int) -> tuple[Array, Array]:
    """The two halves of every head, `[..., heads, half]`."""
    half = rows.shape[-1] // heads // 2
    split = rows.reshape(*rows.shape[:-1], heads, 2, half)
    return split[..., 0, :], split[..., 1, :]


def fitted_positions(
    rows: Float[Array, "*rows dim"],
    wanted: Float[Array, "*rows dim"],
    *,
    heads: int,
    base: float,
) -> Float[Array, "*rows"]:
    """The rotary position that best turns each row towards a wanted one.

    Each pair of dimensions asks for an angle; the position is that whose angles are
    nearest to all of them.

    Args:
      rows: `[..., dim]`.
      wanted: `[..., dim]`.
      heads: that share `dim` (static).
      base: of the frequencies.

    Returns:
      `[...]` float32.

    Source: the code of arXiv 2506.06607.

    Example:
      >>> row = jnp.arange(1.0, 9.0)
      >>> turned = turn(row, jnp.array(0.5), heads=2, base=1e4)
      >>> float(fitted_positions(row, turned, heads=2, base=1e4).round(3))
      0.5
    """
    (a, b), (c, d) = _halves(rows, heads), _halves(wanted, heads)
    angles = jnp.arctan2(a * d - b * c, a * c + b * d)
    frequencies = _frequencies(2 * a.shape[-1], base)
    total = jnp.einsum("...hf,f->...", angles, frequencies, precision=_HIGHEST)
    return total / (heads * (frequencies**2).sum())


def rope_pursuit(
    targets: Float[Array, "targets dim"],
    atoms: Float[Array, "atoms dim"],
    k: int,
    *,
    heads: int,
    base: float = 10_000.0,
) -> Turned:
    """Approximates targets by atoms that are turned towards what is left of them.

    Each step takes the atom, not turned, with the largest absolute product with the
    residual, turns it by the smaller of the positions fitted to the residual and to its
    negative, and takes away what it explains. At the end all are fitted together.

    Args:
      targets: `[targets, dim]` float32.
      atoms: `[atoms, dim]` float32.
      k: steps, `1 <= k <= atoms` (static).
      heads: that share `dim`; each head has an even number of dimensions.
      base: of the rotary frequencies.

    Returns:
      `Turned`; of equal atoms the lower index.

    Raises:
      ArgumentError: `k` or `heads` out of range.

    Source: `mp_rope` of the code of arXiv 2506.06607.

    Example:
      >>> atoms = jnp.eye(4)
      >>> rope_pursuit(2 * atoms[:1], atoms, 1, heads=2).indices.tolist()
      [[0]]
    """
    check(1 <= k <= len(atoms), "k", k, f"1 to {len(atoms)}, the number of atoms")
    _check_heads(targets.shape[1], heads)
    return _pursue(targets, atoms, k, heads, base)


def _check_heads(width: int, heads: int) -> None:
    good = heads >= 1 and width % (2 * heads) == 0
    check(good, "heads", heads, f"a count that cuts {width} dimensions evenly in pairs")


@functools.partial(jax.jit, static_argnames=("k", "heads", "base"))
def _pursue(targets: Array, atoms: Array, k: int, heads: int, base: float) -> Turned:
    fit = functools.partial(fitted_positions, heads=heads, base=base)
    rows = jnp.arange(targets.shape[0])

    def step(state: Any, _: Any) -> Any:
        residual, used = state
        products = jnp.einsum("nd,ad->na", residual, atoms, precision=_HIGHEST)
        place = first_best(jnp.where(used, -jnp.inf, jnp.abs(products)))
        atom = atoms[place]
        ahead, behind = fit(atom, residual), fit(atom, -residual)
        position = jnp.where(jnp.abs(ahead) < jnp.abs(behind), ahead, behind)
        turned = turn(atom, position, heads=heads, base=base)
        explained = jnp.sum(residual * turned, axis=1)
        share = explained / jnp.maximum(jnp.sum(turned**2, axis=1), 1e-8)
        left = residual - share[:, None] * turned
        return (left, used.at[rows, place].set(True)), (place, position)

    start = (targets, jnp.zeros((targets.shape[0], atoms.shape[0]), bool))
    (left, _), (places, positions) = jax.lax.scan(step, start, None, length=k)
    turned = turn(atoms[places.T], positions.T, heads=heads, base=base)
    solve = lambda points, target: jnp.linalg.lstsq(points.T, target)[0]
    found = jax.vmap(solve)(turned, targets)
    return Turned(places.T, positions.T, found, targets - left)


def mp_rope(
    donor: Any,
    *,
    k: int = 64,
    heads: tuple[int, int],
    bases: tuple[float, float] = (10_000.0, 10_000.0),
    options: Options | None = None,
) -> EmbeddingInit:
    """New rows by combinations of turned shared tokens; an experiment of the paper.

    Args:
      donor: a `Model`, `Rows`, folder or hub id, as for `omp`.
      k: shared tokens in a combination.
      heads: attention heads of the donor and of the source.
      bases: of their rotary frequencies.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: `k` below 1, heads that do not cut the widths evenly; when it runs,
        more than the shared tokens.
      VocabMismatchError: when it runs, nothing is shared.

    Source: as for `rope_pursuit`.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> old = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> donor = Rows(jax.random.normal(jax.random.key(1), (280, 4)), None,
      ...     tiny_vocabulary())
      >>> mp_rope(donor, k=1, heads=(2, 1))(
      ...     donor.vocabulary, old, jax.random.key(0))[0].shape
      (280, 2)
    """
    check(k >= 1, "k", k, "at least 1")
    if len(heads) != 2 or len(bases) != 2:
        raise ArgumentError(f"heads: got {heads}, expected the donor's, the source's.")
    giver = donor_rows(donor)
    _check_heads(giver.input.shape[1], heads[0])

    def make(task: Task) -> Made:
        _check_heads(task.source.shape[1], heads[1])
        view = donor_view(task, giver, least=k)
        atoms, base = (x.astype(jnp.float32) for x in (view.atoms, view.base))

        def block(targets: Array) -> Array:
            wanted = targets.astype(jnp.float32)
            found = rope_pursuit(wanted, atoms, k, heads=heads[0], base=bases[0])
            turned = turn(
                base[found.indices], found.positions, heads=heads[1], base=bases[1]
            )
            return jnp.einsum(
                "nk,nkd->nd", found.coefficients, turned, precision=_HIGHEST
            )

        return _spread(_in_blocks(block, view.targets, base.shape[1]), view.found)

    return initialiser("mp_rope", make, options)
