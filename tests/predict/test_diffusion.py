"""Sampling from masked models: what holds for any model, order and pace."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.ops.sharding import mesh_from
from jtok.predict import (
    JointLayer,
    adaptive_pace,
    align,
    clip_conditional,
    denoiser,
    denoiser_of,
    dream_pace,
    even_pace,
    exact_joint,
    fixed_pace,
    joint_divergence,
    joint_layer,
    lay_out,
    nucleus,
    oracle_layer,
    position_scores,
    reveal_counts,
    sample_masked,
    threshold_pace,
)
from jtok.predict.diffusion import _compiled
from jtok.predict.unmask import Knobs, Plan, fill
from jtok.testing import assert_close, tiny_config, tiny_model
from tests.predict.masked_models import (
    BOS,
    MASK,
    PAD,
    base_model,
    constant_denoiser,
    replayed,
    said_of,
    table_denoiser,
)

ROWS = np.array(
    [[1, 5, MASK, MASK, 7, MASK, MASK, MASK, MASK, 9],
     [1, MASK, MASK, 4, MASK, MASK, 8, MASK, MASK, MASK]], np.int32,
)  # fmt: skip
ORDERS = ("entropy", "margin", "confidence", "plain_confidence", "random")


def random_layer(seed=3):
    layer = joint_layer(base_model().config, zero_init=False)
    return {"layer": layer, "layer_params": layer.init(jax.random.key(seed))}


# ---- counts


@given(st.integers(0, 300), st.integers(1, 300))
def test_even_counts_differ_by_one_and_dream_counts_are_all_of_them(count, steps):
    even = reveal_counts(count, even_pace(steps))
    assert even.sum() == count and len(even) == steps
    assert even.max() - even.min() <= 1 and (np.diff(even) <= 0).all()
    dream = reveal_counts(count, dream_pace(steps))
    assert dream.sum() == count and (dream >= 0).all()
    fixed = reveal_counts(count, fixed_pace(steps))
    assert fixed.sum() == count and (fixed[:-1] == steps).all()


# ---- laws of every run


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(ORDERS),
    st.sampled_from([even_pace(4), even_pace(9), even_pace(1), dream_pace(3),
                     fixed_pace(3), fixed_pace(99)]),
    st.sampled_from([0.0, 1.0, 0.5]),
    st.integers(0, 99),
    st.booleans(),
)  # fmt: skip
def test_masks_go_and_nothing_else_changes(order, pace, temperature, seed, drawn):
    model = table_denoiser(seq=5, vocab=3)
    rows = np.array(
        [[3, 3, 3, 3, 3], [1, 3, 3, 0, 3], [3, 2, 3, 3, 0], [0, 1, 2, 0, 1]]
    )
    how = {"layer": oracle_layer(model), "layer_params": ()} if drawn else {}
    out = sample_masked(model, rows, order=order, pace=pace, temperature=temperature,
                        seed=seed, history=True, **how)  # fmt: skip
    states = [rows, *np.asarray(out.history)]
    for before, after in itertools.pairwise(states):
        assert (after[before != 3] == before[before != 3]).all()
    tokens, turn = np.asarray(out.tokens), np.asarray(out.turn)
    assert (tokens != 3).all() and (tokens == states[-1]).all()
    assert ((turn < 0) == (rows != 3)).all()
    for row in range(4):
        given_, found = rows[row] != 3, turn[row][rows[row] == 3]
        assert (tokens[row][given_] == rows[row][given_]).all()
        assert sorted(found) == list(range((~given_).sum()))
        # Tokens of one forward are as many as the pace says.
        after = np.asarray(out.forward)[row]
        counts = np.bincount(after[after >= 0], minlength=1)
        expected = np.trim_zeros(reveal_counts(int((~given_).sum()), pace), "b")
        assert counts.tolist() == (expected.tolist() or [0])
    assert np.asarray(out.forwards)[3] == 0  # nothing to fill, no forward


def test_a_row_does_not_depend_on_its_batch_mates():
    model = table_denoiser(seq=5)
    rows = np.array([[3, 3, 3, 1, 3], [3, 0, 3, 3, 2]])
    for order in ("entropy", "confidence", "random", "origin"):
        how = {"order": order, "pace": dream_pace(3), "temperature": 1.0}
        both = sample_masked(model, rows, seed=[4, 7], **how)
        for row, seed in enumerate([4, 7]):
            alone = sample_masked(model, rows[row : row + 1], seed=[seed], **how)
            np.testing.assert_array_equal(both.tokens[row], alone.tokens[0])


# ---- drawing several tokens a forward


def test_one_token_a_forward_is_the_same_whatever_the_layer():
    rows, how = ROWS, {"temperature": 1.0, "pace": fixed_pace(1), "seed": 5}
    plain = sample_masked(base_model(), rows, **how)
    drawn = sample_masked(base_model(), rows, **random_layer(), **how)
    np.testing.assert_array_equal(plain.tokens, drawn.tokens)
    np.testing.assert_array_equal(plain.turn, drawn.turn)
    assert plain.forwards.tolist() == (rows == MASK).sum(1).tolist()


@pytest.mark.parametrize("order", ["entropy", "random"])
def test_an_untrained_layer_is_sampling_from_marginals(order):
    layer = joint_layer(base_model().config)
    how = {"temperature": 1.0, "order": order, "pace": even_pace(2), "seed": 5}
    plain = sample_masked(base_model(), ROWS, **how)
    params = layer.init(jax.random.key(0))
    drawn = sample_masked(base_model(), ROWS, layer=layer, layer_params=params, **how)
    np.testing.assert_array_equal(plain.tokens, drawn.tokens)
    np.testing.assert_array_equal(plain.turn, drawn.turn)
    other = sample_masked(base_model(), ROWS, **random_layer(), **how)
    assert (np.asarray(other.tokens) != np.asarray(plain.tokens)).any()


@pytest.mark.parametrize("order, more", [
    ("entropy", {}), ("confidence", {}), ("entropy", {"order_temperature": 0.3}),
    ("random", {"top_p": 0.8}),
])  # fmt: skip
def test_a_perfect_layer_samples_one_at_a_time(order, more):
    model = table_denoiser(seq=4)
    rows = np.full((64, 4), 3, np.int32)
    how = {"temperature": 1.0, "order": order, **more}
    single = sample_masked(model, rows, **how)
    for count in (2, 4):
        drawn = sample_masked(model, rows, layer=oracle_layer(model), layer_params=(),
                              pace=fixed_pace(count), **how)  # fmt: skip
        np.testing.assert_array_equal(drawn.tokens, single.tokens)
        assert set(drawn.forwards.tolist()) == {4 // count}


@pytest.mark.parametrize("order", ["entropy", "margin", "random"])
def test_single_tokens_have_the_exact_joint_law(order):
    """Chi-square of 8000 draws against enumeration; false alarms: one in 10^4."""
    model = table_denoiser()
    row = np.full(3, 3, np.int32)
    fills, probs = exact_joint(model, row, order=order)
    assert len(fills) == 27 and probs.sum() == pytest.approx(1.0, abs=1e-5)
    rows = np.broadcast_to(row, (8000, 3))
    out = np.asarray(sample_masked(model, rows, order=order, temperature=1.0).tokens)
    counts = (out[:, None] == fills[None]).all(-1).sum(0)
    expected = 8000 * probs
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 60.1  # of 26 degrees of freedom, 0.9999
    assert joint_divergence(out, fills, probs) < 0.005
    together = sample_masked(model, rows, order=order, temperature=1.0,
                             pace=fixed_pace(3))  # fmt: skip
    assert joint_divergence(together.tokens, fills, probs) > 0.05


def test_a_layer_of_its_own_for_each_draw():
    config = base_model().config
    layer = joint_layer(config, steps=3, zero_init=False)
    shared = joint_layer(config, zero_init=False)
    params = layer.init(jax.random.key(0))
    _, values = denoiser_of(base_model())
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 10, 32)), jnp.float32)
    rows = jnp.asarray(ROWS)
    both = [jax.jit(lambda p, h, i, made=made: made.step(p, values, rows, h, None, i))
            for made in (layer, shared)]  # fmt: skip
    for index in range(3):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], params)
        got, expected = both[0](params, hidden, index), both[1](one, hidden, 0)
        assert_close(got, expected, rtol=1e-4, atol=1e-4)
    how = {"layer": layer, "layer_params": params}
    out = sample_masked(base_model(), ROWS, pace=fixed_pace(4), **how)
    assert (np.asarray(out.tokens) != MASK).all()
    with pytest.raises(ArgumentError, match="layer: got 'a layer of 3 steps'.*4"):
        sample_masked(base_model(), ROWS, pace=fixed_pace(5), **how)


def test_ablations_of_the_layer():
    config = base_model().config
    _, values = denoiser_of(base_model())
    ids, hidden = jnp.asarray(ROWS), jnp.ones((2, 10, 32))
    whole = joint_layer(config, zero_init=False)
    for options in ({"attention": False}, {"base_features": False}):
        layer = joint_layer(config, zero_init=False, **options)
        params = layer.init(jax.random.key(0))
        step = jax.jit(
            lambda ids, h, layer=layer, p=params: layer.step(p, values, ids, h, None, 0)
        )
        first = step(ids, hidden)
        assert first.shape == hidden.shape
        if "attention" in options:  # each position for itself
            moved = step(ids.at[:, 5].set(3), hidden)
            assert np.isclose(moved, first).all(-1).sum(1).tolist() == [9, 9]
        else:  # hidden states reach the result by the sum alone
            assert_close(step(ids, 2 * hidden) - first, hidden, atol=1e-5)
    with pytest.raises(ArgumentError, match="steps: got 0"):
        joint_layer(config, steps=0)
    assert whole is joint_layer(config, zero_init=False)


# ---- shift and padding


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 6), st.integers(0, 4))
def test_the_shift_is_by_one(seq, pad):
    raw = jnp.arange(1.0, seq + pad + 1.0)[None]
    valid = jnp.arange(seq + pad)[None] >= pad
    moved = align(raw, valid)
    np.testing.assert_array_equal(moved[:, pad + 1 :], raw[:, pad:-1])
    assert moved[0, pad] == raw[0, pad]


def test_a_model_without_the_shift_is_left_alone():
    ids = jnp.asarray(ROWS)
    for shift in (False, True):
        model, params = denoiser_of(base_model(shift=shift))
        raw = jax.jit(lambda m, i: m(i, logits="none").hidden)(
            base_model(shift=shift), ids
        )
        got = jax.jit(model.hidden)(params, ids, None)
        assert_close(got, align(raw, None) if shift else raw)
        assert model.shift == shift


def test_padding_changes_nothing():
    short = ROWS[:1, :7]
    ids = np.full((2, 10), PAD, np.int32)
    ids[0, 3:], ids[1] = short[0], ROWS[1]
    valid = np.ones((2, 10), bool)
    valid[0, :3] = False
    model, params = denoiser_of(base_model())
    hidden = jax.jit(model.hidden)
    padded = hidden(params, jnp.asarray(ids), jnp.asarray(valid))
    alone = hidden(params, jnp.asarray(short), None)
    assert_close(padded[0, 3:], alone[0], atol=1e-5)
    assert np.isfinite(np.asarray(padded)).all()
    for how in ({}, random_layer()):
        how = {"pace": even_pace(3), **how}
        both = sample_masked(base_model(), ids, valid=valid, **how)
        single = sample_masked(base_model(), short, **how)
        np.testing.assert_array_equal(both.tokens[0, 3:], single.tokens[0])
        assert (np.asarray(both.tokens)[0, :3] == PAD).all()


def test_laid_out_prompts():
    ids, valid = lay_out([[], [1, 5, 6]], 2, mask_id=MASK, pad_id=PAD, length=6)
    assert ids.tolist() == [[0, 0, 0, 0, MASK, MASK], [0, 1, 5, 6, MASK, MASK]]
    assert valid.sum(1).tolist() == [2, 5]
    with pytest.raises(ArgumentError, match="length: got 4, expected at least 5"):
        lay_out([[1, 5, 6]], 2, mask_id=MASK, pad_id=PAD, length=4)
    with pytest.raises(ArgumentError, match="prompts: got .*other than MASK"):
        lay_out([[MASK]], 2, mask_id=MASK, pad_id=PAD)


# ---- options


def test_blocks_are_filled_from_left_to_right():
    for pace in (even_pace(6), fixed_pace(2), dream_pace(6), threshold_pace(0.4)):
        order = "confidence" if pace.kind == "threshold" else "entropy"
        out = sample_masked(
            base_model(), ROWS, pace=pace, order=order, block=3, start=1
        )
        block = (np.arange(10) - 1) // 3
        turn = np.asarray(out.turn)
        for row in range(2):
            for early, late in ((0, 1), (1, 2)):
                first = turn[row][(block == early) & (turn[row] >= 0)]
                then = turn[row][(block == late) & (turn[row] >= 0)]
                assert first.max() < then.min()


# Every row of four with something given and something masked, or a part of them.
STARTS = np.array([r for r in itertools.product((0, 1, 3), repeat=4) if 3 in r])


def check_replay(model, out, rows, reveal, say=None):
    """That a greedy run went as plain arithmetic does."""
    counts = set()
    for at, row in enumerate(rows):
        states = replayed(model, row, reveal, say)
        assert int(out.forwards[at]) == len(states)
        np.testing.assert_array_equal(out.history[: len(states), at], states)
        counts.add(len(states))
    assert len(counts) > 1


@pytest.mark.parametrize("bound", [0.0, 0.6, 1.0])
def test_a_threshold_reveals_what_is_sure_and_at_least_one(bound):
    model = table_denoiser(seq=4)

    def reveal(probs, masked):
        sure = np.where(masked, probs.max(-1), -1)
        above = np.flatnonzero(sure > bound)
        return above if len(above) else [sure.argmax()]

    out = sample_masked(model, STARTS, pace=threshold_pace(bound), order="confidence",
                        history=True)  # fmt: skip
    if bound in (0.0, 1.0):  # all at once, or one by one
        masks = (STARTS == 3).sum(1)
        assert out.forwards.tolist() == (masks if bound else masks * 0 + 1).tolist()
    else:
        check_replay(model, out, STARTS, reveal)


def test_what_is_just_as_sure_as_the_threshold_waits():
    rows = np.full((1, 4), 2, np.int32)
    how = {"order": "confidence", "pace": threshold_pace(0.5)}
    out = sample_masked(constant_denoiser(0.0, 0.0), rows, **how)
    assert out.forwards.tolist() == [4]
    out = sample_masked(constant_denoiser(0.0, 0.1), rows, **how)
    assert out.forwards.tolist() == [1]


@pytest.mark.parametrize(
    "order", ["entropy", "margin", "confidence", "plain_confidence"]
)
@pytest.mark.parametrize("more", [{}, {"top_k": 3}], ids=["fused", "dense"])
def test_ties_go_to_the_lower_position_and_the_lower_id(order, more):
    """Also among draws of one forward, with and without a layer."""
    model, rows = constant_denoiser(0.0, 1.0, 1.0), np.full((2, 4), 3, np.int32)
    rows[1, 1] = 2
    for layer in (None, oracle_layer(model)):
        out = sample_masked(model, rows, order=order, pace=fixed_pace(2), layer=layer,
                            layer_params=(), **more)  # fmt: skip
        assert out.tokens.tolist() == [[1, 1, 1, 1], [1, 2, 1, 1]]
        assert out.turn.tolist() == [[0, 1, 2, 3], [0, -1, 1, 2]]


def test_the_penalty_of_an_end_shrinks_step_by_step():
    """2 nats for EOS, less 3, 2.25, 1.5, 0.75 of them."""
    model, rows = constant_denoiser(0.0, 2.0), np.full((1, 4), 2, np.int32)
    out = sample_masked(model, rows, eos_id=1, eos_penalty=3.0)
    assert out.turn.tolist() == [[0, 1, 2, 3]]
    assert out.tokens.tolist() == [[0, 0, 1, 1]]
    other = sample_masked(model, rows, eos_id=0, eos_penalty=3.0)
    assert other.tokens.tolist() == [[1, 1, 1, 1]]


def test_guidance_leads_away_from_what_is_said_of_masks_alone():
    """Only what was given is hidden for that, not what was revealed since."""
    model, scale = table_denoiser(seq=4), 1.5
    reveal = lambda probs, masked: [
        np.where(masked, (probs * np.log(probs)).sum(-1), -np.inf).argmax()
    ]
    out = sample_masked(model, STARTS, guidance=scale, history=True)
    moved = 0
    for at, row in enumerate(STARTS):

        def say(state, step, row=row):
            del step
            blind = said_of(model, np.where(row == 3, state, 3))
            return blind + (scale + 1) * (said_of(model, state) - blind)

        states = replayed(model, row, reveal, say)
        np.testing.assert_array_equal(out.history[: len(states), at], states)
        moved += (states[-1] != replayed(model, row, reveal)[-1]).any()
    assert moved > 5


# ---- other strategies


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_a_clipped_law_is_one_that_a_joint_law_may_have(seed):
    rng = np.random.default_rng(seed)
    first, law = rng.dirichlet(np.ones(4), size=2)
    chance = rng.uniform(0.05, 1.0)
    log = lambda x: jnp.log(jnp.asarray(x, jnp.float32))
    got = np.exp(clip_conditional(log(law), log(first), log(chance)))
    least = np.maximum((first - 1 + chance) / chance, 0)
    held = np.clip(law, least, first / chance)
    np.testing.assert_allclose(got, held / held.sum(), atol=1e-5)
    sure = np.exp(clip_conditional(log(law), log(first), log(1.0)))
    np.testing.assert_allclose(sure, first, atol=1e-5)  # after what was certain


def test_clipping_holds_a_layer_within_the_marginals():
    model, count = table_denoiser(seq=2), 8000
    told = np.array([9.0, 0.0, 0.0])
    layer = JointLayer(
        lambda key: (),
        lambda p, q, tokens, hidden, valid, i: jnp.broadcast_to(
            jnp.asarray([*told, 0.0], jnp.float32), hidden.shape
        ),
    )
    rows = np.full((count, 2), 3, np.int32)
    out = sample_masked(model, rows, layer=layer, layer_params=(), clip=True,
                        pace=fixed_pace(2), temperature=1.0)  # fmt: skip
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    probs, told = softmax(said_of(model, rows[0])), softmax(told)
    first = (probs * np.log(probs)).sum(-1).argmax()
    assert set(np.asarray(out.turn).argmin(1)) == {first}
    expected = np.zeros((3, 3))
    for token, chance in enumerate(probs[first]):
        other = probs[1 - first]
        held = np.clip(told, (other - 1 + chance) / chance, other / chance)
        expected[token] = chance * held / held.sum()
    tokens = np.asarray(out.tokens)
    found = np.zeros((3, 3))
    np.add.at(found, (tokens[:, first], tokens[:, 1 - first]), 1 / count)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert expected[:, 1:].sum() > 0.1  # the layer alone says 0 nearly always


def test_an_adaptive_pace_goes_as_far_as_a_causal_model_agrees():
    model, other = table_denoiser(seq=4), table_denoiser(seq=4, seed=1)
    causal = lambda tokens: other.hidden(None, tokens, None)
    pace = adaptive_pace(3, mixture=0.3)

    def reveal(probs, masked):
        at = np.flatnonzero(masked)
        fill = np.where(masked, probs.argmax(-1), state_of["row"])
        mixed = 0.3 * np.log(probs) + 0.7 * said_of(other, fill)
        same = (mixed.argmax(-1) == probs.argmax(-1))[at]
        same[0] = True
        return at[: min(3, int(np.cumprod(same).sum()))]

    state_of = {}

    def say(state, step):
        del step
        state_of["row"] = state
        return said_of(model, state)

    out = sample_masked(model, STARTS, pace=pace, causal=causal, history=True)
    check_replay(model, out, STARTS, reveal, say)


def test_an_adaptive_pace_draws_from_the_marginals_with_shared_noise():
    """Of one mind the two models have all draws in common, with any noise."""
    model, rows = table_denoiser(seq=4), np.full((64, 4), 3, np.int32)
    causal = lambda tokens: jnp.zeros((*tokens.shape, 4))
    how = {"temperature": 0.8}
    drawn = sample_masked(model, rows, pace=adaptive_pace(4, mixture=1.0),
                          causal=causal, **how)  # fmt: skip
    plain = sample_masked(model, rows, pace=fixed_pace(4), **how)
    assert set(drawn.forwards.tolist()) == {1}
    np.testing.assert_array_equal(drawn.tokens, plain.tokens)
    apart = sample_masked(model, rows, pace=adaptive_pace(4, mixture=0.0),
                          causal=causal, **how)  # fmt: skip
    assert np.mean(apart.forwards) > 1.5


def test_origin_reveals_each_position_for_itself():
    model = table_denoiser(seq=5)
    rows = np.full((2000, 5), 3, np.int32)
    out = sample_masked(model, rows, order="origin", pace=dream_pace(4))
    after = np.asarray(out.forward)
    # A quarter each, up to eps = 1e-3.
    share = np.bincount(after.reshape(-1), minlength=4) / after.size
    np.testing.assert_allclose(share, 0.25, atol=0.02)
    first = (after == 0).sum(1)
    assert first.var() == pytest.approx(5 * 0.25 * 0.75, rel=0.1)


def test_temperature_of_the_order_is_a_law_over_positions():
    model = table_denoiser(seq=3)
    rows = np.full((4000, 3), 3, np.int32)
    values, _ = denoiser_of(model)
    logits = values.hidden(None, jnp.asarray(rows[:1]), None)
    scores = position_scores(logits.at[..., 3].set(-jnp.inf), "entropy")[0]
    out = sample_masked(model, rows, order_temperature=0.2)
    first = np.bincount(np.asarray(out.turn).argmin(1), minlength=3) / 4000
    np.testing.assert_allclose(first, jax.nn.softmax(scores / 0.2), atol=0.03)


def test_forbidden_tokens_are_not_written():
    free = np.asarray(sample_masked(base_model(), ROWS).tokens)
    common = int(np.bincount(free[ROWS == MASK]).argmax())
    for how in ({}, random_layer()):
        out = sample_masked(base_model(), ROWS, forbid=(common, BOS),
                            pace=fixed_pace(3), temperature=1.0, **how)  # fmt: skip
        assert not (np.asarray(out.tokens)[ROWS == MASK] == common).any()


def test_of_two_fills_the_better_one_is_kept():
    model = table_denoiser(seq=4)
    rows = np.full((500, 4), 3, np.int32)
    few_twos = lambda tokens: jnp.sum(tokens == 2, axis=1).astype(jnp.float32)
    how = {"temperature": 1.0, "pace": fixed_pace(2)}
    plain = sample_masked(model, rows, **how)
    chosen = sample_masked(model, rows, energy=few_twos, **how)
    count = lambda out: (np.asarray(out.tokens) == 2).mean()
    assert count(chosen) < count(plain) - 0.05


def test_top_p_and_top_k_keep_the_best():
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    kept = lambda **how: np.isfinite(nucleus(logits, **how)).tolist()
    assert kept(top_p=0.5) == [True, True, False, False]
    assert kept(top_p=0.4) == [True, True, False, False]  # not more than 0.4 before it
    assert kept(top_p=0.39) == [True, False, False, False]
    assert kept(top_p=0.9, top_k=1) == [True, False, False, False]
    model = table_denoiser(seq=4)
    rows = np.full((64, 4), 3, np.int32)
    best = sample_masked(model, rows, temperature=1.0, top_k=1)
    assert len(np.unique(best.tokens, axis=0)) == 1
    dense = sample_masked(model, rows, temperature=1.0, top_k=3)
    assert len(np.unique(dense.tokens, axis=0)) > 10


# ---- where and how it runs


@pytest.mark.parametrize("order", ["entropy", "confidence", "margin"])
def test_dense_and_fused_scores_agree(order):
    how = {"order": order, "temperature": 0.7, "pace": even_pace(4)}
    fused = sample_masked(base_model(), ROWS, **how)
    dense = sample_masked(base_model(), ROWS, top_k=29, **how)
    np.testing.assert_array_equal(fused.tokens, dense.tokens)
    np.testing.assert_array_equal(fused.turn, dense.turn)


def test_bfloat16():
    out = sample_masked(base_model(dtype="bfloat16"), ROWS, pace=even_pace(3))
    assert (np.asarray(out.tokens) != MASK).all()


def test_numbers_do_not_compile_again():
    plans = []
    for seed, temperature, rows in ((0, 0.6, ROWS), (9, 0.8, ROWS[::-1])):
        before = _compiled.cache_info().currsize
        sample_masked(base_model(), rows, seed=seed, temperature=temperature,
                      order="margin", pace=even_pace(7))  # fmt: skip
        plans.append(_compiled.cache_info().currsize - before)
    assert plans == [1, 0]


def test_a_mesh_changes_nothing():
    rows = np.concatenate([ROWS, ROWS[::-1]])
    how = {"temperature": 1.0, "pace": even_pace(3), **random_layer()}
    plain = sample_masked(base_model(), rows, **how)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        spread = sample_masked(base_model(), rows, **how)
    np.testing.assert_array_equal(plain.tokens, spread.tokens)


def test_no_logits_of_all_positions_are_written():
    vocab, seq = 40_000, 128
    config = tiny_config(family="llada", vocab_size=vocab)
    plan = Plan(
        model=denoiser(config), layer=joint_layer(config), pace=even_pace(16),
        order="entropy", steps=16, width=8, top_k=None, nucleus=False, sampled=True,
        scaled=False, shuffled=False, guided=False, block=seq, start=0,
        forbid=(vocab - 1,), eos_id=None, official=False, history=False, energy=None,
    )  # fmt: skip
    from jtok.models import abstract

    params = abstract(config).params
    layer = jax.eval_shape(plan.layer.init, jax.random.key(0))
    shape = jax.ShapeDtypeStruct
    knobs = Knobs(*[shape((), jnp.float32)] * 6)
    lowered = jax.jit(functools.partial(fill, plan)).lower(
        params, layer, knobs, shape((2, seq), jnp.int32), None,
        shape((2, 2), jnp.uint32),
    )  # fmt: skip
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < 2 * seq * vocab * 4


# ---- bad input


@pytest.mark.parametrize("call, name", [
    (lambda: fixed_pace(0), "count: got 0"),
    (lambda: even_pace(0), "steps: got 0"),
    (lambda: dream_pace(0), "steps: got 0"),
    (lambda: threshold_pace(1.5), "bound: got 1.5"),
    (lambda: reveal_counts(3, threshold_pace()), "pace: got 'threshold'"),
    (lambda: denoiser(tiny_config()), "config: got 'a causal model'"),
    (lambda: denoiser(tiny_config(family="Dream"), mask_id=96), "mask_id: got 96"),
    (lambda: denoiser(tiny_config(family="Dream"), pad_id=95), "than that of pad"),
    (lambda: sample_masked(base_model(), ROWS, order="entropie"), "mean entropy"),
    (lambda: sample_masked(base_model(), ROWS, block=3), "block: got 3"),
    (lambda: sample_masked(base_model(), ROWS, block=5, pace=even_pace(3)), "2 blocks"),
    (lambda: sample_masked(base_model(), ROWS, start=10), "start: got 10"),
    (lambda: sample_masked(base_model(), ROWS, top_p=0.0), "top_p: got 0.0"),
    (lambda: sample_masked(base_model(), ROWS, top_k=0), "top_k: got 0"),
    (lambda: sample_masked(base_model(), ROWS, temperature=-1.0), "temperature"),
    (lambda: sample_masked(base_model(), ROWS, forbid=(29,)), "forbid: got 29"),
    (lambda: sample_masked(base_model(), ROWS, eos_penalty=1.0), "eos_id: got None"),
    (lambda: sample_masked(base_model(), ROWS, seed=[1]), "seed: got '1 seeds'"),
    (lambda: sample_masked(base_model(), ROWS[:, 2:]), "MASK as the first token"),
    (lambda: sample_masked(base_model(), ROWS + 1), "tokens: got"),
    (lambda: sample_masked(base_model(), ROWS, pace=threshold_pace()), "a threshold"),
    (lambda: sample_masked(base_model(), ROWS, order="origin"), "pace: got 'fixed'"),
    (lambda: sample_masked(base_model(), ROWS, pace=adaptive_pace(2)), "causal: got"),
    (lambda: sample_masked(base_model(), ROWS, causal=len), "causal: got 'a function'"),
    (lambda: sample_masked(base_model(), ROWS, pace=adaptive_pace(2), causal=len,
                           **random_layer()), "causal: got 'a function', expected nei"),
    (lambda: sample_masked(base_model(), ROWS, clip=True), "clip: got True"),
    (lambda: adaptive_pace(0), "most: got 0"),
    (lambda: adaptive_pace(2, mixture=1.5), "mixture: got 1.5"),
    (lambda: reveal_counts(3, adaptive_pace(2)), "pace: got 'adaptive'"),
    (lambda: sample_masked(base_model(), ROWS, energy=len, order="confidence"), "ener"),
    (lambda: sample_masked(tiny_model(), ROWS), "a causal model"),
    (lambda: exact_joint(base_model(), ROWS[0], order="origin"), "order: got 'origin'"),
    (lambda: position_scores(jnp.zeros(4), "random"), "one that asks the model"),
])  # fmt: skip
def test_bad_input(call, name):
    with pytest.raises(ArgumentError, match=name):
        call()


def test_bad_types():
    with pytest.raises((ArgumentTypeError, TypeError), match="tokens"):
        sample_masked(base_model(), ROWS.astype(np.float32))
    with pytest.raises((ArgumentTypeError, TypeError), match="model"):
        sample_masked("a model", ROWS)
