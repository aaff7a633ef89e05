"""What every pooler keeps to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.nn import Pooler
from jtok.testing import assert_close
from tests.contracts.poolers import POOLERS, WEIGHING, WIDTH, params_of

EVERY = pytest.mark.parametrize("name", POOLERS)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


@functools.lru_cache
def compiled(name):
    return jax.jit(POOLERS[name])


def values(seq=5, seed=1, rows=4):
    draw = np.random.default_rng(seed).normal(size=(rows, seq, WIDTH))
    return jnp.asarray(draw, jnp.float32)


def run(name, x, mask):
    return compiled(name)(params_of(POOLERS[name]), x, jnp.asarray(mask, bool))


@EVERY
def test_is_a_hashable_pooler(name):
    pooler = POOLERS[name]
    assert isinstance(pooler, Pooler) and hash(pooler) == hash(
        dataclasses.replace(pooler)
    )


@EVERY
def test_shapes_and_padding_only_rows(name):
    pooler, made = POOLERS[name], run(name, values(), MASK)
    assert made.vectors.shape == (4, pooler.heads, WIDTH)
    assert not np.asarray(made.vectors[3]).any()
    assert np.isfinite(np.asarray(made.vectors)).all()


@EVERY
def test_one_token_is_its_own_pool(name):
    x = values()
    made = run(name, x, MASK)
    expected = np.broadcast_to(x[2, :1], made.vectors.shape[1:])
    assert_close(made.vectors[2], expected)


@EVERY
def test_what_stands_at_padding_changes_nothing(name):
    x = values()
    junk = jnp.where(jnp.asarray(MASK, bool)[..., None], x, jnp.nan)
    made, other = run(name, x, MASK), run(name, junk, MASK)
    np.testing.assert_array_equal(made.vectors, other.vectors)


@EVERY
def test_more_padding_changes_nothing(name):
    x, more = values(), np.pad(MASK, ((0, 0), (0, 3)))
    wide = jnp.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    made, other = run(name, x, MASK), run(name, wide, more)
    assert_close(made.vectors, other.vectors, atol=1e-6)
    if made.attention is not None:
        assert_close(made.attention, other.attention[..., :5], atol=1e-6)


@pytest.mark.parametrize("name", WEIGHING)
def test_weights_sum_to_one_over_real_tokens(name):
    weights = np.asarray(run(name, values(), MASK).attention)
    assert weights.dtype == np.float32 and (weights >= 0).all()
    total = np.broadcast_to(MASK.any(1)[:, None], weights.shape[:2])
    assert_close(weights.sum(-1), total.astype(np.float32))
    assert not weights[np.broadcast_to(MASK[:, None] == 0, weights.shape)].any()
    mixed = np.einsum("bht,btd->bhd", weights, values())
    assert_close(run(name, values(), MASK).vectors, mixed)


@EVERY
def test_rows_do_not_see_each_other(name):
    x, order = values(), np.array([2, 0, 3, 1])
    made, other = run(name, x, MASK), run(name, x[order], MASK[order])
    assert_close(made.vectors[order], other.vectors)


@EVERY
def test_gradients_are_finite_with_empty_and_zero_rows(name):
    x = values().at[0].set(0.0)
    params, mask = params_of(POOLERS[name]), jnp.asarray(MASK, bool)
    loss = lambda params, x: jnp.sum(jnp.square(POOLERS[name](params, x, mask).vectors))
    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(np.asarray(leaf)).all()
    assert not np.asarray(grads[1])[MASK == 0].any()


@EVERY
def test_half_precision_vectors(name):
    x = values().astype(jnp.bfloat16)
    made, exact = run(name, x, MASK), run(name, x.astype(jnp.float32), MASK)
    assert made.vectors.dtype == jnp.bfloat16
    assert_close(made.vectors, exact.vectors)


@EVERY
def test_no_rows_are_no_mistake(name):
    made = run(name, jnp.zeros((0, 3, WIDTH)), np.zeros((0, 3)))
    assert made.vectors.shape == (0, POOLERS[name].heads, WIDTH)
    empty = run(name, jnp.zeros((2, 0, WIDTH)), np.zeros((2, 0)))
    assert not np.asarray(empty.vectors).any()


@EVERY
def test_bad_masks_and_widths_are_refused(name):
    pooler, params = POOLERS[name], params_of(POOLERS[name])
    with pytest.raises(ArgumentError, match=r"mask: got 'shape \(4, 4\)', expected"):
        pooler(params, values(), MASK[:, :4])
    with pytest.raises(ArgumentError, match=r"mask: got \[2\], expected True and"):
        pooler(params, values(), MASK * 2)
    with pytest.raises(ArgumentError, match=r"values: .*expected \[batch, seq, 6\]"):
        pooler(params, values()[..., :4], MASK)
    with pytest.raises(ArgumentError, match="width: got 0"):
        dataclasses.replace(pooler, width=0)
