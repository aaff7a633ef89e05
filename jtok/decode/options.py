"""What `generate` and its relatives are asked for: defaults, and what is refused."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok.decode import loop, shaping
from jtok.decode.arguments import (
    SamplingOptions,
    bias_from,
    check_drafter_state,
    check_lengths,
    check_vocabulary,
    encode_messages,
    encode_prompts,
    per_row,
    sampling_from,
    seeds_from,
    stop_ids_from,
)
from jtok.decode.drafters import no_drafter
from jtok.decode.processors import Processor
from jtok.decode.rules import rule_for
from jtok.decode.sessions import Session, reuse
from jtok.decode.stops import StopStrings
from jtok.decode.types import Drafter, Proposal, Sampling, Tokens
from jtok.errors import ArgumentError, ArgumentTypeError, check, near
from jtok.models import Model, Target, model_target, split_layers, vector_ids
from jtok.models.checkpoint import place_params
from jtok.ops import Tree, row_keys
from jtok.ops.penalties import Penalties
from jtok.ops.sharding import entered_mesh, onto_mesh, place, sharding_for
from jtok.text import Vocabulary

__all__ = ["Options", "Prepared", "options_from", "prepare", "prompts_from"]

PyTree = Any
Prompt = str | Sequence[int] | np.ndarray | jax.Array
_ROUND = 128
_CHUNKS = (64, 256)
# Steps between looks for stop strings; a surplus of so many calls is thrown away.
_STOP_LOOK = 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `generate`, which documents them."""

    max_new_tokens: Any = 128
    min_new_tokens: Any = 0
    drafter: Drafter | None = None
    rule: Any = None
    temperature: Any = 0.0
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = 1.0
    presence_penalty: Any = 0.0
    frequency_penalty: Any = 0.0
    logit_bias: Any = None
    logits_processor: Any = None
    seed: Any = 0
    stop_ids: Any = None
    stop_strings: Any = None
    include_stop: bool = False
    params: PyTree = None
    vocabulary: Vocabulary | None = None
    drafter_state: PyTree = None
    cache: Any = None
    capacity: Any = None
    keep_cache: bool = False
    gaps: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    sync_every: int | None = None


def options_from(given: Mapping[str, Any]) -> Options:
    """Options by name; a name that does not exist is refused."""
    known = Options.__dataclass_fields__
    for name in given:
        if name not in known:
            raise ArgumentTypeError(
                f"{name}: there is no such option{near(name, known)}."
            )
    return Options(**given)


def prompts_from(model: Any, prompts: Any, messages: Any, vocabulary: Any) -> Any:
    """Prompts as they were given, or made of messages."""
    if messages is None:
        return prompts
    check(prompts is None, "prompts", "some", "None beside messages")
    vocabulary = vocabulary or getattr(model, "vocabulary", None)
    return encode_messages(messages, vocabulary)


class Prepared(NamedTuple):
    """A run that was checked and can start.

    Attributes:
      target: what is decoded.
      params: its parameters.
      drafter: what proposes.
      vocabulary: for texts, or None.
      prompts: ids of every row.
      single: whether there was one prompt, not a list.
      batch: what the loop is given.
      rules: what compiles it.
      held: of an earlier run, or None.
      stops: stop strings, or None.
      sync_every: steps between looks, or None.
      options: as the user gave them.
    """

    target: Target
    params: PyTree
    drafter: Drafter
    vocabulary: Any
    prompts: list[np.ndarray]
    single: bool
    batch: loop.Batch
    rules: loop.Rules
    held: loop.Held | None
    stops: StopStrings | None
    sync_every: int | None
    options: Options


