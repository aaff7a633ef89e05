"""Rows that are made where they are read, and the softmax that streams over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import ops
from jtok.errors import ArgumentError
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close

BATCH, SEQ, DIM, VOCAB = 4, 5, 8, 50
KEYS = ops.row_keys(jnp.arange(BATCH))
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(BATCH, SEQ, DIM)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(2, VOCAB - 1, (BATCH, SEQ)), jnp.int32)
LEARNED = jnp.asarray(RNG.normal(size=(VOCAB, DIM)), jnp.float32)
FIXED = jnp.asarray(RNG.normal(size=(2, DIM)), jnp.float32)


def table_of(kind, learned=LEARNED, fixed=FIXED, scale=1.0):
    options = {
        "random": {},
        "fixed": {"fixed_ids": (1, 7), "fixed_rows": fixed, "excluded_ids": (0, 49)},
        "mixed": {"q": 0.3, "learned": learned, "fixed_ids": (3,)},
        "learned": {"q": 0.0, "learned": learned, "excluded_ids": (0,)},
    }
    return ops.generated_table(KEYS, VOCAB, DIM, scale=scale, **options[kind])


def rows_by_hand(table, example):
    """One table, row by row, with jax.random alone."""
    key = jax.random.key(example)
    mixing = jax.random.fold_in(key, np.uint32(2**31 + 2))
    rows = []
    for token in range(VOCAB):
        row = table.scale * jax.random.normal(jax.random.fold_in(key, token), (DIM,))
        chosen = jax.random.uniform(jax.random.fold_in(mixing, token)) < table.q
        if table.learned is not None and (not chosen or token in table.fixed_ids):
            row = table.learned[token]
        if table.fixed_rows is not None and token in table.fixed_ids:
            row = table.fixed_rows[table.fixed_ids.index(token)]
        rows.append(row)
    return jnp.stack(rows)


def dense_nats(hidden, table, targets, softcap=None):
    """Cross-entropy with tables and logits written whole."""
    every = jnp.broadcast_to(jnp.arange(VOCAB)[None], (BATCH, VOCAB))
    logits = jnp.einsum("btd,bvd->btv", hidden, ops.table_rows(table, every))
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    for excluded in table.excluded_ids:
        logits = logits.at[..., excluded].set(-jnp.inf)
    log_probs = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.isinf(nats), 0.0, nats), logits


@pytest.mark.parametrize("kind", ["random", "fixed", "mixed"])
def test_rows_are_those_of_jax_random(kind):
    table = table_of(kind, scale=0.5)
    every = jnp.broadcast_to(jnp.arange(VOCAB)[None], (BATCH, VOCAB))
    found = jax.jit(ops.table_rows)(table, every)
    for example in (0, 3):
        assert_close(found[example], rows_by_hand(table, example), name=kind)


def test_rows_do_not_depend_on_their_neighbours():
    ids = jnp.array([[3, 48, 3], [5, 0, 48], [1, 1, 2], [48, 47, 46]])
    found = ops.generated_rows(KEYS, ids, DIM)
    np.testing.assert_array_equal(found[0, 0], found[0, 2])
    assert not np.array_equal(found[0, 1], found[1, 2])  # other sequences, other rows
    order = jnp.array([2, 0, 3, 1])
    moved = ops.generated_rows(KEYS[order], ids[order], DIM)
    np.testing.assert_array_equal(moved, found[order])
    far = ops.generated_rows(KEYS[:1], jnp.array([[2**31 - 1]]), DIM, 2.0, jnp.bfloat16)
    assert far.dtype == jnp.bfloat16 and bool(jnp.isfinite(far).all())


def test_rows_are_standard_normal_and_unrelated():
    ids = jnp.broadcast_to(jnp.arange(500)[None], (BATCH, 500))
    rows = np.asarray(ops.generated_rows(KEYS, ids, 64)).reshape(-1, 64)
    assert abs(rows.mean()) < 0.02 and abs(rows.std() - 1) < 0.02
    gram = np.corrcoef(rows[:300])
    assert np.abs(gram - np.eye(300)).max() < 0.75  # 64 dimensions: spread 1 / 8


def test_entries_are_random_with_probability_q():
    ids = jnp.broadcast_to(jnp.arange(2000)[None], (BATCH, 2000))
    share = lambda q: float(ops.random_entries(KEYS, ids, q).mean())
    assert (share(0.0), share(1.0)) == (0.0, 1.0)
    assert abs(share(0.2) - 0.2) < 0.02
    # Growing q only adds entries: the same noise decides.
    few, more = (ops.random_entries(KEYS, ids, q) for q in (0.2, 0.5))
    assert bool((more | ~few).all())


CASES = [
    ("random", None, None), ("fixed", 16, None), ("mixed", 16, 3.0),
    ("learned", 50, None), ("mixed", 1000, None),
]  # fmt: skip


@pytest.mark.parametrize("kind, block, softcap", CASES)
def test_streaming_is_the_dense_softmax(kind, block, softcap):
    """Loss and all gradients; blocks that do not divide the vocabulary."""
    weight = jnp.asarray(RNG.normal(size=(BATCH, SEQ)), jnp.float32)

    def total(streamed, hidden, learned, fixed, scale):
        table = table_of(kind, learned, fixed, scale)
        if streamed:
            nats = ops.generated_cross_entropy(
                hidden, table, TARGETS, softcap=softcap, block=block
            )
        else:
            nats, _ = dense_nats(hidden, table, TARGETS, softcap)
        return jnp.sum(nats * weight)

    args = (HIDDEN, LEARNED, FIXED, jnp.float32(0.7))
    run = jax.jit(jax.value_and_grad(total, argnums=(1, 2, 3, 4)), static_argnums=0)
    (got, got_grads), (want, want_grads) = run(True, *args), run(False, *args)
    assert_close(got, want, rtol=1e-5)
    for name, one, other in zip(
        ("hidden", "learned", "fixed", "scale"), got_grads, want_grads
    ):
        assert_close(one, other, atol=2e-5, rtol=2e-5, name=name)


def test_best_ids_and_normaliser():
    table = table_of("fixed")
    _, logits = dense_nats(HIDDEN, table, TARGETS)
    found = jax.jit(functools.partial(ops.generated_statistics, top_k=7, block=16))(
        HIDDEN, table
    )
    top, ids = jax.lax.top_k(logits, 7)
    np.testing.assert_array_equal(found.top_ids, ids)
    assert_close(found.top_logits, top)
    assert_close(found.log_sum_exp, jax.nn.logsumexp(logits, axis=-1))
    assert not set(table.excluded_ids) & set(np.asarray(found.top_ids).ravel().tolist())


def test_ties_go_to_the_lower_id():
    same = jnp.ones((VOCAB, DIM))
    table = ops.generated_table(KEYS, VOCAB, DIM, q=0.0, learned=same)
    found = ops.generated_statistics(HIDDEN, table, top_k=3, block=16)
    assert bool((found.top_ids == jnp.arange(3)[None, None]).all())


def test_an_excluded_target_counts_nothing():
    table = table_of("fixed")
    targets = TARGETS.at[0, 0].set(49)
    nats = ops.generated_cross_entropy(HIDDEN, table, targets)
    assert float(nats[0, 0]) == 0 and bool((nats[1:] > 0).all())


@pytest.mark.medium
def test_sharded_is_unsharded():
    """Every device makes its own part of the vocabulary; 48 ids on 2 x 4 devices."""
    learned = LEARNED[:48]

    def total(hidden, learned, scale):
        table = ops.generated_table(
            KEYS, 48, DIM, q=0.4, learned=learned, scale=scale, excluded_ids=(5,)
        )
        nats = ops.generated_cross_entropy(hidden, table, TARGETS % 48, block=5)
        best = ops.generated_statistics(hidden, table, top_k=3, block=5)
        return jnp.sum(nats), (nats, best.top_ids)

    run = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    args = (HIDDEN, learned, jnp.float32(0.7))
    (_, (want, want_ids)), want_grads = jax.jit(run)(*args)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        # Traced here, so that the mesh is seen.
        (_, (got, ids)), grads = jax.jit(lambda *args: run(*args))(*args)
    np.testing.assert_array_equal(ids, want_ids)
    assert_close(got, want)
    for one, other in zip(grads, want_grads):
        assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_memory_does_not_grow_with_the_vocabulary():
    """Neither tables `[batch, vocab, dim]` nor logits `[tokens, vocab]` are written."""
    vocab, dim, block = 4096, 32, 128
    hidden = jnp.ones((BATCH, 64, dim), jnp.float32)
    targets = jnp.zeros((BATCH, 64), jnp.int32)

    def loss(hidden):
        table = ops.generated_table(KEYS, vocab, dim)
        nats = ops.generated_cross_entropy(hidden, table, targets, block=block)
        return jnp.sum(nats)

    done = jax.jit(jax.grad(loss)).lower(hidden).compile()
    used = done.memory_analysis().temp_size_in_bytes
    # A handful of blocks of rows and logits, an eighth of either table.
    assert used < BATCH * vocab * 4 * min(dim, 64) / 2


def test_bfloat16_rows():
    hidden = HIDDEN.astype(jnp.bfloat16)
    table = ops.generated_table(KEYS, VOCAB, DIM, dtype=jnp.bfloat16)

    def total(hidden):
        return jnp.sum(ops.generated_cross_entropy(hidden, table, TARGETS, block=16))

    nats, grad = jax.jit(jax.value_and_grad(total))(hidden)
    assert nats.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    wide = ops.generated_table(KEYS, VOCAB, DIM)
    want = jnp.sum(dense_nats(HIDDEN, wide, TARGETS)[0])
    assert_close(nats, want, rtol=2e-2)


def test_bad_input():
    make = functools.partial(ops.generated_table, KEYS, VOCAB, DIM)
    with pytest.raises(ArgumentError, match="q: got 1.5"):
        make(q=1.5)
    with pytest.raises(ArgumentError, match="q: got -0.1"):
        ops.random_entries(KEYS, TARGETS, -0.1)
    with pytest.raises(ArgumentError, match="learned: got None"):
        make(q=0.5)
    with pytest.raises(ArgumentError, match="fixed_ids"):
        make(fixed_ids=(VOCAB,))
    with pytest.raises(ArgumentError, match="fixed_rows"):
        make(fixed_ids=(1,))
    with pytest.raises(ArgumentError, match="excluded_ids"):
        make(excluded_ids=tuple(range(VOCAB)))
    with pytest.raises(ArgumentError, match="block"):
        ops.generated_log_sum_exp(HIDDEN, make(), block=0)
    with pytest.raises(ArgumentError, match="top_k"):
        ops.generated_statistics(HIDDEN, make(), top_k=VOCAB + 1)
    with pytest.raises(ArgumentError, match="hidden"):
        ops.generated_log_sum_exp(HIDDEN[..., :4], make())
