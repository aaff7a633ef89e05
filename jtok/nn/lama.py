"""Low-rank attention pooling: each head is a rank-1 affinity with a context vector.

Source: Mehta et al. 2019, arXiv 1912.00835 (LAMA). There is no official code.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.errors import ArgumentError, check
from jtok.nn.poolers import (
    Pooled,
    attend_heads,
    check_mask,
    check_widths,
    lecun_matrix,
    masked_mean,
    weighed_tokens,
)

__all__ = ["LamaPooler", "fold_context"]

PyTree = Any
_EPS = 1e-12
_CONTEXTS = ("learned", "mean", "given")


@dataclasses.dataclass(frozen=True)
class LamaPooler:
    """Attention pooling whose heads are columns of two thin matrices.

    Head i gives a token u the score `(c . p_i)(u . q_i)` for a context vector c. Scores
    go through tanh, the heads' scores of one token are scaled to length 1, and each
    head takes a softmax over the tokens.

    Scores of length 1 lie in [-1, 1], so no two weights of a head differ by more than a
    factor e^(2 * scale). With one head a score is 1 or -1 only: take at least four
    heads, or `normalize=False`.

    Attributes:
      width: of the vectors.
      heads: columns of both matrices.
      context: "learned" is one vector for all rows; "mean" is the mean of the scored
        tokens of a row, or of the `[batch, seq, context_width]` vectors that a call is
        given; "given" comes with each call.
      context_width: of the context; None takes `width`.
      activation: of the scores, "tanh" or "linear".
      normalize: scale the scores of a token to length 1 over the heads.
      score_scale: what scores are multiplied with before the softmax.
      learn_scale: make it a parameter that starts there.
      start: initial matrices, "lecun" (normal, variance 1 / rows) or "kaiming"
        (uniform within 1 / sqrt(heads), the third-party code's).
      dtype: of the parameters: `2 * width * heads` numbers, and `width` of a learnt
        context.

    Raises:
      ArgumentError: a size below 1, an unknown option or dtype, or a scale that is not
        positive.

    Source: Mehta et al. 2019, arXiv 1912.00835, figure 1. The root of the length has
    1e-12 in it, so a token of zeros is no division by 0. `score_scale` is not the
    paper's.

    Example:
      >>> pooler = LamaPooler(width=4, heads=2)
      >>> params = pooler.init(jax.random.key(0))
      >>> pooler(params, jnp.ones((1, 5, 4))).vectors.shape
      (1, 2, 4)
    """

    width: int
    heads: int = 8
    context: Literal["learned", "mean", "given"] = "learned"
    context_width: int | None = None
    activation: Literal["tanh", "linear"] = "tanh"
    normalize: bool = True
    score_scale: float = 1.0
    learn_scale: bool = False
    start: Literal["lecun", "kaiming"] = "lecun"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_widths(self, "width", "heads")
        if self.context_width is not None:
            check_widths(self, "context_width")
        for name, known in (
            ("context", _CONTEXTS),
            ("activation", ("tanh", "linear")),
            ("start", ("lecun", "kaiming")),
        ):
            value = getattr(self, name)
            check(value in known, name, value, f"one of {known}")
        good = self.score_scale > 0 and self.score_scale < float("inf")
        check(good, "score_scale", self.score_scale, "a finite number above 0")

    def init(self, key: Array) -> PyTree:
        """Parameters: `context_map`, `word_map`, and what the options ask for."""
        one, two, three = jax.random.split(key, 3)
        outer = self.context_width or self.width
        made = {
            "context_map": self._matrix(one, outer),
            "word_map": self._matrix(two, self.width),
        }
        if self.context == "learned":
            draw = 0.5 * jax.random.normal(three, (outer,))
            made["context"] = draw.astype(self.dtype)
        if self.learn_scale:
            made["score_scale"] = jnp.asarray(self.score_scale, jnp.float32)
        return made

    def _matrix(self, key: Array, rows: int) -> Array:
        shape = (rows, self.heads)
        if self.start == "lecun":
            return lecun_matrix(key, shape, self.dtype)
        most = self.heads**-0.5
        return jax.random.uniform(key, shape, minval=-most, maxval=most).astype(
            self.dtype
        )

    def scores(
        self,
        params: PyTree,
        scored: Float[Array, "batch seq width"],
        mask: Any = None,
        *,
        context: Any = None,
    ) -> Float[Array, "batch heads seq"]:
        """Float32 scores after activation and normalisation, before scale and softmax.

        Padding is left out of the context only.
        """
        real = check_mask(mask, scored, self.width)
        about = self._context(params, scored, real, context)
        words = scored.astype(jnp.float32) @ params["word_map"].astype(jnp.float32)
        z = about[:, :, None] * words.swapaxes(1, 2)
        if self.activation == "tanh":
            z = jnp.tanh(z)
        if self.normalize:
            length = jnp.sum(jnp.square(z), axis=1, keepdims=True)
            z = z * jax.lax.rsqrt(length + _EPS)
        return z

    def _context(self, params: PyTree, scored: Array, real: Array, given: Any) -> Array:
        """`[batch, heads]` (or one row for all) products of the context."""
        if self.context == "learned" and "folded" in params:
            self._check_given(given, None)
            return params["folded"].astype(jnp.float32)[None]
        kernel = params["context_map"].astype(jnp.float32)
        batch, seq = real.shape
        if self.context == "learned":
            self._check_given(given, None)
            vector = params["context"].astype(jnp.float32)[None]
        elif self.context == "given":
            self._check_given(given, (batch, kernel.shape[0]))
            vector = jnp.asarray(given).astype(jnp.float32)
        else:
            if given is not None:
                self._check_given(given, (batch, seq, kernel.shape[0]))
            vector = masked_mean(scored if given is None else jnp.asarray(given), real)
            good = vector.shape[-1] == kernel.shape[0]
            mean = f"a mean of width {vector.shape[-1]}"
            check(good, "context", mean, f"width {kernel.shape[0]}, as context_map has")
        return vector @ kernel

    def _check_given(self, given: Any, shape: tuple[int, ...] | None) -> None:
        if shape is None:
            wanted = "None: this pooler has learnt its own"
            check(given is None, "context", "a vector", wanted)
            return
        if given is None:
            raise ArgumentError(f"context: got None, expected {list(shape)} numbers.")
        got = jnp.shape(given)
        check(got == shape, "context", f"shape {got}", f"{list(shape)}")

    def __call__(
        self,
        params: PyTree,
        values: Array,
        mask: Any = None,
        *,
        scored: Array | None = None,
        context: Any = None,
    ) -> Pooled:
        """Pools.

        Args:
          params: as from `init`.
          values: `[batch, seq, width]` vectors to mix.
          mask: `[batch, seq]` True for real tokens; None lets all be real. Padding may
            hold anything.
          scored: `[batch, seq, width]` what is weighed; None takes `values`.
          context: `[batch, context_width]` where it is "given".

        Returns:
          `Pooled`.

        Raises:
          ArgumentError: a shape that does not fit, a mask of other values than 0 and 1
            (traced by jit, all but 0 is real), or a context that is missing, not asked
            for, or of another width.
        """
        real = check_mask(mask, values, self.width)
        x = weighed_tokens(values, scored, real)
        scores = self.scores(params, x, real, context=context)
        scale = params.get("score_scale", self.score_scale)
        return attend_heads(scores * scale, values, real)


def fold_context(params: PyTree) -> PyTree:
    """Replaces a learnt context and its matrix by the one vector that they amount to.

    Args:
      params: of a `LamaPooler` with a learnt context.

    Returns:
      Parameters for the same pooler, with `folded` `[heads]` in float32 in place of
      `context` and `context_map`.

    Raises:
      ArgumentError: the parameters hold no learnt context.

    Source: Mehta et al. 2019, arXiv 1912.00835; it follows from equation 3.13 there.

    Example:
      >>> params = LamaPooler(width=4, heads=2).init(jax.random.key(0))
      >>> sorted(fold_context(params))
      ['folded', 'word_map']
    """
    good = "context" in params and "context_map" in params
    check(good, "params", sorted(params), "a learnt context and its context_map")
    rest = {k: v for k, v in params.items() if k not in ("context", "context_map")}
    vector = params["context"].astype(jnp.float32)
    return rest | {"folded": vector @ params["context_map"].astype(jnp.float32)}
