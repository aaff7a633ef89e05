"""A network that corrects the pooled rows of a token's pieces; it starts as their pool.

Source: tokenkit's hypernetwork (the library beside Minixhofer et al. 2025, arXiv
2503.20083). Differs: rescalers are fitted where they are read, and attention works.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jtok import nn
from jtok.errors import check
from jtok.nn import PieceMixerConfig

__all__ = [
    "ResidualNetwork",
    "correct_rows",
    "fit_residual_rescalers",
    "init_residual_network",
]

PyTree = Any


@struct.dataclass
class ResidualNetwork:
    """Parameters of a network that corrects pooled rows.

    Attributes:
      params: the tree.
      config: static sizes.

    Example:
      >>> config = PieceMixerConfig(row_width=4, hidden=4, intermediate=8)
      >>> init_residual_network(config, jax.random.key(0)).config.pooling
      'first'
    """

    params: PyTree
    config: PieceMixerConfig = struct.field(pytree_node=False)


def init_residual_network(config: PieceMixerConfig, key: jax.Array) -> ResidualNetwork:
    """A network that returns the pooled rows exactly.

    Args:
      config: its sizes.
      key: typed key; consumed.

    Returns:
      `ResidualNetwork`.

    Source: tokenkit.

    Example:
      >>> config = PieceMixerConfig(row_width=4, hidden=4, intermediate=8)
      >>> network = init_residual_network(config, jax.random.key(0))
      >>> rows = jnp.ones((1, 2, 1, 4))
      >>> bool((correct_rows(network, rows, jnp.ones((1, 2), bool)) == 1).all())
      True
    """
    shape = (1, config.max_pieces, config.kinds, config.row_width)
    mask = jnp.ones(shape[:2], bool)
    params = jax.jit(nn.PieceMixer(config).init)(key, jnp.zeros(shape), mask)["params"]
    return ResidualNetwork(params, config)


def correct_rows(
    network: ResidualNetwork,
    rows: Float[Array, "tokens pieces kinds width"],
    mask: Bool[Array, "tokens pieces"],
) -> Float[Array, "tokens kinds width"]:
    """Rows of tokens from those of their pieces.

    Without attention and with the pooling "first" only the first piece is read.

    Args:
      network: the network.
      rows: `[tokens, pieces, kinds, width]`: input rows, and output rows if untied.
      mask: `[tokens, pieces]` True for real pieces; a token without any is finite.

    Returns:
      `[tokens, kinds, width]` float32.

    Raises:
      ArgumentError: rows of another shape, or more pieces than positions.

    Source: tokenkit. Differs: attention works.

    Example:
      >>> config = PieceMixerConfig(row_width=4, hidden=4, intermediate=8)
      >>> network = init_residual_network(config, jax.random.key(0))
      >>> correct_rows(network, jnp.ones((3, 2, 1, 4)), jnp.ones((3, 2), bool)).shape
      (3, 1, 4)
    """
    config = network.config
    shape = (config.kinds, config.row_width)
    check(rows.shape[2:] == shape, "rows", f"shape {rows.shape}", f"[..., {shape}]")
    most = config.max_pieces
    check(
        1 <= rows.shape[1] <= most, "rows", f"shape {rows.shape}", f"1..{most} pieces"
    )
    made: Any = nn.PieceMixer(config).apply({"params": network.params}, rows, mask)
    return made


def fit_residual_rescalers(
    network: ResidualNetwork, source: Float[Array, "source kinds width"]
) -> ResidualNetwork:
    """Makes rows come in with mean 0 and deviation 1, and go out as they were.

    Args:
      network: the network.
      source: `[source, kinds, width]` rows of the source vocabulary.

    Returns:
      The network; it still returns pooled rows until it is trained.

    Raises:
      ArgumentError: rows of another shape.

    Source: tokenkit. Differs: there the fitted values are never read.

    Example:
      >>> config = PieceMixerConfig(row_width=4, hidden=4, intermediate=8)
      >>> network = init_residual_network(config, jax.random.key(0))
      >>> fitted = fit_residual_rescalers(network, jnp.arange(8.0).reshape(2, 1, 4))
      >>> fitted.params["out_rescaler"]["b"].tolist()
      [[2.0, 3.0, 4.0, 5.0]]
    """
    config = network.config
    shape = (config.kinds, config.row_width)
    check(source.shape[1:] == shape, "source", f"shape {source.shape}", f"[*, {shape}]")
    wide = source.astype(jnp.float32)
    mean, deviation = wide.mean(axis=0), wide.std(axis=0) + 1e-8
    given = {"w": (1 / deviation)[None], "b": (-mean / deviation)[None]}
    out = {"w": deviation, "b": mean}
    params = {**network.params, "in_rescaler": given, "out_rescaler": out}
    return dataclasses.replace(network, params=params)
