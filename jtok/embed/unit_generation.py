"""Writing with the unit-level baseline: one loop on the device, with a cache.

Source: Thawani et al. 2023, arXiv 2310.11628. Differs: its code computes everything
again for every unit.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jtok.embed.word_config import UnitConfig, check_units
from jtok.embed.word_pooled import unit_vectors
from jtok.errors import check
from jtok.nn.word_pooling import CausalBlock, Mix, layer_norm
from jtok.ops import Draw, Want, readout, row_keys
from jtok.ops.segments import attend

__all__ = ["generate_units"]

PyTree = Any
Cache = tuple[tuple[Array, Array], ...]


def generate_units(
    params: PyTree,
    config: UnitConfig,
    context: Int[Array, "batch seq"] | Int[np.ndarray, "batch seq"],
    num_units: int,
    *,
    counts: Sequence[int]
    | Int[Array, " batch"]
    | Int[np.ndarray, " batch"]
    | None = None,
    temperature: float | Sequence[float] = 0.0,
    seeds: Sequence[int] | None = None,
) -> Int[Array, "batch new"]:
    """Writes the next units of every row.

    Noise depends on a row's seed and the unit's place alone, not on batch mates or
    padding. Compiled once for each shape.

    Args:
      params: the parameters.
      config: the sizes; context and new units together are at most `config.length`.
      context: `[batch, seq]` ids that are there; padding comes last.
      num_units: how many to write, the same for every row.
      counts: `[batch]` units of each row, at least 1; None for all.
      temperature: of all rows or of each; 0 takes the most likely unit, ties to the
        lower id.
      seeds: one a row; None takes 0, 1, 2, ...

    Returns:
      `[batch, num_units]` int32.

    Raises:
      ArgumentError: no room for the units, an empty row, a negative temperature, or an
        id outside the alphabet.

    Source: Thawani et al. 2023, arXiv 2310.11628: the baseline of section 4.

    Example:
      >>> config = UnitConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_units(config, jax.random.key(0))
      >>> generate_units(params, config, np.array([[3, 4]]), 5).shape
      (1, 5)
    """
    batch, seq = context.shape
    held = np.full(batch, seq) if counts is None else np.asarray(counts)
    temps = np.broadcast_to(np.asarray(temperature, np.float32), (batch,))
    keys = np.arange(batch) if seeds is None else np.asarray(seeds)
    check(num_units >= 1, "num_units", num_units, "at least 1")
    check(held.shape == (batch,), "counts", held.shape, f"{batch}, one a row")
    check(keys.shape == (batch,), "seeds", keys.shape, f"{batch}, one a row")
    good = bool(((held >= 1) & (held <= seq)).all())
    check(good, "counts", held.tolist(), f"1 to {seq} units a row")
    check(bool((temps >= 0).all()), "temperature", temps.tolist(), "at least 0")
    most = config.length - seq
    check(num_units <= most, "num_units", num_units, f"at most {most} after {seq}")
    check_units(config, jnp.asarray(context))
    draw = Draw(
        keys=row_keys(jnp.asarray(keys)), start=jnp.zeros(batch, jnp.int32),
        depth=jnp.zeros((batch, 1), jnp.int32), temperature=jnp.asarray(temps),
    )  # fmt: skip
    return _write(
        params, jnp.asarray(context), jnp.asarray(held), draw, config, num_units
    )


@functools.partial(jax.jit, static_argnames=("config", "num_units"))
def _write(
    params: PyTree, context: Array, counts: Array, draw: Draw, config: UnitConfig,
    num_units: int,
) -> Array:  # fmt: skip
    batch, seq = context.shape
    stacked = params["main"]["layers"]
    layers = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(config.layers)]
    shape = (batch, seq + num_units, config.heads, config.width // config.heads)
    empty = jnp.zeros(shape, params["embed"]["units"].dtype)
    cache: Cache = ((empty, empty),) * config.layers
    states, cache = _steps(params, config, layers, context, counts * 0, cache)
    last = jnp.take_along_axis(states, (counts - 1)[:, None, None], axis=1)

    def one(carry: tuple[Array, Cache], index: Array) -> Any:
        hidden, cache = carry
        want = Want(draw=dataclasses.replace(draw, start=counts + index))
        chosen = readout(hidden, params["head"]["kernel"], want).choice
        chosen = chosen.astype(jnp.int32)
        place = counts + index
        hidden, cache = _steps(params, config, layers, chosen, place, cache)
        return (hidden, cache), chosen[:, 0]

    _, units = jax.lax.scan(one, (last, cache), jnp.arange(num_units))
    return units.T


def _steps(
    params: PyTree, config: UnitConfig, layers: list[PyTree], units: Array,
    start: Array, cache: Cache,
) -> tuple[Array, Cache]:  # fmt: skip
    """States of new units at the places from `start` on, which go into the cache.

    What padding wrote there is seen by nobody: a unit sees no later place, and its own
    is written first.
    """
    places = start[:, None] + jnp.arange(units.shape[1])[None]
    x = unit_vectors(params, units)
    if config.positions:
        table = params["embed"]["unit_positions"]
        x = x + jnp.take(table, places, axis=0, mode="clip")
    block = CausalBlock(config.heads, config.dropout, config.dtype)
    kept = []
    for layer, old in zip(layers, cache, strict=True):
        made: Any = block.apply({"params": layer}, x, _over(old, places))
        x, held = made
        kept.append(held)
    return layer_norm(params["main"]["final_norm"], x), tuple(kept)


def _over(old: tuple[Array, Array], places: Array) -> Mix:
    put = jax.vmap(
        lambda rows, new, at: jax.lax.dynamic_update_slice_in_dim(rows, new, at, axis=0)
    )

    def mix(query: Array, key: Array, value: Array, drop: Any) -> tuple[Array, Any]:
        keys, values = (
            put(rows, new.astype(rows.dtype), places[:, 0])
            for rows, new in zip(old, (key, value))
        )
        allow = jnp.arange(keys.shape[1])[None, None] <= places[..., None]
        return attend(query, keys, values, allow, drop=drop), (keys, values)

    return mix
