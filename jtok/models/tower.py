"""Towers: encoders of images, from pixels to one vector and labels.

`Output.hidden` holds all tokens, first those of `TowerConfig.prefix` (after the last
norm, but where `norm_pooled` keeps that for the pooled vector); `Output.logits` are
labels of the image `[batch, labels]` where there is a head for them, else None.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import model as core
from jtok.models.compression import Tokens
from jtok.models.compressor import Compressor
from jtok.models.encoder import init_layer
from jtok.models.encoder_heads import init_norm, norm, normal
from jtok.models.encoder_layers import run_layers
from jtok.models.tower_heads import init_tower_head, tower_output
from jtok.models.tower_positions import resized_positions
from jtok.ops.sharding import constrain

__all__ = ["embed", "forward", "init_params", "patches_of"]

PyTree = Any


def forward(
    params: PyTree,
    config: nn.TowerConfig,
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
    """`Model.__call__` of a tower.

    Inputs are `[batch, height, width, channels]` floating pixels, normalised as the
    model's processor does, or `[batch, patches, dim]` vectors in place of the mapped
    patches. `positions` `[batch, patches]` are rows of the table of patches (None: in
    order) and `mask` `[batch, patches]` is True for real ones; `bias` and `gates` are
    of all tokens, those before the patches included. Logits are "all" or "none".
    """
    if cache is not None:
        raise ArgumentError(
            "cache: got one, expected None: a tower looks both ways and keeps none."
        )
    known = isinstance(logits, str) and logits in ("all", "none")
    got = logits if isinstance(logits, str) else "rows"
    check(known, "logits", got, "'all' or 'none': labels are of the whole image")
    x, tokens = embed(params, config, inputs, positions, mask, bias, gates)
    taps = taps or core.Taps()
    core.check_inputs(config, x, taps, nn.SITES)
    layers = params["layers"]
    x, tokens, read = run_layers(layers, config.blocks, x, tokens, taps, compress)
    sizes = tokens.size if compress is not None and compress.proportional else None
    return tower_output(params, config, x, tokens, read, sizes, logits == "all")


# ---- inputs


def patches_of(images: Array, patch_size: int) -> Array:
    """`[batch, rows, columns, values]` patches of images of whole patches.

    The values of a patch run by column, row and channel, as the kernel has them.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images[:, : rows * patch_size, : columns * patch_size]
    x = x.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, -1)


def embed(
    params: PyTree, config: nn.TowerConfig, inputs: Any, positions: Any, mask: Any,
    bias: Any, gates: Any,
) -> tuple[Array, Tokens]:  # fmt: skip
    """All tokens as the first block gets them, and what is known of them."""
    held, inputs = params["embed"], jnp.asarray(inputs)
    x, grid = _mapped(held, config, inputs)
    batch, count = x.shape[:2]
    rows = _rows(held, config, grid, count, positions)
    x = x.astype(config.dtype) + jnp.broadcast_to(rows, x.shape).astype(config.dtype)
    x = jnp.concatenate([_first(held, config, batch), x], axis=1)
    x = constrain(x, "batch", "seq", "embed")
    if config.embed_norm:
        x = norm(config.blocks, held["norm"], x)
    seq = x.shape[1]
    places = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32)[None], (batch, seq))
    if mask is not None:
        mask = _shaped("mask", mask, (batch, count)).astype(bool)
        mask = jnp.pad(mask, ((0, 0), (config.prefix, 0)), constant_values=True)
    if gates is not None:
        gates = _shaped("gates", gates, (batch, seq)).astype(jnp.float32)
    if bias is not None:
        bias = jnp.asarray(bias, jnp.float32)
    return x, Tokens(places, mask, bias, gates, True)


