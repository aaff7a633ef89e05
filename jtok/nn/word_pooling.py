"""The two blocks of the word-pooled language model.

Both are handed the function that mixes tokens, so one block serves padded words, packed
words and steps over a cache.

Source: Thawani et al. 2023, arXiv 2310.11628 and its code: a post-norm encoder layer
with PyTorch's defaults, and minGPT's block.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.nn.layers import Linear

__all__ = ["CausalBlock", "Mix", "PostNormLayer", "layer_norm"]

_EPS = 1e-5

# (query, key, value, drop) -> (mixed values, what the caller wants back);
# `[batch, seq, heads, head_dim]` each, `drop` maps weights.
Mix = Callable[[Array, Array, Array, Callable[[Array], Array]], tuple[Array, Any]]


def layer_norm(
    params: dict[str, Array], x: Float[Array, "*tokens dim"]
) -> Float[Array, "*tokens dim"]:
    """Layer norm with statistics in float32.

    Args:
      params: `scale` and `bias` `[dim]`.
      x: `[..., dim]`.

    Returns:
      `[..., dim]` in the dtype of `x`.

    Source: none; the blocks' epsilon is 1e-5.

    Example:
      >>> ones, zeros = jnp.ones(2), jnp.zeros(2)
      >>> [round(float(v), 3) for v in
      ...     layer_norm({"scale": ones, "bias": zeros}, jnp.array([1.0, 3.0]))]
      [-1.0, 1.0]
    """
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(variance + _EPS)
    scale = jnp.broadcast_to(params["scale"].astype(jnp.float32), wide.shape)
    bias = jnp.broadcast_to(params["bias"].astype(jnp.float32), wide.shape)
    return (wide * scale + bias).astype(x.dtype)


class _LayerNorm(nn.Module):
    """`layer_norm` that owns its parameters."""

    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        shape, dtype = x.shape[-1:], self.param_dtype
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        return layer_norm({"scale": scale, "bias": bias}, x)


class _PackedLinear(nn.Module):
    """Query, key and value in one matrix, which keeps Xavier's initial values."""

    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens wide"]:
        dim = x.shape[-1]
        init, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        kernel = self.param("kernel", init, (dim, 3 * dim), self.param_dtype)
        bias = self.param("bias", zeros, (3 * dim,), self.param_dtype)
        y = x @ kernel
        return y + jnp.broadcast_to(bias, y.shape)


class PostNormLayer(nn.Module):
    """An encoder layer that normalises after each half: ReLU, packed projections.

    Attributes:
      heads: attention heads; they divide the width.
      mlp_width: width of the feed-forward half.
      dropout: rate on attention weights, both halves' outputs and the hidden units.
      param_dtype: dtype of the parameters.

    Example:
      >>> from jtok.ops.segments import attend
      >>> see = jnp.ones((1, 3, 3), bool)
      >>> layer = PostNormLayer(heads=2, mlp_width=8)
      >>> mix = lambda q, k, v, drop: (attend(q, k, v, see, drop=drop), None)
      >>> x, key = jnp.ones((1, 3, 4)), jax.random.key(0)
      >>> (y, _), _ = layer.init_with_output(key, x, mix)
      >>> y.shape
      (1, 3, 4)
    """

    heads: int
    mlp_width: int = 2048
    dropout: float = 0.1
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        mix: Mix,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch seq dim"], Any]:
        dim, dtype = x.shape[-1], self.param_dtype
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        query, key, value = jnp.split(_PackedLinear(dtype, name="qkv")(x), 3, axis=-1)
        cut = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        mixed, extra = mix(cut(query), cut(key), cut(value), drop)
        mixed = Linear(dim, True, dtype, name="out")(mixed.reshape(x.shape))
        x = _LayerNorm(dtype, name="norm1")(x + drop(mixed))
        hidden = jax.nn.relu(Linear(self.mlp_width, True, dtype, name="up")(x))
        hidden = Linear(dim, True, dtype, name="down")(drop(hidden))
        return _LayerNorm(dtype, name="norm2")(x + drop(hidden)), extra


class CausalBlock(nn.Module):
    """minGPT's block: norms first, separate projections, exact GELU four times as wide.

    What is causal about it is the caller's `mix`.

    Attributes:
      heads: attention heads; they divide the width.
      dropout: rate on attention weights and on both halves' outputs.
      param_dtype: dtype of the parameters.

    Example:
      >>> from jtok.ops.segments import attend
      >>> see = jnp.tril(jnp.ones((1, 3, 3), bool))
      >>> mix = lambda q, k, v, drop: (attend(q, k, v, see, drop=drop), None)
      >>> block = CausalBlock(heads=2)
      >>> x, key = jnp.ones((1, 3, 4)), jax.random.key(0)
      >>> (y, _), _ = block.init_with_output(key, x, mix)
      >>> y.shape
      (1, 3, 4)
    """

    heads: int
    dropout: float = 0.1
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        mix: Mix,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch seq dim"], Any]:
        dim, dtype = x.shape[-1], self.param_dtype
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        linear = lambda size, name: Linear(size, True, dtype, name=name)
        cut = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        h = _LayerNorm(dtype, name="norm1")(x)
        query, key, value = (
            cut(linear(dim, name)(h)) for name in ("query", "key", "value")
        )
        mixed, extra = mix(query, key, value, drop)
        x = x + drop(linear(dim, "proj")(mixed.reshape(x.shape)))
        h = linear(4 * dim, "up")(_LayerNorm(dtype, name="norm2")(x))
        h = linear(dim, "down")(jax.nn.gelu(h, approximate=False))
        return x + drop(h), extra
