"""What a decoder runs: any model as a tuple of pure functions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jtok import nn
from jtok.errors import ArgumentError
from jtok.models import model as core
from jtok.models.backbone import backbone_of
from jtok.ops.readouts import Readout, Want, readout_logits
from jtok.ops.unembed import readout

__all__ = ["Info", "StepInput", "StepOutput", "Target", "model_target"]

PyTree = Any


class Info(NamedTuple):
    """Static facts about a target.

    Attributes:
      vocab_size: number of token ids.
      max_len: longest sequence the model's positions reach, None for no bound.
      trees: whether it takes trees; recurrent models take chains only.
    """

    vocab_size: int
    max_len: int | None = None
    trees: bool = True


@struct.dataclass
class StepInput:
    """The nodes of one call.

    Attributes:
      ids: `[batch, nodes]` int32 tokens, or None where `vectors` are given.
      positions: `[batch, nodes]` int32 absolute positions.
      allow: `[batch, nodes, nodes]` bool, row = query; itself included.
      valid: `[batch, nodes]` bool; other nodes are computed and ignored.
      vectors: `[batch, nodes, dim]` in place of ids, or None.
      gates: `[batch, nodes]` float32 how much of its adapters the model uses, or None:
        as it does by itself.
    """

    ids: jax.Array | None
    positions: jax.Array
    allow: jax.Array
    valid: jax.Array
    vectors: jax.Array | None = None
    gates: jax.Array | None = None


@struct.dataclass
class StepOutput:
    """What a call computed.

    Attributes:
      hidden: `[batch, nodes, dim]`, what `readout` takes; logits where the target has
        no readout of its own.
      taps: activations that a drafter asked for, by (site, layer).
    """

    hidden: jax.Array
    taps: dict[Any, jax.Array] = struct.field(default_factory=dict)


def default_readout(params: PyTree, hidden: jax.Array, want: Want) -> Readout:
    """The readout of a target whose `hidden` are logits `[batch, nodes, vocab]`."""
    del params
    return readout_logits(hidden, want)


class Target(NamedTuple):
    """Any autoregressive model, as functions that decoding composes and compiles.

    Attributes:
      init_cache: `(params, batch, capacity) -> cache`, empty.
      step: `(params, cache, StepInput) -> (StepOutput, cache)`. Every node sees the
        committed tokens and the nodes that `allow` names. Nodes wait above the
        committed length, which a step never moves.
      commit: `(cache, path[batch, depth + 1], count[batch]) -> cache` keeps the first
        `count` nodes of each path, in order; a count of 0 leaves the row as it is.
        What it writes should depend on what the step computed, or the compiler may
        copy the whole cache to keep the old one for reading.
      info: static facts.
      readout: `(params, hidden, Want) -> Readout`; the default takes `hidden` as
        logits.
      rewind: `(cache, length[batch]) -> cache` keeps the first `length` tokens of each
        row, or all where there are fewer; None where a cache cannot forget.

    Example:
      >>> from jtok.testing import tiny_model
      >>> tiny_model().target().info.vocab_size
      96
    """

    init_cache: Callable[[PyTree, int, int], PyTree]
    step: Callable[[PyTree, PyTree, StepInput], tuple[StepOutput, PyTree]]
    commit: Callable[[PyTree, jax.Array, jax.Array], PyTree]
    info: Info
    readout: Callable[[PyTree, jax.Array, Want], Readout] = default_readout
    rewind: Callable[[PyTree, jax.Array], PyTree] | None = None


def model_target(config: Any, read: tuple[tuple[str, int], ...] = ()) -> Target:
    """The `Target` of a model; equal arguments give the same functions.

    Args:
      config: the model's.
      read: (site, layer) pairs that steps shall return as taps.

    Returns:
      `Target` whose `params` are `Model.params` with split layers.

    Example:
      >>> from jtok.testing import tiny_model
      >>> config = tiny_model().config
      >>> model_target(config) is model_target(config)
      True
    """
    return backbone_of(config).target(config, read)


@functools.lru_cache(maxsize=64)
def decoder_target(
    config: nn.DecoderConfig, read: tuple[tuple[str, int], ...] = ()
) -> Target:
    """`model_target` of a transformer decoder."""
    if not config.causal:
        raise ArgumentError(
            "model: got one that looks both ways (causal=False), expected a causal "
            "one; jtok.predict.sample_masked fills in masks with it."
        )

    def init_cache(params: PyTree, batch: int, capacity: int) -> core.Cache:
        del params
        return core.init_decoder_cache(config, batch, capacity)

    def step(
        params: PyTree, cache: core.Cache, nodes: StepInput
    ) -> tuple[StepOutput, PyTree]:
        out = core.decoder_forward(
            params,
            config,
            nodes.ids if nodes.vectors is None else nodes.vectors,
            positions=nodes.positions,
            mask=nodes.allow,
            cache=cache,
            taps=core.Taps(read),
            gates=nodes.gates,
            logits="none",
        )
        return StepOutput(out.hidden, out.taps), out.cache

    def read_out(params: PyTree, hidden: jax.Array, want: Want) -> Readout:
        weight, bias = core.unembedding(params)
        cap = config.final_softcap
        return readout(hidden, weight, want, bias=bias, softcap=cap)

    def rewind(cache: core.Cache, length: jax.Array) -> core.Cache:
        # Slots above the length are masked, and written again.
        return dataclasses.replace(cache, length=jnp.minimum(cache.length, length))

    max_len = config.max_positions if config.positions == "learned" else None
    info = Info(config.vocab_size, max_len)
    return Target(init_cache, step, core.commit, info, read_out, rewind)
