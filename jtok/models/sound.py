"""Encoders of sound: from log-mel frames to one vector for every two of them.

What `forward` takes are frames `[batch, frames, mel bins]` as `model.processor` makes
them (`transformers` has the last two axes the other way round). `Output.hidden` is
`[batch, tokens, width]`, token t at frame 2t: `tokens = ceil(frames / 2)`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import model as core
from jtok.models.compression import Tokens
from jtok.models.compressor import Compressor
from jtok.models.encoder import init_layer
from jtok.models.encoder_heads import init_norm, norm, normal
from jtok.models.encoder_layers import output_of, run_layers
from jtok.ops.sharding import constrain

__all__ = ["forward", "init_params"]

PyTree = Any
_WAVELENGTH = 10_000.0  # the longest of the first positions, over 2 pi


def forward(
    params: PyTree,
    config: nn.SoundConfig,
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
    """`Model.__call__` of an encoder of sound.

    Args:
      params: `embed` (two convolutions, positions), `layers`, `final_norm`.
      config: of the model.
      inputs: `[batch, frames, mel bins]` float; at most twice `max_positions` frames.
      positions: `[batch, tokens]` int, of tokens; None counts them from 0.
      mask: `[batch, frames]`, True where there is sound. Other frames change nothing:
        they are zero to both convolutions, as what is outside of the input is, and
        their tokens are not attended to. Without one all frames count, as in
        `transformers`, which pads with silence.
      bias: `[#batch, #heads, tokens, tokens]` added to the attention scores.
      cache: None.
      taps: what to read and edit in the layers.
      gates: `[batch, tokens]` of adapters.
      logits: "all", "last" or "none": there are none.
      compress: what leaves fewer tokens.

    Returns:
      `Output` whose `logits` are None.

    Raises:
      ArgumentError: an argument of another shape, too many frames, or a cache.
      ArgumentTypeError: frames that are no floats.
    """
    if cache is not None:
        raise ArgumentError("cache: got one, expected None: an encoder keeps none.")
    if not isinstance(logits, str):
        raise ArgumentError("logits: got rows, expected 'none': sound has no head.")
    frames, taps = _frames(config, inputs), taps or core.Taps()
    heard = _per(mask, "mask", frames.shape[:2])
    x = _tokens_of(params["embed"], config, frames, heard)
    core.check_inputs(config, x, taps, nn.SITES)
    batch, seq = x.shape[:2]
    at = _per(positions, "positions", (batch, seq))
    in_order = at is None
    at = jnp.broadcast_to(jnp.arange(seq)[None], (batch, seq)) if at is None else at
    x = x + params["embed"]["positions"].at[at].get(mode="clip").astype(x.dtype)
    gates = _per(gates, "gates", (batch, seq))
    tokens = Tokens(
        at,
        None if heard is None else heard[:, ::2].astype(bool),
        bias,
        None if gates is None else gates.astype(jnp.float32),
        in_order,
    )
    x = constrain(x, "batch", "seq", "embed")
    x, tokens, read = run_layers(params["layers"], config, x, tokens, taps, compress)
    return output_of(None, norm(config, params["final_norm"], x), read, tokens)


def _frames(config: nn.SoundConfig, inputs: Any) -> Array:
    frames = jnp.asarray(inputs)
    if not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ArgumentTypeError(
            f"inputs: got dtype {frames.dtype}, expected log-mel frames, which are "
            "float; model.processor makes them of samples."
        )
    bins, most = config.num_mel_bins, 2 * config.max_positions
    wanted = f"[batch, 1 to {most} frames, {bins} mel bins]"
    good = frames.ndim == 3 and frames.shape[-1] == bins and 0 < frames.shape[1] <= most
    check(good, "inputs", f"shape {frames.shape}", wanted)
    return frames.astype(config.dtype)


def _per(value: Any, name: str, shape: tuple[int, ...]) -> Any:
    """What is given for each frame or token."""
    if value is None:
        return None
    value = jnp.asarray(value)
    check(value.shape == shape, name, f"shape {value.shape}", str(list(shape)))
    return value


def _tokens_of(
    embed: PyTree, config: nn.SoundConfig, frames: Array, heard: Array | None
) -> Array:
    """Both convolutions; the second takes every other frame.

    Each is followed by an exact GELU, whatever the layers' activation is.
    """

    def conv(x: Array, name: str, stride: int) -> Array:
        x = x if heard is None else jnp.where(heard[..., None] != 0, x, 0)
        axes = ("NWC", "WIO", "NWC")
        y: Array = jax.lax.conv_general_dilated(
            x, embed[name]["kernel"], (stride,), [(1, 1)], dimension_numbers=axes
        )
        y = y + jnp.broadcast_to(embed[name]["bias"], y.shape)
        return jax.nn.gelu(y, approximate=False)

    return conv(conv(frames, "conv1", 1), "conv2", 2)


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: nn.SoundConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    keys = jax.random.split(key, config.num_layers + 2)

    def conv(key: jax.Array, channels: int) -> PyTree:
        kernel = normal(key, (3, channels, config.width), config)
        return {"kernel": kernel, "bias": jnp.zeros(config.width, config.dtype)}

    return {
        "embed": {
            "conv1": conv(keys[0], config.num_mel_bins),
            "conv2": conv(keys[1], config.width),
            "positions": jnp.asarray(_waves(config), config.dtype),
        },
        "layers": tuple(init_layer(config, True, one) for one in keys[2:]),
        "final_norm": init_norm(config),
    }


def _waves(config: nn.SoundConfig) -> Float[np.ndarray, "positions dim"]:
    """Sines, then cosines; their wavelengths grow geometrically."""
    half = -(-config.width // 2)
    rates = _WAVELENGTH ** -(np.arange(half) / max(half - 1, 1))
    angles = np.arange(config.max_positions)[:, None] * rates[None]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return waves[:, : config.width].astype(np.float32)
