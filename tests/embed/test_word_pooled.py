"""Laws of the word-pooled model: what sees what, what counts, and bad input."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok import embed
from jtok.errors import ArgumentError
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close
from tests.embed.word_models import TINY, random_words, tiny_model

LOGITS = jax.jit(embed.word_logits, static_argnums=1)
SCORES = jax.jit(embed.word_scores, static_argnums=1)
VECTORS = jax.jit(embed.word_vectors, static_argnums=1)
BOS = dataclasses.replace(TINY, bos=True)
KEY = jax.random.key(0)


@functools.lru_cache
def loss_of(config):
    value = jax.value_and_grad(embed.word_loss(config), has_aux=True)
    return jax.jit(lambda params, batch, key: value(params, None, None, batch, key))


# What sees what ------------------------


@given(st.integers(0, 99))
def test_padding_units_are_not_seen(seed):
    params, (units, lengths) = tiny_model(), random_words(TINY, seed=seed)
    inside = np.arange(TINY.units)[None, None] < lengths[..., None]
    other = np.where(inside, units, (units + seed + 1) % TINY.vocab_size)
    same = VECTORS(params, TINY, units, lengths)
    np.testing.assert_array_equal(VECTORS(params, TINY, other, lengths), same)
    a, b = (SCORES(params, TINY, x, lengths) for x in (units, other))
    np.testing.assert_array_equal(a.unit_nats, b.unit_nats)


def test_the_official_encoder_sees_padding():
    official = dataclasses.replace(TINY, compat="official")
    params, (units, lengths) = tiny_model(), random_words(TINY)
    other = np.where(np.arange(4)[None, None] < lengths[..., None], units, 7)
    a, b = (VECTORS(params, official, x, lengths) for x in (units, other))
    assert float(jnp.abs(a - b).max()) > 1e-2


def test_rows_cut_to_their_longest_word_say_the_same():
    params = tiny_model()
    short, lengths = random_words(TINY, size=3)
    padded = np.pad(short, [(0, 0), (0, 0), (0, 1)])
    logits = LOGITS(params, TINY, short, lengths)
    assert_close(LOGITS(params, TINY, padded, lengths)[:, :, :3], logits)
    scores = SCORES(params, TINY, short, lengths)
    whole = SCORES(params, TINY, padded, lengths)
    # A word that fills the cut row still ends, as there is room in the model's.
    assert_close(scores.word_nats, whole.word_nats)
    np.testing.assert_array_equal(scores.counted, whole.counted)


@settings(max_examples=10)
@given(st.integers(0, 5), st.integers(0, 3), st.integers(1, 11))
def test_nothing_depends_on_what_comes_later(word, unit, shift):
    params, (units, _) = tiny_model(), random_words(TINY, rows=1)
    lengths = np.full((1, 6), TINY.units)
    units = np.where(units == 0, 1, units)
    other = units.copy()
    other[0, word, unit] = (units[0, word, unit] + shift) % TINY.vocab_size
    a, b = (LOGITS(params, TINY, x, lengths) for x in (units, other))
    target = word - 1  # the first word is no target
    if target >= 0:
        np.testing.assert_array_equal(a[0, :target], b[0, :target])
        np.testing.assert_array_equal(
            a[0, target, : unit + 1], b[0, target, : unit + 1]
        )
    if word < 5:
        assert bool((a[0, target + 1, 0] != b[0, target + 1, 0]).any())


def test_words_of_one_unit_are_units():
    """One prefix, one unit, a decoder that adds nothing: a unit-level model whose
    embedding is what the encoder makes of each unit."""
    config = dataclasses.replace(TINY, prefixes=1, units=1)
    params = tiny_model(config)
    silent = lambda p: jax.tree.map(jnp.zeros_like, p)
    layers = params["decoder"]["layers"]
    layers = {**layers, "proj": silent(layers["proj"]), "down": silent(layers["down"])}
    params = {**params, "decoder": {"layers": layers}}
    every = jnp.arange(config.vocab_size)[None, :, None]
    table = jax.jit(embed.word_vectors, static_argnums=1)(
        params, config, every, jnp.ones((1, config.vocab_size), int)
    )
    unit_config = embed.UnitConfig(
        vocab_size=12, width=8, length=8, layers=2, heads=2, dropout=0.0
    )
    places = params["embed"]["word_positions"]
    unit_params = {
        "embed": {"units": table[0, :, 0], "unit_positions": places},
        "main": params["main"],
        "head": params["head"],
    }
    ids = np.random.default_rng(0).integers(0, 12, (3, 7))
    logits = LOGITS(params, config, ids[..., None], np.ones((3, 7), int))
    weight = params["head"]["kernel"]
    # The decoder's own position is the one thing more.
    offset = weight @ params["embed"]["unit_positions"][0]
    expected = embed.unit_logits(unit_params, unit_config, jnp.asarray(ids))
    assert_close(logits[:, :, 0], expected[:, :-1] + offset[None, None], atol=1e-4)


def test_a_word_before_the_first_makes_it_a_target():
    params, (units, lengths) = tiny_model(BOS), random_words(BOS)
    scores = SCORES(params, BOS, units, lengths)
    assert scores.word_nats.shape == (3, 6)
    one = SCORES(params, BOS, units[:, :1], lengths[:, :1])
    assert_close(one.word_nats, scores.word_nats[:, :1])


# What counts ------------------------


@pytest.mark.parametrize("prefixes", [1, 2])
def test_spelled_words_are_a_distribution(prefixes):
    """All words over two letters of at most three, the empty one included."""
    config = dataclasses.replace(
        TINY, vocab_size=3, units=3, words=2, prefixes=prefixes
    )
    params = tiny_model(config)
    words = [w for n in range(4) for w in itertools.product((1, 2), repeat=n)]
    units = np.zeros((len(words), 2, 3), np.int32)
    units[:, 0] = (1, 2, 0)
    for row, word in zip(units, words):
        row[1, : len(word)] = word
    lengths = np.array([[2, len(word)] for word in words])
    # The empty word is no word of a text, so it is scored unchecked.
    logits = jax.nn.log_softmax(LOGITS(params, config, units, np.maximum(lengths, 1)))
    counted = np.arange(3)[None] <= lengths[:, 1:]
    nats = jnp.take_along_axis(logits[:, 0], units[:, 1, :, None], axis=-1)[..., 0]
    total = jnp.sum(jnp.exp(jnp.sum(jnp.where(counted, nats, 0), axis=-1)))
    assert_close(total, np.float32(1), rtol=1e-5)
    scores = SCORES(params, config, units[1:], lengths[1:])
    np.testing.assert_array_equal(scores.counted[:, 0], counted[1:])
    expected = -jnp.sum(jnp.where(counted, nats, 0), axis=-1)[1:]
    assert_close(scores.word_nats[:, 0], expected)


def test_full_words_have_no_end_and_missing_words_nothing():
    params, (units, lengths) = tiny_model(), random_words(TINY)
    mask = np.arange(6)[None] < np.array([[6], [3], [1]])
    scores = SCORES(params, TINY, units, lengths, mask=mask)
    targets = np.minimum(lengths[:, 1:] + 1, TINY.units) * mask[:, 1:]
    np.testing.assert_array_equal(scores.counted.sum(-1), targets)
    np.testing.assert_array_equal(scores.words, mask[:, 1:])
    assert not scores.right[~mask[:, 1:]].any()
    assert not np.asarray(scores.unit_nats)[~np.asarray(scores.counted)].any()
    # Whatever stands behind a row's end, what is before it stays.
    other = np.where(mask[..., None], units, 5)
    again = SCORES(params, TINY, other, np.where(mask, lengths, 0), mask=mask)
    np.testing.assert_array_equal(again.unit_nats, scores.unit_nats)
    batch = {"units": units, "lengths": lengths, "mask": mask}
    (loss, (metrics, _)), _ = loss_of(TINY)(params, batch, KEY)
    assert int(metrics["tokens"]) == targets.sum()
    assert int(metrics["words"]) == mask[:, 1:].sum()
    assert_close(loss, scores.unit_nats.sum() / targets.sum())


def test_right_is_what_greedy_decoding_spells():
    params, (units, lengths) = tiny_model(), random_words(TINY, rows=1)
    best = np.asarray(jnp.argmax(LOGITS(params, TINY, units, lengths), -1))
    scores = SCORES(params, TINY, units, lengths)
    for w in range(5):
        size = min(lengths[0, w + 1] + 1, TINY.units)
        same = (best[0, w, :size] == units[0, w + 1, :size]).all()
        assert bool(scores.right[0, w]) == same


def test_large_alphabets_stay_in_chunks():
    """Memory of a training step grows by the head's own size, not words x alphabet."""
    config = dataclasses.replace(TINY, vocab_size=20_000, units=16, words=64)
    shapes = jax.eval_shape(lambda key: embed.init_words(config, key), KEY)
    units = jax.ShapeDtypeStruct((8, 64, 16), jnp.int32)
    batch = {"units": units, "lengths": jax.ShapeDtypeStruct((8, 64), jnp.int32)}
    compiled = loss_of(config).lower(shapes, batch, KEY).compile()
    logits = 8 * 63 * 16 * 20_000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 4


