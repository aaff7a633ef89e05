"""The model that spells future tokens: goldens, laws, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import models, nn
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.models import split_layers, stack_layers
from jtok.ops.sharding import mesh_from
from jtok.predict import (
    FutureConfig,
    adjacent_cosine,
    distance_weights,
    future_from,
    future_losses,
    init_future,
    safe_mean,
    weigh_offsets,
)
from jtok.predict.future import with_encoder
from jtok.predict.future_slots import expand_states
from jtok.testing import assert_close, tiny_config, tiny_model
from tests.predict.future_models import golden_model, tiny_future

GAMMAS = (0.8, 1.0, 0.0, 0.5)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # as the goldens say


@pytest.fixture
def train(golden):
    return golden("ftp/train.npz")


def real(train, name):
    """An array of the goldens at the positions that are real."""
    return train[name][train["valid"]]


# Goldens ------------------------


def test_states_and_pseudo_tokens(train):
    model, ids = golden_model("train", "weights"), jnp.asarray(train["input_ids"])
    valid = train["valid"]
    states = jax.jit(lambda m, i, v: m.encode(i, mask=v))(model, ids, valid)
    assert_close(np.asarray(states)[valid], real(train, "latents"), **CLOSE)
    pseudo = expand_states(model.params, model.config, states)
    assert_close(np.asarray(pseudo)[valid], real(train, "pseudo"), **CLOSE)
    cosine = adjacent_cosine(states, jnp.asarray(valid))
    assert_close(cosine, train["adjacent_cosine"], **CLOSE)


def test_logits_and_losses(train):
    model, ids = golden_model("train", "weights"), jnp.asarray(train["input_ids"])
    mask, futures = jnp.asarray(train["valid"]), jnp.asarray(train["futures"])
    logits = jax.jit(lambda m, i, f, v: m.logits(i, f, mask=v))(
        model, ids, futures, mask
    )
    assert_close(np.asarray(logits)[train["valid"]], real(train, "logits"), **CLOSE)
    got = jax.jit(lambda m, i, v: future_losses(m, i, mask=v))(model, ids, mask)
    np.testing.assert_array_equal(got.valid, train["future_valid"])
    where = train["future_valid"]
    assert_close(np.asarray(got.losses)[where], train["token_ce"][where], **CLOSE)
    means = safe_mean(got.losses, got.valid, axis=(0, 1))
    assert_close(means, train["ce_per_k"], rtol=1e-5)
    for gamma in GAMMAS:
        weights = distance_weights(3, gamma)
        for reduction, name in (("tokens", "loss"), ("offsets", "loss_perhead")):
            loss = weigh_offsets(*got, weights, reduction=reduction)
            expected = train[f"{name}_gamma{gamma}"]
            assert_close(loss, expected, rtol=1e-5, name=f"{name} {gamma}")


@pytest.mark.medium
def test_gradients(train):
    model, ids = golden_model("train", "weights"), jnp.asarray(train["input_ids"])
    mask, weights = jnp.asarray(train["valid"]), distance_weights(3, 0.8)

    def loss(params, nudge):
        now = model.replace(params=params)
        states = now.encode(ids, mask=mask) + nudge
        got = future_losses(now, ids, mask=mask, states=states)
        return weigh_offsets(*got, weights)

    nudge = jnp.zeros((*ids.shape, 24))
    grads, latents = jax.jit(jax.grad(loss, argnums=(0, 1)))(model.params, nudge)
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert_close(grads["expand"]["kernel"], train["grad_expand"], **close)
    assert_close(grads["encoder"]["embed"]["tokens"], train["grad_wte"], **close)
    assert_close(grads["decoder"]["start"], train["grad_start"], **close)
    valid = train["valid"]
    assert_close(np.asarray(latents)[valid], real(train, "grad_latents"), **close)


def test_futures_are_the_tokens_that_follow(train):
    ids, futures, where = train["input_ids"], train["futures"], train["future_valid"]
    for b, t, k in np.ndindex(futures.shape):
        assert futures[b, t, k] == (ids[b, t + 1 + k] if where[b, t, k] else 0)


# Laws ------------------------

MODEL = tiny_future()
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 10)), jnp.int32)
FUTURES = jnp.stack([jnp.roll(IDS, -1 - k, axis=1) for k in range(4)], axis=-1)
LOGITS = jax.jit(lambda model, ids, futures: model.logits(ids, futures))
ENCODE = jax.jit(lambda model, ids: model.encode(ids))
DECODE = jax.jit(lambda model, *args: model.decode(*args))
LOSSES = jax.jit(future_losses)
ROLLED = jax.jit(
    lambda ids: jnp.stack([jnp.roll(ids, -1 - k, axis=1) for k in range(4)], axis=-1)
)


def loss_of(params, ids):
    got = future_losses(MODEL.replace(params=params), ids)
    return weigh_offsets(*got, distance_weights(4, 0.8))


GRADIENT = jax.jit(jax.value_and_grad(loss_of))


@given(st.integers(0, 9))
def test_nothing_depends_on_later_tokens(place):
    """A token moves the states from its place on, and slots that it was given to."""
    moved = np.array(IDS)
    moved[:, place] = (moved[:, place] + 1) % 96
    states, after = (np.asarray(ENCODE(MODEL, ids)) for ids in (IDS, moved))
    changed = np.abs(states - after).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(changed, np.arange(10) >= place)
    before, now = LOGITS(MODEL, IDS, FUTURES), LOGITS(MODEL, moved, ROLLED(moved))
    change = np.abs(np.asarray(before) - np.asarray(now))
    for t, k in np.ndindex(10, 4):
        if t + k < 10:  # further ones were rolled around
            assert bool(change[:, t, k].max() > 0) == (place <= t + k)


@given(st.integers(0, 9), st.integers(0, 3))
def test_a_slot_alone_gives_what_the_batch_gives(place, given_):
    states = np.asarray(ENCODE(MODEL, IDS))[1, place]
    hidden = DECODE(MODEL, states, np.asarray(FUTURES)[1, place, :given_])
    logits = np.asarray(MODEL.unembedding()[0]) @ np.asarray(hidden)[-1]
    expected = np.asarray(LOGITS(MODEL, IDS, FUTURES))[1, place, given_]
    assert_close(logits, expected, **CLOSE)


def test_the_state_is_all_that_a_decoder_knows_of_the_past():
    """With one state everywhere, what is said of a future hangs on it alone."""
    states = jnp.broadcast_to(ENCODE(MODEL, IDS)[:1, 3:4], (2, 10, 32))
    place = 5
    other = IDS.at[:, : place + 1].set((IDS[:, : place + 1] + 1) % 96)

    def moved(model):
        """From which places the losses of a text with another start differ."""
        pair = [LOSSES(model, ids, states=states) for ids in (IDS, other)]
        return (np.abs(pair[0].losses - pair[1].losses).max(axis=(0, 2)) > 0).tolist()

    assert moved(MODEL) == [t < place for t in range(10)]
    # Where slot 0 reads the newest token, that is a second way.
    assert moved(tiny_future(first_input="last_token")) == [
        t <= place for t in range(10)
    ]
    # And equal prefixes need not be equal states: another state says something else.
    nudged = LOSSES(MODEL, IDS, states=states.at[:, place].add(1.0)).losses
    change = np.abs(nudged - LOSSES(MODEL, IDS, states=states).losses)
    assert np.flatnonzero(change.max(axis=(0, 2))).tolist() == [place]


def test_the_order_of_pseudo_tokens_means_nothing():
    order = jnp.array([2, 0, 1])
    expand = MODEL.params["expand"]
    mixed = {
        "kernel": expand["kernel"].reshape(32, 3, 32)[:, order].reshape(32, 96),
        "bias": expand["bias"].reshape(3, 32)[order].reshape(96),
    }
    other = MODEL.replace(params={**MODEL.params, "expand": mixed})
    assert jnp.abs(mixed["kernel"] - expand["kernel"]).max() > 0.01
    assert_close(
        LOGITS(other, IDS, FUTURES), LOGITS(MODEL, IDS, FUTURES), rtol=1e-4, atol=1e-4
    )


def test_only_its_own_position_is_seen():
    """Another vector at one position changes that position's predictions alone."""
    states, forced = np.asarray(ENCODE(MODEL, IDS)), FUTURES[..., :3]
    other = states + (np.arange(10) == 4)[None, :, None]
    before, now = (np.asarray(DECODE(MODEL, x, forced)) for x in (states, other))
    moved = np.abs(before - now).max(axis=(0, 2, 3)) > 0
    np.testing.assert_array_equal(moved, np.arange(10) == 4)


