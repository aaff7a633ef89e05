"""A model that only gives logits, as a target: correct for any, and slow.

A model that has a cache of its own becomes a `Target` by naming its functions. A model
without one, or one whose cache is not worth the work, needs `logits_target` only: a
function from parameters and ids to logits. Modules stay outside: what goes in are pure
functions and parameters. With Flax NNX these are the halves of `nnx.split`:

```python
graphdef, params = nnx.split(model)

def apply(params, ids, positions, mask):
    return nnx.merge(graphdef, params)(ids)

target = logits_target(apply, vocab_size=50_000)
generate(target, prompt, params=params, max_new_tokens=64, drafter=prompt_lookup())
```

and with Flax Linen `apply` calls `module.apply({"params": params}, ids)`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.errors import ArgumentError, check
from jtok.models.target import Info, StepInput, StepOutput, Target

__all__ = ["TextCache", "logits_target"]

PyTree = Any


@struct.dataclass
class TextCache:
    """The cache of `logits_target`: the text itself.

    Attributes:
      ids: `[batch, capacity]` int32, the first `length` are committed.
      length: `[batch]` int32.
      pending: `[batch, nodes]` int32 ids of the last call's nodes, or None.
    """

    ids: jax.Array
    length: jax.Array
    pending: jax.Array | None = None


@functools.lru_cache(maxsize=64)
def logits_target(
    apply: Callable[[PyTree, Any, Any, Any], Any],
    *,
    vocab_size: int,
    max_len: int | None = None,
    trees: bool = False,
) -> Target:
    """A `Target` that runs a whole model over the whole text at every step.

    Every step costs a forward pass over all slots, used or not: a way to decode, to
    test a drafter or to check a faster target, not a way to serve.

    Args:
      apply: `(params, ids, positions, mask) -> logits`, a pure function. `ids` is
        `[batch, length]` int32, `logits` `[batch, length, vocab_size]`. What it says of
        a token may depend on that token and earlier ones only; unused slots hold
        zeros, behind the text. `positions` `[batch, length]` int32 and `mask`
        `[batch, length, length]` (True: row sees column) may be ignored unless `trees`.
      vocab_size: number of token ids.
      max_len: longest text that the model takes, None for no bound. Positions stay
        below it and so does `length` unless `trees`.
      trees: whether `apply` takes each token's place from `positions` and its past
        from `mask`, so that branches of a tree can stand side by side.

    Returns:
      `Target`; equal arguments give the same one.

    Raises:
      ArgumentError: a number out of range; while tracing, logits of another shape.

    Example:
      >>> from jtok.decode import generate
      >>> count_up = lambda params, ids, positions, mask: jax.nn.one_hot(ids + 1, 9)
      >>> target = logits_target(count_up, vocab_size=9)
      >>> generate(target, [2], max_new_tokens=3).tokens.tolist()
      [3, 4, 5]
    """
    check(vocab_size >= 1, "vocab_size", vocab_size, "at least 1")
    check(max_len is None or max_len >= 1, "max_len", max_len, "None or at least 1")

    def init_cache(params: PyTree, batch: int, capacity: int) -> TextCache:
        del params
        # A chain stands where its tokens will: it needs no slot beyond the last one.
        slots = capacity if trees or max_len is None else min(capacity, max_len)
        zeros = jnp.zeros((batch, slots), jnp.int32)
        return TextCache(zeros, jnp.zeros(batch, jnp.int32))

    def step(
        params: PyTree, cache: TextCache, nodes: StepInput
    ) -> tuple[StepOutput, TextCache]:
        if nodes.ids is None:
            raise ArgumentError("vectors: got some, expected ids: the model takes ids.")
        places = cache.length[:, None] + jnp.arange(nodes.ids.shape[1])[None]
        ids, positions, mask = _text(cache, nodes, nodes.ids, places)
        if max_len is not None:
            positions = jnp.minimum(positions, max_len - 1)
        logits = apply(params, ids, positions, mask)
        wanted = (*ids.shape, vocab_size)
        check(logits.shape == wanted, "apply", logits.shape, f"logits {wanted}")
        slots = jnp.minimum(places, ids.shape[1] - 1)[..., None]
        chosen = jnp.take_along_axis(logits, slots, axis=1)
        out = StepOutput(chosen.astype(jnp.float32))
        return out, dataclasses.replace(cache, pending=nodes.ids)

    info = Info(vocab_size, max_len, trees)
    return Target(init_cache, step, _commit, info, rewind=_rewind)


def _put(buffer: Array, places: Array, values: Array) -> Array:
    """Writes row by row; places past the end are dropped."""
    write = lambda row, at, some: row.at[at].set(some.astype(row.dtype), mode="drop")
    return jax.vmap(write)(buffer, places, values)


def _text(
    cache: TextCache, nodes: StepInput, new: Array, places: Array
) -> tuple[Array, Array, Array]:
    """Committed tokens, then the nodes, then zeros; with positions, and who sees whom.

    A slot that holds nothing sees itself, so that no softmax is over nothing.
    """
    batch, slots = cache.ids.shape
    index = jnp.arange(slots)
    held = index[None] < cache.length[:, None]
    ids = _put(jnp.where(held, cache.ids, 0), places, new)
    positions = _put(
        jnp.broadcast_to(index[None], (batch, slots)), places, nodes.positions
    )
    rows = jnp.broadcast_to(held[:, None], (batch, places.shape[1], slots))
    among = jax.vmap(
        lambda row, at, allow: row.at[:, at].set(allow, mode="drop")
    )(rows, places, nodes.allow)  # fmt: skip
    causal = (index[None] <= index[:, None])[None] & held[:, :, None]
    mask = causal | jnp.eye(slots, dtype=bool)[None]
    write = lambda whole, at, some: whole.at[at].set(some, mode="drop")
    return ids, positions, jax.vmap(write)(mask, places, among)


def _commit(cache: TextCache, path: Array, count: Array) -> TextCache:
    if cache.pending is None:
        raise ArgumentError("cache: got one without pending nodes; run a step first.")
    order = jnp.arange(path.shape[1])[None]
    # Entries that are not kept go past the end, where they are dropped.
    end = cache.ids.shape[1]
    places = jnp.where(order < count[:, None], cache.length[:, None] + order, end)
    chosen = jnp.take_along_axis(cache.pending, jnp.maximum(path, 0), axis=1)
    return TextCache(_put(cache.ids, places, chosen), cache.length + count)


def _rewind(cache: TextCache, length: Array) -> TextCache:
    return TextCache(cache.ids, jnp.minimum(cache.length, length))
