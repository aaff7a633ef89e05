"""What a run leaves for the next turn of the same texts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jtok.decode.loop import Held
from jtok.errors import ArgumentError
from jtok.models import Target
from jtok.ops.sharding import to_host

__all__ = ["Session", "reuse"]


@struct.dataclass
class Session:
    """The texts of a batch, and the target's cache of them.

    It is read, never changed: two runs may continue from the same one.

    Attributes:
      cache: the target's.
      ids: `[batch, capacity]` int32 prompts and what was emitted.
      count: `[batch]` int32 tokens of each text.
      held: `[batch]` int32 how many tokens of `ids` the cache holds.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=3, keep_cache=True)
      >>> out.cache.count.tolist(), out.cache.held.tolist()
      ([5], [4])
    """

    cache: Any
    ids: jax.Array
    count: jax.Array
    held: jax.Array

    @property
    def capacity(self) -> int:
        """Slots a row."""
        return self.ids.shape[1]


def reuse(target: Target, session: Session, prompts: list[np.ndarray]) -> Held:
    """The cache, rewound to what each prompt shares with its row.

    The last token of a prompt is never taken from the cache: the first call feeds it.
    """
    ids, held = to_host((session.ids, session.held))
    lengths = []
    for index, (row, most, prompt) in enumerate(zip(ids, held, prompts, strict=True)):
        limit = min(int(most), len(prompt) - 1)
        different = np.flatnonzero(row[:limit] != prompt[:limit])
        length = int(different[0]) if different.size else limit
        if target.rewind is None and length < most:
            raise ArgumentError(
                f"cache: prompt {index} shares {length} tokens with the cache, "
                f"expected all {most} and one more: this target cannot forget tokens."
            )
        lengths.append(length)
    kept = jnp.asarray(lengths, jnp.int32)
    cache = session.cache
    if target.rewind is not None:
        cache = target.rewind(cache, kept)
    return Held(cache, kept)
