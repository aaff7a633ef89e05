"""One block of a decoder: the same code in training, prefill and decoding."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.nn.config import DecoderConfig
from jtok.nn.experts import Experts
from jtok.nn.layers import Linear, Mlp, Norm
from jtok.nn.positions import rotary_frequencies, rotary_gain, rotate
from jtok.ops.sharding import constrain

__all__ = ["SITES", "Block"]

# What a tap may name, in the order in which a block reaches them.
SITES = (
    "resid_pre",
    "query",
    "key",
    "value",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
)

Attend = Callable[[Array, Array, Array], tuple[Array, tuple[Array, Array]]]
Tap = Callable[[str, Array], Array]


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms around them.

    How tokens attend to each other and to a cache is the caller's business: `attend`
    gets query `[batch, seq, heads, head_dim]` and key, value
    `[batch, kv_heads, seq, head_dim]`, and returns the mixed values and whatever the
    cache shall hold. `local` says that the layer has a window, which may give it
    other rotary frequencies; scanned layers pass it traced. `gates` say how much of
    the adapters each token gets, where the linear maps have any (see `Linear`).

    Attributes:
      config: sizes and choices.
      sparse: the layer has experts.
    """

    config: DecoderConfig
    sparse: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        positions: Int[Array, "batch seq"],
        attend: Attend,
        tap: Tap,
        local: bool | Bool[Array, ""] = False,
        gates: Float[Array, "batch seq"] | None = None,
    ) -> tuple[Float[Array, "batch seq dim"], tuple[Array, Array]]:
        config = self.config
        before = _norms(config, config.pre_norms)
        after = _norms(config, config.post_norms)
        x = tap("resid_pre", x)
        mixed, cache = self._attention(
            before("attn_norm", x), positions, attend, tap, local, gates
        )
        middle = x + tap("attn_out", after("attn_post_norm", mixed))
        middle = tap("resid_mid", middle)
        read = x if config.parallel_residual else middle
        make = Experts if self.sparse else Mlp
        hidden = make(config, name="mlp")(before("mlp_norm", read), gates)
        hidden = tap("mlp_out", after("mlp_post_norm", hidden))
        return tap("resid_post", middle + hidden), cache

    def _attention(
        self,
        x: Array,
        positions: Array,
        attend: Attend,
        tap: Tap,
        local: bool | Array,
        gates: Array | None,
    ) -> tuple[Array, tuple[Array, Array]]:
        config = self.config

        def heads(name: str, count: int, normed: bool) -> Array:
            features = count * config.head_dim
            layer = Linear(features, config.query_bias, config.dtype, name=name)
            y = layer(x, gates)
            whole = normed and config.qk_norm == "width"
            y = _norms(config, whole)(f"{name}_norm", y)
            y = y.reshape(*x.shape[:2], count, config.head_dim)
            # Devices share whole heads, or each has all: never parts of one.
            axis = "heads" if name == "query" else "kv_heads"
            y = constrain(y, "batch", "seq", axis, "head_dim")
            each = normed and config.qk_norm == "head"
            return _norms(config, each)(f"{name}_norm", y)

        query = heads("query", config.num_heads, True)
        key = heads("key", config.num_kv_heads, True)
        value = heads("value", config.num_kv_heads, False)
        if config.positions == "rotary":
            frequencies, gain = _rotary(config, local)
            query = rotate(query, positions, frequencies, gain=gain)
            key = rotate(key, positions, frequencies, gain=gain)
        query, key, value = tap("query", query), tap("key", key), tap("value", value)
        mixed, cache = attend(
            query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
        )
        flat = mixed.reshape(*x.shape[:2], config.num_heads * config.head_dim)
        out = Linear(config.width, config.out_bias, config.dtype, name="out")
        return out(flat, gates), cache


def _norms(config: DecoderConfig, there: bool) -> Callable[[str, Array], Array]:
    """`(name, x) -> x` through a norm of that name, or as it is."""
    return lambda name, x: Norm(config, name=name)(x) if there else x


def _rotary(config: DecoderConfig, local: bool | Array) -> tuple[Array, Array]:
    """Frequencies and gain of a layer with a window (`local`) or without."""

    def made(theta: float, scaling: tuple) -> tuple[Array, Array]:
        items = dict(scaling)
        frequencies = rotary_frequencies(config.rotary_dim, theta, items)
        return jnp.asarray(frequencies), jnp.float32(rotary_gain(items))

    wide = made(config.rope_theta, config.rope_scaling)
    if config.local_rope_theta is None:
        return wide
    near = made(config.local_rope_theta, config.local_rope_scaling)
    return jnp.where(local, near[0], wide[0]), jnp.where(local, near[1], wide[1])
