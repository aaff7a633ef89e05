"""Encoders: the forward pass over whole texts, with what heads add to it.

An encoder looks both ways and has no cache: it neither steps nor generates.
`Output.hidden` is what the last layer gives (after the final norm, where there is
one); `Output.logits` are those of the masked-LM head, None where there is none.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jtok import nn
from jtok.errors import ArgumentError, check
from jtok.models import model as core
from jtok.models.compression import Tokens
from jtok.models.compressor import Compressor
from jtok.models.encoder_heads import (
    init_head,
    init_norm,
    masked_logits,
    norm,
    normal,
)
from jtok.models.encoder_layers import output_of, run_layers
from jtok.ops.sharding import constrain

__all__ = [
    "Segments",
    "forward",
    "init_layer",
    "init_params",
    "relative_bias",
]

PyTree = Any


@struct.dataclass
class Segments:
    """Inputs of an encoder that says more of its tokens than their ids.

    A pytree that `Model` takes in place of ids.

    Attributes:
      ids: `[batch, seq]` integer ids, or `[batch, seq, dim]` vectors.
      types: `[batch, seq]` which segment each token belongs to; None is 0.
      tasks: `[batch, seq]` tasks (ERNIE); None is 0.
      order: `[batch, seq]` positions that the table of relative positions counts, where
        they are others than `positions`; None takes those.

    Example:
      >>> pair = Segments(jnp.array([[2, 9, 3, 7, 3]]), jnp.array([[0, 0, 0, 1, 1]]))
      >>> pair.tasks is None
      True
    """

    ids: Any
    types: Any = None
    tasks: Any = None
    order: Any = None


def forward(
    params: PyTree,
    config: nn.EncoderConfig,
    inputs: Any,
    *,
    positions: Any = None,
    mask: Any = None,
    bias: Any = None,
    cache: Any = None,
    taps: core.Taps | None = None,
    gates: Any = None,
    logits: Any = "all",
    compress: Compressor | None = None,
) -> core.Output:
    """`Model.__call__` of an encoder; `inputs` may be `Segments`.

    Without `positions` they count from 0; where the configuration has a `padding_id`,
    ids other than that are counted, as RoBERTa does (of vectors, what the mask keeps).
    """
    if cache is not None:
        raise ArgumentError(
            "cache: got one, expected None: an encoder looks both ways and keeps none."
        )
    given = inputs if isinstance(inputs, Segments) else Segments(inputs)
    ids, taps = jnp.asarray(given.ids), taps or core.Taps()
    core.check_inputs(config, ids, taps, nn.SITES)
    batch, seq = ids.shape[:2]
    mask = _checked_mask(mask, batch, seq)
    gates = _per_token("gates", gates, batch, seq)
    in_order = positions is None and config.padding_id is None
    if positions is None:
        positions = _positions(config, ids, mask)
    positions = _per_token("positions", positions, batch, seq)
    table = relative_bias(params, config, _counted(given, positions, in_order))
    if table is not None:
        bias = table if bias is None else table + jnp.asarray(bias, jnp.float32)
    x = constrain(
        _embed(params, config, given, ids, positions), "batch", "seq", "embed"
    )
    tokens = Tokens(positions, mask, bias, gates, in_order)
    x, tokens, read = run_layers(params["layers"], config, x, tokens, taps, compress)
    hidden = x
    if config.norm_first:
        hidden = norm(config, params["final_norm"], x)
    made = masked_logits(params, config, hidden, logits)
    return output_of(made, hidden, read, tokens)


# ---- inputs


def _checked_mask(mask: Any, batch: int, seq: int) -> Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    shapes = f"[{batch}, {seq}] or [{batch}, {seq}, {seq}]"
    good = mask.shape in ((batch, seq), (batch, seq, seq))
    check(good, "mask", f"shape {mask.shape}", shapes)
    return mask.astype(bool)


def _per_token(name: str, value: Any, batch: int, seq: int) -> Any:
    if value is None:
        return None
    value = jnp.asarray(value)
    good = value.shape == (batch, seq)
    check(good, name, f"shape {value.shape}", f"[{batch}, {seq}]")
    return value.astype(jnp.float32) if name == "gates" else value


def _positions(config: nn.EncoderConfig, ids: Array, mask: Array | None) -> Array:
    batch, seq = ids.shape[:2]
    if config.padding_id is None:
        return jnp.broadcast_to(jnp.arange(seq)[None], (batch, seq))
    if ids.ndim == 2:
        real = ids != config.padding_id
    elif mask is not None and mask.ndim == 2:
        real = mask
    else:
        real = jnp.ones((batch, seq), bool)
    return jnp.where(real, jnp.cumsum(real, axis=1) - 1, -1)


def _counted(given: Segments, positions: Array, in_order: bool) -> Array:
    """Positions for the table of biases; one row where all are alike."""
    if given.order is not None:
        return _per_token("order", given.order, *positions.shape)
    return positions[:1] if in_order else positions


def relative_bias(
    params: PyTree, config: nn.EncoderConfig, positions: Int[Array, "rows seq"]
) -> Float[Array, "rows heads seq seq"] | None:
    """What an encoder with relative positions adds to its attention scores.

    Args:
      params: of the model.
      config: the model's.
      positions: `[rows, seq]` int32, 0-based; one row serves a batch that counts alike.

    Returns:
      `[rows, heads, seq, seq]` float32, or None where the model has no such table.

    Source: Raffel et al. 2020, arXiv 1910.10683, section 2.1; Xiao et al. 2021,
    arXiv 2010.12148, the released encoder.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="t5")
      >>> relative_bias(model.params, model.config, jnp.arange(3)[None]).shape
      (1, 4, 3, 3)
    """
    if config.relative is None:
        return None
    rows = _relative_rows(config, positions)
    table = params["relative"]["table"].astype(jnp.float32)
    return constrain(jnp.moveaxis(table[rows], -1, 1), None, "heads", None, None)


def _relative_rows(config: nn.EncoderConfig, positions: Array) -> Array:
    """Which row of the table stands for each pair of query and key."""
    count, first = config.relative_buckets, positions == 0
    buckets = nn.relative_buckets(
        positions[:, None, :] - positions[:, :, None],
        num_buckets=count,
        max_distance=config.relative_distance,
        upper="later" if config.relative == "t5" else "earlier",
    )
    if config.relative == "t5":
        return jnp.asarray(buckets)
    return jnp.asarray(nn.reset_buckets(buckets, first, first, num_buckets=count))


def _embed(
    params: PyTree,
    config: nn.EncoderConfig,
    given: Segments,
    ids: Array,
    positions: Array,
) -> Array:
    embed, x = params["embed"], ids
    if ids.ndim == 2:
        x = embed["tokens"][jnp.clip(ids, 0, config.vocab_size - 1)]
    x = x.astype(config.dtype)
    for name, which in (("types", given.types), ("tasks", given.tasks)):
        if which is not None and name not in embed:
            raise ArgumentError(f"{name}: got an array, expected None of this model.")
        if name in embed:
            which = 0 if which is None else _per_token(name, which, *ids.shape[:2])
            rows = embed[name].at[which].get(mode="clip")
            x = x + jnp.broadcast_to(rows, x.shape)
    if config.positions == "learned":
        rows = positions + config.position_offset
        x = x + embed["positions"].at[rows].get(mode="clip")
    return norm(config, embed["norm"], x) if config.embed_norm else x


# ---- new parameters


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: nn.EncoderConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    keys = jax.random.split(key, config.num_layers + 3)
    params: PyTree = {
        "embed": _init_embed(config, keys[0]),
        "layers": tuple(
            init_layer(config, config.attn_norm(index), key)
            for index, key in enumerate(keys[3:])
        ),
    }
    if config.norm_first:
        params["final_norm"] = init_norm(config)
    if config.relative is not None:
        rows = config.relative_buckets + (config.relative == "ernie")
        table = normal(keys[1], (rows, config.num_heads), config)
        params["relative"] = {"table": table}
    return params | init_head(config, keys[2])


def _init_embed(config: nn.EncoderConfig, key: jax.Array) -> PyTree:
    learned = config.positions == "learned"
    rows = {
        "tokens": config.vocab_size,
        "positions": (config.max_positions + config.position_offset) * learned,
        "types": config.num_types,
        "tasks": config.num_tasks,
    }
    keys = jax.random.split(key, len(rows))
    embed: PyTree = {
        name: normal(one, (count, config.width), config)
        for one, (name, count) in zip(keys, rows.items(), strict=True)
        if count
    }
    return embed | ({"norm": init_norm(config)} if config.embed_norm else {})


def init_layer(config: nn.EncoderConfig, attn_norm: bool, key: jax.Array) -> PyTree:
    """Random parameters of one block of any encoder."""
    x = jnp.zeros((1, 1, config.width), config.dtype)
    positions = jnp.zeros((1, 1), jnp.int32)
    block = nn.EncoderBlock(config, attn_norm)
    attend = lambda query, key, value: query
    made = block.init(key, x, positions, attend, lambda _, value: value)["params"]
    if config.norm_first:
        # Residual branches start small, so that depth does not change the scale.
        shrink = jnp.asarray((2 * config.num_layers) ** -0.5, config.dtype)
        for branch in (made["out"], made["mlp"]["down"]):
            branch["kernel"] = branch["kernel"] * shrink
    return made
