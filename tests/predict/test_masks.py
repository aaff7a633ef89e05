"""Layouts, masks, and attention of blocks without a dense mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.ops import attention
from jtok.predict import (
    allow_blocks,
    allow_prefix,
    block_attention,
    choose_blocks,
    interleave,
    pack_blocks,
)
from jtok.predict.masks import within_documents
from jtok.testing import assert_close

TOKENS = jnp.array([[5, 6, 7, 8, 9, 4], [3, 2, 1, 5, 0, 0]])
REAL = jnp.array([[True] * 6, [True] * 4 + [False] * 2])
DOCUMENTS = jnp.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])


def packed_of(k=2, **options):
    return pack_blocks(TOKENS, k, vocab_size=10, mask=REAL, **options)


def brute_force(packed, row):
    """Who sees whom, and what is predicted, slot by slot."""
    slots = packed.ids.shape[1]
    block, offset, valid = (
        np.asarray(x[row]) for x in (packed.block, packed.offset, packed.valid)
    )
    allow = np.eye(slots, dtype=bool)
    for a in range(slots):
        for b in range(slots):
            if not (valid[a] and valid[b]):
                continue
            token = offset[b] == 0 and block[b] <= block[a]
            own = offset[a] > 0 and offset[b] > 0 and block[a] == block[b]
            allow[a, b] |= token or (own and offset[b] <= offset[a])
    return allow


@pytest.mark.parametrize("k", [0, 1, 3])
def test_who_sees_whom(k):
    packed = packed_of(k)
    assert packed.ids.shape == (2, 6 + 6 * k)
    allow = allow_blocks(packed.block, packed.offset, packed.valid)
    for row in range(2):
        np.testing.assert_array_equal(allow[row], brute_force(packed, row))


def test_labels_positions_and_the_token_before():
    labels = jnp.where(TOKENS == 6, -100, TOKENS)
    packed = packed_of(2, labels=labels, positions=jnp.arange(6)[None] + 10 * REAL)
    for row, length in ((0, 6), (1, 4)):
        text = TOKENS[row].tolist()
        for slot in range(packed.ids.shape[1]):
            block, offset = int(packed.block[row, slot]), int(packed.offset[row, slot])
            if not packed.valid[row, slot]:
                assert packed.labels[row, slot] == -100
                continue
            after = block + offset + 1
            label = text[after] if after < length else -100
            assert packed.labels[row, slot] == (-100 if label == 6 else label)
            if label >= 0:
                assert packed.prev_tokens[row, slot] == text[after - 1]
            assert packed.positions[row, slot] == block + offset + 10
            expected = text[block] if offset == 0 else 10 + offset - 1
            assert packed.ids[row, slot] == expected
        # Blocks stand where the next token is a target, and only there.
        starts = {int(b) for b in packed.block[row, 6::2] if b >= 0}
        assert starts == {i for i in range(length - 1) if int(labels[row, i + 1]) >= 0}


def test_documents_of_a_row_do_not_see_each_other():
    packed = packed_of(2, segments=DOCUMENTS)
    # No block whose next token is of another document, no label either.
    assert packed.block[0, 6::2].tolist() == [0, 1, -1, 3, 4, -1]
    labels = packed.labels[0, 6:].reshape(6, 2).tolist()
    assert labels == [
        [7, -100],
        [-100, -100],
        [-100] * 2,
        [4, -100],
        [-100] * 2,
        [-100] * 2,
    ]


@settings(max_examples=10)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6))
def test_chosen_blocks_are_distinct_targets(seed, count):
    labels = jnp.where(REAL, jnp.where(TOKENS == 7, -1, TOKENS), -1)
    blocks = np.asarray(choose_blocks(jax.random.key(seed), labels, count))
    for row in range(2):
        found = blocks[row][blocks[row] >= 0]
        assert (np.diff(found) > 0).all()
        able = [i for i in range(5) if labels[row, i + 1] >= 0]
        assert set(found) <= set(able) and len(found) == min(count, len(able))
        assert (blocks[row][len(found) :] == -1).all()


def test_each_block_counts_for_those_that_were_not_drawn():
    """The mean over all choices of one block is the sum over all blocks."""
    whole = packed_of(2)
    numbers = jnp.arange(12.0)  # any function of block and offset
    total = np.zeros(2)
    for row in range(2):
        kept = np.asarray(whole.valid[row, 6:])
        total[row] = np.asarray(numbers)[kept].sum()
        blocks = [int(b) for b in whole.block[row, 6::2] if b >= 0]
        sums = []
        for block in blocks:
            one = packed_of(2, blocks=jnp.full((2, 1), block))
            value = numbers.reshape(6, 2)[block]
            sums.append(float((one.weight[row, 6:] * value).sum()))
        assert np.mean(sums) == pytest.approx(total[row])


@pytest.mark.parametrize("blocks", [None, [[0], [2]]])
def test_targets_are_counted_at_their_places_whatever_was_chosen(blocks):
    packed = packed_of(3, labels=jnp.where(TOKENS == 7, -100, TOKENS))
    wanted = np.zeros((2, 6), np.int32)
    for row, slot in zip(*np.nonzero(packed.labels[:, 6:] >= 0)):
        at = packed.block[row, 6 + slot] + packed.offset[row, 6 + slot]
        wanted[row, at] += 1
    blocks = None if blocks is None else jnp.array(blocks)
    labels = jnp.where(TOKENS == 7, -100, TOKENS)
    np.testing.assert_array_equal(
        packed_of(3, labels=labels, blocks=blocks).targets, wanted
    )


def test_values_that_are_not_known_are_left_out_where_they_are_none():
    """Under `jit`: as if they were padding, no target, or behind the model's end."""
    run = jax.jit(
        lambda tokens, labels, places: pack_blocks(
            tokens, 2, vocab_size=10, labels=labels, positions=places, max_positions=12
        )
    )
    index = jnp.arange(6)[None].repeat(2, 0)
    plain = run(TOKENS, TOKENS, index)
    for bad in (10, -1):
        got = run(TOKENS.at[0, 3].set(bad), TOKENS, index)
        assert not got.valid[0, 3] and got.valid[0, 2]
        wanted = pack_blocks(
            TOKENS, 2, vocab_size=10, mask=jnp.ones((2, 6), bool).at[0, 3].set(False)
        )
        for name in ("labels", "valid", "block", "targets"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    got = run(TOKENS, TOKENS.at[0, 3].set(10), index)
    assert (got.labels != 10).all() and got.valid[0, 3]
    assert (plain.labels >= 0).sum() - (got.labels >= 0).sum() > 1
    got = run(TOKENS, TOKENS, index + 7)
    there = np.asarray(got.positions) < 12
    np.testing.assert_array_equal(got.valid, np.asarray(plain.valid) & there)
    np.testing.assert_array_equal(got.labels, np.where(there, plain.labels, -100))
    labels = np.asarray(got.labels)[:, 6:]
    assert int(got.targets.sum()) == (labels >= 0).sum()


def test_interleaved_slots_are_the_same_slots():
    packed = packed_of(2)
    moved = interleave(packed)
    order = ["block", "offset", "ids", "labels", "positions", "valid"]
    rows = lambda x, b: sorted(
        zip(*(np.asarray(getattr(x, n)[b]).tolist() for n in order))
    )
    for row in range(2):
        assert rows(packed, row) == rows(moved, row)
        kept = moved.block[row][moved.valid[row]].tolist()
        assert kept == sorted(kept)


def test_a_mask_and_documents_hold_both():
    causal = np.tri(6, dtype=bool)[None]
    same = np.asarray(DOCUMENTS)[:, :, None] == np.asarray(DOCUMENTS)[:, None]
    wanted = causal & same & np.asarray(REAL)[:, None]
    square = jnp.broadcast_to(REAL[:, None], (2, 6, 6))
    for mask in (REAL, square):
        np.testing.assert_array_equal(within_documents(mask, DOCUMENTS), wanted)
    np.testing.assert_array_equal(within_documents(None, DOCUMENTS), causal & same)
    assert within_documents(REAL, None) is REAL and within_documents(None, None) is None


def test_a_prefix_looks_both_ways():
    allow = np.asarray(allow_prefix(jnp.array([0, 3]), 5))
    np.testing.assert_array_equal(allow[0], np.tri(5, dtype=bool))
    assert allow[1, :3, :3].all() and not allow[1, :3, 3:].any()
    np.testing.assert_array_equal(allow[1, 3:], np.tri(5, dtype=bool)[3:])


# ---- attention


def inputs(packed, heads=4, kv_heads=2, dim=8, dtype=jnp.float32, seed=0):
    slots = packed.ids.shape[1]
    keys = jax.random.split(jax.random.key(seed), 3)
    query = jax.random.normal(keys[0], (2, slots, heads, dim), dtype)
    key, value = (
        jax.random.normal(k, (2, kv_heads, slots, dim), dtype) for k in keys[1:]
    )
    return query, key, value


def by_blocks(packed, query, key, value, *, queries=128, **options):
    seq, k = packed.seq, packed.k
    return block_attention(
        query[:, seq:], key[:, :, seq:], value[:, :, seq:], key[:, :, :seq],
        value[:, :, :seq], packed.block[:, seq::k], scale=0.35,
        seen=packed.valid[:, :seq], positions=packed.positions[:, :seq],
        segments=packed.segments, queries=queries, **options,
    )  # fmt: skip


def densely(packed, query, key, value, *, window=None, **options):
    allow = allow_blocks(packed.block, packed.offset, packed.valid)
    if packed.segments is not None:
        at = jnp.clip(packed.block, 0, packed.seq - 1)
        kinds = jnp.take_along_axis(packed.segments, at, axis=1)
        itself = jnp.eye(allow.shape[1], dtype=bool)[None]
        allow = (allow & (kinds[:, :, None] == kinds[:, None, :])) | itself
    if window is not None:
        far = packed.positions[:, :, None] - packed.positions[:, None, :]
        allow = allow & (far < window)
    return attention(query, key, value, allow, scale=0.35, **options)[:, packed.seq :]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 2}, {"softcap": 2.0}, {"queries": 1}, {"queries": 6, "window": 3}],
    ids=["whole", "window", "softcap", "pieces", "pieces-window"],
)
def test_attention_is_that_of_the_dense_mask(k, options):
    segments = DOCUMENTS if "window" in options else None
    packed = packed_of(k, segments=segments)
    args = inputs(packed)
    real = packed.valid[:, packed.seq :, None, None]
    dense = {n: x for n, x in options.items() if n != "queries"}

    def total(run, options, args):
        mixed = jnp.where(real, run(packed, *args, **options), 0.0)
        return jnp.sum(jnp.sin(mixed)), mixed

    run = lambda run, options: jax.jit(
        jax.value_and_grad(lambda args: total(run, options, args), has_aux=True)
    )(args)
    (_, ours), grads = run(by_blocks, options)
    (_, theirs), wanted = run(densely, dense)
    assert_close(ours, theirs)
    jax.tree.map(assert_close, grads, wanted)


