"""The selective scan against float64 NumPy, in blocks, with masks and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.ops.selective_scan import (
    advance_state,
    selective_scan,
    selective_scan_reference,
)
from jtok.testing import assert_close

INNER, STATE = 5, 3


def brute(x, dt, A, B, C, D=None, *, state=None, mask=None):
    """Float64, one number at a time."""
    x, dt, A, B, C = (np.asarray(part, np.float64) for part in (x, dt, A, B, C))
    batch, seq, inner = x.shape
    held = np.zeros((batch, *A.shape)) if state is None else np.array(state, np.float64)
    y = np.zeros(x.shape)
    for b, t, i in np.ndindex(batch, seq, inner):
        if mask is not None and not mask[b, t]:
            continue
        for n in range(A.shape[1]):
            decay = np.exp(dt[b, t, i] * A[i, n])
            held[b, i, n] = (
                decay * held[b, i, n] + dt[b, t, i] * x[b, t, i] * B[b, t, n]
            )
            y[b, t, i] += held[b, i, n] * C[b, t, n]
        if D is not None:
            y[b, t, i] += float(D[i]) * x[b, t, i]
    return y, held


def draw(seq, batch=2, seed=0, dtype=jnp.float32):
    """x, dt, A, B, C, D; step sizes from 0 to far above 1."""
    keys = jax.random.split(jax.random.key(seed), 6)
    normal = lambda key, *shape: jax.random.normal(key, shape).astype(dtype)
    dt = jnp.exp(2 * normal(keys[1], batch, seq, INNER) - 2).astype(dtype)
    return (
        normal(keys[0], batch, seq, INNER),
        dt,
        -jnp.exp(normal(keys[2], INNER, STATE)),
        normal(keys[3], batch, seq, STATE),
        normal(keys[4], batch, seq, STATE),
        normal(keys[5], INNER),
    )


def first_state(batch=2):
    return jax.random.normal(jax.random.key(9), (batch, INNER, STATE))


def holes(seq, batch=2):
    return np.random.default_rng(seq).random((batch, seq)) < 0.6


scan = jax.jit(selective_scan, static_argnames=("block", "parallel"))
slow = jax.jit(selective_scan_reference)
advance = jax.jit(advance_state, static_argnames="block")


def check_all(given, wanted, **options):
    runs = {
        "one by one": functools.partial(scan, parallel=False),
        "side by side": functools.partial(scan, parallel=True),
        "reference": slow,
    }
    for name, found in runs.items():
        y, state = found(*given, **options)
        assert_close(y, wanted[0].astype(np.float32), name=name)
        assert_close(state, wanted[1].astype(np.float32), name=name)
        assert state.dtype == jnp.float32


@pytest.mark.parametrize("seq", [1, 16, 37])
def test_equals_the_definition(seq):
    given, state = draw(seq), first_state()
    mask = jnp.asarray(holes(seq))
    check_all(given, brute(*given))
    check_all(
        given[:5], brute(*given[:5], state=state, mask=mask), state=state, mask=mask
    )


@pytest.mark.parametrize("block, parallel", [(1, False), (8, True), (64, False)])
def test_blocks_change_nothing(block, parallel):
    given, state, mask = draw(21), first_state(), jnp.asarray(holes(21))
    wanted = brute(*given, state=state, mask=mask)
    y, last = scan(*given, state=state, mask=mask, block=block, parallel=parallel)
    assert_close(y, wanted[0].astype(np.float32))
    assert_close(last, wanted[1].astype(np.float32))
    x, dt, A, B = given[:4]
    found = advance(state, x, dt, A, B, mask=mask, block=block)
    assert_close(found, wanted[1].astype(np.float32))


def test_no_steps():
    given, state = draw(0), first_state()
    y, last = selective_scan(*given, state=state)
    assert y.shape == (2, 0, INNER)
    np.testing.assert_array_equal(last, state)
    np.testing.assert_array_equal(advance_state(state, *given[:4]), state)
    assert not selective_scan(*given)[1].any()


def test_masked_steps_do_not_exist():
    """The same as the sequence without them, and NaN there reaches nothing."""
    given, state = draw(20, batch=1), first_state(1)
    mask = holes(20, 1)
    short = [part[:, mask[0]] if part.ndim == 3 else part for part in given]
    wanted, last = slow(*short, state=state)
    broken = [
        jnp.where(mask[..., None], part, jnp.nan) if part.ndim == 3 else part
        for part in given
    ]
    y, found = scan(*broken, state=state, mask=jnp.asarray(mask))
    assert_close(y[:, mask[0]], wanted)
    assert_close(found, last)
    assert not y[:, ~mask[0]].any()


def test_a_row_without_steps_keeps_every_bit():
    given = draw(20)
    state = first_state().at[0, 0, 0].set(-0.0)
    mask = jnp.zeros((2, 20), bool).at[1].set(True)
    _, last = scan(*given, state=state, mask=mask)
    moved = advance(state, *given[:4], mask=mask)
    for found in (last, moved):
        assert found[0].tobytes() == state[0].tobytes()
        assert not np.array_equal(found[1], state[1])


@pytest.mark.parametrize("masked, parallel", [(True, False), (False, True)])
def test_gradients_are_those_of_the_definition(masked, parallel):
    given, state = draw(21), first_state()
    mask = jnp.asarray(holes(21)) if masked else None

    weight = draw(21, seed=1)[0]

    def loss(run, given, state):
        y, last = run(*given, state=state, mask=mask)
        return jnp.sum(y * weight) + jnp.sum(last * first_state())

    def gradient(run):
        run = functools.partial(loss, run)
        return jax.tree.leaves(jax.jit(jax.grad(run, argnums=(0, 1)))(given, state))

    fast = functools.partial(selective_scan, parallel=parallel)
    wanted = gradient(selective_scan_reference)
    for got, want in zip(gradient(fast), wanted, strict=True):
        assert np.abs(want).max() > 1e-2
        # Sums over 21 steps that cancel.
        assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_gradients_stay_finite_where_masked_inputs_are_not():
    given, mask = draw(9), jnp.asarray(holes(9))
    bad = [jnp.where(mask[..., None], part, jnp.inf) for part in given[:2]]
    loss = lambda x, dt: jnp.sum(selective_scan(x, dt, *given[2:], mask=mask)[0])
    for grad in jax.jit(jax.grad(loss, argnums=(0, 1)))(*bad):
        assert np.isfinite(grad).all()
        assert not grad[~mask].any() and grad[mask].any()


def test_bfloat16_is_float32_inside():
    given = draw(40, dtype=jnp.bfloat16)
    wide = [part.astype(jnp.float32) for part in given]
    y, state = scan(*given)
    wanted, last = slow(*wide)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    assert_close(state, last)
    assert_close(y, wanted)  # one rounding, of the output


def test_equal_inputs_give_equal_channels():
    x = jnp.ones((1, 33, 4))
    rates = jnp.full((4, 2), -0.5)
    y, state = scan(x, x, rates, x[..., :2], x[..., :2])
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[..., :1], y.shape))
    assert np.unique(state).size == 1


@pytest.mark.parametrize("gradient, parallel", [(False, True), (True, False)])
def test_memory_does_not_hold_the_states_of_a_sequence(gradient, parallel):
    """One state a block for the gradient; without it, one block."""
    seq, inner, state, block = 1024, 16, 64, 16
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (
            (1, seq, inner),
            (1, seq, inner),
            (inner, state),
            (1, seq, state),
            (1, seq, state),
        )
    ]
    fast = functools.partial(selective_scan, block=block, parallel=parallel)
    run = lambda *given: jnp.sum(fast(*given)[0] ** 2)
    run = jax.grad(run, argnums=(0, 1, 2, 3, 4)) if gradient else run
    used = jax.jit(run).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    whole = 4 * seq * inner * state
    assert used < whole / 2, f"{used} of {whole} bytes"


def test_bad_blocks():
    given = draw(3)
    with pytest.raises(ArgumentError, match="block: got 0, expected at least 1"):
        selective_scan(*given, block=0)
    with pytest.raises(ArgumentError, match="block: got 0, expected at least 1"):
        advance_state(first_state(), *given[:4], block=0)
