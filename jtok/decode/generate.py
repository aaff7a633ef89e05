"""`generate`: prompts in, texts out, in as few calls as the drafter allows."""

import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok.decode import loop, verify
from jtok.decode.drafters import no_drafter
from jtok.decode.types import Drafter, Sampling, Tokens
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import Model, Target, model_target, split_layers
from jtok.ops import Tree, row_keys
from jtok.text import Vocabulary

__all__ = ["Generated", "Stats", "generate"]

PyTree = Any
Prompt = str | Sequence[int] | np.ndarray | jax.Array
_ROUND = 128
_CHUNKS = (64, 256)


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

    @property
    def tokens_per_call(self) -> float:
        """Emitted tokens a call; plain decoding has 1.0."""
        return self.emitted / max(self.calls, 1)

    @property
    def slots_per_call(self) -> float:
        """Query slots that a call computed."""
        return self.slots / max(self.calls, 1)

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
      finish_reason: "stop" (a stop id was emitted) or "length".
      guarantee: "token": equal to plain decoding with the same seed, up to near-ties.
      stats: counts and times.
      call_of: for every token the call that emitted it, 0-based.
      gaps: for every token how far its score was above the next one; None unless
        asked for.
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


def generate(
    model: Model | Target,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int | Sequence[int] = 128,
    drafter: Drafter | None = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | None = None,
    top_p: float | Sequence[float] | None = None,
    min_p: float | Sequence[float] | None = None,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] | None = None,
    params: PyTree = None,
    vocabulary: Vocabulary | None = None,
    drafter_state: PyTree = None,
    gaps: bool = False,
    sync_every: int | None = None,
) -> Generated:
    """Continues prompts; a drafter saves calls and changes nothing else.

    The whole loop runs on the device and is compiled once for a model, a drafter and
    a size class of prompts. A row's tokens depend on its prompt, its options and its
    seed only, not on the drafter or on its batch mates.

    Args:
      model: a `Model`, or a `Target` together with `params`.
      prompts: one string or sequence of ids, or a list of them (any lengths).
      max_new_tokens: tokens to emit at most, for all rows or for each.
      drafter: what proposes tokens; None decodes plainly.
      temperature: >= 0, for all rows or for each; 0 takes the arg-max.
      top_k: sample among so many best tokens, None for all.
      top_p: in (0, 1]: sample among the fewest tokens that have this mass.
      min_p: in [0, 1]: sample among tokens this fraction as likely as the best.
      seed: of row 0, row b takes `seed + b`; or one for each row.
      stop_ids: ids that end a row (emitted, too); None takes the model's, () none.
      params: parameters of a `Target`.
      vocabulary: to encode and decode strings; None takes the model's.
      drafter_state: `Generated.drafter_state` of an earlier run with this drafter.
      gaps: also return how close every choice was.
      sync_every: steps between looks by the host; None runs to the end.

    Returns:
      `Generated`.

    Raises:
      ArgumentError: an argument out of its range, an id outside the vocabulary, an
        empty prompt, more tokens than the model has positions, a number of per-row
        values unlike the number of prompts, or trees for a target that takes chains.
      ArgumentTypeError: a prompt that is neither text nor ids.

    Source: for the verification, see `jtok.decode.verify`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> generate(tiny_model(), [1, 2, 3], max_new_tokens=4).tokens.shape
      (4,)
    """
    drafter = no_drafter() if drafter is None else drafter
    target, params, vocabulary, default_stops = _target(
        model, params, vocabulary, drafter
    )
    rows, single = _encode(prompts, vocabulary, target.info.vocab_size)
    count = len(rows)
    budgets = _per_row("max_new_tokens", max_new_tokens, count, int)
    check(min(budgets) > 0, "max_new_tokens", max_new_tokens, "at least 1")
    check(
        sync_every is None or sync_every >= 1, "sync_every", sync_every, "None or >= 1"
    )
    stops = _stops(stop_ids, default_stops, target.info.vocab_size)
    sampling = _sampling(temperature, top_k, top_p, min_p, count)
    if any(not hasattr(leaf, "dtype") for leaf in jax.tree.leaves(drafter_state)):
        raise ArgumentTypeError(
            f"drafter_state: got {type(drafter_state).__name__}, expected arrays: what "
            "an earlier run returned."
        )
    if drafter_state is not None and drafter.inherit is None:
        raise ArgumentError(
            "drafter_state: got one, expected None: this drafter keeps nothing from "
            "one prompt to the next."
        )
    seeds = _seeds(seed, count)
    _check_lengths(rows, budgets, target.info.max_len)
    batch, rules = _batch(
        rows, budgets, seeds, stops, sampling, drafter, target, gaps=gaps
    )
    began = time.perf_counter()
    run = loop.runner(target, drafter, rules)
    state = jax.block_until_ready(run.start(params, batch, drafter_state))
    prefilled = time.perf_counter()
    state, syncs = _run(run, params, batch, state, sync_every)
    ended = time.perf_counter()
    return _result(
        state, rows, vocabulary, single,
        prefill_seconds=prefilled - began, decode_seconds=ended - prefilled,
        host_syncs=syncs,
    )  # fmt: skip


