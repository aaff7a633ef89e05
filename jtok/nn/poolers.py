"""Poolers: a row of vectors becomes one vector, or one for each head.

A pooler is a frozen configuration that makes its parameters (`init`) and pools with
them (a call). `jtok.nn.LamaPooler`, `MeanPooler`, `MaxPooler`, `LastPooler` are others.

Source: Lin et al. 2017, arXiv 1703.03130 (structured); Yang et al. 2016 and Bahdanau et
al. 2015, arXiv 1409.0473 (additive).
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from jtok.errors import check

__all__ = [
    "AdditivePooler",
    "ContextFree",
    "OneVector",
    "Pooled",
    "Pooler",
    "StructuredPooler",
    "attend_heads",
    "attention_penalty",
    "check_mask",
    "check_widths",
    "lecun_matrix",
    "masked_mean",
    "masked_softmax",
    "weighed_tokens",
]

PyTree = Any
LOW = -1e30  # finite, so that a row of padding only has no gradient of inf - inf
_DTYPES = ("float32", "bfloat16")


@struct.dataclass
class Pooled:
    """What a pooler gives.

    Attributes:
      vectors: `[batch, heads, width]`, 0 for rows without a real token.
      attention: float32 `[batch, heads, seq]`, of each head at least 0 with the sum 1
        over real tokens and 0 at padding; None of a pooler that does not weigh tokens.
    """

    vectors: jax.Array
    attention: jax.Array | None = None


@runtime_checkable
class Pooler(Protocol):
    """A hashable configuration that pools with parameters which it has made.

    `width` is that of the vectors; `heads` says how many come out of a row.
    `init(key)` gives the parameters, a tree that may be empty. A call with
    `(params, values, mask, *, scored, context)` gives `Pooled`: `values`
    `[batch, seq, width]` are mixed, `scored` (those, where it is None) are weighed, and
    `context` is what some poolers compare them with.

    Example:
      >>> isinstance(AdditivePooler(width=4), Pooler)
      True
    """

    @property
    def width(self) -> int: ...

    @property
    def heads(self) -> int: ...

    def init(self, key: Array) -> PyTree: ...

    def __call__(
        self,
        params: PyTree,
        values: Array,
        mask: Any = None,
        *,
        scored: Array | None = None,
        context: Any = None,
    ) -> Pooled: ...


# ---- what poolers share


def check_widths(config: Any, *names: str) -> None:
    """Refuses sizes below 1 and dtypes that parameters are not kept in."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        check(whole and value >= 1, name, value, "a whole number of at least 1")
    dtype = getattr(config, "dtype", "float32")
    check(dtype in _DTYPES, "dtype", dtype, f"one of {_DTYPES}")


def check_mask(mask: Any, values: Array, width: int) -> Bool[Array, "batch seq"]:
    """The mask as booleans; refuses vectors of another width and odd masks."""
    good = values.ndim == 3 and values.shape[-1] == width
    check(good, "values", f"shape {values.shape}", f"[batch, seq, {width}]")
    shape = values.shape[:2]
    if mask is None:
        return jnp.ones(shape, bool)
    good = np.shape(mask) == shape
    check(good, "mask", f"shape {np.shape(mask)}", f"{list(shape)}")
    if not isinstance(mask, jax.core.Tracer):
        given = np.asarray(mask)
        odd = given[(given != 0) & (given != 1)] if given.dtype != bool else given[:0]
        check(not odd.size, "mask", odd[:1].tolist(), "True and False, or 1 and 0")
    return jnp.asarray(mask).astype(bool)


def masked_mean(
    values: Float[Array, "batch seq width"], real: Bool[Array, "batch seq"]
) -> Float[Array, "batch width"]:
    """The float32 mean over real tokens, 0 where there are none."""
    kept = jnp.where(real[..., None], values.astype(jnp.float32), 0.0)
    count = jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
    return jnp.sum(kept, axis=1) / count


def masked_softmax(
    scores: Float[Array, "batch heads seq"], real: Bool[Array, "batch seq"]
) -> Float[Array, "batch heads seq"]:
    """Float32 weights of each head over real tokens; 0 where there are none."""
    seen = real[:, None, :]
    scores = jnp.where(seen, scores.astype(jnp.float32), LOW)
    top = jnp.max(scores, axis=-1, keepdims=True, initial=LOW)
    powers = jnp.where(seen, jnp.exp(scores - jax.lax.stop_gradient(top)), 0.0)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    return powers / jnp.where(total > 0, total, 1.0)


def attend_heads(
    scores: Float[Array, "batch heads seq"],
    values: Float[Array, "batch seq width"],
    real: Bool[Array, "batch seq"],
) -> Pooled:
    """Softmax of the scores, and the values under it."""
    weights = masked_softmax(scores, real)
    kept = jnp.where(real[..., None], values, 0)
    vectors = jnp.einsum("bht,btd->bhd", weights, kept.astype(jnp.float32))
    return Pooled(vectors.astype(values.dtype), weights)


def attention_penalty(
    attention: Float[Array, "batch heads seq"],
) -> Float[Array, ""]:
    """How far heads are from looking at one word each, and at different ones.

    Args:
      attention: `[batch, heads, seq]` weights of a pooler.

    Returns:
      Float32 mean over rows of the squared Frobenius norm of `A A^T - I`; rows of
      padding only do not count.

    Source: Lin et al. 2017, arXiv 1703.03130, section 2.1.

    Example:
      >>> apart, same = jnp.eye(2)[None], jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
      >>> float(attention_penalty(apart)), float(attention_penalty(same))
      (0.0, 2.0)
    """
    weights = attention.astype(jnp.float32)
    gram = jnp.einsum("bit,bjt->bij", weights, weights)
    apart = gram - jnp.eye(weights.shape[1])[None]
    real = jnp.any(weights > 0, axis=(1, 2))
    each = jnp.where(real, jnp.sum(jnp.square(apart), axis=(1, 2)), 0.0)
    return jnp.sum(each) / jnp.maximum(jnp.sum(real), 1)


