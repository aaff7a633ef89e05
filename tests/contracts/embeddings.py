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


def donor(width=8):
    """Rows of another model for the target."""
    return rows(vocabularies()[1], width=width, seed=7)


def vectors(vocabulary, seed):
    return np.random.default_rng(seed).normal(size=(vocabulary.size, 5))


def aligned():
    """Four source tokens for every target token, some never met."""
    source, target = vocabularies()
    drawn = np.random.default_rng(3)
    ids = drawn.integers(-1, source.size, (target.size, 4)).astype(np.int32)
    return ids, drawn.integers(0, 3, ids.shape).astype(np.float32)


# Name -> how to make it; each paper adds its line.
METHODS = {
    "zero": embed.zero,
    "mean": embed.mean,
    "normal": embed.normal,
    "fitted_normal": embed.fitted_normal,
    "subword_mean": embed.subword,
    "subword_sum": lambda: embed.subword("sum"),
    "subword_weighted_mean": lambda: embed.subword("weighted_mean"),
    "subword_first_last": lambda: embed.subword("first_last", whole=True),
    "omp": lambda: embed.omp(donor(), k=4),
    "omp_cosine": lambda: embed.omp(donor(), k=4, normalize_atoms=True, batch=5),
    "mp_rope": lambda: embed.mp_rope(donor(), k=3, heads=(2, 1)),
    "common_interpolation": lambda: embed.common_interpolation(donor(), k=3),
    "procrustes": lambda: embed.procrustes(donor()),
    "linear_map": lambda: embed.linear_map(donor()),
    "least_squares": lambda: embed.linear_map(donor(), penalty=0.0),
    "sparse_basis": lambda: embed.sparse_basis(donor(), k=2),
    "focus": lambda: embed.focus(vectors(vocabularies()[1], 1)),
    "wechsel": lambda: embed.wechsel(*map(vectors, vocabularies(), (0, 1))),
    "tokenadapt": lambda: embed.tokenadapt(embed.hashed_ngrams(32), k=3),
    "trans_tokenization": lambda: embed.trans_tokenization(*aligned()),
}


def run(name, source, target, seed=0):
    return METHODS[name]()(target, source, jax.random.key(seed))
