"""Plans: what they do to vectors, sizes, positions and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from jtok.errors import ArgumentError
from jtok.ops import energy, identity_plan, join_plan, keep_plan, unit_rows
from jtok.testing import assert_close

BATCH, SEQ, DIM = 2, 9, 3
MERGE = jax.jit(lambda plan, x, size: plan.merge(x, size))
JOIN = jax.jit(join_plan, static_argnums=2)


def random_plan(seed, rows=5, padded=False):
    """Some tokens join others; every row has one that stays."""
    rng = np.random.default_rng(seed)
    joins = np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))
    valid = np.ones((BATCH, SEQ), bool)
    if padded:
        valid[1, -3:] = False
    for row in range(BATCH):
        real = np.flatnonzero(valid[row])
        stay = rng.choice(real, min(rows, len(real)), replace=False)
        for token in real:
            if token not in stay:
                joins[row, token] = rng.choice(stay)
    order = rng.permutation(SEQ).astype(np.int32)
    order = jnp.broadcast_to(jnp.asarray(order), (BATCH, SEQ))
    valid = jnp.asarray(valid)
    return JOIN(jnp.asarray(joins), order, rows, valid=valid), valid


def vectors(seed, dtype=jnp.float32):
    made = np.random.default_rng(seed + 100).normal(size=(BATCH, SEQ, DIM))
    return jnp.asarray(made, dtype)


@given(st.integers(0, 10**6), st.booleans())
def test_merging_conserves_mass(seed, padded):
    plan, valid = random_plan(seed, padded=padded)
    x = vectors(seed)
    size = jnp.asarray(np.random.default_rng(seed).integers(1, 5, (BATCH, SEQ)))
    size = size.astype(jnp.float32) * valid
    merged, sizes = MERGE(plan, x, size)
    np.testing.assert_allclose(sizes.sum(1), size.sum(1))
    want = (x * size[..., None]).sum(1)
    np.testing.assert_allclose((merged * sizes[..., None]).sum(1), want, atol=1e-5)
    assert plan.size.sum() == valid.sum()
    np.testing.assert_array_equal(plan.valid, plan.size > 0)


@pytest.mark.parametrize("how", ["mean", "sum", "max", "weighted"])
def test_each_rule_is_that_of_a_loop(how):
    plan, valid = random_plan(3, padded=True)
    x, size = vectors(3), np.arange(1, BATCH * SEQ + 1).reshape(BATCH, SEQ)
    got, _ = plan.merge(x, jnp.asarray(size, jnp.float32), how=how)
    for row in range(BATCH):
        for out in range(plan.num_rows):
            members = np.flatnonzero(np.asarray(plan.assign)[row] == out)
            some = np.asarray(x)[row, members]
            if not members.size:
                want = np.zeros(DIM)
            elif how == "weighted":
                want = np.average(some, axis=0, weights=size[row, members])
            else:
                want = getattr(np, how)(some, axis=0)
            np.testing.assert_allclose(got[row, out], want, atol=1e-6)
    assert not np.isin(np.flatnonzero(~np.asarray(valid)[1]), plan.keep[1]).any()


def test_unmerging_is_constant_in_groups_and_stays_so():
    plan, _ = random_plan(5)
    merged, _ = plan.merge(vectors(5), how="mean")
    back = plan.unmerge(merged)
    np.testing.assert_allclose(plan.merge(back, how="mean")[0], merged, atol=1e-6)
    pruned = plan.prune(vectors(5))
    at = np.asarray(plan.keep)
    for row in range(BATCH):
        np.testing.assert_array_equal(pruned[row], vectors(5)[row, at[row]])


def test_plans_follow_each_other():
    first, _ = random_plan(7, rows=6)
    joins = jnp.asarray([[0, 0, 2, 2, 4, 5], [0, 1, 1, 3, 3, 3]], jnp.int32)
    order = jnp.broadcast_to(jnp.arange(6), (BATCH, 6))
    second = join_plan(joins, order, 4)
    both = first.then(second)
    x = vectors(7)
    one, sizes = first.merge(x)
    two, total = second.merge(one, sizes)
    direct, direct_sizes = both.merge(x)
    np.testing.assert_allclose(two, direct, atol=1e-6)
    np.testing.assert_array_equal(total, direct_sizes)
    np.testing.assert_array_equal(both.size, direct_sizes)
    np.testing.assert_array_equal(both.source().sum(-1), direct_sizes)
    # A row stands for the token that the row that it kept stood for.
    kept = np.asarray(second.keep)
    want = np.take_along_axis(np.asarray(first.keep), np.maximum(kept, 0), 1)
    np.testing.assert_array_equal(both.keep, np.where(kept >= 0, want, -1))


def test_positions_are_gathered_or_averaged():
    joins = jnp.asarray([[0, 0, 2, 2, 4]], jnp.int32)
    order = jnp.arange(5)[None]
    grid = jnp.asarray([[[0, 0], [0, 4], [1, 0], [1, 1], [2, 2]]], jnp.float32)
    size = jnp.asarray([[1.0, 3.0, 1.0, 1.0, 7.0]])
    plan = join_plan(joins, order, 3, position=grid, size=size)
    assert plan.position[0].tolist() == [[0, 3], [1, 0.5], [2, 2]]
    kept = keep_plan(jnp.asarray([[4, 0, -1]], jnp.int32), 5, position=grid)
    assert kept.position[0, :2].tolist() == [[2, 2], [0, 0]]
    assert kept.valid.tolist() == [[True, True, False]]
    assert kept.assign.tolist() == [[1, -1, -1, -1, 0]]


def test_more_that_stay_than_rows_are_dropped_from_the_end():
    joins = jnp.asarray([[0, 1, 2, 1]], jnp.int32)
    plan = join_plan(joins, jnp.asarray([[3, 1, 2, 0]]), 2)
    assert plan.keep.tolist() == [[1, 2]]
    assert plan.assign.tolist() == [[-1, 0, 1, 0]]


def test_identity_and_padding():
    plan = identity_plan(1, 3, valid=jnp.asarray([[True, False, True]]))
    x = jnp.arange(6.0).reshape(1, 3, 2)
    merged, size = plan.merge(x)
    assert merged[0, 1].tolist() == [0, 0] and size.tolist() == [[1, 0, 1]]
    assert plan.keep.tolist() == [[0, -1, 2]]
    assert plan.any_of(jnp.asarray([[True, True, False]])).tolist() == [
        [True, False, False]
    ]


def test_gradients_pass_through_the_mean_and_narrow_types_are_summed_wide():
    plan, _ = random_plan(11)
    grad = jax.grad(lambda x: plan.merge(x)[0].sum())(vectors(11))
    share = 1.0 / np.take_along_axis(np.asarray(plan.size), np.asarray(plan.assign), 1)
    np.testing.assert_allclose(grad, np.repeat(share[..., None], DIM, 2), rtol=1e-6)
    many = join_plan(jnp.zeros((1, 600), jnp.int32), jnp.zeros((1, 600)), 1)
    ones = jnp.ones((1, 600, 1), jnp.bfloat16)
    merged, size = many.merge(ones, how="sum")
    assert size.item() == 600 and merged.dtype == jnp.bfloat16
    assert merged.item() == 600


def test_rows_of_the_batch_are_shared_by_devices():
    joins = jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 12)), jnp.int32)
    joins = joins.at[:, :4].set(jnp.arange(4))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 12, 4)), jnp.float32)
    order = jnp.broadcast_to(jnp.arange(12), (8, 12))
    run = jax.jit(lambda j, o, x: join_plan(j, o, 4).merge(x)[0])
    want = run(joins, order, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = [jax.device_put(value, rows) for value in (joins, order, x)]
    assert_close(run(*placed), want)


@pytest.mark.parametrize("kernel", ["elu", "gaussian", "paper"])
@pytest.mark.parametrize("block", [4, 256])
def test_energy_is_that_of_a_loop(kernel, block):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(2, 11, 4)), jnp.float32)
    valid = np.ones((2, 11), bool)
    valid[0, 7:] = False
    got = energy(x, 0.3, kernel=kernel, block=block, valid=jnp.asarray(valid))
    for row in range(2):
        unit = np.asarray(x)[row] / np.linalg.norm(x[row], axis=1, keepdims=True)
        unit = unit[valid[row]]
        cosine = unit @ unit.T
        if kernel == "gaussian":
            value = np.exp(-(((1 - cosine) / 0.7) ** 2) / 2) / (
                0.7 * np.sqrt(2 * np.pi)
            )
        else:
            above = cosine if kernel == "paper" else cosine - 0.3
            value = np.where(cosine > 0.3, above, np.expm1(cosine - 0.3))
        np.testing.assert_allclose(got[row][valid[row]], value.mean(1), atol=1e-6)
    assert np.isneginf(np.asarray(got)[~valid]).all()


def test_energy_never_holds_all_pairs():
    x = jax.ShapeDtypeStruct((1, 4096, 16), jnp.float32)
    run = jax.jit(lambda x: energy(x, 0.5, block=128))
    used = run.lower(x).compile().memory_analysis().temp_size_in_bytes
    assert used < 4096 * 4096 * 4 / 4


def test_unit_rows_of_zeros_are_zeros():
    made = unit_rows(jnp.asarray([[0.0, 0.0], [0.0, 2.0]], jnp.bfloat16))
    assert made.dtype == jnp.float32 and made.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda plan: plan.merge(jnp.ones((2, 8, 3))), "x"),
        (lambda plan: plan.merge(vectors(0), jnp.ones((2, 8))), "size"),
        (lambda plan: plan.merge(vectors(0), jnp.ones((2, SEQ, 1))), "size"),
        (lambda plan: plan.merge(vectors(0), how="mode"), "how"),
        (lambda plan: plan.unmerge(jnp.ones((2, 4, 3))), "rows"),
        (lambda plan: plan.prune(jnp.ones((2, 8, 3))), "x"),
        (lambda plan: plan.then(identity_plan(2, 4)), "later"),
        (lambda plan: join_plan(plan.assign, plan.assign, 0), "num_rows: got 0"),
        (lambda plan: join_plan(plan.assign, plan.assign, 10), "num_rows: got 10"),
        (lambda plan: keep_plan(plan.keep, 3), "keep: got '5 rows'"),
        (lambda plan: energy(vectors(0), 0.5, kernel="relu"), "kernel"),
        (lambda plan: energy(vectors(0), 0.5, block=0), "block: got 0"),
    ],
)
def test_bad_input(call, said):
    plan, _ = random_plan(0)
    with pytest.raises((ArgumentError, TypeError), match=said):
        call(plan)
