"""A tiny encoder in pre-training on masked n-grams, and examples for it."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jtok.predict import (
    GramBatch,
    GramLayout,
    GramModel,
    gram_batches,
    gram_config,
    init_grams,
)
from jtok.testing.tiny import tiny_model
from jtok.text import Lexicon

__all__ = ["tiny_grams"]

_GRAMS = ((5, 6), (7, 8, 9), (6, 5), (20, 21, 22))


def tiny_grams(
    *,
    family: str = "bert",
    rows: int = 2,
    contiguous: bool = False,
    seed: int = 0,
    sizes: Any = None,
    **options: Any,
) -> tuple[GramModel, GramBatch]:
    """A model with four n-grams over the ids of `tiny_model`, and a batch.

    Args:
      family: of the encoder, "bert" or "ernie", which has relative positions.
      rows: examples.
      contiguous: one [MASK] a token.
      seed: of parameters, texts and masks.
      sizes: fields of the encoder's configuration to change, or None.
      **options: as for `gram_config`: `rank`, `generator_layers`, `tied`.

    Returns:
      The model, and the batch; rows have 3 to 14 tokens of 16, and up to 8 fine ones.

    Example:
      >>> model, batch = tiny_grams(rows=3)
      >>> batch.left_ids.shape, model.config.num_classes
      ((3, 16), 100)
    """
    base = tiny_model(family=family)
    lexicon = Lexicon.of(_GRAMS, vocab_size=base.config.vocab_size)
    config = gram_config(base, lexicon, **options)
    changed = sizes or {}
    config = dataclasses.replace(
        config, encoder=dataclasses.replace(config.encoder, **changed)
    )
    layout = GramLayout(
        cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=16, fine=8, grams=6, rate=0.4
    )
    rng = np.random.default_rng(seed)
    texts = [
        np.concatenate([_GRAMS[at % 4], rng.integers(4, 30, size=1 + at % 9)])
        for at in range(rows)
    ]
    data = gram_batches(
        texts, lexicon, layout, batch_size=rows, seed=seed, contiguous=contiguous
    )
    return init_grams(config, jax.random.key(seed)), data[0]
