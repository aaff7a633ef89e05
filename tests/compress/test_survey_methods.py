"""DivPrune, FastV, DyCoke, A-ToMe: their laws, and what their codes do wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.compress import (
    adjacent,
    divprune,
    dycoke,
    dycoke_budget,
    farthest_first,
    fastv,
    fastv_budget,
    reselect,
    start_reselection,
)
from jtok.errors import ArgumentError
from tests.compress.compiled import whole

# One program a call.
adjacent, divprune, dycoke, fastv = (
    whole(function) for function in (adjacent, divprune, dycoke, fastv)
)


def normal(seed, *shape):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def cosines(x):
    unit = np.asarray(x) / np.linalg.norm(np.asarray(x), axis=-1, keepdims=True)
    return unit @ np.swapaxes(unit, -1, -2)


# DivPrune ------------------------


@functools.cache
def first(count):
    return jax.jit(lambda x, valid: farthest_first(x, count, valid=valid))


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_divprune_takes_the_farthest_and_does_not_look_at_the_order(seed):
    x = normal(seed, 1, 12, 4)
    taken, score = first(12)(x, jnp.ones((1, 12), bool))
    taken = np.asarray(taken)[0]
    assert sorted(taken) == list(range(12))  # all: a permutation
    distance = 1 - cosines(x[0])
    for step in range(1, 12):
        near = distance[taken[:step]].min(0)
        near[taken[:step]] = -1
        assert near[taken[step]] >= near.max() - 1e-6
        assert abs(score[0, taken[step]] - near[taken[step]]) < 1e-5
    np.fill_diagonal(distance, 9)
    assert taken[0] == distance.min(0).argmax()
    shuffle = np.random.default_rng(seed).permutation(12)
    again, _ = first(12)(x[:, shuffle], jnp.ones((1, 12), bool))
    np.testing.assert_array_equal(shuffle[np.asarray(again)[0]], taken)


def test_divprune_takes_no_two_equal_tokens_while_others_are_left():
    x = jnp.repeat(normal(0, 1, 5, 4), 3, axis=1) * jnp.arange(1.0, 16.0)[None, :, None]
    taken, _ = farthest_first(x, 5)
    assert sorted(np.asarray(taken)[0] // 3) == list(range(5))
    assert len(set(np.asarray(farthest_first(x, 15)[0])[0])) == 15


def test_divprune_in_greedy_order_is_nested():
    x = normal(1, 2, 20, 4)
    many = divprune(x, budget=9, select="greedy").keep
    few = divprune(x, budget=4, select="greedy").keep
    np.testing.assert_array_equal(many[:, :4], few)
    with pytest.raises(ArgumentError, match="^select"):
        divprune.__wrapped__(x, budget=4, select="random")


def test_divprune_holds_no_matrix_of_all_pairs():
    spec = jax.ShapeDtypeStruct((1, 4096, 16), jnp.float32)
    run = jax.jit(lambda x: farthest_first(x, 400))
    used = run.lower(spec).compile().memory_analysis().temp_size_in_bytes
    assert used < 4096 * 4096 * 4 / 4


# FastV ------------------------


def test_fastv_leaves_the_text_and_takes_several_images():
    attn = jnp.asarray([[9.0, 0.1, 0.4, 9.0, 0.3, 0.2, 9.0, 0.5]])
    among = jnp.asarray([[False, True, True, False, True, True, False, True]])
    found = fastv(normal(0, 1, 8, 2), budget=5, attn=attn, among=among)
    assert found.keep.tolist() == [[0, 2, 3, 6, 7]]
    # With a budget below the text, its last tokens go, too.
    found = fastv(normal(0, 1, 8, 2), budget=2, attn=attn, among=among)
    assert found.keep.tolist() == [[0, 3]]
    heads = jnp.stack([attn, attn * 0])[:, 0][None]
    found = fastv(normal(0, 1, 8, 2), budget=5, attn=heads, among=among)
    np.testing.assert_allclose(found.score, attn / 2)
    for drop in (-0.1, 1.0, float("nan")):
        with pytest.raises(ArgumentError, match="^drop"):
            fastv_budget(10, 5, drop)
    with pytest.raises(ArgumentError, match="^image"):
        fastv_budget(10, 11, 0.5)
    with pytest.raises(ArgumentError, match="^attn"):
        fastv(normal(0, 1, 8, 2), budget=5, attn=attn[:, :5])
    with pytest.raises(ArgumentError, match="^among"):
        fastv.__wrapped__(normal(0, 1, 8, 2), budget=5, attn=attn, among=among[:, :1])


def test_ties_break_to_the_lower_index():
    flat = jnp.ones((1, 6))
    x = normal(2, 1, 6, 3)
    assert fastv(x, budget=3, attn=flat).keep.tolist() == [[0, 1, 2]]
    same = jnp.ones((1, 6, 3))
    assert divprune(same, budget=3).keep.tolist() == [[0, 1, 2]]
    assert adjacent(same, budget=3).assign.tolist() == [[0, 0, 0, 0, 1, 2]]


# DyCoke ------------------------


def by_hand(x, frames, places, each):
    """The four-frame rule, a frame at a time."""
    x = np.asarray(x).reshape(frames, places, -1)
    keep = []
    for frame in range(frames):
        if frame % 4 == 0:
            chosen = range(places)
        else:
            before = {1: frame - 1, 2: frame - 2, 3: frame - 1}[frame % 4]
            a, b = x[frame], x[before]
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            order = np.argsort((a * b).sum(1) / norms, kind="stable")
            chosen = sorted(order[:each])
        keep += [frame * places + place for place in chosen]
    return keep


@pytest.mark.parametrize("frames", [4, 7, 9])
def test_dycoke_reduces_every_window(frames):
    x = normal(3, 1, frames * 6, 4)
    budget = dycoke_budget(frames, 6, 0.5)
    assert budget == -(-frames // 4) * 6 + (frames - -(-frames // 4)) * 3
    found = dycoke(x, budget=budget, grid=(frames, 2, 3))
    assert found.keep[0].tolist() == by_hand(x, frames, 6, 3)
    whole = np.asarray(found.assign).reshape(frames, 6)[::4]
    assert (whole >= 0).all()


def test_dycoke_with_frames_that_repeat_keeps_the_whole_ones():
    x = jnp.tile(normal(4, 1, 6, 4), (1, 8, 1))
    found = dycoke(x, budget=dycoke_budget(8, 6, 0.7), grid=(8, 1, 6))
    assign = np.asarray(found.assign).reshape(8, 6)
    assert (assign[[0, 4]] >= 0).all()
    assert ((assign >= 0).sum(1) == [6, 1, 1, 1, 6, 1, 1, 1]).all()


def test_what_the_code_of_dycoke_does():
    assert dycoke_budget(9, 10, 0.5, compat="official") == 50
    x = normal(5, 1, 9 * 4, 3)
    budget = dycoke_budget(9, 4, 0.5, compat="official")
    found = dycoke(x, budget=budget, grid=(9, 1, 4), compat="official")
    kept = (np.asarray(found.assign).reshape(9, 4) >= 0).sum(1)
    assert kept.tolist() == [4, 2, 2, 2, 4, 2, 2, 2, 0]  # the last frame is lost
    budget = dycoke_budget(8, 4, 0.5, compat="official")
    found = dycoke(x[:, :32], budget=budget, grid=(8, 1, 4), compat="official")
    kept = (np.asarray(found.assign).reshape(8, 4) >= 0).sum(1)
    # Frame 6 of the last window stays whole.
    assert kept.tolist() == [4, 2, 2, 2, 4, 2, 4, 2]


def test_reduced_frames_may_lose_everything():
    x = normal(29, 1, 8 * 4, 3)
    assert dycoke_budget(8, 4, 0.8) == dycoke_budget(8, 4, 1.0) == 8
    found = dycoke(x, budget=8, grid=(8, 1, 4))
    assert found.keep[0].tolist() == [0, 1, 2, 3, 16, 17, 18, 19]


def test_dycoke_refuses_what_does_not_fit():
    x = normal(6, 1, 16, 3)
    with pytest.raises(ArgumentError, match="^budget.*4 to 16"):
        dycoke(x, budget=3, grid=(4, 2, 2))
    with pytest.raises(ArgumentError, match="^grid"):
        dycoke(x, budget=8, grid=(3, 2, 2))
    with pytest.raises(ArgumentError, match="^merging_ratio"):
        dycoke_budget(4, 4, 1.1)
    with pytest.raises(ArgumentError, match="^frames"):
        dycoke_budget(0, 4, 0.5)
    with pytest.raises(ArgumentError, match="^places"):
        dycoke_budget(4, 0, 0.5)


def test_reselection_follows_attention():
    step = jax.jit(functools.partial(reselect, budget=2))
    state = start_reselection(2, 4)
    rows = jnp.asarray([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    state = step(state, rows)
    first_choice = [[True, True, False, False], [False, False, True, True]]
    assert state.chosen.tolist() == first_choice and state.renewed.tolist() == [1, 1]
    # Slightly other attention changes nothing; the other row turns around.
    moved = jnp.asarray([[0.35, 0.25, 0.3, 0.1], [0.4, 0.3, 0.2, 0.1]])
    state = step(state, moved)
    assert state.chosen.tolist() == [first_choice[0], first_choice[0]]
    assert state.renewed.tolist() == [1, 2]
    # The step before counts, not that of the choice: a slow drift never chooses anew.
    third = jnp.asarray([[0.2, 0.2, 0.45, 0.1], moved[1].tolist()])
    cosine = cosines(jnp.stack([moved[0], third[0]]))[0, 1]
    assert cosine > 0.9 > cosines(jnp.stack([rows[0], third[0]]))[0, 1]
    state = step(state, third)
    assert state.chosen[0].tolist() == first_choice[0]
    with pytest.raises(ArgumentError, match="^budget"):
        reselect(state, rows, budget=5)
    with pytest.raises(ArgumentError, match="^threshold"):
        reselect(state, rows, budget=2, threshold=1.5)


# A-ToMe ------------------------


def test_neighbours_merge_in_runs_and_keep_their_order():
    x = jnp.asarray([[[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [-1, 0], [-1, 0.1]]])
    found = adjacent(x, budget=3)
    assert found.assign.tolist() == [[0, 0, 0, 1, 2, 2]]
    np.testing.assert_allclose(found.tokens[0, 0], [1, 0.1], atol=1e-6)
    assert found.position[0, :, 0].tolist() == [1, 3, 4.5]
    # A threshold merges more than the budget asks for.
    found = adjacent(x, budget=6, threshold=0.9)
    assert found.valid[0].tolist() == [True] * 3 + [False] * 3
    with pytest.raises(ArgumentError, match="^threshold"):
        adjacent(x, budget=3, threshold=2.0)
