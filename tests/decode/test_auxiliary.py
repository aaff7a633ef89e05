"""Heads that draft: what they have read, what they propose, and that it is lossless."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import Tokens, auxiliary_heads, dynamic, generate, rejection, serve
from jtok.errors import ArgumentError, VocabMismatchError
from jtok.models import split_layers
from jtok.ops import Tree
from jtok.predict import HeadsConfig, auxiliary_hidden, init_heads, pretrain_heads
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    bigram_target,
    steps,
    tiny_model,
)

MODEL = tiny_model()
MIXED = Tree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
PROMPTS = [[1, 2, 3], [5] * 9, [7]]
KINDS = {
    "default": HeadsConfig(num_auxiliary=3),
    "official": HeadsConfig.official(num_auxiliary=3),
    "own": HeadsConfig(num_auxiliary=3, separate_unembedding=True),
    "deep": HeadsConfig(num_auxiliary=3, depth=2, head_input="final_norm"),
    "linear": HeadsConfig(num_auxiliary=3, arch="linear", head_input="final_norm"),
}


def heads_of(name, model=MODEL):
    return init_heads(model, KINDS[name], key=jax.random.key(5))


@pytest.mark.medium
@pytest.mark.parametrize("name, family", [
    ("default", "llama"), ("official", "gemma2"), ("deep", "llama"),
    ("linear", "llama"),
])  # fmt: skip
def test_what_heads_say_is_what_they_say_of_the_whole_text(name, family):
    """After every step, of every row; the prompts take several chunks."""
    model = tiny_model(family=family)
    heads = heads_of(name, model)
    drafter = auxiliary_heads(heads, model, MIXED)
    target = jax.jit(lambda ids: auxiliary_hidden(model, heads, ids))
    run = model.target()
    if drafter.needs.taps:
        from jtok.models import model_target

        run = model_target(model.config, drafter.needs.taps)
    states = steps(
        run, split_layers(model.params), PROMPTS, max_new_tokens=10, drafter=drafter,
        chunk=4, capacity=64,
    )  # fmt: skip
    moved = set()
    for before, after in itertools.pairwise(states):
        moved |= set((after.tokens.count - before.tokens.count).tolist())
        held = after.drafter
        np.testing.assert_array_equal(held.length, after.tokens.count - 1)
        hidden = target(jnp.asarray(after.tokens.ids[:, :32]))
        for row, length in enumerate(held.length):
            wanted = np.asarray(hidden)[:, row, length - 1]
            assert_close(held.ahead[row], wanted, atol=5e-5)
    assert moved


@pytest.mark.medium
@pytest.mark.parametrize(
    "tree, batch",
    [(None, 1), (None, 8), (MIXED, 8), (dynamic(3, 2, 9), 3)],
    ids=["chain-1", "chain-8", "tree-8", "dynamic-3"],
)
def test_heads_change_nothing_but_calls(tree, batch):
    prompts = (PROMPTS * 3)[:batch]
    options = {
        "temperature": [0.0, 0.9, 1.3, 1.0, 0.0, 0.7, 1.0, 0.0][:batch],
        "top_p": 0.95, "max_new_tokens": 16,
    }  # fmt: skip
    plain = generate(MODEL, prompts, gaps=True, **options)
    drafter = auxiliary_heads(heads_of("default"), MODEL, tree)
    out = generate(MODEL, prompts, drafter=drafter, **options)
    assert out.guarantee == "token"
    assert_token_guarantee(plain, out)
    assert out.stats.host_syncs == 0


def cycling(steps=30):
    """A model and heads that have learnt to count to eight."""
    rows = np.tile(np.arange(8, dtype=np.int32), 3)[None].repeat(4, 0)
    data = lambda step: {"tokens": (rows + step) % 8}
    options = {"steps": steps, "key": jax.random.key(0), "progress": False}
    from jtok.predict import concept_tune

    model = concept_tune(MODEL, None, data, learning_rate=1e-2, **options).model
    heads, _ = pretrain_heads(
        model, init_heads(model, KINDS["default"]), data, learning_rate=1e-2, **options
    )
    return model, heads


@pytest.mark.slow
def test_trained_heads_save_calls():
    """They count as the model does, so greedily every draft is right."""
    model, heads = cycling()
    drafter = auxiliary_heads(heads, model)
    options = {"max_new_tokens": 24, "temperature": [0.0, 0.5]}
    prompts = [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 0, 1]]
    plain = generate(model, prompts, gaps=True, **options)
    out = generate(model, prompts, drafter=drafter, **options)
    assert_token_guarantee(plain, out)
    assert out.tokens[0][:4].tolist() == [5, 6, 7, 0]
    # Sampled, the model says now and then what its heads do not expect.
    assert out.stats.row_calls[0] == 6 and out.stats.row_calls[1] <= 16
    own = auxiliary_heads(heads, model, MIXED, draw="own")
    out = generate(model, prompts, drafter=own, rule=rejection(), **options)
    assert out.guarantee == "distribution"
    assert out.stats.tokens_per_call > 1.5


@pytest.mark.slow
def test_rows_that_refill_draft_from_their_own_prompt():
    model, heads = MODEL, heads_of("default")
    drafter = auxiliary_heads(heads, model)
    prompts = [[3], [1, 2, 3, 1, 2], [7] * 9]
    plain = generate(model, prompts, max_new_tokens=6).tokens
    done = serve(model, prompts, batch=2, max_new_tokens=6, drafter=drafter)
    for index, out in done:
        assert out.tokens.tolist() == plain[index].tolist()


def test_candidates_depend_on_their_depth_alone():
    drafter = auxiliary_heads(heads_of("own"), MODEL, MIXED).bind(
        auxiliary_heads(heads_of("own"), MODEL, MIXED).params
    )
    ids = jnp.zeros((2, 32), jnp.int32)
    tokens = Tokens(ids, jnp.array([4, 1]))
    state = drafter.init(MODEL.target().info, tokens)
    ahead = jax.random.normal(jax.random.key(0), state.ahead.shape)
    state = state.replace(ahead=ahead, length=jnp.array([3, 0]))
    made, _ = drafter.propose(state, tokens)
    kernels = heads_of("own").params["unembed"]["kernel"]
    best = jnp.argsort(-jnp.einsum("bnd,nvd->bnv", ahead, kernels), axis=-1)[0]
    first, second, third = best[0, :3], best[1, :2], best[2, 0]
    # Nodes in level order: three children, their children 0, 1 and 0, one below.
    wanted = [*first, second[0], second[1], second[0], third]
    assert made.tokens[0, 1:].tolist() == [int(x) for x in wanted]
    # A row whose target has read nothing has no drafts.
    assert made.valid.tolist() == [[True] * 8, [True] + [False] * 7]


def test_parameters_are_arguments():
    """Other heads of the same kind use what was compiled."""
    first, second = (
        auxiliary_heads(init_heads(MODEL, KINDS["own"], key=jax.random.key(k)), MODEL)
        for k in (1, 2)
    )
    assert first._replace(params=None) == second._replace(params=None)


def test_bad_input_is_refused():
    heads = heads_of("default")
    for tree in (Tree.chain(4), dynamic(2, 3, 4)):
        with pytest.raises(ArgumentError, match="tree: got 'depth 4', expected 1 to 3"):
            auxiliary_heads(heads, MODEL, tree)
    with pytest.raises(ArgumentError, match="tree: got 'depth 0'"):
        auxiliary_heads(heads, MODEL, Tree.chain(0))
    with pytest.raises(ArgumentError, match="heads: got 'none'"):
        auxiliary_heads(init_heads(MODEL, HeadsConfig(num_auxiliary=0)), MODEL)
    with pytest.raises(ArgumentError, match="draw: got 'own', expected 'shared'"):
        auxiliary_heads(heads, MODEL, dynamic(2, 1, 4), draw="own")
    with pytest.raises(ArgumentError, match="model: got None"):
        auxiliary_heads(heads)
    with pytest.raises(ArgumentError, match="heads: got 'heads for vocab_size=96'"):
        auxiliary_heads(heads, tiny_model(vocab_size=50))
    with pytest.raises(ArgumentError, match="head_input: got 'middle'"):
        auxiliary_heads(heads, MODEL, head_input="middle")
    table = bigram_target(np.eye(96, dtype=np.float32))
    with pytest.raises(ArgumentError, match="head_input: got 'pre_last'"):
        generate(table, [1, 2], drafter=auxiliary_heads(heads, MODEL))
    reads = auxiliary_heads(heads, MODEL, head_input="final_norm")
    with pytest.raises(ArgumentError, match="heads: got 'width 32', expected 96"):
        generate(table, [1, 2], drafter=reads)
    small = bigram_target(np.eye(12, dtype=np.float32))
    with pytest.raises(VocabMismatchError, match="heads: got '96 ids', expected 12"):
        generate(small, [1, 2], drafter=reads)
