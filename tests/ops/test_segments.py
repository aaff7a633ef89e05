"""Pooling by segment and attention inside a segment, against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.ops import pool_segments, segment_attention
from jtok.testing import assert_close

REDUCE = {
    "sum": lambda rows: rows.sum(0),
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0),
    "first": lambda rows: rows[0],
}
POOL = jax.jit(pool_segments, static_argnums=2, static_argnames=("reduce", "one_hot"))


def loop_pool(values, segments, count, reduce):
    out = np.zeros((values.shape[0], count, values.shape[2]), np.float32)
    for b, row in enumerate(segments):
        for s in range(count):
            if (row == s).any():
                out[b, s] = REDUCE[reduce](values[b][row == s])
    return out


@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("one_hot", [False, True])
def test_pooling_is_the_loop(reduce, one_hot):
    rng = np.random.default_rng(0)
    for _ in range(4):
        values = rng.normal(size=(3, 11, 5)).astype(np.float32)
        segments = rng.integers(-2, 6, (3, 11)).astype(np.int32)  # gaps, 5 is dropped
        got = POOL(values, segments, 5, reduce=reduce, one_hot=one_hot)
        assert_close(got, loop_pool(values, segments, 5, reduce))


def test_equal_maxima_give_their_gradient_to_the_first():
    values = jnp.array([[[2.0], [2.0], [1.0]]])
    segments = jnp.zeros((1, 3), jnp.int32)
    grad = jax.grad(lambda v: POOL(v, segments, 1, reduce="max").sum())(values)
    assert grad[0, :, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("reduce", REDUCE)
def test_pooling_keeps_bfloat16_and_ignores_padding(reduce):
    values = jnp.full((1, 300, 2), 1.0, jnp.bfloat16).at[:, 299].set(100.0)
    segments = jnp.zeros((1, 300), jnp.int32).at[:, 299].set(-1)
    got = POOL(values, segments, 2, reduce=reduce)
    assert got.dtype == jnp.bfloat16 and not got[0, 1].any()
    # 299 ones: bfloat16 alone would stop counting at 256.
    assert float(got[0, 0, 0]) == (300.0 if reduce == "sum" else 1.0)
    grad = jax.grad(lambda v: POOL(v, segments, 2, reduce=reduce).sum())(values)
    assert not grad[0, 299].any() and bool(jnp.isfinite(grad).all())


def test_pooling_refuses():
    values, segments = jnp.ones((1, 2, 3)), jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ArgumentError, match="num_segments: got 0"):
        pool_segments(values, segments, 0)
    with pytest.raises(ArgumentError, match="reduce: got 'last'"):
        pool_segments.__wrapped__(values, segments, 1, reduce="last")


# Attention ------------------------


ATTEND = jax.jit(segment_attention, static_argnames=("causal", "longest"))


def loop_attention(q, k, v, segments, causal):
    out = np.zeros_like(v)
    batch, seq, heads, size = q.shape
    for b in range(batch):
        for i in range(seq):
            keys = [
                j
                for j in range(seq)
                if segments[b, j] == segments[b, i] >= 0 and (j <= i or not causal)
            ]
            for h in range(heads if keys else 0):
                scores = k[b, keys, h] @ q[b, i, h] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[b, i, h] = (weights / weights.sum()) @ v[b, keys, h]
    return out


def runs(rng, batch, seq, longest):
    """Neighbouring segments of 1..longest tokens, with padding between and behind."""
    out = np.full((batch, seq), -1, np.int32)
    for row in out:
        at = segment = 0
        while at < seq - 2:
            size = int(rng.integers(1, longest + 1))
            if rng.random() < 0.8:
                row[at : min(at + size, seq - 2)] = segment
                segment += 1
            at += size
    return out


@functools.lru_cache
def qkv(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, 13, 2, 4)).astype(dtype) for _ in range(3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("longest", [None, 3, 4, 13])
def test_attention_is_the_loop(causal, longest):
    rng = np.random.default_rng(1)
    segments = runs(rng, 2, 13, min(longest or 5, 5))
    q, k, v = qkv(0)
    got = ATTEND(q, k, v, segments, causal=causal, longest=longest)
    assert_close(got, loop_attention(q, k, v, segments, causal))
    assert not np.asarray(got)[segments < 0].any()


@given(st.integers(0, 20), st.booleans())
def test_blocks_do_not_change_it(seed, causal):
    segments = runs(np.random.default_rng(seed), 2, 13, 4)
    q, k, v = qkv(seed % 3)
    whole = ATTEND(q, k, v, segments, causal=causal)
    assert_close(ATTEND(q, k, v, segments, causal=causal, longest=4), whole)


@pytest.mark.parametrize("longest", [None, 4])
def test_gradients_stay_in_the_segment_and_are_finite(longest):
    segments = jnp.array([[0, 0, 0, 1, 1, -1, -1, 2, 2, 2, 2, -1, -1]] * 2)
    q, k, v = qkv(2)

    def loss(k, v):
        out = ATTEND(q, k, v, segments, causal=False, longest=longest)
        return jnp.sum(out[:, 3:5] ** 2)

    for grad in jax.grad(loss, (0, 1))(jnp.asarray(k), jnp.asarray(v)):
        seen = np.abs(np.asarray(grad)).max((0, 2, 3)) > 0
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(np.flatnonzero(seen), [3, 4])


def test_attention_keeps_bfloat16():
    segments = jnp.array([[0] * 6 + [1] * 5 + [-1] * 2] * 2)
    wide = ATTEND(*qkv(0), segments, causal=True)
    narrow = ATTEND(*map(jnp.bfloat16, qkv(0)), segments, causal=True)
    assert narrow.dtype == jnp.bfloat16
    assert_close(narrow, np.asarray(wide, jnp.bfloat16), atol=4e-2)  # inputs rounded


def test_weights_can_be_dropped():
    q, k, v = qkv(0)
    segments = jnp.zeros((2, 13), jnp.int32)
    out = segment_attention(*map(jnp.asarray, (q, k, v)), segments, drop=jnp.zeros_like)
    assert not np.asarray(out).any()


def test_attention_refuses():
    with pytest.raises(ArgumentError, match="longest: got 0"):
        ATTEND(*qkv(0), jnp.zeros((2, 13), jnp.int32), longest=0)
