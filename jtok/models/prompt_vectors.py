"""Vectors in a prompt: images, merged tokens and sound beside the words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.errors import ArgumentTypeError, check
from jtok.models.model import Model
from jtok.nn import DecoderConfig

__all__ = ["vector_ids", "with_vectors"]


def with_vectors(model: Model, vectors: Float[Array, "rows dim"]) -> Model:
    """The model with more ids, each of which stands for a vector of a prompt.

    The ids follow those of the vocabulary, and of mask tokens where there are any; they
    are read by the model itself, by `jtok.decode.generate` and by every drafter. None
    is ever emitted, as the output rows stay what they are. A prompt's vectors are those
    of one call: a cache that was made with other vectors under the same ids does not
    belong to it.

    Args:
      model: a decoder without such vectors.
      vectors: `[rows, dim]`, `dim` being the model's width, as they enter the first
        layer of a model that does not scale its embeddings; one that does scales them.

    Returns:
      `Model`; `vector_ids` says which id stands for which row.

    Raises:
      ArgumentError: another width, or a model that has vectors already.
      ArgumentTypeError: the model is no transformer decoder.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = with_vectors(tiny_model(), jnp.ones((2, 32)))
      >>> model(jnp.array([[5, 96, 97, 7]]), logits="last").logits.shape
      (1, 1, 96)
    """
    config = model.config
    if not isinstance(config, DecoderConfig):
        raise ArgumentTypeError(
            f"model: got a model of {type(config).__name__}, expected a transformer "
            "decoder."
        )
    width = config.width
    good = vectors.ndim == 2 and vectors.shape[1] == width and vectors.shape[0] > 0
    check(good, "vectors", f"shape {vectors.shape}", f"[rows, {width}]")
    embed = model.params["embed"]
    check("vectors" not in embed, "model", "one with vectors", "one without")
    params = {**model.params, "embed": {**embed, "vectors": jnp.asarray(vectors)}}
    return dataclasses.replace(model, params=params)


def vector_ids(params: Any, vocab_size: int) -> range:
    """The ids that are read as vectors, see `with_vectors`.

    Args:
      params: of any model.
      vocab_size: ids of its vocabulary.

    Returns:
      A range, which starts after the vocabulary and the mask tokens, if any. It is
      empty where there are no vectors, and starts where they would.

    Example:
      >>> from jtok.testing import tiny_model
      >>> vector_ids(with_vectors(tiny_model(), jnp.ones((2, 32))).params, 96)
      range(96, 98)
    """
    embed = params.get("embed") if isinstance(params, Mapping) else None
    held = embed if isinstance(embed, Mapping) else {}
    count = lambda name: len(held[name]) if name in held else 0
    first = vocab_size + count("extra")
    return range(first, first + count("vectors"))
