"""Laws of sparse combinations, whichever way they are found."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import NamedSharding, PartitionSpec

from jtok import embed
from jtok.embed import pursuit
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.testing import assert_close

TARGETS, ATOMS, DIM, STEPS = 5, 30, 12, 6
WAYS = pytest.mark.parametrize("way", ["direct", "gram"])


def drawn(seed, *, count=ATOMS, dim=DIM, targets=TARGETS):
    """Targets and atoms of very unequal lengths."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(targets + count, dim))
    rows *= np.exp(rng.normal(size=(len(rows), 1)))
    return jnp.asarray(rows[:targets], jnp.float32), jnp.asarray(
        rows[targets:], jnp.float32
    )


@functools.lru_cache
def solver(way, normalize):
    return functools.partial(
        embed.orthogonal_pursuit, k=STEPS, implementation=way, normalize_atoms=normalize
    )


@WAYS
@settings(max_examples=8)
@given(seed=st.integers(0, 2**20), normalize=st.booleans())
def test_what_a_pursuit_is(way, seed, normalize):
    targets, atoms = drawn(seed)
    found = solver(way, normalize)(targets, atoms)
    a, t = (np.asarray(x, np.float64) for x in (atoms, targets))
    lengths = np.linalg.norm(a, axis=1)
    for row in range(TARGETS):
        chosen = np.asarray(found.indices)[row]
        assert len(set(chosen.tolist())) == STEPS
        residual = t[row]
        for step in range(STEPS):  # each choice is the best one for what is left
            score = np.abs(a @ residual) / (lengths if normalize else 1.0)
            score[chosen[:step]] = -1
            assert score[chosen[step]] >= score.max() * (1 - 1e-4)
            support = a[chosen[: step + 1]]
            fit = np.linalg.lstsq(support.T, t[row], rcond=None)[0]
            residual = t[row] - fit @ support
            size = np.linalg.norm(residual)
            assert abs(found.residuals[row, step + 1] - size) < 1e-4 * lengths.max()
        assert_close(found.coefficients[row], fit, rtol=1e-2, atol=1e-3)
        left = t[row] - np.asarray(found.coefficients)[row] @ a[chosen]
        along = np.abs(a[chosen] @ left) / lengths[chosen]
        assert along.max() < 1e-4 * np.linalg.norm(t[row])
    assert (np.diff(np.asarray(found.residuals), axis=1) <= 1e-5).all()


@WAYS
def test_one_step_is_the_best_atom(way):
    targets, atoms = drawn(0)
    found = embed.orthogonal_pursuit(targets, atoms, 1, implementation=way)
    products = np.asarray(targets) @ np.asarray(atoms).T
    best = np.abs(products).argmax(1)
    np.testing.assert_array_equal(found.indices[:, 0], best)
    share = products[np.arange(TARGETS), best] / (np.asarray(atoms)[best] ** 2).sum(1)
    assert_close(found.coefficients[:, 0], share, rtol=1e-5, atol=1e-6)


@WAYS
def test_fewer_steps_are_a_prefix_and_scale_and_order_do_not_count(way):
    targets, atoms = drawn(1)
    solve = solver(way, False)
    found = solve(targets, atoms)
    fewer = embed.orthogonal_pursuit(targets, atoms, 3, implementation=way)
    np.testing.assert_array_equal(found.indices[:, :3], fewer.indices)
    scaled = solve(4 * targets, atoms)
    np.testing.assert_array_equal(found.indices, scaled.indices)
    assert_close(4 * found.coefficients, scaled.coefficients, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(ATOMS)
    moved = solve(targets, atoms[order])
    np.testing.assert_array_equal(order[np.asarray(moved.indices)], found.indices)


@WAYS
def test_equal_atoms_go_to_the_lower_index_and_zero_ones_never(way):
    targets, atoms = drawn(2)
    twice = jnp.concatenate([jnp.zeros((1, DIM)), atoms, atoms, jnp.zeros((1, DIM))])
    once = embed.orthogonal_pursuit(targets, atoms, STEPS, implementation=way)
    found = embed.orthogonal_pursuit(targets, twice, STEPS, implementation=way)
    np.testing.assert_array_equal(found.indices, 1 + np.asarray(once.indices))
    few = jnp.concatenate([atoms[:2], jnp.zeros((5, DIM))])
    found = embed.orthogonal_pursuit(targets, few, 4, implementation=way)
    assert set(np.unique(found.indices)) <= {-1, 0, 1}
    assert np.isfinite(np.asarray(found.coefficients)).all()


@WAYS
def test_maps_and_full_rank(way):
    """A linear image of the atoms gives that of the approximation."""
    targets, atoms = drawn(3, dim=6)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)
    found = embed.orthogonal_pursuit(targets, atoms, 6, implementation=way)
    made = embed.combine(found, atoms @ image)
    scale = float(jnp.abs(targets).max())
    assert_close(made, targets @ image, rtol=1e-3, atol=1e-3 * scale)
    assert_close(embed.combine(found, atoms), targets, rtol=1e-3, atol=1e-4 * scale)


