"""The best rows among many, found approximately."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.ops import Want, readout
from jtok.ops.row_search import approximate_top, cluster_rows, probe_top
from jtok.ops.sharding import mesh_from


@pytest.fixture(scope="module")
def case():
    """Rows around 16 directions, and vectors near some of them."""
    keys = jax.random.split(jax.random.key(0), 4)
    centers = jax.random.normal(keys[0], (16, 24))
    leaf = jax.random.randint(keys[1], (2000,), 0, 16)
    rows = centers[leaf] + 0.3 * jax.random.normal(keys[2], (2000, 24))
    hidden = (centers[:6] + 0.3 * jax.random.normal(keys[3], (6, 24))).reshape(3, 2, 24)
    return hidden, rows.astype(jnp.bfloat16)


def true_top(hidden, rows, k, bias=0.0):
    scores = np.asarray(hidden) @ np.asarray(rows.astype(jnp.float32)).T + bias
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def test_all_leaves_give_the_exact_list(case):
    hidden, rows = case
    clusters = cluster_rows(rows, 10, jax.random.key(1))
    members = np.asarray(clusters.members)
    assert sorted(members[members >= 0].tolist()) == list(range(2000))
    bias = jnp.linspace(-1, 1, 2000)
    for b in (None, bias):
        _, ids = probe_top(hidden, rows, clusters, 8, probes=10, bias=b)
        expected = true_top(hidden, rows, 8, 0.0 if b is None else np.asarray(b))
        assert (np.asarray(ids) == expected).all()


def test_few_leaves_find_most_and_score_exactly(case):
    hidden, rows = case
    clusters = cluster_rows(rows, 16, jax.random.key(1))
    scores, ids = probe_top(hidden, rows, clusters, 8, probes=4)
    expected = true_top(hidden, rows, 8)
    hits = np.mean([
        len(set(a) & set(b)) / 8
        for a, b in zip(np.asarray(ids).reshape(-1, 8), expected.reshape(-1, 8))
    ])  # fmt: skip
    assert hits > 0.9
    full = np.asarray(hidden) @ np.asarray(rows.astype(jnp.float32)).T
    again = np.take_along_axis(full, np.asarray(ids), axis=-1)
    np.testing.assert_allclose(scores, again, rtol=1e-5)


def test_too_few_members_are_marked():
    rows = jnp.eye(4)
    clusters = cluster_rows(rows, 4, jax.random.key(0), steps=0)
    scores, ids = probe_top(rows[None, :1], rows, clusters, 1, probes=1)
    assert ids.tolist() == [[[0]]] and scores.tolist() == [[[1.0]]]
    uneven = clusters._replace(members=jnp.array([[0, -1], [1, -1], [2, -1], [3, -1]]))
    scores, ids = probe_top(rows[None, :1], rows, uneven, 2, probes=1)
    assert ids.tolist()[0][0][1] == 4 and np.isneginf(scores[0, 0, 1])


@pytest.mark.parametrize("block", [300, 2000, 5000])
def test_blocks_with_full_recall_are_exact(case, block):
    hidden, rows = case
    _, ids = approximate_top(hidden, rows, 5, block=block, recall=1.0)
    assert (np.asarray(ids) == true_top(hidden, rows, 5)).all()


def test_ties_of_blocks_go_to_the_lower_row():
    _, ids = approximate_top(jnp.ones((1, 1, 2)), jnp.ones((9, 2)), 3, block=4)
    assert ids[0, 0, 0] == 0 and sorted(ids[0, 0].tolist()) == ids[0, 0].tolist()


def test_exact_lists_are_the_same_on_a_mesh(case):
    hidden, rows = case
    with jax.set_mesh(mesh_from("data=1,model=8")):
        run = jax.jit(lambda h, r: readout(h, r, Want(top_k=8), block=100).top_ids)
        ids = run(hidden, rows)
    assert (np.asarray(ids) == true_top(hidden, rows, 8)).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r: cluster_rows(r, 0, jax.random.key(0)), "leaves: got 0"),
        (lambda r: cluster_rows(r, 2, jax.random.key(0), sample=1), "sample: got 1"),
        (lambda r: approximate_top(r[None], r, 9), "k: got 9"),
        (lambda r: approximate_top(r[None], r, 1, recall=2.0), "recall: got 2.0"),
        (
            lambda r: probe_top(r[None], r, cluster_rows(r, 2, jax.random.key(0)), 1,
                                probes=3),
            "probes: got 3",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(jnp.eye(4))
