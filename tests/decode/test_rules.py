"""Rules beside their walk in plain Python, and what they promise of rows and seeds."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import (
    EXACT,
    Proposal,
    Rule,
    Sampling,
    Tokens,
    check_q,
    draft_model,
    exact,
    generate,
    prompt_lookup,
    rejection,
    rule_for,
    sequential,
    token_recycling,
    typical,
    walk_drafts,
)
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.models import Info, Target
from jtok.ops import Tree, row_keys
from jtok.testing import (
    assert_close,
    bigram_target,
    drawn_drafter,
    random_drafter,
    try_candidates,
)

VOCAB = 10
RNG = np.random.default_rng(0)
TABLE = 2.0 * RNG.normal(size=(VOCAB, VOCAB)).astype(np.float32)
NEAR = TABLE + 0.7 * RNG.normal(size=TABLE.shape).astype(np.float32)
TARGET, SMALLER = (bigram_target(t, whole_context=True) for t in (TABLE, NEAR))
TREE = Tree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (2, 0), (0, 0, 0)])
OWN = draft_model(SMALLER, tree=TREE, draw="own")
PROMPTS = [[3], [1, 2, 3, 1, 2], [7] * 9]
HOT = [0.0, 1.0, 0.6]


def run(drafter=None, **options):
    options = {"temperature": HOT, "max_new_tokens": 24, "seed": 4, **options}
    return generate(TARGET, options.pop("prompts", PROMPTS), drafter=drafter, **options)


def lists(out):
    return [row.tolist() for row in out.tokens]


# The walk ------------------------


def by_hand(laws, q, tokens, valid, u, parent, replacement):
    """Node and law at the end, child by child."""
    at, law = 0, laws[0]
    while True:
        children = [n for n in range(len(parent)) if parent[n] == at and valid[n]]
        drawn = None if q is None or not children else q[children[0]]
        index, law = try_candidates(
            laws[at], drawn, tokens[children], u[children], replacement=replacement
        )
        if index < 0:
            return at, law
        at = children[index]


@pytest.mark.parametrize("how", ["without", "with", "point"])
def test_random_trees_follow_the_walk(how):
    rng = np.random.default_rng(1)
    rows, nodes, vocab = 200, TREE.num_nodes, 4
    laws = rng.dirichlet(np.ones(vocab), (rows, nodes)).astype(np.float32)
    parent = np.maximum(np.array(TREE.parent), 0)
    # Siblings share a law; few tokens, so that siblings repeat.
    q = rng.dirichlet(np.ones(vocab), (rows, nodes)).astype(np.float32)[:, parent]
    q[:20] = np.where(np.arange(vocab) < 2, 0, 0.5)  # tokens that q does not have
    tokens = rng.integers(0, vocab, (rows, nodes)).astype(np.int32)
    valid = rng.random((rows, nodes)) < 0.8
    u = rng.random((rows, nodes)).astype(np.float32)
    drawn = None if how == "point" else q
    walk = jax.jit(walk_drafts, static_argnames=("replacement",))
    proposal = Proposal(jnp.asarray(tokens), jnp.asarray(valid), tree=TREE)
    got = walk(
        jnp.asarray(laws), None if drawn is None else jnp.asarray(drawn),
        jnp.asarray(u), proposal, replacement=how == "with",
    )  # fmt: skip
    ends = set()
    for row in range(rows):
        node, law = by_hand(
            laws[row], None if drawn is None else drawn[row], tokens[row], valid[row],
            u[row], TREE.parent, how == "with",
        )  # fmt: skip
        ends.add(node)
        assert got.node[row] == node
        # Differences of float32 laws, normalised: relative to what is left.
        assert_close(got.law[row], law, atol=1e-4)
        untouched = np.abs(law - laws[row, node]).max() == 0
        assert bool(got.missed[row]) != untouched or how != "point"
    assert len(ends) == nodes


def one_draft(p, q, u, token):
    tokens = jnp.array([[0, token]])
    proposal = Proposal(tokens, tokens >= 0, tree=Tree.chain(1))
    laws, drawn = (jnp.asarray([[x, x]], jnp.float32) for x in (p, q))
    return walk_drafts(laws, drawn, jnp.array([[0.0, u]]), proposal)


def test_a_token_of_probability_zero_is_never_accepted():
    got = one_draft([0.0, 1.0], [0.5, 0.5], 0.0, 0)
    assert got.node[0] == 0 and got.law[0].tolist() == [0.0, 1.0]
    # Nor where the target is no point mass, not even by the smallest uniform number.
    got = one_draft([0.0, 0.5, 0.5], [0.5, 0.25, 0.25], 0.0, 0)
    assert got.node[0] == 0 and got.law[0].tolist() == [0.0, 0.5, 0.5]


def test_equal_laws_accept_and_leave_themselves():
    assert one_draft([0.3, 0.7], [0.3, 0.7], 0.9999999, 0).node[0] == 1
    # A draft that q cannot have drawn is refused, and p stays as it was.
    got = one_draft([0.3, 0.7], [0.0, 1.0], 0.5, 0)
    assert got.node[0] == 0
    assert_close(got.law[0], np.float32([0.3, 0.7]))


def test_a_row_at_temperature_zero_takes_the_arg_max_whatever_q_says():
    got = one_draft([0.0, 1.0], [1.0, 0.0], 0.9, 1)
    assert got.node[0] == 1


# Drafters and rules ------------------------


@pytest.mark.medium
def test_equal_models_accept_everything():
    for draw in ("own", "shared"):
        stats = run(draft_model(TARGET, 3, draw=draw), top_p=0.9).stats
        assert stats.row_calls.tolist() == [6, 6, 6]
        assert stats.accepted_by_depth.tolist() == [1.0] * 3
        assert stats.draft_calls == 4 * 18 and stats.wasted_slots == 0


def test_disjoint_supports_accept_nothing():
    even = np.where(np.arange(VOCAB) % 2 == 0, 0.0, -np.inf)
    odd = np.where(np.arange(VOCAB) % 2 == 1, 0.0, -np.inf)
    square = lambda row: np.broadcast_to(row, (VOCAB, VOCAB)).astype(np.float32)
    out = generate(
        bigram_target(square(even)), [1, 2], max_new_tokens=12, temperature=1.0,
        drafter=draft_model(bigram_target(square(odd)), 2, draw="own"),
    )  # fmt: skip
    assert out.stats.calls == 12 and (out.tokens % 2 == 0).all()


@functools.lru_cache
def whole():
    return run(OWN)


@pytest.mark.medium
def test_a_row_does_not_depend_on_its_batch_mates():
    together = lists(whole())
    for row in (0, 1):
        alone = run(
            OWN, prompts=PROMPTS[row], temperature=HOT[row] or 0.0, seed=4 + row
        )
        assert alone.tokens.tolist() == together[row]


@pytest.mark.medium
def test_rows_of_temperature_zero_equal_plain_decoding():
    plain, out = lists(run()), whole()
    assert out.guarantee == "distribution"
    assert lists(out)[0] == plain[0]
    assert lists(out)[1:] != plain[1:]
    assert out.stats.row_emitted[0] / out.stats.row_calls[0] > 1.2
    for rule in (sequential(), typical()):
        assert lists(run(random_drafter(3, 8), rule=rule))[0] == plain[0]


@pytest.mark.medium
def test_without_drafts_a_rule_draws_what_plain_decoding_draws():
    plain = lists(run())
    blind = silent(OWN)
    for rule in (None, sequential()):
        out = run(blind, rule=rule)
        assert lists(out) == plain and out.stats.tokens_per_call == 1


def silent(drafter):
    """The same drafts, all of them invalid."""
    return _silent(drafter)


@functools.lru_cache
def _silent(drafter):
    def propose(state, tokens):
        proposal, state = drafter.propose(state, tokens)
        root = jnp.arange(proposal.tokens.shape[1])[None] == 0
        return proposal.replace(valid=proposal.valid & root), state

    return drafter._replace(propose=propose)


@pytest.mark.medium
def test_the_official_bonus_token_ignores_the_temperature():
    """EAGLE's code draws it from the logits as they are."""
    blind = silent(random_drafter(2, 2))
    cold = run(blind, rule=sequential(compat="official"), temperature=[0.0, 0.3, 0.3])
    warm = run(temperature=[0.0, 1.0, 1.0])
    assert lists(cold) == lists(warm) and cold.guarantee == "none"
    assert lists(cold) != lists(run(temperature=[0.0, 0.3, 0.3]))


