"""Weights, neighbours and sums of the heuristic: goldens, laws, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtok.embed import (
    Mix,
    global_weights,
    hybrid,
    local_weights,
    mixed_rows,
    nearest_tokens,
)
from jtok.errors import ArgumentError
from jtok.testing import assert_close, load_golden

THRESHOLDS = {"th0p0": 0.0, "th0p3": 0.3, "th0p95": 0.95}


@pytest.fixture(scope="module")
def golden():
    return load_golden("tokenadapt/heuristics.npz")


def cosines(left, right):
    left = left / np.linalg.norm(left, axis=-1, keepdims=True)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    return np.einsum("na,npa->np", left, right)


def local_of(golden):
    """The local estimate from the golden's arrays; lengths in characters."""
    ids = golden["unique_decomposition"]
    old, new = golden["old_tokens"].tolist(), golden["unique_tokens"].tolist()
    lengths = np.array([len(token) for token in old])[ids]
    share = lengths / np.array([len(token) for token in new])[:, None]
    cosine = cosines(golden["ext_unique"], golden["ext_old"][ids])
    used = float(golden["temperature"]) + 1e-5
    np.testing.assert_allclose(golden["temperature_used"], used, rtol=1e-6)
    return local_weights(
        jnp.asarray(ids), jnp.asarray(ids >= 0), jnp.asarray(share, jnp.float32),
        jnp.asarray(cosine), temperature=float(golden["temperature"]),
    )  # fmt: skip


def near_of(golden, threshold):
    table = jnp.asarray(golden["ext_old"])
    everyone = jnp.ones(len(table), bool)
    queries, k = jnp.asarray(golden["ext_unique"]), int(golden["top_k"])
    ids, cosine, found = nearest_tokens(queries, table, everyone, k=k)
    temperature = float(golden["temperature"])
    mix = global_weights(
        ids, found, cosine, temperature=temperature, threshold=threshold
    )
    return mix, ids, cosine


