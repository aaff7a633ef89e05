"""Choosing a draft tree: by what was accepted, and by what a call costs here.

A larger tree accepts more and costs more; where the optimum lies is a property of the
machine. `tune_template` measures both sides and picks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jtok.decode.generate import generate
from jtok.decode.recycling import token_recycling
from jtok.decode.templates import recycling_template
from jtok.decode.types import Drafter
from jtok.errors import ArgumentError, check
from jtok.models import Model
from jtok.ops import Tree

__all__ = [
    "CostCurve",
    "Tuned",
    "choose_template",
    "cost_curve",
    "prune_template",
    "tune_template",
]

_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 81)


class CostCurve(NamedTuple):
    """What a call costs, by the number of its nodes.

    Attributes:
      nodes: sizes that were measured, ascending.
      seconds: median wall time of a call of each size.
    """

    nodes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, nodes: int) -> float:
        """Seconds of a call of `nodes` nodes, interpolated between measured sizes."""
        return float(np.interp(nodes, self.nodes, self.seconds))


class Tuned(NamedTuple):
    """The outcome of `tune_template`.

    Attributes:
      template: the tree to use.
      costs: the measured cost curve.
      node_hits: `[nodes]` accepted nodes of the full template, the root first.
      expected: predicted tokens a call with `template`.
      speedup: predicted gain over plain decoding.
    """

    template: Tree
    costs: CostCurve
    node_hits: np.ndarray
    expected: float
    speedup: float


def prune_template(
    tree: Tree, node_hits: Sequence[int] | np.ndarray, *, nodes: int
) -> Tree:
    """Keeps the nodes that were accepted most often.

    A node is never accepted more often than its parent, and ties go to the lower
    index, so what is kept is closed under prefixes.

    Args:
      tree: the template that was measured.
      node_hits: `[tree.num_nodes]` counts, see `Stats.node_hits`.
      nodes: nodes to keep, the root included.

    Returns:
      A `Tree` of `nodes` nodes.

    Raises:
      ArgumentError: `nodes` out of range, another number of counts, or a node with
        more hits than its parent.

    Example:
      >>> from jtok.ops import Tree
      >>> prune_template(Tree.star(3), [9, 1, 5, 2], nodes=3).paths
      ((1,), (2,))
    """
    hits = np.asarray(node_hits)
    check(1 <= nodes <= tree.num_nodes, "nodes", nodes, f"1 to {tree.num_nodes}")
    shape = (tree.num_nodes,)
    check(hits.shape == shape, "node_hits", f"shape {hits.shape}", f"shape {shape}")
    over = [i for i in range(1, len(hits)) if hits[i] > hits[tree.parent[i]]]
    if over:
        raise ArgumentError(
            f"node_hits: node {over[0]} has {hits[over[0]]} hits, its parent "
            f"{hits[tree.parent[over[0]]]}; expected no more than the parent."
        )
    kept = np.sort(np.argsort(-hits, kind="stable")[:nodes])
    return Tree.from_paths([tree.paths[i - 1] for i in kept if i > 0])


def choose_template(
    tree: Tree, node_hits: Sequence[int] | np.ndarray, costs: CostCurve
) -> tuple[Tree, float]:
    """The prefix-closed part of a template with the most tokens a second.

    Args:
      tree: the template that was measured.
      node_hits: `[tree.num_nodes]` counts; `node_hits[0]` is the number of calls.
      costs: what calls cost on this machine; no larger tree than the largest that
        was measured is chosen.

    Returns:
      The tree (of equal ones the smallest), and its expected tokens a call.

    Raises:
      ArgumentError: as `prune_template`, or no calls were counted.

    Example:
      >>> from jtok.ops import Tree
      >>> costs = CostCurve((1, 2, 3), (1.0, 1.0, 3.0))
      >>> choose_template(Tree.star(2), [10, 6, 1], costs)[0].num_nodes
      2
    """
    hits = np.asarray(node_hits, np.float64)
    check(hits[0] > 0, "node_hits", hits[0], "at least one call at the root")
    prune_template(tree, node_hits, nodes=tree.num_nodes)
    sizes = np.arange(1, min(tree.num_nodes, costs.nodes[-1]) + 1)
    expected = np.cumsum(np.sort(hits)[::-1])[: len(sizes)] / hits[0]
    seconds = np.array([costs.at(int(size)) for size in sizes])
    best = int(sizes[np.argmax(expected / seconds)])
    return prune_template(tree, node_hits, nodes=best), float(expected[best - 1])


def cost_curve(
    model: Model,
    *,
    template: Tree | None = None,
    sizes: Sequence[int] = _SIZES,
    batch: int = 1,
    cached: int = 64,
    calls: int = 64,
    repeats: int = 3,
    temperature: float = 0.0,
) -> CostCurve:
    """Measures a call of Token Recycling for trees of several sizes.

    One node is plain decoding, without a drafter. Sizes are measured in turns, so that
    a load on the machine falls on all of them.

    Args:
      model: to be measured, as it will be used.
      template: trees are its first nodes; None takes the paper's.
      sizes: numbers of nodes, from 1 to the template's.
      batch: rows.
      cached: prompt tokens.
      calls: tokens to emit in a measurement, at least.
      repeats: measurements of each size; the median counts.
      temperature: of sampling, which adds to the cost.

    Returns:
      `CostCurve` in seconds.

    Example:
      >>> from jtok.testing import tiny_model
      >>> curve = cost_curve(tiny_model(), sizes=(1, 2), calls=4, repeats=1)
      >>> curve.nodes
      (1, 2)
    """
    template = recycling_template() if template is None else template
    ordered = sorted(set(sizes))
    for size in ordered:
        check(
            1 <= size <= template.num_nodes, "sizes", size, f"1..{template.num_nodes}"
        )
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, model.config.vocab_size, (batch, max(cached, 1)))
    times: dict[int, list[float]] = {size: [] for size in ordered}
    for turn in range(repeats + 1):
        for size in ordered:
            stats = generate(
                model,
                list(prompts),
                max_new_tokens=calls,
                drafter=_first_nodes(template, size),
                temperature=temperature,
                stop_ids=(),
            ).stats
            if turn:  # the first turn compiles
                times[size].append(stats.decode_seconds / max(stats.row_calls))
    return CostCurve(
        tuple(ordered), tuple(float(np.median(times[size])) for size in ordered)
    )


def _first_nodes(template: Tree, size: int) -> Drafter | None:
    """Token Recycling with so many nodes; one node is plain decoding."""
    if size == 1:
        return None
    part = Tree.from_paths(template.paths[: size - 1])
    return token_recycling(template.num_candidates, part)


def tune_template(
    model: Model,
    prompts: Sequence[Any],
    *,
    template: Tree | None = None,
    costs: CostCurve | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
) -> Tuned:
    """Chooses the part of a template that is fastest for a model on this machine.

    Decodes the prompts with the whole template, one after the other with an inherited
    table, counts which nodes are accepted, and weighs that against the cost curve.

    Args:
      model: to be decoded.
      prompts: like those that will be decoded; not the ones to report on.
      template: to choose from; None takes the paper's.
      costs: from `cost_curve`; None measures it.
      max_new_tokens: per prompt.
      temperature: of the sampling that will be used.

    Returns:
      `Tuned`.

    Raises:
      ArgumentError: no prompts.

    Example:
      >>> from jtok.testing import tiny_model
      >>> costs = CostCurve((1, 81), (1.0, 2.0))
      >>> tuned = tune_template(tiny_model(), [[1, 2]], costs=costs, max_new_tokens=16)
      >>> tuned.template.num_nodes <= 81
      True
    """
    check(len(prompts) > 0, "prompts", prompts, "at least one prompt")
    template = recycling_template() if template is None else template
    if costs is None:
        costs = cost_curve(model, template=template, temperature=temperature)
    drafter = token_recycling(template.num_candidates, template)
    hits, state = np.zeros(template.num_nodes, np.int64), None
    for prompt in prompts:
        out = generate(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            drafter=drafter,
            drafter_state=state,
            temperature=temperature,
        )
        hits, state = hits + out.stats.node_hits, out.drafter_state
    best, expected = choose_template(template, hits, costs)
    gain = expected * costs.at(1) / costs.at(best.num_nodes)
    return Tuned(best, costs, hits, expected, gain)