def _target(
    model: Any, params: PyTree, vocabulary: Any, drafter: Drafter
) -> tuple[Target, PyTree, Any, tuple[int, ...]]:
    if isinstance(model, Model):
        check(params is None, "params", "parameters", "None: the model has its own")
        stops = model.generation_config.eos_token_ids if model.generation_config else ()
        target = model_target(model.config, drafter.needs.taps)
        return target, split_layers(model.params), vocabulary or model.vocabulary, stops
    if isinstance(model, Target):
        return model, params, vocabulary, ()
    raise ArgumentTypeError(
        f"model: got {type(model).__name__}, expected a Model or a Target."
    )


def _encode(
    prompts: Any, vocabulary: Any, vocab_size: int
) -> tuple[list[np.ndarray], bool]:
    """Ids of every prompt, and whether there was a single one."""
    if not hasattr(prompts, "__len__"):
        raise ArgumentTypeError(
            f"prompts: got {type(prompts).__name__}, expected text or ids, or a list "
            "of them."
        )
    if isinstance(prompts, jax.Array):
        prompts = np.asarray(prompts)
    single = isinstance(prompts, str) or (
        len(prompts) > 0 and isinstance(prompts[0], (int, np.integer))
    )
    listed = [prompts] if single else list(prompts)
    check(len(listed) > 0, "prompts", prompts, "at least one prompt")
    rows = []
    for index, prompt in enumerate(listed):
        if isinstance(prompt, str):
            if vocabulary is None:
                raise ArgumentError(
                    "vocabulary: got None, expected one: there are prompts to encode."
                )
            prompt = vocabulary.encode(prompt)
        try:
            ids = np.asarray(prompt)
        except ValueError:
            raise ArgumentTypeError(
                f"prompts: prompt {index} is nested, expected text or flat integer ids."
            ) from None
        if ids.size == 0:
            raise ArgumentError(f"prompts: prompt {index} is empty, expected a token.")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ArgumentTypeError(
                f"prompts: prompt {index} has shape {ids.shape} and dtype {ids.dtype}, "
                "expected text or a flat sequence of integer ids."
            )
        for extreme in (ids.min(), ids.max()):
            _check_id(f"prompts[{index}]", int(extreme), vocab_size)
        rows.append(ids.astype(np.int32))
    return rows, single


