"""Holding a decoder to its guarantee."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jtok.decode import (
    EXACT,
    Drafter,
    Generated,
    Rule,
    Sampling,
    Tokens,
    loop,
    no_drafter,
)
from jtok.decode.host import ask_host
from jtok.errors import ArgumentError, check
from jtok.models import Info, StepInput, StepOutput, Target
from jtok.ops import row_keys

__all__ = [
    "BigramCache",
    "CountingCache",
    "Difference",
    "assert_token_guarantee",
    "bigram_target",
    "compare",
    "counting_target",
    "steps",
]

PyTree = Any


class Difference(NamedTuple):
    """Where an output first leaves plain decoding.

    Attributes:
      row: of the batch.
      index: of the token among the emitted ones.
      gap: how far plain decoding's choice was above its next one there, in nats;
        infinite past the end of its output.
    """

    row: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    gap: float


def compare(plain: Generated, other: Generated) -> list[Difference]:
    """The first difference of every row that differs.

    Args:
      plain: plain decoding of the same prompts, with `gaps=True`.
      other: what is compared with it.

    Returns:
      One `Difference` for each row that is not equal, in order of the rows.

    Raises:
      ArgumentError: `plain` has no gaps, or the two have different numbers of rows.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=4, gaps=True)
      >>> compare(out, out)
      []
    """
    if plain.gaps is None:
        raise ArgumentError("plain: it has no gaps; decode it with gaps=True.")
    expected, gaps, got = map(_rows, (plain.tokens, plain.gaps, other.tokens))
    if len(expected) != len(got):
        raise ArgumentError(
            f"other: got {len(got)} rows, expected {len(expected)} as in plain."
        )
    found = []
    for row, (a, b, gap) in enumerate(zip(expected, got, gaps, strict=True)):
        shared = min(len(a), len(b))
        places = np.flatnonzero(a[:shared] != b[:shared])
        if places.size == 0 and len(a) == len(b):
            continue
        index = int(places[0]) if places.size else shared
        size = float(gap[index]) if index < len(gap) else float("inf")
        found.append(Difference(row, index, size))
    return found


def assert_token_guarantee(
    plain: Generated, other: Generated, *, tolerance: float = 1e-4
) -> None:
    """Fails where an output differs from plain decoding and no near-tie excuses it.

    Args:
      plain: plain decoding of the same prompts, with `gaps=True`.
      other: what is compared with it.
      tolerance: gaps below it are near-ties: 1e-4 in float32, 1e-1 in bfloat16.

    Raises:
      AssertionError: names row, token and gap.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=4, gaps=True)
      >>> assert_token_guarantee(out, out)
    """
    wrong = [found for found in compare(plain, other) if not found.gap < tolerance]
    if wrong:
        row, index, gap = wrong[0]
        raise AssertionError(
            f"{len(wrong)} rows differ from plain decoding; row {row} first at token "
            f"{index}, where the gap is {gap:.3g}, not below {tolerance:g}"
        )


def _rows(values: np.ndarray | list[np.ndarray]) -> list[np.ndarray]:
    return values if isinstance(values, list) else [values]


@struct.dataclass
class BigramCache:
    """The cache of `bigram_target`: the tokens themselves.

    Attributes:
      ids: `[batch, capacity]` int32 committed tokens.
      positions: `[batch, capacity]` int32 positions they were fed at.
      length: `[batch]` int32.
      pending: `(ids, positions)` of the last call's nodes, or None.
    """

    ids: jax.Array
    positions: jax.Array
    length: jax.Array
    pending: Any = None


def bigram_target(
    table: np.ndarray, *, whole_context: bool = False, trees: bool = True
) -> Target:
    """A language model in a few lines of JAX: logits are rows of a table.

    Args:
      table: `[vocab, vocab]` float32 logits of the next token, by the newest one.
      whole_context: add a second row, chosen by a checksum of positions and of all
        tokens that a node may see, so that any error in the cache, the mask or the
        positions changes what is emitted. Else the newest token alone decides.
      trees: what `Info.trees` says.

    Returns:
      `Target` that needs no parameters; equal arguments give the same one.

    Raises:
      ArgumentError: `table` is not square.

    Example:
      >>> from jtok.decode import generate
      >>> cycle = bigram_target(np.eye(3)[[1, 2, 0]])
      >>> generate(cycle, [0], max_new_tokens=4).tokens.tolist()
      [1, 2, 0, 1]
    """
    table = np.asarray(table, np.float32)
    square = table.ndim == 2 and table.shape[0] == table.shape[1]
    check(square, "table", f"shape {table.shape}", "[vocab, vocab]")
    return _bigram_target(len(table), table.tobytes(), whole_context, trees)


@functools.lru_cache(maxsize=32)
def _bigram_target(
    vocab_size: int, values: bytes, whole_context: bool, trees: bool
) -> Target:
    table = np.frombuffer(values, np.float32).reshape(vocab_size, vocab_size)

    def init_cache(params: PyTree, batch: int, capacity: int) -> BigramCache:
        del params
        zeros = jnp.zeros((batch, capacity), jnp.int32)
        return BigramCache(zeros, zeros, jnp.zeros(batch, jnp.int32))

    def step(
        params: PyTree, cache: BigramCache, nodes: StepInput
    ) -> tuple[StepOutput, BigramCache]:
        del params
        if nodes.ids is None:
            raise ArgumentError("vectors: got some, expected ids.")
        rows = jnp.asarray(table)
        logits = rows[nodes.ids]
        if whole_context:
            held = jnp.arange(cache.ids.shape[1])[None] < cache.length[:, None]
            past = jnp.sum(jnp.where(held, _mark(cache.ids, cache.positions), 0), 1)
            new = _mark(nodes.ids, nodes.positions)[:, None, :]
            seen = past[:, None] + jnp.sum(jnp.where(nodes.allow, new, 0), axis=-1)
            logits = logits + rows[seen % vocab_size]
        pending = (nodes.ids, nodes.positions)
        return StepOutput(logits), dataclasses.replace(cache, pending=pending)

    def commit(cache: BigramCache, path: jax.Array, count: jax.Array) -> BigramCache:
        order = jnp.arange(path.shape[1])[None]
        # Entries that are not kept go past the end, where they are dropped.
        at = jnp.where(
            order < count[:, None], cache.length[:, None] + order, cache.ids.shape[1]
        )

        def write(buffer: jax.Array, nodes: jax.Array) -> jax.Array:
            chosen = jnp.take_along_axis(nodes, jnp.maximum(path, 0), axis=1)
            put = lambda row, places, some: row.at[places].set(some, mode="drop")
            return jax.vmap(put)(buffer, at, chosen)

        ids, positions = cache.pending
        length = cache.length + count
        return BigramCache(
            write(cache.ids, ids), write(cache.positions, positions), length
        )

    def rewind(cache: BigramCache, length: jax.Array) -> BigramCache:
        return dataclasses.replace(cache, length=jnp.minimum(cache.length, length))

    info = Info(vocab_size, None, trees)
    return Target(init_cache, step, commit, info, rewind=rewind)


def _mark(ids: jax.Array, positions: jax.Array) -> jax.Array:
    """A number below 1000 that tells tokens and their places apart."""
    return (ids * 31 + positions * 17 + ids * positions * 7) % 997


@struct.dataclass
class CountingCache:
    """The cache of a counting target.

    Attributes:
      inner: the cache of the target that is counted.
      commits: `[batch]` int32 steps that committed a token of the row: its decode
        calls and the chunks of its prompt.
      tokens: `[batch]` int32 tokens that they committed.
    """

    inner: Any
    commits: jax.Array
    tokens: jax.Array


@functools.lru_cache(maxsize=32)
def counting_target(target: Target) -> Target:
    """The same target, with a counter in its cache.

    Calls are then counted by what was really run, not by the loop that reports them.

    Args:
      target: what is counted.

    Returns:
      `Target` whose cache is a `CountingCache`.

    Example:
      >>> target = counting_target(bigram_target(np.eye(3)))
      >>> *_, last = steps(target, None, [[1]], max_new_tokens=4)
      >>> last.cache.commits.tolist()
      [4]
    """

    def init_cache(params: PyTree, batch: int, capacity: int) -> CountingCache:
        zeros = jnp.zeros(batch, jnp.int32)
        return CountingCache(target.init_cache(params, batch, capacity), zeros, zeros)

    def step(
        params: PyTree, cache: CountingCache, nodes: StepInput
    ) -> tuple[StepOutput, CountingCache]:
        out, inner = target.step(params, cache.inner, nodes)
        return out, dataclasses.replace(cache, inner=inner)

    def commit(
        cache: CountingCache, path: jax.Array, count: jax.Array
    ) -> CountingCache:
        inner = target.commit(cache.inner, path, count)
        return CountingCache(inner, cache.commits + (count > 0), cache.tokens + count)

    def rewind(cache: CountingCache, length: jax.Array) -> CountingCache:
        if target.rewind is None:
            raise ArgumentError("target: it cannot rewind its cache.")
        return dataclasses.replace(cache, inner=target.rewind(cache.inner, length))

    can = None if target.rewind is None else rewind
    return target._replace(init_cache=init_cache, step=step, commit=commit, rewind=can)


def steps(
    target: Target,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    drafter: Drafter | None = None,
    rule: Rule = EXACT,
    temperature: float | Sequence[float] = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    drafter_state: PyTree = None,
    capacity: int = 128,
    chunk: int = 64,
) -> Iterator[loop.State]:
    """Decodes as `generate` does, and shows the state after the prompt and every step.

    Args:
      target: what is decoded.
      params: its parameters.
      prompts: ids of every row.
      max_new_tokens: for all rows, or for each.
      drafter: None decodes plainly.
      rule: how drafts are verified.
      temperature: for all rows, or for each.
      seed: of row 0; row b takes `seed + b`.
      stop_ids: ids that end a row.
      drafter_state: of an earlier run.
      capacity: slots a row; the prompt, the new tokens and the nodes must fit.
      chunk: prompt tokens a prefill step.

    Yields:
      `jtok.decode.loop.State` of NumPy arrays: after the prompts, then after each
      decode step until every row is done.

    Example:
      >>> states = list(steps(bigram_target(np.eye(3)), None, [[1]], max_new_tokens=4))
      >>> len(states), int(states[-1].tokens.count[0])
      (5, 5)
    """
    count = len(prompts)
    temperatures = np.broadcast_to(np.asarray(temperature, np.float32), count)
    sampling = None
    if np.any(temperatures > 0):
        keys = row_keys(seed + jnp.arange(count))
        sampling = Sampling(keys, jnp.asarray(temperatures))
    rules = loop.Rules(rule, True, capacity, chunk)
    ids = np.zeros((count, capacity), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    batch = loop.Batch(
        tokens=Tokens(
            jnp.asarray(ids), jnp.asarray([len(row) for row in prompts]), sampling
        ),
        budget=jnp.asarray(
            np.broadcast_to(np.asarray(max_new_tokens, np.int32), count)
        ),
        stop_ids=jnp.asarray(tuple(stop_ids) or (-1,), jnp.int32),
        drafter=None if drafter is None else drafter.params,
    )
    drafter = drafter or no_drafter()
    run = loop.runner(target, drafter, rules)
    state = run.start(params, batch, drafter_state)
    limit = 0
    while True:
        # A copy: the next call is given the buffers of this state.
        shown = jax.tree.map(_to_numpy, state)
        yield shown
        if not shown.live.any():
            return
        limit += 1
        state = ask_host(drafter, state)
        state = run.advance(params, batch, state, jnp.int32(limit))


def _to_numpy(leaf: jax.Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)
