"""`generate`: prompts in, texts out, in as few calls as the drafter allows."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jtok.decode.course import Course
from jtok.decode.options import Options, prepare, prompts_from
from jtok.decode.processors import Processor
from jtok.decode.results import Generated, Stats
from jtok.decode.sessions import Session
from jtok.decode.types import Drafter, Rule
from jtok.models import Model, Target
from jtok.text import Vocabulary

__all__ = ["Generated", "Stats", "generate"]

PyTree = Any
Prompt = str | Sequence[int] | np.ndarray | jax.Array
Bias = Mapping[int, float]


def generate(
    model: Model | Target,
    prompts: Prompt | Sequence[Prompt] | None = None,
    *,
    messages: Sequence[Any] | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    min_new_tokens: int | Sequence[int] = 0,
    drafter: Drafter | None = None,
    rule: Rule | None = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | None = None,
    top_p: float | Sequence[float] | None = None,
    min_p: float | Sequence[float] | None = None,
    repetition_penalty: float | Sequence[float] = 1.0,
    presence_penalty: float | Sequence[float] = 0.0,
    frequency_penalty: float | Sequence[float] = 0.0,
    logit_bias: Bias | Sequence[Bias | None] | None = None,
    logits_processor: Processor | None = None,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    include_stop: bool = False,
    params: PyTree = None,
    vocabulary: Vocabulary | None = None,
    drafter_state: PyTree = None,
    cache: Session | None = None,
    keep_cache: bool = False,
    capacity: int | None = None,
    gaps: bool = False,
    logprobs: bool = False,
    top_logprobs: int = 0,
    sync_every: int | None = None,
) -> Generated:
    """Continues prompts; a drafter saves calls and changes nothing else.

    The whole loop runs on the device and is compiled once for a model, a drafter and
    a size class of prompts. A row's tokens depend on its prompt, its options and its
    seed only, not on the drafter or on its batch mates.

    On a mesh (`jax.set_mesh`) rows are shared by the axis of the rule `"batch"` (where
    it does not divide them, every device has all rows), heads and vocabulary by that of
    `"heads"`. With several processes all make the same call, and each gets all tokens.

    Args:
      model: a `Model`, or a `Target` together with `params`.
      prompts: one string or sequence of ids, or a list of them (any lengths).
      messages: in place of prompts: a conversation, a list of mappings with "role" and
        "content", or a list of conversations; the vocabulary's chat template spells it.
      max_new_tokens: tokens to emit at most, for all rows or for each.
      min_new_tokens: no stop id comes before so many other tokens.
      drafter: what proposes tokens; None decodes plainly.
      rule: how drafts are verified; None takes `rejection()` where a row samples and
        the drafter says what law it drew from, else `exact()`.
      temperature: >= 0, for all rows or for each; 0 takes the arg-max.
      top_k: sample among so many best tokens, None for all.
      top_p: in (0, 1]: sample among the fewest tokens that have this mass.
      min_p: in [0, 1]: sample among tokens this fraction as likely as the best.
      repetition_penalty: > 0: positive logits of tokens that the row has seen are
        divided by it, negative ones multiplied; 1 for none. Values may differ by row.
      presence_penalty: nats taken from tokens that the row has seen.
      frequency_penalty: nats taken for each time that it has.
      logit_bias: nats added to the logits of ids, by id; -inf excludes one. One
        mapping for all rows, or one (or None) for each.
      logits_processor: a constraint, such as `dfa` makes.
      seed: of row 0, row b takes `seed + b`; or one for each row.
      stop_ids: ids that end a row (emitted, too); None takes the model's, () none.
      stop_strings: strings that end a row as soon as its text holds one. Its tokens
        are those up to the one that completes the string.
      include_stop: keep the stop string in the text.
      params: parameters of a `Target`.
      vocabulary: to encode and decode strings; None takes the model's.
      drafter_state: `Generated.drafter_state` of an earlier run with this drafter.
      cache: `Generated.cache` of an earlier run with this model and as many rows.
        Prompts are given whole, as without it; of each, what its row of the cache
        begins with is not computed again (a prompt may share all, some or none of it).
        A drafter that reads prompts sees the rest only.
      capacity: slots of a row's cache; None takes as many as needed, in classes of 128.
        One capacity for many calls lets them share what was compiled.
      keep_cache: return the cache; it is returned, too, where one was given.
      gaps: also return how close every choice was.
      logprobs: also return the log-probability of every token.
      top_logprobs: so many alternatives to return with theirs.
      sync_every: steps between looks by the host; None runs to the end, or looks every
        16 steps for stop strings. A drafter that needs the host has it look after each.

    Returns:
      `Generated`.

    Raises:
      ArgumentError: an argument out of its range, an id outside the vocabulary, an
        empty prompt, more tokens than the model has positions, a number of per-row
        values unlike the number of prompts, trees for a target that takes chains, or
        a cache that this target cannot continue from, a rule that needs a law
        which the drafter does not give, or a mesh that does not divide the heads.
      VocabMismatchError: the drafter speaks of another vocabulary.
      ArgumentTypeError: a prompt that is neither text nor ids, or another argument of
        a type that it does not take.

    Source: for the verification, see `jtok.decode.verify`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> generate(tiny_model(), [1, 2, 3], max_new_tokens=4).tokens.shape
      (4,)
    """
    prompts = prompts_from(model, prompts, messages, vocabulary)
    options = Options(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        drafter=drafter,
        rule=rule,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        logits_processor=logits_processor,
        seed=seed,
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        include_stop=include_stop,
        params=params,
        vocabulary=vocabulary,
        drafter_state=drafter_state,
        cache=cache,
        keep_cache=keep_cache,
        capacity=capacity,
        gaps=gaps,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        sync_every=sync_every,
    )
    course = Course(prepare(model, prompts, options))
    while course.advance():
        pass
    return course.result()