def _stops(stop_ids: Any, default: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    if stop_ids is None:
        stop_ids = default
    listed = isinstance(stop_ids, Sequence | np.ndarray)
    if not listed or not all(isinstance(i, (int, np.integer)) for i in stop_ids):
        raise ArgumentTypeError(
            f"stop_ids: got {stop_ids!r}, expected None or a sequence of integer ids."
        )
    for stop in stop_ids:
        _check_id("stop_ids", int(stop), vocab_size)
    return tuple(int(stop) for stop in stop_ids)


def _check_id(argument: str, token: int, vocab_size: int) -> None:
    check(0 <= token < vocab_size, argument, token, f"ids in 0..{vocab_size - 1}")


def _per_row(argument: str, value: Any, count: int, kind: type) -> list[Any]:
    """One value a row, from one for all or one for each."""
    values: list[Any]
    if isinstance(value, (int, float, np.number)):
        values = [value] * count
    elif isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        values = list(value)
    else:
        raise ArgumentTypeError(
            f"{argument}: got {value!r}, expected one {kind.__name__} or a sequence."
        )
    if len(values) != count:
        raise ArgumentError(
            f"{argument}: got {len(values)} values, expected one or {count}, as many "
            "as there are prompts."
        )
    try:
        convert = operator.index if kind is int else float
        return [convert(v) for v in values]
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"{argument}: got {value!r}, expected {kind.__name__} values."
        ) from None


def _seeds(seed: Any, count: int) -> list[int]:
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + row for row in range(count)]
    return _per_row("seed", seed, count, int)


class _Sampling(NamedTuple):
    temperature: list[float]
    top_k: int | None
    top_p: list[float] | None
    min_p: list[float] | None


def _sampling(
    temperature: Any, top_k: Any, top_p: Any, min_p: Any, count: int
) -> _Sampling:
    temperatures = _per_row("temperature", temperature, count, float)
    good = all(0 <= t < float("inf") for t in temperatures)
    check(good, "temperature", temperature, "finite values >= 0")
    if top_k is not None and not isinstance(top_k, (int, np.integer)):
        raise ArgumentTypeError(f"top_k: got {top_k!r}, expected None or an int.")
    check(top_k is None or top_k >= 1, "top_k", top_k, "None or at least 1")
    if top_p is not None:
        top_p = _per_row("top_p", top_p, count, float)
        check(all(0 < p <= 1 for p in top_p), "top_p", top_p, "values in (0, 1]")
    if min_p is not None:
        min_p = _per_row("min_p", min_p, count, float)
        check(all(0 <= p <= 1 for p in min_p), "min_p", min_p, "values in [0, 1]")
    kept = None if top_k is None else int(top_k)
    return _Sampling(temperatures, kept, top_p, min_p)


def _check_lengths(rows: list[np.ndarray], budgets: list[int], max_len: Any) -> None:
    if max_len is None:
        return
    for index, (row, budget) in enumerate(zip(rows, budgets, strict=True)):
        if len(row) + budget > max_len:
            raise ArgumentError(
                f"prompts: prompt {index} has {len(row)} tokens and max_new_tokens is "
                f"{budget}, together {len(row) + budget}; the model has {max_len} "
                "positions."
            )


