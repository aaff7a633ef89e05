"""Models of other people, decoded as a `Target` in few lines."""

import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok import models
from jtok.decode import generate, prompt_lookup, token_recycling
from jtok.errors import ArgumentError
from jtok.models import Info, StepInput, StepOutput, Target, logits_target, model_target
from jtok.ops import Tree
from jtok.testing import assert_close, assert_token_guarantee, tiny_model

VOCAB, WIDTH = 11, 16
PROMPTS = [[1, 2, 3, 1, 2], [7], [4, 5] * 4]
OPTIONS = {"max_new_tokens": 20, "temperature": [0.0, 1.0, 0.8], "gaps": True}
TREE = token_recycling(4, Tree.from_paths([(0,), (1,), (0, 0), (0, 1)]))


def lists(out):
    return [row.tolist() for row in out.tokens]


def check_drafters(target, params, drafters):
    """Every drafter emits what plain decoding does, some of it for less."""
    plain = generate(target, PROMPTS, params=params, **OPTIONS)
    for drafter in drafters:
        out = generate(target, PROMPTS, params=params, drafter=drafter, **OPTIONS)
        assert_token_guarantee(plain, out)
        assert lists(out) == lists(plain)
        assert out.stats.calls < plain.stats.calls
    return plain


def by_hand(apply, prompt, count):
    """Arg-max, one token at a time, of a function from ids to logits."""
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(apply(padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


# ---- a transformer in Flax NNX, with nothing in it that knows of decoding


class Foreign(nnx.Module):
    """One layer of causal attention with learned positions, no mask and no cache."""

    def __init__(self, rngs):
        self.tokens = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.places = nnx.Embed(40, WIDTH, rngs=rngs)
        self.mix = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

    def __call__(self, ids):
        count = ids.shape[1]
        x = 3 * (self.tokens(ids) + self.places(jnp.arange(count))[None])
        q, k, v = jnp.split(self.mix(x), 3, axis=-1)
        scores = jnp.einsum("bqd,bkd->bqk", q, k) / WIDTH**0.5
        causal = jnp.tril(jnp.ones((count, count), bool))[None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        return 4 * self.out(nnx.relu(x + weights @ v))


@functools.lru_cache
def nnx_model():
    return nnx.split(Foreign(nnx.Rngs(0)))


def nnx_apply(params, ids, positions, mask):
    return nnx.merge(nnx_model()[0], params)(ids)


def test_an_nnx_model_is_split_and_decoded():
    params = nnx_model()[1]
    target = logits_target(nnx_apply, vocab_size=VOCAB, max_len=40)
    assert target.info == Info(VOCAB, 40, trees=False)
    plain = check_drafters(target, params, [prompt_lookup(3)])
    apply = jax.jit(lambda ids: nnx_apply(params, ids, None, None))
    assert plain.tokens[0].tolist() == by_hand(apply, PROMPTS[0], 20)
    with pytest.raises(ArgumentError, match="the model has 40 positions"):
        generate(target, [1, 2], params=params, max_new_tokens=39)
    with pytest.raises(ArgumentError, match="expected chains"):
        generate(target, PROMPTS, params=params, drafter=TREE, **OPTIONS)


def test_all_positions_of_a_bounded_model_are_used():
    """Drafts that would stand past the last position change nothing."""
    params = nnx_model()[1]
    target = logits_target(nnx_apply, vocab_size=VOCAB, max_len=40)
    prompt = [1, 2, 3, 1]
    plain = generate(target, prompt, params=params, max_new_tokens=36)
    out = generate(
        target, prompt, params=params, max_new_tokens=36, drafter=prompt_lookup(7)
    )
    assert out.tokens.tolist() == plain.tokens.tolist() and len(plain.tokens) == 36


# ---- a recurrent network in Flax Linen, without and with its own state


class Gru(nn.Module):
    """Embedding, a gated recurrent unit, logits."""

    @nn.compact
    def __call__(self, ids, carry=None):
        x = nn.Embed(VOCAB, WIDTH, name="tokens")(ids) * 6
        cell = nn.GRUCell(WIDTH, name="cell")
        carry = jnp.zeros((ids.shape[0], WIDTH)) if carry is None else carry
        hidden = []
        for step in range(ids.shape[1]):
            carry, y = cell(carry, x[:, step])
            hidden.append(y)
        states = jnp.stack(hidden, axis=1)
        return 6 * nn.Dense(VOCAB, name="out")(states), states


@functools.lru_cache
def gru_params():
    return Gru().init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]


class GruCache(typing.NamedTuple):
    """State after the committed tokens, and after each node of the last call."""

    state: jax.Array
    pending: typing.Any = None


def gru_target():
    """What a user writes: a state for each node, of which `commit` selects one."""

    def init_cache(params, batch, capacity):
        return GruCache(jnp.zeros((batch, WIDTH)))

    def step(params, cache, nodes):
        logits, states = Gru().apply({"params": params}, nodes.ids, cache.state)
        return StepOutput(logits), GruCache(cache.state, states)

    def commit(cache, path, count):
        last = jnp.maximum(count - 1, 0)[:, None, None]
        after = jnp.take_along_axis(cache.pending, last, axis=1)[:, 0]
        return GruCache(jnp.where((count > 0)[:, None], after, cache.state))

    return Target(init_cache, step, commit, Info(VOCAB, trees=False))


@pytest.mark.slow
def test_a_linen_network_with_a_state_of_its_own():
    params = gru_params()
    plain = check_drafters(gru_target(), params, [prompt_lookup(3)])
    apply = jax.jit(lambda ids: Gru().apply({"params": params}, ids)[0])
    assert plain.tokens[0].tolist() == by_hand(apply, PROMPTS[0], 20)


# ---- a model that takes a mask: trees


def masked_apply(params, ids, positions, mask):
    model = tiny_model(vocab_size=VOCAB).replace(params=params)
    return model(ids, positions=positions, mask=mask).logits


def test_a_model_that_takes_a_mask_takes_trees():
    model = tiny_model(vocab_size=VOCAB)
    target = logits_target(masked_apply, vocab_size=VOCAB, max_len=64, trees=True)
    plain = check_drafters(target, model.params, [TREE, prompt_lookup(3)])
    fast = generate(model, PROMPTS, **OPTIONS)
    assert_token_guarantee(fast, plain)
    assert lists(fast) == lists(plain)


def test_a_step_gives_what_the_model_s_own_target_gives():
    """Ragged rows, a tree, two steps, a row that keeps nothing."""
    model = tiny_model(vocab_size=VOCAB)
    tree = Tree.from_paths([(0,), (1,), (0, 0)])
    targets = [
        logits_target(masked_apply, vocab_size=VOCAB, trees=True),
        model_target(model.config),
    ]
    ids = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = []
    for target in targets:
        step, commit = jax.jit(target.step), jax.jit(target.commit)
        cache = target.init_cache(model.params, 2, 24)
        for path, count in (
            ([[0, 1, 3], [0, 2, -1]], [3, 2]),
            ([[0, 2, -1]] * 2, [2, 0]),
        ):
            nodes = StepInput(
                ids=ids,
                positions=cache.length[:, None] + jnp.asarray(tree.depth)[None],
                allow=jnp.broadcast_to(jnp.asarray(tree.ancestors)[None], (2, 4, 4)),
                valid=jnp.ones((2, 4), bool),
            )
            out, cache = step(model.params, cache, nodes)
            found.append(out.hidden)
            cache = commit(cache, jnp.array(path), jnp.array(count))
        assert cache.length.tolist() == [5, 2]
    weight = model.unembedding()[0]
    for slow, fast in zip(found[:2], found[2:], strict=True):
        assert_close(slow, fast @ weight.T)


def test_the_cache_is_the_text():
    target = logits_target(nnx_apply, vocab_size=VOCAB, max_len=40)
    cache = target.init_cache(None, 2, 128)
    assert cache.ids.shape == (2, 40)
    cache = cache.replace(pending=jnp.array([[3, 4, 5], [6, 7, 8]]))
    path = jnp.array([[0, 2, -1], [0, 1, 2]])
    cache = target.commit(cache, path, jnp.array([2, 0]))
    assert cache.ids[:, :3].tolist() == [[3, 5, 0], [0, 0, 0]]
    assert cache.length.tolist() == [2, 0] and cache.pending is None
    with pytest.raises(ArgumentError, match="cache: got one without pending nodes"):
        target.commit(cache, path, jnp.array([1, 1]))


def test_a_kept_text_is_rewound():
    target = logits_target(nnx_apply, vocab_size=VOCAB, max_len=40)
    options = {"params": nnx_model()[1], "max_new_tokens": 5}
    first = generate(target, [1, 2, 3], keep_cache=True, **options)
    again = generate(target, [1, 2, 7, 8], cache=first.cache, **options)
    assert (
        again.tokens.tolist()
        == generate(target, [1, 2, 7, 8], **options).tokens.tolist()
    )


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="vocab_size: got 0"):
        logits_target(nnx_apply, vocab_size=0)
    with pytest.raises(ArgumentError, match="max_len: got 0"):
        logits_target(nnx_apply, vocab_size=3, max_len=0)
    wrong = logits_target(nnx_apply, vocab_size=VOCAB + 1)
    with pytest.raises(ArgumentError, match=r"apply: got \(1, 128, 11\), expected log"):
        generate(wrong, [1], params=nnx_model()[1], max_new_tokens=2)
    assert logits_target(nnx_apply, vocab_size=3) is logits_target(
        nnx_apply, vocab_size=3
    )


def test_no_public_signature_takes_a_module():
    for name in models.__all__:
        text = str(getattr(getattr(models, name), "__annotations__", ""))
        assert "flax" not in text or "Module" not in text, name
