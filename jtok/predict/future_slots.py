"""The decoder that spells future tokens out of state vectors, as functions of arrays.

Every position is an item of its own: the pseudo-tokens of one state vector are all that
its slots see beside each other.

Source: Walker 2024, arXiv 2410.18160. Differs: see `jtok.predict.future`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok import nn
from jtok.errors import ArgumentTypeError, check
from jtok.predict.future_block import FutureBlock, Pair

__all__ = [
    "FutureConfig",
    "cross_pairs",
    "decode_slots",
    "embed_tokens",
    "run_slots",
]

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class FutureConfig:
    """Sizes and choices of a model that predicts several future tokens.

    Attributes:
      encoder: the backbone; the decoder's blocks have its width, heads, norm, MLP and
        biases. It must be causal.
      decoder_layers: blocks of the decoder.
      pseudo_tokens: tokens that a state vector is expanded to.
      horizon: future tokens that are predicted, and slots of the decoder.
      first_input: what slot 0 reads: a learned vector ("start"), so that nothing but z
        carries the past, or the embedding of the newest token ("last_token").

    Raises:
      ArgumentError: a size below 1, an unknown input, an encoder that is not causal.
      ArgumentTypeError: the encoder is no transformer decoder.
    """

    encoder: nn.DecoderConfig
    decoder_layers: int = 3
    pseudo_tokens: int = 12
    horizon: int = 8
    first_input: Literal["start", "last_token"] = "start"

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, nn.DecoderConfig):
            raise ArgumentTypeError(
                f"encoder: got {type(self.encoder).__name__}, expected a DecoderConfig."
            )
        check(self.encoder.causal, "encoder", "causal=False", "a causal backbone")
        for name in ("decoder_layers", "pseudo_tokens", "horizon"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        good = self.first_input in ("start", "last_token")
        check(good, "first_input", self.first_input, "'start' or 'last_token'")

    @property
    def carrier_width(self) -> int:
        """Numbers of a position that the decoder is given: z, and what slot 0 reads."""
        return self.encoder.width * (2 if self.first_input == "last_token" else 1)


def expansion(config: FutureConfig) -> nn.Linear:
    """The linear map from a state vector to all of its pseudo-tokens."""
    encoder = config.encoder
    return nn.Linear(config.pseudo_tokens * encoder.width, True, encoder.dtype)


def embed_tokens(
    params: PyTree, config: FutureConfig, ids: Int[Array, "*items"]
) -> Float[Array, "*items dim"]:
    """Embeddings of tokens as the encoder reads them, without positions.

    Args:
      params: of a `FutureModel`.
      config: its configuration.
      ids: `[...]` int32, clamped into the vocabulary.

    Returns:
      `[..., dim]` in the model's dtype.

    Source: Walker 2024, arXiv 2410.18160 (one embedding for all).

    Example:
      >>> from jtok.testing import tiny_config
      >>> from jtok.predict import init_future
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"))
      >>> model = init_future(config, jax.random.key(0))
      >>> embed_tokens(model.params, config, jnp.array([1, 2])).shape
      (2, 32)
    """
    encoder = config.encoder
    rows = params["encoder"]["embed"]["tokens"]
    x = rows[jnp.clip(ids, 0, encoder.vocab_size - 1)].astype(encoder.dtype)
    scale = encoder.embed_scale
    return x if scale is None else x * jnp.asarray(scale, x.dtype)


def expand_states(
    params: PyTree, config: FutureConfig, states: Float[Array, "*items dim"]
) -> Float[Array, "*items pseudo dim"]:
    """Pseudo-tokens of state vectors: one linear map, cut into pieces."""
    flat: Any = expansion(config).apply({"params": params["expand"]}, states)
    width = config.encoder.width
    return flat.reshape(*states.shape[:-1], config.pseudo_tokens, width)


def cross_pairs(
    params: PyTree, config: FutureConfig, carrier: Float[Array, "*items wide"]
) -> tuple[Pair, ...]:
    """Keys and values of the pseudo-tokens of each state, for every layer.

    Args:
      params: of a `FutureModel`.
      config: its configuration.
      carrier: `[..., carrier_width]`, as `FutureModel.carry` gives it.

    Returns:
      Per layer `(key, value)`, each `[..., pseudo_tokens, heads, head_dim]`.

    Source: Walker 2024, arXiv 2410.18160 (cross-attention to one state).

    Example:
      >>> from jtok.testing import tiny_config
      >>> from jtok.predict import init_future
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"))
      >>> model = init_future(config, jax.random.key(0))
      >>> pairs = cross_pairs(model.params, config, jnp.ones((5, 32)))
      >>> len(pairs), pairs[0][0].shape
      (3, (5, 12, 4, 8))
    """
    pseudo = expand_states(params, config, carrier[..., : config.encoder.width])
    block = FutureBlock(config.encoder)
    return tuple(
        block.apply({"params": layer}, pseudo, method="pairs")  # type: ignore[misc]
        for layer in params["decoder"]["layers"]
    )


def first_slot(
    params: PyTree, config: FutureConfig, carrier: Float[Array, "*items wide"]
) -> Float[Array, "*items dim"]:
    """What slot 0 of each state reads, without its position."""
    width = config.encoder.width
    if config.first_input == "last_token":
        return carrier[..., width:]
    start = params["decoder"]["start"]
    return jnp.broadcast_to(start, (*carrier.shape[:-1], width))


def run_slots(
    params: PyTree,
    config: FutureConfig,
    inputs: Float[Array, "*items slots dim"],
    pairs: tuple[Pair, ...],
    past: tuple[Pair, ...] | None = None,
) -> tuple[Float[Array, "*items slots dim"], tuple[Pair, ...]]:
    """Runs the next slots of the decoder.

    Args:
      params: of a `FutureModel`.
      config: its configuration.
      inputs: `[..., slots, dim]` what these slots read, without positions.
      pairs: from `cross_pairs`, of the same items or shared by an axis of one.
      past: what an earlier call returned for the slots before, or None.

    Returns:
      `[..., slots, dim]` after the final norm, and the keys and values of all slots so
      far.

    Source: Walker 2024, arXiv 2410.18160 (the decoder).

    Example:
      >>> from jtok.testing import tiny_config
      >>> from jtok.predict import init_future
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"))
      >>> model = init_future(config, jax.random.key(0))
      >>> pairs = cross_pairs(model.params, config, jnp.ones((5, 32)))
      >>> run_slots(model.params, config, jnp.ones((5, 2, 32)), pairs)[0].shape
      (5, 2, 32)
    """
    decoder, slots = params["decoder"], inputs.shape[-2]
    begin = 0 if past is None else past[0][0].shape[-3]
    places = decoder["positions"][begin : begin + slots]
    x = inputs + jnp.broadcast_to(places, inputs.shape)
    block, held = FutureBlock(config.encoder), []
    for index, (layer, pair) in enumerate(zip(decoder["layers"], pairs, strict=True)):
        before = None if past is None else past[index]
        out: Any = block.apply({"params": layer}, x, pair, before, method="run")
        x = out[0]
        held.append(out[1])
    norm = nn.Norm(config.encoder)
    hidden: Any = norm.apply({"params": decoder["final_norm"]}, x)
    return hidden, tuple(held)


def decode_slots(
    params: PyTree,
    config: FutureConfig,
    carrier: Float[Array, "*items wide"],
    forced: Int[Array, "*items given"],
) -> Float[Array, "*items slots dim"]:
    """All slots at once, the future tokens given: `FutureModel.decode` on arrays.

    Args:
      params: of a `FutureModel`.
      config: its configuration.
      carrier: `[..., carrier_width]`, as `FutureModel.carry` gives it.
      forced: `[..., given]` int32, `given < horizon`.

    Returns:
      `[..., given + 1, dim]` after the final norm.

    Raises:
      ArgumentError: more tokens than slots.

    Source: Walker 2024, arXiv 2410.18160 (teacher forcing).

    Example:
      >>> from jtok.testing import tiny_config
      >>> from jtok.predict import init_future
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"))
      >>> model = init_future(config, jax.random.key(0))
      >>> none = jnp.zeros((5, 0), jnp.int32)
      >>> decode_slots(model.params, config, jnp.ones((5, 32)), none).shape
      (5, 1, 32)
    """
    given, most = forced.shape[-1], config.horizon
    check(given < most, "forced", f"{given} tokens", f"at most {most - 1}")
    first = first_slot(params, config, carrier)[..., None, :]
    rest = embed_tokens(params, config, forced)
    inputs = jnp.concatenate([first.astype(rest.dtype), rest], axis=-2)
    return run_slots(params, config, inputs, cross_pairs(params, config, carrier))[0]
