"""One block of the decoder that spells future tokens out of a state vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.nn import DecoderConfig, Linear, Mlp, Norm

__all__ = ["FutureBlock", "Pair", "mix"]

Pair = tuple[Array, Array]  # keys and values, `[..., tokens, heads, head_dim]`

_MASKED = -1e30


def mix(
    query: Float[Array, "*#items queries heads head_dim"],
    key: Float[Array, "*#items keys heads head_dim"],
    value: Float[Array, "*#items keys heads head_dim"],
    allow: Bool[Array, "queries keys"] | None,
    *,
    scale: float,
) -> Float[Array, "... queries heads head_dim"]:
    """Attention among a handful of tokens of each item; scores are float32.

    Args:
      query: `[..., queries, heads, head_dim]`.
      key: `[..., keys, heads, head_dim]`; an axis of one item is shared.
      value: as `key`.
      allow: `[queries, keys]` bool, None lets all be seen.
      scale: factor on the scores.

    Returns:
      `[..., queries, heads, head_dim]` in the dtype of `value`.
    """
    kind = jnp.float32
    scores = jnp.einsum(
        "...qhd,...khd->...hqk", query, key, preferred_element_type=kind
    )
    scores = scores * scale
    if allow is not None:
        scores = jnp.where(jnp.broadcast_to(allow, scores.shape), scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


class FutureBlock(nn.Module):
    """Causal self-attention over slots, cross-attention to pseudo-tokens, an MLP.

    Each is added to the residual stream, with a norm before it. Pseudo-tokens have no
    positions and no norm, so their order means nothing. All axes before the slots are
    items: what one item sees, no other does.

    Attributes:
      config: the encoder's; norm, MLP, activation, heads and biases are as there.
    """

    config: DecoderConfig

    def setup(self) -> None:
        config = self.config
        inner, kind = config.num_heads * config.head_dim, config.dtype
        self.attn_norm, self.cross_norm = Norm(config), Norm(config)
        self.query = Linear(inner, config.query_bias, kind)
        self.key = Linear(inner, config.query_bias, kind)
        self.value = Linear(inner, config.query_bias, kind)
        self.out = Linear(config.width, config.out_bias, kind)
        self.cross_query = Linear(inner, config.query_bias, kind)
        self.cross_key = Linear(inner, config.query_bias, kind)
        self.cross_value = Linear(inner, config.query_bias, kind)
        self.cross_out = Linear(config.width, config.out_bias, kind)
        self.mlp_norm, self.mlp = Norm(config), Mlp(config)

    def __call__(
        self,
        x: Float[Array, "*items slots dim"],
        pseudo: Float[Array, "*items pseudo dim"],
    ) -> Float[Array, "*items slots dim"]:
        """All slots at once."""
        return self.run(x, self.pairs(pseudo))[0]

    def pairs(self, pseudo: Float[Array, "*items pseudo dim"]) -> Pair:
        """Keys and values of the pseudo-tokens, which serve every slot."""
        return self._heads(self.cross_key(pseudo)), self._heads(
            self.cross_value(pseudo)
        )

    def run(
        self, x: Float[Array, "*items slots dim"], pairs: Pair, past: Pair | None = None
    ) -> tuple[Float[Array, "*items slots dim"], Pair]:
        """Slots after those of `past`; also their keys and values, `past` in front."""
        config = self.config
        scale = config.score_scale
        y = self.attn_norm(x)
        key, value = self._heads(self.key(y)), self._heads(self.value(y))
        if past is not None:
            key = jnp.concatenate([past[0], key], axis=-3)
            value = jnp.concatenate([past[1], value], axis=-3)
        slots, seen = x.shape[-2], key.shape[-3]
        causal = jnp.asarray(np.tri(slots, seen, seen - slots, dtype=bool))
        mixed = mix(self._heads(self.query(y)), key, value, causal, scale=scale)
        x = x + self.out(self._flat(mixed))
        query = self._heads(self.cross_query(self.cross_norm(x)))
        x = x + self.cross_out(self._flat(mix(query, *pairs, None, scale=scale)))
        return x + self.mlp(self.mlp_norm(x)), (key, value)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def _flat(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-2], -1)
