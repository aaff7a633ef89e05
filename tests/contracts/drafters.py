"""Every drafter, for the suites that all of them pass. A new one adds one line."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jtok.decode import (
    Drafter,
    Rule,
    draft_model,
    dynamic,
    no_drafter,
    prompt_lookup,
    recycling_template,
    rejection,
    sequential,
    sorted_chain,
    sorted_tree,
    token_recycling,
    typical,
)
from jtok.ops import Tree
from jtok.testing import (
    adversary_drafter,
    bigram_target,
    drawn_drafter,
    dynamic_drafter,
    extra_slots_drafter,
    oracle_drafter,
    random_drafter,
    recurrent_target,
    tiny_model,
)


class Case(NamedTuple):
    """How a suite makes a drafter.

    Attributes:
      make: `(what plain decoding emits for every row, vocab_size) -> Drafter`.
      state: `(batch, vocab_size) -> drafter_state`, or None for a cold start.
      rule: how its drafts are verified; None lets `generate` choose.
      guarantee: of rows that sample.
    """

    make: Callable[[Any, int], Drafter]
    state: Callable[[int, int], Any] | None = None
    rule: Rule | None = None
    guarantee: str = "token"


MIXED = Tree.from_paths([(0,), (1,), (3,), (0, 0), (0, 2), (1, 1), (0, 2, 0)])
SMALL = Tree.from_paths(recycling_template().paths[:12])


def random_table(width: int, *, per_row: bool = False) -> Callable[[int, int], Any]:
    """A table of random candidates."""

    def make(batch: int, vocab_size: int) -> np.ndarray:
        shape = (batch,) * per_row + (vocab_size, width)
        rng = np.random.default_rng(3)
        return rng.integers(0, vocab_size, shape).astype(np.int32)

    return make


def constant_table(batch: int, vocab_size: int) -> np.ndarray:
    """A table in which every token is followed by the last id, four times."""
    return np.full((vocab_size, 4), vocab_size - 1, np.int32)


def case(
    drafter: Drafter,
    state: Any = None,
    rule: Rule | None = None,
    guarantee: str = "token",
) -> Case:
    return Case(lambda truth, vocab_size: drafter, state, rule, guarantee)


# The table of the suite's target, and one near it: a draft model that is often right.
VOCAB = 10
TABLE = 2.0 * np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)
NEAR = TABLE + np.random.default_rng(1).normal(size=TABLE.shape).astype(np.float32)
SMALLER = bigram_target(NEAR, whole_context=True)
CHAINS_ONLY = bigram_target(NEAR, whole_context=True, trees=False)
RECURRENT = recurrent_target(NEAR)
NESTED = tiny_model(vocab_size=VOCAB)


DRAFTERS: dict[str, Case] = {
    "none": case(no_drafter()),
    "prompt-lookup": case(prompt_lookup()),
    "prompt-lookup-2-of-2": case(prompt_lookup(2, 2, 2)),
    "prompt-lookup-official": case(prompt_lookup(4, compat="official")),
    "recycling": case(token_recycling()),
    "recycling-width-1": case(token_recycling(1)),
    "recycling-width-4": case(token_recycling(4)),
    "recycling-chain": case(token_recycling(2, Tree.chain(4))),
    "recycling-star": case(token_recycling(6, Tree.star(6))),
    "recycling-root-only": case(token_recycling(4, Tree.chain(0))),
    "recycling-official": case(token_recycling(8, SMALL, compat="official")),
    "recycling-prefill": case(token_recycling(4, MIXED, update_from_prefill=True)),
    "recycling-per-row": case(
        token_recycling(4, MIXED, per_row=True, update_from_prefill=True)
    ),
    "recycling-inherited": case(token_recycling(4, MIXED), random_table(4)),
    "recycling-inherited-per-row": case(
        token_recycling(4, MIXED, per_row=True), random_table(4, per_row=True)
    ),
    "recycling-adversarial": case(token_recycling(4, MIXED), constant_table),
    "recycling-gives-up": case(
        token_recycling(4, MIXED, min_accept=1.5, patience=2), random_table(4)
    ),
    "oracle": Case(lambda truth, vocab_size: oracle_drafter(truth, 3)),
    "adversary": Case(
        lambda truth, vocab_size: adversary_drafter(truth, vocab_size, 3)
    ),
    "random": case(random_drafter(3, 6)),
    "extra-slots": case(
        extra_slots_drafter(token_recycling(4, MIXED, update_from_prefill=True))
    ),
    "extra-slots-random": case(extra_slots_drafter(random_drafter(2, 3), 3)),
    "dynamic-parent": case(dynamic_drafter(token_recycling(4, MIXED)), random_table(4)),
    "draft-model": case(draft_model(SMALLER, 3)),
    "draft-model-chains-only": case(draft_model(CHAINS_ONLY, 2)),
    "draft-model-recurrent": case(draft_model(RECURRENT, 2)),
    "draft-model-tree": case(draft_model(SMALLER, tree=MIXED)),
    "draft-model-dynamic": case(draft_model(SMALLER, tree=dynamic(3, 2, 9))),
    "draft-model-own": case(
        draft_model(SMALLER, 3, draw="own"), guarantee="distribution"
    ),
    "draft-model-own-tree": case(
        draft_model(SMALLER, tree=MIXED, draw="own"), guarantee="distribution"
    ),
    "sorted-chain": case(sorted_chain(NESTED, (1, 2), (0.2, 0.0))),
    "sorted-own": case(
        sorted_chain(NESTED, (1, 2), (0.2, 0.0), draw="own"), guarantee="distribution"
    ),
    "sorted-tree": case(sorted_tree(NESTED, (1, 2), (0.2, 0.0), size=dynamic(3, 2, 9))),
    "drawn-with-replacement": case(
        drawn_drafter(NEAR, MIXED), None, rejection(replacement=True), "distribution"
    ),
    "random-sequential": case(random_drafter(3, 6), None, sequential(), "distribution"),
    "recycling-typical": case(
        # A table for each row: what is accepted depends on the drafts.
        token_recycling(4, MIXED, per_row=True),
        random_table(4, per_row=True),
        typical(),
        "none",
    ),
}