def test_attention_in_bfloat16():
    packed = packed_of(2)
    args = inputs(packed, dtype=jnp.bfloat16)
    ours, theirs = by_blocks(packed, *args), densely(packed, *args)
    real = np.asarray(packed.valid[:, packed.seq :])
    assert ours.dtype == jnp.bfloat16
    assert_close(
        np.asarray(ours, np.float32)[real],
        np.asarray(theirs, np.float32)[real],
        atol=2e-2,
    )


def test_memory_grows_with_the_row_and_not_with_the_square_of_all_slots():
    """Forward and gradient, whatever a mask of all slots by all slots would take."""
    seq, k = 512, 4

    def loss(query, key, value, row_key, row_value):
        ends = jnp.arange(seq)[None]
        mixed = block_attention(query, key, value, row_key, row_value, ends, scale=0.3)
        return jnp.sum(jnp.square(mixed))

    shape = lambda *s: jax.ShapeDtypeStruct((1, *s), jnp.float32)
    slots = seq * k
    args = (shape(slots, 2, 8), *[shape(2, slots, 8)] * 2, *[shape(2, seq, 8)] * 2)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*args).compile()
    taken = compiled.memory_analysis().temp_size_in_bytes
    # One head's scores of all slots by all slots in float32.
    assert taken < (seq + slots) ** 2 * 4 / 4


