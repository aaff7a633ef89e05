"""Every pooler, as the contract suite runs it."""

import jax

from jtok.nn import (
    AdditivePooler,
    LamaPooler,
    LastPooler,
    MaxPooler,
    MeanPooler,
    StructuredPooler,
)

WIDTH = 6

POOLERS = {
    "mean": MeanPooler(WIDTH),
    "max": MaxPooler(WIDTH),
    "last": LastPooler(WIDTH),
    "last, both ways": LastPooler(WIDTH, both_ways=True),
    "additive": AdditivePooler(WIDTH),
    "structured": StructuredPooler(WIDTH, heads=3, hidden=5),
    "lama": LamaPooler(WIDTH, heads=4),
    "lama, mean context": LamaPooler(WIDTH, heads=4, context="mean"),
    "lama, linear": LamaPooler(
        WIDTH, heads=2, activation="linear", normalize=False, learn_scale=True
    ),
}
WEIGHING = [name for name in POOLERS if not name.startswith(("last", "max"))]


def params_of(pooler, seed=0):
    return pooler.init(jax.random.key(seed))
