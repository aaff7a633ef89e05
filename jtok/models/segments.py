"""Runs of layers of a decoder: what stops early, or goes on from where it stopped.

The residual stream between two layers is all that the rest of a decoder needs, so a
model can be run in segments, each with a cache of its own. The first layers, with the
model's own final norm and unembedding, are a model again.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.errors import ArgumentTypeError, check
from jtok.models import model as core
from jtok.models.cache import Cache, after

__all__ = ["cut_layers", "embed_ids", "final_norm", "run_segment", "segment_config"]

PyTree = Any


def cut_layers(model: core.Model, num_layers: int) -> core.Model:
    """A decoder's first layers, with its own embedding, final norm and unembedding.

    Args:
      model: a transformer decoder, layers split or stacked.
      num_layers: how many to keep, 1 to all.

    Returns:
      `Model` that shares the arrays of `model` (stacked layers are sliced).

    Raises:
      ArgumentError: no layer, or more than there are.
      ArgumentTypeError: another kind of model.

    Example:
      >>> from jtok.testing import tiny_model
      >>> cut_layers(tiny_model(), 1).config.num_layers
      1
    """
    config = segment_config(model.config, 0, num_layers)
    layers = _layers(model.params["layers"], 0, num_layers)
    params = {**model.params, "layers": layers}
    return dataclasses.replace(model, params=params, config=config)


def segment_config(config: Any, first: int, last: int) -> nn.DecoderConfig:
    """The description of the layers `first .. last - 1` as a decoder of their own.

    Args:
      config: a `DecoderConfig`.
      first: 0-based, the first layer.
      last: one past the last.

    Returns:
      `DecoderConfig` of `last - first` layers.

    Raises:
      ArgumentError: no such layers.
      ArgumentTypeError: another kind of configuration.

    Example:
      >>> from jtok.testing import tiny_config
      >>> segment_config(tiny_config(), 1, 2).num_layers
      1
    """
    if not isinstance(config, nn.DecoderConfig):
        raise ArgumentTypeError(
            f"model: got a {type(config).__name__}, expected one with a DecoderConfig."
        )
    most = config.num_layers
    good = 0 <= first < last <= most
    expected = f"1 to {most}, the model's" if first == 0 else f"within {most} layers"
    got = last if first == 0 else (first, last)
    check(good, "num_layers", got, expected)
    dense = tuple(i - first for i in config.dense_layers if first <= i < last)
    return dataclasses.replace(
        config,
        num_layers=last - first,
        windows=config.windows[first:last],
        dense_layers=dense,
    )


def embed_ids(
    params: PyTree,
    config: nn.DecoderConfig,
    ids: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
) -> Float[Array, "batch seq dim"]:
    """What the first layer reads.

    Args:
      params: of the model.
      config: the model's.
      ids: `[batch, seq]` int32.
      positions: `[batch, seq]` int32.

    Returns:
      `[batch, seq, dim]` in the model's dtype.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, ids = tiny_model(), jnp.array([[1, 2]])
      >>> embed_ids(model.params, model.config, ids, ids).shape
      (1, 2, 32)
    """
    return core._embed(params, config, ids, positions)


def run_segment(
    params: PyTree,
    config: nn.DecoderConfig,
    x: Float[Array, "batch seq dim"],
    positions: Int[Array, "batch seq"],
    *,
    first: int,
    last: int,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
    cache: Cache | None = None,
) -> tuple[Float[Array, "batch seq dim"], Cache | None]:
    """Runs the layers `first .. last - 1` on a residual stream.

    Args:
      params: of the whole model, layers split; without a cache maybe stacked.
      config: the whole model's.
      x: `[batch, seq, dim]` what the layer before gave, without a norm.
      positions: `[batch, seq]` int32.
      first: 0-based, the first layer.
      last: one past the last.
      mask: as `Model` takes it; None is causal.
      cache: of these layers only, see `init_cache(segment_config(...))`.

    Returns:
      `[batch, seq, dim]` the stream after them, without a norm, and the cache with
      the new tokens pending, or None.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, ids = tiny_model(), jnp.array([[1, 2]])
      >>> x = embed_ids(model.params, model.config, ids, ids)
      >>> x, _ = run_segment(model.params, model.config, x, ids, first=0, last=2)
      >>> x.shape
      (1, 2, 32)
    """
    batch, seq = x.shape[:2]
    allow = core._allow(mask, batch, seq, config.causal)
    layers = _layers(params["layers"], first, last)
    run = core._unrolled if isinstance(layers, tuple) else core._scanned
    where = core._Where(positions, allow, None, None, None)
    part = segment_config(config, first, last)
    x, pending, _ = run(layers, part, x, where, None, cache, core.Taps())
    if cache is None:
        return x, None
    return x, dataclasses.replace(cache, pending=after(x, pending))


def final_norm(
    params: PyTree, config: nn.DecoderConfig, x: Float[Array, "batch seq dim"]
) -> Float[Array, "batch seq dim"]:
    """The model's last norm, which stands before its unembedding.

    Args:
      params: of the model.
      config: the model's.
      x: `[batch, seq, dim]` residual stream after any layer.

    Returns:
      `[batch, seq, dim]` what the unembedding is compared with.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model()
      >>> final_norm(model.params, model.config, jnp.ones((1, 2, 32))).shape
      (1, 2, 32)
    """
    norm = nn.Norm(config)
    hidden: Any = norm.apply({"params": params["final_norm"]}, x)
    return hidden


def _layers(layers: PyTree, first: int, last: int) -> PyTree:
    if isinstance(layers, tuple):
        return layers[first:last]
    return jax.tree.map(lambda x: x[first:last], layers)