# Padding, dtypes, meshes ------------------------


def test_padding_changes_nothing_on_real_positions():
    long = jnp.pad(IDS, ((0, 0), (0, 5)), constant_values=3)
    mask = jnp.broadcast_to(jnp.arange(15) < 10, (2, 15))
    alone, padded = LOSSES(MODEL, IDS), LOSSES(MODEL, long, mask=mask)
    assert not padded.valid[:, 10:].any()
    np.testing.assert_array_equal(padded.valid[:, :10], alone.valid)
    assert_close(padded.losses[:, :10], alone.losses, **CLOSE)


@pytest.mark.medium
@pytest.mark.parametrize("seq", [1, 3])
def test_short_rows(seq):
    """No more tokens than slots, or one alone: nothing counts that is not there."""

    value, grads = GRADIENT(MODEL.params, IDS[:, :seq])
    assert (value == 0) == (seq == 1)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_positions_beyond_the_encoders_are_its_last_under_jit():
    """And rows may be longer than these, where their documents are not."""
    encode = jax.jit(lambda places: MODEL.encode(IDS, positions=places))
    places = jnp.broadcast_to(jnp.arange(10), (2, 10)) + 506
    got = encode(places)
    np.testing.assert_array_equal(got, encode(jnp.minimum(places, 511)))
    assert np.abs(got - encode(places - 4)).max() > 1e-3
    long = jax.ShapeDtypeStruct((1, 600), jnp.int32)
    packed = jax.eval_shape(lambda i: MODEL.encode(i, positions=i % 300), long)
    assert packed.shape == (1, 600, 32)


