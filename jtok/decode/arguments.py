"""Checks of single arguments: each names itself, what came and what it takes."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok.decode.types import Drafter
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError, check

__all__ = [
    "SamplingOptions",
    "bias_from",
    "check_drafter_state",
    "check_id",
    "check_lengths",
    "check_vocabulary",
    "encode_messages",
    "encode_prompts",
    "per_row",
    "sampling_from",
    "seeds_from",
    "stop_ids_from",
]

PyTree = Any


def encode_prompts(
    prompts: Any, vocabulary: Any, vocab_size: int, vectors: range = range(0)
) -> tuple[list[np.ndarray], bool]:
    """Ids of every prompt, and whether there was a single one.

    Beside the vocabulary's, `vectors` are ids, see `jtok.models.vector_ids`.
    """
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
        tokens = ids[(ids < vectors.start) | (ids >= vectors.stop)]
        for extreme in (tokens.min(), tokens.max()) if tokens.size else ():
            check_id(f"prompts[{index}]", int(extreme), vocab_size)
        rows.append(ids.astype(np.int32))
    return rows, single


def stop_ids_from(
    stop_ids: Any, default: tuple[int, ...], vocab_size: int
) -> tuple[int, ...]:
    if stop_ids is None:
        stop_ids = default
    listed = isinstance(stop_ids, Sequence | np.ndarray)
    if not listed or not all(isinstance(i, (int, np.integer)) for i in stop_ids):
        raise ArgumentTypeError(
            f"stop_ids: got {stop_ids!r}, expected None or a sequence of integer ids."
        )
    for stop in stop_ids:
        check_id("stop_ids", int(stop), vocab_size)
    return tuple(int(stop) for stop in stop_ids)


def check_id(argument: str, token: int, vocab_size: int) -> None:
    check(0 <= token < vocab_size, argument, token, f"ids in 0..{vocab_size - 1}")


def per_row(argument: str, value: Any, count: int, kind: type) -> list[Any]:
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


def seeds_from(seed: Any, count: int) -> list[int]:
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + row for row in range(count)]
    return per_row("seed", seed, count, int)


class SamplingOptions(NamedTuple):
    temperature: list[float]
    top_k: int | None
    top_p: list[float] | None
    min_p: list[float] | None


def sampling_from(
    temperature: Any, top_k: Any, top_p: Any, min_p: Any, count: int
) -> SamplingOptions:
    temperatures = per_row("temperature", temperature, count, float)
    good = all(0 <= t < float("inf") for t in temperatures)
    check(good, "temperature", temperature, "finite values >= 0")
    if top_k is not None and not isinstance(top_k, (int, np.integer)):
        raise ArgumentTypeError(f"top_k: got {top_k!r}, expected None or an int.")
    check(top_k is None or top_k >= 1, "top_k", top_k, "None or at least 1")
    if top_p is not None:
        top_p = per_row("top_p", top_p, count, float)
        check(all(0 < p <= 1 for p in top_p), "top_p", top_p, "values in (0, 1]")
    if min_p is not None:
        min_p = per_row("min_p", min_p, count, float)
        check(all(0 <= p <= 1 for p in min_p), "min_p", min_p, "values in [0, 1]")
    kept = None if top_k is None else int(top_k)
    return SamplingOptions(temperatures, kept, top_p, min_p)


def check_lengths(rows: list[np.ndarray], budgets: list[int], max_len: Any) -> None:
    if max_len is None:
        return
    for index, (row, budget) in enumerate(zip(rows, budgets, strict=True)):
        if len(row) + budget > max_len:
            raise ArgumentError(
                f"prompts: prompt {index} has {len(row)} tokens and max_new_tokens is "
                f"{budget}, together {len(row) + budget}; the model has {max_len} "
                "positions."
            )


def bias_from(given: Any, count: int, vocab_size: int) -> jax.Array | None:
    """`[1 or batch, vocab]` float32 of one mapping for all rows, or of one for each."""
    if given is None:
        return None
    listed = [given] if isinstance(given, Mapping) else given
    good = isinstance(listed, Sequence) and not isinstance(listed, str)
    if not good or not all(b is None or isinstance(b, Mapping) for b in listed):
        raise ArgumentTypeError(
            f"logit_bias: got {given!r}, expected a mapping of ids to numbers, or one "
            "for each row."
        )
    if listed is given and len(listed) != count:
        raise ArgumentError(
            f"logit_bias: got {len(listed)} mappings, expected one or {count}, as many "
            "as there are prompts."
        )
    bias = np.zeros((len(listed), vocab_size), np.float32)
    for row, pairs in zip(bias, listed, strict=True):
        for token, value in (pairs or {}).items():
            if not isinstance(token, (int, np.integer)):
                raise ArgumentTypeError(
                    f"logit_bias: got the key {token!r}, expected integer ids."
                )
            check_id("logit_bias", int(token), vocab_size)
            try:
                row[token] = float(value)
            except (TypeError, ValueError):
                raise ArgumentTypeError(
                    f"logit_bias: got {value!r} for id {token}, expected a number."
                ) from None
            good = row[token] < float("inf")
            check(good, "logit_bias", value, "finite numbers or -inf")
    return jnp.asarray(bias)


def check_drafter_state(drafter_state: PyTree, drafter: Drafter) -> None:
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


def encode_messages(messages: Any, vocabulary: Any) -> Any:
    """Ids of one conversation, or of each of several, by the chat template."""
    if vocabulary is None:
        raise ArgumentError(
            "vocabulary: got None, expected one: there are messages to encode."
        )
    listed = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not listed:
        raise ArgumentTypeError(
            f"messages: got {type(messages).__name__}, expected a list of mappings "
            "with 'role' and 'content', or a list of such lists."
        )
    check(len(messages) > 0, "messages", messages, "at least one message")
    if vocabulary.chat_template is None:
        raise ArgumentError(
            "messages: the vocabulary has no chat_template, expected one in its "
            "tokenizer_config.json; or give prompts."
        )
    if isinstance(messages[0], Mapping):
        return vocabulary.encode_chat(messages)
    return [vocabulary.encode_chat(conversation) for conversation in messages]


def check_vocabulary(drafter: Drafter, vocabulary: Any) -> None:
    """Refuses a drafter that was made for another vocabulary than the target's."""
    theirs, ours = drafter.vocabulary, getattr(vocabulary, "hash", None)
    if theirs is not None and ours is not None and theirs != ours:
        raise VocabMismatchError(
            f"drafter: it speaks of another vocabulary ({theirs[:12]}), expected the "
            f"target's ({ours[:12]})."
        )