def _batch(
    rows: list[np.ndarray],
    budgets: list[int],
    seeds: list[int],
    stops: tuple[int, ...],
    sampling: _Sampling,
    drafter: Drafter,
    target: Target,
    *,
    gaps: bool,
) -> tuple[loop.Batch, loop.Rules]:
    count, longest = len(rows), max(map(len, rows))
    # Size classes, so that other prompts reuse what was compiled.
    chunk = next((size for size in _CHUNKS if longest <= size), _CHUNKS[-1])
    how = _how(sampling, seeds)
    nodes = _num_nodes(drafter, target, count, how)
    need = max(longest + chunk, longest + max(budgets) + nodes)
    capacity = -(-need // _ROUND) * _ROUND
    ids = np.zeros((count, capacity), np.int32)
    for row, prompt in zip(ids, rows, strict=True):
        row[: len(prompt)] = prompt
    rules = loop.Rules(rule=verify.EXACT, gaps=gaps, capacity=capacity, chunk=chunk)
    lengths = jnp.asarray([len(row) for row in rows])
    batch = loop.Batch(
        tokens=Tokens(jnp.asarray(ids), lengths, how),
        budget=jnp.asarray(budgets, jnp.int32),
        stop_ids=jnp.asarray(stops or (-1,), jnp.int32),
        drafter=drafter.params,
    )
    return batch, rules


def _how(sampling: _Sampling, seeds: list[int]) -> Sampling | None:
    """None where every row takes the arg-max, so that nothing is drawn."""
    if not any(t > 0 for t in sampling.temperature):
        return None

    def array(values: list[float] | None) -> jax.Array | None:
        return None if values is None else jnp.asarray(values, jnp.float32)

    return Sampling(
        keys=row_keys(jnp.asarray(np.array(seeds, np.int64) & 0xFFFFFFFF, jnp.uint32)),
        temperature=jnp.asarray(sampling.temperature, jnp.float32),
        top_p=array(sampling.top_p),
        min_p=array(sampling.min_p),
        top_k=sampling.top_k,
    )


def _num_nodes(
    drafter: Drafter, target: Target, count: int, sampling: Sampling | None
) -> int:
    """Query slots of a call, without running anything."""
    shape: Any = jax.ShapeDtypeStruct
    ids, length = shape((count, _ROUND), jnp.int32), shape((count,), jnp.int32)
    tokens = Tokens(ids, length, sampling)

    def first(tokens: Tokens, params: PyTree) -> Any:
        bound = drafter.bind(params)
        return bound.propose(bound.init(target.info, tokens), tokens)[0]

    proposal = jax.eval_shape(first, tokens, drafter.params)
    tree = proposal.tree
    is_chain = tree is not None and tree == Tree.chain(tree.max_depth)
    # Extra slots hang off nodes: with them a chain is a tree.
    if not ((is_chain and proposal.extra is None) or target.info.trees):
        raise ArgumentError(
            "drafter: it drafts trees or extra slots, expected chains: the target "
            "takes nothing else. prompt_lookup() drafts chains, and so does "
            "token_recycling(template=Tree.chain(4))."
        )
    extra = 0 if proposal.extra is None else proposal.extra.positions.shape[1]
    return proposal.tokens.shape[1] + extra


def _run(
    run: loop.Runner, params: PyTree, batch: loop.Batch, state: loop.State, every: Any
) -> tuple[loop.State, int]:
    forever = np.iinfo(np.int32).max
    limit, syncs = every or forever, 0
    while True:
        state = run.advance(params, batch, state, jnp.int32(limit))
        if every is None:
            return jax.block_until_ready(state), syncs
        syncs += 1
        if not bool(jnp.any(state.live)):
            return state, syncs
        limit += every


def _result(
    state: loop.State,
    prompts: list[np.ndarray],
    vocabulary: Any,
    single: bool,
    *,
    prefill_seconds: float,
    decode_seconds: float,
    host_syncs: int,
) -> Generated:
    held = jax.device_get((state.tokens.ids, state.tokens.count, state.stopped))
    ids, counts, stopped = held
    spans = [slice(len(p), c) for p, c in zip(prompts, counts, strict=True)]

    def cut(buffer: np.ndarray) -> Any:
        parts = [row[span] for row, span in zip(buffer, spans, strict=True)]
        return parts[0] if single else parts

    calls, slots = np.asarray(state.calls), np.asarray(state.slots)
    emitted = np.array([span.stop - span.start for span in spans])
    stats = Stats(
        calls=int(calls.sum()),
        emitted=int(emitted.sum()),
        row_calls=calls,
        row_emitted=emitted,
        slots=int(slots.sum()),
        emitted_per_call=np.asarray(state.emitted_per_call),
        node_hits=np.asarray(state.node_hits),
        prompt_tokens=sum(map(len, prompts)),
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        host_syncs=host_syncs,
    )
    tokens = cut(ids)
    text = None
    if vocabulary is not None:
        listed = [tokens] if single else tokens
        texts = [vocabulary.decode(_spelled(row, vocabulary)) for row in listed]
        text = texts[0] if single else texts
    reasons = ["stop" if hit else "length" for hit in stopped]
    return Generated(
        tokens=tokens,
        text=text,
        finish_reason=reasons[0] if single else reasons,
        guarantee="token",
        stats=stats,
        call_of=cut(np.asarray(state.call_of)),
        gaps=cut(np.asarray(state.gaps)) if state.gaps.shape[1] else None,
        drafter_state=state.drafter,
    )


def _spelled(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Ids that have text: an embedding may have more rows than the tokenizer ids."""
    return ids[ids < vocabulary.size]
