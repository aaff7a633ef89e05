"""The Perceiver resampler: a few learnt vectors read a long sequence.

Source: Alayrac et al. 2022, arXiv 2204.14198, section 3.1.1, in the open reproduction.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import CheckpointError, check
from jtok.nn.looking import mix_and_look

__all__ = ["PerceiverConfig", "PerceiverResampler", "perceiver_from_tensors"]

_EPS = 1e-5
_INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """Sizes of a resampler.

    Attributes:
      width: of tokens and latents.
      layers: each reads the tokens, then runs a feed-forward net.
      heads: of the attention.
      head_dim: size of each.
      latents: vectors that come out of every media.
      mlp_ratio: width inside the feed-forward net over `width`.
      frames: rows of the table of frames; 0 for none.
      times: rows of the table of media; 0 for none.
      param_dtype: dtype of the parameters.

    Raises:
      ArgumentError: a size out of range.

    Example:
      >>> PerceiverConfig(width=1024).latents
      64
    """

    width: int
    layers: int = 6
    heads: int = 8
    head_dim: int = 64
    latents: int = 64
    mlp_ratio: int = 4
    frames: int = 0
    times: int = 0
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "head_dim", "latents", "mlp_ratio"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "at least 1")
        for name in ("frames", "times"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 0, name, value, "at least 0")


def _norm(config: PerceiverConfig, x: Array, name: str) -> Array:
    layer = nn.LayerNorm(
        _EPS, use_fast_variance=False, dtype=x.dtype,
        param_dtype=config.param_dtype, name=name,
    )  # fmt: skip
    return layer(x)


def _linear(config: PerceiverConfig, x: Array, features: int, name: str) -> Array:
    layer = nn.Dense(
        features, use_bias=False, kernel_init=_INIT, dtype=x.dtype,
        param_dtype=config.param_dtype, name=name,
    )  # fmt: skip
    return layer(x)


class _Read(nn.Module):
    """Latents attend to the tokens and to themselves, in one softmax."""

    config: PerceiverConfig

    @nn.compact
    def __call__(self, x: Array, latents: Array, valid: Array) -> tuple[Array, Array]:
        config = self.config
        inner = config.heads * config.head_dim
        x, queries = _norm(config, x, "norm_x"), _norm(config, latents, "norm_latents")
        cut = lambda y: y.reshape(*y.shape[:-1], config.heads, config.head_dim)
        query = cut(_linear(config, queries, inner, "query"))
        both = jnp.concatenate([x, queries], axis=1)
        key = cut(_linear(config, both, inner, "key"))
        value = cut(_linear(config, both, inner, "value"))
        own = ((0, 0), (0, queries.shape[1]))
        see = jnp.pad(valid, own, constant_values=True)[:, None]
        mixed, seen = mix_and_look(query, key, value, see)
        mixed = mixed.reshape(*latents.shape[:-1], inner)
        seen = seen[..., : x.shape[1]]
        return latents + _linear(config, mixed, config.width, "out"), seen


class _FeedForward(nn.Module):
    config: PerceiverConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        inner = _norm(config, x, "norm")
        inner = _linear(config, inner, config.mlp_ratio * config.width, "up")
        inner = jax.nn.gelu(inner, approximate=False)
        return x + _linear(config, inner, config.width, "down")


class PerceiverResampler(nn.Module):
    """As many vectors as there are latents, from tokens of any number.

    A media is an image, or a video of some frames. Where tokens are not real, it is as
    if they were not there; a media without any gives what the latents make of
    themselves.

    Attributes:
      config: the sizes.

    Source: Alayrac et al. 2022, arXiv 2204.14198, section 3.1.1. Differs: a mask.

    Example:
      >>> config = PerceiverConfig(width=8, layers=1, heads=2, head_dim=4, latents=3)
      >>> x, key = jnp.ones((1, 2, 4, 5, 8)), jax.random.key(0)
      >>> run = PerceiverResampler(config).init_with_output
      >>> (y, seen), _ = jax.eval_shape(run, key, x)
      >>> y.shape, seen.shape
      ((1, 2, 3, 8), (1, 2, 3, 4, 5))
    """

    config: PerceiverConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch media frames tokens width"],
        valid: Bool[Array, "batch media frames tokens"] | None = None,
    ) -> tuple[
        Float[Array, "batch media latents width"],
        Float[Array, "batch media latents frames tokens"],
    ]:
        """Reads media.

        Args:
          x: `[batch, media, frames, tokens, width]`.
          valid: `[batch, media, frames, tokens]` bool; None lets all tokens be real.

        Returns:
          `[batch, media, latents, width]` in the dtype of `x`, and how much each latent
          looked at each token in the last layer, the mean of the heads, float32; a
          latent's attention to latents makes up the rest of 1.

        Raises:
          ArgumentError: another width, or more frames or media than the tables have.
        """
        config = self.config
        batch, media, frames, tokens, width = x.shape
        check(width == config.width, "x", f"width {width}", f"{config.width}")
        x = self._placed(x, "frame_embs", config.frames, 2)
        x = self._placed(x, "media_time_embs", config.times, 1)
        flat = x.reshape(batch * media, frames * tokens, width)
        if valid is None:
            valid = jnp.ones(x.shape[:-1], bool)
        real = valid.reshape(flat.shape[:-1])
        flat = jnp.where(real[..., None], flat, 0)
        own = self.param(
            "latents", _INIT, (config.latents, width), config.param_dtype
        ).astype(x.dtype)
        latents = jnp.broadcast_to(own[None], (batch * media, *own.shape))
        for index in range(config.layers):
            read = _Read(config, name=f"read_{index}")
            latents, seen = read(flat, latents, real)
            latents = _FeedForward(config, name=f"mlp_{index}")(latents)
        out = _norm(config, latents, "norm").reshape(batch, media, -1, width)
        return out, seen.reshape(batch, media, -1, frames, tokens)

    def _placed(self, x: Array, name: str, rows: int, axis: int) -> Array:
        """Adds the row of a table that an axis counts, where there is a table."""
        if rows == 0:
            return x
        used, width = x.shape[axis], x.shape[-1]
        check(used <= rows, "x", f"{used} of axis {axis}", f"at most {rows}, {name}")
        table = self.param(name, _INIT, (rows, width), self.config.param_dtype)
        shape = [1] * x.ndim
        shape[axis], shape[-1] = used, width
        return x + table[:used].astype(x.dtype).reshape(shape)


def perceiver_from_tensors(
    tensors: Mapping[str, Any],
    *,
    heads: int = 8,
) -> tuple[PerceiverConfig, dict[str, Any]]:
    """Reads a resampler's weights under the names of the open reproduction.

    Args:
      tensors: arrays by name, `latents`, `layers.0.0.to_q.weight` and so on; linear
        weights are `[out, in]`.
      heads: of the attention, which the weights do not tell.

    Returns:
      The configuration that the shapes say, and the parameters.

    Raises:
      CheckpointError: tensors that are missing or have no place.
      ArgumentError: `heads` that do not divide the width of the queries.

    Source: Alayrac et al. 2022, arXiv 2204.14198, as mlfoundations/open_flamingo
      stores it.

    Example:
      >>> perceiver_from_tensors({})
      Traceback (most recent call last):
      jtok.errors.CheckpointError: tensors: got none of a resampler; missing latents.
    """
    left = dict(tensors)

    def take(name: str) -> Array:
        if name not in left:
            raise CheckpointError(
                f"tensors: got {_what(tensors)} of a resampler; missing {name}."
            )
        return jnp.asarray(left.pop(name))

    norm = lambda name: {"scale": take(f"{name}.weight"), "bias": take(f"{name}.bias")}
    linear = lambda name: {"kernel": take(f"{name}.weight").T}
    params: dict[str, Any] = {"latents": take("latents"), "norm": norm("norm")}
    for name in ("frame_embs", "media_time_embs"):
        if name in left:
            params[name] = take(name).reshape(-1, params["latents"].shape[-1])
    found = [re.match(r"layers\.(\d+)\.", name) for name in tensors]
    layers = max((int(match[1]) + 1 for match in found if match), default=1)
    for index in range(layers):
        root = f"layers.{index}"
        both = take(f"{root}.0.to_kv.weight").T
        params[f"read_{index}"] = {
            "norm_x": norm(f"{root}.0.norm_media"),
            "norm_latents": norm(f"{root}.0.norm_latents"),
            "query": linear(f"{root}.0.to_q"),
            "key": {"kernel": jnp.split(both, 2, axis=1)[0]},
            "value": {"kernel": jnp.split(both, 2, axis=1)[1]},
            "out": linear(f"{root}.0.to_out"),
        }
        params[f"mlp_{index}"] = {
            "norm": norm(f"{root}.1.0"),
            "up": linear(f"{root}.1.1"),
            "down": linear(f"{root}.1.3"),
        }
    if left:
        raise CheckpointError(f"tensors: no place for {', '.join(sorted(left)[:8])}.")
    return _config_of(params, heads, layers), params


def _what(tensors: Mapping[str, Any]) -> str:
    return "none" if not tensors else f"{len(tensors)} tensors"


def _config_of(params: dict[str, Any], heads: int, layers: int) -> PerceiverConfig:
    latents, width = params["latents"].shape
    inner = params["read_0"]["query"]["kernel"].shape[1]
    check(heads >= 1 and inner % heads == 0, "heads", heads, f"a divisor of {inner}")
    rows = lambda name: params[name].shape[0] if name in params else 0
    return PerceiverConfig(
        width=width, layers=layers, heads=heads, head_dim=inner // heads,
        latents=latents, frames=rows("frame_embs"), times=rows("media_time_embs"),
        mlp_ratio=params["mlp_0"]["up"]["kernel"].shape[1] // width,
        param_dtype=str(params["latents"].dtype),
    )  # fmt: skip
