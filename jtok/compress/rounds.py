"""Merging down to any budget: each round at most halves what is left."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.pitome import pitome
from jtok.compress.tome import tome
from jtok.ops.plan import Plan, identity_plan

__all__ = ["merge_rounds", "pitome_tokens", "tome_tokens"]


def merge_rounds(
    metric: Float[Array, "batch seq dim"],
    step: Callable[..., Plan],
    budget: int,
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    **options: Any,
) -> Plan:
    """Lets a method that merges at most half of the tokens do so until few are left.

    Between rounds the metric of merged tokens is their mean.

    Args:
      metric: `[batch, seq, dim]` what similarity is computed on.
      step: `step(metric, *, budget, valid, position, size, **options) -> Plan`, such
        as `tome` and `pitome`.
      budget: rows that come out.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      position: `[batch, seq, axes]`; None counts from 0.
      **options: of `step`.

    Returns:
      `Plan` from the tokens to the last rows.

    Raises:
      ArgumentError: as `step`; a budget below 1 or above `seq`.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (1, 9, 4))
      >>> merge_rounds(x, tome, 5).num_rows
      5
    """
    real = check_tokens(metric, budget, valid)
    batch, seq = real.shape
    plan = identity_plan(batch, seq, valid=valid, position=position)
    wide = jax.lax.stop_gradient(metric.astype(jnp.float32))
    while plan.num_rows > budget:
        later = step(
            wide, budget=budget, valid=plan.valid, position=plan.position,
            size=plan.size, **options,
        )  # fmt: skip
        wide = later.merge(wide, plan.size)[0]
        plan = plan.then(later)
    return plan


@declared(
    "similarity", ("image", "video", "audio", "text"),
    "Even tokens join the most similar odd ones, in rounds.",
    "Bolya et al. 2023, arXiv 2210.09461", name="tome",
)  # fmt: skip
def tome_tokens(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    valid: Bool[Array, "batch seq"] | None = None,
    keys: Float[Array, "batch seq key_dim"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    order: Literal["source", "official"] = "source",
) -> Compressed:
    """Token Merging down to a budget: see `tome` and `merge_rounds`.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      keys: `[batch, seq, key_dim]` what similarity is computed on; None for `x`.
      position: `[batch, seq, axes]`; None counts from 0. Rows have the mean.
      order: of the rows, as `tome` has it.

    Returns:
      `Compressed`, each row the mean of its members.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, or shapes that do not fit.

    Source: Bolya et al. 2023, arXiv 2210.09461. Differs: more than half may leave, in
      rounds.

    Example:
      >>> tome_tokens(jnp.ones((1, 9, 2)), budget=5).size.sum().item()
      9.0
    """
    metric = x if keys is None else keys
    plan = merge_rounds(
        metric, tome, budget, valid=valid, position=position, order=order
    )
    return compressed(x, plan, how="mean")


@declared(
    "similarity", ("image", "video", "audio", "text"),
    "Tokens of high energy merge, those of even rank into those of odd rank, "
    "in rounds.", "Tran et al. 2024, arXiv 2405.16148", name="pitome",
)  # fmt: skip
def pitome_tokens(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    valid: Bool[Array, "batch seq"] | None = None,
    keys: Float[Array, "batch seq key_dim"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    margin: float = 0.75,
    rule: Literal["all", "bsm", "text"] = "all",
    order: Literal["source", "official"] = "source",
) -> Compressed:
    """PiToMe down to a budget: see `pitome` and `merge_rounds`.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      keys: `[batch, seq, key_dim]` what similarity is computed on; None for `x`.
      position: `[batch, seq, axes]`; None counts from 0. Rows have the mean.
      margin: cosines above it count as close.
      rule: "all", "bsm" or "text", as `pitome` has them.
      order: of the rows, as `pitome` has it.

    Returns:
      `Compressed`, each row the mean of its members.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, or shapes that do not fit.

    Source: Tran et al. 2024, arXiv 2405.16148. Differs: more than half may leave, in
      rounds.

    Example:
      >>> pitome_tokens(jnp.ones((1, 9, 2)), budget=5).size.sum().item()
      9.0
    """
    metric = x if keys is None else keys
    plan = merge_rounds(
        metric, pitome, budget, valid=valid, position=position, order=order,
        margin=margin, rule=rule,
    )  # fmt: skip
    return compressed(x, plan, how="mean")
