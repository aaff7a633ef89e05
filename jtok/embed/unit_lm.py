"""The baseline beside word pooling: the same blocks over bytes, characters or subwords.

Source: Thawani et al. 2023, arXiv 2310.11628. Differs from its code unless
`positions=False`: positions are added, and dropped out with the input.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.embed.word_config import UnitConfig, check_units
from jtok.embed.word_pooled import (
    causal,
    dropped,
    init_layers,
    masked,
    run_layers,
    split_key,
    unit_vectors,
)
from jtok.nn.word_pooling import CausalBlock, layer_norm
from jtok.ops.sharding import constrain

__all__ = ["init_units", "unit_hidden", "unit_logits"]

PyTree = Any


def init_units(config: UnitConfig, key: Array) -> PyTree:
    """Parameters as the paper's code starts with: normal(0, 0.02), positions 0.

    Args:
      config: the sizes.
      key: typed key.

    Returns:
      The tree of parameters, layers stacked on a leading axis.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code.

    Example:
      >>> params = init_units(UnitConfig(vocab_size=9, width=8), jax.random.key(0))
      >>> sorted(params)
      ['embed', 'head', 'main']
    """
    dtype, dim = config.dtype, config.width
    keys = jax.random.split(key, 3)
    table = lambda key: 0.02 * jax.random.normal(key, (config.vocab_size, dim), dtype)
    embed = {"units": table(keys[0])}
    if config.positions:
        embed["unit_positions"] = jnp.zeros((config.length, dim), dtype)
    layers = init_layers(_block(config), dim, config.layers, keys[1])
    norm = {"scale": jnp.ones(dim, dtype), "bias": jnp.zeros(dim, dtype)}
    return {
        "embed": embed,
        "main": {"layers": layers, "final_norm": norm},
        "head": {"kernel": table(keys[2])},
    }


def _block(config: UnitConfig) -> CausalBlock:
    return CausalBlock(config.heads, config.dropout, config.dtype)


def unit_hidden(
    params: PyTree,
    config: UnitConfig,
    units: Int[Array, "batch seq"],
    *,
    key: Array | None = None,
) -> Float[Array, "batch seq dim"]:
    """Hidden states that read out the unit behind each unit.

    Args:
      params: the parameters.
      config: the sizes.
      units: `[batch, seq]` ids; padding comes last and changes nothing before it.
      key: typed key of the dropout; None for none.

    Returns:
      `[batch, seq, dim]`.

    Raises:
      ArgumentError: more units than the model has positions, or an id outside the
        alphabet.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code with no prefixes.

    Example:
      >>> config = UnitConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_units(config, jax.random.key(0))
      >>> unit_hidden(params, config, jnp.ones((1, 3), int)).shape
      (1, 3, 8)
    """
    check_units(config, units)
    keys = split_key(key, 2)
    x = unit_vectors(params, constrain(units, "batch", None))
    if config.positions:
        x = x + params["embed"]["unit_positions"][None, : x.shape[1]]
        x = dropped(x, config.dropout, keys[0])
    x = run_layers(
        _block(config), params["main"]["layers"], x, masked(causal(x.shape[1])),
        keys[1], unroll=config.unroll,
    )  # fmt: skip
    return layer_norm(params["main"]["final_norm"], x)


def unit_logits(
    params: PyTree, config: UnitConfig, units: Int[Array, "batch seq"]
) -> Float[Array, "batch seq vocab"]:
    """Logits of the unit behind each unit.

    Args:
      params: the parameters.
      config: the sizes.
      units: as for `unit_hidden`.

    Returns:
      `[batch, seq, vocab]` float32.

    Raises:
      ArgumentError: as for `unit_hidden`.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code with no prefixes.

    Example:
      >>> config = UnitConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_units(config, jax.random.key(0))
      >>> unit_logits(params, config, jnp.ones((1, 3), int)).shape
      (1, 3, 9)
    """
    hidden = unit_hidden(params, config, units)
    weight = params["head"]["kernel"]
    return jnp.einsum("bsd,vd->bsv", hidden, weight, preferred_element_type="float32")
