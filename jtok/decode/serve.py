"""Many prompts through one batch: a finished row takes the next prompt."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jtok.decode import loop
from jtok.decode.course import look_for_stops
from jtok.decode.generate import Prompt
from jtok.decode.host import ask_host
from jtok.decode.options import Options, Prepared, options_from, prepare
from jtok.decode.results import Generated, Timing, result
from jtok.decode.stops import Cut
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import Model, Target
from jtok.ops.sharding import entered_mesh, to_host

__all__ = ["serve"]

PyTree = Any
_PER_ROW = (
    "max_new_tokens",
    "min_new_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)


def serve(
    model: Model | Target,
    prompts: Iterable[Prompt],
    *,
    batch: int = 8,
    sync_every: int = 16,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[int, Generated]]:
    """Generates for any number of prompts and gives each result as soon as it is there.

    `batch` rows decode together. Between chunks of steps, rows that are done are given
    out and filled again: a prompt is processed by itself, and its row is put in place;
    no other row changes. So a prompt's tokens are those of `generate` alone with
    `seed + index`. The cache grows in classes of 128, 256, 512, ... slots; each class
    is compiled once.

    Args:
      model: as for `generate`.
      prompts: texts or ids, read when a row is free; may be endless.
      batch: rows.
      sync_every: steps between looks; a row that is done waits for the next look.
      seed: of prompt 0; prompt i takes `seed + i`.
      **options: other options of `generate`, by the same names, one value for all
        prompts; `capacity` is what the cache starts with, at least, and rounded up to a
        class. A cache and drafter states are neither taken nor returned; what a
        drafter learns for all rows goes on from prompt to prompt.

    Returns:
      An iterator of `(index of the prompt, Generated)`, in the order in which they end.

    Raises:
      ArgumentError: as `generate`, for a prompt when it is read.
      ArgumentTypeError: `prompts` is one text, or an option does not exist.

    Example:
      >>> from jtok.testing import tiny_model
      >>> prompts = [[1], [2, 3], [4]]
      >>> done = dict(serve(tiny_model(), prompts, batch=2, max_new_tokens=3))
      >>> sorted(done), done[1].tokens.shape
      ([0, 1, 2], (3,))
    """
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise ArgumentTypeError(
            f"prompts: got {type(prompts).__name__}, expected an iterable of prompts."
        )
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)):
        raise ArgumentTypeError(f"batch: got {batch!r}, expected an int.")
    check(batch >= 1, "batch", batch, "at least 1")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ArgumentTypeError(f"seed: got {seed!r}, expected an int.")
    if sync_every is None:
        raise ArgumentTypeError("sync_every: got None, expected an int.")
    check(sync_every >= 1, "sync_every", sync_every, "at least 1")
    given = options_from(options)
    capacity = given.capacity
    if capacity is not None:
        if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)):
            raise ArgumentTypeError(f"capacity: got {capacity!r}, expected an int.")
        check(capacity >= 1, "capacity", capacity, "at least 1")
    for name in ("cache", "drafter_state", "keep_cache"):
        value = getattr(given, name)
        if value is not None and value is not False:
            raise ArgumentError(f"{name}: got one, expected none: rows change texts.")
    for name in _PER_ROW:
        value = getattr(given, name)
        good = not isinstance(value, Sequence | np.ndarray)
        check(good, name, value, "one value for all prompts")
    given = dataclasses.replace(given, sync_every=int(sync_every))
    return _served(_Rows(model, given, int(batch)), iter(prompts), int(seed))


def _served(
    rows: "_Rows", prompts: Iterator[Any], seed: int
) -> Iterator[tuple[int, Generated]]:
    source = enumerate(prompts)
    while True:
        for index, prompt in itertools.islice(source, len(rows.free)):
            rows.place(index, prompt, seed + index)
        if not rows.active:
            return
        yield from rows.advance()


class _Active(NamedTuple):
    """A prompt that has a row."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    length: int
    prepared: Prepared
    prefill_seconds: float
    began: float
    syncs: int


