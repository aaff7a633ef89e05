"""DivPrune: the tokens that are farthest from each other stay.

Source: Alvar et al. 2025, arXiv 2503.02175.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.selection import kept_in_order
from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.energy import unit_rows
from jtok.ops.plan import keep_plan

__all__ = ["divprune", "farthest_first"]

_BLOCK = 256


@one_program
def farthest_first(
    x: Float[Array, "batch seq dim"],
    count: int,
    *,
    valid: Bool[Array, "batch seq"] | None = None,
) -> tuple[Int[Array, "batch count"], Float[Array, "batch seq"]]:
    """Tokens one by one, each the farthest from those taken before.

    Distance is 1 - cosine, in float32; a zero vector is 1 away from all others. The
    first token is the one whose nearest other token is farthest. Ties go to the lower
    index. Time is `count * seq`, memory `seq` times a block.

    Args:
      x: `[batch, seq, dim]`, any scale.
      count: tokens to take, 1 to `seq` (static).
      valid: `[batch, seq]` bool; other tokens are never taken.

    Returns:
      `[batch, count]` int32 in the order in which they were taken, -1 where no real
      token was left; and `[batch, seq]` float32: what a token was away from those
      taken before it when it was taken, or is away from all taken ones.

    Raises:
      ArgumentError: `count` out of range, or shapes that do not fit.

    Source: Alvar et al. 2025, arXiv 2503.02175, and its code. Differs: a running
      minimum instead of all pairs; batches, padding; no token is taken twice.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]]])
      >>> farthest_first(x, 3)[0].tolist()
      [[2, 0, 3]]
    """
    real = check_tokens(x, count, valid)
    unit = unit_rows(jax.lax.stop_gradient(x))
    batch, seq, _ = unit.shape
    rows = jnp.arange(batch)
    start = jnp.where(real, _nearest_other(unit, real), -jnp.inf)
    taken = jnp.full((batch, count), -1, jnp.int32)

    def take(step: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        far, near, when, taken = state
        best = jnp.argmax(far, axis=1).astype(jnp.int32)
        away = far[rows, best]
        there = away > -jnp.inf
        taken = taken.at[:, step].set(jnp.where(there, best, -1))
        when = when.at[rows, best].set(jnp.where(there, away, when[rows, best]))
        cosine = jnp.einsum(
            "bnd,bd->bn", unit, unit[rows, best], precision=jax.lax.Precision.HIGHEST
        )
        near = jnp.minimum(near, 1.0 - cosine)
        # What was taken has a distance already.
        free = jnp.isinf(when) & real
        return jnp.where(free, near, -jnp.inf), near, when, taken

    away = jnp.full((batch, seq), jnp.inf)
    _, near, when, taken = jax.lax.fori_loop(
        0, count, take, (start, away, jnp.full((batch, seq), -jnp.inf), taken)
    )
    score = jnp.where(jnp.isinf(when), near, when)
    return taken, jnp.where(real, score, -jnp.inf)


def _nearest_other(unit: Array, real: Array) -> Array:
    """Distance of every token from the nearest other real one, block by block."""
    batch, seq, dim = unit.shape
    block = min(_BLOCK, seq)
    blocks = -(-seq // block)
    wide = jnp.pad(unit, ((0, 0), (0, blocks * block - seq), (0, 0)))
    cut = jnp.moveaxis(wide.reshape(batch, blocks, block, dim), 1, 0)
    index = jnp.arange(seq)

    def one(part: tuple[Array, Array]) -> Array:
        rows, start = part
        cosine = jnp.einsum(
            "bid,bjd->bij", rows, unit, precision=jax.lax.Precision.HIGHEST
        )
        own = (start + jnp.arange(block))[:, None] == index[None, :]
        seen = real[:, None, :] & ~own[None]
        return jnp.min(jnp.where(seen, 1.0 - cosine, 2.0), axis=-1)

    near = jax.lax.map(one, (cut, jnp.arange(blocks) * block))
    return jnp.moveaxis(near, 0, 1).reshape(batch, -1)[:, :seq]


@declared(
    "similarity", ("image", "video"),
    "Keeps the tokens that are farthest from each other.",
    "Alvar et al. 2025, arXiv 2503.02175", rounding="half_even",
)  # fmt: skip
def divprune(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    select: Literal["sorted", "greedy"] = "sorted",
) -> Compressed:
    """Keeps the tokens that are farthest from each other.

    See `farthest_first`. The question is not looked at, so what is kept serves all of
    them.

    Args:
      x: `[batch, seq, dim]` the vectors that enter the language model.
      budget: rows that come out; the paper's is `round(ratio * seq)`, half to even.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      position: `[batch, seq, axes]`; None counts from 0.
      select: rows "sorted" by place, as the code has them, or in the "greedy" order in
        which they were taken: its first k rows are the choice at budget k.

    Returns:
      `Compressed`; `score` is the distance from those taken before.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, or shapes that do not fit.

    Source: Alvar et al. 2025, arXiv 2503.02175, and its code. Differs: as
      `farthest_first`.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]]])
      >>> divprune(x, budget=3).keep.tolist()
      [[0, 2, 3]]
    """
    known = ("sorted", "greedy")
    check(select in known, "select", select, f"one of {known}")
    taken, score = farthest_first(x, budget, valid=valid)
    seq = x.shape[1]
    if select == "sorted":
        rows = jnp.arange(x.shape[0])[:, None]
        at = jnp.where(taken >= 0, taken, seq)
        mask = jnp.zeros((x.shape[0], seq + 1), bool).at[rows, at].set(True)[:, :seq]
        taken = kept_in_order(mask, budget)
    return compressed(x, keep_plan(taken, seq, position=position), score)
