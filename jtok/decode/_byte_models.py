"""Log-probabilities of the next token after many contexts that share beginnings."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jtok.errors import ArgumentError, check
from jtok.models import Info, StepInput, Target
from jtok.ops.readouts import Want

__all__ = ["CachedTarget", "Memory", "NextToken", "PlainFunction"]

PyTree = Any
Context = tuple[int, ...]

_WIDTH = 64  # most tokens of a row in one step
_ROWS = 64  # most rows of one step


@runtime_checkable
class NextToken(Protocol):
    """What decoding by bytes asks of a model.

    Attributes:
      vocab_size: number of token ids.
    """

    vocab_size: int

    def log_probs(
        self, memory: Any, contexts: Sequence[Context]
    ) -> tuple[np.ndarray, Any]:
        """`[contexts, vocab]` log-probabilities after each, and what to keep.

        Args:
          memory: what the last call returned, None at first; it is not changed.
          contexts: distinct, none empty.
        """


class PlainFunction:
    """A function from ids to logits; it is called once a context.

    Args:
      logits: `[tokens]` int32 ids -> `[vocab]` logits of the next one.
      vocab_size: ids that it knows.
    """

    def __init__(self, logits: Callable[[Any], Any], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._logits = logits

    def log_probs(
        self, memory: Any, contexts: Sequence[Context]
    ) -> tuple[np.ndarray, Any]:
        made = []
        for context in contexts:
            logits = np.asarray(self._logits(np.asarray(context, np.int32)))
            check(
                logits.shape == (self.vocab_size,), "lm",
                f"logits of shape {logits.shape}", f"[{self.vocab_size}]",
            )  # fmt: skip
            logits = logits.astype(np.float64)
            top = logits.max()
            made.append(logits - top - np.log(np.exp(logits - top).sum()))
        return _finite(np.stack(made)), memory


class Memory(NamedTuple):
    """Committed keys and values of some rows.

    Attributes:
      cache: the target's, a row for each of `rows` and maybe more.
      rows: the ids that each row of the cache holds.
      capacity: slots a row.
    """

    cache: PyTree
    rows: tuple[Context, ...]
    capacity: int


class _Row(NamedTuple):
    """A text to run: its ids, how many stand in the cache, and where to read."""

    ids: Context
    source: int
    kept: int
    reads: tuple[tuple[int, int], ...]  # (place of the last token, context)


class CachedTarget:
    """A `Target` whose cache is looked up by content.

    Each context is run from where it parts with the nearest row of the memory, so a
    text that grows by a token costs one token. Caches must have the rows of a batch on
    the first axis of every leaf. A target that cannot rewind runs whole texts.

    Args:
      target: the model's functions.
      params: its parameters.
    """

    def __init__(self, target: Target, params: PyTree) -> None:
        self.target, self.params = target, params
        self.info: Info = target.info
        self.vocab_size = target.info.vocab_size

    def log_probs(
        self, memory: Memory | None, contexts: Sequence[Context]
    ) -> tuple[np.ndarray, Memory]:
        longest = max(map(len, contexts))
        limit = self.info.max_len
        if limit is not None and longest > limit:
            raise ArgumentError(
                f"prompts: got {longest} tokens, and the model has {limit} positions."
            )
        out = np.empty((len(contexts), self.vocab_size), np.float32)
        leaves = _leaves(contexts)
        for first in range(0, len(leaves), _ROWS):
            part = leaves[first : first + _ROWS]
            memory = self._run(memory, part, out)
        if memory is None:
            raise ArgumentError("contexts: got none, expected some.")
        return _finite(out), memory

    def _run(
        self, memory: Memory | None, leaves: list[tuple[Context, dict[int, int]]],
        out: np.ndarray,
    ) -> Memory:  # fmt: skip
        longest = max(len(ids) for ids, _ in leaves)
        batch = _bucket(len(leaves), 4)
        if memory is not None and longest + _WIDTH > memory.capacity:
            memory = None  # a larger one, filled anew: doubling keeps that rare
        rows = [self._place(memory, *leaf) for leaf in leaves]
        capacity = memory.capacity if memory else _bucket(2 * longest + _WIDTH)
        kept = np.zeros(batch, np.int32)
        kept[: len(rows)] = [row.kept for row in rows]
        if memory is None or self.target.rewind is None:
            cache = self.target.init_cache(self.params, batch, capacity)
        else:
            source = np.zeros(batch, np.int32)
            source[: len(rows)] = [row.source for row in rows]
            cache = _select(self.target)(memory.cache, source, kept)
        cache = self._extend(cache, rows, kept, out)
        return Memory(cache, tuple(row.ids for row in rows), capacity)

    def _place(
        self, memory: Memory | None, ids: Context, reads: dict[int, int]
    ) -> _Row:
        """The row of the memory that shares most with a text."""
        best, source = 0, 0
        if memory is not None and self.target.rewind is not None:
            for index, row in enumerate(memory.rows):
                shared = _shared(row, ids)
                if shared > best:
                    best, source = shared, index
        return _Row(ids, source, min(best, min(reads)), tuple(reads.items()))

    def _extend(
        self, cache: PyTree, rows: list[_Row], kept: np.ndarray, out: np.ndarray
    ) -> PyTree:
        """Runs what is missing, in steps; fills `out` where rows are to be read."""
        batch, done = len(kept), kept.copy()
        left = np.zeros(batch, np.int32)
        left[: len(rows)] = [len(row.ids) - row.kept for row in rows]
        while left.max() > 0:
            width = _bucket(min(int(left.max()), _WIDTH), 8)
            count = np.minimum(left, width)
            ids = np.zeros((batch, width), np.int32)
            wanted: list[list[tuple[int, int]]] = [[] for _ in range(batch)]
            for index, row in enumerate(rows):
                start, some = int(done[index]), int(count[index])
                ids[index, :some] = row.ids[start : start + some]
                wanted[index] = [
                    (place - start, context)
                    for place, context in row.reads
                    if start <= place < start + some
                ]
            most = max(map(len, wanted))
            reads = np.zeros((batch, _bucket(most, 8)), np.int32)
            for index, pairs in enumerate(wanted):
                reads[index, : len(pairs)] = [place for place, _ in pairs]
            step = _step(self.target)
            made, cache = step(self.params, cache, ids, done, count, reads)
            host = np.asarray(made) if most else None
            for index, pairs in enumerate(wanted):
                for column, (_, context) in enumerate(pairs):
                    if host is not None:
                        out[context] = host[index, column]
            done, left = done + count, left - count
        return cache


def _leaves(contexts: Sequence[Context]) -> list[tuple[Context, dict[int, int]]]:
    """Contexts that begin no other, each with those that it begins with.

    Returns:
      Ids, and `place of a context's last token -> its index`.
    """
    index = {context: i for i, context in enumerate(contexts)}
    by_length = sorted(contexts, key=len, reverse=True)
    lengths = sorted({len(context) for context in contexts})
    served: set[Context] = set()
    leaves = []
    for context in by_length:
        if context in served:
            continue
        reads = {}
        for length in lengths:
            head = context[:length]
            if length <= len(context) and head in index and head not in served:
                served.add(head)
                reads[length - 1] = index[head]
        leaves.append((context, reads))
    return leaves


def _bucket(count: int, base: int = 2) -> int:
    """The next power of a base, so that few shapes are compiled."""
    size = 1
    while size < count:
        size *= base
    return size


def _shared(one: Context, other: Context) -> int:
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(i for i in range(size) if one[i] != other[i])


def _finite(log_probs: np.ndarray) -> np.ndarray:
    if np.isnan(log_probs).any():
        raise ArgumentError("lm: its logits are NaN, expected numbers.")
    return log_probs


@functools.lru_cache(maxsize=64)
def _select(target: Target) -> Callable[..., PyTree]:
    @jax.jit
    def select(cache: PyTree, source: jax.Array, kept: jax.Array) -> PyTree:
        chosen = jax.tree.map(lambda leaf: leaf[source], cache)
        return chosen if target.rewind is None else target.rewind(chosen, kept)

    return select


@functools.lru_cache(maxsize=64)
def _step(target: Target) -> Callable[..., tuple[jax.Array, PyTree]]:
    @jax.jit
    def step(
        params: PyTree, cache: PyTree, ids: jax.Array, start: jax.Array,
        count: jax.Array, reads: jax.Array,
    ) -> tuple[jax.Array, PyTree]:  # fmt: skip
        batch, width = ids.shape
        places = jnp.arange(width)
        allow = jnp.broadcast_to(
            places[:, None] >= places[None, :], (batch, width, width)
        )
        nodes = StepInput(
            ids=ids,
            positions=start[:, None] + places[None, :],
            allow=allow,
            valid=places[None, :] < count[:, None],
        )
        out, cache = target.step(params, cache, nodes)
        path = jnp.broadcast_to(places[None, :], (batch, width))
        cache = target.commit(cache, path, count)
        hidden = jnp.take_along_axis(out.hidden, reads[..., None], axis=1)
        rows = target.readout(params, hidden, Want(rows=True)).rows
        if rows is None:
            raise ArgumentError("target: its readout gives no rows, expected logits.")
        return jax.nn.log_softmax(rows.astype(jnp.float32), axis=-1), cache

    return step
