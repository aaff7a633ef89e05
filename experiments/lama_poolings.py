"""The poolings that the low-rank attention experiment compares, by name."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import classify, nn
from jtok.ops.segments import attend

__all__ = [
    "POOLINGS",
    "SCALED",
    "SHARP",
    "THIN",
    "TransformerPooler",
    "head_of",
    "head_parameters",
    "poolings",
]

THIN, SCALED = "lama, no word MLP", "lama, learnt scale"
SHARP = "lama, learnt scale from 8"
POOLINGS = (
    "mean", "max", "last", "additive", "structured", "transformer", "lama",
    "lama, mean context", "lama, no norm", SCALED, THIN,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TransformerPooler:
    """A post-norm encoder block over the vectors, then their mean."""

    width: int
    block_heads: int = 4

    @property
    def heads(self) -> int:
        """One vector comes out."""
        return 1

    def _block(self) -> nn.PostNormLayer:
        return nn.PostNormLayer(self.block_heads, 4 * self.width, dropout=0.0)

    def init(self, key: jax.Array) -> Any:
        """Parameters of the block."""
        mix = lambda q, k, v, drop: (v, None)
        x = jnp.zeros((1, 1, self.width))
        return self._block().init(key, x, mix)["params"]

    def __call__(
        self,
        params: Any,
        values: jax.Array,
        mask: Any = None,
        *,
        scored: jax.Array | None = None,
        context: Any = None,
    ) -> nn.Pooled:
        """Pools; only `values` and `mask` are looked at."""
        real = jnp.ones(values.shape[:2], bool) if mask is None else mask.astype(bool)
        see = jnp.broadcast_to(real[:, None], (*real.shape, real.shape[1]))
        mix = lambda q, k, v, drop: (attend(q, k, v, see), None)
        made: Any = self._block().apply({"params": params}, values, mix)
        return nn.MeanPooler(self.width)({}, made[0], real)


def poolings(config: Any, width: int) -> dict[str, tuple[Any, bool]]:
    """Name -> the pooler, and whether words go through the MLP that scores read."""
    lama = nn.LamaPooler(width, heads=config.heads)
    change = functools.partial(dataclasses.replace, lama)
    return {
        "mean": (nn.MeanPooler(width), False),
        "max": (nn.MaxPooler(width), False),
        "last": (nn.LastPooler(width, both_ways=True), False),
        "additive": (nn.AdditivePooler(width), False),
        "structured": (
            nn.StructuredPooler(width, heads=config.heads, hidden=config.hidden),
            False,
        ),
        "transformer": (TransformerPooler(width), False),
        "lama": (lama, True),
        "lama, mean context": (change(context="mean"), True),
        "lama, no norm": (change(normalize=False), True),
        SCALED: (change(learn_scale=True), True),
        SHARP: (change(learn_scale=True, score_scale=8.0), True),
        THIN: (lama, False),
    }


def head_of(config: Any, name: str, width: int, classes: int) -> classify.HeadConfig:
    """A head with the pooling of that name."""
    pooler, mlp = poolings(config, width)[name]
    return classify.HeadConfig(
        pooler=pooler, classes=classes, word_mlp=mlp, dropout=config.dropout
    )


def head_parameters(config: Any, name: str, width: int) -> int:
    """Parameters between the states and the labels, the map to the labels left out."""
    head = head_of(config, name, width, 2)
    shapes = jax.eval_shape(
        lambda key: classify.init_head(head, key), jax.random.key(0)
    )
    return sum(
        int(np.prod(leaf.shape))
        for name, tree in shapes.items()
        if name != "labels"
        for leaf in jax.tree.leaves(tree)
    )