class _Axes(NamedTuple):
    """Of every leaf the axis of the rows, -1 where rows share it."""

    state: tuple[int, ...]
    batch: tuple[int, ...]


class _Rows:
    """A batch whose rows are filled one by one."""

    def __init__(self, model: Any, options: Options, count: int) -> None:
        self._model, self._options, self._count = model, options, count
        self.free = list(range(count))
        self.active: dict[int, _Active] = {}
        self._checked = np.zeros(count, np.int64)
        self._limit = self._syncs = self._capacity = 0
        self._room = 0 if options.capacity is None else options.capacity
        self._state: Any = None
        self._batch: Any = None
        self._axes: _Axes | None = None

    @entered_mesh()
    def place(self, index: int, prompt: Any, seed: int) -> None:
        """Processes a prompt and puts it into a free row."""
        began = time.perf_counter()
        prepared = self._prepare(prompt, seed)
        run = loop.runner(prepared.target, prepared.drafter, prepared.rules)
        row = self.free[0]
        one = run.start(prepared.params, prepared.batch, self._inherited(row), None)
        self._make_room(prepared, run, one)
        learns = prepared.drafter.inherit is not None
        axes: Any = self._axes
        self._state = _put(self._state, one, jnp.int32(row), axes.state, learns)
        self._batch = _put_batch(
            self._batch, prepared.batch, jnp.int32(row), axes.batch
        )
        self.free.pop(0)
        self._checked[row] = 0
        jax.block_until_ready(self._state)
        ended = time.perf_counter()
        length = len(prepared.prompts[0])
        self.active[row] = _Active(
            index, length, prepared, ended - began, ended, self._syncs
        )

    @entered_mesh()
    def advance(self) -> list[tuple[int, Generated]]:
        """Runs a chunk of steps, and gives out and frees the rows that are done."""
        some = next(iter(self.active.values())).prepared
        # The size of prefill steps is of no concern here; a row may be from before the
        # buffers grew.
        rules = some.rules._replace(chunk=0, capacity=self._capacity)
        run = loop.runner(some.target, some.drafter, rules)
        every = self._options.sync_every or 1
        self._limit += 1 if some.drafter.host is not None else every
        limit, state = jnp.int32(self._limit), ask_host(some.drafter, self._state)
        self._state = run.advance(some.params, self._batch, state, limit)
        self._syncs += 1
        cuts: dict[int, Cut] = {}
        if some.stops is not None:
            lengths = np.array(to_host(self._state.tokens.count))
            for row, item in self.active.items():
                lengths[row] = item.length
            self._state, cuts = look_for_stops(
                self._state, some.stops, some.target, lengths, self._checked
            )
        live = to_host(self._state.live)
        done = [row for row in self.active if not live[row]]
        out = [self._result(row, cuts) for row in done]
        self.free += done
        return out

    def _result(self, row: int, cuts: dict[int, Cut]) -> tuple[int, Generated]:
        item = self.active.pop(row)
        timing = Timing(
            prefill_seconds=item.prefill_seconds,
            decode_seconds=time.perf_counter() - item.began,
            host_syncs=self._syncs - item.syncs,
        )
        out = result(
            self._state, item.prepared, cuts, timing, rows=[row], lengths=[item.length],
            single=True,
        )  # fmt: skip
        return item.index, dataclasses.replace(out, drafter_state=None)

    def _prepare(self, prompt: Any, seed: int) -> Prepared:
        options = dataclasses.replace(self._options, seed=seed, capacity=None)
        ready = functools.partial(prepare, self._model, options=options, trace=True)
        prepared = ready([prompt], room=max(self._capacity, self._room))
        while self._capacity < prepared.rules.capacity:
            self._capacity = max(128, 2 * self._capacity)
        if prepared.rules.capacity != self._capacity:
            prepared = ready([prompt], room=self._capacity)
        return prepared

    def _inherited(self, row: int) -> PyTree:
        """What the drafter has learned, as the state of a batch of one."""
        if self._state is None:
            return None
        leaves, treedef = jax.tree.flatten(self._state.drafter)
        axes: Any = self._axes
        places = jax.tree.leaves(_unflatten(self._state, axes.state).drafter)
        mine = [
            leaf if axis < 0 else jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis)
            for leaf, axis in zip(leaves, places, strict=True)
        ]
        return jax.tree.unflatten(treedef, mine)

    def _make_room(self, prepared: Prepared, run: loop.Runner, one: loop.State) -> None:
        """Buffers for all rows: new ones for the first prompt, larger ones later."""
        old = self._state
        if old is not None and old.tokens.ids.shape == (self._count, self._capacity):
            return
        if self._axes is None:
            self._axes = _axes_of(self._model, prepared, run, one)
        spread = functools.partial(_spread, count=self._count)
        state = spread(one, self._axes.state)
        batch = spread(prepared.batch, self._axes.batch)
        if old is None:
            nobody = jnp.zeros(self._count, bool)
            self._state = dataclasses.replace(state, live=nobody)
            self._batch = batch
            return
        self._state = jax.tree.map(loop.into, state, old)
        self._batch = jax.tree.map(loop.into, batch, self._batch)