def test_local_estimate_of_the_golden(golden):
    mix = local_of(golden)
    np.testing.assert_array_equal(mix.valid, golden["local_ok"] == 1)
    for side in ("in", "out"):
        rows = mixed_rows(mix, jnp.asarray(golden[f"old_{side}"]))
        assert_close(rows, golden[f"local_{side}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_global_estimate_of_the_golden(golden, name):
    mix, ids, cosine = near_of(golden, THRESHOLDS[name])
    np.testing.assert_array_equal(ids, golden["global_neighbours"])
    assert_close(cosine, golden["global_similarity"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mix.valid, golden[f"global_ok_{name}"] == 1)
    for side in ("in", "out"):
        rows = mixed_rows(mix, jnp.asarray(golden[f"old_{side}"]))
        assert_close(rows, golden[f"global_{side}_{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, side, weight",
    [
        ("final_tied", "in", None),
        ("final_untied_in", "in", None),
        ("final_untied_out", "out", None),
        ("final_tied_w0", "in", 0.0),
        ("final_tied_w1", "in", 1.0),
    ],
)
def test_whole_matrices_of_the_golden(golden, name, side, weight):
    """Copies by spelling, estimates elsewhere; random rows are not compared."""
    weight = float(golden["global_weight"]) if weight is None else weight
    mix = hybrid(local_of(golden), near_of(golden, 0.0)[0], weight)
    source = golden[f"old_{side}"]
    made = mixed_rows(mix, jnp.asarray(source))
    old, unique = golden["old_tokens"].tolist(), golden["unique_tokens"].tolist()
    shared = set(golden["shared_tokens"].tolist())
    compared = 0
    for id_, token in enumerate(golden["new_tokens"].tolist()):
        got = golden[name][id_]
        if token in shared:
            assert golden["row_kind"][id_] == 1
            np.testing.assert_array_equal(got, source[old.index(token)])
        elif bool(mix.valid[unique.index(token)]):
            assert_close(made[unique.index(token)], got, rtol=1e-5, atol=1e-6)
            compared += 1
    kinds = (golden["row_kind"] == 2).sum()
    assert compared == (golden["local_ok"].sum() if weight == 0 else kinds)
    assert golden[name].shape[0] % int(golden["pad_to_multiple_of"]) == 0


# ---- laws

SHAPE = (5, 4)


def random_mix(seed, **options):
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < 0.6
    cosine = rng.uniform(-1, 1, SHAPE).astype(np.float32)
    share = rng.uniform(0, 1, SHAPE).astype(np.float32)
    ids = rng.integers(0, 9, SHAPE).astype(np.int32)
    arrays = (jnp.asarray(x) for x in (ids, mask, share, cosine))
    return mask, share, cosine, local_weights(*arrays, **options)


@given(st.integers(0, 999), st.floats(0.01, 5.0))
def test_weights_sum_to_one_over_valid_pieces(seed, temperature):
    mask, _, _, mix = random_mix(seed, temperature=temperature)
    np.testing.assert_array_equal(mix.valid, mask.any(1))
    assert not np.asarray(mix.weights)[~mask].any()
    totals = np.asarray(mix.weights).sum(1)
    np.testing.assert_allclose(totals, mask.any(1), atol=1e-6)


@given(st.integers(0, 99))
def test_both_softmaxes_are_there(seed):
    """The formula in NumPy, in double precision."""
    mask, share, cosine, mix = random_mix(seed, temperature=0.3)
    for row in range(SHAPE[0]):
        kept = mask[row]
        inner = np.exp(cosine[row][kept].astype(np.float64))
        mean = (inner / inner.sum() + share[row][kept]) / 2
        outer = np.exp(mean / (0.3 + 1e-5))
        expected = outer / outer.sum()
        np.testing.assert_allclose(mix.weights[row][kept], expected, rtol=1e-5)


def test_one_piece_is_its_row_and_equal_pieces_are_the_mean():
    rows = jax.random.normal(jax.random.key(0), (9, 6))
    one = jnp.ones((2, 1))
    single = local_weights(jnp.array([[3], [5]]), one > 0, 0.2 * one, 0.7 * one)
    np.testing.assert_array_equal(mixed_rows(single, rows), rows[jnp.array([3, 5])])
    ids = jnp.array([[1, 4, 4, 8]])
    even = local_weights(ids, ids >= 0, jnp.full((1, 4), 0.25), jnp.full((1, 4), 0.1))
    assert_close(mixed_rows(even, rows)[0], rows[ids[0]].mean(axis=0))


@pytest.mark.parametrize("temperature, near", [(1e6, "mean"), (1e-4, "best")])
def test_limits_of_the_temperature(temperature, near):
    ids = jnp.array([[0, 1, 2]])
    share, cosine = jnp.array([[0.2, 0.5, 0.3]]), jnp.array([[0.1, 0.2, 0.1]])
    mix = local_weights(ids, ids >= 0, share, cosine, temperature=temperature)
    wanted = [[1 / 3] * 3] if near == "mean" else [[0.0, 1.0, 0.0]]
    assert_close(mix.weights, jnp.array(wanted), atol=1e-5)


def test_padding_and_the_scale_of_vectors_change_nothing():
    mask, share, cosine, mix = random_mix(3)
    wide = [np.pad(x, ((0, 0), (0, 3))) for x in (mix.ids, mask, share, cosine)]
    padded = local_weights(*map(jnp.asarray, wide))
    np.testing.assert_array_equal(padded.weights[:, :4], mix.weights)
    keys = jax.random.split(jax.random.key(1))
    queries, table = (jax.random.normal(k, (6, 5)) for k in keys)
    everyone = jnp.ones(6, bool)
    ids, cosine, _ = nearest_tokens(queries, table, everyone)
    scales = jnp.arange(1, 7.0)[:, None]
    # Squares of these would overflow and vanish.
    for factor in (7.0, 1e30, 1e-30):
        scaled = nearest_tokens(factor * queries, factor * scales * table, everyone)
        np.testing.assert_array_equal(scaled[0], ids)
        assert_close(scaled[1], cosine, atol=1e-6)


@given(st.integers(0, 99), st.sampled_from([0.0, 0.25, 1.0]))
def test_rows_stay_within_those_that_are_mixed(seed, weight):
    _, _, _, local = random_mix(seed)
    _, _, _, near = random_mix(seed + 1000)
    mix = hybrid(local, near, weight)
    rows = np.random.default_rng(seed).normal(size=(9, 3)).astype(np.float32)
    made = np.asarray(mixed_rows(mix, jnp.asarray(rows)))
    for row, ids, weights, valid in zip(made, mix.ids, mix.weights, mix.valid):
        used = rows[np.asarray(ids)[np.asarray(weights) > 0]]
        if valid:
            assert (used.min(0) - 1e-6 <= row).all() and (
                row <= used.max(0) + 1e-6
            ).all()
        else:
            assert not row.any()


def test_hybrid_takes_what_is_valid():
    ids = jnp.array([[0], [0], [0], [0]])
    sides = [
        Mix(ids + n, jnp.asarray(v, jnp.float32)[:, None], jnp.asarray(v))
        for n, v in enumerate(([True, True, False, False], [True, False, True, False]))
    ]
    rows = jnp.array([[1.0], [3.0]])
    made = mixed_rows(hybrid(*sides, 0.25), rows)[:, 0]
    assert_close(made, jnp.array([1.5, 1.0, 3.0, 0.0]))
    assert hybrid(*sides, 0.25).valid.tolist() == [True, True, True, False]
    assert hybrid(*sides, 0.0) is sides[0] and hybrid(*sides, 1.0) is sides[1]


def test_the_nearest_token_alone_is_its_row():
    keys = jax.random.split(jax.random.key(2), 3)
    queries, table, rows = (jax.random.normal(k, (5, 4)) for k in keys)
    ids, cosine, found = nearest_tokens(queries, table, jnp.ones(5, bool), k=1)
    mix = global_weights(ids, found, cosine)
    np.testing.assert_array_equal(mixed_rows(mix, rows), rows[ids[:, 0]])
    assert not global_weights(ids, found, cosine, threshold=1.01).valid.any()


def test_far_and_forbidden_and_empty_tokens_are_no_neighbours():
    table = jnp.array([[1.0, 0.1], [1.0, 0.2], [0.0, 0.0], [1.0, 0.0]])
    queries = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    allowed = jnp.array([True, True, True, False])
    ids, cosine, found = nearest_tokens(queries, table, allowed, k=3)
    assert ids[0, :2].tolist() == [0, 1]
    assert found.tolist() == [[True, True, False], [False, False, False]]
    assert np.isfinite(np.asarray(cosine)).all()
    far = jnp.concatenate([table, jnp.array([[-1.0, 0.0]])])
    more = nearest_tokens(queries, far, jnp.append(allowed, True), k=2)
    np.testing.assert_array_equal(more[0][0], ids[0, :2])
    # Fewer known tokens than neighbours asked for.
    assert nearest_tokens(queries, table, allowed, k=9)[0].shape == (2, 4)


def test_ties_go_to_the_lower_id():
    table = jnp.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    ids = nearest_tokens(table[1:2], table, jnp.ones(4, bool), k=2)[0]
    assert ids.tolist() == [[1, 2]]


def test_a_threshold_of_zero_drops_negative_ones_and_none_keeps_them():
    ids, cosine = jnp.array([[0, 1]]), jnp.array([[0.5, -0.1]])
    everyone = ids >= 0
    assert global_weights(ids, everyone, cosine, threshold=0.0).weights[0, 1] == 0
    kept = global_weights(ids, everyone, cosine).weights
    expected = np.exp(np.array([0.5, -0.1]) / (0.3 + 1e-5))
    assert_close(kept[0], jnp.asarray(expected / expected.sum(), jnp.float32))


def test_blocks_dtypes_and_jit_agree():
    _, _, _, mix = random_mix(5)
    rows = jax.random.normal(jax.random.key(0), (9, 16)).astype(jnp.bfloat16)
    whole = mixed_rows(mix, rows)
    assert whole.dtype == jnp.float32
    exact = mixed_rows(mix, rows.astype(jnp.float32))
    assert_close(whole, exact)
    table = jax.random.normal(jax.random.key(1), (9, 4))
    ids = nearest_tokens(table[:7], table, jnp.ones(9, bool))[0]
    blocks = nearest_tokens(table[:7], table, jnp.ones(9, bool), block=3)[0]
    np.testing.assert_array_equal(blocks, ids)
    arrays = (mix.ids, mix.weights > 0, mix.weights, mix.weights)
    np.testing.assert_allclose(
        jax.jit(local_weights)(*arrays).weights, local_weights(*arrays).weights, 1e-6
    )


def test_gradients_are_finite_where_nothing_is_valid():
    ids = jnp.array([[0, 1], [0, 0]])
    mask = jnp.array([[True, True], [False, False]])

    def loss(cosine, rows):
        mix = local_weights(ids, mask, cosine, cosine)
        return mixed_rows(mix, rows).sum()

    grads = jax.grad(loss, (0, 1))(jnp.array([[0.2, 0.5], [0.1, 0.1]]), jnp.eye(2, 3))
    assert all(np.isfinite(np.asarray(grad)).all() for grad in grads)
    assert_close(grads[1].sum(), 3.0)


def test_sharded_over_new_tokens():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over = NamedSharding(mesh, PartitionSpec("data"))
    keys = jax.random.split(jax.random.key(4), 3)
    queries, table, rows = (jax.random.normal(k, (16, 4)) for k in keys)
    everyone = jnp.ones(16, bool)
    expected = nearest_tokens(queries, table, everyone)
    got = nearest_tokens(jax.device_put(queries, over), table, everyone)
    np.testing.assert_array_equal(got[0], expected[0])
    mix = global_weights(expected[0], expected[2], expected[1])
    split = jax.tree.map(lambda x: jax.device_put(x, over), mix)
    assert_close(mixed_rows(split, rows), mixed_rows(mix, rows))


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda i, m, x: local_weights(i, m, x, x, temperature=0.0), "temperature"),
        (lambda i, m, x: global_weights(i, m, x, temperature=-1.0), "temperature"),
        (lambda i, m, x: nearest_tokens(x, x, m[0], k=0), "k"),
        (lambda i, m, x: hybrid(Mix(i, x, m), Mix(i, x, m), 1.5), "weight"),
        (lambda i, m, x: hybrid(Mix(i, x, m), Mix(i, x, m), -0.1), "weight"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        call(jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), jnp.ones((1, 1)))