# Training ------------------------


def test_every_parameter_is_trained_and_dropout_needs_a_key():
    config = dataclasses.replace(BOS, dropout=0.2, prefixes=2)
    params, (units, lengths) = tiny_model(config), random_words(config, words=8)
    batch = {"units": units, "lengths": lengths}
    (loss, _), grads = loss_of(config)(params, batch, KEY)
    (same, _), _ = loss_of(config)(params, batch, KEY)
    (other, _), _ = loss_of(config)(params, batch, jax.random.key(1))
    assert loss == same and loss != other
    still = jax.tree_util.tree_flatten_with_path(grads)[0]
    idle = [jax.tree_util.keystr(p) for p, g in still if not np.abs(g).max() > 0]
    assert not idle
    plain = SCORES(params, config, units, lengths)
    np.testing.assert_array_equal(
        plain.unit_nats, SCORES(params, config, units, lengths).unit_nats
    )


def test_loops_over_layers_may_be_unrolled_or_computed_again():
    params, (units, lengths) = tiny_model(), random_words(TINY)
    batch = {"units": units, "lengths": lengths}
    (loss, _), grads = loss_of(TINY)(params, batch, KEY)
    other = dataclasses.replace(TINY, unroll=True, remat=True)
    (again, _), other_grads = loss_of(other)(params, batch, KEY)
    assert_close(loss, again)
    jax.tree.map(functools.partial(assert_close, atol=1e-5), grads, other_grads)


