"""Token Merging: even tokens join the most similar odd ones.

Source: Bolya et al. 2023, arXiv 2210.09461.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.matching import (
    Removal,
    Sides,
    best_matches,
    budget_of,
    check_metric,
    plan_of,
    ranks_among,
)
from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.plan import Plan, identity_plan, join_plan

__all__ = ["grouped", "random_merge", "tome", "uniform_merge"]

Order = Literal["official", "source"]


@one_program
def tome(
    metric: Float[Array, "batch seq dim"],
    *,
    remove: int | None = None,
    keep: float | None = None,
    budget: int | None = None,
    protect: int = 0,
    valid: Bool[Array, "batch seq"] | None = None,
    order: Order = "official",
    position: Float[Array, "batch seq axes"] | None = None,
    size: Float[Array, "batch seq"] | None = None,
) -> Plan:
    """Merges the even tokens that are most similar to an odd one.

    Tokens at even places may join tokens at odd places; of all, the `remove` most
    similar pairs are merged. Several tokens may join one. Ties go to the lower index.
    Where none shall leave all stay in their places.
    Padding never joins anything and leaves first; of a row with padding as many tokens
    leave as of that row without it.

    Args:
      metric: `[batch, seq, dim]` what similarity is computed on, any scale.
      remove: tokens that leave, or
      keep: share of the tokens that stays, `remove = floor(n - n * keep)`; of at most
        half of the unprotected tokens can leave; or
      budget: tokens that stay, if no more than half must leave.
      protect: first tokens that neither leave nor are joined (a class token is one,
        a distillation token another).
      valid: `[batch, seq]` bool; None lets all tokens be real.
      order: of the rows: "official" as the paper's code has it (protected ones, then
        the even ones that stay, most similar first where nothing is protected, then
        the odd ones), which mixes anew what is even in the next layer; or "source".
      position: see `join_plan`.
      size: see `join_plan`.

    Returns:
      `Plan` with `seq - remove` rows.

    Raises:
      ArgumentError: `keep` outside of 0 to 1, `remove` below 0, none or both of them,
        `protect` beyond the tokens, or shapes that do not fit.

    Source: Bolya et al. 2023, arXiv 2210.09461, section 3, and its code. Differs: any
      number of protected tokens, padding, all-zero rows.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]]])
      >>> tome(x, remove=1).assign.tolist()
      [[0, 1, 1, 2]]
    """
    check(order in ("official", "source"), "order", order, "'official' or 'source'")
    real = check_metric(metric, protect, valid)
    batch, seq = real.shape
    # Protected tokens count where the two sides alternate, but not in the limit.
    removal = budget_of(
        real, protect, lambda count: count // 2,
        keep=keep, remove=remove, budget=budget,
    )  # fmt: skip
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    free = real & (index >= protect)
    sides = Sides(index[:, ::2], index[:, 1::2], free[:, ::2], free[:, 1::2])
    metric = jax.lax.stop_gradient(metric)
    best, joined = best_matches(metric, sides)
    rank = ranks_among(best)
    leaves = (rank < removal.each[:, None]) & (best > -jnp.inf)
    place = index
    if order == "official" and removal.most > 0:
        even = index[:, ::2] if protect else rank
        place = place.at[:, ::2].set(even).at[:, 1::2].add(seq)
        place = jnp.where(index < protect, index - seq, place)
    return plan_of(
        sides, joined, leaves, place, seq - removal.most, real,
        position=position, size=size,
    )  # fmt: skip


@one_program
def grouped(
    metric: Float[Array, "batch seq dim"],
    *,
    every: int,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    size: Float[Array, "batch seq"] | None = None,
) -> Plan:
    """Of every group of neighbours, all join the most similar last one of a group.

    Ties go to the lower index.

    Args:
      metric: `[batch, seq, dim]`.
      every: tokens of a group; what does not fill one at the end is dropped. In groups
        of 1 nothing changes.
      valid: `[batch, seq]` bool, padding behind; None lets all tokens be real.
      position: see `join_plan`.
      size: see `join_plan`.

    Returns:
      `Plan` with `seq // every` rows.

    Raises:
      ArgumentError: `every` below 1, or no whole group.

    Source: `kth_bipartite_soft_matching` of the code of arXiv 2210.09461.

    Example:
      >>> grouped(jnp.ones((1, 5, 2)), every=2).assign.tolist()
      [[0, 0, 0, 1, -1]]
    """
    real = check_metric(metric, 0, valid)
    batch, seq = real.shape
    check(1 <= every <= seq, "every", every, f"1 to {seq}, the tokens")
    if every == 1:
        return identity_plan(batch, seq, valid=valid, position=position)
    rows = seq // every
    order = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    whole = jnp.sum(real, axis=1, keepdims=True) // every * every
    inside = real & (order < whole)
    cut = lambda values: values[:, : rows * every].reshape(batch, rows, every)
    lasts = lambda values: cut(values)[..., -1]
    others = lambda values: cut(values)[..., :-1].reshape(batch, -1)
    sides = Sides(others(order), lasts(order), others(inside), lasts(inside))
    _, joined = best_matches(jax.lax.stop_gradient(metric), sides)
    return plan_of(
        sides, joined, sides.from_ok, order, rows, inside, position=position, size=size
    )


@one_program
def random_merge(
    metric: Float[Array, "batch seq dim"],
    key: Array,
    *,
    remove: int | None = None,
    keep: float | None = None,
    protect: int = 0,
    valid: Bool[Array, "batch seq"] | None = None,
    drop: bool = False,
    position: Float[Array, "batch seq axes"] | None = None,
    size: Float[Array, "batch seq"] | None = None,
) -> Plan:
    """Random tokens leave: each joins the most similar of the others, or is dropped.

    The baseline that any method must beat.

    Args:
      metric: `[batch, seq, dim]`.
      key: PRNG key.
      remove: tokens that leave, or
      keep: share of the unprotected tokens that stays.
      protect: first tokens that neither leave nor are joined.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      drop: drop the tokens instead of merging them.
      position: see `join_plan`.
      size: see `join_plan`.

    Returns:
      `Plan` with `seq - remove` rows, in the order of the tokens.

    Raises:
      ArgumentError: as for `tome`, but that all unprotected tokens but one may leave.

    Source: the random baseline of the code of arXiv 2210.09461 and 2405.16148.

    Example:
      >>> x = jnp.ones((1, 6, 2))
      >>> random_merge(x, jax.random.key(0), remove=2).num_rows
      4
    """
    real = check_metric(metric, protect, valid)
    budget = _all_but_one(real, protect, keep, remove)
    index = jnp.broadcast_to(jnp.arange(real.shape[1], dtype=jnp.int32), real.shape)
    free = real & (index >= protect)
    draw = jax.random.uniform(key, real.shape)
    rank = ranks_among(jnp.where(free, draw, -jnp.inf))
    leaves = rank < budget.each[:, None]
    return _without(metric, leaves, free, real, budget, drop, position, size)


@one_program
def uniform_merge(
    metric: Float[Array, "batch seq dim"],
    *,
    remove: int | None = None,
    keep: float | None = None,
    protect: int = 0,
    valid: Bool[Array, "batch seq"] | None = None,
    drop: bool = False,
    position: Float[Array, "batch seq axes"] | None = None,
    size: Float[Array, "batch seq"] | None = None,
) -> Plan:
    """Tokens at an even stride stay: others join the most similar of them, or go.

    Of `n` unprotected tokens `k` stay: those with `i * k mod n < k`, the first one
    among them. A baseline that looks at places only.

    Args:
      metric: `[batch, seq, dim]`.
      remove: tokens that leave, or
      keep: share of the unprotected tokens that stays.
      protect: first tokens that neither leave nor are joined.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      drop: drop the tokens instead of merging them.
      position: see `join_plan`.
      size: see `join_plan`.

    Returns:
      `Plan` with `seq - remove` rows, in the order of the tokens.

    Raises:
      ArgumentError: as for `random_merge`.

    Example:
      >>> uniform_merge(jnp.ones((1, 6, 2)), remove=3, drop=True).keep.tolist()
      [[0, 2, 4]]
    """
    real = check_metric(metric, protect, valid)
    budget = _all_but_one(real, protect, keep, remove)
    index = jnp.broadcast_to(jnp.arange(real.shape[1], dtype=jnp.int32), real.shape)
    free = real & (index >= protect)
    place = jnp.cumsum(free, axis=1) - 1
    count = jnp.maximum(jnp.sum(free, axis=1), 1)
    stay = (count - budget.each)[:, None]
    leaves = free & (place * stay % count[:, None] >= stay)
    return _without(metric, leaves, free, real, budget, drop, position, size)


def _all_but_one(
    real: Array, protect: int, keep: float | None, remove: int | None
) -> Removal:
    limit = lambda count: max(count - 1, 0)
    return budget_of(real, protect, limit, keep=keep, remove=remove)


def _without(
    metric: Array, leaves: Array, free: Array, real: Array, budget: Removal, drop: bool,
    position: Array | None, size: Array | None,
) -> Plan:  # fmt: skip
    """Some tokens join the most similar of those that stay, or are dropped."""
    index = jnp.broadcast_to(jnp.arange(real.shape[1], dtype=jnp.int32), real.shape)
    rows = real.shape[1] - budget.most
    if drop:
        there = real & ~leaves
        joins = jnp.where(leaves, -1, index)
        return join_plan(joins, index, rows, valid=there, position=position, size=size)
    sides = Sides(index, index, free & leaves, free & ~leaves)
    _, joined = best_matches(jax.lax.stop_gradient(metric), sides)
    return plan_of(
        sides, joined, leaves, index, rows, real, position=position, size=size
    )
