"""Rotary position embeddings and their scalings."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.errors import ArgumentError

__all__ = ["rotary_frequencies", "rotate"]


def rotary_frequencies(
    dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Angular frequency of every pair of dimensions, in radians a position.

    Args:
      dim: number of rotated dimensions, even.
      theta: base.
      scaling: None, or the `rope_type` "default", "linear" (with `factor`) or "llama3"
        (with `factor`, `low_freq_factor`, `high_freq_factor`,
        `original_max_position_embeddings`).

    Returns:
      `[dim // 2]` float32, highest first.

    Raises:
      ArgumentError: an unknown `rope_type`.

    Source: Su et al. 2021, arXiv 2104.09864, section 3.4; the llama-3 scaling as in
    the Llama 3.1 model card.

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
    elif kind != "default":
        raise ArgumentError(
            f"rope_type: got {kind!r}, expected 'default', 'linear' or 'llama3'."
        )
    return frequencies.astype(np.float32)


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (share + (1.0 - share) / factor)


def rotate(
    x: Float[Array, "batch seq heads head_dim"],
    positions: Int[Array, "batch seq"],
    frequencies: np.ndarray,
) -> Float[Array, "batch seq heads head_dim"]:
    """Rotates halves of every head by the position's angles, in float32.

    Args:
      x: `[batch, seq, heads, head_dim]`; only the first `2 * len(frequencies)`
        dimensions turn.
      positions: `[batch, seq]` int32, 0-based.
      frequencies: `[rotated // 2]` from `rotary_frequencies`.

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
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jax.lax.convert_element_type(jnp.concatenate(turned, axis=-1), x.dtype)
