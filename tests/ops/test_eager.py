"""Functions that compile as a whole where no caller compiles them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.ops.eager import one_program


@pytest.fixture
def traced():
    """A decorated function, and what it was traced with."""
    seen = []

    @one_program
    def scaled(x, times=1, *, more=None):
        """Doc."""
        seen.append(times)
        if times == 0:
            raise ValueError("times: got 0")
        return jnp.sum(x) * times + (0 if more is None else more["of"])

    return scaled, seen


def test_a_program_is_traced_once_for_each_set_of_static_arguments(traced):
    scaled, seen = traced
    x = jnp.arange(3.0)
    assert [float(scaled(x, 2)), float(scaled(x + 1, 2))] == [6.0, 12.0]
    assert float(scaled(np.arange(3.0), times=2, more={"of": jnp.float32(1)})) == 7.0
    assert seen == [2, 2]


def test_equal_numbers_of_other_types_are_other_programs(traced):
    scaled, seen = traced
    for times in (1, True, 1.0, np.int64(1)):
        scaled(jnp.ones(2), times)
    assert [type(times) for times in seen] == [int, bool, float, np.int64]


def test_an_error_is_raised_each_time(traced):
    scaled, seen = traced
    for _ in range(2):
        with pytest.raises(ValueError, match="times: got 0"):
            scaled(jnp.ones(2), 0)
    assert seen == [0, 0]


def test_a_static_argument_without_a_hash_is_no_error(traced):
    scaled, seen = traced
    assert float(scaled(jnp.ones(2), 3, more={"of": 1})) == 7.0
    assert seen == [3]


def test_within_a_trace_it_is_the_function(traced):
    scaled, _ = traced
    plain = scaled.__wrapped__
    x = jnp.arange(3.0)
    assert str(jax.make_jaxpr(scaled)(x)) == str(jax.make_jaxpr(plain)(x))
    assert jax.grad(scaled)(x).tolist() == [1.0, 1.0, 1.0]
    assert scaled.__doc__ == "Doc." and scaled.__name__ == "scaled"
