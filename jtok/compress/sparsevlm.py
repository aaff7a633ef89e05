"""SparseVLM: the words that matter rate the tokens of the image.

Source: Zhang et al. 2024, arXiv 2410.04417.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.density import density_peaks
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.matching import ranks_among
from jtok.compress.selection import top_tokens
from jtok.errors import ArgumentError, check
from jtok.ops.eager import one_program
from jtok.ops.plan import join_plan

__all__ = ["Raters", "sparsevlm", "text_raters"]


class Raters(NamedTuple):
    """Which words rate.

    Attributes:
      score: `[batch, words]` float32 share of the tokens' attention.
      rates: `[batch, words]` bool those above the mean.
    """

    score: jax.Array
    rates: jax.Array


@one_program
def text_raters(
    x: Float[Array, "batch seq dim"],
    text: Float[Array, "batch words dim"],
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    text_valid: Bool[Array, "batch words"] | None = None,
) -> Raters:
    """The words that the image speaks of.

    Each token spreads one over all words, by a softmax of dot products without a
    scale; a word's score is the mean over tokens. Words strictly above the mean score
    rate.

    Args:
      x: `[batch, seq, dim]` vectors of the image that enter the language model.
      text: `[batch, words, dim]` those of the question.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      text_valid: `[batch, words]` bool; None lets all words be real.

    Returns:
      `Raters`.

    Raises:
      ArgumentError: shapes that do not fit.

    Source: Zhang et al. 2024, arXiv 2410.04417, section 3.2, and its code. Differs:
      masks.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [2.0, 0.0]]])
      >>> text_raters(x, jnp.array([[[1.0, 0.0], [0.0, 1.0]]])).rates.tolist()
      [[True, False]]
    """
    real = check_tokens(x, None, valid)
    words = check_tokens(text, None, text_valid)
    good = text.shape[0] == x.shape[0] and text.shape[2] == x.shape[2]
    check(good, "text", f"shape {text.shape}", f"[{x.shape[0]}, words, {x.shape[2]}]")
    scores = jnp.einsum(
        "bnd,bmd->bnm",
        jax.lax.stop_gradient(x),
        jax.lax.stop_gradient(text),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    spread = jax.nn.softmax(scores, axis=-1, where=words[:, None])
    spread = jnp.where(real[..., None] & words[:, None], spread, 0.0)
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    score = jnp.sum(spread, axis=1) / count
    mean = jnp.sum(score, axis=1) / jnp.maximum(jnp.sum(words, axis=1), 1)
    return Raters(score, (score > mean[:, None]) & words)


def relevance(
    attn: Float[Array, "batch heads words seq"] | Float[Array, "batch words seq"],
    rates: Bool[Array, "batch words"],
) -> Float[Array, "batch seq"]:
    """Attention from the raters to each token, the mean of heads and raters."""
    wide = jax.lax.stop_gradient(attn.astype(jnp.float32))
    if wide.ndim == 4:
        wide = jnp.mean(wide, axis=1)
    total = jnp.sum(jnp.where(rates[..., None], wide, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(rates, axis=1, keepdims=True), 1)


@declared(
    "query", ("image", "video"),
    "Keeps what the words that matter look at, clusters some others.",
    "Zhang et al. 2024, arXiv 2410.04417",
)  # fmt: skip
def sparsevlm(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    attn: Array,
    text: Float[Array, "batch words dim"] | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    text_valid: Bool[Array, "batch words"] | None = None,
    raters: Bool[Array, "batch words"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    recycle: bool = True,
) -> Compressed:
    """Keeps the tokens that the question looks at and packs up a few of the others.

    Of P tokens that leave, the `int(0.3 P) + 1` of highest relevance are not lost:
    clusters of them, one for every ten and one more, each become the mean of their
    members, behind the kept tokens. Ties go to the lower index.

    Args:
      x: `[batch, seq, dim]` hidden states of the image.
      budget: rows that come out, those of clusters included.
      attn: `[batch, heads, words, seq]` or `[batch, words, seq]`: attention of each
        word to each token of the image, in this layer.
      text: `[batch, words, dim]` vectors of the question where `x` is what enters the
        language model, to find the raters; or give them.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      text_valid: `[batch, words]` bool; None lets all words be real.
      raters: `[batch, words]` bool, `text_raters(...).rates`, which are found once and
        used in all layers; then `text` is not looked at.
      position: `[batch, seq, axes]`; None counts from 0. Clusters have the mean.
        `Compressed.placed("renumbered")` is what version 1 does, 2.0 keeps them.
      recycle: False drops what leaves, as version 2.0.

    Returns:
      `Compressed`; `score` is the relevance. The rows of clusters have no `keep`.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, neither `text` nor `raters`, or
        shapes that do not fit.

    Source: Zhang et al. 2024, arXiv 2410.04417, section 3, and its code. Differs:
      batches, masks; no noise breaks ties; the number of kept tokens follows from the
      budget, and where clusters would leave no room for a kept token there are fewer.

    Example:
      >>> attn = jnp.array([[[0.1, 0.4, 0.2, 0.3]]])
      >>> raters = jnp.array([[True]])
      >>> x = jnp.arange(8.0).reshape(1, 4, 2)
      >>> sparsevlm(x, budget=2, attn=attn, raters=raters).keep.tolist()
      [[1, -1]]
    """
    real = check_tokens(x, budget, valid)
    batch, seq = real.shape
    if raters is None:
        if text is None:
            raise ArgumentError("text: got None, expected vectors of words, or raters.")
        raters = text_raters(x, text, valid=valid, text_valid=text_valid).rates
    expected = f"[{batch}, (heads,) {raters.shape[1]} words, {seq}]"
    good = attn.ndim in (3, 4) and attn.shape[0] == batch
    good = good and attn.shape[-2:] == (raters.shape[1], seq)
    check(good, "attn", f"shape {attn.shape}", expected)
    score = relevance(attn, raters)
    table = np.array([_counts(n, budget, recycle) for n in range(seq + 1)], np.int32)
    kept_count, again_count, groups = jnp.asarray(table)[jnp.sum(real, axis=1)].T
    kept = top_tokens(score, kept_count, real)
    again = top_tokens(score, again_count, real & ~kept)
    return _packed(x, score, real, kept, again, groups, budget, table, position)


def _counts(total: int, budget: int, recycle: bool) -> tuple[int, int, int]:
    """Of so many tokens: those kept, those recycled, and into how many clusters."""
    if total <= budget:
        return total, 0, 0
    if not recycle or budget == 1:
        return budget, 0, 0
    for kept in range(budget - 1, 0, -1):
        again = int(0.3 * (total - kept)) + 1
        groups = again // 10 + 1
        if kept + groups <= budget:
            return kept, again, groups
    return 1, int(0.3 * (total - 1)) + 1, budget - 1


def _packed(
    x: Array, score: Array, real: Array, kept: Array, again: Array, groups: Array,
    budget: int, table: np.ndarray, position: Array | None,
) -> Compressed:  # fmt: skip
    """Rows of the kept tokens, then those of the clusters."""
    seq = x.shape[1]
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), real.shape)
    joins, there = index, kept
    most, clusters = int(table[:, 1].max()), int(table[:, 2].max())
    if most:
        rank = ranks_among(jnp.where(again, score, -jnp.inf))
        order = jnp.argsort(rank, axis=1)[:, :most].astype(jnp.int32)
        chosen = jnp.take_along_axis(again, order, axis=1)
        some = jnp.take_along_axis(x, order[..., None], axis=1)
        centre, rank_of = density_peaks(some, clusters, valid=chosen, count=groups)
        host = jnp.take_along_axis(order, centre, axis=1)
        at = jnp.where(chosen, order, seq)
        rows = jnp.arange(x.shape[0])[:, None]
        wide = jnp.pad(index, ((0, 0), (0, 1)))
        joins = wide.at[rows, at].set(host)[:, :seq]
        behind = jnp.zeros_like(wide).at[rows, at].set(rank_of)[:, :seq]
        there = kept | again
        place = jnp.where(again, behind + 2 * seq, index)
    else:
        place = index
    plan = join_plan(joins, place, budget, valid=there & real, position=position)
    found = compressed(x, plan, jnp.where(real, score, -jnp.inf), how="mean")
    own = jnp.take_along_axis(kept, jnp.maximum(plan.keep, 0), axis=1)
    plan = dataclasses.replace(plan, keep=jnp.where(own, plan.keep, -1))
    return dataclasses.replace(found, plan=plan)
