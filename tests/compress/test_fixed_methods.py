"""Methods whose rows follow from places or queries: laws, budgets, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jtok.compress import (
    adaptive_pooling,
    average_pooling,
    bilinear_pooling,
    compress,
    deco,
    drawn_scale,
    frame_pooling,
    frame_stacking,
    internvl,
    matryoshka,
    matryoshka_budgets,
    max_pooling,
    methods,
    mobilevlm,
    perceiver,
    pllava,
    qformer,
    slam_asr,
    unshuffle,
    videollama2,
    windowed_qformer,
)
from jtok.errors import ArgumentError
from jtok.nn import (
    FrameConnector,
    PerceiverConfig,
    PerceiverResampler,
    PoolingConnector,
    QFormerConfig,
    SpaceTimeConnector,
    UnshuffleConnector,
    init_qformer,
)
from jtok.ops import pixel_unshuffle
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close

KEY = jax.random.key(0)
GRID, SEQ, DIM = (2, 4, 6), 48, 5
PERCEIVER = PerceiverConfig(
    width=DIM, layers=1, heads=1, head_dim=4, latents=3, mlp_ratio=1
)
QFORMER = QFormerConfig(
    queries=2, width=4, layers=1, heads=1, mlp_width=4, image_width=DIM
)
# Methods without parameters: the function, what it is told, rows that come out.
FREE = {
    "unshuffle": (unshuffle, {"grid": GRID}, 12),
    "unshuffle-v1": (unshuffle, {"grid": GRID, "transposed": True}, 12),
    "average": (average_pooling, {"grid": GRID, "budget": 12}, 12),
    "average-3d": (average_pooling, {"grid": GRID, "window": (2, 3, 4)}, 1),
    "average-line": (average_pooling, {"budget": 9}, 9),
    "max": (max_pooling, {"grid": GRID, "budget": 6}, 6),
    "adaptive": (adaptive_pooling, {"grid": GRID, "budget": 12}, 12),
    "adaptive-odd": (adaptive_pooling, {"grid": GRID, "cells": (1, 3, 4)}, 12),
    "adaptive-line": (adaptive_pooling, {}, 24),
    "bilinear": (bilinear_pooling, {"grid": GRID}, 12),
    "matryoshka": (matryoshka, {"grid": GRID, "budget": 2}, 2),
    "deco": (deco, {"grid": GRID, "budget": 12}, 12),
    "pllava": (pllava, {"grid": GRID, "cells": (1, 2, 2)}, 4),
    "frame-pooling": (frame_pooling, {}, 24),
    "frame-stacking": (frame_stacking, {}, 9),
}
# With parameters: the function, options, rows, and what makes the parameters.
TRAINED = {
    "internvl": (
        internvl, {"grid": GRID}, 12,
        lambda x: UnshuffleConnector(3).init(KEY, x.reshape(-1, 4, 6, DIM)),
    ),
    "mobilevlm": (
        mobilevlm, {"grid": GRID}, 12,
        lambda x: PoolingConnector(3).init(KEY, x.reshape(-1, 4, 6, DIM)),
    ),
    "videollama2": (
        videollama2, {"grid": GRID}, 6,
        lambda x: SpaceTimeConnector(3, depth=1).init(KEY, x.reshape(-1, *GRID, DIM)),
    ),
    "slam-asr": (slam_asr, {}, 9, lambda x: FrameConnector(3, 4).init(KEY, x)),
    "perceiver": (
        perceiver, {"config": PERCEIVER, "grid": GRID}, 3,
        lambda x: PerceiverResampler(PERCEIVER).init(KEY, x[:, None, None]),
    ),
    "qformer": (
        qformer, {"config": QFORMER}, 2,
        lambda x: {"params": init_qformer(KEY, QFORMER)},
    ),
    "windowed-qformer": (
        windowed_qformer, {"config": QFORMER, "window": 10}, 10,
        lambda x: {"params": init_qformer(KEY, QFORMER)},
    ),
}  # fmt: skip
ALL = [*FREE, *TRAINED]
# Tokens of a row behind the last whole window.
LOST = {"frame-stacking": 3, "slam-asr": 3, "average-line": 3, "average-3d": 24}
EACH = pytest.mark.parametrize("name", ALL)


def noise(seed, batch=2, seq=SEQ):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(batch, seq, DIM)), jnp.float32)


@functools.cache
def bound(name):
    """The method with its options and parameters, a function of `x` and more."""
    if name in FREE:
        run, options, _ = FREE[name]
        return functools.partial(run, **options)
    run, options, _, make = TRAINED[name]
    params = jax.jit(make)(noise(0))["params"]
    return functools.partial(run, params=params, **options)


@functools.cache
def compiled(name):
    run = bound(name)
    return jax.jit(lambda x, valid: run(x, valid=valid))


def rows_of(name):
    return (FREE.get(name) or TRAINED[name])[2]


def real_of(x):
    return jnp.ones(x.shape[:2], bool)


@EACH
@settings(max_examples=3)
@given(seed=st.integers(0, 10**6))
def test_laws_of_every_method(name, seed):
    rng, x, run = np.random.default_rng(seed), noise(seed), compiled(name)
    valid = jnp.asarray(np.sort(rng.random((2, SEQ)) < 0.8)[:, ::-1])
    got, plan = run(x, valid), run(x, valid).plan
    rows = rows_of(name)
    assert got.tokens.shape[:2] == (2, rows) == plan.keep.shape
    # Rows stand for no token; sizes count the tokens that are somewhere.
    assert (np.asarray(plan.keep) == -1).all()
    assign = np.asarray(plan.assign)
    assert (assign[~np.asarray(valid)] == -1).all() and assign.max() < rows
    for row in range(2):
        there = assign[row][assign[row] >= 0]
        np.testing.assert_array_equal(
            plan.size[row], np.bincount(there, minlength=rows)
        )
    # Empty rows are zeros, padding changes nothing, rows of the batch are strangers.
    assert (np.asarray(got.tokens)[~np.asarray(plan.valid)] == 0).all()
    other = run(jnp.where(valid[..., None], x, 7.0), valid)
    np.testing.assert_array_equal(other.tokens, got.tokens)
    swapped = run(x[::-1], valid[::-1])
    np.testing.assert_array_equal(swapped.plan.assign, plan.assign[::-1])
    assert_close(swapped.tokens, got.tokens[::-1], atol=1e-5)


@EACH
def test_a_whole_row_has_every_token_somewhere(name):
    x = noise(1)
    got = compiled(name)(x, real_of(x))
    assert got.valid.all()
    lost = {
        "frame-stacking": 3,
        "slam-asr": 3,
        "average-line": 3,
        "average-3d": 24,
    }.get(name, 0)
    assert (np.asarray(got.assign) == -1).sum(1).tolist() == [lost, lost]
    assert got.size.sum(1).tolist() == [SEQ - lost] * 2


@EACH
def test_narrow_tokens_come_out_narrow(name):
    x = noise(2)
    got = compiled(name)(x.astype(jnp.bfloat16), real_of(x))
    want = compiled(name)(x, real_of(x))
    assert got.tokens.dtype == jnp.bfloat16
    gap = np.abs(got.tokens.astype(jnp.float32) - want.tokens)
    assert gap.mean() < 0.05 * np.abs(want.tokens).mean() + 0.01


MERGES = {"average": "mean", "average-3d": "mean", "max": "max", "matryoshka": "mean"}


@pytest.mark.parametrize("name", [*MERGES, "frame-pooling", "pllava", "average-line"])
def test_the_plan_makes_the_tokens(name):
    x = noise(3)
    valid = jnp.arange(SEQ)[None] < jnp.asarray([[SEQ], [29]])
    got = compiled(name)(x, valid)
    made, size = got.plan.merge(x, how=MERGES.get(name, "mean"))
    assert_close(got.tokens, made, atol=1e-6)
    np.testing.assert_array_equal(size, got.size)
    if name == "frame-pooling":
        # floor((29 - 2) / 2) + 1 of the shorter row.
        assert got.valid.sum(1).tolist() == [24, 14]
        assert got.position[0, :2, 0].tolist() == [0.5, 2.5]


def test_unshuffled_rows_name_their_squares():
    x = noise(4)
    plain, turned = (compiled(n)(x, real_of(x)) for n in ("unshuffle", "unshuffle-v1"))
    frames = x.reshape(4, 4, 6, DIM)
    for got, swap in ((plain, False), (turned, True)):
        wide = pixel_unshuffle(frames, 2, transposed=swap).reshape(2, 12, 4 * DIM)
        np.testing.assert_array_equal(got.tokens, wide)
        # The mean over the four parts is that of the members which the plan names.
        parts = got.tokens.reshape(2, 12, 4, DIM).mean(2)
        assert_close(got.plan.merge(x, how="mean")[0], parts, atol=1e-6)
    assert np.asarray(plain.assign != turned.assign).any()


@pytest.mark.parametrize("name", ["perceiver", "qformer", "windowed-qformer"])
def test_queries_stand_where_they_look(name):
    x = noise(5)
    got = compiled(name)(x, real_of(x))
    at = np.asarray(got.position)[..., 0]
    assert (at >= 0).all() and (at < SEQ).all()
    assert got.score.shape == (2, SEQ) and np.isfinite(got.score).all()
    if name == "windowed-qformer":
        window = np.arange(SEQ) // 10
        np.testing.assert_array_equal(
            np.asarray(got.assign) // 2, window[None] + [[0]] * 2
        )
        assert (at // 10 == np.repeat(np.arange(5), 2)[None]).all()
        short = jnp.arange(SEQ)[None] < jnp.asarray([[SEQ], [13]])
        few = compiled(name)(x, short)
        assert few.valid.sum(1).tolist() == [10, 4]
        official = bound(name).func
        options = {**bound(name).keywords, "compat": "official"}
        cut = jax.jit(lambda x: official(x, **options))(x)
        assert_close(cut.tokens, got.tokens[:, :8], atol=1e-6)
        assert (np.asarray(cut.assign)[:, 40:] == -1).all()
        assert np.isneginf(np.asarray(cut.score)[:, 40:]).all()


def test_a_query_former_may_be_projected():
    params = {
        **bound("qformer").keywords["params"],
        "projection": {"kernel": jnp.ones((4, 3)), "bias": jnp.arange(3.0)},
    }
    x = noise(6)
    plain = compiled("qformer")(x, real_of(x)).tokens
    got = jax.jit(lambda x: qformer(x, params=params, config=QFORMER))(x).tokens
    want = plain.sum(-1, keepdims=True) + jnp.arange(3.0)[None, None]
    assert_close(got, want, atol=1e-5)


def test_a_scale_is_drawn_in_one_program():
    grid = (2, 4, 4)
    x = noise(7, seq=32)
    assert matryoshka_budgets(grid) == (32, 8, 2)
    assert matryoshka_budgets((1, 24, 24)) == (576, 144, 36, 9, 1)
    run = jax.jit(lambda x, key: drawn_scale(x, key, grid=grid))
    seen = {}
    for key in jax.random.split(KEY, 12):
        out, scale = run(x, key)
        seen[int(scale)] = out
    assert run._cache_size() == 1 and sorted(seen) == [0, 1, 2]
    for scale, out in seen.items():
        budget = matryoshka_budgets(grid)[scale]
        at = functools.partial(matryoshka, budget=budget, grid=grid)
        want = jax.jit(at)(x)
        assert out.valid.sum(1).tolist() == [budget] * 2
        assert_close(out.tokens[:, :budget], want.tokens, atol=1e-6)
        assert float(jnp.abs(out.tokens[:, budget:]).sum()) == 0
        np.testing.assert_array_equal(out.assign, want.assign)


def test_every_method_is_on_the_menu_and_runs_from_it():
    x = noise(8)
    menu = methods()
    for name in ("average", "adaptive", "matryoshka", "frame-pooling", "qformer"):
        made = bound(name)
        own = dict(made.keywords)
        row = next(row for row in menu.values() if row.run is made.func)
        assert row.fixed and row.family in ("transformation", "query")
        budget = own.pop("budget", None)
        named = jax.jit(
            lambda x, own=own, name=row.name, budget=budget: compress(
                x, name, budget=budget, **own
            )
        )(x)
        want = compiled(name)(x, real_of(x))
        np.testing.assert_array_equal(named.assign, want.assign)
        assert_close(named.tokens, want.tokens, atol=1e-6)
    runs = {row.run for row in menu.values()}
    assert {FREE[name][0] for name in FREE} <= runs
    assert {TRAINED[name][0] for name in TRAINED} <= runs
    with pytest.raises(ArgumentError, match="params"):
        compress(x, "qformer", budget=2, config=QFORMER)
    with pytest.raises(ArgumentError, match="grid"):
        compress(x, "unshuffle", budget=12)


def test_which_cells_a_budget_gives():
    def cells(seq, run=average_pooling, **more):
        return jax.jit(functools.partial(run, **more))(jnp.ones((1, seq, 1)))

    # 12 x 12 tokens: 1/2 is a window of one row and two columns, 1/9 three by three.
    for budget, first in ((72, [0, 0, 1]), (36, [0, 0, 1]), (16, [0, 0, 0])):
        got = cells(144, budget=budget, grid=(1, 12, 12))
        assert got.tokens.shape[1] == budget
        assert got.assign[0, :3].tolist() == first
    got = cells(144, adaptive_pooling, budget=72, grid=(1, 12, 12))
    # Eight rows of nine columns.
    assert int(got.assign[0, 11]) == 8
    for run in (deco, pllava):
        made = jax.eval_shape(
            functools.partial(run, grid=(2, 24, 24)), jnp.ones((1, 2 * 24 * 24, 1))
        )
        assert made.tokens.shape[1] == 288
    # Frames stay before rows and columns go.
    got = cells(64, adaptive_pooling, budget=16, grid=(4, 4, 4))
    assert got.assign[0, 16:18].tolist() == [4, 4]


def test_rows_of_the_batch_are_shared_by_devices():
    x = noise(9, batch=8)
    rows = NamedSharding(mesh_from("data=8"), PartitionSpec("data"))
    placed = jax.device_put(x, rows)
    for name in ("adaptive-odd", "unshuffle", "windowed-qformer"):
        got = compiled(name)(placed, jax.device_put(real_of(x), rows))
        want = compiled(name)(x, real_of(x))
        assert_close(got.tokens, want.tokens, atol=1e-6)
        np.testing.assert_array_equal(got.assign, want.assign)


X = jnp.ones((1, 36, DIM))
AT = {"grid": (1, 6, 6)}


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda: unshuffle(X, budget=5, **AT),
            "budget: got 5, expected a number of sq",
        ),
        (lambda: unshuffle(X, factor=4, **AT), "factor: got 4, expected a common div"),
        (
            lambda: unshuffle(X, budget=4, factor=2, **AT),
            "budget: got 4, expected None",
        ),
        (lambda: unshuffle(X, grid=(1, 6, 5)), "grid: got"),
        (
            lambda: average_pooling(X, budget=37, **AT),
            "budget: got 37, expected 1 to",
        ),
        (lambda: average_pooling(X, budget=0, **AT), "budget: got 0, expected 1 to 36"),
        (lambda: average_pooling(X, budget=17, **AT), "budget: got 17, expected a num"),
        (lambda: average_pooling(X, window=(1, 7, 1), **AT), "window: got"),
        (lambda: adaptive_pooling(X, budget=7, **AT), "budget: got 7, expected a num"),
        (lambda: adaptive_pooling(X, cells=(2, 6, 6), **AT), "cells: got"),
        (lambda: bilinear_pooling(X, budget=4, cells=(1, 3, 3), **AT), "budget: got 4"),
        (lambda: matryoshka(X, budget=4, **AT), "budget: got 4, expected one of the"),
        (lambda: pllava(X, grid=(2, 6, 6)), "grid: got"),
        (lambda: frame_pooling(X, budget=13), "budget: got 13, expected None or 18"),
        (lambda: frame_pooling(X, window=0), "window: got 0"),
        (lambda: frame_stacking(X, count=37), "count: got 37, expected 1 to 36"),
        (lambda: bound("videollama2")(X, grid=(1, 6, 6)), "grid: got"),
        (lambda: bound("mobilevlm")(X, budget=12, **AT), "budget: got 12"),
        (lambda: bound("perceiver")(X, budget=4, **AT), "budget: got 4, expected None"),
        (lambda: bound("windowed-qformer")(X, window=40), "window: got 40"),
        (lambda: bound("windowed-qformer")(X, compat="v1"), "compat: got 'v1'"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ArgumentError, match=said):
        jax.eval_shape(call)
