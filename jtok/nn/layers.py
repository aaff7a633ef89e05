"""Linear maps, norms and the MLP."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.errors import ArgumentError, near
from jtok.nn.config import DecoderConfig

__all__ = ["Linear", "Mlp", "Norm", "activation"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of that name.

    Args:
      name: "silu", "gelu" (exact), "gelu_tanh" or "relu".

    Returns:
      A function on arrays.

    Raises:
      ArgumentError: an unknown name.

    Example:
      >>> float(activation("relu")(jnp.float32(-1.0)))
      0.0
    """
    if name not in _ACTIVATIONS:
        raise ArgumentError(f"activation: got {name!r}{near(name, _ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


class Linear(nn.Module):
    """`x @ kernel + bias`, with `kernel` `[in, out]`.

    Where the parameters hold an adapter, `lora_a` `[in, rank]` and `lora_b`
    `[rank, out]`, `(x @ lora_a) @ lora_b` is added, times the gate of each token.

    Attributes:
      features: size of the output.
      use_bias: add a bias.
      param_dtype: dtype of the parameters.
    """

    features: int
    use_bias: bool = False
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens dim"],
        gates: Float[Array, "*tokens"] | None = None,
    ) -> Float[Array, "*tokens features"]:
        shape = (x.shape[-1], self.features)
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        y = x @ kernel
        if self.has_variable("params", "lora_a"):
            down: Array = self.get_variable("params", "lora_a")
            up: Array = self.get_variable("params", "lora_b")
            change = ((x @ down.astype(x.dtype)) @ up.astype(x.dtype)).astype(y.dtype)
            if gates is not None:
                # A closed gate leaves the sum as it was, also where `change` is not
                # finite.
                gate = gates[..., None].astype(y.dtype)
                change = jnp.where(gate == 0, 0.0, gate * change).astype(y.dtype)
            y = y + change
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), self.param_dtype)
            y = y + jnp.broadcast_to(bias, y.shape)
        return y


class Norm(nn.Module):
    """RMS norm or layer norm over the last axis, with statistics in float32.

    Attributes:
      config: supplies `norm`, `norm_eps`, `norm_offset` and the parameters' dtype.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        config, shape = self.config, x.shape[-1:]
        neutral = nn.initializers.zeros if config.norm_offset else nn.initializers.ones
        scale = self.param("scale", neutral, shape, config.dtype)
        wide = x.astype(jnp.float32)
        if config.norm == "layer":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        y = wide * jax.lax.rsqrt(variance + config.norm_eps)
        wide_scale = jnp.broadcast_to(scale, y.shape)
        if config.norm == "layer":
            bias = self.param("bias", nn.initializers.zeros, shape, config.dtype)
            bias = jnp.broadcast_to(bias, y.shape)
            return (y * wide_scale + bias).astype(x.dtype)
        if config.norm_offset:
            return (y * (1.0 + wide_scale.astype(jnp.float32))).astype(x.dtype)
        return y.astype(x.dtype) * wide_scale


class Mlp(nn.Module):
    """The feed-forward half of a block: gated, or plain.

    Attributes:
      config: supplies sizes, the activation and biases.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens dim"],
        gates: Float[Array, "*tokens"] | None = None,
    ) -> Float[Array, "*tokens dim"]:
        config = self.config

        def linear(x: Array, features: int, name: str) -> Array:
            layer = Linear(features, config.mlp_bias, config.dtype, name=name)
            return layer(x, gates)

        hidden = linear(x, config.mlp_width, "up")
        act = activation(config.activation)
        if config.mlp == "gated":
            hidden = act(linear(x, config.mlp_width, "gate")) * hidden
        else:
            hidden = act(hidden)
        return linear(hidden, config.width, "down")
