"""One block of a decoder: the same code in training, prefill and decoding."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float, Int

from jtok.nn.config import DecoderConfig
from jtok.nn.layers import Linear, Mlp, Norm
from jtok.nn.positions import rotary_frequencies, rotate
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
    """Pre-norm attention and MLP, each added to the residual stream.

    How tokens attend to each other and to a cache is the caller's business: `attend`
    gets query `[batch, seq, heads, head_dim]` and key, value
    `[batch, kv_heads, seq, head_dim]`, and returns the mixed values and whatever the
    cache shall hold.

    Attributes:
      config: sizes and choices.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        positions: Int[Array, "batch seq"],
        attend: Attend,
        tap: Tap,
    ) -> tuple[Float[Array, "batch seq dim"], tuple[Array, Array]]:
        config = self.config
        x = tap("resid_pre", x)
        mixed, cache = self._attention(
            Norm(config, name="attn_norm")(x), positions, attend, tap
        )
        x = tap("resid_mid", x + tap("attn_out", mixed))
        hidden = Mlp(config, name="mlp")(Norm(config, name="mlp_norm")(x))
        return tap("resid_post", x + tap("mlp_out", hidden)), cache

    def _attention(
        self, x: Array, positions: Array, attend: Attend, tap: Tap
    ) -> tuple[Array, tuple[Array, Array]]:
        config = self.config

        def heads(name: str, count: int, axis: str = "kv_heads") -> Array:
            features = count * config.head_dim
            y = Linear(features, config.query_bias, config.dtype, name=name)(x)
            y = y.reshape(*x.shape[:2], count, config.head_dim)
            # Devices share whole heads, or each has all: never parts of one.
            return constrain(y, "batch", "seq", axis, "head_dim")

        query = heads("query", config.num_heads, "heads")
        key = heads("key", config.num_kv_heads)
        value = heads("value", config.num_kv_heads)
        if config.positions == "rotary":
            frequencies = rotary_frequencies(
                config.head_dim, config.rope_theta, config.rotary_scaling
            )
            query = rotate(query, positions, frequencies)
            key = rotate(key, positions, frequencies)
        query, key, value = tap("query", query), tap("key", key), tap("value", value)
        mixed, cache = attend(
            query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
        )
        flat = mixed.reshape(*x.shape[:2], config.num_heads * config.head_dim)
        out = Linear(config.width, config.out_bias, config.dtype, name="out")
        return out(flat), cache
