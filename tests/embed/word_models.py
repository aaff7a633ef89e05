"""Small word-pooled models, and those of the goldens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jtok import embed
from jtok.testing import load_golden

TINY = embed.WordPooledConfig(
    vocab_size=12, width=8, prefixes=2, words=8, units=4, layers=2, heads=2,
    encoder_layers=1, encoder_heads=2, encoder_mlp=16, decoder_layers=1,
    decoder_heads=2, dropout=0.0,
)  # fmt: skip


def config_of(cfg, **options):
    prefixes, vocab, width, words, layers, heads, units, encoder_heads, inner = (
        int(n) for n in cfg
    )
    return embed.WordPooledConfig(
        vocab_size=vocab, width=width, prefixes=prefixes, words=words, units=units,
        layers=layers, heads=heads, encoder_layers=inner, encoder_heads=encoder_heads,
        decoder_layers=inner, decoder_heads=heads, **options,
    )  # fmt: skip


@functools.lru_cache
def golden_model(prefixes, compat):
    """`(params, config)` of the goldens with so many prefixes."""
    file = load_golden(f"learn_your_tokens/official_p{prefixes}.npz")
    config = config_of(file["cfg"], compat=compat)
    names = [name for name in file if name.startswith("w_")]
    tensors = {name[2:]: file[name] for name in names}
    return embed.words_from_tensors(tensors, config), config


def perturbed(params, seed=0, size=0.3):
    """Every parameter with noise, so that none of them is without effect."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noise = lambda x: np.asarray(x) + rng.normal(0, size, x.shape)
    return jax.tree.unflatten(tree, [jnp.asarray(noise(x), x.dtype) for x in leaves])


@functools.lru_cache
def tiny_model(config=TINY, seed=0):
    shapes = jax.eval_shape(
        lambda key: embed.init_words(config, key), jax.random.key(0)
    )
    zeros = lambda x: np.zeros(x.shape, x.dtype)
    return perturbed(jax.tree.map(zeros, shapes), seed)


def random_words(config, rows=3, words=6, seed=0, size=None):
    """`units`, `lengths` of words of every length, the longest among them."""
    rng = np.random.default_rng(seed)
    size = size or config.units
    lengths = rng.integers(1, size + 1, (rows, words)).astype(np.int32)
    lengths[0, :2] = size, 1
    ids = rng.integers(1, config.vocab_size, (rows, words, size)).astype(np.int32)
    inside = np.arange(size)[None, None] < lengths[..., None]
    return np.where(inside, ids, 0), lengths
