"""What a run gives back, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jtok.decode import loop
from jtok.decode.options import Prepared
from jtok.decode.sessions import Session
from jtok.decode.stops import Cut, spelled
from jtok.ops.sharding import to_host

__all__ = ["Generated", "Stats", "result"]

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a run cost, counted per row and summed.

    Attributes:
      calls: decode steps of live rows.
      emitted: tokens.
      row_calls: `[batch]` calls of each row.
      row_emitted: `[batch]` tokens of each row.
      slots: query slots of these calls (calls times nodes).
      emitted_per_call: `[depth + 2]` number of calls that emitted 0, 1, 2, ... tokens.
      node_hits: `[nodes]` how often each node of the tree was kept.
      prompt_tokens: tokens of all prompts; all but the last of each are prefilled.
      prefill_seconds: wall time up to the first decode step, compilation included.
      decode_seconds: wall time of the decode steps, compilation included.
      host_syncs: times the host waited for the device between steps.
      draft_calls: calls of a draft model, summed as `calls` are.
    """

    calls: int
    emitted: int
    row_calls: np.ndarray
    row_emitted: np.ndarray
    slots: int
    emitted_per_call: np.ndarray
    node_hits: np.ndarray
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    host_syncs: int
    draft_calls: int = 0

    @property
    def tokens_per_call(self) -> float:
        """Emitted tokens a call; plain decoding has 1.0."""
        return self.emitted / max(self.calls, 1)

    @property
    def slots_per_call(self) -> float:
        """Query slots that a call computed."""
        return self.slots / max(self.calls, 1)

    @property
    def wasted_slots(self) -> int:
        """Query slots that gave no token."""
        return self.slots - self.emitted

    @property
    def accepted_by_depth(self) -> np.ndarray:
        """`[depth]` share of calls that kept a draft of depth 1, 2, ..."""
        at_least = np.cumsum(self.emitted_per_call[::-1])[::-1]
        return at_least[2:] / max(self.calls, 1)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What `generate` returns. One prompt gives single values, several give lists.

    Attributes:
      tokens: int32 ids that were emitted, without the prompt.
      text: what they spell, special tokens left out; None without a vocabulary.
      finish_reason: "stop" (a stop id or a stop string) or "length".
      guarantee: "token": equal to plain decoding with the same seed, up to near-ties;
        "distribution": equal in law; "none": neither.
      stats: counts and times.
      call_of: for every token the call that emitted it, 0-based.
      gaps: for every token how far its score was above the next one; None unless
        asked for.
      logprobs: for every token its log-probability in nats under the model's own
        distribution, before temperature, filters, penalties and constraints; None
        unless asked for.
      top_ids: `[tokens, k]` the likeliest ids at every token, likeliest first (ties to
        the lower id), or None.
      top_logprobs: `[tokens, k]` their log-probabilities, or None.
      cache: what the next turn continues from, see `Session`; None unless asked for.
      drafter_state: pass it to the next `generate` to inherit what was learned.
    """

    tokens: Any
    text: Any
    finish_reason: Any
    guarantee: str
    stats: Stats
    call_of: Any
    gaps: Any
    drafter_state: PyTree
    logprobs: Any = None
    top_ids: Any = None
    top_logprobs: Any = None
    cache: Session | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall time of a run, and how often the host waited for the device."""

    prefill_seconds: float
    decode_seconds: float
    host_syncs: int


