"""Packed words say what padded words say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok import embed
from jtok.errors import ArgumentError
from jtok.testing import assert_close
from tests.embed.word_models import TINY, random_words, tiny_model

SCORES = jax.jit(embed.word_scores, static_argnums=1)
PACKED = jax.jit(embed.packed_scores, static_argnums=1)
BOS = dataclasses.replace(TINY, bos=True, prefixes=1)


@settings(max_examples=8)
@given(st.sampled_from([TINY, BOS]), st.integers(0, 99))
def test_packed_and_padded_words_agree(config, seed):
    params, (units, lengths) = tiny_model(config), random_words(config, seed=seed)
    rng = np.random.default_rng(seed)
    mask = np.arange(6)[None] < rng.integers(1, 7, (3, 1))
    packed = embed.pack_words(config, units, lengths, mask=mask, length=40)
    padded = SCORES(params, config, units, lengths, mask=mask)
    found = PACKED(params, config, packed)
    np.testing.assert_array_equal(found.counted, padded.counted)
    assert_close(found.unit_nats, padded.unit_nats, atol=1e-5)
    np.testing.assert_array_equal(found.right, padded.right)


def test_slots_are_tight():
    units, lengths = random_words(TINY)
    packed = embed.pack_words(TINY, units, lengths)
    used = (packed.words >= 0).sum(1)
    np.testing.assert_array_equal(used, lengths.sum(1) + 6 * TINY.prefixes)
    assert used.max() == packed.units.shape[1]
    rows = np.arange(3)[:, None]
    np.testing.assert_array_equal(packed.slots[rows, packed.starts], 0)
    first = packed.units[rows, packed.starts + TINY.prefixes]
    np.testing.assert_array_equal(first, units[..., 0])


def test_losses_and_gradients_agree():
    params, (units, lengths) = tiny_model(), random_words(TINY)
    mask = np.arange(6)[None] < np.array([[6], [4], [2]])
    value = lambda loss: jax.jit(jax.value_and_grad(loss, has_aux=True))
    batch = {"units": units, "lengths": lengths, "mask": mask}
    args = (None, None, batch, jax.random.key(0))
    (loss, (metrics, _)), grads = value(embed.word_loss(TINY))(params, *args)
    packed = embed.pack_words(TINY, units, lengths, mask=mask)
    fields = {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed)}
    run = value(embed.packed_loss(TINY))
    (other, (counts, _)), packed_grads = run(
        params, None, None, fields, jax.random.key(0)
    )
    assert_close(loss, other)
    assert int(metrics["tokens"]) == int(counts["tokens"])
    assert int(metrics["words"]) == int(counts["words"])
    jax.tree.map(functools.partial(assert_close, atol=2e-5), grads, packed_grads)


def test_packing_refuses():
    units, lengths = random_words(TINY)
    with pytest.raises(ArgumentError, match=r"length: got 10, expected at least \d+"):
        embed.pack_words(TINY, units, lengths, length=10)
    lengths[1, 2] = 0
    with pytest.raises(ArgumentError, match="lengths: got 0 in row 1"):
        embed.pack_words(TINY, units, lengths)
    official = dataclasses.replace(TINY, compat="official")
    units, lengths = random_words(official)
    packed = jax.tree.map(jnp.asarray, embed.pack_words(official, units, lengths))
    with pytest.raises(ArgumentError, match="the official encoder sees padding"):
        embed.packed_scores(tiny_model(), official, packed)
