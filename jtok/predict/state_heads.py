"""Heads that read several next tokens out of one state of the target.

Each head is a stack of residual blocks on the last state and a readout. They know
nothing of the tokens in between, so all drafts of one level are the same: the baseline
of drafters that do.

Source: Cai et al. 2024, arXiv 2401.10774, section 2.1 (Medusa). Differs: heads may
share the target's readout.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jtok.errors import check
from jtok.models import Model
from jtok.ops import Readout, Want, readout
from jtok.ops.sharding import onto_mesh
from jtok.predict.fusing import Base, base_of
from jtok.predict.heads import DraftHead

__all__ = [
    "StateHeads",
    "StateHeadsConfig",
    "init_state_heads",
    "residual_blocks",
    "state_draft_head",
]

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateHeadsConfig:
    """Sizes and choices of the heads, hashable.

    Attributes:
      vocab_size: of the target.
      width: of the target's states.
      steps: number of heads.
      blocks: residual blocks of each head.
      heads: "full" has a readout `[vocab, width]` for each head, "light" reads out as
        the target does.
      softcap: of the target's logits, or None.
      dtype: of the parameters.
    """

    vocab_size: int
    width: int
    steps: int = 4
    blocks: int = 1
    heads: Literal["full", "light"] = "full"
    softcap: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        check(self.blocks >= 1, "blocks", self.blocks, "at least 1")
        known = ("full", "light")
        check(self.heads in known, "heads", self.heads, "'full' or 'light'")


@struct.dataclass
class StateHeads:
    """Heads on one state: a frozen pytree.

    Attributes:
      params: `blocks` and, for full heads, `unembed`, stacked on a leading axis.
      base: of the target.
      config: sizes and choices.
      vocabulary: hash of the target's vocabulary, or None.
    """

    params: PyTree
    base: Base
    config: StateHeadsConfig = struct.field(pytree_node=False)
    vocabulary: str | None = struct.field(pytree_node=False, default=None)

    @property
    def num_params(self) -> int:
        """Parameters that train."""
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(self.params))


def init_state_heads(
    model: Model, *, steps: int = 4, blocks: int = 1, heads: str = "full"
) -> StateHeads:
    """Heads that start as the target's own readout: blocks are zero, readouts copies.

    Args:
      model: the target, of any family.
      steps: number of heads.
      blocks: residual blocks of each.
      heads: "full" or "light".

    Returns:
      `StateHeads`.

    Raises:
      ArgumentError: a number below 1, or another name.

    Source: arXiv 2401.10774, section 2.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> init_state_heads(tiny_model()).params["blocks"]["kernel"].shape
      (4, 1, 32, 32)
    """
    base, kind = base_of(model), heads
    vocab, width = base.unembed.shape
    dtype, choice = model.config.dtype, {"heads": kind}
    config = StateHeadsConfig(
        vocab_size=vocab, width=width, steps=steps, blocks=blocks, dtype=dtype,
        softcap=getattr(model.config, "final_softcap", None), **choice,  # type: ignore[arg-type]
    )  # fmt: skip
    params: dict[str, Any] = {
        "blocks": {
            "kernel": jnp.zeros((steps, blocks, width, width), dtype),
            "bias": jnp.zeros((steps, blocks, width), dtype),
        }
    }
    if kind == "full":
        params["unembed"] = {"kernel": jnp.stack([base.unembed.astype(dtype)] * steps)}
        if base.bias is not None:
            params["unembed"]["bias"] = jnp.stack([base.bias.astype(dtype)] * steps)
    params = onto_mesh(params, state_heads_axes(params))
    return StateHeads(params, base, config, getattr(model.vocabulary, "hash", None))


def state_heads_axes(params: PyTree) -> PyTree:
    """Logical axis names of every parameter: readouts are split over the vocabulary."""

    def axes(path: Any, leaf: Array) -> tuple[str | None, ...]:
        if path[0].key == "blocks":
            return (None,) * leaf.ndim
        return (None, "vocab", None)[: leaf.ndim]

    return jax.tree_util.tree_map_with_path(axes, params)


def residual_blocks(
    params: PyTree, x: Float[Array, "*tokens dim"]
) -> Float[Array, "*tokens dim"]:
    """`x + silu(x @ kernel + bias)`, once for each block.

    Args:
      params: `kernel` `[blocks, dim, dim]` and `bias` `[blocks, dim]` of one head.
      x: `[..., dim]` states.

    Returns:
      `[..., dim]` in the dtype of the parameters.

    Source: arXiv 2401.10774, section 2.1.

    Example:
      >>> params = {"kernel": jnp.zeros((2, 3, 3)), "bias": jnp.zeros((2, 3))}
      >>> residual_blocks(params, jnp.ones((1, 3))).tolist()
      [[1.0, 1.0, 1.0]]
    """

    def block(x: Array, params: PyTree) -> tuple[Array, None]:
        y = x @ params["kernel"]
        return x + jax.nn.silu(y + jnp.broadcast_to(params["bias"], y.shape)), None

    return jax.lax.scan(block, x.astype(params["kernel"].dtype), params)[0]


def read_head(heads: StateHeads, params: PyTree, hidden: Array) -> Any:
    """What one head, given its own parameters, reads from: states, rows and bias."""
    narrow = residual_blocks(params["blocks"], hidden)
    if heads.config.heads == "light":
        return narrow, heads.base.unembed, heads.base.bias
    return narrow, params["unembed"]["kernel"], params["unembed"].get("bias")


def state_draft_head(config: StateHeadsConfig) -> DraftHead:
    """The heads as what drafts trees; its `params` are `StateHeads`.

    The context is the last state of every row, `[batch, dim]`.

    Args:
      config: of the heads.

    Returns:
      `DraftHead`.

    Source: arXiv 2401.10774, section 2.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> state_draft_head(init_state_heads(tiny_model()).config).steps
      4
    """

    def init(heads: StateHeads, context: Array) -> Array:
        return jnp.zeros((context.shape[0], 1, 0))

    def step(
        heads: StateHeads, context: Array, state: Array, tokens: Array, index: int
    ) -> tuple[Array, Array]:
        made = read_head(heads, one_head(heads.params, index), context)[0]
        return jnp.broadcast_to(made[:, None], (*tokens.shape, made.shape[-1])), state

    def read(heads: StateHeads, hidden: Array, want: Want, index: int) -> Readout:
        head = one_head(heads.params, index)
        weight, bias = heads.base.unembed, heads.base.bias
        if config.heads == "full":
            weight, bias = head["unembed"]["kernel"], head["unembed"].get("bias")
        return readout(hidden, weight, want, bias=bias, softcap=config.softcap)

    return DraftHead(init, step, read, config.steps, each=True)


def one_head(stacked: PyTree, index: int) -> PyTree:
    """The parameters of one head, from a stack or a tuple of heads."""
    return {
        part: {name: value[index] for name, value in leaves.items()}
        for part, leaves in stacked.items()
    }
