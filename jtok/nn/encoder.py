"""One block of an encoder, and its norm."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.nn.encoder_config import EncoderConfig
from jtok.nn.layers import Linear, activation
from jtok.nn.positions import rotary_frequencies, rotate
from jtok.ops.sharding import constrain

__all__ = ["EncoderBlock", "EncoderNorm", "encoder_activation"]

Tap = Callable[[str, Array], Array]
Between = Callable[[Array, Array | None], tuple[Array, Array | None]]


def encoder_activation(name: str) -> Callable[[Array], Array]:
    """The activation function of that name.

    Args:
      name: as `jtok.nn.activation` takes it, or "quick_gelu": x times the sigmoid of
        1.702 x (CLIP).

    Returns:
      A function on arrays.

    Raises:
      ArgumentError: an unknown name.

    Example:
      >>> float(encoder_activation("quick_gelu")(jnp.float32(0.0)))
      0.0
    """
    if name == "quick_gelu":
        return lambda x: x * jax.nn.sigmoid(1.702 * x)
    return activation(name)


class EncoderNorm(nn.Module):
    """Layer norm with or without bias, or RMS norm; statistics in float32.

    Attributes:
      config: supplies `norm`, `norm_eps`, `norm_bias` and the parameters' dtype.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        config, shape = self.config, x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, config.dtype)
        wide = x.astype(jnp.float32)
        if config.norm == "layer":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        y = wide * jax.lax.rsqrt(variance + config.norm_eps)
        y = y * jnp.broadcast_to(scale, y.shape)
        if config.norm == "layer" and config.norm_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, config.dtype)
            y = y + jnp.broadcast_to(bias, y.shape)
        return y.astype(x.dtype)


class _EncoderMlp(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, gates: Array | None = None) -> Array:
        config = self.config

        def linear(x: Array, features: int, name: str) -> Array:
            layer = Linear(features, config.mlp_bias, config.dtype, name=name)
            return layer(x, gates)

        act = encoder_activation(config.activation)
        hidden = linear(x, config.mlp_width, "up")
        if config.mlp == "gated":
            hidden = act(linear(x, config.mlp_width, "gate")) * hidden
        else:
            hidden = act(hidden)
        return linear(hidden, config.width, "down")


class EncoderBlock(nn.Module):
    """Attention and MLP, each added to the residual stream, norms before or after.

    Who sees whom is the caller's business: `attend` gets query
    `[batch, seq, heads, head_dim]` and key, value `[batch, heads, seq, head_dim]`, and
    returns the mixed values. `between` may leave fewer tokens to the MLP: it turns the
    stream and the gates into others. `local` says that the layer has a window, which
    may give it other rotary frequencies; scanned layers pass it traced. The sites of
    `tap` are those of a decoder's block (`SITES`).

    Attributes:
      config: sizes and choices.
      attn_norm: the layer has a norm of its attention.
    """

    config: EncoderConfig
    attn_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        positions: Int[Array, "batch seq"],
        attend: Callable[[Array, Array, Array], Array],
        tap: Tap,
        local: bool | Bool[Array, ""] = False,
        gates: Float[Array, "batch seq"] | None = None,
        between: Between | None = None,
    ) -> Float[Array, "batch rows dim"]:
        config = self.config
        first, last = config.norm_first, not config.norm_first

        def norm(name: str, x: Array, there: bool) -> Array:
            return EncoderNorm(config, name=name)(x) if there else x

        x = tap("resid_pre", x)
        read = norm("attn_norm", x, first and self.attn_norm)
        mixed = self._attention(read, positions, attend, tap, local, gates)
        middle = x + tap("attn_out", self._scaled("attn_scale", mixed))
        middle = norm("attn_norm", middle, last and self.attn_norm)
        middle = tap("resid_mid", middle)
        if between is not None:
            middle, gates = between(middle, gates)
        hidden = _EncoderMlp(config, name="mlp")(norm("mlp_norm", middle, first), gates)
        hidden = self._scaled("mlp_scale", hidden)
        return tap(
            "resid_post", norm("mlp_norm", middle + tap("mlp_out", hidden), last)
        )

    def _scaled(self, name: str, x: Array) -> Array:
        if not self.config.layer_scale:
            return x
        ones = nn.initializers.ones
        scale = self.param(name, ones, x.shape[-1:], self.config.dtype)
        return x * jnp.broadcast_to(scale, x.shape)

    def _attention(
        self,
        x: Array,
        positions: Array,
        attend: Callable[[Array, Array, Array], Array],
        tap: Tap,
        local: bool | Array,
        gates: Array | None,
    ) -> Array:
        config = self.config
        features = config.num_heads * config.head_dim

        def heads(name: str, bias: bool) -> Array:
            y = Linear(features, bias, config.dtype, name=name)(x, gates)
            y = y.reshape(*x.shape[:2], config.num_heads, config.head_dim)
            return constrain(y, "batch", "seq", "heads", "head_dim")

        bias, own = config.query_bias, config.key_bias
        query, value = heads("query", bias), heads("value", bias)
        key = heads("key", bias if own is None else own)
        if config.positions == "rotary":
            frequencies = _rotary(config, local)
            query = rotate(query, positions, frequencies)
            key = rotate(key, positions, frequencies)
        query, key, value = tap("query", query), tap("key", key), tap("value", value)
        mixed = attend(query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
        flat = mixed.reshape(*x.shape[:2], features)
        return Linear(config.width, config.out_bias, config.dtype, name="out")(
            flat, gates
        )


def _rotary(config: EncoderConfig, local: bool | Array) -> Array:
    """Frequencies of a layer with a window (`local`) or without."""
    wide = jnp.asarray(rotary_frequencies(config.head_dim, config.rope_theta))
    if config.local_rope_theta is None:
        return wide
    near = rotary_frequencies(config.head_dim, config.local_rope_theta)
    return jnp.where(local, jnp.asarray(near), wide)
