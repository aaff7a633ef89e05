"""Schedules inside a language model, importance, and merging before one: their laws."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok import compress as room
from jtok import nn
from jtok.compress import (
    AimScore,
    LayerSchedule,
    aim,
    aim_importance,
    compress,
    fastv_schedule,
    frame_removals,
    grid_positions,
    kept_schedule,
    merge_frames,
    merge_to_grid,
    pyramid_schedule,
    ramp_schedule,
    stage_schedule,
    vtw_schedule,
)
from jtok.errors import ArgumentError
from jtok.ops.byproducts import attention_power

# Schedules ------------------------


@given(
    st.integers(1, 40), st.integers(0, 40), st.integers(1, 12), st.integers(0, 700),
    st.integers(0, 90),
)  # fmt: skip
def test_ramp_is_exact_and_falls(layers, first, width, visual, text):
    last = first + width
    kept = kept_schedule(layers, first, last, visual, text)
    for layer, count in enumerate(kept):
        if layer < first:
            assert count == visual + text
        elif layer >= last - 1:
            assert count == text
        else:
            share = Fraction(last - layer - 1, width)
            assert count == math.floor(visual * share) + text
        rate = max(0.0, 1 - (layer - first + 1) / width) if layer >= first else 1.0
        if width in (1, 2, 4, 8):  # exact in floating point, too
            assert count == math.floor(visual * rate + text)
    assert list(kept) == sorted(kept, reverse=True)
    schedule = ramp_schedule(layers, first, last)
    counts = schedule.token_counts(visual, text)
    assert counts == (visual + text, *kept)
    drops = schedule.drops(visual)
    fallen = {i for i in range(layers) if counts[i + 1] < counts[i]}
    assert fallen <= set(drops)


def test_named_schedules():
    assert fastv_schedule(5, 2, 0.5).token_counts(25, 10) == (35, 35, 22, 22, 22, 22)
    assert fastv_schedule(5, 2, 0.5).kept(27)[1] == 14  # 13.5, half to even
    assert fastv_schedule(5, 1, 0.5).kept(25)[0] == 12  # 12.5, half to even
    assert vtw_schedule(4, 2).token_counts(9, 3) == (12, 12, 3, 3, 3)
    assert pyramid_schedule(8, stages=3).kept(64) == (64, 32, 32, 32, 16, 16, 16, 16)
    assert stage_schedule(4, {}).kept(7) == (7, 7, 7, 7)
    table = ramp_schedule(6, 2, 5).table(9)
    assert table[:, 9].tolist() == [9, 9, 6, 3, 0, 0] and table.shape == (6, 10)


def test_flops_of_the_paper():
    """Section 4: the counts of its tables, which charge a layer for what leaves it."""
    sizes = {"vocab_size": 8, "head_dim": 128, "max_positions": 8}
    qwen = nn.DecoderConfig(
        width=3584, num_layers=28, num_heads=28, num_kv_heads=4, mlp_width=18944,
        **sizes,
    )  # fmt: skip
    vicuna = nn.DecoderConfig(
        width=4096, num_layers=32, num_heads=32, num_kv_heads=32, mlp_width=11008,
        **sizes,
    )  # fmt: skip
    never, ramp = (28, 29), (14, 22)
    for config, visual, text, (first, last), tera in (
        (qwen, 6272, 100, never, 99.46),
        (qwen, 1568, 100, ramp, 14.75),
        (vicuna, 576, 40, (32, 33), 8.18),
        (vicuna, 252, 40, (13, 21), 2.22),
        (vicuna, 72, 40, (13, 21), 1.00),
    ):
        schedule = ramp_schedule(config.num_layers, first, last)
        counts = schedule.token_counts(visual, text)
        cost = room.flops(config, counts, tokens="leaving")
        assert cost.flops / 1e12 == pytest.approx(tera, abs=0.006)
        assert room.flops(config, counts).flops >= cost.flops


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ramp_schedule(0, 0, 1), "num_layers"),
        (lambda: ramp_schedule(4, -1, 1), "first"),
        (lambda: ramp_schedule(4, 2, 2), "last"),
        (lambda: kept_schedule(4, 1, 2, -1, 0), "prunable"),
        (lambda: kept_schedule(4, 1, 2, 3, -1), "protected"),
        (lambda: ramp_schedule(4, 1, 2).token_counts(3, -1), "protected"),
        (lambda: LayerSchedule((0.5, 0.6)), "never rise"),
        (lambda: LayerSchedule((1.0, float("nan"))), "shares of 0 to 1"),
        (lambda: LayerSchedule((1.5,)), "shares of 0 to 1"),
        (lambda: LayerSchedule((1.0,), "up"), "rounding"),
        (lambda: LayerSchedule(()), "rates"),
        (lambda: fastv_schedule(4, 2, 1.5), "drop"),
        (lambda: vtw_schedule(4, 4), "stages"),
        (lambda: stage_schedule(4, {0: 0.5}), "stages"),
        (lambda: pyramid_schedule(4, stages=5), "stages"),
        (lambda: pyramid_schedule(4, keep=-0.1), "keep"),
        (lambda: AimScore(temperature=0.0), "temperature"),
        (lambda: AimScore(damping=2.0), "damping"),
        (lambda: AimScore(iterations=-1), "iterations"),
        (lambda: aim_importance(*_flat(3), scale=1.0, temperature=-1.0), "temperature"),
        (lambda: aim_importance(*_flat(3), scale=1.0, damping=1.5), "damping"),
        (lambda: merge_frames(jnp.ones((1, 4, 2)), (-1,)), "removed"),
        (lambda: frame_removals(9), "halvings, keep"),
        (lambda: frame_removals(9, keep=0.0), "keep"),
        (lambda: frame_removals(9, halvings=-1), "halvings"),
        (lambda: merge_to_grid(jnp.ones((1, 6, 2)), (2, 2)), "grid"),
        (lambda: grid_positions(0, 1, 1), "frames"),
        (lambda: aim(jnp.ones((1, 8, 2)), budget=3, frames=2), "budget"),
        (lambda: aim(jnp.ones((1, 8, 2)), budget=3, frames=3), "frames"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


# Importance ------------------------


def _flat(seq):
    """Queries and keys whose attention is even."""
    return jnp.zeros((1, seq, 2, 4)), jnp.zeros((1, seq, 1, 4))


def test_even_attention_favours_early_tokens():
    seq = 12
    score = aim_importance(*_flat(seq), scale=1.0, iterations=1)[0]
    share = [sum(1 / (i + 1) for i in range(j, seq)) / seq for j in range(seq)]
    np.testing.assert_allclose(score, share, rtol=1e-5)
    more = aim_importance(*_flat(seq), scale=1.0)[0]
    assert bool(jnp.all(jnp.diff(more) < 0))
    none = aim_importance(*_flat(seq), scale=1.0, iterations=0)
    np.testing.assert_allclose(none, 1 / seq, rtol=1e-6)


def test_mass_is_kept_and_padding_gets_none():
    key = jax.random.split(jax.random.key(0))
    query = 3 * jax.random.normal(key[0], (2, 9, 4, 8))
    keys = 3 * jax.random.normal(key[1], (2, 9, 2, 8))
    valid = jnp.arange(9)[None] < jnp.array([[9], [6]])
    options = {"scale": 0.35, "temperature": 0.1, "causal": True}
    for iterations, damping in ((1, 0.0), (5, 0.0), (5, 0.3)):
        flow = attention_power(
            query, keys, iterations=iterations, damping=damping, valid=valid, **options
        )
        np.testing.assert_allclose(jnp.sum(flow, -1), 1.0, rtol=1e-5)
    score = aim_importance(query, keys, scale=0.35, valid=valid)
    assert score[1, 6:].tolist() == [0.0] * 3
    alone = aim_importance(query[1:, :6], keys[1:, :6], scale=0.35)
    np.testing.assert_allclose(score[1, :6], alone[0], rtol=1e-5, atol=1e-7)
    nothing = aim_importance(query, keys, scale=0.35, valid=jnp.zeros((2, 9), bool))
    assert not bool(jnp.any(nothing))


# Merging ------------------------


_merge = jax.jit(
    lambda x, metric, removed: merge_frames(x, removed, metric=metric),
    static_argnums=2,
)


@settings(max_examples=8)
@given(st.integers(0, 99), st.sampled_from([(3,), (4, 2)]), st.floats(0.1, 50))
def test_frames_are_independent_and_scale_free(seed, removed, scale):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(3, 8, 5)), jnp.float32)
    merge = lambda x, metric: _merge(x, metric, removed)
    found = merge(x, x)
    order = jnp.array([2, 0, 1])
    np.testing.assert_array_equal(merge(x[order], x[order]).tokens, found.tokens[order])
    np.testing.assert_allclose(merge(x, scale * x).tokens, found.tokens, rtol=1e-6)
    assert found.tokens.shape[1] == 8 - sum(removed)
    members = np.asarray(found.plan.source())
    assert members.shape == (3, 8 - sum(removed), 8)
    assert (members.sum(1) == 1).all()  # each token in one row
    if len(removed) == 1:
        np.testing.assert_allclose(
            found.tokens, found.plan.merge(x, how="mean")[0], rtol=1e-5, atol=1e-6
        )


def test_removals():
    assert frame_removals(196, keep=0.25) == (98, 49)
    assert frame_removals(196, keep=0.125) == (98, 49, 24)
    assert frame_removals(196, keep=1 / 64)[:4] == (98, 49, 24, 12)
    assert frame_removals(27, halvings=2) == (13, 6)
    assert frame_removals(5, keep=1.0) == ()
    x = jnp.arange(8.0).reshape(1, 4, 2)
    np.testing.assert_array_equal(merge_frames(x, (0,)).tokens, x)
    assert _merge(x, x, (9, 9, 9)).tokens.shape[1] == 1


def test_smaller_grid():
    x = jax.random.normal(jax.random.key(0), (2, 35, 4))
    grids = []

    def shorter(x):
        tokens, grid = merge_to_grid(x, (5, 7))
        grids.append(grid)
        return tokens

    assert jax.eval_shape(shorter, x).shape == (2, 6, 4)
    grid = grids[0]
    assert grid == (2, 3)
    places = grid_positions(2, *grid)
    assert len(places) == 12 and places[7].tolist() == [1, 0, 1]


def test_aim_as_a_method():
    x = jax.random.normal(jax.random.key(1), (2, 16, 3))
    out = jax.jit(lambda x: compress(x, "aim", budget=8, frames=2))(x)
    one = jax.jit(lambda x: merge_frames(x, (4,), order="source").tokens)
    whole = one(x.reshape(4, 8, 3))
    np.testing.assert_allclose(out.tokens, whole.reshape(2, 8, 3), rtol=1e-6)
    np.testing.assert_allclose(
        out.plan.merge(x, how="mean")[0], out.tokens, rtol=1e-5, atol=1e-6
    )
    assert bool(jnp.all((out.assign // 4) == (jnp.arange(16) // 8)[None]))
    padded = jnp.pad(x[:, :8], ((0, 0), (0, 4), (0, 0)), constant_values=9.0)
    valid = jnp.broadcast_to(jnp.arange(12)[None] < 8, (2, 12))
    short = jax.jit(lambda x, valid: aim(x, budget=6, valid=valid))
    got, alone = short(padded, valid), short(x[:, :8], None)
    np.testing.assert_allclose(got.tokens, alone.tokens, rtol=1e-6)
    np.testing.assert_array_equal(got.assign[:, :8], alone.assign)
    assert not bool(jnp.any(got.assign[:, 8:] >= 0))
