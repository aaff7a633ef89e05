"""Labels of texts and of tokens, and one vector a text, from an encoder."""

import dataclasses
import json
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok import nn
from jtok.errors import ArgumentTypeError, check
from jtok.models.checkpoint import place_params
from jtok.models.compression import CompressedOutput
from jtok.models.encoder_heads import head_features, init_head
from jtok.models.families_heads import head_options
from jtok.models.model import Model

__all__ = ["add_classifier", "classify", "pool"]

PyTree = Any
_HEADS = ("masked_lm", "sequence", "token")


def classify(
    model: Model,
    inputs: Any,
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    positions: Any = None,
) -> Float[Array, "batch *seq labels"]:
    """Label logits of each sequence or of each token, as the model's head says.

    Args:
      model: an encoder with a "sequence" or "token" head, loaded or from
        `add_classifier`.
      inputs: `[batch, seq]` ids, vectors or `Segments`, as `Model` takes them.
      mask: `[batch, seq]` True for real tokens; None lets all be real.
      positions: as `Model` takes them.

    Returns:
      Float32 `[batch, labels]` of a "sequence" head, `[batch, seq, labels]` of a
      "token" head; those of masked tokens mean nothing.

    Raises:
      ArgumentError: the model has another head or none, or a mask of another shape.
      ArgumentTypeError: the model is no encoder.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = add_classifier(tiny_model(family="bert"), 3, jax.random.key(0))
      >>> classify(model, jnp.array([[1, 2, 3]])).shape
      (1, 3)
    """
    config = _encoder_config(model)
    wanted = "one with a head for the 'sequence' or each 'token' (add_classifier)"
    good = config.head in ("sequence", "token")
    check(good, "model", f"head={config.head!r}", wanted)
    if mask is not None:
        mask = jnp.asarray(mask).astype(bool)
    out = model(inputs, mask=mask, positions=positions, logits="none")
    hidden = out.hidden
    if isinstance(out, CompressedOutput):  # every token reads the row that it joined
        hidden = out.plan.unmerge(hidden)
    if config.head == "sequence":
        how: Any = config.head_pooling
        hidden = pool(hidden, mask, how=how, model=model)
    head = model.params[config.head]
    features = head_features(head, config, hidden)
    logits = jnp.einsum(
        "...d,dl->...l",
        features,
        head["labels"]["kernel"],
        preferred_element_type=jnp.float32,
    )
    bias = head["labels"]["bias"].astype(jnp.float32)
    return logits + jnp.broadcast_to(bias, logits.shape)


def pool(
    hidden: Float[Array, "batch seq dim"],
    mask: Any = None,
    *,
    how: Literal["mean", "cls", "pooler"] = "mean",
    model: Model | None = None,
) -> Float[Array, "batch dim"]:
    """One vector for each sequence.

    Args:
      hidden: `[batch, seq, dim]` hidden states.
      mask: `[batch, seq]` True for real tokens; None lets all be real.
      how: the "mean" of the real tokens (0 of none), the first real token ("cls"), or
        the model's own "pooler" of that: a linear map and tanh.
      model: whose pooler; needed for "pooler" only.

    Returns:
      `[batch, dim]` in the dtype of `hidden`; the mean is taken in float32.

    Raises:
      ArgumentError: an unknown `how`, a mask of another shape, or a model without a
        pooler.

    Example:
      >>> x = jnp.arange(6.0).reshape(1, 3, 2)
      >>> pool(x, jnp.array([[True, True, False]])).tolist()
      [[1.0, 2.0]]
    """
    known = ("mean", "cls", "pooler")
    check(how in known, "how", how, f"one of {known}")
    if mask is not None:
        mask = jnp.asarray(mask)
        good = mask.shape == hidden.shape[:2]
        check(good, "mask", f"shape {mask.shape}", f"{list(hidden.shape[:2])}")
    if how == "mean":
        real = jnp.ones(hidden.shape[:2], bool) if mask is None else mask.astype(bool)
        kept = jnp.where(real[..., None], hidden.astype(jnp.float32), 0.0)
        count = jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
        return (jnp.sum(kept, axis=1) / count).astype(hidden.dtype)
    if mask is None:
        first = hidden[:, 0]
    else:
        at = jnp.argmax(mask.astype(bool), axis=1)[:, None, None]
        first = jnp.take_along_axis(hidden, at, axis=1)[:, 0]
    if how == "cls":
        return first
    there = model is not None and "pooler" in model.params
    check(there, "model", None if model is None else "one without a pooler", "a pooler")
    dense = model.params["pooler"]  # type: ignore[union-attr]
    return head_features(dense, _encoder_config(model), first, "tanh")


def add_classifier(
    model: Model, num_labels: int, key: jax.Array, *, per_token: bool = False
) -> Model:
    """Puts a fresh classification head on an encoder, in place of the head it has.

    The head is its family's own (of BERT: pooler and linear map; of RoBERTa: linear
    map, tanh, linear map), so the model can be saved and `transformers` reads it; of
    T5, which has none on disk, the linear map reads the mean. A pooler that the model
    has is kept, and ModernBERT's dense part, as both are trained with the encoder.

    Args:
      model: an encoder, layers split or stacked.
      num_labels: labels, at least 1.
      key: typed PRNG key of the new parameters, consumed.
      per_token: a label for each token instead of one for the sequence.

    Returns:
      `Model` for `classify`, that shares the encoder's arrays.

    Raises:
      ArgumentError: `num_labels` below 1.
      ArgumentTypeError: the model is no encoder.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="roberta")
      >>> tagger = add_classifier(model, 5, jax.random.key(0), per_token=True)
      >>> classify(tagger, jnp.array([[3, 4]])).shape
      (1, 2, 5)
    """
    old = _encoder_config(model)
    check(num_labels >= 1, "num_labels", num_labels, "at least 1")
    head = "token" if per_token else "sequence"
    options = head_options(old.family, head)
    if old.family == "modernbert":
        options["head_pooling"] = old.head_pooling
    options |= {"num_labels": num_labels, "next_sentence": False}
    config = dataclasses.replace(old, source=_unlabelled(old.source), **options)
    fresh = init_head(config, key)
    held = model.params
    if config.pooler and "pooler" in held:
        fresh["pooler"] = held["pooler"]
    if config.family == "modernbert" and old.head is not None:
        same = {name: held[old.head][name] for name in ("dense", "norm")}
        fresh[head] = {**fresh[head], **same}
    dropped = (*_HEADS, "pooler", "next_sentence")
    params = {name: part for name, part in held.items() if name not in dropped}
    return dataclasses.replace(
        model, params=place_params(params | fresh, config), config=config
    )


def _unlabelled(source: str) -> str:
    """The checkpoint's configuration without what it says of other labels."""
    gone = ("id2label", "label2id", "problem_type", "num_labels", "add_pooling_layer")
    fields = json.loads(source)
    return json.dumps({name: fields[name] for name in fields if name not in gone})


def _encoder_config(model: Any) -> nn.EncoderConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, nn.EncoderConfig):
        kind = type(config if config is not None else model).__name__
        raise ArgumentTypeError(f"model: got a {kind}, expected an encoder.")
    return config
