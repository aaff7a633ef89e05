"""Rotary position embeddings and their scalings."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.errors import ArgumentError

__all__ = ["rotary_frequencies", "rotary_gain", "rotate"]

_KINDS = ("default", "linear", "llama3", "yarn")


def rotary_frequencies(
    dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Angular frequency of every pair of dimensions, in radians a position.

    Args:
      dim: number of rotated dimensions, even.
      theta: base.
      scaling: None, or the `rope_type` "default", "linear" (with `factor`), "llama3"
        (with `factor`, `low_freq_factor`, `high_freq_factor`,
        `original_max_position_embeddings`) or "yarn" (with `factor`,
        `original_max_position_embeddings`, maybe `beta_fast`, `beta_slow`,
        `truncate`; see `rotary_gain` too).

    Returns:
      `[dim // 2]` float32, highest first.

    Raises:
      ArgumentError: an unknown `rope_type`.

    Source: Su et al. 2021, arXiv 2104.09864, section 3.4; the llama-3 scaling as in
    the Llama 3.1 model card; Peng et al. 2023, arXiv 2309.00071, section 3.2 (yarn).

    Example:
      >>> rotary_frequencies(4, 100.0).round(3).tolist()
      [1.0, 0.10000000149011612]
    """
    frequencies = theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    kind = (scaling or {}).get("rope_type", "default")
    if kind == "linear":
        frequencies = frequencies / scaling["factor"]  # type: ignore[index]
    elif kind == "llama3":
        frequencies = _llama3(frequencies, scaling)  # type: ignore[arg-type]
    elif kind == "yarn":
        frequencies = _yarn(frequencies, dim, theta, scaling)  # type: ignore[arg-type]
    elif kind != "default":
        known = ", ".join(map(repr, _KINDS))
        raise ArgumentError(f"rope_type: got {kind!r}, expected one of {known}.")
    return frequencies.astype(np.float32)


def rotary_gain(scaling: Mapping[str, Any] | None = None) -> float:
    """What a scaling multiplies the rotated dimensions by: the attention factor.

    Args:
      scaling: as for `rotary_frequencies`; only "yarn" has a gain, its
        `attention_factor`, or what `mscale` and `mscale_all_dim` say, or
        0.1 ln(factor) + 1.

    Returns:
      The factor, 1 without one.

    Source: Peng et al. 2023, arXiv 2309.00071, section 3.4.

    Example:
      >>> rotary_gain({"rope_type": "yarn", "factor": 1.0})
      1.0
    """
    if scaling is None or scaling.get("rope_type") != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = float(scaling["factor"])
    one, every = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if one and every:
        return _gain(factor, float(one)) / _gain(factor, float(every))
    return _gain(factor, 1.0)


def _gain(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (share + (1.0 - share) / factor)


def _yarn(
    frequencies: np.ndarray, dim: int, theta: float, scaling: Mapping[str, Any]
) -> np.ndarray:
    """Waves that turn often are kept, rare ones stretched, linearly in the index."""
    length = scaling["original_max_position_embeddings"]

    def index(turns: float) -> float:
        """Which pair of dimensions makes so many turns over the original length."""
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = index(float(scaling.get("beta_fast") or 32.0))
    high = index(float(scaling.get("beta_slow") or 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    stretched = np.clip((np.arange(dim // 2) - low) / span, 0.0, 1.0)
    return frequencies * (1.0 - stretched + stretched / scaling["factor"])


def rotate(
    x: Float[Array, "batch seq heads head_dim"],
    positions: Int[Array, "batch seq"],
    frequencies: np.ndarray | Float[Array, " half"],
    *,
    gain: float | Float[Array, ""] = 1.0,
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotates halves of every head by the position's angles, in float32.

    Args:
      x: `[batch, seq, heads, head_dim]`; only the first `2 * len(frequencies)`
        dimensions turn.
      positions: `[batch, seq]` int32, 0-based.
      frequencies: `[rotated // 2]` from `rotary_frequencies`.
      gain: factor on the dimensions that turn, from `rotary_gain`.

    Returns:
      The shape and dtype of `x`.

    Example:
      >>> x = jnp.ones((1, 1, 1, 2))
      >>> rotate(x, jnp.zeros((1, 1), int), np.ones(1, np.float32)).ravel().tolist()
      [1.0, 1.0]
    """
    half = len(frequencies)
    angles = (
        positions[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    )
    cos, sin = gain * jnp.cos(angles), gain * jnp.sin(angles)
    first, second, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jax.lax.convert_element_type(jnp.concatenate(turned, axis=-1), x.dtype)
