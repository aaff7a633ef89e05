"""One layer of a decoder at a time, for what changes the tokens between layers."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.errors import check
from jtok.models import model as core

__all__ = ["LayerOutput", "embed_inputs", "run_layer"]

PyTree = Any
Attend = Callable[[Array, Array, Array], Array]


class LayerOutput(NamedTuple):
    """What a layer gives.

    Attributes:
      x: `[batch, seq, dim]` the residual stream after it.
      query: `[batch, seq, heads, head_dim]`, positions applied.
      key: `[batch, kv_heads, seq, head_dim]`, positions applied.
      value: `[batch, kv_heads, seq, head_dim]`.
    """

    x: Array
    query: Array
    key: Array
    value: Array


def embed_inputs(
    params: PyTree,
    config: nn.DecoderConfig,
    inputs: Int[Array, "batch seq"] | Float[Array, "batch seq dim"],
    positions: Int[Array, "batch seq"],
    *,
    gates: Float[Array, "batch seq"] | None = None,
) -> tuple[Float[Array, "batch seq dim"], Float[Array, "batch seq"] | None]:
    """What the first layer reads of ids or vectors, and the gates of all layers.

    Args:
      params: of the model.
      config: the model's.
      inputs: as `Model` takes them.
      positions: `[batch, seq]` int32.
      gates: as `Model` takes them.

    Returns:
      `[batch, seq, dim]` in the model's dtype, and `gates` for `run_layer`.

    Raises:
      ArgumentError: a wrong shape.
      ArgumentTypeError: neither ids nor vectors.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, ids = tiny_model(), jnp.array([[1, 2]])
      >>> embed_inputs(model.params, model.config, ids, ids)[0].shape
      (1, 2, 32)
    """
    core.check_inputs(config, inputs, core.Taps(), nn.SITES)
    gates = core._gates(params, config, inputs, gates)
    return core._embed(params, config, inputs, positions), gates


def run_layer(
    params: PyTree,
    config: nn.DecoderConfig,
    layer: int,
    x: Float[Array, "batch seq dim"],
    positions: Int[Array, "batch seq"],
    *,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
    attend: Attend | None = None,
    gates: Float[Array, "batch seq"] | None = None,
) -> LayerOutput:
    """Runs one layer on a residual stream, and gives its queries, keys and values.

    Args:
      params: of the whole model, layers split.
      config: the whole model's.
      layer: 0-based.
      x: `[batch, seq, dim]` what the layer before gave, without a norm.
      positions: `[batch, seq]` int32; need not be neighbours.
      mask: as `Model` takes it; a two-dimensional one is causal by the order of the
        rows, too. None is causal.
      attend: in place of attention among the rows of `x`: `(query, key, value) ->
        mixed`, shaped as in `LayerOutput`; `mixed` is as `query`.
      gates: as `Model` takes them.

    Returns:
      `LayerOutput`.

    Raises:
      ArgumentError: no such layer, or layers that are stacked.

    Example:
      >>> from jtok.models import embed_ids
      >>> from jtok.testing import tiny_model
      >>> model, ids = tiny_model(), jnp.array([[1, 2]])
      >>> x = embed_ids(model.params, model.config, ids, ids)
      >>> run_layer(model.params, model.config, 0, x, ids).x.shape
      (1, 2, 32)
    """
    layers = params["layers"]
    split = isinstance(layers, tuple)
    check(split, "params", "stacked layers", "split ones: jtok.models.split_layers")
    most = config.num_layers
    check(0 <= layer < most, "layer", layer, f"0 to {most - 1}")
    window = config.window(layer)
    if attend is None:
        batch, seq = x.shape[:2]
        allow = core._allow(mask, batch, seq, config.causal)
        where = core._Where(positions, allow, gates, None, None)
        among = core._attend(config, where, None, None, None, window)
    else:
        where = core._Where(positions, None, gates, None, None)
        among = lambda q, k, v: (attend(q, k, v), (k, v))
    block = nn.Block(config, config.sparse(layer))
    taps = core.Taps(("query",))
    x, (key, value), read = core._run_block(
        layers[layer], layer, block, x, where, among, taps, window is not None
    )
    return LayerOutput(x, read["query"], key, value)
