"""FastV: tokens of an image that the last word does not look at leave.

Source: Chen et al. 2024, arXiv 2403.06764.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Budget, Compressed, check_tokens, compressed
from jtok.compress.selection import kept_in_order, token_scores, top_tokens
from jtok.errors import check
from jtok.ops.plan import keep_plan

__all__ = ["fastv", "fastv_budget"]


def fastv_budget(seq: int, image: int, drop: float) -> int:
    """Rows that are left of a prompt when a share of its image leaves.

    Args:
      seq: tokens of the prompt.
      image: those of the image among them.
      drop: share of them that leaves, from 0 to below 1.

    Returns:
      `seq - image + round(image * (1 - drop))`, half to even.

    Raises:
      ArgumentError: a share out of range, or more image than prompt.

    Source: Chen et al. 2024, arXiv 2403.06764, and its code.

    Example:
      >>> fastv_budget(40, 25, 0.5)
      27
    """
    check(0.0 <= drop < 1.0, "drop", drop, "a share from 0 to below 1")
    check(1 <= image <= seq, "image", image, f"1 to {seq}, the tokens of the prompt")
    return seq - image + Budget(keep=1.0 - drop).of(image, "half_even")


@declared(
    "attention", ("image", "video"), "Keeps what the last word of the prompt looks at.",
    "Chen et al. 2024, arXiv 2403.06764", rounding="half_even",
)  # fmt: skip
def fastv(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    attn: Array,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    among: Bool[Array, "batch seq"] | None = None,
) -> Compressed:
    """Keeps the tokens that receive most attention, in their order.

    With the attention of the last word of the prompt it is FastV; any other attention
    ranks as well (that of the class token, or what each token receives on average).
    Inside a language model `x` is the hidden state, `among` marks the image, and the
    rest of the prompt stays. Ties go to the lower index.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out, those outside of `among` included.
      attn: `[batch, seq]`, or `[batch, heads, seq]` of which the mean counts.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      position: `[batch, seq, axes]`; None counts from 0. They stay what they were.
      among: `[batch, seq]` bool: tokens that may leave, anywhere, of several images
        too; None for all. Others leave only where the budget is smaller than they are
        many, the last ones first.

    Returns:
      `Compressed`; `score` is the mean of the heads.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, or shapes that do not fit.

    Source: Chen et al. 2024, arXiv 2403.06764, and its code, which takes the attention
      of the last token in the layer before (the paper's text says: received on
      average). Differs: any span, batches, padding.

    Example:
      >>> attn = jnp.array([[0.1, 0.4, 0.2, 0.3]])
      >>> fastv(jnp.ones((1, 4, 2)), budget=2, attn=attn).keep.tolist()
      [[1, 3]]
    """
    real = check_tokens(x, budget, valid)
    batch, seq, _ = x.shape
    score = token_scores(attn, batch, seq)
    among = real if among is None else among
    check(among.shape == real.shape, "among", f"shape {among.shape}", f"{real.shape}")
    free = real & among
    stays = real & ~free
    count = jnp.maximum(budget - jnp.sum(stays, axis=1), 0)
    chosen = stays | top_tokens(score, count, free)
    plan = keep_plan(kept_in_order(chosen, budget), seq, position=position)
    return compressed(x, plan, jnp.where(real, score, -jnp.inf))
