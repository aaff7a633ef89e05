"""ToMe and PiToMe: the laws of merging, padding, ties, protection, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.compress import (
    grouped,
    linear_margins,
    matching,
    pitome,
    random_merge,
    removal_schedule,
    spectral_distance,
    token_counts,
    tome,
)
from jtok.errors import ArgumentError

SEQ, DIM = 20, 6
KEY = jax.random.key(0)
METHODS = {
    "tome": functools.partial(tome, keep=0.7, protect=1),
    "tome-official-order": functools.partial(tome, remove=6),
    "pitome": functools.partial(pitome, keep=0.7, margin=0.4, protect=1),
    "pitome-bsm": functools.partial(
        pitome, keep=0.7, margin=0.4, protect=2, rule="bsm"
    ),
    "pitome-text": functools.partial(pitome, keep=0.7, margin=0.4, rule="text"),
    "random": lambda metric, **options: random_merge(
        metric, KEY, keep=0.7, protect=1, **options
    ),
}
EACH = pytest.mark.parametrize("name", METHODS)
PROTECTED = {"tome": 1, "pitome": 1, "pitome-bsm": 2, "random": 1}


@functools.cache
def compiled(name, source=False):
    options = {"order": "source"} if source and name != "random" else {}
    run = functools.partial(METHODS[name], **options)
    return jax.jit(lambda metric, valid: run(metric, valid=valid))


def metric_of(seed, batch=2, seq=SEQ):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(batch, seq, DIM)), jnp.float32)


def all_real(metric):
    return jnp.ones(metric.shape[:2], bool)


@EACH
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100.0))
def test_laws_of_every_method(name, seed, scale):
    metric = metric_of(seed)
    plan = compiled(name)(metric, all_real(metric))
    # Every token is somewhere, every row has a token, that which it stands for.
    assert (np.asarray(plan.assign) >= 0).all() and np.asarray(plan.valid).all()
    at = np.take_along_axis(np.asarray(plan.assign), np.asarray(plan.keep), 1)
    np.testing.assert_array_equal(
        at, np.broadcast_to(np.arange(plan.num_rows), at.shape)
    )
    # Scale does not matter.
    scaled = compiled(name)(metric * scale, all_real(metric))
    np.testing.assert_array_equal(scaled.assign, plan.assign)
    # Protected tokens are alone, and first.
    first = PROTECTED.get(name, 0)
    np.testing.assert_array_equal(
        plan.assign[:, :first], np.arange(first)[None] + [[0]] * 2
    )
    assert (np.asarray(plan.size)[:, :first] == 1).all()


# A draw depends on the shape, and `remove` does not count what is padded.
@pytest.mark.parametrize("name", ["tome", "pitome", "pitome-bsm", "pitome-text"])
def test_padding_changes_nothing(name):
    metric = metric_of(1)
    rng = np.random.default_rng(2)
    pads = jnp.asarray(rng.normal(size=(2, 8, DIM)), jnp.float32)
    wide = jnp.concatenate([metric, pads], axis=1)
    real = jnp.arange(SEQ + 8)[None] < jnp.asarray([[SEQ], [SEQ]])
    plan = compiled(name, source=True)(metric, all_real(metric))
    padded = compiled(name, source=True)(wide, real)
    np.testing.assert_array_equal(padded.assign[:, :SEQ], plan.assign)
    assert (np.asarray(padded.assign)[:, SEQ:] == -1).all()
    rows = plan.num_rows
    assert np.asarray(padded.valid).sum(1).tolist() == [rows, rows]
    x = metric_of(3, seq=SEQ + 8)
    merged = padded.merge(x)[0][:, :rows]
    np.testing.assert_allclose(merged, plan.merge(x[:, :SEQ])[0], atol=1e-6)


def test_rows_that_are_mostly_padding_never_mix_with_it():
    metric = metric_of(4)
    real = jnp.arange(SEQ)[None] < jnp.asarray([[3], [0]])
    for run in (
        lambda: tome(metric, remove=8, valid=real),
        lambda: pitome(metric, keep=0.5, margin=0.3, valid=real),
        lambda: pitome(metric, keep=0.5, margin=0.3, valid=real, rule="bsm"),
        lambda: pitome(metric, keep=0.5, margin=0.3, valid=real, rule="text"),
    ):
        plan = jax.jit(run)()
        assert (np.asarray(plan.assign)[0, :3] >= 0).all()
        assert (np.asarray(plan.assign)[0, 3:] == -1).all()
        assert not np.asarray(plan.valid)[1].any()
        merged, size = plan.merge(jnp.ones((2, SEQ, 1)))
        assert size[0].sum() == 3 and float(merged[1].sum()) == 0


def test_the_partition_of_pitome_does_not_depend_on_the_order():
    metric = metric_of(5, batch=1)
    shuffle = np.random.default_rng(6).permutation(SEQ)
    same = {}
    for name, run in (
        ("pitome", lambda m: pitome(m, keep=0.6, margin=0.4)),
        ("tome", lambda m: tome(m, remove=8)),
    ):
        groups = lambda plan: {
            frozenset(np.flatnonzero(row)) for row in np.asarray(plan.source()[0])
        }
        run = jax.jit(run)
        moved = groups(run(metric[:, shuffle]))
        back = {frozenset(int(shuffle[i]) for i in group) for group in moved}
        same[name] = back == groups(run(metric))
    assert same == {"pitome": True, "tome": False}


@pytest.mark.parametrize("rule", ["all", "bsm", "text"])
def test_isolated_tokens_are_left_alone(rule):
    rng = np.random.default_rng(7)
    cluster = np.array([1.0, 0, 0, 0, 0, 0]) + 0.02 * rng.normal(size=(12, DIM))
    alone = np.eye(DIM)[1:]
    metric = jnp.asarray(np.concatenate([alone, cluster])[None], jnp.float32)
    plan = jax.jit(lambda m: pitome(m, remove=5, margin=0.7, rule=rule))(metric)
    of_alone = np.asarray(plan.assign)[0, : len(alone)]
    assert (np.asarray(plan.size)[0, of_alone] == 1).all()


def test_a_low_margin_orders_by_the_mean_similarity():
    metric = metric_of(8, batch=1)
    unit = np.asarray(metric[0]) / np.linalg.norm(metric[0], axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit.T).mean(1), kind="stable")
    plan = jax.jit(lambda m: pitome(m, remove=4, margin=-1.0))(metric)
    merged = np.flatnonzero(np.asarray(plan.size)[0][np.asarray(plan.assign)[0]] > 1)
    assert set(merged) <= set(order[:8].tolist())


def test_ties_go_to_the_lower_index():
    same = jnp.ones((1, 8, 3))
    official = jax.jit(lambda m: tome(m, remove=2))(same)
    assert official.assign.tolist() == [[2, 2, 2, 3, 0, 4, 1, 5]]
    # Ranks are indices: 0 and 2 join 1, the first odd one.
    run = lambda m: pitome(m, remove=2, margin=0.5, order="source")
    plan = jax.jit(run)(same)
    assert plan.assign.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5]]


def test_copies_merge_into_themselves():
    half = metric_of(9, batch=1, seq=6)
    both = jnp.repeat(half, 2, axis=1)
    merged, size = jax.jit(lambda x: tome(x, remove=6).merge(x))(both)
    np.testing.assert_allclose(merged, half, atol=1e-6)
    assert size.tolist() == [[2.0] * 6]


def test_nothing_leaves_where_nothing_shall():
    """And nothing moves, whatever the order of the rows."""
    metric = metric_of(10)
    for run in (
        lambda m: tome(m, remove=0, protect=2),
        lambda m: random_merge(m, KEY, remove=0),
        lambda m: pitome(m, keep=1.0, protect=1),
        lambda m: pitome(m, keep=0.99, rule="bsm"),
        lambda m: grouped(m, every=1),
    ):
        plan = jax.jit(run)(metric)
        assert plan.num_rows == SEQ and (np.asarray(plan.size) == 1).all()
        np.testing.assert_array_equal(plan.assign, np.arange(SEQ)[None] + [[0], [0]])


def test_gradients_go_through_the_merge_only():
    metric = metric_of(11)

    make = lambda x: pitome(x, keep=0.7, margin=0.4)
    loss = lambda x, plan: jnp.sum(plan.merge(x)[0] ** 2)
    grad = jax.jit(jax.grad(lambda x: loss(x, make(x))))(metric)
    fixed = jax.jit(jax.grad(loss))(metric, jax.jit(make)(metric))
    np.testing.assert_allclose(grad, fixed, atol=1e-6)


def test_narrow_metrics_are_compared_wide():
    metric = metric_of(12).astype(jnp.bfloat16)
    run = jax.jit(lambda m: tome(m, remove=6))
    narrow, wide = run(metric), run(metric.astype(jnp.float32))
    np.testing.assert_array_equal(narrow.assign, wide.assign)


def test_random_tokens_may_be_dropped():
    plan = random_merge(metric_of(13), KEY, keep=0.6, protect=1, drop=True)
    assert plan.num_rows == SEQ - 7  # 7.6 of 19, rounded down
    assert (np.asarray(plan.assign) == -1).sum(1).tolist() == [7, 7]
    assert (np.asarray(plan.keep)[:, 0] == 0).all()


def test_counts_and_margins():
    # The formula of the code in float64: others round another way.
    assert token_counts(100, keep=0.55, num_layers=1) == (100, 56)
    assert token_counts(20, keep=0.9, num_layers=1) == (20, 18)
    assert token_counts(197, remove=(16, 16), protect=1) == (197, 181, 165)
    assert token_counts(9, remove=(99,), protect=1) == (9, 5)
    assert removal_schedule(1, (8, -1.0)) == (16,)
    assert removal_schedule(4, [3, 2]) == (3, 2, 0, 0)
    # As the code tells them apart: a tuple has an inflection, a list a layer's number.
    assert removal_schedule(3, (16, -1)) == (32, 16, 0)
    assert removal_schedule(3, (16, 0)) == (16, 16, 16)
    assert removal_schedule(3, [16, 1]) == (16, 1, 0)
    assert linear_margins(3, 0.9, 0.3) == (0.9, 0.8, 0.7)
    assert spectral_distance(np.eye(4), np.zeros(4, int)).distance > 0


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: tome(m[:, :0], remove=0), "metric: got 'shape \\(2, 0, 6\\)'"),
        (lambda m: tome(m, keep=1.1), "keep: got 1.1"),
        (lambda m: tome(m, keep=float("nan")), "keep: got nan"),
        (lambda m: tome(m, remove=-1), "remove: got -1"),
        (lambda m: tome(m), "exactly one"),
        (lambda m: tome(m, keep=0.5, remove=3), "exactly one"),
        (lambda m: tome(m, remove=1, protect=21), "protect: got 21"),
        (lambda m: tome(m, remove=1, order="random"), "order"),
        (lambda m: tome(m, remove=1, valid=jnp.ones((2, 3), bool)), "valid"),
        (lambda m: pitome(m, keep=0.49), "keep: got 0.49"),
        (lambda m: pitome(m, keep=float("nan")), "keep: got nan"),
        (lambda m: pitome(m, remove=11), "remove: got 11"),
        (lambda m: pitome(m, keep=0.9, rule="none"), "rule"),
        (lambda m: random_merge(m, KEY, keep=2.0), "keep: got 2.0"),
        (lambda m: grouped(m, every=0), "every: got 0"),
        (lambda m: grouped(m, every=21), "every: got 21"),
        (lambda m: removal_schedule(0, 3), "num_layers: got 0"),
        (lambda m: removal_schedule(2, (8, 1.5)), "inflection"),
        (lambda m: removal_schedule(2, [1, 2, 3]), "at most 2"),
        (lambda m: removal_schedule(2, -1), "remove: got -1"),
        (lambda m: token_counts(9, keep=0.5), "num_layers: got None"),
        (lambda m: token_counts(9, keep=[2.0]), "keep: got 2.0"),
        (lambda m: linear_margins(0, 0.9), "num_layers: got 0"),
        (lambda m: spectral_distance(np.eye(3), np.array([0, 2, 2])), "partition"),
        (lambda m: spectral_distance(np.eye(3), np.arange(2)), "partition"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises((ArgumentError, TypeError), match=said):
        call(metric_of(0))


def test_matches_in_blocks_are_those_of_all_at_once(monkeypatch):
    # Few directions: many cosines are equal, however they are rounded, and the lower
    # index wins.
    metric = jax.nn.one_hot(jax.random.randint(KEY, (2, 41), 0, 5), 5)
    valid = jnp.arange(41)[None] < jnp.array([[41], [30]])
    run = lambda metric: tome(metric, keep=0.7, protect=1, valid=valid)
    whole = jax.jit(run)(metric)
    monkeypatch.setattr(matching, "_BLOCK", 4)
    parts = jax.jit(lambda metric: run(metric))(metric)
    np.testing.assert_array_equal(parts.assign, whole.assign)
    np.testing.assert_array_equal(parts.keep, whole.keep)
