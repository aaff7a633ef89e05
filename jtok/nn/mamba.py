"""The Mamba block: a causal convolution and a selective scan in place of attention."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.nn.block import Tap
from jtok.nn.layers import Linear
from jtok.ops.selective_scan import advance_state, selective_scan

__all__ = [
    "MAMBA_SITES",
    "MambaBlock",
    "MambaConfig",
    "MambaSteps",
    "advance_mamba",
    "causal_conv",
    "conv_history",
    "rms_norm",
]

# What a tap may name, in the order in which a block reaches them.
MAMBA_SITES = ("resid_pre", "conv_out", "scan_out", "mixer_out", "resid_post")


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Sizes and choices of a Mamba language model, hashable.

    Attributes:
      family: the `model_type` that named it.
      vocab_size: rows of the embedding.
      width: size of the residual stream.
      num_layers: blocks.
      inner_width: channels of a block, usually twice `width`.
      state_size: numbers that each channel remembers.
      conv_size: taps of the causal convolution.
      dt_rank: inner size of the projection to step sizes.
      norm_eps: added to the variance.
      proj_bias: biases on the projections into and out of a block.
      conv_bias: bias on the convolution.
      residual_float32: keep the residual stream in float32.
      dt_min: smallest step size of a new model.
      dt_max: largest step size of a new model.
      tied: the unembedding is the embedding.
      dtype: dtype of the parameters and of the arithmetic between float32 islands.
      source: the JSON text of the checkpoint's configuration, kept for saving.
    """

    family: str = "mamba"
    vocab_size: int
    width: int
    num_layers: int
    inner_width: int
    state_size: int = 16
    conv_size: int = 4
    dt_rank: int
    norm_eps: float = 1e-5
    proj_bias: bool = False
    conv_bias: bool = True
    residual_float32: bool = True
    dt_min: float = 1e-3
    dt_max: float = 0.1
    tied: bool = True
    dtype: str = "float32"
    source: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "num_layers", "inner_width", "state_size")
        for name in (*sizes, "conv_size", "dt_rank"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.dt_min > 0, "dt_min", self.dt_min, "above 0")
        at_least = f"at least dt_min={self.dt_min}"
        check(self.dt_max >= self.dt_min, "dt_max", self.dt_max, at_least)


class MambaSteps(NamedTuple):
    """What the steps of a block do to its state: all that is needed to do it again.

    A few vectors a step, where the states themselves would be `state_size` times as
    large.

    Attributes:
      conv_in: `[batch, seq, inner]` inputs of the convolution.
      x: `[batch, seq, inner]` inputs of the scan.
      dt: `[batch, seq, inner]` float32 step sizes.
      B: `[batch, seq, state]`.
      A: `[inner, state]` float32 rates, the same for all steps.
    """

    conv_in: Array
    x: Array
    dt: Array
    B: Array
    A: Array


def rms_norm(
    x: Float[Array, "... dim"], scale: Float[Array, " dim"], eps: float
) -> Float[Array, "... dim"]:
    """`x` over its root mean square, in float32, times `scale`.

    Args:
      x: `[..., dim]`.
      scale: `[dim]`.
      eps: added to the mean square.

    Returns:
      `[..., dim]` in the wider dtype of `x` and `scale`.

    Example:
      >>> rms_norm(jnp.array([[3.0, -3.0]]), jnp.ones(2), 0.0).tolist()
      [[1.0, -1.0]]
    """
    wide = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    y = (wide * jax.lax.rsqrt(square + eps)).astype(x.dtype)
    return y * jnp.broadcast_to(scale, y.shape)