def test_bfloat16():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params, (units, lengths) = tiny_model(), random_words(TINY)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = SCORES(params, TINY, units, lengths).word_nats
    found = SCORES(narrow, config, units, lengths).word_nats
    assert found.dtype == jnp.float32
    assert_close(found, wide, rtol=0.05, atol=0.05)  # sums of rounded logits
    batch = {"units": units, "lengths": lengths}
    (_, _), grads = loss_of(config)(narrow, batch, KEY)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_weight_decay_follows_the_page():
    params = tiny_model(BOS)
    ours, theirs = (embed.word_decay(params, compat=c) for c in (None, "official"))
    norm = ("main", "layers", "norm1", "scale")
    pick = lambda tree, path: functools.reduce(lambda t, k: t[k], path, tree)
    assert not pick(ours, norm) and pick(theirs, norm)
    for tree in (ours, theirs):
        assert tree["embed"]["word_positions"] and tree["head"]["kernel"]
        assert not tree["main"]["layers"]["query"]["bias"]
        assert tree["encoder"]["layers"]["qkv"]["kernel"]
    few = {"norm1": pick(params, norm[:-1])}
    optimizer = embed.word_optimizer(0.5, compat="official")
    still = jax.tree.map(jnp.zeros_like, few)
    updates, _ = optimizer.update(still, optimizer.init(few), few)
    assert_close(updates["norm1"]["scale"], -0.5 * 0.1 * few["norm1"]["scale"])
    assert not updates["norm1"]["bias"].any()


