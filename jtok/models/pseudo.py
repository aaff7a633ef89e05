"""How likely an encoder finds texts: every token in turn is masked and predicted."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models.encoder_heads import masked_features, masked_rows
from jtok.models.model import Model
from jtok.models.scoring import (
    Scores,
    Text,
    _check_counts,
    _grouped,
    _ids,
    _listed,
    _max_len,
    _num_bytes,
)
from jtok.ops.sharding import constrain
from jtok.ops.unembed import cross_entropy

__all__ = ["pseudo_score"]


def pseudo_score(
    model: Model,
    texts: Sequence[Text],
    *,
    batch_size: int = 32,
    mask_id: int | None = None,
    vocabulary: Any = None,
) -> Scores:
    """The pseudo-log-likelihood of each text under a masked language model.

    Each token is masked once and predicted from all others, in a row of its own; the
    log-probabilities are summed. That is no likelihood: it ranks texts, and its
    perplexity does not compare with a causal model's. Special tokens around a string
    (or in ids, where there is a vocabulary) are seen and not scored. Rows are batched
    by length; logits are never written whole.

    Args:
      model: an encoder with a masked-LM head.
      texts: strings or sequences of ids.
      batch_size: rows a call, one for each scored token.
      mask_id: the mask's id; None takes the vocabulary's.
      vocabulary: None takes the model's.

    Returns:
      `Scores`; `num_tokens` counts the scored tokens.

    Raises:
      ArgumentError: no masked-LM head, no mask, or a text that is longer than the
        model's positions.
      ArgumentTypeError: the model is no encoder, or `texts` is one string, or holds
        something else than texts.
      VocabMismatchError: an id that the model has no row for.

    Source: Salazar et al. 2020, arXiv 1910.14659, section 2.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> scores = pseudo_score(tiny_model(family="bert"), [[5, 6, 7]], mask_id=4)
      >>> scores.num_tokens.tolist()
      [3]
    """
    config = model.config
    if not isinstance(config, nn.EncoderConfig):
        kind = type(config).__name__
        raise ArgumentTypeError(f"model: got a {kind}, expected an encoder.")
    good = config.head == "masked_lm"
    check(good, "model", f"one with head={config.head!r}", "a masked-LM head")
    _check_counts(batch_size=batch_size)
    vocabulary = model.vocabulary if vocabulary is None else vocabulary
    mask_id = _mask_id(mask_id, vocabulary, config.vocab_size)
    rows = [
        _ids(text, index, vocabulary, config.vocab_size)
        for index, text in enumerate(_listed(texts))
    ]
    most = _max_len(config)
    for index, row in enumerate(rows):
        good = most is None or len(row) <= most
        got = f"text {index} of {len(row)} tokens"
        check(good, "texts", got, f"at most {most}")
    scored = [_scored(row, vocabulary) for row in rows]
    nats = np.zeros(len(rows), np.float64)
    longest = max(map(len, rows), default=1)
    cases = [(index, int(at)) for index, some in enumerate(scored) for at in some]
    for width, items in _grouped(
        cases, batch_size, longest, lambda case: len(rows[case[0]])
    ):
        batch = _masked_batch(rows, items, (batch_size, width), mask_id)
        found = np.asarray(_masked_nats(model, *batch), np.float64)
        for (index, _), value in zip(items, found):
            nats[index] += value
    kept = [np.append(np.int32(0), row[some]) for row, some in zip(rows, scored)]
    counts = np.array([len(some) for some in scored], np.int64)
    return Scores(-nats, counts, _num_bytes(texts, kept, vocabulary))


def _mask_id(mask_id: int | None, vocabulary: Any, vocab_size: int) -> int:
    if mask_id is None and vocabulary is not None:
        mask_id = vocabulary.special.get("mask")
    if mask_id is None:
        raise ArgumentError(
            "mask_id: got None, and there is no vocabulary with a mask; give its id."
        )
    check(0 <= mask_id < vocab_size, "mask_id", mask_id, f"0..{vocab_size - 1}")
    return mask_id


def _scored(row: np.ndarray, vocabulary: Any) -> np.ndarray:
    """Where the tokens are that are no special ones."""
    hidden = [] if vocabulary is None else sorted(vocabulary.special_ids)
    return np.flatnonzero(~np.isin(row, hidden))


def _masked_batch(
    rows: list[np.ndarray],
    items: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    mask_id: int,
) -> Iterator[np.ndarray]:
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    places, targets = np.zeros(shape[0], np.int32), np.zeros(shape[0], np.int32)
    for line, (index, at) in enumerate(items):
        row = rows[index]
        tokens[line, : len(row)], mask[line, : len(row)] = row, True
        tokens[line, at] = mask_id
        places[line], targets[line] = at, row[at]
    return iter((tokens, mask, places, targets))


@jax.jit
def _masked_nats(
    model: Any,
    tokens: Int[Array, "batch length"] | Int[np.ndarray, "batch length"],
    mask: Bool[Array, "batch length"] | Bool[np.ndarray, "batch length"],
    places: Int[Array, " batch"] | Int[np.ndarray, " batch"],
    targets: Int[Array, " batch"] | Int[np.ndarray, " batch"],
) -> Float[Array, " batch"]:
    tokens = constrain(jnp.asarray(tokens), "batch", None)
    hidden = model(tokens, mask=jnp.asarray(mask), logits="none").hidden
    at = jnp.asarray(places)[:, None, None]
    one = jnp.take_along_axis(hidden, at, axis=1)[:, 0]
    features = masked_features(model.params, model.config, one)
    weight, bias = masked_rows(model.params, model.config)
    return cross_entropy(features, weight, jnp.asarray(targets), bias=bias)
