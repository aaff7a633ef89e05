"""What `compress=` takes: it sees a layer and says which tokens become one."""

from typing import Any, Literal, Protocol, runtime_checkable

import jax
from flax import struct

from jtok.errors import ArgumentTypeError, check
from jtok.models.backbone import backbone_of
from jtok.ops.plan import Plan

__all__ = ["Compressor", "LayerView", "check_compressor"]

_WHERE = ("attention", "layer")
_HOW = ("weighted", "mean", "sum", "max", "prune")


@struct.dataclass
class LayerView:
    """What a compressor sees of a layer.

    Attributes:
      x: `[batch, seq, dim]` the residual stream where tokens may merge.
      query: `[batch, seq, heads, head_dim]` of this layer's attention, rotated where
        the model rotates.
      key: `[batch, seq, heads, head_dim]`.
      valid: `[batch, seq]` bool; others are padding.
      size: `[batch, seq]` float32 original tokens that each one stands for.
      position: `[batch, seq, 1]` float32 where each stood; the mean of merged ones.
      layer: number of the layer (static).
      num_layers: of the model (static).
      prefix: first tokens that are no part of the content: class, registers (static).
      scale: factor on the attention scores (static).
    """

    x: jax.Array
    query: jax.Array
    key: jax.Array
    valid: jax.Array
    size: jax.Array
    position: jax.Array
    layer: int = struct.field(pytree_node=False)
    num_layers: int = struct.field(pytree_node=False)
    prefix: int = struct.field(pytree_node=False, default=0)
    scale: float = struct.field(pytree_node=False, default=1.0)


@runtime_checkable
class Compressor(Protocol):
    """What `compress=` takes: a hashable callable with four attributes.

    Attributes:
      where: tokens merge after a layer's "attention" (before its MLP) or after the
        whole "layer".
      how: what becomes of the stream: as `Plan.merge` says, or "prune".
      proportional: later attention counts a token as often as its size says.
      restart: sizes are 1 again in every layer.

    Example:
      >>> merging = jtok.compress.schedule(jtok.compress.tome, remove=2)
      >>> isinstance(merging, Compressor), merging.where
      (True, 'attention')
    """

    where: Literal["attention", "layer"]
    how: Literal["weighted", "mean", "sum", "max", "prune"]
    proportional: bool
    restart: bool

    def __call__(self, view: LayerView, /) -> Plan | None:
        """Which tokens of the layer become one."""
        ...


def check_compressor(compress: Any, config: Any = None) -> None:
    """Refuses what is no `Compressor`, and one for a model that has no place for it.

    Args:
      compress: what was given; None is none.
      config: of the model that it is for; None where there is none yet.

    Raises:
      ArgumentError: a kind of model that does not compress, or fields out of range.
      ArgumentTypeError: no `Compressor`.
    """
    if compress is None:
        return
    if not callable(compress) or not hasattr(compress, "where"):
        raise ArgumentTypeError(
            f"compress: got {type(compress).__name__}, expected None or a Compressor "
            "such as jtok.compress.schedule makes."
        )
    what = "None: decoders of text prune by jtok.compress.prefill"
    fits = config is None or backbone_of(config).compresses
    check(fits, "compress", "a compressor", what)
    where, how = compress.where, compress.how
    check(where in _WHERE, "compress.where", where, f"one of {_WHERE}")
    check(how in _HOW, "compress.how", how, f"one of {_HOW}")
