"""PiToMe: tokens with many close neighbours merge, isolated ones are protected.

Source: Tran et al. 2024, arXiv 2405.16148.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.matching import (
    Sides,
    best_matches,
    budget_of,
    check_metric,
    plan_of,
    ranks_among,
)
from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.energy import energy
from jtok.ops.plan import Plan

__all__ = ["pitome"]

Rule = Literal["all", "bsm", "text"]
_RULES = ("all", "bsm", "text")


@one_program
def pitome(
    metric: Float[Array, "batch seq dim"],
    *,
    keep: float | None = None,
    remove: int | None = None,
    budget: int | None = None,
    margin: float | Float[Array, ""] = 0.75,
    protect: int = 0,
    rule: Rule = "all",
    kernel: Literal["elu", "gaussian", "paper"] | None = None,
    alpha: float = 1.0,
    valid: Bool[Array, "batch seq"] | None = None,
    order: Literal["official", "source"] = "official",
    position: Float[Array, "batch seq axes"] | None = None,
    size: Float[Array, "batch seq"] | None = None,
) -> Plan:
    """Merges tokens of high energy and leaves isolated ones alone.

    Tokens are ranked by energy: how close their neighbours are (see `energy`). Ties go
    to the lower index. Where none shall leave all stay in their places. Padding never
    joins anything; of a row with padding as many tokens leave as of that row without
    it.

    Args:
      metric: `[batch, seq, dim]` what similarity is computed on, any scale.
      keep: share of the unprotected tokens that stays, .5 to 1:
        `remove = floor(n - n * keep)`; or
      remove: tokens that leave; or
      budget: tokens that stay, if no more than half must leave.
      margin: cosines above it count as close.
      protect: first tokens that are left out of everything (class token and such).
      rule: "all": the `2 remove` tokens of highest energy pair up, even ranks join odd
        ones; "bsm": even ranks of all tokens may join odd ones, the most similar
        `remove` do; "text": of the `2 remove`, the upper half joins the lower half.
      kernel: of the energy; None takes "gaussian" for "text", else "elu".
      alpha: of the kernel.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      order: of the rows: "official" (protected, those that stay, those that were
        joined) or "source".
      position: see `join_plan`.
      size: see `join_plan`.

    Returns:
      `Plan` with `seq - remove` rows.

    Raises:
      ArgumentError: `keep` outside of .5 to 1 or NaN, `remove` negative or more than
        half, none or both of them, an unknown rule, or shapes that do not fit.

    Source: Tran et al. 2024, arXiv 2405.16148, section 3, and its code, which the
      reported figures come from. Differs: any number of protected tokens, padding.

    Example:
      >>> near = [[1.0, 0.0], [1.0, 0.1], [0.9, 0.1], [1.0, 0.2]]
      >>> x = jnp.array([near + [[0.0, 1.0], [-1.0, 0.0]]])
      >>> pitome(x, remove=2).size.tolist()
      [[1.0, 1.0, 3.0, 1.0]]
    """
    check(rule in _RULES, "rule", rule, f"one of {', '.join(_RULES)}")
    check(order in ("official", "source"), "order", order, "'official' or 'source'")
    real = check_metric(metric, protect, valid)
    batch, seq = real.shape
    most = (seq - protect) // 2
    good = remove is None or remove <= most
    expected = f"at most {most}, half of the unprotected tokens"
    check(good, "remove", remove, expected)
    removal = budget_of(
        real, protect, lambda count: count // 2,
        keep=keep, remove=remove, budget=budget, least=0.5,
    )  # fmt: skip
    metric = jax.lax.stop_gradient(metric)
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    free = real & (index >= protect)
    kernel = kernel or ("gaussian" if rule == "text" else "elu")
    found = energy(
        metric[:, protect:], margin, kernel=kernel, alpha=alpha, valid=free[:, protect:]
    )
    low = jnp.full((batch, protect), -jnp.inf)
    ranked = jnp.argsort(
        -jnp.concatenate([low, found], axis=1), axis=1, stable=True
    ).astype(jnp.int32)
    rank = jnp.argsort(ranked, axis=1).astype(jnp.int32)
    sides = _sides(rule, ranked, jnp.sum(free, axis=1), removal.each, removal.most)
    best, joined = best_matches(metric, sides)
    leaves = sides.from_ok & (best > -jnp.inf)
    among = ranks_among(best)
    if rule == "bsm":
        leaves = leaves & (among < removal.each[:, None])
    place = index
    if order == "official" and removal.most > 0:
        place = _places(rule, rank, sides, among, seq)
        place = jnp.where(index < protect, index - seq, place)
    return plan_of(
        sides, joined, leaves, place, seq - removal.most, real,
        position=position, size=size,
    )  # fmt: skip


def _sides(rule: Rule, ranked: Array, count: Array, each: Array, most: int) -> Sides:
    """Who may join whom, by rank of energy."""
    batch, seq = ranked.shape
    if rule == "bsm":
        rank = jnp.broadcast_to(jnp.arange(seq)[None], (batch, seq))
        there = rank < count[:, None]
        return Sides(ranked[:, ::2], ranked[:, 1::2], there[:, ::2], there[:, 1::2])
    most = max(most, 1)  # none of them joins where none shall leave
    pairs = jnp.broadcast_to(jnp.arange(most, dtype=jnp.int32)[None], (batch, most))
    there = pairs < each[:, None]
    if rule == "all":
        source, target = 2 * pairs, 2 * pairs + 1
    else:
        source, target = pairs, each[:, None] + pairs
    at = lambda rank: jnp.take_along_axis(ranked, jnp.minimum(rank, seq - 1), axis=1)
    return Sides(at(source), at(target), there, there)


def _places(rule: Rule, rank: Array, sides: Sides, among: Array, seq: int) -> Array:
    """Where rows stand in the official order: those that stay, then those joined."""
    at = lambda wide, where, what: jax.vmap(lambda w, a, v: w.at[a].set(v))(
        wide, where, what
    )
    far = rank + seq
    if rule == "bsm":
        return at(far, sides.source, among)
    spare = jnp.pad(rank, ((0, 0), (0, 1)))
    where = jnp.where(sides.to_ok, sides.target, seq)
    behind = jnp.take_along_axis(far, sides.target, axis=1)
    return at(spare, where, behind)[:, :seq]