def _axes_of(
    model: Any, prepared: Prepared, run: loop.Runner, one: loop.State
) -> _Axes:
    """Which axes grow when a second row is added; nothing is computed."""
    options = dataclasses.replace(prepared.options, seed=[0, 0])
    prompts = [prepared.prompts[0], prepared.prompts[0]]
    two = prepare(model, prompts, options, room=prepared.rules.capacity, trace=True)
    state = jax.eval_shape(run.start, prepared.params, two.batch, None, None)
    return _Axes(_differing(one, state), _differing(prepared.batch, two.batch))


def _differing(one: PyTree, two: PyTree) -> tuple[int, ...]:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    axis = lambda a, b: next((i for i in range(a.ndim) if a.shape[i] != b.shape[i]), -1)
    return tuple(axis(a, b) for a, b in pairs)


def _unflatten(tree: PyTree, leaves: tuple[int, ...]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _spread(one: PyTree, axes: tuple[int, ...], *, count: int) -> PyTree:
    """A batch of `count` rows that are all alike; what rows share is copied."""

    def repeat(leaf: Array, axis: int) -> Array:
        return jnp.array(leaf) if axis < 0 else jnp.repeat(leaf, count, axis)

    return jax.tree.map(repeat, one, _unflatten(one, axes))


def _written(all_: Array, one: Array, row: Array, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(all_, one.astype(all_.dtype), row, axis)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(3, 4))
def _put(
    state: loop.State, one: loop.State, row: Array, axes: tuple[int, ...], learns: bool
) -> loop.State:
    """The state with one row replaced; the others keep every bit."""
    places = _unflatten(state, axes)

    def put(all_: Array, new: Array, axis: int) -> Array:
        return all_ if axis < 0 else _written(all_, new, row, axis)

    def learned(all_: Array, new: Array, axis: int) -> Array:
        return new if axis < 0 else _written(all_, new, row, axis)

    placed = jax.tree.map(put, state, one, places)
    if not learns:
        return placed
    drafter = jax.tree.map(learned, state.drafter, one.drafter, places.drafter)
    return dataclasses.replace(placed, drafter=drafter)


@functools.partial(jax.jit, static_argnums=3)
def _put_batch(
    batch: loop.Batch, one: loop.Batch, row: Array, axes: tuple[int, ...]
) -> loop.Batch:
    def put(all_: Array, new: Array, axis: int) -> Array:
        return all_ if axis < 0 else _written(all_, new, row, axis)

    return jax.tree.map(put, batch, one, _unflatten(batch, axes))
