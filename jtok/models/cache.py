"""The cache of a transformer decoder: keys and values, pending and committed."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from jtok import nn
from jtok.errors import ArgumentError, check
from jtok.models.backbone import backbone_of
from jtok.ops.attention import write_rows
from jtok.ops.sharding import constrain

__all__ = ["Cache", "commit", "init_cache"]

PyTree = Any


@struct.dataclass
class Cache:
    """Keys and values of the committed tokens, one pair of buffers a layer.

    Attributes:
      layers: per layer `(key, value)`, each `[batch, kv_heads, capacity, head_dim]`;
        slots at `length` and above are masked, and must be finite.
      length: `[batch]` int32 committed tokens.
      pending: per layer `(key, value)` of the last call's nodes,
        `[batch, kv_heads, nodes, head_dim]`, until `commit` keeps some; None before.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    length: jax.Array
    pending: tuple[tuple[jax.Array, jax.Array], ...] | None = None

    @property
    def capacity(self) -> int:
        """Slots a row."""
        return self.layers[0][0].shape[2]


def init_cache(config: Any, batch: int, capacity: int) -> PyTree:
    """An empty cache.

    Args:
      config: the model's.
      batch: rows.
      capacity: slots a row; a recurrent model needs none.

    Returns:
      `Cache` of zeros in the model's dtype, on the current mesh; `MambaCache` for a
      Mamba model.

    Example:
      >>> from jtok.testing import tiny_model
      >>> init_cache(tiny_model().config, 2, 16).capacity
      16
    """
    return backbone_of(config).init_cache(config, batch, capacity)


def init_decoder_cache(config: nn.DecoderConfig, batch: int, capacity: int) -> Cache:
    """`init_cache` of a transformer decoder."""
    check(batch >= 1, "batch", batch, "at least 1")
    check(capacity >= 1, "capacity", capacity, "at least 1")
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)

    def buffer() -> Array:
        return laid_out(jnp.zeros(shape, config.dtype))

    layers = tuple((buffer(), buffer()) for _ in range(config.num_layers))
    return Cache(layers, jnp.zeros(batch, jnp.int32))


def laid_out(part: Array) -> Array:
    """Keys or values as the mesh holds them, wherever the loop reads or writes them.

    Where some place leaves it open, the compiler may choose another layout there and
    gather the whole cache at every step.
    """
    return constrain(part, "batch", "kv_heads", "seq", "head_dim")


def commit(
    cache: PyTree,
    path: Int[Array, "batch path"],
    count: Int[Array, " batch"],
) -> PyTree:
    """Keeps chosen nodes of the last call, in path order: their keys and values.

    Of a recurrent model it keeps the state after them; the path is then a chain.

    Args:
      cache: with nodes pending.
      path: `[batch, path]` int32 node ids; entries from `count` on are ignored.
      count: `[batch]` int32 entries to keep; 0 leaves a row as it is. The caller sees
        to it that `length + path` stays within the capacity.

    Returns:
      The cache, `length` grown by `count`, nothing pending.

    Raises:
      ArgumentError: nothing is pending.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model()
      >>> cache = init_cache(model.config, 1, 16)
      >>> cache = model(jnp.array([[1, 2, 3]]), cache=cache).cache
      >>> commit(cache, jnp.array([[0, 1, 2]]), jnp.array([3])).length.tolist()
      [3]
    """
    if not isinstance(cache, Cache):
        return cache.commit(path, count)
    if cache.pending is None:
        raise ArgumentError("cache: got one without pending nodes; run a step first.")
    chosen = jnp.maximum(path, 0)[:, None, :, None]

    def keep(buffer: Array, nodes: Array) -> Array:
        rows = jnp.take_along_axis(nodes, chosen, axis=2)
        kept = write_rows(laid_out(buffer), laid_out(rows), cache.length)
        return laid_out(kept)

    layers = tuple(
        (keep(key, new_key), keep(value, new_value))
        for (key, value), (new_key, new_value) in zip(
            cache.layers, cache.pending, strict=True
        )
    )
    return Cache(layers, cache.length + count)


def after(x: Array, pending: PyTree) -> PyTree:
    """The same keys and values, which XLA cannot know before it has `x`.

    `commit` writes into the buffers that the layers read. Where nothing orders the
    two, XLA may write first, into a copy of the whole cache, at every step; it drops
    an optimization barrier too early to be of use. So a row with a NaN in its output
    gets NaN to keep.
    """
    broken = jnp.isnan(x[:, 0, 0])[:, None, None, None]
    return jax.tree.map(lambda part: jnp.where(broken, jnp.nan, part), pending)
