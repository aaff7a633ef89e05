"""Prompts with images, for a decoder that takes vectors in place of ids."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jtok import nn
from jtok.errors import ArgumentError, check
from jtok.models import model as core
from jtok.models.compressor import check_compressor
from jtok.models.llava import ImageFeatures, features_of, llava_config
from jtok.models.prompt_vectors import vector_ids, with_vectors

__all__ = ["with_images"]

_SIGHT = ("vision", "connector")  # what the decoder has not
_compiled = jax.jit(features_of, static_argnums=(1, 3))


def with_images(
    model: core.Model,
    prompts: Sequence[Any] | np.ndarray,
    images: Float[Array, "images height width channels"] | ImageFeatures,
    *,
    compress: Any = None,
) -> tuple[core.Model, list[np.ndarray]]:
    """A plain decoder that has seen images, and prompts in its ids.

    Vectors of the images become further rows of its embedding; ids from the
    vocabulary's size on name them, and stand in the prompts in place of the image
    token. What it returns goes to `jtok.decode.generate` with any drafter. A cache
    that `generate` keeps is of these images: it serves no others.

    Args:
      model: a LLaVA model.
      prompts: sequences of ids; each image is one image token, or as many as it has
        vectors where none merge (what processors make), in the order of the images.
      images: `[images, height, width, channels]` normalised pixels, or the
        `ImageFeatures` of them, which may have been made fewer.
      compress: what the tower's layers do with tokens; None takes the model's own.

    Returns:
      The decoder, which shares the arrays of `model`, and the prompts as int32 arrays.
      Rows that a plan left empty stand in no prompt.

    Raises:
      ArgumentTypeError: another kind of model.
      ArgumentError: image tokens that are neither one for each image nor one for each
        of its vectors.

    Source: Liu et al. 2023, arXiv 2310.03744, section 3.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="llava")
      >>> decoder, ids = with_images(model, [[1, 95, 7]], jnp.ones((1, 32, 32, 3)))
      >>> len(ids[0]), int(ids[0][1])
      (18, 96)
    """
    config = llava_config(model)
    features = images
    if not isinstance(features, ImageFeatures):
        own = model.compress if compress is None else compress
        check_compressor(own, config)
        seeing = {name: model.params[name] for name in _SIGHT}
        features = _compiled(seeing, config, features, own)
    count, rows, dim = features.tokens.shape
    real = np.ones((count, rows), bool)
    if features.plan is not None:
        real = np.asarray(features.plan.valid)
    first = vector_ids(model.params, config.vocab_size).start
    ids = first + np.arange(count * rows, dtype=np.int32)
    named = [of[kept] for of, kept in zip(ids.reshape(count, rows), real, strict=True)]
    params = {name: model.params[name] for name in model.params if name not in _SIGHT}
    decoder = core.Model(
        params,
        config.text,
        vocabulary=model.vocabulary,
        generation_config=model.generation_config,
    )
    vectors = features.tokens.reshape(count * rows, dim)
    return with_vectors(decoder, vectors), _expanded(config, prompts, named)


def _expanded(
    config: nn.LlavaConfig, prompts: Any, named: list[np.ndarray]
) -> list[np.ndarray]:
    """Prompts with the ids of each image in place of its tokens."""
    listed = [np.asarray(prompt, np.int32) for prompt in prompts]
    flat = all(ids.ndim == 1 for ids in listed)
    check(flat, "prompts", "other items", "sequences of ids, one for each prompt")
    total = sum(int((ids == config.image_token_id).sum()) for ids in listed)
    each = 1 if total == len(named) else config.image_tokens
    wanted = f"{len(named)} (one for each image), or {config.image_tokens} for each"
    check(total == each * len(named), "prompts", f"{total} image tokens", wanted)
    left, made = iter(named), []
    for index, ids in enumerate(listed):
        own = np.flatnonzero(ids == config.image_token_id)
        if len(own) % each:
            raise ArgumentError(
                f"prompts: prompt {index} has {len(own)} image tokens, expected a "
                f"multiple of {each}."
            )
        parts, done = [], 0
        for first in own[::each]:
            parts += [ids[done:first], next(left)]
            done = first + each
        made.append(np.concatenate([*parts, ids[done:]]))
    return made