# ---- bad input


def test_bad_input_is_refused_by_name():
    with pytest.raises(ArgumentError, match=r"k: got -1"):
        packed_of(-1)
    with pytest.raises(ArgumentError, match=r"tokens: got '0 to 9', expected 0 to 8"):
        pack_blocks(TOKENS, 1, vocab_size=9)
    with pytest.raises(ArgumentError, match=r"labels: got '0 to 10', expected at most"):
        packed_of(1, labels=TOKENS.at[0, 0].set(10))
    with pytest.raises(ArgumentError, match=r"positions: got '3 to 8', expected 0 to"):
        packed_of(2, positions=jnp.arange(3, 9)[None].repeat(2, 0), max_positions=10)
    with pytest.raises(ArgumentError, match=r"tokens: got 'shape \(1, 0\)'"):
        pack_blocks(jnp.zeros((1, 0), jnp.int32), 1, vocab_size=9)
    with pytest.raises(ArgumentError, match=r"labels: got 'shape \(2, 5\)'"):
        packed_of(1, labels=TOKENS[:, :5])
    with pytest.raises(ArgumentError, match=r"blocks: got"):
        packed_of(1, blocks=jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(ArgumentError, match=r"tokens: got '6 tokens and k=3'"):
        packed_of(3, max_positions=8)
    with pytest.raises(ArgumentError, match=r"num_blocks: got 7"):
        choose_blocks(jax.random.key(0), TOKENS, 7)
    q, kv = jnp.ones((1, 3, 1, 4)), jnp.ones((1, 1, 3, 4))
    with pytest.raises(ArgumentError, match=r"ends: got '2 blocks'"):
        block_attention(q, kv, kv, kv, kv, jnp.zeros((1, 2), jnp.int32), scale=1.0)
