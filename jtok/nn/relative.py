"""Buckets of relative positions, for biases that are added to attention scores.

The table from distance to bucket is made on the host in NumPy float32: some distances
sit exactly on the edge of a bucket, where another logarithm rounds the other way.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jtok.errors import check

__all__ = ["relative_buckets", "reset_buckets"]

Upper = Literal["later", "earlier"]
Ints = Int[Array, "..."] | Int[np.ndarray, "..."]
Bools = Bool[Array, "..."] | Bool[np.ndarray, "..."]


def relative_buckets(
    offsets: Ints,
    *,
    num_buckets: int = 32,
    max_distance: int = 128,
    bidirectional: bool = True,
    upper: Upper = "later",
) -> Ints:
    """The bucket of each offset: near ones alone, far ones by their logarithm.

    Half of the buckets of a direction hold one distance each, from 0 on; the others
    hold ranges that grow up to `max_distance`, the last one all beyond it.

    Args:
      offsets: `[...]` integers, position of the key minus that of the query; traced
        ones are looked up in the table.
      num_buckets: buckets in all (static).
      max_distance: from this distance on all share the last bucket (static).
      bidirectional: half of the buckets for each direction; False is for decoders:
        later keys share the bucket of distance 0.
      upper: the direction whose buckets are the upper half: "later" keys, as in T5, or
        "earlier" ones, as in ERNIE-Gram.

    Returns:
      `[...]` int32 in `[0, num_buckets)`, a NumPy array for a NumPy array.

    Raises:
      ArgumentError: no two buckets for a direction, or a `max_distance` that leaves
        none to the logarithm.

    Source: Raffel et al. 2020, arXiv 1910.10683, section 2.1, and its code; Xiao et
    al. 2021, arXiv 2010.12148, and its code ("earlier").

    Example:
      >>> relative_buckets(np.array([-20, -1, 0, 1, 8])).tolist()
      [10, 1, 0, 17, 24]
    """
    size = num_buckets // 2 if bidirectional else num_buckets
    even = not bidirectional or num_buckets % 2 == 0
    check(size >= 2 and even, "num_buckets", num_buckets, "2 for each direction, even")
    enough = f"above {size // 2}, the distances with a bucket each"
    check(max_distance > size // 2, "max_distance", max_distance, enough)
    check(upper in ("later", "earlier"), "upper", upper, "'later' or 'earlier'")
    table = _table(num_buckets, max_distance, bidirectional, upper)
    if isinstance(offsets, np.ndarray):
        return table[np.clip(offsets, -max_distance, max_distance) + max_distance]
    places = jnp.clip(offsets, -max_distance, max_distance) + max_distance
    return jnp.asarray(table)[places]


def reset_buckets(
    buckets: Int[Array, "*batch queries keys"] | Int[np.ndarray, "*batch queries keys"],
    query_is_cls: Bools,
    key_is_cls: Bools,
    *,
    num_buckets: int = 32,
) -> Ints:
    """Gives the first token, [CLS], buckets of its own, whatever the distance.

    A key that is [CLS] gets bucket `num_buckets`, so tables have one row more; then a
    query that is [CLS] gets `num_buckets // 2` for all keys, itself too.

    Args:
      buckets: `[..., queries, keys]` int32, from `relative_buckets` with
        `upper="earlier"`, which leaves `num_buckets // 2` unused.
      query_is_cls: `[..., queries]` bool.
      key_is_cls: `[..., keys]` bool.
      num_buckets: as for `relative_buckets`.

    Returns:
      `[..., queries, keys]` int32 in `[0, num_buckets]`, NumPy for NumPy.

    Source: the code of Xiao et al. 2021, arXiv 2010.12148. Differs: [CLS] is said, not
    found at index 0, so that queries appended to a sequence keep their distances.

    Example:
      >>> first = np.array([True, False])
      >>> reset_buckets(np.array([[0, 1], [17, 0]]), first, first).tolist()
      [[16, 16], [32, 0]]
    """
    xp = np if isinstance(buckets, np.ndarray) else jnp
    columns = xp.where(key_is_cls[..., None, :], num_buckets, buckets)
    whole = xp.where(query_is_cls[..., None], num_buckets // 2, columns)
    return whole.astype(xp.int32)


@functools.lru_cache(maxsize=32)
def _table(
    num_buckets: int, max_distance: int, bidirectional: bool, upper: Upper
) -> np.ndarray:
    """`[2 max_distance + 1]` buckets of the offsets from `-max_distance` on."""
    size = num_buckets // 2 if bidirectional else num_buckets
    exact = size // 2
    offsets = np.arange(-max_distance, max_distance + 1)
    distance = np.abs(offsets) if bidirectional else np.maximum(-offsets, 0)
    far = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    span = np.log(np.float32(max_distance / exact))
    rest = np.float32(size - exact)
    wide = exact + np.floor(np.log(far) / span * rest).astype(np.int64)
    buckets = np.where(distance < exact, distance, np.minimum(wide, size - 1))
    if bidirectional:
        there = offsets > 0 if upper == "later" else offsets < 0
        buckets = buckets + size * there
    return buckets.astype(np.int32)
