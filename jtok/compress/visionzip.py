"""VisionZip: the tokens that are looked at stay, the rest merges into a few.

Source: Yang et al. 2024, arXiv 2412.04467.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.selection import token_scores, top_tokens
from jtok.errors import check
from jtok.ops.energy import unit_rows
from jtok.ops.plan import Plan, join_plan

__all__ = ["visionzip"]


@declared(
    "attention", ("image", "video"),
    "Keeps what the class token looks at, merges the rest into a few.",
    "Yang et al. 2024, arXiv 2412.04467",
)  # fmt: skip
def visionzip(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    keys: Float[Array, "batch seq key_dim"],
    attn: Array,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    contextual: int | None = None,
    protect: int = 0,
    order: Literal["source", "official"] = "source",
    compat: Literal["official"] | None = None,
) -> Compressed:
    """Keeps the tokens of most attention; evenly spaced others collect the rest.

    `budget - contextual` tokens stay as they are (dominant ones). Of the rest, in
    their order, every `max(1, n // contextual)`-th is a target, the first `contextual`
    of them; each other one joins the target of the most similar key. Ties go to the
    lower index.

    Args:
      x: `[batch, seq, dim]` hidden states of the tower's layer before the last.
      budget: rows that come out, contextual and protected ones included.
      keys: `[batch, seq, key_dim]` of that layer, the mean of its heads.
      attn: `[batch, seq]` or `[batch, heads, seq]`, summed over heads: the attention of
        the class token to each token; in a tower without one what each token receives
        on average.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      position: `[batch, seq, axes]`; None counts from 0. Merged rows have the mean.
      contextual: rows that collect others; None takes `budget * 5 // 32`, the paper's
        10 of 64 and 30 of 192, and at least 1; with 0 the rest is dropped.
      protect: first tokens that always stay (a class token is one).
      order: of the rows: "source" ascending, or "official": the contextual ones last.
      compat: "official" adds to a target the mean of those that joined it, a sum of
        two vectors; otherwise a row is the mean of its members.

    Returns:
      `Compressed`; `score` is the attention.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, `contextual` or `protect` beyond
        it, or shapes that do not fit.

    Source: Yang et al. 2024, arXiv 2412.04467, section 3, and its code. Differs: means,
      batches with padding, any number of protected tokens.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.9], [1.0, 0.1]]])
      >>> attn = jnp.array([[0.4, 0.3, 0.2, 0.1]])
      >>> visionzip(x, budget=2, keys=x, attn=attn, contextual=1).size.tolist()
      [[1.0, 3.0]]
    """
    real = check_tokens(x, budget, valid)
    batch, seq, _ = x.shape
    good = 0 <= protect <= budget
    check(good, "protect", protect, f"0 to {budget}, the budget")
    most = budget - protect
    if contextual is None:
        contextual = min(max(budget * 5 // 32, 1), max(most - 1, 0))
    good = 0 <= contextual <= most
    check(good, "contextual", contextual, f"0 to {most}, the unprotected budget")
    score = token_scores(attn, batch, seq, heads="sum")
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    first = real & (index < protect)
    dominant = first | top_tokens(score, most - contextual, real & ~first)
    rest = real & ~dominant
    target = rest & _spaced(rest, contextual)
    joins = jnp.where(rest & ~target, _nearest_target(keys, target, contextual), index)
    place = jnp.where(target, index + seq, index) if order == "official" else index
    there = real if contextual else dominant
    plan = join_plan(joins, place, budget, valid=there, position=position)
    found = compressed(x, plan, jnp.where(real, score, -jnp.inf), how="mean")
    if compat == "official":
        return dataclasses.replace(found, tokens=_target_plus_mean(x, plan))
    return found


def _spaced(rest: Array, count: int) -> Array:
    """Every so many-th token of the rest, the first `count` of them."""
    rank = jnp.cumsum(rest, axis=1, dtype=jnp.int32) - 1
    left = jnp.sum(rest, axis=1, keepdims=True, dtype=jnp.int32)
    step = jnp.maximum(left // max(count, 1), 1)
    return (rank % step == 0) & (rank // step < count)


def _nearest_target(keys: Array, target: Array, count: int) -> Array:
    """`[batch, seq]`: the target whose key is most similar to each token's."""
    unit = unit_rows(jax.lax.stop_gradient(keys))
    order = jnp.argsort(~target, axis=1, stable=True)[:, : max(count, 1)].astype(
        jnp.int32
    )
    there = jnp.take_along_axis(target, order, axis=1)
    of_target = jnp.take_along_axis(unit, order[..., None], axis=1)
    cosine = jnp.einsum(
        "bnd,btd->bnt", unit, of_target, precision=jax.lax.Precision.HIGHEST
    )
    best = jnp.argmax(jnp.where(there[:, None], cosine, -jnp.inf), axis=-1)
    return jnp.take_along_axis(order, best, axis=1)


def _target_plus_mean(x: Array, plan: Plan) -> Array:
    """Each kept token plus the mean of those that joined it."""
    own = plan.prune(x).astype(jnp.float32)
    joined = plan.merge(x.astype(jnp.float32), how="sum")[0] - own
    count = jnp.maximum(plan.size - 1, 1.0)[..., None]
    return (own + joined / count).astype(x.dtype)
