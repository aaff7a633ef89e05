"""A run in progress, as the host sees it: chunks of steps, and looks in between."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from jtok.decode import loop
from jtok.decode.host import ask_host
from jtok.decode.options import Prepared
from jtok.decode.results import Generated, Timing, result
from jtok.decode.sessions import Session
from jtok.decode.stops import Cut, StopStrings
from jtok.models import Target
from jtok.ops.sharding import entered_mesh, to_host

__all__ = ["Course", "look_for_stops"]


def look_for_stops(
    state: loop.State,
    stops: StopStrings,
    target: Target,
    prompt_lengths: np.ndarray,
    checked: np.ndarray,
) -> tuple[loop.State, dict[int, Cut]]:
    """Ends the rows whose text holds a stop string; their surplus is taken back.

    `checked` `[batch]` counts the tokens that were looked at; it is changed.
    """
    ids, counts = to_host((state.tokens.ids, state.tokens.count))
    cuts: dict[int, Cut] = {}
    for row, (start, count) in enumerate(zip(prompt_lengths, counts, strict=True)):
        if count - start <= checked[row]:
            continue
        cut = stops.find(ids[row, start:count], int(checked[row]))
        checked[row] = count - start
        if cut is not None:
            cuts[row] = cut
    if not cuts:
        return state, cuts
    kept, ended = np.array(counts), np.zeros(len(counts), bool)
    for row, cut in cuts.items():
        kept[row], ended[row] = prompt_lengths[row] + cut.count, True
    count, done = jnp.asarray(kept), jnp.asarray(ended)
    cache = state.cache
    if target.rewind is not None:
        cache = target.rewind(cache, count - 1)
    state = dataclasses.replace(
        state,
        tokens=dataclasses.replace(state.tokens, count=count),
        live=state.live & ~done,
        stopped=state.stopped | done,
        cache=cache,
    )
    return state, cuts


class Course:
    """A run that advances chunk by chunk.

    Attributes:
      state: of the loop.
      cuts: rows that a stop string ended.
    """

    @entered_mesh()
    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.cuts: dict[int, Cut] = {}
        began = time.perf_counter()
        self._run = loop.runner(prepared.target, prepared.drafter, prepared.rules)
        self.state = jax.block_until_ready(
            self._run.start(
                prepared.params,
                prepared.batch,
                prepared.options.drafter_state,
                prepared.held,
            )
        )
        self._prefilled = time.perf_counter()
        self._prefill_seconds = self._prefilled - began
        self._limit = self._syncs = 0
        self._lengths = np.array([len(prompt) for prompt in prepared.prompts])
        self._checked = np.zeros_like(self._lengths)
        # Tokens that the cache holds, where it cannot forget what was cut.
        self._held: jax.Array | None = None

    @entered_mesh()
    def advance(self) -> bool:
        """Runs a chunk of steps; False when all rows are done."""
        prepared, every = self.prepared, self.prepared.sync_every
        forever = int(np.iinfo(np.int32).max)
        self._limit = min(self._limit + (every or forever), forever)
        state = ask_host(prepared.drafter, self.state)
        self.state = self._run.advance(
            prepared.params, prepared.batch, state, jnp.int32(self._limit)
        )
        if every is None:
            jax.block_until_ready(self.state)
            return False
        self._syncs += 1
        if prepared.stops is not None:
            before = self.state.tokens.count
            self.state, cuts = look_for_stops(
                self.state, prepared.stops, prepared.target, self._lengths,
                self._checked,
            )  # fmt: skip
            if prepared.target.rewind is None:
                held = before if self._held is None else self._held
                self._held = jnp.maximum(held, before)
            self.cuts |= cuts
        return bool(to_host(self.state.live).any())

    @entered_mesh()
    def result(self) -> Generated:
        """What was generated."""
        options = self.prepared.options
        timing = Timing(
            prefill_seconds=self._prefill_seconds,
            decode_seconds=time.perf_counter() - self._prefilled,
            host_syncs=self._syncs,
        )
        out = result(self.state, self.prepared, self.cuts, timing)
        if not options.keep_cache and options.cache is None:
            return out
        tokens = self.state.tokens
        held = (tokens.count if self._held is None else self._held) - 1
        session = Session(self.state.cache, tokens.ids, tokens.count, held)
        return dataclasses.replace(out, cache=session)
