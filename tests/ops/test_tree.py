"""Draft trees: what is refused, Medusa's buffers, and the ancestor relation."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jtok.errors import ArgumentError, TreeError
from jtok.ops import Tree, ancestor_mask, ancestor_path

TEMPLATES = ("eagle25", "medusa63", "vicuna7b2", "small", "chain")


def paths_of(table):
    """Rows of a golden path table without their padding."""
    return [[int(rank) for rank in row if rank >= 0] for row in table]


@st.composite
def trees(draw, max_nodes=14):
    """Random trees in level order, ranks with gaps."""
    parents = draw(st.lists(st.integers(0, 100), max_size=max_nodes - 1))
    depth, above = [0], [-1]
    for number in parents:
        above.append(number % len(above))
        depth.append(depth[above[-1]] + 1)
    # Stable by depth, then parents are renamed: any tree becomes one in level order.
    order = sorted(range(len(above)), key=lambda node: depth[node])
    name = {node: index for index, node in enumerate(order)}
    parent = [-1] + [name[above[node]] for node in order[1:]]
    gaps = draw(st.integers(1, 3))
    count: dict[int, int] = {}
    rank = [-1]
    for node in parent[1:]:
        rank.append(gaps * count.get(node, 0))
        count[node] = count.get(node, 0) + 1
    return Tree(tuple(parent), tuple(rank))


# ---- what is refused


@pytest.mark.parametrize(
    "paths, message",
    [
        ([[]], "empty path"),
        ([[0], [0]], r"\[0\] is there twice"),
        ([[0], [1, 0]], r"\[1, 0\] is an orphan: its parent \[1\]"),
        ([[0, 0], [0]], r"\[0, 0\] is an orphan.*must come before it"),
        ([[0], [-1]], r"rank -1, expected >= 0 and < 3"),
        ([[0], [3]], r"rank 3, expected >= 0 and < 3"),
        ([[0], [0, 0], [1]], r"node 3 \(depth 1\).*expected level order"),
    ],
)
def test_from_paths_refuses(paths, message):
    with pytest.raises(TreeError, match=message) as caught:
        Tree.from_paths(paths, num_candidates=3)
    assert isinstance(caught.value, ArgumentError | ValueError)


def test_from_paths_without_a_bound_takes_any_rank():
    assert Tree.from_paths([[70]]).num_candidates == 71
    with pytest.raises(TreeError, match=r"rank -1, expected >= 0\."):
        Tree.from_paths([[-1]])


def test_sort_mends_the_order_and_nothing_else():
    shuffled = [[1], [0, 1], [0], [0, 0]]
    tree = Tree.from_paths(shuffled, sort=True)
    assert tree.paths == ((0,), (1,), (0, 0), (0, 1))
    with pytest.raises(TreeError, match="orphan"):
        Tree.from_paths([[1, 0], [0]], sort=True)


@pytest.mark.parametrize(
    "parent, rank, message",
    [
        ((), (), "0 and 0 nodes"),
        ((-1, 0), (-1,), "2 and 1 nodes"),
        ((0, 0), (-1, 0), "node 0 is the root; got parent 0"),
        ((-1, 0), (0, 0), "rank 0 there, expected -1"),
        ((-1, 2, 0), (-1, 0, 0), "node 1 has parent 2, expected an earlier node"),
        ((-1, 1), (-1, 0), "node 1 has parent 1"),
        ((-1, -1), (-1, 0), "node 1 has parent -1"),
        ((-1, 0), (-1, -1), "node 1 has rank -1"),
        ((-1, 0, 0), (-1, 4, 4), "nodes 1 and 2 are both candidate 4 of node 0"),
        ((-1, 0, 1, 0), (-1, 0, 0, 1), r"node 3 \(depth 1\).*level order"),
    ],
)
def test_parents_and_ranks_are_checked(parent, rank, message):
    with pytest.raises(TreeError, match=message):
        Tree(parent, rank)


# ---- the template


@pytest.mark.parametrize("name", TEMPLATES)
def test_medusa_buffers(golden, name):
    buffers = golden("speculative_verification/tree_buffers.npz")
    tree = Tree.from_paths(paths_of(buffers[f"{name}_paths"]), sort=True)
    np.testing.assert_array_equal(tree.ancestors, buffers[f"{name}_mask"] == 1)
    np.testing.assert_array_equal(tree.depth, buffers[f"{name}_depth"])
    indices = np.where(tree.depth == 0, 0, np.array(tree.rank) + 10 * tree.depth - 9)
    np.testing.assert_array_equal(indices, buffers[f"{name}_tree_indices"])
    # Medusa lists leaves in reverse.
    np.testing.assert_array_equal(tree.leaf_paths[::-1], buffers[f"{name}_retrieve"])


def test_derived_tables():
    tree = Tree.from_paths([[2], [0], [2, 1], [2, 0], [0, 0], [2, 1, 0]])
    assert tree.parent == (-1, 0, 0, 1, 1, 2, 3)
    assert (tree.num_nodes, tree.num_candidates, tree.max_depth) == (7, 3, 3)
    assert tree.level_start.tolist() == [0, 1, 3, 6, 7]
    assert tree.leaf_paths.tolist() == [[0, 1, 4, -1], [0, 2, 5, -1], [0, 1, 3, 6]]
    assert tree.children.tolist() == [
        [2, 1], [4, 3], [5, -1], [6, -1], [-1, -1], [-1, -1], [-1, -1],
    ]  # fmt: skip


def test_chain_star_and_root_alone():
    assert Tree.chain(3).parent == (-1, 0, 1, 2)
    assert Tree.chain(3).leaf_paths.tolist() == [[0, 1, 2, 3]]
    assert Tree.star(3).parent == (-1, 0, 0, 0)
    assert Tree.star(3).rank == (-1, 0, 1, 2)
    root = Tree.chain(0)
    assert root == Tree.star(0) and hash(root) == hash(Tree.star(0))
    assert (root.num_nodes, root.max_depth, root.num_candidates) == (1, 0, 0)
    assert root.leaf_paths.tolist() == [[0]]
    assert root.level_start.tolist() == [0, 1]


@hypothesis.given(trees())
def test_paths_rebuild_the_tree(tree):
    assert Tree.from_paths(tree.paths) == tree


# ---- the ancestor relation


@hypothesis.given(trees())
def test_ancestors_are_a_reflexive_transitive_order(tree):
    mask = tree.ancestors
    assert mask.diagonal().all()
    assert not np.triu(mask, 1).any()
    reached = (mask.astype(int) @ mask.astype(int)) > 0
    np.testing.assert_array_equal(reached, mask)
    np.testing.assert_array_equal(mask.sum(1), tree.depth + 1)
    for node, parent in enumerate(tree.parent):
        assert parent < 0 or mask[node, parent]


def padded(tree, nodes=14):
    """Parents as data: lone roots fill up to one shape, so that jit compiles once."""
    return jnp.array(tree.parent + (-1,) * (nodes - tree.num_nodes), jnp.int32)[None]


find_mask = jax.jit(ancestor_mask, static_argnames="max_depth")
find_path = jax.jit(ancestor_path, static_argnames="max_depth")


@hypothesis.given(trees())
def test_ancestor_mask_is_the_template_s(tree):
    found = np.asarray(find_mask(padded(tree), max_depth=13))[0]
    expected = np.eye(14, dtype=bool)
    expected[: tree.num_nodes, : tree.num_nodes] = tree.ancestors
    np.testing.assert_array_equal(found, expected)


@hypothesis.given(trees(), st.integers(0, 100))
def test_ancestor_path_leads_from_the_root(tree, number):
    node = number % tree.num_nodes
    depth = jnp.zeros((1, 14), jnp.int32).at[0, : tree.num_nodes].set(tree.depth)
    mask = find_mask(padded(tree), max_depth=13)
    found = find_path(mask, depth, jnp.array([node]), max_depth=13)[0].tolist()
    walked = [node]
    while tree.parent[walked[0]] >= 0:
        walked.insert(0, tree.parent[walked[0]])
    assert found == walked + [-1] * (14 - len(walked))


def test_ancestor_mask_stops_at_its_bound_and_rows_do_not_mix():
    parent = jnp.array([[-1, 0, 1, 2], [-1, 0, 0, 0]])
    mask = ancestor_mask(parent, max_depth=2)
    assert mask[0].astype(int).tolist() == [
        [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1],
    ]  # fmt: skip
    assert mask[1].astype(int).tolist() == [
        [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1],
    ]  # fmt: skip