def weighed_tokens(values: Array, scored: Array | None, real: Array) -> Array:
    """`scored`, or else the values, with nothing of the padding left in it."""
    if scored is None:
        scored = values
    good = scored.shape == values.shape
    check(good, "scored", f"shape {scored.shape}", f"{list(values.shape)}")
    return jnp.where(real[..., None], scored, 0)


def lecun_matrix(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """LeCun normal values: of variance 1 / rows."""
    return jax.nn.initializers.lecun_normal()(key, shape).astype(dtype)


def _product(x: Array, kernel: Array) -> Array:
    return x.astype(jnp.float32) @ kernel.astype(jnp.float32)


class ContextFree:
    """A pooler that compares tokens with no context: the call that such ones share.

    Their `_pool` takes the parameters, the values, what is weighed as it was given (or
    None), and the checked mask.
    """

    width: int

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
          values: `[batch, seq, width]` vectors to pool.
          mask: `[batch, seq]` True for real tokens; None lets all be real. Padding may
            hold anything.
          scored: `[batch, seq, width]` what is weighed, by poolers that weigh tokens;
            None takes `values`.
          context: not looked at.

        Returns:
          `Pooled`.

        Raises:
          ArgumentError: a shape that does not fit, or a mask of other values than 0
            and 1 (traced by jit, all but 0 is real).
        """
        real = check_mask(mask, values, self.width)
        return self._pool(params, values, scored, real)

    def _pool(
        self, params: PyTree, values: Array, scored: Array | None, real: Array
    ) -> Pooled:
        raise NotImplementedError


class OneVector(ContextFree):
    """A pooler that makes one vector of a row."""

    @property
    def heads(self) -> int:
        """One."""
        return 1


# ---- the poolers


@dataclasses.dataclass(frozen=True)
class StructuredPooler(ContextFree):
    """Multi-head attention pooling by a small network: `W2 tanh(W1 x)`.

    Attributes:
      width: of the vectors.
      heads: rows of the second matrix.
      hidden: width between the two.
      dtype: of the parameters, `width * hidden + hidden * heads` numbers.

    Raises:
      ArgumentError: a size below 1 or another dtype.

    Source: Lin et al. 2017, arXiv 1703.03130, equations 5 to 7, without biases.

    Example:
      >>> pooler = StructuredPooler(width=4, heads=2, hidden=3)
      >>> params = pooler.init(jax.random.key(0))
      >>> pooler(params, jnp.ones((1, 5, 4))).vectors.shape
      (1, 2, 4)
    """

    width: int
    heads: int = 8
    hidden: int = 350
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_widths(self, "width", "heads", "hidden")

    def init(self, key: Array) -> PyTree:
        """Parameters: `first` `[width, hidden]` and `second` `[hidden, heads]`."""
        one, two = jax.random.split(key)
        return {
            "first": lecun_matrix(one, (self.width, self.hidden), self.dtype),
            "second": lecun_matrix(two, (self.hidden, self.heads), self.dtype),
        }

    def _pool(
        self, params: PyTree, values: Array, scored: Array | None, real: Array
    ) -> Pooled:
        x = weighed_tokens(values, scored, real)
        scores = _product(jnp.tanh(_product(x, params["first"])), params["second"])
        return attend_heads(scores.swapaxes(1, 2), values, real)


@dataclasses.dataclass(frozen=True)
class AdditivePooler(OneVector):
    """Single-head attention pooling: `v . tanh(W x + b)`.

    Attributes:
      width: of the vectors.
      hidden: rows of the matrix; 0 takes `width`.
      dtype: of the parameters, `width * hidden + 2 * hidden` numbers.

    Raises:
      ArgumentError: a size below 1 or another dtype.

    Source: Bahdanau et al. 2015, arXiv 1409.0473, with the learnt query of Yang et al.
    2016 (hierarchical attention networks).

    Example:
      >>> pooler = AdditivePooler(width=4)
      >>> params = pooler.init(jax.random.key(0))
      >>> pooler(params, jnp.ones((1, 5, 4))).attention.shape
      (1, 1, 5)
    """

    width: int
    hidden: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_widths(self, "width")
        check(self.hidden >= 0, "hidden", self.hidden, "at least 1, or 0 for `width`")

    def init(self, key: Array) -> PyTree:
        """Parameters: `kernel`, `bias` and the `query`."""
        one, two = jax.random.split(key)
        hidden = self.hidden or self.width
        return {
            "kernel": lecun_matrix(one, (self.width, hidden), self.dtype),
            "bias": jnp.zeros(hidden, self.dtype),
            "query": lecun_matrix(two, (hidden, 1), self.dtype),
        }

    def _pool(
        self, params: PyTree, values: Array, scored: Array | None, real: Array
    ) -> Pooled:
        x = _product(weighed_tokens(values, scored, real), params["kernel"])
        x = x + jnp.broadcast_to(params["bias"].astype(jnp.float32), x.shape)
        scores = _product(jnp.tanh(x), params["query"])
        return attend_heads(scores.swapaxes(1, 2), values, real)