def test_the_initial_values_are_the_papers():
    config = dataclasses.replace(TINY, width=64)
    params = jax.jit(embed.init_words, static_argnums=0)(config, KEY)
    assert not np.asarray(params["embed"]["word_positions"]).any()
    up = np.asarray(params["main"]["layers"]["up"]["kernel"])
    assert abs(up.std() - 0.02) < 2e-3 and abs(up[0] - up[1]).max() > 0
    qkv = np.asarray(params["encoder"]["layers"]["qkv"]["kernel"])
    bound = np.sqrt(6 / (64 + 3 * 64))  # Xavier's, of the packed matrix
    assert 0.95 * bound < np.abs(qkv).max() <= bound


# Devices ------------------------


def test_rows_may_lie_on_many_devices():
    params, (units, lengths) = tiny_model(), random_words(TINY, rows=8)
    batch = {"units": jnp.asarray(units), "lengths": jnp.asarray(lengths)}
    (loss, _), grads = loss_of(TINY)(params, batch, KEY)
    with jax.set_mesh(mesh_from("data=8")):
        rows = jax.sharding.NamedSharding(
            jax.sharding.get_mesh(), jax.sharding.PartitionSpec("data")
        )
        split = jax.device_put(batch, rows)
        value = jax.value_and_grad(embed.word_loss(TINY), has_aux=True)
        run = jax.jit(lambda params, batch: value(params, None, None, batch, KEY))
        (sharded, _), sharded_grads = run(params, split)
        vectors = VECTORS(params, TINY, split["units"], split["lengths"])
    assert len(vectors.sharding.device_set) == 8
    assert_close(sharded, loss)
    jax.tree.map(functools.partial(assert_close, atol=1e-5), grads, sharded_grads)


# Bad input ------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lengths": 0}, r"lengths: got 0 in row 1, expected 1..4"),
        ({"lengths": 5}, r"lengths: got 5 in row 1, expected 1..4"),
        ({"units": 12}, r"units: got the id 12, expected 0 <= id < 12"),
        ({"units": -1}, r"units: got the id -1"),
    ],
)
def test_words_are_checked(change, message):
    units, lengths = random_words(TINY)
    for name, value in change.items():
        {"units": units, "lengths": lengths}[name][1, 2] = value
    with pytest.raises(ArgumentError, match=message):
        embed.word_logits(tiny_model(), TINY, jnp.asarray(units), jnp.asarray(lengths))


def test_shapes_are_checked():
    params, (units, lengths) = tiny_model(), random_words(TINY, words=8)
    run = lambda u, n, **mask: LOGITS(params, TINY, u, n, **mask)
    with pytest.raises(ArgumentError, match="units: got '1 words', expected 2 to 8"):
        run(units[:, :1], lengths[:, :1])
    with pytest.raises(ArgumentError, match="units: got '9 words'"):
        run(np.ones((1, 9, 4), int), np.ones((1, 9), int))
    with pytest.raises(ArgumentError, match="units: got '5 units a word'"):
        run(np.ones((1, 8, 5), int), np.ones((1, 8), int))
    gap = jnp.arange(8)[None] != jnp.array([[3]] * 3)
    with pytest.raises(ArgumentError, match="words first, then padding"):
        embed.word_logits(
            params, TINY, jnp.asarray(units), jnp.asarray(lengths), mask=gap
        )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prefixes": 0}, "prefixes: got 0, expected at least 1"),
        ({"vocab_size": 1}, "vocab_size: got 1"),
        ({"heads": 3}, "heads: got 3, expected a divisor of the width 8"),
        ({"encoder_heads": 5}, "encoder_heads: got 5"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"compat": "paper"}, "compat: got 'paper'"),
    ],
)
def test_sizes_are_checked(change, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(TINY, **change)


def test_the_unit_level_model_is_checked():
    config = embed.UnitConfig(vocab_size=12, width=8, length=8, layers=1, heads=2)
    params = embed.init_units(config, KEY)
    with pytest.raises(ArgumentError, match="units: got the id 12"):
        embed.unit_logits(params, config, jnp.full((1, 3), 12))
    with pytest.raises(ArgumentError, match="units: got '9 in a row'"):
        embed.unit_logits(params, config, jnp.ones((1, 9), int))