def causal_conv(
    x: Float[Array, "batch seq inner"],
    kernel: Float[Array, "taps inner"],
    bias: Float[Array, " inner"] | None = None,
    *,
    history: Float[Array, "batch past inner"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq inner"]:
    """Every channel's weighted sum of its newest inputs, in float32.

    Masked inputs are as though they were not there: their neighbours move together.

    Args:
      x: `[batch, seq, inner]`.
      kernel: `[taps, inner]`, the newest input last.
      bias: `[inner]` or None.
      history: `[batch, taps - 1, inner]` inputs before the first, None for zeros.
      mask: `[batch, seq]` True for inputs that count, None for all.

    Returns:
      `[batch, seq, inner]` in the dtype of `x`; anything finite at masked inputs.

    Raises:
      ArgumentError: `history` does not hold `taps - 1` inputs.

    Example:
      >>> x = jnp.arange(1.0, 4.0).reshape(1, 3, 1)
      >>> causal_conv(x, jnp.array([[10.0], [1.0]])).ravel().tolist()
      [1.0, 12.0, 23.0]
    """
    batch, seq, inner = x.shape
    past = kernel.shape[0] - 1
    if history is None:
        history = jnp.zeros((batch, past, inner), x.dtype)
    good = history.shape[1] == past
    check(good, "history", f"{history.shape[1]} inputs", f"{past}, one below the taps")
    if mask is not None:
        # Real inputs first, so that each finds its predecessors beside it.
        order = jnp.argsort(~mask, axis=1, stable=True)
        x = jnp.take_along_axis(x, order[..., None], axis=1)
    whole = jnp.concatenate([history.astype(x.dtype), x], axis=1).astype(jnp.float32)
    taps = kernel.astype(jnp.float32)
    y = sum(whole[:, i : i + seq] * taps[i][None, None] for i in range(past + 1))
    y = jnp.asarray(y)
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None, None]
    if mask is not None:
        rank = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        y = jnp.take_along_axis(y, rank[..., None], axis=1)
        y = jnp.where(mask[..., None], y, 0.0)
    return y.astype(x.dtype)


def conv_history(
    history: Float[Array, "batch past inner"],
    x: Float[Array, "batch seq inner"],
    count: Int[Array, " batch"],
) -> Float[Array, "batch past inner"]:
    """The newest inputs of a convolution after `count` more of them.

    Args:
      history: `[batch, past, inner]` before.
      x: `[batch, seq, inner]` further inputs.
      count: `[batch]` int32 how many of them count, 0 to `seq`.

    Returns:
      `[batch, past, inner]`; with a count of 0, `history` itself.

    Example:
      >>> old, new = jnp.zeros((1, 2, 1)), jnp.array([[[7.0], [8.0]]])
      >>> conv_history(old, new, jnp.array([1])).ravel().tolist()
      [0.0, 7.0]
    """
    whole = jnp.concatenate([history, x.astype(history.dtype)], axis=1)
    index = count[:, None] + jnp.arange(history.shape[1])[None]
    return jnp.take_along_axis(whole, index[..., None], axis=1)


def advance_mamba(
    history: Float[Array, "batch past inner"],
    state: Float[Array, "batch inner state"],
    steps: MambaSteps,
    path: Int[Array, "batch path"],
    count: Int[Array, " batch"],
) -> tuple[Array, Array]:
    """What a block remembers after some of its steps.

    Args:
      history: `[batch, conv_size - 1, inner]` inputs of the convolution before.
      state: `[batch, inner, state]` before.
      steps: what the block returned, computed from this memory.
      path: `[batch, path]` int32 steps in order; entries from `count` on are ignored.
      count: `[batch]` int32; 0 leaves a row as it is, bit by bit.

    Returns:
      The new `history` and `state`.

    Example:
      >>> one = jnp.ones((1, 2, 1))
      >>> steps = MambaSteps(one, one, one, one, jnp.zeros((1, 1)))
      >>> memory = jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1))
      >>> got = advance_mamba(*memory, steps, jnp.array([[0, 1]]), jnp.array([2]))
      >>> got[1].tolist()
      [[[2.0]]]
    """
    index = jnp.maximum(path, 0)[..., None]
    conv_in, x, dt, B = (jnp.take_along_axis(s, index, axis=1) for s in steps[:4])
    kept = jnp.arange(path.shape[1])[None] < count[:, None]
    new = advance_state(state, x, dt, steps.A, B, mask=kept)
    return conv_history(history, conv_in, count), new


class MambaBlock(nn.Module):
    """Norm, then gated convolution and scan, added to the residual stream.

    Memory is the caller's business: the block is given what came before (None at the
    beginning of a text) and returns what its steps would do to it.

    Attributes:
      config: sizes and choices.
    """

    config: MambaConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        memory: tuple[Array, Array] | None,
        mask: Bool[Array, "batch seq"] | None,
        tap: Tap,
    ) -> tuple[Float[Array, "batch seq dim"], MambaSteps]:
        """Returns the residual stream and the steps; `memory` is (history, state)."""
        config = self.config
        x = tap("resid_pre", x)
        narrow = x.astype(config.dtype)
        normed = _Scale(config, name="norm")(narrow)
        mixed, steps = _Mixer(config, name="mixer")(normed, memory, mask, tap)
        x = x + tap("mixer_out", mixed).astype(x.dtype)
        return tap("resid_post", x), steps


