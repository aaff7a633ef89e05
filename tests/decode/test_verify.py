"""Acceptance against a walk in plain Python, and exact ends."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given

from jtok.decode import Accepted, Proposal, accept, recycling_template, truncate
from jtok.errors import ArgumentError
from jtok.ops import Tree

NODES, DEEPEST, VOCAB = 9, 4, 3
run = jax.jit(accept)


def walk(choice, tokens, parent, valid):
    """Paths that are right, from the root down; the deepest, first in level order."""
    paths = {0: [0]}
    for node in range(1, len(tokens)):
        above = parent[node]
        if above in paths and valid[node] and tokens[node] == choice[above]:
            paths[node] = [*paths[above], node]
    deepest = max(map(len, paths.values()))
    return next(path for path in paths.values() if len(path) == deepest)


def check_row(got, row, choice, tokens, parent, valid):
    path = walk(choice, tokens, parent, valid)
    drafts = len(path) - 1
    assert got.drafts[row] == drafts
    expected = np.full(got.path.shape[1], -1)
    expected[: drafts + 1] = path
    np.testing.assert_array_equal(got.path[row], expected)
    # The accepted drafts, then the target's own token at the end of the path.
    emitted = [*(tokens[node] for node in path[1:]), choice[path[-1]]]
    np.testing.assert_array_equal(got.emitted[row, : drafts + 1], emitted)


@st.composite
def trees(draw):
    """Parents in level order, at most four levels below the root."""
    parent, depth = [-1], [0]
    for _ in range(NODES - 1):
        # In level order: no shallower than the node before.
        options = [node for node, d in enumerate(depth) if depth[-1] - 1 <= d < DEEPEST]
        chosen = draw(st.sampled_from([node for node in options if node >= parent[-1]]))
        parent.append(chosen)
        depth.append(depth[chosen] + 1)
    few = st.lists(st.integers(0, VOCAB - 1), min_size=NODES, max_size=NODES)
    valid = draw(st.lists(st.booleans(), min_size=NODES, max_size=NODES))
    return parent, depth, draw(few), draw(few), [True, *valid[1:]]


def as_data(rows):
    """Rows of (parent, depth, tokens, choice, valid) as a proposal and choices."""
    parent, depth, tokens, choice, valid = (jnp.asarray(part) for part in zip(*rows))
    proposal = Proposal(tokens, valid, parent=parent, depth=depth, max_depth=DEEPEST)
    return choice, proposal


@given(st.lists(trees(), min_size=3, max_size=3))
def test_trees_as_data_follow_the_walk(rows):
    choice, proposal = as_data(rows)
    got = run(choice, proposal)
    for row, (parent, _, tokens, chosen, valid) in enumerate(rows):
        check_row(got, row, chosen, tokens, parent, valid)


def test_extremes_as_data():
    parent, depth = [-1, 0, 1, 2, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 4, 4, 4, 4]
    ones = [1] * NODES
    everything = (parent, depth, ones, ones, [True] * NODES)
    nothing = (parent, depth, ones, [2] * NODES, [True] * NODES)
    gap = (parent, depth, ones, ones, [True, True, False, *[True] * 6])
    rows = [everything, nothing, gap]
    got = run(*as_data(rows))
    assert got.drafts.tolist() == [4, 0, 1]
    assert got.path[0].tolist() == [0, 1, 2, 3, 4]
    assert got.path[1].tolist() == [0, -1, -1, -1, -1]
    assert got.emitted[:, 0].tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    "tree",
    [Tree.chain(0), Tree.chain(4), Tree.star(5), recycling_template()],
    ids=["root", "chain", "star", "2.2.2"],
)
def test_static_trees_follow_the_walk(tree):
    rng = np.random.default_rng(1)
    shape = (64, tree.num_nodes)
    # Two tokens: many duplicates, and paths of every length.
    tokens, choice = rng.integers(0, 2, (2, *shape)).astype(np.int32)
    valid = rng.random(shape) < 0.9
    valid[:, 0] = True
    proposal = Proposal(jnp.asarray(tokens), jnp.asarray(valid), tree=tree)
    got = run(jnp.asarray(choice), proposal)
    for row in range(shape[0]):
        check_row(got, row, choice[row], tokens[row], tree.parent, valid[row])
    assert len(set(np.asarray(got.drafts).tolist())) >= tree.max_depth - 1


def test_of_equal_siblings_the_first_is_taken():
    tokens = jnp.array([[9, 5, 5, 5]])
    valid = jnp.array([[True, False, True, True]])
    got = run(jnp.array([[5, 1, 2, 3]]), Proposal(tokens, valid, tree=Tree.star(3)))
    assert got.path.tolist() == [[0, 2]] and got.emitted.tolist() == [[5, 2]]


def test_a_longer_path_wins_over_an_earlier_one():
    tree = Tree.from_paths([(0,), (1,), (1, 0)])
    tokens = jnp.array([[9, 5, 5, 2]])
    got = run(jnp.array([[5, 7, 2, 8]]), Proposal(tokens, tokens > 0, tree=tree))
    assert got.path.tolist() == [[0, 2, 3]] and got.emitted.tolist() == [[5, 2, 8]]


def test_a_right_child_of_a_wrong_node_is_not_reached():
    tokens = jnp.array([[9, 4, 6, 7]])
    got = run(
        jnp.array([[5, 6, 7, 8]]), Proposal(tokens, tokens > 0, tree=Tree.chain(3))
    )
    assert got.drafts.tolist() == [0] and got.emitted[0, 0] == 5


def test_a_proposal_without_a_shape_is_refused():
    tokens = jnp.array([[1, 2]])
    with pytest.raises(ArgumentError, match="parent, depth: got None"):
        accept(tokens, Proposal(tokens, tokens > 0))


# Stop ids and budgets ------------------------


def emitted_by_hand(tokens, budget, stops):
    kept = []
    for token in tokens[:budget]:
        kept.append(token)
        if token in stops:
            return kept, True
    return kept, False


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 4), min_size=5, max_size=5),
            st.integers(0, 4),
            st.integers(0, 7),
            st.booleans(),
        ),
        min_size=4,
        max_size=4,
    ),
    st.tuples(st.integers(-1, 4), st.integers(-1, 4)),
)
@example([([1, 2, 3, 4, 0], 4, 5, True)] * 4, (0, -1))
@example([([1, 2, 3, 4, 0], 3, 5, True)] * 4, (0, -1))
@example([([2, 2, 3, 4, 0], 4, 1, True)] * 4, (2, -1))
def test_what_is_kept_ends_exactly(rows, stops):
    tokens, drafts, budget, live = (jnp.asarray(part) for part in zip(*rows))
    accepted = Accepted(jnp.zeros_like(tokens), drafts, tokens)
    count, stopped = truncate(
        accepted, live=live, budget=budget, stop_ids=jnp.array(stops)
    )
    for row, (ids, n, most, alive) in enumerate(rows):
        kept, ended = emitted_by_hand(ids[: n + 1], most, stops)
        assert count[row] == len(kept) * alive
        assert stopped[row] == (ended and alive)
