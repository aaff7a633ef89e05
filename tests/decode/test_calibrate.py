"""Choosing a draft tree by acceptance and cost."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from jtok.decode import (
    CostCurve,
    choose_template,
    cost_curve,
    generate,
    prune_template,
    recycling_template,
    token_recycling,
    tune_template,
)
from jtok.errors import ArgumentError
from jtok.ops import Tree
from jtok.testing import tiny_model

FULL = recycling_template()


@st.composite
def counted(draw):
    """Hit counts of the full template in which no node beats its parent."""
    hits = [draw(st.integers(1, 1000))]
    for node in range(1, FULL.num_nodes):
        hits.append(draw(st.integers(0, hits[FULL.parent[node]])))
    return np.array(hits)


@given(counted(), st.integers(1, FULL.num_nodes))
def test_pruning_keeps_the_most_accepted_nodes_and_their_prefixes(hits, nodes):
    pruned = prune_template(FULL, hits, nodes=nodes)
    assert pruned.num_nodes == nodes
    assert set(pruned.paths) <= set(FULL.paths)
    of = dict(zip(FULL.paths, hits[1:], strict=True))
    kept = sorted((of[path] for path in pruned.paths), reverse=True)
    assert kept == sorted(hits[1:], reverse=True)[: nodes - 1]


def test_ties_keep_the_lower_node():
    assert prune_template(Tree.star(3), [5, 2, 2, 2], nodes=3).paths == ((0,), (1,))


@pytest.mark.parametrize(
    ("seconds", "nodes"),
    [((1.0, 1.0, 1.0), 3), ((1.0, 1.5, 9.0), 2), ((1.0, 9.0, 9.0), 1)],
)
def test_the_tree_with_the_most_tokens_a_second_is_chosen(seconds, nodes):
    # 10 calls: 1, 1.8 and 2.2 tokens a call with 1, 2 and 3 nodes.
    costs = CostCurve((1, 2, 3), seconds)
    tree, expected = choose_template(Tree.star(2), [10, 8, 4], costs)
    assert tree.num_nodes == nodes
    assert expected == pytest.approx([1.0, 1.8, 2.2][nodes - 1])


def test_no_tree_larger_than_the_measured_ones_is_chosen():
    costs = CostCurve((1, 2), (1.0, 1.0))
    assert choose_template(Tree.star(5), [9, 8, 8, 8, 8, 8], costs)[0].num_nodes == 2


def test_costs_between_measured_sizes_are_interpolated():
    assert CostCurve((1, 3), (1.0, 2.0)).at(2) == 1.5


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        ([9, 1], "shape"),
        ([9, 1, 10, 0], "node 2 has 10 hits"),
        ([0, 0, 0, 0], "at least one call"),
    ],
)
def test_bad_counts_are_refused(hits, message):
    with pytest.raises(ArgumentError, match=message):
        choose_template(Tree.star(3), hits, CostCurve((1,), (1.0,)))


def test_sizes_beyond_the_template_are_refused():
    with pytest.raises(ArgumentError, match=r"sizes: got 82"):
        cost_curve(tiny_model(), sizes=(1, 82))
    with pytest.raises(ArgumentError, match="prompts"):
        tune_template(tiny_model(), [])


def test_the_tuned_template_decodes_the_same_text():
    model = tiny_model()
    costs = CostCurve((1, 81), (1.0, 2.0))
    tuned = tune_template(model, [[1, 2, 3]], costs=costs, max_new_tokens=32)
    assert tuned.node_hits[0] > 0
    assert tuned.expected > 1.0
    drafter = token_recycling(template=tuned.template)
    plain = generate(model, [1, 2, 3], max_new_tokens=32)
    made = generate(model, [1, 2, 3], max_new_tokens=32, drafter=drafter)
    np.testing.assert_array_equal(made.tokens, plain.tokens)
    assert made.stats.calls < plain.stats.calls


@pytest.mark.slow
def test_the_cost_curve_measures_every_size():
    curve = cost_curve(tiny_model(), sizes=(4, 1), calls=8, repeats=1)
    assert curve.nodes == (1, 4)
    assert all(second > 0 for second in curve.seconds)