@pytest.mark.medium
def test_typical_acceptance_takes_everything_or_nothing():
    chain = prompt_lookup(3)
    tree = token_recycling(4, Tree.chain(2))
    everything = run(tree, rule=typical(0.0, 1.0), temperature=1.0)
    assert everything.guarantee == "none"
    assert everything.stats.row_calls.tolist() == [8, 8, 8]
    nothing = run(chain, rule=typical(1.0, float("inf")), temperature=1.0)
    assert nothing.stats.tokens_per_call == 1
    # Nothing but arg-maxes is emitted then.
    assert lists(nothing) == lists(run(temperature=0.0))


@pytest.mark.parametrize("compat, calls", [(None, 24), ("official", 12)])
def test_typical_acceptance_after_filters(compat, calls):
    """The second best token is drafted; top-k excludes it, official code does not."""
    logits = np.zeros((VOCAB, VOCAB), np.float32)
    logits[:, 0], logits[:, 1] = 2.0, 1.9
    second = np.zeros_like(logits)
    second[:, 1] = 1.0
    out = generate(
        bigram_target(logits), [5], max_new_tokens=24, temperature=1.0, top_k=1,
        drafter=draft_model(bigram_target(second), 1),
        rule=typical(0.09, 0.3, compat=compat),
    )  # fmt: skip
    assert out.stats.calls == calls


