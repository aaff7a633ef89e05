"""A model that spells several tokens decodes: plainly, in blocks, and verified."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import (
    future_blocks,
    future_drafter,
    generate,
    serve,
    unverified,
)
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import Info, Target
from jtok.ops import Tree, Want
from jtok.predict import future_context, future_head
from jtok.testing import (
    assert_close,
    assert_token_guarantee,
    steps,
    tiny_model,
)
from tests.predict.future_models import PROMPTS, golden_model, tiny_future

MIXED = Tree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])


def run(model, prompts, **options):
    return generate(model.target(), prompts, params=model.params, **options)


# Goldens ------------------------


@pytest.fixture(scope="module")
def decoded(golden):
    """The four prompts of the goldens in one batch, in every mode."""
    file = golden("ftp/decode.npz")
    model = golden_model("decode", "decode_weights")
    prompts = [file[f"prompt{p}"].tolist() for p in range(4)]
    most = model.config.horizon
    lengths = [len(file[f"spec_tokens{p}"]) for p in range(4)]
    return file, {
        "ar": run(model, prompts, max_new_tokens=40),
        "blockN": run(model, prompts, max_new_tokens=36, **future_blocks(model, most)),
        "block2_": run(model, prompts, max_new_tokens=36, **future_blocks(model, 2)),
        "spec": run(
            model, prompts, max_new_tokens=lengths, drafter=future_drafter(model)
        ),
    }


@pytest.mark.parametrize("prompt", range(4))
@pytest.mark.parametrize("mode", ["ar", "blockN", "block2_"])
def test_greedy_tokens(decoded, mode, prompt):
    file, outs = decoded
    expected = file[f"greedy_{mode}{prompt}"]
    np.testing.assert_array_equal(outs[mode].tokens[prompt], expected)


@pytest.mark.parametrize("prompt", range(4))
def test_verified_drafts_and_how_many_are_right(decoded, prompt):
    """The first call makes the state of the prompt, the others verify."""
    file, outs = decoded
    out, tokens = outs["spec"], file[f"spec_tokens{prompt}"]
    np.testing.assert_array_equal(out.tokens[prompt], tokens)
    np.testing.assert_array_equal(tokens, file[f"greedy_ar{prompt}"][: len(tokens)])
    per_call = np.bincount(out.call_of[prompt])
    expected = [1, *(file[f"spec_accepted{prompt}"] + 1)]
    np.testing.assert_array_equal(per_call, expected)
    assert out.guarantee == "token"


# The guarantee ------------------------

EIGHT = [*PROMPTS, [3], [90, 1], [8, 8, 8], [44, 17] * 4]
MODELS = {
    "gpt2": {}, "llama": {"family": "llama"}, "last": {"first_input": "last_token"}
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize(
    "name, batch",
    [
        ("gpt2", 1),
        ("gpt2", 8),
        ("last", 8),
        pytest.param("llama", 8, marks=pytest.mark.slow),
        pytest.param("last", 1, marks=pytest.mark.slow),
    ],
)
def test_drafts_change_nothing_but_calls(name, batch):
    """At temperature 0 and 1, of rows alone and together."""
    model = tiny_future(**MODELS[name])
    prompts = EIGHT[:batch]
    options = {"temperature": ([1.0, 0.0, 0.7, 1.3] * 2)[:batch], "max_new_tokens": 20}
    plain = run(model, prompts, gaps=True, **options)
    out = run(model, prompts, drafter=future_drafter(model), **options)
    assert out.guarantee == "token"
    assert_token_guarantee(plain, out)
    assert (out.stats.row_calls <= plain.stats.row_calls).all()
    assert out.stats.host_syncs == 0


MIXED_ROWS = {"temperature": [0.0, 0.8, 1.2, 0.0], "max_new_tokens": 16}


@functools.lru_cache
def plain():
    return run(tiny_future(), PROMPTS, gaps=True, **MIXED_ROWS)


@pytest.mark.medium
def test_trees():
    model = tiny_future()
    drafter = future_drafter(model, tree=MIXED)
    out = run(model, PROMPTS, drafter=drafter, **MIXED_ROWS)
    assert_token_guarantee(plain(), out)
    assert (out.stats.row_calls <= plain().stats.row_calls).all()


@pytest.mark.medium
def test_own_draws_say_from_which_law():
    model = tiny_future()
    drafter = future_drafter(model, 2, draw="own")
    out = run(model, PROMPTS, drafter=drafter, **MIXED_ROWS)
    assert out.guarantee == "distribution"
    for row in (0, 3):  # by arg-max all the same
        np.testing.assert_array_equal(out.tokens[row], plain().tokens[row])


# What it drafts ------------------------


def test_the_head_drafts_what_the_decoder_spells():
    """Step by step along a tree as all at once along each of its paths."""
    model = tiny_future()
    head, config = future_head(model.config), model.config
    carrier = jax.random.normal(jax.random.key(3), (2, 32))
    ids = np.array([[5, 9, 2, 7], [1, 1, 8, 3]], np.int32)

    def by_steps(params, carrier, ids):
        context = future_context(params, config, carrier)
        state, found = head.init(params, context), []
        for index in range(head.steps):
            tokens = ids[:, index : index + 1]
            hidden, state = head.step(params, context, state, tokens, index)
            found.append(hidden[:, 0])
        read = head.readout(params, jnp.stack(found, 1), Want(top_k=2))
        return jnp.stack(found, axis=1), read

    hidden, read = jax.jit(by_steps)(model.params, carrier, ids)
    whole = jax.jit(lambda m, c, i: m.decode(c, i))(model, carrier, ids[:, :3])
    assert_close(hidden, whole[:, 1:], rtol=1e-4, atol=1e-5)
    logits = np.asarray(whole[:, 1:]) @ np.asarray(model.unembedding()[0]).T
    np.testing.assert_array_equal(read.choice, logits.argmax(-1))


@pytest.mark.medium
def test_the_state_is_that_of_the_newest_token_seen():
    """After every step, in every row: what encoding the text afresh gives."""
    model = tiny_future(first_input="last_token")
    states = steps(
        model.target(), model.params, PROMPTS, max_new_tokens=8, capacity=64,
        drafter=future_drafter(model), chunk=4, temperature=[0.0, 1.0, 0.5, 1.0],
    )  # fmt: skip
    encode = jax.jit(lambda ids: model.carry(model.encode(ids), ids))
    seen = 0
    for before, after in itertools.pairwise(states):
        fresh = np.asarray(encode(jnp.asarray(after.tokens.ids[:, :32])))
        held = after.drafter
        for row, count in enumerate(after.tokens.count):
            assert held.ready[row] == bool(after.calls[row])
            if before.live[row]:
                expected = fresh[row, count - 2]
                assert_close(held.carrier[row], expected, rtol=1e-3, atol=1e-4)
                seen += 1
    assert seen > 10


@pytest.mark.slow
def test_rows_that_refill_start_without_a_state():
    model = tiny_future()
    done = serve(
        model.target(), EIGHT[:5], params=model.params, batch=2, max_new_tokens=9,
        drafter=future_drafter(model),
    )  # fmt: skip
    for index, out in done:
        plain = run(model, EIGHT[index], max_new_tokens=9)
        assert out.tokens.tolist() == plain.tokens.tolist()


# Blocks ------------------------


@pytest.mark.medium
def test_blocks_are_what_each_state_spells():
    """By encoding and spelling in turns, until a budget or a stop id."""
    model = tiny_future()
    encode = jax.jit(lambda ids: model.encode(ids))
    spell = jax.jit(lambda state, ids: model.decode(state, ids)[-1])
    rows = np.asarray(model.unembedding()[0])
    options = {"max_new_tokens": [11, 5, 8, 9], **future_blocks(model, 3)}
    out = run(model, PROMPTS, **options)
    assert out.guarantee == "none"
    assert out.stats.row_calls.tolist() == [5, 3, 4, 4]
    for prompt, got in zip(PROMPTS, out.tokens, strict=True):
        text = list(prompt)
        while len(text) < len(prompt) + len(got):
            padded = jnp.asarray([text + [0] * (32 - len(text))])
            state, block = np.asarray(encode(padded))[0, len(text) - 1], []
            for _ in range(3):
                hidden = np.asarray(spell(state, jnp.asarray(block, jnp.int32)))
                block.append(int((rows @ hidden).argmax()))
            text += block
        assert got.tolist() == text[len(prompt) :][: len(got)]
    full = out.tokens[0].tolist()
    stopped = run(model, PROMPTS, stop_ids=[full[5]], **options)
    assert stopped.tokens[0].tolist() == full[: full.index(full[5]) + 1]
    assert stopped.finish_reason[0] == "stop"


@pytest.mark.medium
def test_a_block_of_one_is_plain_decoding():
    model = tiny_future()
    one = run(model, PROMPTS, **MIXED_ROWS, **future_blocks(model, 1))
    for a, b in zip(plain().tokens, one.tokens, strict=True):
        assert a.tolist() == b.tolist()


def test_unverified_drafts_of_a_tree_and_of_rows_without_any():
    from jtok.decode import Proposal, Tokens
    from jtok.ops import Readout

    tree = Tree.from_paths([(0,), (1,), (0, 0), (1, 0)])
    ids = jnp.array([[9, 1, 2, 3, 4]] * 3)
    valid = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    choice = jnp.array([[10, 11, 12, 13, 14]] * 3)
    got = unverified().accept(
        Proposal(ids, valid, tree=tree), Readout(choice), Tokens(ids, jnp.ones(3, int))
    )
    assert got.drafts.tolist() == [2, 2, 0]
    rows = zip(got.emitted.tolist(), got.drafts.tolist(), strict=True)
    assert [r[: n + 1] for r, n in rows] == [[1, 3, 13], [2, 4, 14], [10]]


# What is refused ------------------------


def _traced(*args):
    raise RuntimeError("the target was traced")


def test_bad_input():
    model = tiny_future()
    for call, message in (
        (lambda: future_drafter(model, 4), "depth: got 4, expected 0 to 3"),
        (lambda: future_drafter(model, -1), "depth: got -1"),
        (lambda: future_drafter(model, tree=Tree.chain(0)), "tree: got"),
        (lambda: future_drafter(model, tree=Tree.chain(4)), "tree: got 'depth 4'"),
        (lambda: future_drafter(model, tree=Tree.star(97)), "97 candidates"),
        (lambda: future_blocks(model, 5), "size: got 5, expected 1 to 4"),
        (lambda: future_blocks(model, 0), "size: got 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
    for function in (future_drafter, future_blocks):
        unchecked = getattr(function, "__wrapped__", function)
        with pytest.raises(ArgumentTypeError, match="model: got Model"):
            unchecked(tiny_model(), 1)
    unchecked = getattr(future_drafter, "__wrapped__", future_drafter)
    with pytest.raises(ArgumentError, match="draw: got 'both'"):
        unchecked(model, draw="both")
    with pytest.raises(VocabMismatchError, match="model: got '96 ids', expected 12"):
        other = Target(_traced, _traced, _traced, Info(12), _traced)
        generate(other, [1], drafter=future_drafter(model))
    with pytest.raises(ArgumentError, match="max_new_tokens|positions"):
        run(model, [1] * 400, max_new_tokens=200)