class _Scale(nn.Module):
    config: MambaConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        ones = nn.initializers.ones
        scale = self.param("scale", ones, x.shape[-1:], self.config.dtype)
        return rms_norm(x, scale, self.config.norm_eps)


class _Mixer(nn.Module):
    config: MambaConfig

    @nn.compact
    def __call__(
        self, x: Array, memory: tuple[Array, Array] | None, mask: Array | None, tap: Tap
    ) -> tuple[Array, MambaSteps]:
        config = self.config
        history, state = (None, None) if memory is None else memory

        def linear(features: int, bias: bool, name: str) -> Linear:
            return Linear(features, bias, config.dtype, name=name)

        conv_in = linear(config.inner_width, config.proj_bias, "in_proj")(x)
        gate = linear(config.inner_width, config.proj_bias, "gate_proj")(x)
        kernel, bias = _Conv(config, name="conv")()
        inner = causal_conv(conv_in, kernel, bias, history=history, mask=mask)
        inner = tap("conv_out", jax.nn.silu(inner))
        sizes = (config.dt_rank, config.dt_rank + config.state_size)
        both = linear(config.dt_rank + 2 * config.state_size, False, "x_proj")(inner)
        low, B, C = jnp.split(both, sizes, axis=-1)
        dt = _StepSize(config, name="dt_proj")(low)
        shape = (config.inner_width, config.state_size)
        logs = self.param("A_log", _log_rates, shape, config.dtype)
        skip = self.param("D", nn.initializers.ones, shape[:1], config.dtype)
        rates = -jnp.exp(logs.astype(jnp.float32))
        y, _ = selective_scan(inner, dt, rates, B, C, skip, state=state, mask=mask)
        gated = tap("scan_out", y) * jax.nn.silu(gate)
        out = linear(config.width, config.proj_bias, "out_proj")(gated)
        return out, MambaSteps(conv_in, inner, dt, B, rates)


class _Conv(nn.Module):
    config: MambaConfig

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        """Kernel `[taps, inner]` and bias; stored `[taps, 1, inner]`."""
        config = self.config
        bound = config.conv_size**-0.5
        shape = (config.conv_size, 1, config.inner_width)
        kernel = self.param("kernel", _uniform(bound), shape, config.dtype)
        if not config.conv_bias:
            return kernel[:, 0], None
        init = nn.initializers.zeros
        return kernel[:, 0], self.param("bias", init, shape[2:], config.dtype)


class _StepSize(nn.Module):
    config: MambaConfig

    @nn.compact
    def __call__(self, low: Array) -> Array:
        """Float32 step sizes; the bias is added in float32, as it decides the scale."""
        config = self.config
        shape = (config.dt_rank, config.inner_width)
        kernel = self.param(
            "kernel", _uniform(config.dt_rank**-0.5), shape, config.dtype
        )
        bias = self.param("bias", _step_bias(config), shape[1:], config.dtype)
        wide = jnp.dot(low, kernel, preferred_element_type=jnp.float32)
        return jax.nn.softplus(wide + bias.astype(jnp.float32)[None, None])


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound).astype(dtype)

    return init


def _log_rates(key: Array, shape: tuple[int, int], dtype: str) -> Array:
    """Every channel remembers over the same spread of lengths: A = -1, -2, ..."""
    del key
    rates = jnp.arange(1, shape[1] + 1, dtype=jnp.float32)
    return jnp.broadcast_to(jnp.log(rates)[None], shape).astype(dtype)


def _step_bias(config: MambaConfig) -> nn.initializers.Initializer:
    """Bias whose softplus is spread over `dt_min` to `dt_max` on a log scale."""
    low, high = math.log(config.dt_min), math.log(config.dt_max)

    def init(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
        dt = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
        return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)

    return init
