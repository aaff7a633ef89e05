"""Schedules: counts of every layer, what methods are told, prefixes, bad input."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.compress import (
    grouped,
    pitome,
    random_merge,
    schedule,
    tome,
    uniform_merge,
)
from jtok.errors import ArgumentError
from jtok.models import Compressor, LayerView
from jtok.ops.plan import Plan, keep_plan
from jtok.testing import tiny_model

SEQ, LAYERS = 21, 3


def run(made, view):
    """The plan of a layer, as one program."""
    return jax.jit(made)(view)


def view_of(layer=0, seq=SEQ, prefix=1, real=None, num_layers=LAYERS):
    rng = np.random.default_rng(layer)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(2, seq, *shape)), jnp.float32)
    valid = jnp.arange(seq)[None] < jnp.asarray([[seq], [real or seq]])
    at = jnp.broadcast_to(
        jnp.arange(seq, dtype=jnp.float32)[None, :, None], (2, seq, 1)
    )
    return LayerView(
        draw(8), draw(2, 4), draw(2, 4), valid, jnp.ones((2, seq)), at, layer,
        num_layers, prefix,
    )  # fmt: skip


COUNTS = {
    # floor(n - n * keep) of the 20, 16, 13 tokens behind the prefix, or of 21, 16, 13
    "ratio": (schedule(pitome, keep=0.76), (21, 17, 14, 11)),
    "whole": (schedule(tome, keep=0.76, whole=True), (21, 16, 13, 10)),
    "ratios": (schedule(tome, keep=(0.5, 1.0, 0.75)), (21, 11, 11, 9)),
    "constant": (schedule(tome, remove=4), (21, 17, 13, 9)),
    "clamped": (schedule(tome, remove=9), (21, 12, 7, 4)),
    "ramp": (schedule(tome, remove=(4, -1.0)), (21, 13, 9, 9)),
    "ramp of integers": (schedule(tome, remove=(4, -1)), (21, 13, 9, 9)),
    "a list is no ramp": (schedule(tome, remove=[4, 1]), (21, 17, 16, 16)),
    "list": (schedule(random_merge, remove=[5]), (21, 16, 16, 16)),
    "counts": (schedule(uniform_merge, counts=(21, 10, 3)), (21, 21, 10, 3)),
    "some layers": (schedule(tome, remove=4, layers=(0, -1)), (21, 17, 17, 13)),
    "groups": (schedule(grouped, every=2), (21, 11, 6, 3)),
    "two methods": (
        schedule((tome, None, pitome), keep=0.5, margin=0.4),
        (21, 11, 11, 6),
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_layer(name):
    made, want = COUNTS[name]
    assert made.token_counts(SEQ, LAYERS, prefix=1) == want
    assert hash(made) == hash(made) and isinstance(made, Compressor)
    seq = SEQ
    for layer in range(LAYERS):
        plan = jax.eval_shape(made, view_of(layer, seq))
        seq = seq if plan is None else plan.num_rows
        assert seq == want[layer + 1]
        assert (plan is None) == (want[layer] == want[layer + 1])
        assert plan is None or plan.position.shape == (2, seq, 1)


def test_what_methods_are_told():
    view = view_of(layer=1)
    margins, rules = (0.9, 0.1, 0.5), ("all", "bsm", "text")
    made = schedule(pitome, keep=0.7, margin=margins, rule=rules, order="source")
    told = functools.partial(pitome, keep=0.7, margin=0.1, rule="bsm", protect=1)
    want = jax.jit(functools.partial(told, order="source"))(view.key.mean(2))
    np.testing.assert_array_equal(run(made, view).assign, want.assign)
    only = schedule(pitome, keep=0.7, margin=(0.1,), rule="bsm", layers=(1,))
    want = jax.jit(told)(view.key.mean(2))
    np.testing.assert_array_equal(run(only, view).assign, want.assign)
    assert only(view_of(layer=0)) is None


@pytest.mark.parametrize(
    "metric, read",
    [
        ("keys", lambda view: view.key.mean(2)),
        ("keys_sum", lambda view: view.key.sum(2)),
        ("x", lambda view: view.x),
        (lambda view: view.query[:, :, 1], lambda view: view.query[:, :, 1]),
    ],
    ids=["keys", "keys_sum", "x", "callable"],
)
def test_metrics(metric, read):
    view = view_of()
    found = run(schedule(tome, keep=0.6, metric=metric), view)
    want = jax.jit(functools.partial(tome, keep=0.6, protect=1))(read(view))
    np.testing.assert_array_equal(found.assign, want.assign)


def test_methods_that_know_no_prefix_and_ones_that_draw():
    view = view_of(real=12)
    plan = run(schedule(grouped, every=3), view)
    alone = jax.jit(functools.partial(grouped, every=3))
    inner = alone(view.key.mean(2)[:, 1:], valid=view.valid[:, 1:])
    np.testing.assert_array_equal(plan.keep[:, 0], [0, 0])
    at = jnp.where(inner.assign >= 0, inner.assign + 1, -1)
    np.testing.assert_array_equal(plan.assign[:, 1:], at)
    np.testing.assert_array_equal(plan.position[:, 1], inner.position[:, 0] + 1)
    np.testing.assert_array_equal(plan.valid.sum(1), [7, 4])
    draws = [
        np.asarray(
            run(schedule(random_merge, keep=0.5, seed=seed), view_of(layer)).keep
        )
        for seed, layer in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert (draws[0] == draws[3]).all()
    assert (draws[0] != draws[1]).any() and (draws[0] != draws[2]).any()


class Kept(NamedTuple):
    plan: Plan


def longest(x, *, budget, valid=None):
    """A method that keeps, in the manner of the survey's."""
    length = jnp.where(valid, jnp.sum(jnp.square(x), axis=-1), -1.0)
    top = jax.lax.top_k(length, budget)[1]
    return Kept(keep_plan(jnp.sort(top, axis=1).astype(jnp.int32), x.shape[1]))


