"""Decoding with such a model: what is decoded, and the head that drafts for it.

Source: Walker 2024, arXiv 2410.18160. Differs: the paper generates by slot 0 or by
whole blocks; that slots draft and slot 0 verifies is an addition.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.models import StepInput, StepOutput, Target
from jtok.models.model import unembedding
from jtok.models.target import decoder_target
from jtok.ops import Readout, Want
from jtok.ops.unembed import readout
from jtok.predict.future_slots import (
    FutureConfig,
    cross_pairs,
    decode_slots,
    embed_tokens,
    first_slot,
    run_slots,
)
from jtok.predict.heads import DraftHead

__all__ = ["future_context", "future_head", "future_target"]

PyTree = Any


@functools.lru_cache(maxsize=64)
def future_target(config: FutureConfig) -> Target:
    """The model as plain decoding runs it: one encoder step and slot 0 a token.

    What a step calls hidden is what the decoder is given: the state vector, and beside
    it what slot 0 reads where that is the newest token.

    Args:
      config: the model's.

    Returns:
      `Target` whose `params` are `FutureModel.params` with the encoder's layers split;
      equal arguments give the same one.

    Source: Walker 2024, arXiv 2410.18160.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.predict import FutureConfig, init_future
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"), horizon=4)
      >>> model = init_future(config, jax.random.key(0))
      >>> out = generate(model.target(), [1, 2], params=model.params, max_new_tokens=3)
      >>> out.tokens.shape
      (3,)
    """
    inner = decoder_target(config.encoder)

    def init_cache(params: PyTree, batch: int, capacity: int) -> PyTree:
        return inner.init_cache(params["encoder"], batch, capacity)

    def step(
        params: PyTree, cache: PyTree, nodes: StepInput
    ) -> tuple[StepOutput, PyTree]:
        out, cache = inner.step(params["encoder"], cache, nodes)
        hidden = out.hidden
        if config.first_input == "last_token":
            newest: Any = nodes.vectors
            if newest is None:
                ids: Any = nodes.ids
                newest = embed_tokens(params, config, ids)
            hidden = jnp.concatenate([hidden, newest.astype(hidden.dtype)], axis=-1)
        return StepOutput(hidden, out.taps), cache

    def read_out(params: PyTree, hidden: jax.Array, want: Want) -> Readout:
        none = jnp.zeros((*hidden.shape[:-1], 0), jnp.int32)
        slot = decode_slots(params, config, hidden, none)[..., 0, :]
        return _read(params, config, slot, want)

    return inner._replace(init_cache=init_cache, step=step, readout=read_out)


def _read(params: PyTree, config: FutureConfig, slot: Array, want: Want) -> Readout:
    weight, bias = unembedding(params["encoder"])
    cap = config.encoder.final_softcap
    return readout(slot, weight, want, bias=bias, softcap=cap)


def future_context(
    params: PyTree, config: FutureConfig, carrier: Float[Array, "batch wide"]
) -> PyTree:
    """What a head drafts from, of every row: pseudo-tokens, and what slot 0 reads.

    Args:
      params: of a `FutureModel`; the encoder's layers are not read.
      config: its configuration.
      carrier: `[batch, carrier_width]` of the newest token that the target has seen.

    Returns:
      The context of `future_head`.

    Source: Walker 2024, arXiv 2410.18160.

    Example:
      >>> from jtok.predict import FutureConfig, init_future
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"))
      >>> model = init_future(config, jax.random.key(0))
      >>> future_context(model.params, config, jnp.ones((2, 32)))["first"].shape
      (2, 1, 1, 32)
    """
    nodes = carrier[:, None]  # one node of each row, whose pseudo-tokens serve all
    first = first_slot(params, config, nodes)[..., None, :]
    return {"pairs": cross_pairs(params, config, nodes), "first": first}


@functools.lru_cache(maxsize=64)
def future_head(config: FutureConfig) -> DraftHead:
    """The decoder as a head that drafts, from the state before the newest token.

    Slot 0 predicts the newest token, which is known already; the first step gives it to
    slot 1, whose prediction is the first draft.

    Args:
      config: the model's.

    Returns:
      `DraftHead` of `horizon - 1` steps; its context comes from `future_context`.

    Source: Walker 2024, arXiv 2410.18160. Differs: drafting is an addition.

    Example:
      >>> from jtok.predict import FutureConfig
      >>> from jtok.testing import tiny_config
      >>> future_head(FutureConfig(encoder=tiny_config(family="gpt2"))).steps
      7
    """

    def init(params: PyTree, context: PyTree) -> PyTree:
        first = context["first"]
        return run_slots(params, config, first, context["pairs"])[1]

    def step(
        params: PyTree, context: PyTree, state: PyTree, tokens: Array, index: int
    ) -> tuple[Array, PyTree]:
        del index  # the slots so far say which is next
        inputs = embed_tokens(params, config, tokens)[..., None, :]
        hidden, held = run_slots(params, config, inputs, context["pairs"], state)
        return hidden[..., 0, :], held

    def read_out(params: PyTree, hidden: Array, want: Want) -> Readout:
        return _read(params, config, hidden, want)

    return DraftHead(init, step, read_out, config.horizon - 1)
