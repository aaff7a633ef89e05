"""What every method that makes rows for a new vocabulary keeps to."""

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.text.overlap import overlap
from tests.contracts.embeddings import METHODS, rows, run, vocabularies

EVERY = pytest.mark.parametrize("name", METHODS)


def bits(array):
    return np.asarray(array).view(np.uint16 if array.dtype == jnp.bfloat16 else None)


@EVERY
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_shared_rows_are_copied_bit_for_bit(name, dtype):
    source, target = vocabularies()
    old = rows(source, dtype=dtype)
    made_in, made_out, report = run(name, old, target)
    shared = overlap(source, target)
    assert 0 < len(shared.new_ids) < target.size
    for made, before, matrix in (
        (made_in, old.input, "input"),
        (made_out, old.output, "output"),
    ):
        assert made.shape == (target.size, 6) and made.dtype == dtype
        assert np.isfinite(np.asarray(made, np.float32)).all()
        copied = bits(made)[shared.target_ids]
        np.testing.assert_array_equal(copied, bits(before)[shared.source_ids])
        assert sum(report.counts(matrix).values()) == target.size
    expected = np.full(target.size, -1)
    expected[shared.target_ids] = shared.source_ids
    np.testing.assert_array_equal(report.copied_from, expected)
    assert (report.source_hash, report.target_hash) == (source.hash, target.hash)


@EVERY
def test_equal_vocabularies_give_the_same_matrix(name):
    _, target = vocabularies()
    old = rows(target, spare=0)
    made_in, made_out, report = run(name, old, target)
    np.testing.assert_array_equal(made_in, old.input)
    np.testing.assert_array_equal(made_out, old.output)
    assert set(report.counts()) == {"copied", "role"} and not report.warnings


@EVERY
def test_tied_rows_have_no_output_and_the_same_input(name):
    source, target = vocabularies()
    both, _, _ = run(name, rows(source), target)
    made, none, report = run(name, rows(source, tied=True), target)
    assert none is None and set(report.how) == {"input"}
    np.testing.assert_array_equal(made, both)


@EVERY
def test_the_key_decides(name):
    source, target = vocabularies()
    first, again, other = (
        np.asarray(run(name, rows(source, tied=True), target, seed)[0])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    shared = overlap(source, target).target_ids
    np.testing.assert_array_equal(first[shared], other[shared])


@EVERY
def test_matrices_are_solved_apart(name):
    """What stands in the head changes nothing of the input."""
    source, target = vocabularies()
    old = rows(source)
    made, _, _ = run(name, old, target)
    scaled, _, _ = run(name, old.replace(output=7 * old.output), target)
    np.testing.assert_array_equal(made, scaled)
