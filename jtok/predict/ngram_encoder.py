"""An encoder, and read-only queries through all of its layers.

Source: Xiao et al. 2021, arXiv 2010.12148, section 3.2; the released encoder.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.errors import check
from jtok.ops import attention, query_attention
from jtok.ops.sharding import constrain

__all__ = ["GramStates", "encode_with_queries"]

PyTree = Any


class GramStates(NamedTuple):
    """Hidden states.

    Attributes:
      left: `[batch, left, dim]` of the sequence.
      fine: `[batch, fine, dim]` of the queries, or None.
    """

    left: jax.Array
    fine: jax.Array | None


def encode_with_queries(
    params: PyTree,
    config: nn.EncoderConfig,
    left: Float[Array, "batch left dim"],
    left_mask: Bool[Array, "batch left"],
    *,
    types: Int[Array, "batch left"] | None = None,
    queries: Float[Array, "batch fine dim"] | None = None,
    places: Int[Array, "batch fine"] | None = None,
    order: Int[Array, "batch fine"] | None = None,
) -> GramStates:
    """Runs an encoder on a sequence and on queries that read it at every layer.

    The sequence never sees the queries, and they do not see each other. Relative
    positions count from position ids, so a query is as near to its context as the mask
    at its place; the first token, [CLS], has distances of its own.

    Args:
      params: of the encoder: `embed`, `layers` (split or stacked) and, where it has
        one, `relative`.
      config: of the encoder.
      left: `[batch, left, dim]` rows of the embedding, at positions 0, 1, ...
      left_mask: `[batch, left]` bool, False is padding.
      types: `[batch, left]` int32; None is 0.
      queries: `[batch, fine, dim]` rows of the queries, or None.
      places: `[batch, fine]` int32 positions of the queries, below `left`.
      order: `[batch, fine]` int32, what relative positions count instead; the official
        code takes the index in the sequence with the queries at its end.

    Returns:
      `GramStates`.

    Raises:
      ArgumentError: queries without places, or a sequence beyond the positions.

    Source: arXiv 2010.12148, section 3.2; the released encoder. Differs: `order`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, mask = tiny_model(family="bert"), jnp.ones((1, 4), bool)
      >>> out = jax.eval_shape(lambda x: encode_with_queries(
      ...     model.params, model.config, x, mask, queries=x[:, :2],
      ...     places=jnp.array([[1, 1]])), jnp.ones((1, 4, 32)))
      >>> out.fine.shape
      (1, 2, 32)
    """
    batch, size = left.shape[:2]
    good = size <= config.max_positions
    check(good, "left", f"{size} tokens", f"at most {config.max_positions}")
    given = queries is None or places is not None
    check(given, "places", None, "positions beside queries")
    positions = jnp.broadcast_to(jnp.arange(size)[None], (batch, size))
    types = jnp.zeros((batch, size), jnp.int32) if types is None else types
    x = _embed(params["embed"], config, left, positions, types)
    y = None
    if queries is not None and places is not None:
        own_types = jnp.take_along_axis(types, places, axis=1)
        y = _embed(params["embed"], config, queries, places, own_types)
        order = places if order is None else order
    biases = _biases(params, config, size, order)
    allow = jnp.broadcast_to(left_mask[:, None], (batch, size, size))
    block = nn.EncoderBlock(config)

    def layer(carry: tuple[Array, Any], weights: PyTree) -> tuple[Any, None]:
        x, y = carry
        kept: list[tuple[Array, Array]] = []

        def attend(query: Array, key: Array, value: Array) -> Array:
            kept.append((key, value))
            return attention(
                query, key, value, allow, scale=config.score_scale, bias=biases.left
            )

        def read(query: Array, key: Array, value: Array) -> Array:
            return query_attention(
                query, key, value, *kept[0], left_mask,
                scale=config.score_scale, bias=biases.fine, own_bias=biases.own,
            )  # fmt: skip

        x = _apply(block, weights, x, positions, attend)
        if y is not None:
            y = _apply(block, weights, y, places, read)
        return (x, y), None

    return GramStates(*_through(layer, (x, y), params["layers"]))


def _apply(
    block: nn.EncoderBlock, weights: PyTree, x: Array, positions: Any, attend: Callable
) -> Array:
    tap = lambda _, value: value
    made: Any = block.apply({"params": weights}, x, positions, attend, tap)
    return constrain(made, "batch", "seq", "embed")


def _through(layer: Callable, carry: Any, layers: PyTree) -> Any:
    if isinstance(layers, tuple):
        for weights in layers:
            carry, _ = layer(carry, weights)
        return carry
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    body = jax.checkpoint(layer, policy=keep, prevent_cse=False)
    return jax.lax.scan(body, carry, layers)[0]


def _embed(
    embed: PyTree, config: nn.EncoderConfig, rows: Array, positions: Array, types: Array
) -> Array:
    x = rows.astype(config.dtype)
    if "types" in embed:
        x = x + embed["types"].at[types].get(mode="clip")
    if "tasks" in embed:
        x = x + jnp.broadcast_to(embed["tasks"][0], x.shape)
    places = positions + config.position_offset
    x = x + embed["positions"].at[places].get(mode="clip")
    if config.embed_norm:
        made: Any = nn.EncoderNorm(config).apply({"params": embed["norm"]}, x)
        x = made
    return constrain(x, "batch", "seq", "embed")


class _Biases(NamedTuple):
    """Of the sequence `[1, heads, left, left]`, of the queries, of their own key."""

    left: Array | None = None
    fine: Array | None = None
    own: Array | None = None


def _biases(
    params: PyTree, config: nn.EncoderConfig, size: int, order: Array | None
) -> _Biases:
    if config.relative is None:
        return _Biases()
    table = params["relative"]["table"].astype(jnp.float32)
    total = config.relative_buckets
    index = np.arange(size)

    def of(offsets: Any, query_is_cls: Any) -> Array:
        near = nn.relative_buckets(
            offsets, num_buckets=total, max_distance=config.relative_distance,
            upper="earlier",
        )  # fmt: skip
        rows = nn.reset_buckets(near, query_is_cls, index == 0, num_buckets=total)
        return jnp.moveaxis(table[rows], -1, -3)

    left = of(index[None, :] - index[:, None], index == 0)[None]
    if order is None:
        return _Biases(left)
    fine = of(index[None, None, :] - order[:, :, None], jnp.zeros(order.shape, bool))
    return _Biases(left, fine, table[0][None, :, None])
