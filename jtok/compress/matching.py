"""Sources and targets: which tokens may join which, and which of them do."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.energy import unit_rows
from jtok.ops.plan import Plan, join_plan

__all__ = ["Removal", "Sides", "best_matches", "budget_of", "check_metric", "plan_of"]

_BLOCK = 256  # sources that look at their targets at once, where there are many


class Removal(NamedTuple):
    """How many tokens leave.

    Attributes:
      most: of rows without padding (static).
      each: `[batch]` int32 of every row.
    """

    most: int
    each: jax.Array


class Sides(NamedTuple):
    """The two sides of a match, as token indices.

    Attributes:
      source: `[batch, sources]` int32.
      target: `[batch, targets]` int32.
      from_ok: `[batch, sources]` bool: the source may join.
      to_ok: `[batch, targets]` bool: the target may be joined.
    """

    source: jax.Array
    target: jax.Array
    from_ok: jax.Array
    to_ok: jax.Array


def check_metric(
    metric: Array, protect: int, valid: Array | None
) -> Bool[Array, "batch seq"]:
    """Refuses shapes that do not belong together; returns which tokens are real."""
    shape = metric.shape
    good = metric.ndim == 3 and shape[1] >= 1
    check(good, "metric", f"shape {shape}", "[batch, seq, dim], a token or more")
    most = shape[1]
    good = isinstance(protect, int) and 0 <= protect <= most
    check(good, "protect", protect, f"0 to {most}, the tokens of the sequence")
    if valid is None:
        return jnp.ones(shape[:2], bool)
    expected = f"{shape[:2]}, the tokens of the metric"
    check(valid.shape == shape[:2], "valid", f"shape {valid.shape}", expected)
    return valid.astype(bool)


def removed(count: int, keep: float) -> int:
    """Tokens that leave of `count` where a share `keep` of them stays.

    Computed in float64 exactly as the official code writes it: other forms of the same
    formula round another way.
    """
    return math.floor(count - count * keep)


def budget_of(
    valid: Bool[Array, "batch seq"],
    protect: int,
    limit: Callable[[int], int],
    *,
    keep: float | None,
    remove: int | None,
    budget: int | None = None,
    least: float = 0.0,
) -> Removal:
    """How many tokens of each row leave.

    Args:
      valid: `[batch, seq]` bool.
      protect: first tokens that never leave; they do not count.
      limit: of so many tokens that may leave or be joined, how many can leave.
      keep: share of the others that stays, or None.
      remove: how many leave, or None.
      budget: how many stay, protected ones included, or None; exactly one of the three
        is given.
      least: the smallest `keep`.

    Raises:
      ArgumentError: none or several of them, or one out of its range.
    """
    if budget is None:
        one = (keep is None) != (remove is None)
        check(one, "keep, remove", (keep, remove), "exactly one of the two")
    else:
        one = keep is None and remove is None
        check(one, "budget", (budget, keep, remove), "no keep nor remove beside it")
    seq = valid.shape[1]
    if budget is not None:
        stay = int(budget)
        good = isinstance(budget, (int, np.integer)) and max(protect, 1) <= stay <= seq
        check(good, "budget", budget, f"{max(protect, 1)} to {seq}, the tokens")
        wanted: Callable[[int], int] = lambda count: max(count + protect - stay, 0)
    elif keep is not None:
        share = float(keep)
        expected = f"{least:g} to 1"
        check(least <= share <= 1.0, "keep", keep, expected)  # NaN fails, too
        wanted = lambda count: removed(count, share)
    else:
        good = isinstance(remove, (int, np.integer)) and remove >= 0
        check(good, "remove", remove, "an integer of at least 0")
        wanted = lambda count: int(remove)  # type: ignore[arg-type]
    table = [
        min(wanted(count), limit(count)) for count in range(max(seq - protect, 0) + 1)
    ]
    real = jnp.sum(valid[:, protect:], axis=1)
    return Removal(table[-1], jnp.asarray(np.array(table, np.int32))[real])


def best_matches(
    metric: Float[Array, "batch seq dim"], sides: Sides
) -> tuple[Float[Array, "batch sources"], Int[Array, "batch sources"]]:
    """The target that is most similar to each source.

    Similarities are cosines in float32. Ties go to the target that is named first.

    Args:
      metric: `[batch, seq, dim]`, any scale.
      sides: who may join whom.

    Returns:
      The cosine `[batch, sources]` (-inf where a source may not join, or nothing may
      be joined) and the token joined `[batch, sources]` int32.
    """
    unit = unit_rows(metric)
    pick = lambda at: jnp.take_along_axis(unit, at[..., None], axis=1)
    sources, targets = pick(sides.source), pick(sides.target)

    def match(some: tuple[Array, Array]) -> tuple[Array, Array]:
        return _best_of(some[0], targets, some[1], sides.to_ok)

    batch, count = sides.source.shape
    if count <= 2 * _BLOCK:
        best, to = match((sources, sides.from_ok))
    else:
        blocks = -(-count // _BLOCK)

        def cut(x: Array) -> Array:
            """[b, sources, ..] -> [blocks, b, _BLOCK, ..]."""
            pads = [
                (0, blocks * _BLOCK - count if i == 1 else 0) for i in range(x.ndim)
            ]
            shape = (batch, blocks, _BLOCK, *x.shape[2:])
            return jnp.moveaxis(jnp.pad(x, pads).reshape(shape), 1, 0)

        joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :count]
        found = jax.lax.map(match, (cut(sources), cut(sides.from_ok)))
        best, to = jax.tree.map(joined, found)
    return best, jnp.take_along_axis(sides.target, to, axis=1).astype(jnp.int32)


def _best_of(
    sources: Array, targets: Array, from_ok: Array, to_ok: Array
) -> tuple[Array, Array]:
    """The largest allowed cosine of every source, and the first target that has it."""
    cosine = jnp.einsum(
        "bsd,btd->bst", sources, targets, precision=jax.lax.Precision.HIGHEST
    )
    allowed = from_ok[:, :, None] & to_ok[:, None, :]
    cosine = jnp.where(allowed, cosine, -jnp.inf)
    best = jnp.max(cosine, axis=-1)
    # Two plain reductions are several times as fast as one arg-max of pairs.
    count = cosine.shape[2]
    index = jnp.arange(count, dtype=jnp.int32)[None, None]
    first = jnp.where(cosine == best[..., None], index, count)
    return best, jnp.minimum(jnp.min(first, axis=-1), count - 1)


def plan_of(
    sides: Sides,
    joined: Int[Array, "batch sources"],
    leaves: Bool[Array, "batch sources"],
    order: Array,
    num_rows: int,
    valid: Bool[Array, "batch seq"],
    **described: Any,
) -> Plan:
    """The plan in which the sources that leave join their targets."""
    batch, seq = valid.shape
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    where = jnp.where(leaves, sides.source, seq)
    wide = jnp.pad(index, ((0, 0), (0, 1)))
    joins = jax.vmap(lambda a, at, to: a.at[at].set(to))(wide, where, joined)[:, :seq]
    return join_plan(joins, order, num_rows, valid=valid, **described)


def ranks_among(
    values: Float[Array, "batch items"],
) -> Int[Array, "batch items"]:
    """Rank of each item from the largest value on; ties to the lower index."""
    order = jnp.argsort(-values, axis=1, stable=True)
    return jnp.argsort(order, axis=1).astype(jnp.int32)