def test_documents_of_one_row_do_not_see_each_other():
    segments = jnp.broadcast_to(jnp.arange(10) // 5, (2, 10))
    positions = jnp.broadcast_to(jnp.arange(10) % 5, (2, 10))
    got = LOSSES(MODEL, IDS, segments=segments, positions=positions)
    for first in (0, 5):
        part = slice(first, first + 5)
        alone = LOSSES(MODEL, IDS[:, part])
        np.testing.assert_array_equal(got.valid[:, part], alone.valid)
        assert_close(got.losses[:, part], alone.losses, **CLOSE)


@pytest.mark.medium
def test_bfloat16():
    model = tiny_future(dtype="bfloat16")
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(model.params))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), model.params)
    config = dataclasses.replace(
        model.config, encoder=dataclasses.replace(model.config.encoder, dtype="float32")
    )
    exact = LOSSES(dataclasses.replace(model, params=wide, config=config), IDS)
    got = LOSSES(model, IDS)
    assert got.losses.dtype == jnp.float32
    assert ENCODE(model, IDS).dtype == jnp.bfloat16
    np.testing.assert_allclose(got.losses, exact.losses, rtol=0.1, atol=0.2)


@pytest.mark.medium
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_other_backbones(family):
    """Rotary positions, gated MLPs, capped logits, outputs with rows of their own."""
    model = tiny_future(family=family)
    losses, valid = LOSSES(model, IDS)
    logits = jax.nn.log_softmax(LOGITS(model, IDS, FUTURES))
    expected = -jnp.take_along_axis(logits, FUTURES[..., None], axis=-1)[..., 0]
    assert_close(losses, jnp.where(valid, expected, 0.0), rtol=1e-4, atol=1e-4)


@pytest.mark.medium
def test_eight_devices_give_the_same_losses_and_gradients():
    ids = jnp.tile(IDS, (2, 1))
    value, grads = GRADIENT(MODEL.params, ids)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        made = init_future(MODEL.config, jax.random.key(1)).params
        query = made["decoder"]["layers"][0]["cross_query"]["kernel"]
        assert query.sharding.shard_shape(query.shape) == (32, 8)
        placed = jax.tree.map(
            lambda x, y: jax.device_put(x, y.sharding), MODEL.params, made
        )
        got, moved = jax.jit(jax.value_and_grad(loss_of))(placed, ids)
    assert_close(got, value)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(grads), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


