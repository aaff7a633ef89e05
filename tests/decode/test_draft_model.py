"""A model that drafts: what it has seen, what it draws, and which models may."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import draft_model, dynamic, generate, rejection, serve
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import Info, Target, split_layers
from jtok.ops import Tree
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    bigram_target,
    steps,
    tiny_model,
    tiny_vocabulary,
)

MIXED = Tree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
PROMPTS = [[1, 2, 3], [5] * 9, [7]]


def near(model, size=0.03):
    """A model that often agrees."""
    leaves, tree = jax.tree.flatten(model.params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [
        x + size * jax.random.normal(key, x.shape, x.dtype)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return dataclasses.replace(model, params=jax.tree.unflatten(tree, moved))


TARGET = tiny_model()
SMALL = near(TARGET)


@pytest.mark.medium
@pytest.mark.parametrize("how", ["own", "dynamic"])
def test_the_cache_is_that_of_a_fresh_prefill(how):
    """After every step, of every row; the prompts take several chunks."""
    if how == "own":
        drafter, rule = draft_model(SMALL, tree=MIXED, draw="own"), rejection()
    else:
        drafter, rule = draft_model(SMALL, tree=dynamic(3, 1, 8)), None
    options = {} if rule is None else {"rule": rule, "temperature": [0.0, 1.0, 0.5]}
    prefill = jax.jit(lambda ids, cache: SMALL.replace(params=params)(ids, cache=cache))
    target, params = SMALL.target(), split_layers(SMALL.params)
    states = steps(
        TARGET.target(), split_layers(TARGET.params), PROMPTS, max_new_tokens=10,
        drafter=drafter, chunk=4, capacity=64, **options,
    )  # fmt: skip
    moved = set()
    for before, after in itertools.pairwise(states):
        moved |= set((after.tokens.count - before.tokens.count).tolist())
        held = after.drafter.cache
        np.testing.assert_array_equal(held.length, after.tokens.count - 1)
        np.testing.assert_array_equal(held.length, after.drafter.length)
        ids = jnp.asarray(after.tokens.ids[:, :32])
        fresh = prefill(ids, target.init_cache(params, 3, 64)).cache.pending
        for old, new in zip(held.layers, fresh, strict=True):
            for got, expected in zip(old, new, strict=True):
                for row, length in enumerate(held.length):
                    part = np.s_[row, :, :length]
                    assert_close(got[part], np.asarray(expected)[part])
    assert len(moved) > 2  # all kinds of verdicts


@pytest.mark.medium
@pytest.mark.parametrize(
    "tree", [None, MIXED, dynamic(3, 2, 9)], ids=["chain", "tree", "dynamic"]
)
def test_a_draft_model_changes_nothing_but_calls(tree):
    options = {"temperature": [0.0, 0.9, 1.3], "top_p": 0.95, "max_new_tokens": 20}
    plain = generate(TARGET, PROMPTS, gaps=True, **options)
    out = generate(TARGET, PROMPTS, drafter=draft_model(SMALL, 3, tree), **options)
    assert out.guarantee == "token"
    assert_token_guarantee(plain, out)
    assert out.stats.tokens_per_call > 1.2
    depth = 3 if tree is None else tree.max_depth
    assert out.stats.draft_calls == (depth + 1) * out.stats.calls
    assert out.stats.host_syncs == 0


TABLE = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)


@pytest.mark.medium
def test_shared_noise_agrees_where_the_models_do():
    """Also in a tree, whose first candidate is then always right."""
    same = bigram_target(2 * TABLE)
    options = {"temperature": 1.0, "top_k": 6, "max_new_tokens": 24}
    chain = generate(same, [3], drafter=draft_model(same, 3), **options).stats
    assert chain.calls == 6
    tree = generate(same, [3], drafter=draft_model(same, tree=MIXED), **options).stats
    assert tree.calls == 6
    # Nodes 1, 4 and 7 are the first candidates.
    assert tree.node_hits.tolist() == [6, 6, 0, 0, 6, 0, 0, 6]


def test_parameters_are_arguments():
    """Another draft model of the same kind uses what was compiled."""

    def scaled(params, hidden, want):
        return base.readout(None, hidden * params, want)

    base = bigram_target(TABLE)
    learned = base._replace(readout=scaled)
    first, second = (draft_model(learned, 2, params=jnp.float32(x)) for x in (1, -1))
    assert first._replace(params=None) == second._replace(params=None)
    options = {"max_new_tokens": 12}
    good = generate(base, [3], drafter=first, **options).stats
    bad = generate(base, [3], drafter=second, **options).stats
    assert (good.calls, bad.calls) == (4, 12)


@pytest.mark.slow
def test_a_recurrent_model_drafts_for_any_target():
    drafter = draft_model(tiny_model(family="mamba"), 3)
    options = {"temperature": [0.0, 1.0, 0.5], "max_new_tokens": 12}
    plain = generate(TARGET, PROMPTS, gaps=True, **options)
    assert_token_guarantee(plain, generate(TARGET, PROMPTS, drafter=drafter, **options))
    mamba = tiny_model(family="mamba")
    out = generate(mamba, PROMPTS, drafter=drafter, **options)
    assert out.stats.row_calls.tolist() == [3, 3, 3]  # it agrees with itself


@pytest.mark.medium
@pytest.mark.parametrize("draw", ["shared", "own"])
def test_a_cache_from_an_earlier_turn_leaves_nothing_out(draw):
    """The draft model reads the whole prompt, though the target reads the new part."""
    same = bigram_target(2 * TABLE, whole_context=True)
    drafter = draft_model(same, 3, draw=draw)
    options = {"max_new_tokens": 8, "temperature": 1.0, "drafter": drafter}
    first = generate(same, PROMPTS, keep_cache=True, **options)
    turns = zip(PROMPTS, first.tokens, strict=True)
    longer = [[*a, *b.tolist(), 4, 4, 2] for a, b in turns]
    again = generate(same, longer, cache=first.cache, **options)
    assert again.stats.row_calls.tolist() == [2, 2, 2]
    fresh = generate(same, longer, **options)
    assert [r.tolist() for r in again.tokens] == [r.tolist() for r in fresh.tokens]


@pytest.mark.medium
def test_rows_that_refill_draft_from_their_own_prompt():
    same = bigram_target(2 * TABLE, whole_context=True)
    drafter = draft_model(same, 3)
    prompts = [[3], [1, 2, 3, 1, 2], [7] * 9, [4] * 70, [8, 9]]
    done = serve(same, prompts, batch=2, max_new_tokens=8, drafter=drafter)
    for index, out in done:
        plain = generate(same, prompts[index], max_new_tokens=8)
        assert out.tokens.tolist() == plain.tokens.tolist()
        assert out.stats.calls == 2


# Which models may ------------------------


def _traced(*args):
    raise RuntimeError("the target was traced")


def untraced(vocab_size):
    return Target(_traced, _traced, _traced, Info(vocab_size), _traced)


def test_another_number_of_ids_is_refused():
    drafter = draft_model(bigram_target(TABLE))
    with pytest.raises(
        VocabMismatchError, match="model: got '12 ids', expected 96 ids"
    ):
        generate(untraced(96), [1], drafter=drafter)


def test_another_vocabulary_is_refused():
    ours, theirs = tiny_vocabulary(280), tiny_vocabulary(270)
    model = tiny_model(vocab_size=280)
    drafter = draft_model(dataclasses.replace(model, vocabulary=theirs))
    with pytest.raises(VocabMismatchError, match="drafter: it speaks of another"):
        generate(untraced(280), [1], drafter=drafter, vocabulary=ours)
    assert drafter.vocabulary == theirs.hash != ours.hash
    # Where one of the two is not known, the sizes decide.
    assert draft_model(model).vocabulary is None


def test_a_model_of_chains_drafts_chains():
    chains = bigram_target(TABLE, trees=False)
    for tree in (MIXED, dynamic(2, 1, 4)):
        with pytest.raises(ArgumentError, match="tree: this model takes chains only"):
            draft_model(chains, tree=tree)
    out = generate(
        bigram_target(TABLE, trees=False), [1], drafter=draft_model(chains, 2),
        max_new_tokens=6,
    )  # fmt: skip
    assert out.stats.calls == 2


def test_bad_input_is_refused():
    target = bigram_target(TABLE)
    with pytest.raises(ArgumentError, match="depth: got 0, expected at least 1"):
        draft_model(target, 0)
    with pytest.raises(ArgumentError, match="tree: got 'the root alone'"):
        draft_model(target, tree=Tree.chain(0))
    with pytest.raises(ArgumentError, match="draw: got 'own', expected 'shared'"):
        draft_model(target, tree=dynamic(2, 1, 4), draw="own")
    with pytest.raises(ArgumentError, match="params: got 'parameters', expected None"):
        draft_model(SMALL, params=SMALL.params)
    with pytest.raises(ArgumentError, match="tree: got '20 candidates'"):
        generate(untraced(12), [1], drafter=draft_model(target, tree=Tree.star(20)))
    unchecked = getattr(draft_model, "__wrapped__", draft_model)
    with pytest.raises(ArgumentTypeError, match="model: got str, expected a Model"):
        unchecked("a name")
    with pytest.raises(ArgumentError, match="draw: got 'both'"):
        unchecked(target, draw="both")


def test_sizes_of_dynamic_trees():
    for sizes, message in (
        ((0, 1, 4), "beam: got 0"),
        ((2, -1, 4), "expansions: got -1"),
        ((2, 1, 1), "num_nodes: got 1, expected 2 to 7"),
        ((2, 1, 8), "num_nodes: got 8, expected 2 to 7"),
    ):
        with pytest.raises(ArgumentError, match=message):
            dynamic(*sizes)
    assert dynamic(2, 1, 7).max_depth == 2
