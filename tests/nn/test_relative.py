"""Buckets of relative positions: official tables, directions, traced offsets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.errors import ArgumentError
from jtok.nn import relative_buckets, reset_buckets


def ernie_buckets(length, max_distance, num_buckets, reset):
    index = np.arange(length)
    buckets = relative_buckets(
        index[None, :] - index[:, None], num_buckets=num_buckets,
        max_distance=max_distance, upper="earlier",
    )  # fmt: skip
    if not reset:
        return buckets
    return reset_buckets(buckets, index == 0, index == 0, num_buckets=num_buckets)


@pytest.mark.parametrize("case", range(5))
def test_tables_of_the_official_code(golden, case):
    file = golden("ernie_gram/official_rel_pos.npz")
    length, max_distance, num_buckets, reset = file[f"rel_{case}_cfg"].tolist()
    found = ernie_buckets(length, max_distance, num_buckets, bool(reset))
    np.testing.assert_array_equal(found[file[f"rel_{case}_rows"]], file[f"rel_{case}"])


def test_opposite_offsets_differ_by_half_of_the_buckets():
    found = ernie_buckets(300, 128, 32, True)
    inner = found[1:, 1:].astype(int)
    off = ~np.eye(299, dtype=bool)
    np.testing.assert_array_equal(np.abs(inner - inner.T)[off], 16)
    assert np.all(found[0] == 16) and np.all(found[1:, 0] == 32)
    assert not np.any(inner == 16)


def test_edges_of_powers_of_two():
    # On an edge exactly: the larger bucket begins there.
    offsets = np.array([7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 10_000])
    found = relative_buckets(offsets, upper="earlier")
    assert found.tolist() == [7, 8, 9, 10, 11, 12, 13, 14, 15, 15, 15]


def test_t5_encoder_and_decoder():
    # Values of transformers' T5Attention._relative_position_bucket.
    offsets = np.array([-200, -100, -20, -8, -7, 0, 1, 7, 8, 20, 100, 200])
    both = [15, 15, 10, 8, 7, 0, 17, 23, 24, 26, 31, 31]
    assert relative_buckets(offsets).tolist() == both
    past = [31, 30, 17, 8, 7, 0, 0, 0, 0, 0, 0, 0]
    assert relative_buckets(offsets, bidirectional=False).tolist() == past


@given(st.integers(-400, 400), st.integers(1, 400))
def test_buckets_never_fall_with_the_distance(offset, more):
    near, far = relative_buckets(np.array([abs(offset), abs(offset) + more]))
    assert near <= far < 32


def test_traced_offsets_and_batches():
    positions = jnp.array([[0, 1, 2, 200], [0, 5, 5, 1]])
    offsets = positions[:, None, :] - positions[:, :, None]
    is_cls = jnp.array([[True, False, False, False]] * 2)

    def of(offsets, is_cls):
        return reset_buckets(relative_buckets(offsets, upper="earlier"), is_cls, is_cls)

    found = jax.jit(of)(offsets, is_cls)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, of(np.asarray(offsets), np.asarray(is_cls)))


def test_bad_input_is_refused():
    offsets = np.arange(3)
    for count in (0, 2, 5):
        with pytest.raises(ArgumentError, match="num_buckets: got"):
            relative_buckets(offsets, num_buckets=count)
    with pytest.raises(ArgumentError, match="max_distance: got 8"):
        relative_buckets(offsets, max_distance=8)