# Choosing and refusing ------------------------


def _traced(*args):
    raise RuntimeError("the target was traced")


UNTRACED = Target(_traced, _traced, _traced, Info(VOCAB), _traced)


def test_the_rule_is_chosen_by_what_is_proposed():
    tokens = jnp.ones((1, 2), jnp.int32)
    point = Proposal(tokens, tokens > 0, tree=Tree.chain(1))
    drawn = point.replace(q=jnp.ones((1, 2, 4)) / 4)
    assert rule_for(None, point, sampled=True) is EXACT is exact()
    assert rule_for(None, drawn, sampled=True) is rejection()
    assert rule_for(None, drawn, sampled=False) is EXACT
    assert rule_for(exact(), drawn, sampled=True) is EXACT


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rejection_needs_the_law_of_the_drafts(temperature):
    with pytest.raises(ArgumentError, match="rule: it needs the law q"):
        generate(
            UNTRACED, [1], drafter=prompt_lookup(), rule=rejection(),
            temperature=temperature,
        )  # fmt: skip


def test_a_rule_is_a_rule():
    tokens = jnp.ones((1, 1), jnp.int32)
    root = Proposal(tokens, tokens > 0, tree=Tree.chain(0))
    with pytest.raises(ArgumentTypeError, match="rule: got str, expected"):
        inspect.unwrap(rule_for)("exact", root, sampled=True)
    with pytest.raises(ArgumentError, match="compat: got 'x'"):
        inspect.unwrap(sequential)(compat="x")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eps": -0.1}, "eps: got -0.1, expected a probability"),
        ({"eps": 1.5}, "eps: got 1.5"),
        ({"eps": float("nan")}, "eps: got nan"),
        ({"alpha": -1.0}, "alpha: got -1.0, expected at least 0"),
        ({"alpha": float("nan")}, "alpha: got nan"),
    ],
)
def test_typical_numbers(options, message):
    with pytest.raises(ArgumentError, match=message):
        typical(**options)


def test_laws_that_are_none_are_refused():
    good = np.full((2, 3, 4), 0.25, np.float32)
    check_q(good)
    short = good.copy()
    short[1, 2] *= 0.9
    with pytest.raises(ArgumentError, match="q: row 1, node 2 sums to 0.9"):
        check_q(short)
    check_q(short, np.array([[True] * 3, [True, True, False]]))
    check_q(short, tolerance=0.2)
    short[:, 0] = 0  # the root was not drawn
    short[1, 2] = [0.5, 0.7, -0.2, 0.0]
    with pytest.raises(ArgumentError, match="q: row 1, node 2 has an entry -0.2"):
        check_q(short)
    short[1, 2] = np.nan
    with pytest.raises(ArgumentError, match="q: row 1, node 2 has an entry nan"):
        check_q(short)
    with pytest.raises(ArgumentError, match=r"q: got 'shape \(3, 4\)'"):
        check_q(good[0])


def test_a_drawn_drafter_says_its_law():
    how = Sampling(row_keys(jnp.arange(2)), jnp.array([0.0, 1.0]))
    tokens = Tokens(jnp.zeros((2, 16), jnp.int32), jnp.array([1, 3]), how)
    for drafter in (drawn_drafter(NEAR, TREE), OWN):

        def first(tokens, drafter=drafter):
            return drafter.propose(drafter.init(Info(VOCAB), tokens), tokens)[0]

        proposal = jax.jit(first)(tokens)
        check_q(proposal.q, proposal.valid)
        assert proposal.q.shape == (2, TREE.num_nodes, VOCAB)


def test_guarantees_are_told_apart():
    assert isinstance(rejection(), Rule)
    found = [r.guarantee for r in (exact(), rejection(), sequential(), typical())]
    assert found == ["token", "distribution", "distribution", "none"]
