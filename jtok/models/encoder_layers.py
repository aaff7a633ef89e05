"""The layers of an encoder, whatever its inputs were: texts, images, sound."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok import nn
from jtok.errors import ArgumentError, check
from jtok.models import model as core
from jtok.models.compression import (
    CompressedOutput,
    Tokens,
    size_bias,
    squeeze,
)
from jtok.models.compressor import Compressor, LayerView
from jtok.ops.attention import attention
from jtok.ops.local_attention import local_attention
from jtok.ops.plan import Plan
from jtok.ops.sharding import constrain

__all__ = ["output_of", "run_layers"]

PyTree = Any

_NO_WINDOW = 2**30  # positions, in scanned layers that have no window


def run_layers(
    layers: PyTree,
    config: nn.EncoderConfig,
    x: Float[Array, "batch seq dim"],
    tokens: Tokens,
    taps: core.Taps,
    compress: Compressor | None = None,
) -> tuple[Array, Tokens, dict[Any, Array]]:
    """All blocks of an encoder, after its embeddings and before its last norm.

    Args:
      layers: a tuple of trees, or one tree stacked on a leading axis.
      config: of the encoder.
      x: `[batch, seq, dim]`.
      tokens: what is known of them.
      taps: what to read and edit.
      compress: what leaves fewer tokens, or None.

    Returns:
      The stream, the tokens that are left, and what was read, by its names.

    Raises:
      ArgumentError: `compress` with stacked layers, with a mask of three dimensions,
        or with a site that is read in all layers, which have different lengths.
    """
    if compress is None:
        run = _unrolled if isinstance(layers, tuple) else _scanned
        x, read = run(layers, config, x, tokens, taps)
        return x, tokens, core.named_taps(read, taps)
    if not isinstance(layers, tuple):
        raise ArgumentError(
            "compress: got one with stacked layers, whose lengths are alike, expected "
            "per-layer parameters; use jtok.models.split_layers(params)."
        )
    for item in taps.read:
        name = f"{item!r} of all layers"
        check(not isinstance(item, str), "taps", name, "(site, layer) with compress")
    return _compressed(layers, config, x, tokens, taps, compress)


def _attend(
    config: nn.EncoderConfig, tokens: Tokens, window: int | Array | None
) -> Callable[[Array, Array, Array], Array]:
    scale, mask = config.score_scale, tokens.mask

    def attend(query: Array, key: Array, value: Array) -> Array:
        batch, seq = query.shape[:2]
        plain = tokens.bias is None and tokens.in_order
        flat = (mask is None or mask.ndim == 2) and not config.causal
        if isinstance(window, int) and plain and flat and 4 * window + 4 <= seq:
            return local_attention(query, key, value, mask, reach=window, scale=scale)
        allow = jnp.ones((1, 1, seq), bool) if mask is None else mask
        allow = allow[:, None] if allow.ndim == 2 else allow
        if window is not None:
            at = tokens.positions
            near = jnp.abs(at[:, :, None] - at[:, None, :]) <= window
            allow = allow & near
        if config.causal:
            at = tokens.positions
            allow = allow & (at[:, :, None] >= at[:, None, :])
        allow = jnp.broadcast_to(allow, (batch, seq, seq))
        return attention(query, key, value, allow, scale=scale, bias=tokens.bias)

    return attend


def _run_block(
    layer: PyTree, index: Any, block: nn.EncoderBlock, x: Array, tokens: Tokens,
    window: int | Array | None, local: bool | Array, taps: core.Taps,
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    tap, read = core.recording(taps, index)
    attend = _attend(block.config, tokens, window)
    made: Any = block.apply(
        {"params": layer}, x, tokens.positions, attend, tap, local, tokens.gates
    )
    return constrain(made, "batch", "seq", "embed"), read


def _compressed(
    layers: tuple[PyTree, ...], config: nn.EncoderConfig, x: Array, tokens: Tokens,
    taps: core.Taps, compress: Compressor,
) -> tuple[Array, Tokens, dict[Any, Array]]:  # fmt: skip
    """Layers one after the other, each with the tokens that the last one left."""
    tokens = tokens.started(*x.shape[:2])
    found: dict[Any, Array] = {}
    for index, layer in enumerate(layers):
        x, tokens, read = _squeezed_block(
            layer, index, config, x, tokens, taps, compress
        )
        found |= {(site, index): value for site, value in read.items()}
    return x, tokens, {item: found[item] for item in taps.read}


def _squeezed_block(
    layer: PyTree, index: int, config: nn.EncoderConfig, x: Array, tokens: Tokens,
    taps: core.Taps, compress: Compressor,
) -> tuple[Array, Tokens, dict[str, Array]]:  # fmt: skip
    tap, read = core.recording(taps, index)
    window = config.window(index)
    entered, after = tokens, [tokens]
    if compress.proportional:
        sizes = size_bias(entered.size)
        bias = sizes if entered.bias is None else entered.bias + sizes
        entered = entered._replace(bias=bias)
    seen: dict[str, Array] = {}
    mix = _attend(config, entered, window)

    def attend(query: Array, key: Array, value: Array) -> Array:
        seen.update(query=query, key=key.transpose(0, 2, 1, 3))
        return mix(query, key, value)

    def act(x: Array) -> Array:
        plan: Plan = tokens.plan
        view = LayerView(
            x, seen["query"], seen["key"], plan.valid, tokens.size, plan.position,
            index, config.num_layers, config.prefix, config.score_scale,
        )  # fmt: skip
        x, after[0] = squeeze(compress, view, tokens)
        return x

    def between(x: Array, gates: Array | None) -> tuple[Array, Array | None]:
        return act(x), after[0].gates

    block = nn.EncoderBlock(config, config.attn_norm(index))
    early = compress.where == "attention"
    made: Any = block.apply(
        {"params": layer}, x, tokens.positions, attend, tap, window is not None,
        tokens.gates, between if early else None,
    )  # fmt: skip
    made = made if early else act(made)
    return constrain(made, "batch", "seq", "embed"), after[0], read


def _unrolled(
    layers: tuple[PyTree, ...], config: nn.EncoderConfig, x: Array, tokens: Tokens,
    taps: core.Taps,
) -> tuple[Array, dict[str, list[Array]]]:  # fmt: skip
    collected: dict[str, list[Array]] = {site: [] for site in taps.sites}
    for index, layer in enumerate(layers):
        window = config.window(index)
        block = nn.EncoderBlock(config, config.attn_norm(index))
        local = window is not None
        x, read = _run_block(layer, index, block, x, tokens, window, local, taps)
        for site, value in read.items():
            collected[site].append(value)
    return x, collected


def _scanned(
    layers: PyTree, config: nn.EncoderConfig, x: Array, tokens: Tokens, taps: core.Taps
) -> tuple[Array, dict[str, Array]]:
    block = nn.EncoderBlock(config, config.attn_norm(0))  # all are of one kind

    def body(x: Array, item: Any) -> tuple[Array, dict[str, Array]]:
        index, layer, window = item
        local = False if window is None else window < _NO_WINDOW
        return _run_block(layer, index, block, x, tokens, window, local, taps)

    windows = None
    if config.windows:
        sizes = [_NO_WINDOW if reach is None else reach for reach in config.windows]
        windows = jnp.asarray(sizes, jnp.int32)
    # For the gradient only products with weights are kept, as for decoders.
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    body = jax.checkpoint(body, policy=keep, prevent_cse=False)
    return jax.lax.scan(body, x, (jnp.arange(config.num_layers), layers, windows))


def output_of(
    logits: Array | None, hidden: Array, taps: dict[Any, Array], tokens: Tokens
) -> core.Output:
    """An `Output`, with the plan of the layers where they had a compressor."""
    if tokens.plan is None:
        return core.Output(logits, hidden, taps, None)
    return CompressedOutput(logits, hidden, taps, None, tokens.plan)
