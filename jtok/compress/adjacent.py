"""Merging of neighbours in time: for speech, in linear time.

Source: Li et al. 2023, arXiv 2306.16009 (A-ToMe).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.matching import ranks_among
from jtok.errors import check
from jtok.ops.energy import unit_rows
from jtok.ops.plan import join_plan

__all__ = ["adjacent"]


@declared(
    "similarity", ("audio", "video", "text"),
    "Merges neighbours in time that are alike (A-ToMe).",
    "Li et al. 2023, arXiv 2306.16009",
)  # fmt: skip
def adjacent(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    valid: Bool[Array, "batch seq"] | None = None,
    keys: Float[Array, "batch seq key_dim"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    threshold: float | None = None,
) -> Compressed:
    """Merges neighbours that are alike; the order stays.

    Of all pairs of neighbours the most similar ones join until `budget` rows are left;
    pairs that share a token make one longer run, whose mean is one row. Time and
    memory are linear in `seq`. Ties go to the earlier pair.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out.
      valid: `[batch, seq]` bool; None lets all tokens be real. Real tokens with
        nothing but padding between them are neighbours.
      keys: `[batch, seq, key_dim]` whose cosine counts; None for `x`.
      position: `[batch, seq, axes]`; None counts from 0. A run has the mean of it.
      threshold: pairs with a greater cosine join, too, however many: fewer rows are
        valid then. None for none.

    Returns:
      `Compressed`; `score` is one minus the cosine with the token before.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, a threshold outside of -1 to 1, or
        shapes that do not fit.

    Source: Li et al. 2023, arXiv 2306.16009. Differs: pairs may share tokens, so any
      budget is reached in one pass.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]]])
      >>> adjacent(x, budget=3).size.tolist()
      [[2.0, 1.0, 1.0]]
    """
    real = check_tokens(x, budget, valid)
    good = threshold is None or -1.0 <= threshold <= 1.0
    check(good, "threshold", threshold, "None, or -1 to 1")
    metric = x if keys is None else keys
    cosine, before = _cosine_before(jax.lax.stop_gradient(metric), real)
    count = jnp.sum(real, axis=1, dtype=jnp.int32)
    rank = ranks_among(jnp.where(before >= 0, cosine, -jnp.inf))
    joins = rank < jnp.maximum(count - budget, 0)[:, None]
    if threshold is not None:
        joins = joins | (cosine > threshold)
    joins = joins & (before >= 0)
    index = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), real.shape)
    # The start of a run: the last token up to here that joined nothing.
    starts = jnp.where(real & ~joins, index, -1)
    first = jax.lax.cummax(starts, axis=1)
    plan = join_plan(
        jnp.where(real, first, index), index, budget, valid=real, position=position
    )
    score = jnp.where(before >= 0, 1.0 - cosine, 2.0)
    score = jnp.where(real, score, -jnp.inf)
    return compressed(x, plan, score, how="mean")


def _cosine_before(metric: Array, real: Array) -> tuple[Array, Array]:
    """Cosine with the real token before each, and which that is (-1 for none)."""
    unit = unit_rows(metric)
    index = jnp.arange(metric.shape[1], dtype=jnp.int32)[None, :]
    last = jax.lax.cummax(jnp.where(real, index, -1), axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    before = jnp.where(real, before, -1)
    other = jnp.take_along_axis(unit, jnp.maximum(before, 0)[..., None], axis=1)
    return jnp.sum(unit * other, axis=-1), before
