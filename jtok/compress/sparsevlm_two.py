"""SparseVLM 2.0: attention without the pull of near places, of the heads that look.

Source: Zhang et al. 2024, arXiv 2410.04417, the code's version 2.0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check

__all__ = ["sparsevlm_attention"]


def sparsevlm_attention(
    attn: Float[Array, "batch heads words seq"],
    raters: Bool[Array, "batch words"],
    *,
    text_position: Int[Array, "batch words"],
    position: Int[Array, "batch seq"],
    head_dim: int,
    base: float = 10000.0,
    heads: int = 14,
) -> Float[Array, "batch kept words seq"]:
    """The attention that version 2.0 ranks tokens by, for `sparsevlm`.

    Weights are divided by what rotary positions alone would give: the scaled product
    of two vectors of ones, rotated to both places. Of all heads those stay whose
    divided weights from raters to the image sum to most, the largest first. Ties go to
    the lower head.

    Args:
      attn: `[batch, heads, words, seq]` attention of each word to each token.
      raters: `[batch, words]` bool, `text_raters(...).rates`.
      text_position: `[batch, words]` int32 position ids of the words.
      position: `[batch, seq]` int32 those of the tokens of the image.
      head_dim: numbers that are rotated in a head, even.
      base: of the rotation.
      heads: that stay, 1 to the heads of `attn`.

    Returns:
      `[batch, kept, words, seq]` float32; pass it to `sparsevlm` with
      `recycle=False`.

    Raises:
      ArgumentError: an odd `head_dim`, a `base` that is not above 1, more heads than
        there are, or shapes that do not fit.

    Source: Zhang et al. 2024, arXiv 2410.04417, the code's version 2.0. The divisor may
      be small or negative, as it is there. Differs: each row of a batch chooses its
      heads.

    Example:
      >>> attn = jnp.array([[[[0.5, 0.5]], [[0.2, 0.1]]]])
      >>> at = {"text_position": jnp.array([[2]]), "position": jnp.array([[0, 1]])}
      >>> rates, sizes = jnp.array([[True]]), {"head_dim": 4, "heads": 1}
      >>> sparsevlm_attention(attn, rates, **at, **sizes).shape
      (1, 1, 1, 2)
    """
    batch, count, words, seq = attn.shape
    check(head_dim >= 2 and head_dim % 2 == 0, "head_dim", head_dim, "an even number")
    check(1.0 < base < float("inf"), "base", base, "a finite number above 1")
    check(1 <= heads <= count, "heads", heads, f"1 to {count}, the heads of attn")
    for name, array, length in (
        ("raters", raters, words),
        ("text_position", text_position, words),
        ("position", position, seq),
    ):
        good = array.shape == (batch, length)
        check(good, name, f"shape {array.shape}", f"[{batch}, {length}]")
    apart = text_position[:, :, None] - position[:, None, :]
    power = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angle = apart[..., None].astype(jnp.float32) * (base**-power)[None, None, None]
    # Two rotated vectors of ones: each pair of numbers gives 2 cos of the difference.
    pull = 2.0 * jnp.sum(jnp.cos(angle), axis=-1) * head_dim**-0.5
    wide = jax.lax.stop_gradient(attn.astype(jnp.float32)) / pull[:, None]
    rated = jnp.where(raters[:, None, :, None], wide, 0.0)
    _, best = jax.lax.top_k(jnp.sum(rated, axis=(2, 3)), heads)
    return jnp.take_along_axis(wide, best[:, :, None, None], axis=1)
