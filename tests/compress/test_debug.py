"""Vectors that are not finite are refused where one asks for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.compress import checked, pitome, schedule, tome
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.testing import tiny_model

METRIC = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4)), jnp.float32)
BAD = METRIC.at[1, 3, 2].set(jnp.nan).at[0, 0, 0].set(jnp.inf)


@pytest.mark.parametrize("method", [tome, pitome], ids=["tome", "pitome"])
def test_finite_vectors_give_the_same_plan(method):
    run = jax.jit(lambda x: (checked(method)(x, remove=2), method(x, remove=2)))
    got, want = run(METRIC)
    np.testing.assert_array_equal(got.assign, want.assign)


def test_others_are_counted():
    with pytest.raises(ArgumentError, match="metric: got '2 numbers that are not"):
        checked(tome)(BAD, remove=2)


def test_inside_jit_the_runtime_says_so():
    run = jax.jit(lambda x: checked(tome)(x, remove=2).assign)
    with pytest.raises(Exception, match="2 numbers that are not finite"):
        jax.block_until_ready(run(BAD))
        jax.effects_barrier()


def test_a_schedule_of_a_checked_method():
    model = tiny_model(family="bert")
    run = jax.jit(
        lambda ids: model(ids, compress=schedule(checked(pitome), keep=0.8)).hidden
    )
    assert run(jnp.arange(5, 17)[None]).shape[1] < 12


def test_what_is_no_method():
    with pytest.raises(ArgumentTypeError, match="method: got str"):
        checked("tome")