def test_both_ways_and_blocks_choose_alike(monkeypatch):
    """More steps than two stages of the second way have."""
    targets, atoms = drawn(4, count=300, dim=60, targets=7)
    direct = embed.orthogonal_pursuit(targets, atoms, 36, implementation="direct")
    gram = embed.orthogonal_pursuit(targets, atoms, 36, implementation="gram")
    np.testing.assert_array_equal(direct.indices, gram.indices)
    assert_close(direct.coefficients, gram.coefficients, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(pursuit, "_block", lambda targets, atoms: 128)
    blocks = embed.orthogonal_pursuit(targets, atoms, 36, implementation="direct")
    np.testing.assert_array_equal(direct.indices, blocks.indices)
    assert_close(direct.coefficients, blocks.coefficients, rtol=1e-3, atol=1e-3)


@WAYS
def test_an_atom_without_a_direction_of_its_own_is_passed_over(way):
    """The second atom is the first but for a millionth, and all that is left."""
    atoms = jnp.array([[1.0, 0.0, 0.0], [1.0, 1e-6, 0.0]])
    target = jnp.array([[2.0, 0.5, 0.3]])
    found = embed.orthogonal_pursuit(target, atoms, 2, implementation=way)
    assert sorted(found.indices[0].tolist())[0] == -1
    assert_close(jnp.abs(found.coefficients).sum(), 2.0, rtol=1e-4, atol=1e-5)


def test_large_problems_are_compared_in_blocks():
    wide, many = jnp.zeros((512, 1)), jnp.zeros((400_000, 1))
    assert pursuit._block(wide, many) == 2**26 // 512
    assert pursuit._block(wide, many[:1000]) is None


def test_targets_and_atoms_may_be_split_over_devices():
    targets, atoms = drawn(5, targets=8, count=40)
    whole = embed.orthogonal_pursuit(targets, atoms, 4, implementation="direct")
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=auto)
    place = lambda x, axis: jax.device_put(x, NamedSharding(mesh, PartitionSpec(axis)))
    split = embed.orthogonal_pursuit(place(targets, "data"), place(atoms, "model"), 4)
    np.testing.assert_array_equal(split.indices, whole.indices)
    assert_close(split.coefficients, whole.coefficients, rtol=1e-4, atol=1e-5)


def test_plain_pursuit_may_choose_again_and_loses_length():
    atoms = jnp.array([[1.0, 0.0], [0.8, 0.6]])
    found = embed.matching_pursuit(jnp.array([[1.0, 1.0]]), atoms, 2)
    assert found.indices.tolist() == [[1, 0]]
    assert (np.diff(np.asarray(found.residuals)) < 0).all()
    back = embed.matching_pursuit(-atoms[1:], atoms, 1)
    assert back.indices.tolist() == [[1]]
    signed = embed.matching_pursuit(-atoms[1:], atoms, 1, compat="official")
    assert signed.indices.tolist() == [[1]] or float(signed.coefficients[0, 0]) < 0


def test_the_official_plain_pursuit_takes_no_atom_twice():
    """In NumPy: signed products, and -inf for those that were chosen."""
    targets, atoms = drawn(6)
    found = embed.matching_pursuit(targets, atoms, 12, compat="official")
    assert np.asarray(embed.matching_pursuit(targets, atoms, 12).indices).shape == (
        len(targets), 12,
    )  # fmt: skip
    for row, target in enumerate(np.asarray(targets, np.float64)):
        left, used, points = target.copy(), [], np.asarray(atoms, np.float64)
        for step in range(12):
            products = points @ left
            products[used] = -np.inf
            best = int(products.argmax())
            share = products[best] / (points[best] ** 2).sum()
            left -= share * points[best]
            used.append(best)
            assert int(found.indices[row, step]) == best
            assert_close(found.coefficients[row, step], share, rtol=1e-3, atol=1e-4)
        assert len(set(used)) == 12


def test_what_is_refused():
    targets, atoms = drawn(6)
    with pytest.raises(ArgumentError, match="k: got 31, expected at most 30"):
        embed.orthogonal_pursuit(targets, atoms, 31)
    with pytest.raises(ArgumentError, match="k: got 0"):
        embed.orthogonal_pursuit(targets, atoms, 0)
    with pytest.raises(ArgumentError, match="atoms: got 'width 11', expected 12"):
        pursuit._checked(targets, atoms[:, :11], 2)
    with pytest.raises(ArgumentError, match="k: got 40"):
        embed.matching_pursuit(targets, atoms, 40)
    with pytest.raises(ArgumentError, match="heads: got 5"):
        embed.rope_pursuit(targets, atoms, 2, heads=5)
    with pytest.raises((ArgumentTypeError, TypeError)):
        embed.orthogonal_pursuit(targets.astype(jnp.int32), atoms, 2)