def result(
    state: loop.State,
    prepared: Prepared,
    cuts: dict[int, Cut],
    timing: Timing,
    *,
    rows: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    single: bool | None = None,
) -> Generated:
    """The result of some rows of a state, all of them by default.

    `lengths` are those of the prompts. Counts come from the trace where there is one:
    then they are exact for a part of the run, too.
    """
    if lengths is None:
        lengths = [len(prompt) for prompt in prepared.prompts]
    rows = range(len(lengths)) if rows is None else rows
    single = prepared.single if single is None else single
    held = to_host(
        (state.tokens.ids, state.tokens.count, state.stopped, state.call_of,
         state.gaps, state.extras)
    )  # fmt: skip
    ids, counts, stopped, call_of, gaps, extras = held
    spans = [slice(n, int(counts[row])) for row, n in zip(rows, lengths, strict=True)]

    def cut(buffer: np.ndarray | None) -> Any:
        if buffer is None:
            return None
        # Copies: the buffers may be given to the next call.
        parts = [
            np.array(buffer[row][span]) for row, span in zip(rows, spans, strict=True)
        ]
        return parts[0] if single else parts

    def listed(values: list[Any]) -> Any:
        return values[0] if single else values

    if prepared.rules.trace:
        pieces = [(call_of[r][s], extras["node_of"][r][s], extras["slots_of"][r][s])
                  for r, s in zip(rows, spans, strict=True)]  # fmt: skip
        counted = _traced(pieces, len(state.emitted_per_call), len(state.node_hits))
    else:
        counted = _counted(state, spans)
    stats = Stats(
        **counted,
        prompt_tokens=sum(lengths),
        prefill_seconds=timing.prefill_seconds,
        decode_seconds=timing.decode_seconds,
        host_syncs=timing.host_syncs,
        draft_calls=prepared.drafter.calls * counted["calls"],
    )
    pairs = list(zip(rows, spans, strict=True))
    tokens = [np.array(ids[row][span]) for row, span in pairs]
    reasons = ["stop" if stopped[row] else "length" for row in rows]
    return Generated(
        tokens=listed(tokens),
        text=listed([_text(prepared, cuts.get(r), t) for r, t in zip(rows, tokens)]),
        finish_reason=listed(reasons),
        guarantee=prepared.rules.rule.guarantee,
        stats=stats,
        call_of=cut(call_of),
        gaps=cut(gaps) if gaps.shape[1] else None,
        logprobs=cut(extras.get("logprobs")),
        top_ids=cut(extras.get("top_ids")),
        top_logprobs=cut(extras.get("top_logprobs")),
        drafter_state=state.drafter,
    )


def _text(prepared: Prepared, cut: Cut | None, tokens: np.ndarray) -> str | None:
    vocabulary = prepared.vocabulary
    if vocabulary is None:
        return None
    return cut.text if cut else vocabulary.decode(spelled(tokens, vocabulary))


def _counted(state: loop.State, spans: list[slice]) -> dict[str, Any]:
    """Counts of a whole run."""
    seen = (state.calls, state.slots, state.emitted_per_call, state.node_hits)
    calls, slots, per_call, hits = to_host(seen)
    emitted = np.array([span.stop - span.start for span in spans])
    return {
        "calls": int(calls.sum()),
        "emitted": int(emitted.sum()),
        "row_calls": calls,
        "row_emitted": emitted,
        "slots": int(slots.sum()),
        "emitted_per_call": per_call,
        "node_hits": hits,
    }


def _traced(
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]], sizes: int, nodes: int
) -> dict[str, Any]:
    """Counts of tokens, by the calls, nodes and slots that they came from."""
    per_call, hits = np.zeros(sizes, np.int32), np.zeros(nodes, np.int32)
    calls, slots = [], 0
    for call_of, node_of, slots_of in pieces:
        # Every call of a live row emits something.
        _, first, emitted = np.unique(call_of, return_index=True, return_counts=True)
        per_call += np.bincount(emitted, minlength=sizes).astype(np.int32)
        hits += np.bincount(node_of, minlength=nodes).astype(np.int32)
        calls.append(len(first))
        slots += int(slots_of[first].sum())
    lengths = [len(piece[0]) for piece in pieces]
    return {
        "calls": sum(calls),
        "emitted": sum(lengths),
        "row_calls": np.array(calls, np.int32),
        "row_emitted": np.array(lengths),
        "slots": slots,
        "emitted_per_call": per_call,
        "node_hits": hits,
    }
