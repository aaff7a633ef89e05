"""Vocabulary-sized work: blocks give what dense logits give, in bounded memory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.ops import Draw, Want, cross_entropy, readout, readout_logits, row_keys
from jtok.testing import assert_close

VOCAB, BLOCK = 100, 16  # the last block is moved back by 12
DEPTH = jnp.array([[0, 1, 1, 2], [0, 1, 2, 2], [0, 0, 1, 3]])


@functools.lru_cache
def inputs(tied=False):
    """Hidden states and unembedding; `tied` logits are small integers."""
    rng = np.random.default_rng(int(tied))
    hidden, weight = rng.normal(size=(3, 4, 16)), rng.normal(size=(VOCAB, 16))
    if tied:
        hidden, weight = (np.sign(x) * (np.arange(16) < 2) for x in (hidden, weight))
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(weight, jnp.float32)


def draw_of(temperature, **fields):
    seeds = jnp.array([1, 2, 3])
    return Draw(
        keys=row_keys(seeds),
        start=jnp.array([0, 7, 900]),
        depth=DEPTH,
        temperature=jnp.asarray(temperature, jnp.float32),
        max_depth=3,
        **fields,
    )


blocked = jax.jit(readout, static_argnames="block")
dense = jax.jit(readout_logits)


def both(want, *, tied=False, block=BLOCK, bias=None):
    hidden, weight = inputs(tied)
    logits = np.einsum("bnd,vd->bnv", hidden, weight)
    if bias is not None:
        logits = logits + np.asarray(bias)
    got = blocked(hidden, weight, want, block=block, bias=bias)
    return got, dense(jnp.asarray(logits), want)


def assert_same(got, expected):
    for name in ("choice", "top_ids"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)
            assert a.dtype == jnp.int32
    for name in ("gap", "top_logits", "log_sum_exp", "rows"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == jnp.float32
            assert_close(a, b, name=name)


# ---- blocks against dense logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("block", [1, BLOCK, 99, 100])
def test_all_outputs_of_the_greedy_readout(block, tied):
    want = Want(top_k=5, log_sum_exp=True, gap=True)
    got, expected = both(want, tied=tied, block=block)
    assert_same(got, expected)
    assert got.rows is None


def test_dense_readout_against_numpy():
    hidden, weight = inputs(tied=True)
    bias = jnp.asarray(np.arange(VOCAB) % 3, jnp.float32)
    logits = np.einsum("bnd,vd->bnv", hidden, weight) + np.asarray(bias)
    out = readout(
        hidden, weight, Want(top_k=7, log_sum_exp=True, gap=True, rows=True), bias=bias
    )
    order = np.argsort(-logits, axis=-1, kind="stable")
    best = np.take_along_axis(logits, order, -1)
    np.testing.assert_array_equal(out.choice, order[..., 0])
    np.testing.assert_array_equal(out.top_ids, order[..., :7])
    np.testing.assert_array_equal(out.top_logits, best[..., :7])
    np.testing.assert_array_equal(out.gap, best[..., 0] - best[..., 1])
    np.testing.assert_array_equal(out.rows, logits)
    lse = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    assert_close(out.log_sum_exp, lse.astype(np.float32))


def test_bias_is_read_by_block():
    bias = jnp.asarray(np.random.default_rng(5).normal(size=VOCAB), jnp.float32)
    assert_same(*both(Want(top_k=3, log_sum_exp=True, gap=True), bias=bias))


def test_top_k_may_be_larger_than_a_block():
    for tied in (False, True):
        assert_same(*both(Want(top_k=40), tied=tied))


def test_nothing_is_returned_unasked():
    got, _ = both(Want())
    assert [got.gap, got.top_ids, got.top_logits, got.log_sum_exp, got.rows] == [
        None
    ] * 5


TEMPERATURES = ([0.0] * 3, [1.0] * 3, [0.0, 1.0, 0.3])


@pytest.mark.parametrize("top_k", [None, 1, 30, VOCAB])
def test_draws(top_k):
    for tied, temperature in itertools.product((False, True), TEMPERATURES):
        want = Want(draw=draw_of(temperature, top_k=top_k), top_k=4, gap=True)
        assert_same(*both(want, tied=tied))


@pytest.mark.parametrize("fields", ["top_p", "top_p min_p top_k"])
def test_filtered_draws(fields):
    values = {
        "top_p": jnp.array([0.5, 1.0, 0.01]),
        "min_p": jnp.array([0.0, 0.2, 1.0]),
        "top_k": 6,
    }
    for temperature in TEMPERATURES:
        draw = draw_of(temperature, **{name: values[name] for name in fields.split()})
        assert_same(*both(Want(draw=draw, gap=True, log_sum_exp=True)))


def test_rows_of_temperature_zero_are_greedy():
    hidden, weight = inputs()
    for top_k in (None, 30):
        draw = draw_of([0.0, 1.0, 0.0], top_k=top_k)
        got = blocked(hidden, weight, Want(draw=draw, gap=True, top_k=4), block=BLOCK)
        best = np.argmax(np.einsum("bnd,vd->bnv", hidden, weight), axis=-1)
        np.testing.assert_array_equal(got.choice[::2], best[::2])
        assert (got.choice[1] != best[1]).any()


# ---- what a draw is


def test_draw_is_gumbel_max_at_its_position():
    hidden, weight = inputs()
    temperature = [0.7, 1.0, 1.3]
    got = blocked(hidden, weight, Want(draw=draw_of(temperature)), block=BLOCK)
    logits = np.einsum("bnd,vd->bnv", hidden, weight)
    starts = [0, 7, 900]
    for row, node in itertools.product(range(3), range(4)):
        position = starts[row] + int(DEPTH[row, node])
        key = jax.random.fold_in(jax.random.key(row + 1), position)
        noise = np.asarray(jax.random.gumbel(key, (VOCAB,)))
        scores = logits[row, node] / np.float32(temperature[row]) + noise
        assert int(got.choice[row, node]) == int(np.argmax(scores))


def test_draw_at_a_single_depth():
    hidden, weight = inputs()
    flat = draw_of([1.0] * 3).replace(depth=jnp.zeros((3, 4), int), max_depth=0)
    deep = flat.replace(max_depth=3)
    for top_k in (None, 5):
        one, other = (
            blocked(hidden, weight, Want(draw=d.replace(top_k=top_k)), block=BLOCK)
            for d in (flat, deep)
        )
        np.testing.assert_array_equal(one.choice, other.choice)


def test_top_k_of_a_draw_does_not_cut_what_is_reported():
    want = Want(draw=draw_of([1.0] * 3, top_k=2), top_k=6)
    got, expected = both(want)
    assert_same(got, expected)
    assert np.isfinite(got.top_logits).all()


def test_bfloat16_logits_are_accumulated_in_float32():
    hidden, weight = (x.astype(jnp.bfloat16) for x in inputs())
    want = Want(top_k=3, log_sum_exp=True)
    got = blocked(hidden, weight, want, block=BLOCK)
    wide = [x.astype(jnp.float32) for x in (hidden, weight)]
    assert_same(got, blocked(*wide, want, block=BLOCK))


# ---- cross-entropy


def naive(hidden, weight, targets, mask=None, bias=None, softcap=None):
    logits = jnp.einsum("...d,vd->...v", hidden, weight)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    losses = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return losses if mask is None else losses * mask


MASK = np.arange(12).reshape(3, 4) % 3 != 1
BIAS = np.linspace(-1, 1, VOCAB, dtype=np.float32)
TARGETS = jnp.arange(12).reshape(3, 4) * 9


@pytest.mark.parametrize(
    "chunk, softcap, mask, bias",
    [
        (5, None, None, None),
        (5, 2.0, MASK, BIAS),
        (1, 2.0, None, BIAS),
        (100, None, MASK, BIAS),
    ],
)
def test_cross_entropy_and_its_gradients(chunk, softcap, mask, bias):
    hidden, weight = inputs()
    factors = jnp.asarray(np.linspace(0.5, 2.0, 12).reshape(3, 4), jnp.float32)
    trained = {"hidden": hidden, "weight": weight}
    if bias is not None:
        trained["bias"] = jnp.asarray(bias)
    mask = None if mask is None else jnp.asarray(mask)

    def total(function, trained):
        losses = function(**trained, targets=TARGETS, mask=mask, softcap=softcap)
        return jnp.sum(factors * losses), losses

    chunked = functools.partial(cross_entropy, chunk=chunk)
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(total, f), has_aux=True))(trained)
        for f in (chunked, naive)
    )
    for (path, got), want in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert_close(got, want, name=jax.tree_util.keystr(path))


def test_cross_entropy_of_bfloat16():
    hidden, weight = (x.astype(jnp.bfloat16) for x in inputs())

    def total(function, hidden, weight):
        return jnp.sum(function(hidden, weight, TARGETS))

    wide = [x.astype(jnp.float32) for x in (hidden, weight)]
    chunked = functools.partial(cross_entropy, chunk=5)
    (found_losses, found), (losses, expected) = (
        jax.jit(
            lambda *args, f=f: (
                f(*args, TARGETS),
                jax.grad(functools.partial(total, f), (0, 1))(*args),
            )
        )(*args)
        for f, args in ((chunked, (hidden, weight)), (naive, wide))
    )
    assert found_losses.dtype == jnp.float32
    assert_close(found_losses, losses)  # products accumulate in float32
    for got, want in zip(found, expected):
        assert got.dtype == jnp.bfloat16
        # Weight gradients sum chunks in bfloat16.
        assert_close(got.astype(jnp.float32), want, rtol=4e-2, atol=4e-2)


def test_masked_targets_may_be_anything():
    hidden, weight = inputs()
    wild = jnp.where(MASK, TARGETS, -100)
    loss = jax.jit(functools.partial(cross_entropy, mask=jnp.asarray(MASK), chunk=5))
    found = loss(hidden, weight, wild)
    expected = loss(hidden, weight, TARGETS)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert np.isfinite(found).all() and (np.asarray(found)[~MASK] == 0).all()


# ---- memory


def temporaries(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


TOKENS, WIDE, DIM = 2048, 8192, 8
WHOLE = TOKENS * WIDE * 4  # bytes of [tokens, vocab] in float32


@pytest.mark.parametrize("backward", [False, True])
def test_cross_entropy_never_holds_all_logits(backward):
    def loss(hidden, weight, targets):
        return jnp.mean(cross_entropy(hidden, weight, targets, chunk=64))

    function = jax.grad(loss, (0, 1)) if backward else loss
    shapes = (
        jax.ShapeDtypeStruct((TOKENS, DIM), jnp.float32),
        jax.ShapeDtypeStruct((WIDE, DIM), jnp.float32),
        jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
    )
    assert temporaries(function, *shapes) < WHOLE / 8

    def plain(hidden, weight, targets):
        return jnp.mean(naive(hidden, weight, targets))

    function = jax.grad(plain, (0, 1)) if backward else plain
    assert temporaries(function, *shapes) >= WHOLE  # the bound does measure them


@pytest.mark.parametrize("kind", ["greedy", "gumbel", "top-k"])
def test_readout_holds_one_block(kind):
    draw = None
    if kind != "greedy":
        keys, zeros = jnp.zeros((1, 2), jnp.uint32), jnp.zeros(1, jnp.int32)
        depth = jnp.zeros((1, TOKENS), jnp.int32)
        top_k = 5 if kind == "top-k" else None
        draw = Draw(keys, zeros, depth, jnp.ones(1), top_k=top_k)
    want = Want(draw=draw, top_k=3, log_sum_exp=True, gap=True)

    def run(hidden, weight):
        return readout(hidden, weight, want, block=256)

    shapes = (
        jax.ShapeDtypeStruct((1, TOKENS, DIM), jnp.float32),
        jax.ShapeDtypeStruct((WIDE, DIM), jnp.float32),
    )
    assert temporaries(run, *shapes) < WHOLE / 4
