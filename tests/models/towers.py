"""Which golden checkpoints are towers, and a compressor for them."""

import dataclasses

import jax.numpy as jnp

from jtok.ops.plan import join_plan

TOWERS = ("deit", "dinov2", "siglip_vision", "vit")
FAMILIES = (
    "clip_vision_model",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "siglip_vision_model",
    "vit",
)


def nhwc(pixels):
    return jnp.asarray(pixels).transpose(0, 2, 3, 1)


@dataclasses.dataclass(frozen=True)
class Twins:
    """Pairs of patches become one in the first layer; `last` puts prefixes last."""

    where: str = "layer"
    how: str = "weighted"
    proportional: bool = True
    restart: bool = False
    last: bool = False
    pairs: int = 8

    def __call__(self, view):
        if view.layer:
            return None
        batch, seq, _ = view.x.shape
        index = jnp.broadcast_to(jnp.arange(seq)[None], (batch, seq))
        past = index - view.prefix
        joins = index - jnp.where((past < 0) | (past >= 2 * self.pairs), 0, past % 2)
        order = jnp.where((past < 0) & self.last, index + seq, index)
        return join_plan(joins, order, seq - self.pairs)
