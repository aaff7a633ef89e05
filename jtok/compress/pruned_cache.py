"""Decoding after a prefill that dropped tokens: a cache whose layers differ in length.

A layer that saw fewer tokens of the prompt holds fewer keys and values. What is decoded
afterwards is in all layers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jtok import nn
from jtok.errors import ArgumentError
from jtok.models import (
    StepInput,
    StepOutput,
    Target,
    embed_inputs,
    final_norm,
    run_layer,
)
from jtok.models.cache import after, laid_out
from jtok.models.target import decoder_target
from jtok.ops.attention import attention, cached_attention, write_rows

__all__ = ["PrunedCache", "Slots", "pruned_target"]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Slots:
    """How much room a prompt takes; decides shapes.

    Attributes:
      rows: slots that the prompt takes in each layer.
      least: tokens of the shortest prompt of the batch, or fewer.
      masked: slots may hold tokens that a layer does not see.
    """

    rows: tuple[int, ...]
    least: int
    masked: bool


@struct.dataclass
class PrunedCache:
    """Keys and values of the tokens that each layer still sees.

    Attributes:
      layers: per layer `(key, value)`, each `[batch, kv_heads, slots, head_dim]`, with
        slots of their own number.
      seen: per layer `[batch, slots]` bool, whether a slot below the length counts.
      places: per layer `[batch, slots]` int32 positions of the tokens.
      lengths: `[layers, batch]` int32 slots in use.
      offsets: `[layers, batch]` int32 what a new token's position is ahead of its
        number in the text.
      length: `[batch]` int32 tokens of the text, dropped ones included.
      floor: `[batch]` int32 tokens up to the last one that any layer may have dropped:
        no rewinding below them.
      pending: as in `jtok.models.Cache`.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    seen: tuple[jax.Array, ...]
    places: tuple[jax.Array, ...]
    lengths: jax.Array
    offsets: jax.Array
    length: jax.Array
    floor: jax.Array
    pending: PyTree = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(part.nbytes for pair in self.layers for part in pair)


@functools.lru_cache(maxsize=64)
def pruned_target(config: nn.DecoderConfig, slots: Slots) -> Target:
    """What `jtok.decode.generate` runs after a prefill that dropped tokens.

    Trees of drafts work. Layers with a window, and masks, read the whole cache of the
    layer; all others read what is in use.

    Args:
      config: the model's.
      slots: of the prompt.

    Returns:
      `Target` whose `params` are the model's with split layers; equal arguments give
      the same one.
    """
    plain = decoder_target(config)

    def init_cache(params: PyTree, batch: int, capacity: int) -> PrunedCache:
        del params
        sizes = [rows + max(capacity - slots.least, 0) for rows in slots.rows]
        wide = (config.num_kv_heads, config.head_dim)

        def buffer(size: int) -> Array:
            shape = (batch, wide[0], size, wide[1])
            return laid_out(jnp.zeros(shape, config.dtype))

        zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
        return PrunedCache(
            layers=tuple((buffer(size), buffer(size)) for size in sizes),
            seen=tuple(jnp.ones((batch, size), bool) for size in sizes),
            places=tuple(zeros((batch, size)) for size in sizes),
            lengths=zeros((config.num_layers, batch)),
            offsets=zeros((config.num_layers, batch)),
            length=zeros(batch),
            floor=zeros(batch),
        )

    def step(
        params: PyTree, cache: PrunedCache, nodes: StepInput
    ) -> tuple[StepOutput, PrunedCache]:
        inputs: Any = nodes.ids if nodes.vectors is None else nodes.vectors
        first = nodes.positions + cache.offsets[0][:, None]
        x, gates = embed_inputs(params, config, inputs, first, gates=nodes.gates)
        pending = []
        for layer in range(config.num_layers):
            at = nodes.positions + cache.offsets[layer][:, None]
            attend = functools.partial(
                _attend, config, slots.masked, cache, layer, nodes, at
            )
            out = run_layer(
                params, config, layer, x, at, attend=attend, gates=gates
            )  # fmt: skip
            x = out.x
            pending.append((out.key, out.value))
        waiting = (after(x, tuple(pending)), nodes.positions)
        cache = dataclasses.replace(cache, pending=waiting)
        return StepOutput(final_norm(params, config, x)), cache

    return Target(init_cache, step, _commit, plain.info, plain.readout, _rewind)


def _attend(
    config: nn.DecoderConfig, masked: bool, cache: PrunedCache, layer: int,
    nodes: StepInput, at: Array, query: Array, key: Array, value: Array,
) -> Array:  # fmt: skip
    old_key, old_value = (laid_out(part) for part in cache.layers[layer])
    window, length = config.window(layer), cache.lengths[layer]
    options: Any = {"scale": config.score_scale, "softcap": config.attn_softcap}
    if not masked and window is None:
        return cached_attention(
            query, key, value, old_key, old_value, length, nodes.allow,
            reach=nodes.reach, **options,
        )  # fmt: skip
    slots = jnp.arange(old_key.shape[2])[None]
    used = cache.seen[layer] & (slots < length[:, None])
    among = jnp.broadcast_to(used[:, None], (*query.shape[:2], used.shape[1]))
    allow = jnp.concatenate([among, nodes.allow], axis=2)
    if window is not None:
        places = jnp.concatenate([cache.places[layer], at], axis=1)
        allow = allow & (at[:, :, None] - places[:, None, :] < window)
    keys = jnp.concatenate([old_key, key], axis=2)
    values = jnp.concatenate([old_value, value], axis=2)
    return attention(query, keys, values, allow, **options)


def _commit(cache: PrunedCache, path: Array, count: Array) -> PrunedCache:
    if cache.pending is None:
        raise ArgumentError("cache: got one without pending nodes; run a step first.")
    nodes, positions = cache.pending
    chosen = jnp.maximum(path, 0)

    def keep(buffer: Array, new: Array, length: Array) -> Array:
        rows = jnp.take_along_axis(new, chosen[:, None, :, None], axis=2)
        return laid_out(write_rows(laid_out(buffer), laid_out(rows), length))

    layers, seen, places = [], [], []
    numbers = jnp.take_along_axis(positions, chosen, axis=1)
    for layer, (pair, new) in enumerate(zip(cache.layers, nodes, strict=True)):
        length = cache.lengths[layer]
        layers.append((keep(pair[0], new[0], length), keep(pair[1], new[1], length)))
        seen.append(_written(cache.seen[layer], jnp.ones_like(path, bool), length))
        at = numbers + cache.offsets[layer][:, None]
        places.append(_written(cache.places[layer], at, length))
    return dataclasses.replace(
        cache, layers=tuple(layers), seen=tuple(seen), places=tuple(places),
        lengths=cache.lengths + count[None], length=cache.length + count, pending=None,
    )  # fmt: skip


def _written(
    row: Int[Array, "batch slots"] | Bool[Array, "batch slots"],
    new: Array,
    slot: Int[Array, " batch"],
) -> Array:
    write = lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,))
    return jax.vmap(write)(row, new.astype(row.dtype), slot)


def _rewind(cache: PrunedCache, length: Array) -> PrunedCache:
    length = jnp.minimum(length, cache.length)
    if not isinstance(length, jax.core.Tracer) and bool(jnp.any(length < cache.floor)):
        raise ArgumentError(
            "cache: the prompt differs from the one that was pruned, expected the "
            f"same first {cache.floor.tolist()} tokens: layers have dropped some."
        )
    gone = cache.length - length
    return dataclasses.replace(
        cache, lengths=cache.lengths - gone[None], length=length, pending=None
    )
