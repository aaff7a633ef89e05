"""Prompts with vectors among their ids decode as any other prompt does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import decode, models
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.predict import attach, lora_init, mask_init, with_masks
from jtok.testing import tiny_model

WORDS = [5, 9, 3, 11, 7, 2]


@pytest.fixture(scope="module")
def plain():
    return tiny_model()


@pytest.fixture(scope="module")
def model(plain):
    """Vectors that are the rows of three words: what they do is known."""
    rows = plain.params["embed"]["tokens"][jnp.array([9, 3, 11])]
    return models.with_vectors(plain, rows)


PROMPT = [5, 96, 97, 98, 7, 2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 3},
        {"drafter": decode.prompt_lookup()},
        {"drafter": decode.token_recycling(), "temperature": 0.7},
        {"logprobs": True, "top_logprobs": 2},
    ],
    ids=["greedy", "sampled", "lookup", "recycling", "logprobs"],
)
def test_vectors_that_are_rows_of_words_give_what_the_words_give(plain, model, options):
    got = decode.generate(model, PROMPT, max_new_tokens=12, **options)
    want = decode.generate(plain, WORDS, max_new_tokens=12, **options)
    np.testing.assert_array_equal(got.tokens, want.tokens)


def test_a_batch_of_prompts_with_and_without(plain, model):
    prompts = [PROMPT, [4, 8, 1], [98, 5, 96, 2, 9]]
    words = [WORDS, [4, 8, 1], [11, 5, 9, 2, 9]]
    got = decode.generate(model, prompts, max_new_tokens=8)
    want = decode.generate(plain, words, max_new_tokens=8)
    np.testing.assert_array_equal(got.tokens, want.tokens)


def test_penalties_count_words_only(plain, model):
    """A vector's id is no word that could be repeated."""
    how = {"repetition_penalty": 1.5, "frequency_penalty": 0.4, "max_new_tokens": 12}
    got = decode.generate(model, PROMPT, **how)
    want = decode.generate(plain, WORDS, **how)
    first = decode.generate(model, [96, 97, 98], **how).tokens
    alone = decode.generate(plain, [9, 3, 11], **how).tokens
    assert int(np.max(got.tokens)) < 96 and int(np.max(want.tokens)) < 96
    assert first.shape == alone.shape


def test_vectors_get_gradients(model, plain):
    rows = model.params["embed"]["vectors"]

    @jax.jit
    def loss(rows):
        full = models.with_vectors(plain, rows)
        return full(jnp.array([PROMPT]), logits="last").logits.max()

    grads = jax.grad(loss)(rows)
    assert np.isfinite(grads).all() and float(jnp.abs(grads).min(axis=1).max()) > 0


def test_bad_input_is_named(plain, model):
    with pytest.raises(ArgumentError, match="vectors"):
        models.with_vectors(plain, jnp.ones((2, 31)))
    with pytest.raises(ArgumentError, match="model"):
        models.with_vectors(model, jnp.ones((2, 32)))
    with pytest.raises(ArgumentTypeError, match="model"):
        models.with_vectors(tiny_model(family="bert"), jnp.ones((2, 32)))
    with pytest.raises(ArgumentError, match="99"):
        decode.generate(model, [5, 99], max_new_tokens=2)
    with pytest.raises(ArgumentError, match="96"):
        decode.generate(plain, [5, 96], max_new_tokens=2)
    assert models.vector_ids(model.params, 96) == range(96, 99)
    assert (
        len(models.vector_ids(plain.params, 96)) == len(models.vector_ids(None, 9)) == 0
    )


@pytest.mark.medium
def test_vectors_beside_mask_tokens_and_adapters(plain):
    """Masks keep ids and gates of their own; adapters act on all tokens."""
    made = mask_init(plain, 2, 2, jax.random.key(0))
    made["adapters"] = jax.tree.map(lambda x: x + 0.05, made["adapters"])
    masked = with_masks(plain, made)
    rows = plain.params["embed"]["tokens"][jnp.array([9, 3])]
    model = models.with_vectors(masked, rows)
    assert models.vector_ids(model.params, 96) == range(98, 100)
    options = {"drafter": decode.mtp(model, made["sampler"]), "max_new_tokens": 10}
    got = decode.generate(model, [5, 98, 99, 7], **options)
    want = decode.generate(plain, [5, 9, 3, 7], max_new_tokens=10)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    with pytest.raises(ArgumentError, match="96"):
        decode.generate(model, [5, 96], **options)
    adapters = lora_init(plain, 2, jax.random.key(1))
    adapters = jax.tree.map(lambda x: x + 0.05, adapters)
    adapted = dataclasses.replace(plain, params=attach(plain.params, adapters))
    alone = adapted(jnp.array([[5, 9, 3, 7]])).logits
    beside = models.with_vectors(adapted, rows)(jnp.array([[5, 96, 97, 7]])).logits
    np.testing.assert_allclose(beside, alone, atol=1e-5)
    assert np.abs(alone - plain(jnp.array([[5, 9, 3, 7]])).logits).max() > 1e-3
