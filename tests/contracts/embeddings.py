"""Vocabularies, rows and every method behind `EmbeddingInit`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jtok import embed
from jtok.text import Vocabulary

TEXT = "the cat sat on the mat. the dog sat on the log. that is all there is, so "
MORE = "a lantern in the catalogue, 12 cats and 123 dogs; été là-bas. that is all "


@functools.lru_cache
def vocabularies() -> tuple[Vocabulary, Vocabulary]:
    """A source and a target that share bytes, roles and a few merges."""
    source = Vocabulary.train_bpe([TEXT * 8], 280)
    target = Vocabulary.train_bpe([MORE * 8], 290, ("<|endoftext|>", "<|user|>"))
    return source, target


def rows(vocabulary, *, width=6, tied=False, dtype=jnp.float32, seed=0, spare=2):
    """Random rows, a few of them padding."""
    shape = (vocabulary.size + spare, width)
    drawn = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    head = None if tied else jnp.asarray(drawn[1], dtype)
    return embed.Rows(jnp.asarray(drawn[0], dtype), head, vocabulary)


# Name -> how to make it; each paper adds its line.
METHODS = {
    "zero": embed.zero,
    "mean": embed.mean,
    "normal": embed.normal,
    "fitted_normal": embed.fitted_normal,
}


def run(name, source, target, seed=0):
    return METHODS[name]()(target, source, jax.random.key(seed))
