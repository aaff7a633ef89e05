"""Words that are written: with and without caches, in batches, by seeds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import embed
from jtok.errors import ArgumentError
from tests.embed.word_models import TINY, random_words, tiny_model

BOS = dataclasses.replace(TINY, bos=True, prefixes=1)
OFFICIAL = dataclasses.replace(TINY, compat="official")
LOGITS = jax.jit(embed.word_logits, static_argnums=1)
COUNTS = np.array([4, 1, 3])


def write(config, cache=True, counts=COUNTS, rows=slice(None), words=3, **options):
    units, lengths = random_words(config, words=4)
    return embed.generate_words(
        tiny_model(config), config, units[rows], words, lengths=lengths[rows],
        counts=counts[rows], cache=cache, **options,
    )  # fmt: skip


@pytest.mark.parametrize("config", [TINY, BOS, OFFICIAL], ids=["plain", "bos", "off"])
def test_caches_change_nothing(config):
    """Rows of other lengths and temperatures, over several draws."""
    counts = np.array([4, 1, 0]) if config.bos else COUNTS
    units = []
    for seed in range(0, 30, 3):
        options = {"temperature": [0.0, 1.0, 3.0], "seeds": [seed, seed + 1, seed + 2]}
        one, two = (write(config, c, counts, words=4, **options) for c in (True, False))
        np.testing.assert_array_equal(one.units, two.units)
        np.testing.assert_array_equal(one.lengths, two.lengths)
        inside = np.arange(TINY.units)[None, None] < np.asarray(one.lengths)[..., None]
        np.testing.assert_array_equal(np.asarray(one.units) != 0, inside)
        units.append(np.asarray(one.units)[2])
    sizes = (np.concatenate(units) != 0).sum(-1)
    assert sizes.min() >= 1 and len(set(sizes.tolist())) > 1


def test_greedy_words_are_the_most_likely_ones():
    """Scored from the outside: each is right, at its place, in its ragged row."""
    out = write(TINY)
    units, lengths = random_words(TINY, words=4)
    for row, count in enumerate(COUNTS):
        whole = np.concatenate([units[row, :count], out.units[row]])[None]
        sizes = np.concatenate([lengths[row, :count], out.lengths[row]])[None]
        size = 7 - len(whole[0])  # one shape for all rows
        whole = np.pad(whole, [(0, 0), (0, size), (0, 0)], constant_values=1)
        sizes = np.pad(sizes, [(0, 0), (0, size)], constant_values=1)
        logits = LOGITS(tiny_model(), TINY, whole, sizes)
        for w in range(3):
            found = np.array(logits[0, count - 1 + w])
            found[0, 0] = -np.inf  # no word is empty
            size = min(int(out.lengths[row, w]) + 1, TINY.units)
            best = found.argmax(-1)[:size]
            np.testing.assert_array_equal(out.units[row, w, :size], best)


def test_rows_do_not_depend_on_their_mates():
    options = {"temperature": 1.0}
    together = write(TINY, seeds=[5, 6, 7], **options)
    alone = write(TINY, rows=slice(1, 2), seeds=[6], **options)
    np.testing.assert_array_equal(together.units[1:2], alone.units)
    again = write(TINY, seeds=[5, 8, 7], **options)
    assert (np.asarray(again.units[1]) != np.asarray(together.units[1])).any()
    np.testing.assert_array_equal(again.units[2], together.units[2])


def test_drawn_units_follow_the_model():
    """First units of the next word over many seeds: chi-square, false alarm 1e-4."""
    config = dataclasses.replace(TINY, units=1)
    units, lengths = random_words(config, rows=1, words=2)
    params, rows = tiny_model(config), 1000
    out = embed.generate_words(
        params, config, np.repeat(units, rows, 0), 1, temperature=1.0,
        lengths=np.repeat(lengths, rows, 0),
    )  # fmt: skip
    seen = np.bincount(np.asarray(out.units).ravel(), minlength=12)
    three = np.concatenate([units, np.ones((1, 1, 1), int)], axis=1)
    logits = LOGITS(params, config, three, jnp.ones((1, 3), int))[0, 1, 0]
    logits = logits.at[0].set(-jnp.inf)
    expected = rows * np.asarray(jax.nn.softmax(logits))
    assert seen[0] == 0
    statistic = np.sum((seen - expected)[1:] ** 2 / expected[1:])
    assert statistic < 37.4  # 10 degrees of freedom


def test_it_compiles_once():
    from jtok.embed import word_generation

    before = word_generation._write_cached._cache_size()
    write(TINY, words=2, seeds=[1, 2, 3])
    write(TINY, words=2, seeds=[4, 5, 6], temperature=0.5, counts=np.array([2, 2, 2]))
    assert word_generation._write_cached._cache_size() - before == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"words": 5}, "num_words: got 5, expected at most 4 after 4"),
        ({"words": 0}, "num_words: got 0"),
        ({"counts": np.array([4, 0, 3])}, "counts: got .* expected 1 to 4 words a row"),
        ({"counts": np.array([4, 5, 3])}, "counts: got"),
        ({"temperature": -1.0}, "temperature: got .* at least 0"),
        ({"seeds": [1, 2]}, "seeds: got .* expected 3, one a row"),
    ],
)
def test_it_refuses(options, message):
    with pytest.raises(ArgumentError, match=message):
        write(TINY, **options)
