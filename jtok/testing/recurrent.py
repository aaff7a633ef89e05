"""A recurrent target of a few lines, for drafters that draft chains."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jtok.errors import ArgumentError, check
from jtok.models import Info, StepInput, StepOutput, Target

__all__ = ["RecurrentCache", "recurrent_target"]

PyTree = Any


@struct.dataclass
class RecurrentCache:
    """The cache of `recurrent_target`.

    Attributes:
      state: `[batch]` int32 a checksum of the committed tokens in their order.
      length: `[batch]` int32 committed tokens.
      pending: `[batch, nodes]` int32 the state after each node of the last call, or
        None.
    """

    state: jax.Array
    length: jax.Array
    pending: jax.Array | None = None


def recurrent_target(table: np.ndarray) -> Target:
    """A language model with one number of memory; it takes chains and no trees.

    Logits are two rows of a table: that of the newest token, and one chosen by a
    checksum of all tokens so far. So an error in which nodes were kept, or in their
    order, changes what is emitted.

    Args:
      table: `[vocab, vocab]` float32 logits.

    Returns:
      `Target` that needs no parameters; equal arguments give the same one.

    Raises:
      ArgumentError: `table` is not square.

    Example:
      >>> from jtok.decode import generate
      >>> target = recurrent_target(np.eye(5))
      >>> target.info.trees, len(generate(target, [0], max_new_tokens=4).tokens)
      (False, 4)
    """
    table = np.asarray(table, np.float32)
    square = table.ndim == 2 and table.shape[0] == table.shape[1]
    check(square, "table", f"shape {table.shape}", "[vocab, vocab]")
    return _recurrent_target(len(table), table.tobytes())


@functools.lru_cache(maxsize=32)
def _recurrent_target(vocab_size: int, values: bytes) -> Target:
    table = np.frombuffer(values, np.float32).reshape(vocab_size, vocab_size)

    def init_cache(params: PyTree, batch: int, capacity: int) -> RecurrentCache:
        del params, capacity
        zeros = jnp.zeros(batch, jnp.int32)
        return RecurrentCache(zeros, zeros)

    def step(
        params: PyTree, cache: RecurrentCache, nodes: StepInput
    ) -> tuple[StepOutput, RecurrentCache]:
        del params
        if nodes.ids is None:
            raise ArgumentError("vectors: got some, expected ids.")

        def advance(state: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = (state * 61 + ids * 7 + 1) % 997
            return state, state

        _, states = jax.lax.scan(advance, cache.state, nodes.ids.T)
        rows = jnp.asarray(table)
        logits = rows[nodes.ids] + rows[states.T % vocab_size]
        return StepOutput(logits), dataclasses.replace(cache, pending=states.T)

    def commit(
        cache: RecurrentCache, path: jax.Array, count: jax.Array
    ) -> RecurrentCache:
        if cache.pending is None:
            raise ArgumentError("cache: got one without pending nodes; run a step.")
        last = jnp.take_along_axis(path, jnp.maximum(count - 1, 0)[:, None], axis=1)
        after = jnp.take_along_axis(cache.pending, jnp.maximum(last, 0), axis=1)[:, 0]
        state = jnp.where(count > 0, after, cache.state)
        return RecurrentCache(state, cache.length + count)

    return Target(init_cache, step, commit, Info(vocab_size, None, trees=False))
