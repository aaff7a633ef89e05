"""Layers that keep fewer tokens: what a plan changes of what is known of them.

A compressor is any hashable callable that looks at a layer and says which tokens become
one (`jtok.ops.plan.Plan`), or None to leave them; `jtok.compress.schedule` makes them.
Models call it and know nothing else of it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.errors import ArgumentError
from jtok.models.compressor import Compressor, LayerView
from jtok.models.model import Output
from jtok.ops.plan import Plan, identity_plan

__all__ = ["CompressedOutput", "Tokens", "size_bias", "squeeze"]


@struct.dataclass
class CompressedOutput(Output):
    """What a forward pass with `compress=` returns beside an `Output`.

    Attributes:
      plan: from the tokens that entered the first layer to the rows of `hidden`.
    """

    plan: Plan


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
