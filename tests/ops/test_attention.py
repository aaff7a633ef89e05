"""Attention over a cache and a tree equals attention over their concatenation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.ops import Tree, attention, cached_attention, write_rows
from jtok.ops.attention import reference
from jtok.testing import assert_close

SCALE = 0.4
TREE = Tree.from_paths([[0], [1], [0, 0], [0, 1], [0, 0, 0]])


def brute(query, key, value, allow, *, scale=SCALE, bias=None, softcap=None):
    """Float64 NumPy, one query and head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, seq, heads, _ = query.shape
    group = heads // key.shape[1]
    out = np.zeros(query.shape)
    for b, i, h in np.ndindex(batch, seq, heads):
        seen = np.flatnonzero(allow[b, i])
        scores = key[b, h // group, seen] @ query[b, i, h] * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            whole = np.broadcast_to(bias, (batch, heads, seq, key.shape[2]))
            scores = scores + whole[b, h, i, seen]
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ value[b, h // group, seen] / weights.sum()
    return out


def draw(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def nodes(heads=4, kv_heads=2, batch=3, count=6, dtype=jnp.float32):
    """Query, key, value of the nodes of `TREE`."""
    query = draw(0, batch, count, heads, 8, dtype=dtype)
    return query, *(draw(i, batch, kv_heads, count, 8, dtype=dtype) for i in (1, 2))


def tree_mask(batch=3):
    return jnp.broadcast_to(TREE.ancestors, (batch, 6, 6))


def joined(cache, new, length):
    """Row by row: the used cache slots, then the nodes; and who sees what."""
    capacity, count = cache.shape[2], new.shape[2]
    slots = np.arange(capacity)[None] < np.asarray(length)[:, None]
    seen = np.broadcast_to(slots[:, None], (len(length), count, capacity))
    return np.concatenate([cache, new], axis=2), seen


run = jax.jit(cached_attention, static_argnames=("scale", "block", "softcap"))

LENGTHS = [(0, 0, 0), (1, 1, 1), (7, 8, 9), (0, 37, 20), (37, 37, 37), (16, 32, 3)]


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("block", [8, 16, 37, 256])
def test_cache_and_tree_are_one_softmax(heads, kv_heads, block):
    query, key, value = nodes(heads, kv_heads)
    cache_key, cache_value = (draw(i, 3, kv_heads, 37, 8) for i in (3, 4))
    for length in LENGTHS:
        keys, seen = joined(cache_key, key, length)
        values, _ = joined(cache_value, value, length)
        allow = np.concatenate([seen, np.asarray(tree_mask())], axis=2)
        out = run(
            query, key, value, cache_key, cache_value, jnp.array(length), tree_mask(),
            scale=SCALE, block=block,
        )  # fmt: skip
        expected = brute(query, keys, values, allow)
        assert_close(out, expected.astype(np.float32), name=f"length {length}")


@pytest.mark.parametrize("block", [8, 256])
def test_bfloat16_stays_close_to_float32(block):
    wide = [*nodes(), draw(3, 3, 2, 37, 8), draw(4, 3, 2, 37, 8)]
    narrow = [x.astype(jnp.bfloat16) for x in wide]
    length = jnp.array([5, 37, 20])
    out = run(*narrow, length, tree_mask(), scale=SCALE, block=block)
    assert out.dtype == jnp.bfloat16
    rounded = [x.astype(jnp.float32) for x in narrow]
    expected = run(*rounded, length, tree_mask(), scale=SCALE, block=block)
    assert_close(out.astype(jnp.float32), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("block", [8, 256])
@pytest.mark.parametrize("garbage", [1e30, -1e30])
def test_unused_slots_do_not_leak(block, garbage):
    # Finite garbage only: unused slots hold zeros or keys and values of dropped
    # drafts. A weight of 0 times NaN would be NaN, so values are never NaN there.
    query, key, value = nodes()
    length = jnp.array([5, 0, 20])
    unused = (jnp.arange(37)[None] >= length[:, None])[:, None, :, None]
    caches = [draw(i, 3, 2, 37, 8) for i in (3, 4)]
    dirty = [jnp.where(unused, garbage, x) for x in caches]
    clean = run(
        query, key, value, *caches, length, tree_mask(), scale=SCALE, block=block
    )
    spoilt = run(
        query, key, value, *dirty, length, tree_mask(), scale=SCALE, block=block
    )
    np.testing.assert_array_equal(np.asarray(spoilt), np.asarray(clean))


def near(seen, allow, positions, window):
    """`seen` slots and `allow`ed nodes that are above `position - window`."""
    lowest = (positions - window)[:, :, None]
    slots = seen & (np.arange(seen.shape[2]) > lowest)
    return np.concatenate([slots, allow & (positions[:, None] > lowest)], axis=2)


@pytest.mark.parametrize("block", [8, 37, 256])
@pytest.mark.parametrize("window", [1, 2, 5, 9, 36, 1000])
def test_window_hides_what_is_far(block, window):
    query, key, value = nodes()
    caches = [draw(i, 3, 2, 37, 8) for i in (3, 4)]
    for length in LENGTHS:
        keys, seen = joined(caches[0], key, length)
        values, _ = joined(caches[1], value, length)
        positions = np.asarray(length)[:, None] + np.asarray(TREE.depth)[None]
        allow = near(seen, np.asarray(tree_mask()), positions, window)
        out = run(
            query, key, value, *caches, jnp.array(length), tree_mask(),
            positions=jnp.asarray(positions), scale=SCALE, block=block, window=window,
        )  # fmt: skip
        expected = brute(query, keys, values, allow)
        assert_close(out, expected.astype(np.float32), name=f"length {length}")


def test_window_follows_the_positions_given():
    # Nodes that stand further on than the cache reaches, and not in order.
    query, key, value = nodes()
    caches = [draw(i, 3, 2, 37, 8) for i in (3, 4)]
    length, window = jnp.array([5, 30, 37]), 7
    positions = np.array([[9, 4, 8, 3, 20, 6], [0, 33, 7, 31, 30, 34], [36] * 6])
    everyone = jnp.ones((3, 6, 6), bool)
    keys, seen = joined(caches[0], key, length)
    values, _ = joined(caches[1], value, length)
    out = run(
        query, key, value, *caches, length, everyone, positions=jnp.asarray(positions),
        scale=SCALE, block=8, window=window,
    )  # fmt: skip
    allow = near(seen, np.asarray(everyone), positions, window)
    assert_close(out, brute(query, keys, values, allow).astype(np.float32))


def test_window_may_be_an_array_and_blocks_below_it_are_not_read():
    query, key, value = nodes()
    caches = [draw(i, 3, 2, 40, 8) for i in (3, 4)]
    length = jnp.array([33, 30, 40])
    options = {
        "positions": length[:, None] + TREE.depth[None], "scale": SCALE, "block": 8
    }  # fmt: skip
    # The lowest slot that any node sees is 30 - 5 + 1 = 26: blocks 0 to 2 hold none.
    args = (length, tree_mask())
    clean = run(query, key, value, *caches, *args, window=jnp.int32(5), **options)
    spoilt = [x.at[:, :, :24].set(jnp.nan) for x in caches]
    out = run(query, key, value, *spoilt, *args, window=5, **options)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(clean))


def test_window_needs_positions():
    query, key, value = nodes()
    cache = jnp.zeros((3, 2, 4, 8))
    with pytest.raises(ArgumentError, match="positions"):
        cached_attention(
            query, key, value, cache, cache, jnp.zeros(3, int), tree_mask(),
            scale=SCALE, window=3,
        )  # fmt: skip


@pytest.mark.parametrize("block", [8, 256])
@pytest.mark.parametrize("softcap", [0.5, 3.0])
def test_softcap_bounds_cached_scores(block, softcap):
    query, key, value = (3 * x for x in nodes())
    caches = [3 * draw(i, 3, 2, 37, 8) for i in (3, 4)]
    length = (0, 37, 20)
    keys, seen = joined(caches[0], key, length)
    values, _ = joined(caches[1], value, length)
    out = run(
        query, key, value, *caches, jnp.array(length), tree_mask(), scale=SCALE,
        block=block, softcap=softcap,
    )  # fmt: skip
    allow = np.concatenate([seen, np.asarray(tree_mask())], axis=2)
    expected = brute(query, keys, values, allow, softcap=softcap)
    assert_close(out, expected.astype(np.float32))


def test_softcap_comes_before_the_bias_of_attention():
    query, key, value = (3 * x for x in nodes())
    bias, allow = draw(9, 3, 4, 6, 6), np.asarray(tree_mask())
    out = attention(query, key, value, tree_mask(), scale=SCALE, bias=bias, softcap=0.7)
    expected = brute(query, key, value, allow, bias=bias, softcap=0.7)
    assert_close(out, expected.astype(np.float32))


def test_large_scores_do_not_overflow():
    query, key, value = (50 * x for x in nodes())
    caches = [50 * draw(i, 3, 2, 37, 8) for i in (3, 4)]
    out = run(
        query, key, value, *caches, jnp.array([9, 0, 37]), tree_mask(), scale=1.0,
        block=8,
    )  # fmt: skip
    assert np.isfinite(out).all()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("shape", [None, (3, 4, 6, 6), (1, 1, 1, 6), (3, 4, 1, 6)])
def test_attention_without_a_cache(kv_heads, shape):
    query, key, value = nodes(kv_heads=kv_heads)
    bias = None if shape is None else draw(9, *shape)
    # A mask that is neither causal nor the same for all rows.
    allow = jax.random.bernoulli(jax.random.key(5), 0.5, (3, 6, 6))
    allow |= jnp.eye(6, dtype=bool)[None]
    out = attention(query, key, value, allow, scale=SCALE, bias=bias)
    expected = brute(query, key, value, np.asarray(allow), bias=bias)
    assert_close(out, expected.astype(np.float32))


def test_a_query_that_sees_nothing_is_finite():
    query, key, value = nodes(kv_heads=4)
    allow = jnp.zeros((3, 6, 6), bool)
    out = attention(query, key, value, allow, scale=SCALE)
    mean = jnp.mean(value, axis=2)[:, None]
    assert_close(out, jnp.broadcast_to(mean, out.shape))


# ---- writing


@pytest.mark.parametrize("start", [[2], [0, 3, 5]])
def test_write_rows_replaces_only_its_slots(start):
    cache, rows = draw(0, len(start), 2, 8, 4), draw(1, len(start), 2, 3, 4)
    expected = np.array(cache)
    for row, slot in enumerate(start):
        expected[row, :, slot : slot + 3] = rows[row]
    written = jax.jit(write_rows)(cache, rows, jnp.array(start))
    np.testing.assert_array_equal(np.asarray(written), expected)


def test_write_rows_casts_and_moves_down_at_the_end():
    cache = jnp.zeros((1, 1, 4, 1), jnp.bfloat16)
    written = write_rows(cache, jnp.ones((1, 1, 2, 1)), jnp.array([3]))
    assert written.dtype == jnp.bfloat16
    assert written.ravel().tolist() == [0, 0, 1, 1]


# ---- long sequences: some queries at a time


@pytest.mark.parametrize("seq", [32, 37])
@pytest.mark.parametrize("rows", [None, 1, "seq"])
def test_long_sequences_give_the_numbers_of_short_ones(monkeypatch, seq, rows):
    query = draw(0, 2, seq, 4, 8)
    key, value = (draw(i, 2, 2, seq, 8) for i in (1, 2))
    allow = jax.random.bernoulli(jax.random.key(5), 0.5, (2, seq, seq))
    allow |= jnp.eye(seq, dtype=bool)[None]
    bias = None
    if rows is not None:
        bias = draw(9, 2, 4, seq if rows == "seq" else 1, seq)

    def loss(query, key, value):
        out = attention(query, key, value, allow, scale=SCALE, bias=bias, softcap=3.0)
        return jnp.sum(jnp.sin(out)), out

    function = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    whole = function(query, key, value)
    monkeypatch.setattr(reference, "CHUNKED", 32)
    monkeypatch.setattr(reference, "CHUNK", 8)
    jax.tree.map(assert_close, function(query, key, value), whole)


def test_scores_of_long_sequences_are_never_whole():
    seq = reference.CHUNKED
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)

    def loss(query, key, value):
        causal = jnp.tril(jnp.ones((1, seq, seq), bool))
        return jnp.sum(attention(query, key, value, causal, scale=SCALE))

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
        shape(1, seq, 8, 4), shape(1, 8, seq, 4), shape(1, 8, seq, 4)
    )
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < 8 * seq * seq * 4 / 2
