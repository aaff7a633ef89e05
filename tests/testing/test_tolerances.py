import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.testing import assert_close, tolerance


def test_integers_compare_exactly_however_large():
    assert tolerance("int32") == (0.0, 0.0)
    big = 2**60
    assert_close(np.array([big]), np.array([big]))
    with pytest.raises(AssertionError, match="expected"):
        assert_close(np.array([big]), np.array([big + 1]))


def test_the_coarser_dtype_decides():
    assert_close(jnp.array([1.0], jnp.bfloat16), np.float32([1.01]))
    with pytest.raises(AssertionError):
        assert_close(np.float32([1.0]), np.float32([1.01]))
    with pytest.raises(AssertionError):
        assert_close(jnp.array([1.0], jnp.bfloat16), np.float32([1.1]))


def test_the_message_has_the_worst_index_and_both_values():
    actual = np.float32([[1, 2], [3, 4.5]])
    expected = np.float32([[1, 2.1], [3, 4]])
    with pytest.raises(AssertionError) as caught:
        assert_close(actual, expected, name="logits")
    message = str(caught.value)
    assert message.startswith("logits: 2 of 4 elements")
    assert "(1, 1)" in message and "4.5" in message and "4.0" in message


@pytest.mark.parametrize(
    "actual, expected", [(np.nan, 1.0), (np.inf, -np.inf), (1.0, np.inf), (np.inf, 1.0)]
)
def test_what_is_not_finite_must_match(actual, expected):
    with pytest.raises(AssertionError):
        assert_close(np.float32([actual]), np.float32([expected]))
    assert_close(np.float32([actual]), np.float32([actual]))


def test_shapes_must_match():
    with pytest.raises(AssertionError, match=r"shape \(1, 2\), expected \(2,\)"):
        assert_close(np.zeros((1, 2)), np.zeros(2))


def test_given_tolerances_replace_the_table():
    assert_close(np.float32([1.0]), np.float32([1.05]), atol=0.1)
    with pytest.raises(AssertionError):
        assert_close(np.float32([1.0]), np.float32([1.000001]), rtol=0.0, atol=0.0)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ArgumentError, match="^dtype: .*float8"):
        tolerance(jnp.float8_e4m3fn)
