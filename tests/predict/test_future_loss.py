"""Losses of several future tokens: weights, chosen positions, growing horizons."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import train
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.predict import (
    active_horizon,
    distance_perplexity,
    distance_weights,
    future_loss,
    future_losses,
    sample_positions,
    weigh_offsets,
)
from jtok.testing import assert_close
from tests.predict.future_models import tiny_future

MODEL = tiny_future()
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (3, 12)), jnp.int32)
MASK = jnp.arange(12)[None] < jnp.array([12, 7, 1])[:, None]
BATCH = {"tokens": IDS, "mask": MASK}
KEY = jax.random.key(0)
LOSSES = jax.jit(future_losses, static_argnames="chunk")


def run(loss_fn, state=None, batch=BATCH, key=KEY):
    return jax.jit(loss_fn)(MODEL.params, None, state, batch, key)


@pytest.fixture(scope="module")
def exact():
    return LOSSES(MODEL, IDS, mask=MASK)


@pytest.mark.parametrize("reduction", ["tokens", "offsets"])
def test_the_loss_of_fit_is_the_weighted_loss(exact, reduction):
    loss, (metrics, state) = run(future_loss(MODEL, gamma=0.5, reduction=reduction))
    weights = distance_weights(4, 0.5)
    assert_close(loss, weigh_offsets(*exact, weights, reduction=reduction))
    assert state is None and int(metrics["tokens"]) == 11 + 6
    valid = np.asarray(exact.valid)
    for k in range(4):
        mean = np.asarray(exact.losses)[..., k][valid[..., k]].mean()
        assert_close(metrics[f"nats_{k + 1}"], np.float32(mean))
    perplexity = distance_perplexity(*exact)
    assert_close(perplexity[1], jnp.exp(metrics["nats_2"]), rtol=1e-5)


def test_gamma_zero_is_the_next_token_and_one_the_plain_mean(exact):
    losses, valid = (np.asarray(x) for x in exact)
    none, _ = run(future_loss(MODEL, gamma=0.0))
    assert_close(none, np.float32(losses[..., 0][valid[..., 0]].mean()))
    plain, _ = run(future_loss(MODEL, gamma=1.0))
    assert_close(plain, np.float32(losses[valid].mean()))


@pytest.mark.medium
def test_a_horizon_of_one_does_not_weigh():
    model = tiny_future(horizon=1)
    got = [
        jax.jit(future_loss(model, gamma=gamma))(model.params, None, None, BATCH, KEY)[
            0
        ]
        for gamma in (0.0, 0.8)
    ]
    assert got[0] == got[1]


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_chunks_change_nothing(exact, chunk):
    got = LOSSES(MODEL, IDS, mask=MASK, chunk=chunk)
    assert_close(got.losses, exact.losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.valid, exact.valid)


def gradient(loss_fn, key=KEY):
    found = jax.jit(jax.grad(lambda p, key: loss_fn(p, None, None, BATCH, key)[0]))
    return found(MODEL.params, key)


@pytest.mark.medium
def test_gradients_of_chunks_are_the_same():
    whole, parts = (gradient(future_loss(MODEL, chunk=c)) for c in (12, 4))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.medium
def test_memory_follows_the_chunk():
    """Neither pseudo-tokens of all positions nor logits are held."""
    ids = jnp.zeros((2, 257), jnp.int32)

    def size(chunk):
        loss_fn = future_loss(MODEL, chunk=chunk)
        run_ = jax.jit(
            jax.grad(lambda p: loss_fn(p, None, None, {"tokens": ids}, KEY)[0])
        )
        return run_.lower(MODEL.params).compile().memory_analysis().temp_size_in_bytes

    assert size(8) < 0.5 * size(256)


# Some positions ------------------------


@given(st.integers(1, 8), st.integers(0, 5))
def test_chosen_positions(count, seed):
    valid = np.random.default_rng(seed).random((4, 8)) < 0.6
    at, times = sample_positions(jnp.asarray(valid), count, jax.random.key(seed))
    assert at.shape == (4, count)
    for row, chosen, factor in zip(valid, np.asarray(at), times, strict=True):
        assert (np.diff(chosen) > 0).all()
        assert row[chosen].sum() == min(row.sum(), count)
        assert float(factor) == pytest.approx(max(row.sum() / count, 1.0))


@pytest.mark.parametrize("reduction", ["tokens", "offsets"])
def test_some_positions_are_unbiased(exact, reduction):
    """The mean over many draws is the loss of all positions."""
    options = {"gamma": 0.8, "reduction": reduction}
    some = future_loss(MODEL, decoder_positions=3, **options)
    each = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: some(MODEL.params, None, None, BATCH, key)[0], keys
        )
    )
    values = np.asarray(each(jax.random.split(jax.random.key(1), 400)))
    whole = float(weigh_offsets(*exact, distance_weights(4, 0.8), reduction=reduction))
    error = values.std() / np.sqrt(len(values))
    assert values.std() > 0.01 and abs(values.mean() - whole) < 4 * error


def test_as_many_positions_as_there_are_is_all_of_them():
    whole, _ = run(future_loss(MODEL))
    for count in (11, 50):
        loss, _ = run(future_loss(MODEL, decoder_positions=count))
        assert_close(loss, whole)


# A horizon that grows ------------------------


def test_the_horizon_grows_with_the_updates(exact):
    plan = ((0, 1), (2, 2), (4, 4))
    assert [int(active_horizon(plan, s)) for s in range(6)] == [1, 1, 2, 2, 4, 4]
    loss_fn = future_loss(MODEL, gamma=0.8, curriculum=plan)
    weights = np.asarray(distance_weights(4, 0.8))
    for step, horizon in ((0, 1), (2, 2), (5, 4)):
        loss, (_, state) = run(loss_fn, state=jnp.int32(step))
        on = jnp.asarray(np.asarray(exact.valid) & (np.arange(4) < horizon))
        assert_close(loss, weigh_offsets(exact.losses, on, jnp.asarray(weights)))
        assert int(state) == step + 1


@pytest.mark.medium
def test_training_learns_and_counts_its_updates():
    """Also with some positions, several documents a row and a growing horizon."""
    rows = jnp.tile(jnp.arange(12, dtype=jnp.int32) % 3, (4, 1))
    batch = {"tokens": rows, "segments": jnp.zeros_like(rows).at[:, 8:].set(1)}
    result = train.fit(
        future_loss(MODEL, decoder_positions=6, curriculum=((0, 2), (5, 4))),
        MODEL.params, optimizer=optax.adam(3e-3), data=lambda step: batch, steps=40,
        key=KEY, state=jnp.int32(0), progress=False,
    )  # fmt: skip
    assert int(result.state) == 40
    loss = result.metrics["loss"]
    assert loss[-1] < 0.3 * loss[0]
    assert result.metrics["nats_4"][0] == 0 < result.metrics["nats_4"][6]


def test_bad_input():
    for options, message in (
        ({"gamma": -0.1}, "gamma: got -0.1"),
        ({"decoder_positions": 0}, "decoder_positions: got 0"),
        ({"chunk": 0}, "chunk: got 0"),
        ({"curriculum": ((1, 1),)}, "curriculum: got .* the first at step 0"),
        ({"curriculum": ((0, 1), (0, 2))}, "curriculum: got"),
        ({"curriculum": ((0, 0),)}, "horizons of 1 or more"),
        ({"curriculum": ((0, 5),)}, "horizons up to 4"),
    ):
        with pytest.raises(ArgumentError, match=message):
            future_loss(MODEL, **options)
    unchecked = getattr(future_loss, "__wrapped__", future_loss)
    with pytest.raises(ArgumentError, match="reduction: got 'sum'"):
        unchecked(MODEL, reduction="sum")
    with pytest.raises(ArgumentError, match="state: got None"):
        run(future_loss(MODEL, curriculum=((0, 1),)))
    with pytest.raises(ArgumentTypeError, match="data: got"):
        run(future_loss(MODEL), batch={"ids": IDS})
    with pytest.raises(ArgumentError, match="chunk: got 0"):
        future_losses(MODEL, IDS, chunk=0)
    with pytest.raises((ArgumentError, TypeError), match="mask"):
        future_losses(MODEL, IDS, mask=MASK[:, :5])
    with pytest.raises(ArgumentError, match="decoder_positions: got 9"):
        sample_positions(jnp.ones((1, 8), bool), 9, KEY)
    with pytest.raises(ArgumentError, match="curriculum"):
        active_horizon((), 0)
