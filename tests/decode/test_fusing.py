"""Drafters that read the target's states: what they keep, draw and refuse."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import (
    chimera,
    chimera_template,
    generate,
    medusa,
    rejection,
    serve,
)
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import Info, StepOutput, Target, split_layers
from jtok.ops import Tree
from jtok.predict import (
    empty_context,
    extend_context,
    fusing_config,
    init_fusing,
    init_state_heads,
)
from jtok.testing import assert_close, assert_token_guarantee, steps, tiny_model

MODEL = tiny_model()
PROMPTS = [[1, 2, 3], [5] * 9, [7], [4, 9, 4, 9, 4]]


@functools.lru_cache
def stack(seed=0, **options):
    """Random draft weights, which must change nothing but the number of calls."""
    draft = init_fusing(MODEL, jax.random.key(seed), fusing_config(MODEL, **options))
    move = lambda x: x + 0.1 * jax.random.normal(jax.random.key(5), x.shape)
    return draft.replace(params=jax.tree.map(move, draft.params))


@functools.lru_cache
def heads(**options):
    draft = init_state_heads(MODEL, **options)
    move = lambda x: x + 0.1 * jax.random.normal(jax.random.key(5), x.shape)
    return draft.replace(params=jax.tree.map(move, draft.params))


DRAFTERS = {
    "tree": lambda: chimera(stack()),
    "chain": lambda: chimera(stack(heads="light"), Tree.chain(3)),
    "own states": lambda: chimera(stack(own_states=True), chimera_template(3)),
    "blind": lambda: chimera(stack(states=False), Tree.chain(2)),
    "medusa": lambda: medusa(heads()),
    "medusa, light": lambda: medusa(heads(heads="light", blocks=2), Tree.chain(4)),
}
MIXED = (0.0, 1.0, 0.7, 1.0, 0.0, 1.3, 1.0, 0.0)
CASES = [
    ("tree", 1, (0.0,)),
    ("tree", 8, MIXED),
    ("medusa", 8, MIXED),
    pytest.param("tree", 1, (1.0,), marks=pytest.mark.medium),
    pytest.param("tree", 8, (0.0,) * 8, marks=pytest.mark.medium),
    *(
        pytest.param(name, 8, MIXED, marks=pytest.mark.medium)
        for name in DRAFTERS
        if name not in ("tree", "medusa")
    ),
]


@functools.lru_cache
def plain(batch, temperature):
    return generate(
        MODEL, (PROMPTS * 2)[:batch], max_new_tokens=16, gaps=True,
        temperature=list(temperature),
    )  # fmt: skip


def test_the_template_is_that_of_the_released_code(golden):
    file = golden("speculative_verification/tree_buffers.npz")
    tree = chimera_template()
    paths = [tuple(p[p >= 0].tolist()) for p in file["eagle25_paths"]]
    assert list(tree.paths) == paths
    np.testing.assert_array_equal(tree.ancestors, file["eagle25_mask"].astype(bool))
    np.testing.assert_array_equal(tree.depth, file["eagle25_depth"])
    assert [chimera_template(k).num_nodes - 1 for k in range(1, 7)] == [
        4, 12, 20, 23, 25, 25,
    ]  # fmt: skip


@pytest.mark.parametrize("name, batch, temperature", CASES)
def test_random_drafts_change_nothing(name, batch, temperature):
    expected = plain(batch, temperature)
    out = generate(
        MODEL, (PROMPTS * 2)[:batch], max_new_tokens=16, temperature=list(temperature),
        drafter=DRAFTERS[name](),
    )  # fmt: skip
    assert out.guarantee == "token"
    assert_token_guarantee(expected, out)
    assert out.stats.host_syncs == 0


@pytest.mark.medium
def test_the_context_is_that_of_the_committed_tokens():
    """After every step of a ragged batch, whose prompts take several chunks."""
    draft = stack(heads="light")
    drafter = chimera(draft, chimera_template(2))
    states = steps(
        MODEL.target(), split_layers(MODEL.params), PROMPTS, max_new_tokens=10,
        drafter=drafter, chunk=4, capacity=64,
    )  # fmt: skip
    forward = jax.jit(lambda ids: MODEL(ids, logits="none").hidden)
    extend = jax.jit(extend_context)
    moved = set()
    for before, after in itertools.pairwise(states):
        moved |= set((after.tokens.count - before.tokens.count).tolist())
        held = after.drafter
        np.testing.assert_array_equal(held.length, after.tokens.count - 1)
        ids = jnp.asarray(after.tokens.ids[:, :32])
        hidden = forward(ids)
        empty = empty_context(draft.config, len(PROMPTS), 64)
        fresh = extend(draft, empty, hidden, ids, jnp.asarray(held.length))
        np.testing.assert_array_equal(held.recent, fresh.recent)
        assert_close(held.hidden, fresh.hidden, rtol=1e-4, atol=1e-4)
        for old, new in zip(
            jax.tree.leaves(held.streams), jax.tree.leaves(fresh.streams)
        ):
            for row, length in enumerate(held.length):
                part = np.s_[row, :, :length]
                assert_close(old[part], np.asarray(new)[part], rtol=1e-4, atol=1e-4)
    assert len(moved) > 1


def copying(vocab=8):
    """A target whose next token is the newest plus one; states are its logits."""

    def init_cache(params, batch, capacity):
        return jnp.zeros(batch, jnp.int32)

    def step(params, cache, nodes):
        return StepOutput(9.0 * jax.nn.one_hot((nodes.ids + 1) % vocab, vocab)), cache

    commit = lambda cache, path, count: cache + count
    return Target(init_cache, step, commit, Info(vocab))


def knowing(vocab=8):
    """Heads that know that target: they shift its state by one for every step."""
    config = dataclasses.replace(MODEL.config, vocab_size=vocab, width=vocab)
    turn = jnp.roll(jnp.eye(vocab), 1, axis=1)
    powers = [jnp.linalg.matrix_power(turn, k).T for k in (1, 2, 3)]
    model = MODEL.replace(
        config=config,
        params={
            "embed": {"tokens": jnp.eye(vocab)},
            "unembed": {"kernel": jnp.eye(vocab)},
        },
    )
    draft = init_state_heads(model, steps=3)
    params = {**draft.params, "unembed": {"kernel": jnp.stack(powers)}}
    return draft.replace(params=params)


def test_heads_that_know_the_target_are_always_right():
    for temperature in (0.0, 0.2):
        out = generate(
            copying(), [[3, 4], [1, 2, 3, 4, 5]], max_new_tokens=12,
            drafter=medusa(knowing(), Tree.chain(3)), temperature=temperature,
        )  # fmt: skip
        expected = [[(start + n) % 8 for n in range(12)] for start in (5, 6)]
        assert [row.tolist() for row in out.tokens] == expected
        assert out.stats.row_calls.tolist() == [3, 3]


def test_a_row_without_a_state_has_no_drafts():
    """A prompt of one token is the root, of which nothing was computed."""
    drafter = medusa(knowing(), Tree.chain(3))
    out = generate(copying(), [[3], [2, 3]], max_new_tokens=9, drafter=drafter)
    assert [np.bincount(row).tolist() for row in out.call_of] == [[1, 4, 4], [4, 4, 1]]


@pytest.mark.medium
@pytest.mark.parametrize("make", [lambda: chimera(stack(), draw="own"),
                                  lambda: medusa(heads(), draw="own")])  # fmt: skip
def test_own_draws_say_from_which_law(make):
    out = generate(
        MODEL, PROMPTS, max_new_tokens=12, temperature=[0.0, 1.0, 0.8, 1.0],
        drafter=make(), rule=rejection(),
    )  # fmt: skip
    assert out.guarantee == "distribution"
    assert out.tokens[0].tolist() == plain(8, MIXED).tokens[0][:12].tolist()


@pytest.mark.slow
def test_rows_that_refill_draft_from_their_own_prompt():
    prompts, drafter = [*PROMPTS, [8, 9] * 20], chimera(stack())
    done = serve(MODEL, prompts, batch=2, max_new_tokens=8, drafter=drafter)
    for index, out in done:
        alone = generate(MODEL, prompts[index], max_new_tokens=8, gaps=True)
        assert_token_guarantee(alone, out)
        again = generate(MODEL, prompts[index], max_new_tokens=8, drafter=drafter)
        assert out.stats.calls == again.stats.calls


@pytest.mark.medium
def test_a_kept_cache_goes_on():
    """The stack then knows the new part only; what is emitted stays the same."""
    drafter = chimera(stack(), Tree.chain(2))
    first = generate(MODEL, PROMPTS, max_new_tokens=6, drafter=drafter, keep_cache=True)
    longer = [[*a, *b.tolist(), 4, 2] for a, b in zip(PROMPTS, first.tokens)]
    again = generate(
        MODEL, longer, max_new_tokens=6, cache=first.cache, drafter=drafter
    )
    assert_token_guarantee(generate(MODEL, longer, max_new_tokens=6, gaps=True), again)


def test_parameters_are_arguments():
    first, second = chimera(stack(0)), chimera(stack(1))
    assert first._replace(params=None) == second._replace(params=None)
    assert first.calls == 4 and medusa(heads()).calls == 1


# Bad input ------------------------


def test_bad_input_is_refused():
    with pytest.raises(
        ArgumentError, match="tree: got 'depth 5', expected at most the 4"
    ):
        chimera(stack(), chimera_template(5))
    with pytest.raises(ArgumentError, match="tree: got 'the root alone'"):
        medusa(heads(), Tree.chain(0))
    with pytest.raises(ArgumentError, match="tree: got '97 candidates'"):
        chimera(stack(), Tree.star(97))
    unchecked = lambda f: getattr(f, "__wrapped__", f)
    with pytest.raises(ArgumentError, match="draw: got 'both'"):
        unchecked(chimera)(stack(), draw="both")
    with pytest.raises(
        ArgumentTypeError, match="draft: got StateHeads, expected Fusing"
    ):
        unchecked(chimera)(heads())
    with pytest.raises(
        ArgumentTypeError, match="draft: got Fusing, expected StateHeads"
    ):
        unchecked(medusa)(stack())
    for drafter in (chimera(stack()), medusa(heads())):
        with pytest.raises(VocabMismatchError, match="draft: got '96 ids', expected 8"):
            generate(copying(), [1, 2], drafter=drafter)
        with pytest.raises(ArgumentError, match="a width of 32', expected '?8"):
            generate(copying()._replace(info=Info(96)), [1, 2], drafter=drafter)
    with pytest.raises(ArgumentError, match="steps: got 0"):
        chimera_template(0)
