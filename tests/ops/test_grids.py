"""Unshuffling, pooling, resizing and stacking of grids: goldens, laws, bad input."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.ops import (
    adaptive_pool,
    nested_pools,
    pixel_shuffle,
    pixel_unshuffle,
    pool_grid,
    resize_bilinear,
    stack_frames,
)
from jtok.testing import assert_close, load_golden

FILE = "token_compression_survey/transform_a.npz"


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("case", ["sq", "rect", "quarter"])
def test_unshuffle_of_transformers(case):
    golden = load_golden(FILE)
    factor = round(1 / float(golden[f"unshuffle_{case}.scale"]))
    x = jnp.asarray(golden[f"unshuffle_{case}.x"])
    got = pixel_unshuffle(x, factor)
    np.testing.assert_array_equal(got, golden[f"unshuffle_{case}.out"])
    np.testing.assert_array_equal(pixel_shuffle(got, factor), x)


@pytest.mark.parametrize("case", ["27to14", "24to12", "27to9"])
def test_pools_of_torch(case):
    golden = load_golden(FILE)
    flat = golden[f"pool_{case}.x"]
    step = int(golden[f"pool_{case}.stride"])
    side = round(flat.shape[1] ** 0.5)
    x = jnp.asarray(flat).reshape(-1, side, side, flat.shape[-1])
    made = jax.jit(
        lambda x: {
            "bilinear": resize_bilinear(x, (-(-side // step),) * 2),
            "average": pool_grid(x, (step, step)),
            "max": pool_grid(x, (step, step), reduce="max"),
            "adaptive7": adaptive_pool(x, (7, 7)),
        }
    )(x)
    for name, (got, real) in made.items():
        assert real.all() and real.shape == got.shape[:-1]
        wanted = golden[f"pool_{case}.{name}"]
        # Stated with the goldens.
        assert_close(got.reshape(wanted.shape), wanted, atol=1e-5, name=name)


def test_sound_of_torch():
    golden = load_golden(FILE)
    x = jnp.asarray(golden["audio.x"])
    assert_close(pool_grid(x, (2,), whole=True)[0], golden["audio.avgpool2"])
    assert_close(stack_frames(x, 5)[0], golden["audio.stack5"])


unshuffled = jax.jit(
    lambda x, factor, swap: pixel_unshuffle(x, factor, transposed=swap),
    static_argnums=(1, 2),
)
shuffled = jax.jit(
    lambda x, factor, swap: pixel_shuffle(x, factor, transposed=swap),
    static_argnums=(1, 2),
)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6), factor=st.sampled_from([1, 2, 3]), swap=st.booleans()
)
def test_nothing_is_lost_by_unshuffling(seed, factor, swap):
    x = noise(seed, 2, 6, 12, 3)
    wide = unshuffled(x, factor, swap)
    assert wide.shape == (
        (2, 12 // factor, 6 // factor, 3 * factor**2)
        if swap
        else (2, 6 // factor, 12 // factor, 3 * factor**2)
    )
    plain = unshuffled(x, factor, False)
    np.testing.assert_array_equal(wide.swapaxes(1, 2) if swap else wide, plain)
    np.testing.assert_array_equal(shuffled(wide, factor, swap), x)


RESIZES = {
    "average": functools.partial(pool_grid, window=(1, 3, 2)),
    "max": functools.partial(pool_grid, window=(1, 3, 2), reduce="max"),
    "adaptive": functools.partial(adaptive_pool, cells=(1, 4, 3)),
    "bilinear": functools.partial(resize_bilinear, cells=(1, 4, 3)),
}


@functools.cache
def compiled(name):
    return jax.jit(lambda x, valid: RESIZES[name](x, valid=valid))


@pytest.mark.parametrize("name", RESIZES)
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_laws_of_every_pool(name, seed):
    rng = np.random.default_rng(seed)
    x, run = noise(seed, 3, 2, 7, 6, 4), compiled(name)
    valid = jnp.asarray(rng.random(x.shape[:-1]) < 0.7)
    got, real = run(x, valid)
    # What is not real does not matter.
    other = jnp.where(valid[..., None], x, jnp.nan)
    again, same = run(other, valid)
    np.testing.assert_array_equal(again, got)
    np.testing.assert_array_equal(same, real)
    assert (np.asarray(got)[~np.asarray(real)] == 0).all()
    # A constant stays one, and rows of the batch are strangers.
    flat, there = run(jnp.full_like(x, 2.5), valid)
    np.testing.assert_allclose(np.asarray(flat)[np.asarray(there)], 2.5, rtol=1e-6)
    turn = rng.permutation(3)
    np.testing.assert_array_equal(run(x[turn], valid[turn])[0], got[turn])
    # Means and maxima lie within.
    assert got.max() <= x.max() + 1e-5 and got.min() >= min(x.min(), 0) - 1e-5


def test_means_are_those_of_a_loop():
    x = noise(0, 2, 7, 5, 3)
    valid = np.random.default_rng(1).random((2, 7, 5)) < 0.6
    run = jax.jit(
        lambda x, valid: (
            adaptive_pool(x, (3, 2), valid=valid),
            pool_grid(x, (2, 3), valid=valid),
            pool_grid(x, (2, 3), valid=valid, whole=True)[1],
        )
    )
    (got, real), (windows, there), whole = jax.tree.map(
        np.asarray, run(x, jnp.asarray(valid))
    )
    wide = np.asarray(x)
    for b in range(2):
        for i in range(3):
            for j in range(2):
                rows = slice(i * 7 // 3, -(-(i + 1) * 7 // 3))
                columns = slice(j * 5 // 2, -(-(j + 1) * 5 // 2))
                inside = valid[b, rows, columns]
                assert real[b, i, j] == inside.any()
                mean = wide[b, rows, columns][inside].mean(0) if inside.any() else 0
                np.testing.assert_allclose(got[b, i, j], mean, atol=1e-6)
        for i in range(3):
            rows, columns = slice(2 * i, 2 * i + 2), slice(0, 3)
            inside = valid[b, rows, columns]
            assert there[b, i, 0] == inside.any() and whole[b, i, 0] == inside.all()
            mean = wide[b, rows, columns][inside].mean(0) if inside.any() else 0
            np.testing.assert_allclose(windows[b, i, 0], mean, atol=1e-6)


def test_bilinear_reads_two_tokens_an_axis_and_smooths_nothing():
    x = noise(2, 1, 27, 27, 4)
    np.testing.assert_array_equal(resize_bilinear(x, (27, 27))[0], x)
    got, _ = resize_bilinear(x, (14, 14))
    plain = jax.image.resize(x, (1, 14, 14, 4), "bilinear", antialias=False)
    smooth = jax.image.resize(x, (1, 14, 14, 4), "bilinear", antialias=True)
    assert_close(got, plain, atol=2e-5)
    assert np.abs(got - smooth).max() > 0.5
    # A far token moves nothing.
    changed, _ = resize_bilinear(x.at[0, 13, 13].add(100.0), (14, 14))
    moved = np.abs(np.asarray(changed - got))[0].max(-1) > 1e-3
    assert 1 <= moved.sum() <= 4


def test_every_scale_averages_the_one_before():
    x = noise(3, 2, 24, 24, 3)
    scales = jax.jit(nested_pools)(x)
    assert [pooled.shape[1] for pooled, _ in scales] == [24, 12, 6, 3, 1]
    np.testing.assert_array_equal(scales[0][0], x)
    for (fine, _), (coarse, _) in itertools.pairwise(scales):
        step = fine.shape[1] // coarse.shape[1]
        wide = np.asarray(fine).reshape(2, coarse.shape[1], step, -1, step, 3)
        assert_close(coarse, wide.mean((2, 4)), atol=1e-6)
    assert_close(scales[-1][0][:, 0, 0], jnp.mean(x, axis=(1, 2)), atol=1e-6)
    assert [
        pooled.shape[1:3] for pooled, _ in jax.eval_shape(nested_pools, x[:, :6, :4])
    ] == [
        (6, 4), (3, 2), (1, 1),
    ]  # fmt: skip


def test_the_first_of_equal_maxima_gets_the_gradient():
    loss = lambda x: jnp.sum(pool_grid(x, (3,), reduce="max")[0])
    grad = jax.grad(loss)(jnp.ones((1, 6, 1)))
    assert grad[0, :, 0].tolist() == [1, 0, 0, 1, 0, 0]


def test_narrow_tokens_are_averaged_wide():
    x = jnp.ones((1, 600, 1), jnp.bfloat16)
    for got, _ in (
        pool_grid(x, (600,)),
        adaptive_pool(x, (1,)),
        resize_bilinear(x, (1,)),
    ):
        assert got.dtype == jnp.bfloat16 and got.item() == 1.0
    assert stack_frames(x, 5)[0].dtype == jnp.bfloat16


def test_a_stack_with_padding_is_none():
    x, valid = noise(4, 2, 11, 3), jnp.arange(11)[None] < jnp.asarray([[11], [8]])
    got, real = stack_frames(x, 3, valid=valid)
    assert real.tolist() == [[True] * 3, [True, True, False]]
    np.testing.assert_array_equal(got[0], x[0, :9].reshape(3, 9))
    assert float(jnp.abs(got[1, 2]).max()) == 0


X = jnp.ones((1, 4, 6, 2))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: pixel_unshuffle(X, 4), "factor: got 4, expected a divisor of both"),
        (lambda: pixel_unshuffle(X[:, :3], 2), "factor: got 2, expected a divisor"),
        (lambda: pixel_unshuffle(X, 0), "factor: got 0"),
        (lambda: pixel_shuffle(X, 2), "x: got '2 channels', expected a multiple of 4"),
        (lambda: pool_grid(X, (2,)), "window: got"),
        (lambda: pool_grid(X, (5, 1)), "window: got"),
        (lambda: adaptive_pool(X, (5, 6)), "cells: got"),
        (lambda: resize_bilinear(X, (0, 6)), "cells: got"),
        (lambda: stack_frames(X[0], 7), "count: got 7, expected 1 to 6"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ArgumentError, match=said.replace("(", r"\(")):
        jax.eval_shape(call)