@entered_mesh()
def prepare(
    model: Any,
    prompts: Any,
    options: Options,
    *,
    trace: bool = False,
    room: int = 0,
) -> Prepared:
    """Checks everything that the user gave and lays it out for the device.

    `trace` records how tokens came about; `room` asks for a capacity of so many slots
    or more.
    """
    drafter = no_drafter() if options.drafter is None else options.drafter
    target, params, vocabulary, default_stops = _target(
        model, options.params, options.vocabulary, drafter
    )
    vocab_size = target.info.vocab_size
    vectors = vector_ids(params, vocab_size)
    rows, single = encode_prompts(prompts, vocabulary, vocab_size, vectors)
    count = len(rows)
    budgets = per_row("max_new_tokens", options.max_new_tokens, count, int)
    check(min(budgets) > 0, "max_new_tokens", options.max_new_tokens, "at least 1")
    every = options.sync_every
    check(every is None or every >= 1, "sync_every", every, "None or >= 1")
    stop_ids = stop_ids_from(options.stop_ids, default_stops, vocab_size)
    sampling = sampling_from(
        options.temperature, options.top_k, options.top_p, options.min_p, count
    )
    how = _shaping(options, budgets, vocab_size)
    check_drafter_state(options.drafter_state, drafter)
    seeds = seeds_from(options.seed, count)
    check_lengths(rows, budgets, target.info.max_len)
    stops = _stop_strings(options, vocabulary)
    if stops is not None and every is None:
        every = _STOP_LOOK
    if drafter.host is not None:
        every = 1
    top = options.top_logprobs
    if not isinstance(top, (int, np.integer)) or isinstance(top, bool):
        raise ArgumentTypeError(f"top_logprobs: got {top!r}, expected an int.")
    check(0 <= top <= vocab_size, "top_logprobs", top, f"0..{vocab_size}")
    if options.cache is not None:
        room = max(room, _checked_cache(options.cache, count).capacity)
    chosen = _how(sampling, seeds)
    check_vocabulary(drafter, vocabulary)
    proposal = _first_proposal(drafter, target, count, chosen)
    chunk, capacity = _sizes(rows, budgets, _num_nodes(proposal), room)
    if options.capacity is not None:
        capacity = _checked_capacity(options.capacity, capacity)
    held = None
    if options.cache is not None:
        held = reuse(target, options.cache, rows)
    processor = options.logits_processor
    if processor is not None:
        _check_processor(processor, target, count)
    rules = loop.Rules(
        rule=rule_for(options.rule, proposal, sampled=chosen is not None),
        gaps=options.gaps,
        capacity=capacity,
        chunk=chunk,
        processor=None if processor is None else processor._replace(params=None),
        shapes=processor is not None or bool(jax.tree.leaves(how)),
        logprobs=options.logprobs,
        top_logprobs=int(top),
        trace=trace or stops is not None,
    )
    batch = loop.Batch(
        tokens=_tokens(rows, capacity, chosen),
        budget=jnp.asarray(budgets, jnp.int32),
        stop_ids=jnp.asarray(stop_ids or (-1,), jnp.int32),
        drafter=drafter.params,
        shaping=how,
    )
    batch, params = _on_mesh(batch, count), _placed(model, params)
    return Prepared(
        target, params, drafter, vocabulary, rows, single, batch, rules, held, stops,
        every, options,
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


def _placed(model: Any, params: PyTree) -> PyTree:
    """Parameters on the current mesh: a model's by the rules, others whole."""
    if isinstance(model, Model):
        return place_params(params, model.config)
    return onto_mesh(params)


def _on_mesh(batch: loop.Batch, count: int) -> loop.Batch:
    """Rows where the mesh has them; what has none, such as stop ids, everywhere."""

    def by_row(leaf: Any) -> Any:
        names = ("batch", *(None,) * leaf.ndim)[: leaf.ndim]
        if leaf.shape[:1] != (count,):
            names = (None,) * leaf.ndim
        return place(leaf, sharding_for(names, shape=leaf.shape))

    rows = (batch.tokens, batch.budget, batch.shaping)
    tokens, budget, shaping = jax.tree.map(by_row, rows)
    return dataclasses.replace(
        batch, tokens=tokens, budget=budget, shaping=shaping,
        stop_ids=onto_mesh(batch.stop_ids), drafter=onto_mesh(batch.drafter),
    )  # fmt: skip


def _sizes(
    rows: list[np.ndarray], budgets: list[int], nodes: int, room: int
) -> tuple[int, int]:
    """Tokens a prefill step and slots a row, in classes that reuse what is compiled."""
    longest = max(map(len, rows))
    chunk = next((size for size in _CHUNKS if longest <= size), _CHUNKS[-1])
    need = max(longest + chunk, longest + max(budgets) + nodes, room)
    return chunk, -(-need // _ROUND) * _ROUND


def _checked_capacity(given: Any, needed: int) -> int:
    if not isinstance(given, (int, np.integer)) or isinstance(given, bool):
        raise ArgumentTypeError(f"capacity: got {given!r}, expected None or an int.")
    expected = f"at least {needed}, what these prompts and budgets need"
    check(given >= needed, "capacity", given, expected)
    return int(given)


def _tokens(rows: list[np.ndarray], capacity: int, how: Sampling | None) -> Tokens:
    ids = np.zeros((len(rows), capacity), np.int32)
    for row, prompt in zip(ids, rows, strict=True):
        row[: len(prompt)] = prompt
    return Tokens(jnp.asarray(ids), jnp.asarray([len(row) for row in rows]), how)


def _how(sampling: SamplingOptions, seeds: list[int]) -> Sampling | None:
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


def _first_proposal(
    drafter: Drafter, target: Target, count: int, sampling: Sampling | None
) -> Proposal:
    """Shapes of what is proposed, without running anything."""
    shape: Any = jax.ShapeDtypeStruct
    ids, length = shape((count, _ROUND), jnp.int32), shape((count,), jnp.int32)
    tokens = Tokens(ids, length, sampling)

    def first(tokens: Tokens, params: PyTree) -> Any:
        bound = drafter.bind(params)
        return bound.propose(bound.init(target.info, tokens), tokens)[0]

    proposal: Proposal = jax.eval_shape(first, tokens, drafter.params)
    tree = proposal.tree
    is_chain = tree is not None and tree == Tree.chain(tree.max_depth)
    # Extra slots hang off nodes: with them a chain is a tree.
    if not ((is_chain and proposal.extra is None) or target.info.trees):
        raise ArgumentError(
            "drafter: it drafts trees or extra slots, expected chains: the target "
            "takes nothing else. prompt_lookup() drafts chains, and so does "
            "token_recycling(template=Tree.chain(4))."
        )
    return proposal


def _num_nodes(proposal: Proposal) -> int:
    """Query slots of a call."""
    extra = 0 if proposal.extra is None else proposal.extra.positions.shape[1]
    return proposal.tokens.shape[1] + extra


def _shaping(options: Options, budgets: list[int], vocab_size: int) -> shaping.Shaping:
    """What changes the logits; nothing where all options are as by default."""
    count = len(budgets)
    names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    values = {n: per_row(n, getattr(options, n), count, float) for n in names}
    good = all(0 < v < float("inf") for v in values[names[0]])
    check(good, names[0], options.repetition_penalty, "finite values > 0")
    for name in names[1:]:
        good = all(np.isfinite(v) for v in values[name])
        check(good, name, getattr(options, name), "finite values")
    penalties = None
    if any(set(v) != {float(n == names[0])} for n, v in values.items()):
        arrays = (jnp.asarray(values[name], jnp.float32) for name in names)
        penalties = Penalties(*arrays)
    least = per_row("min_new_tokens", options.min_new_tokens, count, int)
    good = all(0 <= n <= most for n, most in zip(least, budgets, strict=True))
    expected = "0 up to max_new_tokens"
    check(good, "min_new_tokens", options.min_new_tokens, expected)
    return shaping.Shaping(
        penalties=penalties,
        bias=bias_from(options.logit_bias, count, vocab_size),
        min_new=jnp.asarray(least, jnp.int32) if any(least) else None,
        processor=getattr(options.logits_processor, "params", None),
    )


def _check_processor(processor: Any, target: Target, count: int) -> None:
    """Runs nothing: `init` is traced, so that a mismatch is found before the target."""
    if not isinstance(processor, Processor):
        raise ArgumentTypeError(
            f"logits_processor: got {type(processor).__name__}, expected a "
            "jtok.decode.Processor."
        )
    shape: Any = jax.ShapeDtypeStruct
    tokens = Tokens(shape((count, _ROUND), jnp.int32), shape((count,), jnp.int32))

    def first(tokens: Tokens, params: PyTree) -> PyTree:
        return processor.bind(params).init(target.info, tokens)

    for leaf in jax.tree.leaves(jax.eval_shape(first, tokens, processor.params)):
        got, expected = f"a state of shape {leaf.shape}", f"[{count}, ...], rows first"
        check(leaf.shape[:1] == (count,), "logits_processor", got, expected)


def _checked_cache(cache: Any, count: int) -> Session:
    if not isinstance(cache, Session):
        raise ArgumentTypeError(
            f"cache: got {type(cache).__name__}, expected `Generated.cache` of an "
            "earlier run."
        )
    rows = cache.ids.shape[0]
    check(rows == count, "cache", f"{rows} rows", f"{count}, as there are prompts")
    return cache


def _stop_strings(options: Options, vocabulary: Any) -> StopStrings | None:
    given = options.stop_strings
    if given is None:
        good = not options.include_stop
        check(good, "include_stop", True, "False without stop_strings")
        return None
    listed = (given,) if isinstance(given, str) else given
    good = isinstance(listed, Sequence) and not isinstance(listed, bytes)
    if not good or not all(isinstance(s, str) for s in listed):
        raise ArgumentTypeError(
            f"stop_strings: got {given!r}, expected None, a string or several."
        )
    if not listed:
        return None
    check("" not in listed, "stop_strings", given, "strings that are not empty")
    if vocabulary is None:
        raise ArgumentError(
            "vocabulary: got None, expected one: there are stop_strings to look for."
        )
    return StopStrings(tuple(listed), vocabulary, options.include_stop)
