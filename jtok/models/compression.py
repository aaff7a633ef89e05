"""Layers that keep fewer tokens: what a compressor sees, and what its plan changes.

A compressor is any hashable callable that looks at a layer and says which tokens become
one (`jtok.ops.plan.Plan`), or None to leave them; `jtok.compress.schedule` makes them.
Models call it and know nothing else of it.
"""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models.backbone import backbone_of
from jtok.models.model import Model, Output, Taps
from jtok.ops.plan import Plan, identity_plan

__all__ = [
    "CompressedOutput",
    "CompressibleModel",
    "Compressor",
    "LayerView",
    "Tokens",
    "check_compressor",
    "model_of",
    "size_bias",
    "squeeze",
]

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


@struct.dataclass
class CompressedOutput(Output):
    """What a forward pass with `compress=` returns beside an `Output`.

    Attributes:
      plan: from the tokens that entered the first layer to the rows of `hidden`.
    """

    plan: Plan


@struct.dataclass
class CompressibleModel(Model):
    """A `Model` whose layers may keep fewer tokens: it also takes `compress=`.

    Attributes:
      compress: what layers do where a call says nothing else; None keeps all tokens.
    """

    compress: Any = struct.field(pytree_node=False, default=None)

    def __call__(
        self,
        inputs: Any,
        *,
        positions: Any = None,
        mask: Any = None,
        bias: Any = None,
        cache: Any = None,
        taps: Any = None,
        gates: Any = None,
        logits: Any = "all",
        compress: Any = "own",
    ) -> Output:
        """Runs the model as `Model` does.

        Args:
          inputs: as `Model` takes them, or what this kind of model reads (images).
          positions: as all that follows, see `Model`.
          mask: `[batch, seq]` True for real tokens.
          bias: added to the attention scores.
          cache: of models that have one.
          taps: what to read and edit; with a compressor (site, layer) pairs.
          gates: of adapters.
          logits: which rows to read out.
          compress: a `Compressor`, None for none, "own" for the model's own.

        Returns:
          `Output`; with a compressor `CompressedOutput`.

        Raises:
          ArgumentError: as `Model`, or a compressor with stacked layers.
          ArgumentTypeError: `compress` is no `Compressor`.

        Example:
          >>> from jtok.testing import tiny_model
          >>> model = tiny_model(family="bert")
          >>> model(jnp.array([[1, 2, 3]]), compress=None).hidden.shape
          (1, 3, 32)
        """
        own = isinstance(compress, str) and compress == "own"
        used = self.compress if own else compress
        check_compressor(used)
        return backbone_of(self.config).forward(
            self.params,
            self.config,
            inputs,
            positions=positions,
            mask=mask,
            bias=bias,
            cache=cache,
            taps=taps if isinstance(taps, Taps) else Taps(tuple(taps or ())),
            gates=gates,
            logits=logits,
            compress=used,
        )


def model_of(params: Any, config: Any, compress: Any = None, **parts: Any) -> Model:
    """A model of the class that its kind has.

    Args:
      params: its parameters.
      config: its configuration.
      compress: what layers do where a call says nothing else.
      **parts: vocabulary, processor, generation_config.

    Returns:
      `CompressibleModel` where the kind compresses, else `Model`.

    Raises:
      ArgumentError: a compressor for a kind that has no place for one.
      ArgumentTypeError: `compress` is no `Compressor`.
    """
    check_compressor(compress)
    if backbone_of(config).compresses:
        return CompressibleModel(params, config, compress=compress, **parts)
    what = "None: decoders of text prune by jtok.compress.prefill"
    check(compress is None, "compress", "a compressor", what)
    return Model(params, config, **parts)


def check_compressor(compress: Any) -> None:
    """Refuses what is no `Compressor`; None is none."""
    if compress is None:
        return
    if not callable(compress) or not hasattr(compress, "where"):
        raise ArgumentTypeError(
            f"compress: got {type(compress).__name__}, expected None or a Compressor "
            "such as jtok.compress.schedule makes."
        )
    check(
        compress.where in _WHERE, "compress.where", compress.where, f"one of {_WHERE}"
    )
    check(compress.how in _HOW, "compress.how", compress.how, f"one of {_HOW}")


class Tokens(NamedTuple):
    """What layers know of the tokens between them.

    Attributes:
      positions: `[batch, seq]` int32; a merged row has that of the token it stands for.
      mask: `[batch, seq]` bool, `[batch, seq, seq]` bool, or None.
      bias: `[#batch, #heads, seq, seq]` added to the attention scores, or None.
      gates: `[batch, seq]` of adapters, or None.
      in_order: positions count from 0 without a gap (static).
      size: `[batch, seq]` float32 once tokens may have merged, else None.
      plan: from the first layer's tokens to these, or None.
    """

    positions: Array
    mask: Array | None = None
    bias: Array | None = None
    gates: Array | None = None
    in_order: bool = False
    size: Any = None
    plan: Any = None

    def started(self, batch: int, seq: int) -> "Tokens":
        """These tokens before any of them merged."""
        if self.mask is not None and self.mask.ndim == 3:
            raise ArgumentError(
                f"mask: got shape {self.mask.shape}, expected [batch, seq] beside "
                "compress: rows that merge have no row of such a mask."
            )
        size = jnp.ones((batch, seq), jnp.float32)
        position = self.positions.astype(jnp.float32)[..., None]
        plan = identity_plan(batch, seq, valid=self.mask, position=position)
        return self._replace(size=size, plan=plan)


def squeeze(
    compress: Compressor, view: LayerView, tokens: Tokens
) -> tuple[Array, Tokens]:
    """Lets a compressor act: the stream and what is known of it, with fewer rows."""
    plan = compress(view)
    if plan is None:
        return view.x, tokens
    size = None if compress.restart else tokens.size
    if compress.how == "prune":
        x, total = plan.prune(view.x), plan.size
    else:
        x, total = plan.merge(view.x, size, how=compress.how)
    at = jnp.maximum(plan.keep, 0)
    of_kept = lambda value: jnp.take_along_axis(value, at, axis=1)
    first: Plan = tokens.plan
    return x, Tokens(
        of_kept(tokens.positions),
        plan.valid,
        None if tokens.bias is None else _of_kept_pairs(tokens.bias, at),
        None if tokens.gates is None else of_kept(tokens.gates),
        False,
        jnp.ones_like(total) if compress.restart else total,
        first.then(plan),
    )


def _of_kept_pairs(bias: Array, at: Array) -> Array:
    """Biases between the tokens that rows stand for."""
    batch = at.shape[0]
    bias = jnp.broadcast_to(bias, (batch, *bias.shape[1:]))
    if bias.shape[2] > 1:
        bias = jnp.take_along_axis(bias, at[:, None, :, None], axis=2)
    return jnp.take_along_axis(bias, at[:, None, None, :], axis=3)


def size_bias(size: Array) -> Array:
    """What makes a key of size s weigh like s keys: `[batch, 1, 1, seq]` float32."""
    return jnp.log(jnp.maximum(size, 1e-6))[:, None, None, :]
