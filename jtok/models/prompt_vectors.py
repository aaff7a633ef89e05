"""Vectors in a prompt: images, merged tokens and sound beside the words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.errors import ArgumentTypeError, check
from jtok.models.model import Model
from jtok.nn import DecoderConfig

__all__ = ["num_vectors", "with_vectors"]


def with_vectors(model: Model, vectors: Float[Array, "rows dim"]) -> Model:
    """The model with more ids, each of which stands for a vector of a prompt.

    Id `model.config.vocab_size + i` is read as row `i`, by the model itself, by
    `jtok.decode.generate` and by every drafter; it is never emitted, as the output rows
    stay what they are. A prompt's vectors are those of one call: a cache that was made
    with other vectors under the same ids does not belong to it.

    Args:
      model: a decoder without such rows.
      vectors: `[rows, dim]`, `dim` being the model's width, as they enter the first
        layer of a model that does not scale its embeddings; one that does scales them.

    Returns:
      `Model`.

    Raises:
      ArgumentError: another width, or a model that has such rows already.
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
    check("extra" not in embed, "model", "one with extra rows", "one without")
    params = {**model.params, "embed": {**embed, "extra": jnp.asarray(vectors)}}
    return dataclasses.replace(model, params=params)


def num_vectors(params: Any) -> int:
    """How many ids from the vocabulary's size on are read as vectors.

    Args:
      params: of any model.

    Returns:
      Rows of `params["embed"]["extra"]`, 0 where there are none.

    Example:
      >>> from jtok.testing import tiny_model
      >>> num_vectors(with_vectors(tiny_model(), jnp.ones((2, 32))).params)
      2
    """
    embed = params.get("embed") if isinstance(params, Mapping) else None
    found = embed.get("extra") if isinstance(embed, Mapping) else None
    return 0 if found is None else int(found.shape[0])
