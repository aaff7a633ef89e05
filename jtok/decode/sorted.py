"""A sorted draft model: each draft leaves at the first exit that is sure of it.

The draft runs in segments, from exit to exit, each with a cache of its own. A token
that left early has no keys and values in the segments above; what the segment below
gave for it is kept, and when a later token goes deeper all that are missing are pushed
through first. So a token sees at every depth what it would see had all tokens run to
that depth: the output of `jtok.predict.early_exit`, which has no cache, at a part of
its cost. Nothing of a rejected draft stays: the caches forget what was not committed.

In a batch every row leaves at its own exits, so what is drafted for a row does not
depend on its mates; the batch runs as deep as the row that goes deepest.

Source: Kavehzadeh et al. 2024, arXiv 2407.01955, section 3.2. Differs: the official
code's caches drift after a rejection, and at temperatures above 0 it verifies arg-max
drafts as if they had been drawn; neither is reproduced.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp

from jtok.decode.dynamic import Dynamic, dynamic
from jtok.decode.sorted_drafts import propose_chain, propose_tree
from jtok.decode.sorted_state import Lengths, Plan, SortedState, read_prompts
from jtok.decode.types import Drafter, Proposal, Tokens, Verdict
from jtok.errors import VocabMismatchError, check
from jtok.models import Info, Model, cut_layers, segment_config, split_layers
from jtok.ops import Penalties
from jtok.predict.confidence import Confidence
from jtok.predict.sorted import check_exits, check_thresholds

__all__ = ["Lengths", "SortedState", "lengths", "sorted_chain", "sorted_tree"]

PyTree = Any


def lengths(
    start: int = 5, *, grow: int = 2, shrink: int = 1, most: int = 8
) -> Lengths:
    """Chains that grow where all drafts are kept and shrink where not.

    Args:
      start: drafts in the first call.
      grow: added where all drafts were kept; 0 with `shrink=0` keeps the length.
      shrink: taken away where not, down to one draft.
      most: never more than that (static); each call verifies so many slots.

    Returns:
      `Lengths`.

    Raises:
      ArgumentError: a number out of range.

    Source: the schedule that the paper's code uses. Differs: the bound.

    Example:
      >>> lengths(4, grow=0, shrink=0, most=4).most
      4
    """
    check(most >= 1, "most", most, "at least 1")
    check(1 <= start <= most, "start", start, f"1 to most={most}")
    check(grow >= 0, "grow", grow, "at least 0")
    check(shrink >= 0, "shrink", shrink, "at least 0")
    return Lengths(start, grow, shrink, most)


def sorted_chain(
    model: Model,
    exits: Sequence[int],
    thresholds: Sequence[float | int],
    *,
    chain: Lengths | None = None,
    draw: Literal["shared", "own", "greedy"] = "shared",
    cut: float = 0.0,
    confidence: Confidence | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    compat: Literal["official"] | None = None,
) -> Drafter:
    """Drafts chains with a decoder whose tokens leave at the first exit that is sure.

    One draft serves every target of the same vocabulary; thresholds are the only knob:
    low for small targets, where drafts must be cheap, high for large ones. They are
    data, so another choice runs what was compiled.

    Args:
      model: the draft, trained by `jtok.predict.sorted_loss`; layers beyond the last
        exit are left out.
      exits: layers of each exit, increasing.
      thresholds: one for each exit. An exit is taken where the largest probability,
        before temperature, is above its threshold; 0 always takes the first exit, and
        above 1 it is never taken early. That of the last is not read.
      chain: how many drafts, from `lengths(...)`; None takes its defaults.
      draw: "shared" chooses as the target would, with the same noise, so the output
        equals plain decoding token by token; "own" draws with noise of its own from
        the exit's law, which it tells (for `rejection()`); "greedy" takes the arg-max
        at every temperature, verified as "shared" is.
      cut: a draft of the last exit that is less sure than that is the last of its
        chain; 0 never stops early.
      confidence: a cheaper estimate of how sure an exit is, see
        `jtok.predict.part_confidence`; None reads the whole vocabulary at every exit.
      repetition_penalty: what `generate` is given: drafts, and how sure exits are of
        them (but not by a cheaper `confidence`), then are as after the target's
        penalties. A drafter is not told of those; without, it drafts as if there were
        none, and fewer drafts are kept.
      presence_penalty: the same.
      frequency_penalty: the same.
      compat: "official" drafts the first token after the prompt at full depth.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: exits, thresholds or a number out of range.
      ArgumentTypeError: not a transformer decoder.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: arXiv 2407.01955, section 3.2. Differs: see the module; `cut`, `draw`.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> drafter = sorted_chain(tiny_model(), (1, 2), (2.0, 0.0))
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=14, drafter=drafter)
      >>> out.stats.calls, out.guarantee
      (2, 'token')
    """
    check(
        draw in ("shared", "own", "greedy"), "draw", draw, "'shared', 'own', 'greedy'"
    )
    check(0 <= cut <= 1, "cut", cut, "0 to 1")
    penalties = _penalties(repetition_penalty, presence_penalty, frequency_penalty)
    return _made(
        model, exits, thresholds, confidence, compat, cut, penalties,
        draw=draw, lengths=lengths() if chain is None else lengths(**chain._asdict()),
    )  # fmt: skip


def _penalties(
    repetition: float, presence: float, frequency: float
) -> Penalties | None:
    """Penalties of all rows alike; None where they change nothing."""
    good = 0 < repetition < math.inf
    check(good, "repetition_penalty", repetition, "a finite number > 0")
    for name, value in (("presence", presence), ("frequency", frequency)):
        check(math.isfinite(value), f"{name}_penalty", value, "a finite number")
    if (repetition, presence, frequency) == (1, 0, 0):
        return None
    values = (repetition, presence, frequency)
    return Penalties(*(jnp.full(1, value, jnp.float32) for value in values))


def sorted_tree(
    model: Model,
    exits: Sequence[int],
    thresholds: Sequence[float | int],
    *,
    size: Dynamic | None = None,
    level: Literal["max", "mean"] = "max",
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    compat: Literal["official"] | None = None,
) -> Drafter:
    """Drafts dynamic trees with a sorted draft; a level of a tree leaves together.

    Args:
      model: the draft, see `sorted_chain`.
      exits: layers of each exit, increasing.
      thresholds: one for each exit, see `sorted_chain`.
      size: from `dynamic(...)`; None takes a beam of 10, 4 expansions, 60 nodes.
      level: a level leaves at the first exit where the largest ("max") or the mean
        ("mean") confidence over its nodes is above the threshold.
      repetition_penalty: what `generate` is given, see `sorted_chain`.
      presence_penalty: the same.
      frequency_penalty: the same.
      compat: "official" drafts the first level after the prompt at full depth.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: exits or thresholds out of range.
      ArgumentTypeError: not a transformer decoder.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: the paper's later code (SD2); Li et al. 2024, arXiv 2406.16858, for the
    tree. Differs: any beam and batch.

    Example:
      >>> from jtok.decode import dynamic, generate
      >>> from jtok.testing import tiny_model
      >>> drafter = sorted_tree(tiny_model(), (1, 2), (2, 0), size=dynamic(2, 2, 8))
      >>> out = generate(tiny_model(), [1], max_new_tokens=8, drafter=drafter)
      >>> out.stats.calls < 8, out.guarantee
      (True, 'token')
    """
    check(level in ("max", "mean"), "level", level, "'max' or 'mean'")
    size = dynamic() if size is None else dynamic(*size)
    penalties = _penalties(repetition_penalty, presence_penalty, frequency_penalty)
    return _made(
        model, exits, thresholds, None, compat, 0.0, penalties, size=size, level=level
    )


def _made(
    model: Model,
    exits: Sequence[int],
    thresholds: Sequence[float | int],
    confidence: Confidence | None,
    compat: str | None,
    cut: float,
    penalties: Penalties | None,
    **choices: Any,
) -> Drafter:
    segment_config(model.config, 0, model.config.num_layers)  # a decoder, or an error
    exits = check_exits(exits, model.config.num_layers)
    bounds = check_thresholds(thresholds, len(exits))
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    part = cut_layers(model, exits[-1])
    score = None if confidence is None else confidence.score
    plan = Plan(
        part.config, exits, score, compat == "official",
        penalised=penalties is not None, **choices,
    )  # fmt: skip
    params = {
        "model": split_layers(part.params),
        "thresholds": jnp.asarray(bounds, jnp.float32),
        "cut": jnp.float32(cut),
        "score": None if confidence is None else confidence.params,
        "penalties": penalties,
    }
    vocabulary = getattr(model.vocabulary, "hash", None)
    return _drafter(plan)._replace(params=params, vocabulary=vocabulary)


@functools.lru_cache(maxsize=64)
def _drafter(plan: Plan) -> Drafter:
    vocab = plan.config.vocab_size

    def init(info: Info, tokens: Tokens, params: PyTree = None) -> SortedState:
        expected = f"{info.vocab_size} ids, as the target has"
        good = vocab == info.vocab_size
        check(good, "model", f"{vocab} ids", expected, VocabMismatchError)
        if plan.size is not None:
            wide = plan.size.beam
            check(wide <= vocab, "size", f"a beam of {wide}", f"at most {vocab}")
        return read_prompts(plan, params, tokens)

    def propose(
        state: SortedState, tokens: Tokens, params: PyTree = None
    ) -> tuple[Proposal, SortedState]:
        # Everything but the newest token was committed; drafts that were not go.
        kept = tokens.count - 1
        caches = tuple(
            dataclasses.replace(cache, length=jnp.minimum(cache.length, kept))
            for cache in state.caches
        )
        state = dataclasses.replace(state, caches=caches)
        if plan.size is None:
            return propose_chain(plan, params, state, tokens)
        return propose_tree(plan, params, state, tokens)

    def update(
        state: SortedState, verdict: Verdict, params: PyTree = None
    ) -> SortedState:
        del params
        _, grow, shrink, most = plan.lengths
        kept = verdict.count - 1
        # Where the cut ended a chain whose drafts were all kept, its length stays.
        fewer = jnp.where(kept >= state.drafted, state.length, state.length - shrink)
        more = jnp.where(kept >= state.length, state.length + grow, fewer)
        live = verdict.count > 0
        length = jnp.where(live, jnp.clip(more, 1, most), 0)
        return dataclasses.replace(state, length=length, fresh=state.fresh & ~live)

    deepest = plan.lengths.most if plan.size is None else plan.size.max_depth
    return Drafter(init, propose, update, calls=deepest)
