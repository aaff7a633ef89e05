"""Random and evenly spaced tokens: what every method must beat."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.selection import kept_in_order, top_tokens
from jtok.errors import check
from jtok.ops.plan import keep_plan

__all__ = ["random_tokens", "uniform_tokens"]


@declared(
    "baseline", ("image", "video", "audio", "text"), "Keeps evenly spaced tokens.",
    "baseline", name="uniform",
)  # fmt: skip
def uniform_tokens(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Keeps evenly spaced tokens: of n real ones, those at `floor(i n / budget)`.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, or shapes that do not fit.

    Example:
      >>> uniform_tokens(jnp.ones((1, 7, 2)), budget=3).keep.tolist()
      [[0, 2, 4]]
    """
    real = check_tokens(x, budget, valid)
    rank = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    count = jnp.sum(real, axis=1, dtype=jnp.int32)[:, None]
    # Token r is the first of its stride where ceil(r budget / n) moves on.
    step = lambda r: (r * budget + count - 1) // jnp.maximum(count, 1)
    first = step(rank + 1) > step(rank)
    chosen = real & (first | (count <= budget))
    plan = keep_plan(kept_in_order(chosen, budget), x.shape[1], position=position)
    return compressed(x, plan)


@declared(
    "baseline", ("image", "video", "audio", "text"),
    "Keeps tokens drawn at random, in their order.", "baseline", name="random",
)  # fmt: skip
def random_tokens(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    key: Array,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Keeps tokens drawn without replacement, in their order.

    The draw of a token depends on the key of its row and on how many real tokens stand
    before it, so padding changes nothing.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out.
      key: typed PRNG key, from which each row of the batch gets its own; or `[batch]`
        keys, one a row.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`; `score` is the draw.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, or shapes that do not fit.

    Example:
      >>> random_tokens(jnp.ones((1, 7, 2)), budget=3, key=jax.random.key(0)).keep.shape
      (1, 3)
    """
    real = check_tokens(x, budget, valid)
    batch, seq, _ = x.shape
    good = key.shape in ((), (batch,))
    check(good, "key", f"shape {key.shape}", f"one key, or {batch}, one a row")
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = key if key.ndim else fold(key, jnp.arange(batch))
    rank = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    draw = jax.vmap(jax.vmap(jax.random.uniform))(jax.vmap(fold)(keys, rank))
    chosen = top_tokens(draw, budget, real)
    plan = keep_plan(kept_in_order(chosen, budget), seq, position=position)
    return compressed(x, plan, jnp.where(real, draw, -jnp.inf))
