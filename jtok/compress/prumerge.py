"""PruMerge: attention outliers stay, each with a weighted sum of its like.

Source: Shang et al. 2024, arXiv 2403.15388.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.selection import token_scores, top_tokens
from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.energy import unit_rows
from jtok.ops.plan import Plan, join_plan

__all__ = ["outlier_share", "prumerge", "prumerge_plus"]

Share = Float[Array, " batch"]


@one_program
def outlier_share(
    attn: Float[Array, "batch seq"],
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    compat: Literal["official"] | None = None,
) -> Share:
    """The share of tokens whose attention is an outlier.

    Outliers lie above `Q3 + 1.5 (Q3 - Q1)`, quartiles interpolated linearly.

    Args:
      attn: `[batch, seq]`.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      compat: "official" takes the quartiles and the share of the whole batch.

    Returns:
      `[batch]` float32.

    Raises:
      ArgumentError: shapes that do not fit.

    Source: Shang et al. 2024, arXiv 2403.15388, section 3.2, and its code.

    Example:
      >>> outlier_share(jnp.array([[1.0, 2.0, 3.0, 50.0, 2.0]])).tolist()
      [0.20000000298023224]
    """
    real = check_tokens(attn[..., None], None, valid)
    count, total = _outliers(attn, real, compat)
    return count / jnp.maximum(total, 1).astype(jnp.float32)


def _outliers(attn: Array, real: Array, compat: str | None) -> tuple[Array, Array]:
    """How many there are, and of how many tokens: of each row, or of all rows."""
    wide, rows = attn.astype(jnp.float32), attn.shape[0]
    if compat == "official":
        wide, real = wide.reshape(1, -1), real.reshape(1, -1)
    total = jnp.sum(real, axis=1, dtype=jnp.int32)
    ranked = jnp.sort(jnp.where(real, wide, jnp.inf), axis=1)
    low, high = (
        _quantile(ranked, jnp.maximum(total, 1), share) for share in (0.25, 0.75)
    )
    above = real & (wide > (high + 1.5 * (high - low))[:, None])
    count = jnp.sum(above, axis=1, dtype=jnp.int32)
    return jnp.broadcast_to(count, (rows,)), jnp.broadcast_to(total, (rows,))


def _adaptive(
    score: Array, real: Array, budget: int, compat: str | None
) -> tuple[Array, Array]:
    """Tokens that a row keeps by attention, and the stride of those besides."""
    count, total = _outliers(score, real, compat)
    if compat != "official":
        step = total // jnp.maximum(count, 1) // 3
        return jnp.clip(count, 1, budget - 1), jnp.maximum(step, 1)
    # The code divides, multiplies and cuts in float64, which may lose a token.
    batch, seq = score.shape
    shares = [found / (batch * seq) for found in range(batch * seq + 1)]
    kept = np.array([int(seq * share) for share in shares], np.int32)
    steps = [int(int(1 / share) / 3) if share else 1 for share in shares]
    some = jnp.minimum(jnp.asarray(kept)[count], budget - 1)
    return some, jnp.asarray(np.maximum(steps, 1).astype(np.int32))[count]


def _quantile(ranked: Array, count: Array, share: float) -> Array:
    """Between the two neighbours of its rank, linearly; padding is sorted last."""
    at = share * (count - 1).astype(jnp.float32)
    low = jnp.floor(at).astype(jnp.int32)
    high = jnp.minimum(low + 1, count - 1)
    pick = lambda rank: jnp.take_along_axis(ranked, rank[:, None], axis=1)[:, 0]
    return pick(low) + (pick(high) - pick(low)) * (at - low)


@declared(
    "attention", ("image",),
    "Keeps attention outliers, each with a weighted sum of its like.",
    "Shang et al. 2024, arXiv 2403.15388",
)  # fmt: skip
def prumerge(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    keys: Float[Array, "batch seq key_dim"],
    attn: Array,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    adaptive: bool = False,
    neighbours: int = 32,
    order: Literal["source", "official"] = "source",
    compat: Literal["official"] | None = None,
) -> Compressed:
    """Keeps the tokens of most attention and gives each what its like hold.

    Each kept token takes up its `neighbours` nearest other tokens by the cosine of
    keys, kept or not, weighted by their attention. One more row, the last, is the same
    of all dropped tokens. Ties go to the lower index.

    Args:
      x: `[batch, seq, dim]` hidden states without a class token.
      budget: rows that come out, the one of dropped tokens included.
      keys: `[batch, seq, key_dim]` of the last layer, all heads side by side.
      attn: `[batch, seq]` or `[batch, heads, seq]` attention of the class token to each
        token; without a class token what each token receives on average.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      position: `[batch, seq, axes]`; None counts from 0. The last row has the mean.
      adaptive: the number of outliers of a row stays (`outlier_share`), at most
        `budget - 1` and at least 1; other rows are not valid.
      neighbours: see above; at most the other tokens.
      order: of the kept rows: "source", or "official": most attention first.
      compat: "official" adds up with weights that sum to no 1, takes quartiles of the
        whole batch, and keeps none where there is no outlier; otherwise a row is a
        mean, weighted by attention, of the token itself and its neighbours.

    Returns:
      `Compressed`; `score` is the attention. `assign` sends dropped tokens to the last
      row, kept ones to their own.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, `neighbours` below 1, or shapes
        that do not fit.

    Source: Shang et al. 2024, arXiv 2403.15388, section 3, and its code. Differs:
      means, batches, padding, 32 tokens or fewer.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.9], [1.0, 0.1]]])
      >>> attn = jnp.array([[0.4, 0.3, 0.2, 0.1]])
      >>> prumerge(x, budget=2, keys=x, attn=attn).size.tolist()
      [[1.0, 3.0]]
    """
    real = check_tokens(x, budget, valid)
    score = token_scores(attn, *real.shape)
    total = jnp.sum(real, axis=1, dtype=jnp.int32)
    most = _most(total, budget, compat)
    if adaptive:
        most, _ = _adaptive(score, real, budget, compat)
    kept = top_tokens(score, most, real)
    return _merged(
        x, real, kept, score, keys, budget, position, neighbours, order, compat
    )


@declared(
    "attention", ("image",), "PruMerge that also keeps evenly spaced tokens.",
    "Shang et al. 2024, arXiv 2403.15388, section 3.4",
)  # fmt: skip
def prumerge_plus(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    keys: Float[Array, "batch seq key_dim"],
    attn: Array,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    adaptive: bool = False,
    neighbours: int = 32,
    order: Literal["source", "official"] = "source",
    compat: Literal["official"] | None = None,
) -> Compressed:
    """PruMerge that also keeps evenly spaced tokens.

    A quarter of the kept rows is chosen by attention, the others are evenly spaced
    among the remaining tokens.

    Args:
      x: see `prumerge`, as all that follows.
      budget: rows that come out, the one of dropped tokens included.
      keys: `[batch, seq, key_dim]`.
      attn: `[batch, seq]` or `[batch, heads, seq]`.
      valid: `[batch, seq]` bool.
      position: `[batch, seq, axes]`.
      adaptive: with r the share of outliers, the outliers stay and of the tokens at
        0, s, 2s ... below the last those that are no outliers, `s = int(int(1 / r) /
        3)` and at least 1; at most `budget - 1` in all, attention first.
      neighbours: nearest tokens that a row takes up.
      order: "source", or "official": by attention, then the evenly spaced ones.
      compat: "official", see `prumerge`. A row without any outlier, which crashes
        the code, keeps nothing but the last row. What the code does for training, with
        a fixed share, is not reproduced: it may take a token twice.

    Returns:
      `Compressed`, see `prumerge`.

    Raises:
      ArgumentError: as `prumerge`.

    Source: Shang et al. 2024, arXiv 2403.15388, section 3.4, and its code. Differs: as
      `prumerge`; without `adaptive` the budget is reached exactly.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (1, 12, 4))
      >>> prumerge_plus(x, budget=9, keys=x, attn=jnp.arange(12.0)[None]).keep.tolist()
      [[0, 1, 3, 5, 6, 8, 10, 11, -1]]
    """
    real = check_tokens(x, budget, valid)
    batch, seq = real.shape
    score = token_scores(attn, batch, seq)
    total = jnp.sum(real, axis=1, dtype=jnp.int32)
    rank = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    most = _most(total, budget, compat)
    if adaptive:
        count, step = _adaptive(score, real, budget, compat)
        top = top_tokens(score, count, real)
        spaced = (rank % step[:, None] == 0) & (rank < total[:, None] - 1)
        spaced = spaced & real & ~top & (count > 0)[:, None]
        room = top_tokens(-rank.astype(jnp.float32), most - count, spaced)
    else:
        top = top_tokens(score, most // 4, real)
        room = _evenly(real & ~top, most - most // 4)
    return _merged(
        x, real, top | room, score, keys, budget, position, neighbours, order, compat,
        behind=room,
    )  # fmt: skip


def _most(total: Array, budget: int, compat: str | None) -> Array:
    """Tokens that a row keeps: all if they fit, else one row is for the others."""
    if compat == "official":
        return jnp.full_like(total, budget - 1)
    return jnp.where(total <= budget, total, budget - 1)


def _evenly(among: Array, count: Array) -> Array:
    """`count` evenly spaced tokens of a mask, `[batch, seq]` bool."""
    rank = jnp.cumsum(among, axis=1, dtype=jnp.int32) - 1
    there = jnp.maximum(jnp.sum(among, axis=1, dtype=jnp.int32), 1)[:, None]
    step = lambda at: (at * count[:, None] + there - 1) // there
    return among & (step(rank + 1) > step(rank))


def _merged(
    x: Array, real: Array, kept: Array, score: Array, keys: Array, budget: int,
    position: Array | None, neighbours: int, order: str, compat: str | None,
    behind: Array | None = None,
) -> Compressed:  # fmt: skip
    """Rows of the kept tokens with their neighbours, then one of all others."""
    check(neighbours >= 1, "neighbours", neighbours, "at least 1")
    seq = x.shape[1]
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), real.shape)
    dropped = real & ~kept
    place = index.astype(jnp.float32)
    if order == "official":
        place = jnp.argsort(jnp.argsort(-score, axis=1, stable=True), axis=1)
        place = place.astype(jnp.float32)
        if behind is not None:
            place = jnp.where(behind, index + seq, place)
    # The first dropped token stands for all of them, in the last row.
    host = jnp.argmax(dropped, axis=1).astype(jnp.int32)[:, None]
    joins = jnp.where(dropped, host, index)
    place = jnp.where(dropped, 4.0 * seq, place)
    plan = join_plan(joins, place, budget, valid=real, position=position)
    own = jnp.take_along_axis(kept, jnp.maximum(plan.keep, 0), axis=1)
    own = own & (plan.keep >= 0)
    weights = _weights(keys, plan, own, real, dropped, score, neighbours, compat)
    wide = x.astype(jnp.float32)
    tokens = jnp.einsum("bkn,bnc->bkc", weights, wide)
    if compat == "official":
        tokens = tokens + jnp.where(own[..., None], plan.prune(wide), 0.0)
    plan = dataclasses.replace(plan, keep=jnp.where(own, plan.keep, -1))
    found = compressed(x, plan, jnp.where(real, score, -jnp.inf))
    return dataclasses.replace(found, tokens=tokens.astype(x.dtype))


def _weights(
    keys: Array, plan: Plan, own: Array, real: Array, dropped: Array, score: Array,
    neighbours: int, compat: str | None,
) -> Array:  # fmt: skip
    """`[batch, rows, seq]`: how much of each token a row takes up."""
    batch, seq = real.shape
    unit = unit_rows(jax.lax.stop_gradient(keys))
    at = jnp.maximum(plan.keep, 0)
    of_row = jnp.take_along_axis(unit, at[..., None], axis=1)
    cosine = jnp.einsum(
        "bkd,bnd->bkn", of_row, unit, precision=jax.lax.Precision.HIGHEST
    )
    itself = at[..., None] == jnp.arange(seq)[None, None, :]
    near, who = jax.lax.top_k(
        jnp.where(real[:, None] & ~itself, cosine, -jnp.inf), min(neighbours, seq)
    )
    b, k = jnp.arange(batch)[:, None, None], jnp.arange(at.shape[1])[None, :, None]
    chosen = jnp.zeros(cosine.shape, bool).at[b, k, who].set(near > -jnp.inf)
    last = plan.valid & ~own
    if compat != "official":
        chosen = chosen | itself
    chosen = jnp.where(last[..., None], dropped[:, None], chosen & own[..., None])
    if compat == "official":
        return jnp.where(chosen, score[:, None], 0.0)
    # Members that all have no attention weigh the same.
    weights = jnp.where(chosen, jnp.maximum(score, 1e-20)[:, None], 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)