# Making one ------------------------


def test_initial_weights():
    config = FutureConfig(encoder=tiny_config(family="gpt2"), decoder_layers=2)
    params = init_future(config, jax.random.key(0)).params
    layer = params["decoder"]["layers"][1]
    for weight, spread in (
        (layer["query"], 0.02), (layer["mlp"]["up"], 0.02), (params["expand"], 0.02),
        (layer["out"], 0.01), (layer["cross_out"], 0.01), (layer["mlp"]["down"], 0.01),
    ):  # fmt: skip
        assert float(jnp.std(weight["kernel"])) == pytest.approx(spread, rel=0.1)
    assert params["decoder"]["positions"].shape == (8, 32)


@pytest.mark.medium
def test_a_pretrained_model_becomes_the_encoder():
    """Its vectors are what it read tokens out of; its arrays are shared."""
    model = tiny_model(family="gpt2")
    made = future_from(model, key=jax.random.key(0), horizon=3, pseudo_tokens=2)
    hidden = jax.jit(lambda m, i: m(i, logits="none").hidden)(model, IDS)
    assert_close(ENCODE(made, IDS), hidden)
    assert made.params["encoder"] is model.params
    assert made.unembedding()[0] is model.params["embed"]["tokens"]
    untied = future_from(tiny_model(), key=jax.random.key(0))
    assert untied.unembedding()[0] is tiny_model().params["unembed"]["kernel"]
    stacked = made.replace(params=with_encoder(made.params, stack_layers))
    assert_close(ENCODE(stacked, IDS), hidden, **CLOSE)
    again = with_encoder(stacked.params, split_layers)
    jax.tree.map(np.testing.assert_array_equal, again, made.params)


def test_bad_input():
    gpt = tiny_config(family="gpt2")
    both_ways = dataclasses.replace(gpt, causal=False)
    mamba = tiny_config(family="mamba")
    for options, message in (
        ({"horizon": 0}, "horizon: got 0, expected at least 1"),
        ({"pseudo_tokens": 0}, "pseudo_tokens: got 0"),
        ({"decoder_layers": 0}, "decoder_layers: got 0"),
        ({"first_input": "newest"}, "first_input: got 'newest'"),
        ({"encoder": both_ways}, "encoder: got 'causal=False'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            FutureConfig(**{"encoder": gpt, **options})
    with pytest.raises((ArgumentTypeError, TypeError), match="encoder"):
        FutureConfig(encoder=mamba)
    with pytest.raises(ArgumentTypeError, match="encoder: got MambaConfig"):
        future_from(tiny_model(family="mamba"), key=jax.random.key(0))
    unchecked = getattr(future_from, "__wrapped__", future_from)
    with pytest.raises(ArgumentTypeError, match="model: got str, expected a Model"):
        unchecked("gpt2", key=jax.random.key(0))
    with pytest.raises(ArgumentError, match="ids: got '600 tokens', expected at most"):
        MODEL.encode(jnp.zeros((1, 600), jnp.int32))
    places = jnp.broadcast_to(jnp.arange(10), (2, 10))
    with pytest.raises(ArgumentError, match="positions: got 512, expected below 512"):
        MODEL.encode(IDS, positions=places + 503)
    with pytest.raises((ArgumentError, TypeError), match="positions"):
        MODEL.encode(IDS, positions=places[:1])
    with pytest.raises(ArgumentError, match="forced: got '4 tokens', expected at most"):
        MODEL.decode(jnp.zeros((1, 32)), jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(ArgumentError, match="last: got None"):
        tiny_future(first_input="last_token").decode(
            jnp.zeros((1, 32)), jnp.zeros((1, 1), jnp.int32)
        )


def test_the_encoder_is_a_model_of_its_own():
    assert isinstance(MODEL.encoder, models.Model)
    assert isinstance(MODEL.config.encoder, nn.DecoderConfig)
    total = sum(x.size for x in jax.tree.leaves(MODEL.params))
    assert MODEL.num_params == total > MODEL.encoder.num_params