def _shaped(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    value = jnp.asarray(value)
    check(value.shape == shape, name, f"shape {value.shape}", f"{list(shape)}")
    return value


def _mapped(
    held: PyTree, config: nn.TowerConfig, inputs: Array
) -> tuple[Array, tuple[int, int] | None]:
    """Patches as vectors, and how many there are to each side of an image."""
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ArgumentTypeError(
            f"inputs: got dtype {inputs.dtype}, expected floating pixels as the "
            "model's processor makes them, or vectors of patches."
        )
    if inputs.ndim == 3:
        wanted = f"[batch, patches, {config.width}] vectors"
        good = inputs.shape[-1] == config.width
        check(good, "inputs", f"shape {inputs.shape}", wanted)
        return inputs, None
    _check_images(config, inputs)
    kernel = held["patch"]["kernel"]
    patches = patches_of(inputs.astype(config.dtype), config.patch_size)
    batch, rows, columns, values = patches.shape
    x = patches.reshape(batch, -1, values) @ kernel.reshape(values, config.width)
    if "bias" in held["patch"]:
        x = x + jnp.broadcast_to(held["patch"]["bias"], x.shape)
    return x, (rows, columns)


def _check_images(config: nn.TowerConfig, images: Array) -> None:
    wanted = f"[batch, height, width, {config.channels}] pixels"
    good = images.ndim == 4 and images.shape[-1] == config.channels
    check(good, "inputs", f"shape {images.shape}", wanted)
    sides, size, patch = images.shape[1:3], config.image_size, config.patch_size
    if sides == (size, size):
        return
    got = f"images of {sides[0]} x {sides[1]} pixels"
    wanted = f"{size} x {size}; other sizes need interpolate='cubic' in the config"
    check(config.interpolate is not None, "inputs", got, wanted)
    whole = all(side and side % patch == 0 for side in sides)
    check(whole, "inputs", got, f"sides that are multiples of {patch}, a patch")


def _rows(
    held: PyTree, config: nn.TowerConfig, grid: Any, count: int, positions: Any
) -> Array:
    """Positions of the patches, `[1 or batch, patches, dim]`."""
    table = held["positions"][config.num_placed :]
    if grid is not None:
        smooth = config.interpolate == "smooth"
        table = resized_positions(table, grid, smooth=smooth)
    if positions is not None:
        at = jnp.asarray(positions)
        good = at.ndim == 2 and at.shape[1] == count
        check(good, "positions", f"shape {at.shape}", f"[batch, {count}]")
        return table.at[at].get(mode="clip")
    got = f"{count} vectors"
    wanted = f"{len(table)}, or positions that say where they stand"
    check(count == len(table), "inputs", got, wanted)
    return table[None]


def _first(held: PyTree, config: nn.TowerConfig, batch: int) -> Array:
    """What stands before the patches, `[batch, prefix, dim]`."""
    names = [name for name in ("class", "distill") if name in held]
    rows = [held[name] + held["positions"][at] for at, name in enumerate(names)]
    made = jnp.stack(rows) if rows else jnp.zeros((0, config.width), config.dtype)
    if "registers" in held:
        made = jnp.concatenate([made, held["registers"]])
    shape = (batch, config.prefix, config.width)
    return jnp.broadcast_to(made.astype(config.dtype)[None], shape)


# ---- new parameters


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: nn.TowerConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    keys = jax.random.split(key, config.num_layers + 2)
    params: PyTree = {
        "embed": _init_embed(config, keys[0]),
        "layers": tuple(init_layer(config.blocks, True, key) for key in keys[2:]),
        "final_norm": init_norm(config.blocks),
    }
    return params | init_tower_head(config, keys[1])


def _init_embed(config: nn.TowerConfig, key: jax.Array) -> PyTree:
    size, width, blocks = config.patch_size, config.width, config.blocks
    shapes: dict[str, tuple[int, ...]] = {
        "kernel": (size, size, config.channels, width),
        "positions": (config.max_positions, width),
    }
    if config.class_token:
        shapes["class"] = (width,)
    if config.distill_token:
        shapes["distill"] = (width,)
    if config.num_registers:
        shapes["registers"] = (config.num_registers, width)
    keys = jax.random.split(key, len(shapes))
    made: PyTree = {
        name: normal(one, shape, blocks)
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    made["patch"] = {"kernel": made.pop("kernel")}
    if config.patch_bias:
        made["patch"]["bias"] = jnp.zeros(width, config.dtype)
    if config.mask_token:
        made["mask"] = jnp.zeros(width, config.dtype)
    return made | ({"norm": init_norm(blocks)} if config.embed_norm else {})