def test_methods_that_keep_a_budget():
    view = view_of()
    made = schedule(longest, keep=0.5, metric="x", how="prune")
    assert made.token_counts(SEQ, LAYERS, prefix=1) == (21, 11, 6, 4)
    keep = np.asarray(run(made, view).keep)
    assert (np.asarray(run(made, view).size) == 1).all()
    length = np.square(view.x[:, 1:]).sum(-1)
    for row in range(2):
        want = np.sort(np.argsort(-length[row], kind="stable")[:10]) + 1
        np.testing.assert_array_equal(keep[row], [0, *want])


def test_sizes_start_anew():
    """The mean position of a row is one by size, but where sizes restart."""
    view = view_of().replace(size=jnp.arange(1.0, 43.0).reshape(2, SEQ))
    both = [
        run(schedule(tome, keep=0.5, restart=restart), view)
        for restart in (False, True)
    ]
    plain = jax.jit(functools.partial(tome, keep=0.5, protect=1))(view.key.mean(2))
    np.testing.assert_allclose(both[1].position, plain.position)
    assert np.abs(both[0].position - plain.position).max() > 0.1


def test_uniform_merging():
    x = view_of(real=12).x
    valid = view_of(real=12).valid
    merge = functools.partial(uniform_merge, keep=0.4, protect=1)
    plan = jax.jit(merge)(x, valid=valid)
    # 8 of 20 stay, and of 11 that are real 5: floor(6.6) leave.
    assert plan.keep[0].tolist() == [0, 1, 4, 6, 9, 11, 14, 16, 19]
    assert plan.keep[1].tolist() == [0, 1, 4, 6, 8, 10, -1, -1, -1]
    assert plan.size.sum(1).tolist() == [21, 12]
    dropped = jax.jit(functools.partial(merge, drop=True))(x, valid=valid)
    np.testing.assert_array_equal(dropped.keep, plan.keep)
    assert dropped.size.sum(1).tolist() == [9, 6]


def test_a_model_takes_a_schedule():
    model = tiny_model(family="bert")
    ids = jax.random.randint(jax.random.key(0), (2, 12), 5, 90)
    made = schedule(pitome, keep=0.8, margin=0.4)
    run = jax.jit(lambda ids, made: model(ids, compress=made), static_argnums=1)
    out = run(ids, made)
    assert out.hidden.shape[1] == made.token_counts(12, 2, prefix=1)[-1]
    run(ids, schedule(pitome, keep=0.8, margin=0.4))
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: schedule(tome), "keep, remove, counts"),
        (lambda: schedule(tome, keep=0.9, remove=2), "keep, remove, counts"),
        (lambda: schedule(grouped, every=2, keep=0.5), "none for this method"),
        (lambda: schedule(tome, keep=1.5), "keep: got 1.5"),
        (lambda: schedule(tome, keep=float("nan")), "keep: got nan"),
        (lambda: schedule(tome, keep=(0.9, float("nan"))), "keep: got nan"),
        (lambda: schedule(tome, remove=-1), "remove: got -1"),
        (lambda: schedule(tome, remove=(3, 2.0)), "inflection"),
        (lambda: schedule(tome, counts=(9, 0)), "counts"),
        (lambda: schedule(tome, keep=0.9, margin=0.3), "options: got 'margin'"),
        (lambda: schedule(pitome, keep=0.9, margins=0.3), "did you mean margin"),
        (lambda: schedule(tome, keep=0.9, metric="values"), "metric: got 'values'"),
        (lambda: schedule("tome", keep=0.9), "method"),
        (lambda: schedule(tome, keep=0.9, how="median"), "how"),
        (lambda: schedule(tome, keep=0.9, where="start"), "where"),
        (lambda: schedule(tome, keep=(0.9,))(view_of()), "each of 3 layers"),
        (lambda: schedule(tome, keep=0.9, layers=(5,))(view_of()), "layers"),
        (lambda: schedule(tome, keep=0.9, protect=22)(view_of()), "protect: got 22"),
        (lambda: schedule(tome, counts=(22, 9, 9))(view_of()), "counts of 0: got 22"),
        (lambda: schedule(pitome, keep=0.4)(view_of()), "keep: got 0.4"),
        (lambda: schedule(pitome, counts=(3, 3, 3))(view_of()), "remove: got 18"),
        (
            lambda: schedule(tome, keep=0.9, metric=lambda view: view.x[:, 1:])(
                view_of()
            ),
            "metric: got 'shape",
        ),
    ],
)  # fmt: skip
def test_bad_input(make, said):
    with pytest.raises((ArgumentError, TypeError), match=said):
        make()


def test_partial_functions_are_methods():
    made = schedule(functools.partial(pitome, margin=0.2), keep=0.8)
    assert made.token_counts(SEQ, 2, prefix=1) == (21, 17, 14)
