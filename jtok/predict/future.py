"""A language model whose state vector at each token must spell the next several.

A causal encoder, any decoder backbone of `jtok.models` without its head, gives one
vector z at every position. One linear map turns z into a few pseudo-tokens, and a small
decoder, whose slots see these of their own position and nothing else of the past,
predicts the next tokens one after another. The embedding serves the encoder, the slots
and, where the backbone is tied, the output.

Source: Walker 2024, arXiv 2410.18160. Differs: there is no official code. What the
paper does not settle is chosen here and can be changed: slot 0 reads a learned vector
(`first_input`), pseudo-tokens have neither positions nor a norm, and the loss divides
by the weights of all that counts (`future_loss`).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok import models, nn
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models.checkpoint import axis_units, param_axes
from jtok.models.model import unembedding
from jtok.ops.sharding import constrain, entered_mesh, shard_tree
from jtok.predict.future_block import FutureBlock
from jtok.predict.future_slots import (
    FutureConfig,
    decode_slots,
    embed_tokens,
    expansion,
)

__all__ = ["FutureModel", "future_from", "init_future"]

PyTree = Any


@struct.dataclass
class FutureModel:
    """Parameters of such a model and what they mean: a frozen pytree.

    Attributes:
      params: `encoder` (of the backbone), `expand`, and `decoder` with `start`,
        `positions`, `layers` (a tuple) and `final_norm`.
      config: static sizes and choices.
      vocabulary: the tokenizer, or None.
    """

    params: PyTree
    config: FutureConfig = struct.field(pytree_node=False)
    vocabulary: Any = struct.field(pytree_node=False, default=None)

    @property
    def encoder(self) -> models.Model:
        """The encoder as a model of its own; its logits are trained for nothing."""
        encoder, config = self.params["encoder"], self.config.encoder
        return models.Model(encoder, config, self.vocabulary)

    def encode(
        self,
        ids: Int[Array, "batch seq"],
        *,
        mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
        positions: Int[Array, "batch seq"] | None = None,
    ) -> Float[Array, "batch seq dim"]:
        """State vectors, each of its token and those before it.

        Args:
          ids: `[batch, seq]` int32.
          mask: as `jtok.models.Model` takes it.
          positions: `[batch, seq]` int32, None counts from 0. Under `jit` a position
            that the encoder does not have is taken as its last.

        Returns:
          `[batch, seq, dim]` in the model's dtype.

        Raises:
          ArgumentError: more tokens, or a position beyond those that the encoder has
            learned; positions of another shape than the ids'.
        """
        _check_positions(self.config.encoder, ids, positions)
        ids = constrain(ids, "batch", None)
        out = self.encoder(ids, mask=mask, positions=positions, logits="none")
        return out.hidden

    def decode(
        self,
        states: Float[Array, "*items dim"],
        forced: Int[Array, "*items given"],
        *,
        last: Int[Array, "*items"] | None = None,
    ) -> Float[Array, "*items slots dim"]:
        """What the decoder's slots compute, given the first future tokens.

        Args:
          states: `[..., dim]` state vectors.
          forced: `[..., given]` int32 tokens that follow, `given < horizon`; there may
            be none.
          last: `[...]` int32 newest token of each state; read where `first_input` is
            "last_token", and needed there.

        Returns:
          `[..., given + 1, dim]`, after the final norm: slot j predicts the token after
          the first j of `forced`.

        Raises:
          ArgumentError: more tokens than slots, or no `last` where one is read.
        """
        carrier = self.carry(states, last)
        return decode_slots(self.params, self.config, carrier, forced)

    def carry(
        self, states: Float[Array, "*items dim"], last: Int[Array, "*items"] | None
    ) -> Float[Array, "*items wide"]:
        """State vectors, with the embedding of the newest token where slot 0 reads it.

        Args:
          states: `[..., dim]`.
          last: `[...]` int32, or None where nothing reads it.

        Returns:
          `[..., config.carrier_width]`.

        Raises:
          ArgumentError: no `last` where one is read.
        """
        if self.config.first_input == "start":
            return states
        if last is None:
            raise ArgumentError("last: got None, expected each state's newest token.")
        newest = embed_tokens(self.params, self.config, last)
        return jnp.concatenate([states, newest], axis=-1)

    def logits(
        self,
        ids: Int[Array, "batch seq"],
        futures: Int[Array, "batch seq slots"],
        *,
        mask: Bool[Array, "batch seq"] | None = None,
    ) -> Float[Array, "batch seq slots vocab"]:
        """All logits, for a look at small inputs; training never holds them.

        Args:
          ids: `[batch, seq]` int32.
          futures: `[batch, seq, slots]` int32 tokens that follow each; the last of a
            position is predicted and not read.
          mask: `[batch, seq]` True for real tokens, or None.

        Returns:
          `[batch, seq, slots, vocab]` float32.
        """
        states = self.encode(ids, mask=mask)
        hidden = self.decode(states, futures[..., :-1], last=ids)
        weight, bias = self.unembedding()
        logits = jnp.einsum(
            "btnd,vd->btnv", hidden, weight, preferred_element_type=jnp.float32
        )
        if bias is not None:
            logits = logits + jnp.broadcast_to(bias, logits.shape)
        cap = self.config.encoder.final_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def unembedding(self) -> tuple[jax.Array, jax.Array | None]:
        """`[vocab, dim]` rows that slots are compared with, and their bias or None."""
        return unembedding(self.params["encoder"])

    def target(self) -> models.Target:
        """What `jtok.decode.generate` runs: slot 0 after every token.

        Returns:
          `Target`, to be given together with `params=model.params`.
        """
        from jtok.predict.future_target import future_target

        return future_target(self.config)

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(int(x.size) for x in jax.tree.leaves(self.params))


def _check_positions(config: nn.DecoderConfig, ids: Array, positions: Any) -> None:
    """Refuses what the encoder has no learned positions for, where it is known."""
    most, count = config.max_positions, ids.shape[1]
    if positions is not None:
        shape = positions.shape
        check(shape == ids.shape, "positions", f"shape {shape}", f"{ids.shape}")
    if config.positions != "learned":
        return
    if positions is None:
        check(count <= most, "ids", f"{count} tokens", f"at most {most}, the positions")
    elif not isinstance(positions, jax.core.Tracer):
        last = int(jnp.max(positions, initial=0))
        check(last < most, "positions", last, f"below {most}, the encoder's")


# Making one ------------------------


def init_future(
    config: FutureConfig, key: jax.Array, *, vocabulary: Any = None
) -> FutureModel:
    """A model with random parameters, on the current mesh.

    Weights are drawn from N(0, 0.02); those that end a residual branch are divided by
    the square root of twice the number of layers.

    Args:
      config: sizes and choices.
      key: typed PRNG key, consumed.
      vocabulary: the tokenizer, or None.

    Returns:
      `FutureModel`.

    Source: Walker 2024, arXiv 2410.18160, as GPT-2 is initialised.

    Example:
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"), horizon=4)
      >>> model = init_future(config, jax.random.key(0))
      >>> model.encode(jnp.array([[1, 2, 3]])).shape
      (1, 3, 32)
    """
    first, second = jax.random.split(key)
    backbone = models.init(config.encoder, first, vocabulary=vocabulary)
    return _with_decoder(backbone, config, second)


def future_from(
    model: models.Model,
    *,
    key: jax.Array,
    decoder_layers: int = 3,
    pseudo_tokens: int = 12,
    horizon: int = 8,
    first_input: Literal["start", "last_token"] = "start",
) -> FutureModel:
    """A pretrained language model as the encoder, below a decoder that is new.

    The encoder's vectors are those that the model read its next token out of, so
    training starts with what it knows. Where its output has rows of its own, the slots
    are compared with those.

    Args:
      model: a decoder with split or stacked layers; it is not changed.
      key: typed PRNG key of the new parameters, consumed.
      decoder_layers: see `FutureConfig`, as what follows.
      pseudo_tokens: see there.
      horizon: see there.
      first_input: see there.

    Returns:
      `FutureModel` that shares the model's arrays.

    Raises:
      ArgumentTypeError: no `Model`, or one that is no transformer decoder.

    Source: Walker 2024, arXiv 2410.18160. Differs: the paper trains from scratch.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = future_from(tiny_model(family="gpt2"), key=jax.random.key(0))
      >>> model.config.horizon, model.unembedding()[0].shape
      (8, (96, 32))
    """
    if not isinstance(model, models.Model):
        raise ArgumentTypeError(f"model: got {type(model).__name__}, expected a Model.")
    config = FutureConfig(
        encoder=model.config,
        decoder_layers=decoder_layers,
        pseudo_tokens=pseudo_tokens,
        horizon=horizon,
        first_input=first_input,
    )
    return _with_decoder(model, config, key)


def _with_decoder(
    backbone: models.Model, config: FutureConfig, key: jax.Array
) -> FutureModel:
    new = jax.jit(_init_decoder, static_argnums=0)(config, key)
    params = {"encoder": backbone.params, **place_future(new, config)}
    return FutureModel(params, config, backbone.vocabulary)


def place_future(params: PyTree, config: FutureConfig) -> PyTree:
    """Parameters, or some of them, laid out on the current mesh by the one table."""
    with entered_mesh():
        axes, units = param_axes(params), axis_units(config.encoder)
        return shard_tree(params, axes, units=units)


def _init_decoder(config: FutureConfig, key: jax.Array) -> PyTree:
    encoder, count = config.encoder, config.decoder_layers
    keys = jax.random.split(key, count + 4)
    width, kind = encoder.width, encoder.dtype

    def normal(key: jax.Array, *shape: int) -> Array:
        return (0.02 * jax.random.normal(key, shape)).astype(kind)

    slots = jnp.zeros((1, width), kind)

    def layer(key: jax.Array) -> PyTree:
        made = FutureBlock(encoder).init(key, slots, slots)["params"]
        for branch in (made["out"], made["cross_out"], made["mlp"]["down"]):
            branch["kernel"] = branch["kernel"] * jnp.asarray((2 * count) ** -0.5, kind)
        return made

    return {
        "expand": expansion(config).init(keys[0], slots)["params"],
        "decoder": {
            "start": normal(keys[1], width),
            "positions": normal(keys[2], config.horizon, width),
            "layers": tuple(layer(key) for key in keys[4:]),
            "final_norm": nn.Norm(encoder).init(keys[3], slots)["params"],
        },
    }


def abstract_future(config: FutureConfig) -> PyTree:
    """Shapes of the parameters, with the encoder's layers split."""
    encoder = models.abstract(config.encoder).params
    new = jax.eval_shape(lambda: _init_decoder(config, jax.random.key(0)))
    return {"encoder": encoder, **new}


def with_encoder(params: PyTree, change: Any) -> PyTree:
    """Parameters whose encoder went through `stack_layers` or `split_layers`."""
    return {**params, "encoder": change(params["encoder"])}
