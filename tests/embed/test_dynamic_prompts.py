"""Merged prompts decode from a cache, from whichever vocabulary generates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import decode, embed
from jtok.errors import ArgumentError
from jtok.testing import tiny_model, tiny_vocabulary
from jtok.text import merge_batch, merge_rule

RULE = merge_rule(tiny_vocabulary())
TEXTS = ["zz zz qq", "a longer text with some zz in it"]


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=RULE.tokenizer.size)


def inputs_of(model, merges, **options):
    rows = [np.array(RULE.tokenizer.encode(text)) for text in TEXTS]
    batch = merge_batch(RULE, rows, merges)
    source = model.params["embed"]["tokens"]
    make = embed.piece_mean_rows(source, pad_id=0)
    made = embed.dynamic_inputs(
        batch, RULE.tokenizer, source, make, pad_id=0, **options
    )
    return rows, made


def test_without_merges_prompts_are_those_of_the_text(model):
    rows, made = inputs_of(model, 0)
    reader, prompts = embed.dynamic_prompts(model, made, own_ids=RULE.tokenizer.size)
    assert reader is model
    for got, want in zip(prompts, rows, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("own", [0, None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_cached_continuation_is_that_of_the_vectors(model, own, side):
    """Greedy tokens from `generate` equal those of whole passes over the vectors."""
    _, made = inputs_of(model, None, side=side)
    own = RULE.tokenizer.size if own is None else own
    reader, prompts = embed.dynamic_prompts(model, made, own_ids=own)
    got = decode.generate(reader, prompts, max_new_tokens=4).tokens
    table = model.params["embed"]["tokens"]

    @jax.jit
    def next_of(vectors):
        return jnp.argmax(model(vectors[None], logits="last").logits[0, 0])

    for row, new in enumerate(got):
        vectors = made.vectors[row][np.asarray(made.mask[row])]
        for token in np.asarray(new):
            assert int(next_of(vectors)) == int(token)
            vectors = jnp.concatenate([vectors, table[token][None]])


def test_generation_from_many_rows(model):
    """The prompt's rows stay its own where another vocabulary generates."""
    _, made = inputs_of(model, None)
    many = jax.random.normal(jax.random.key(1), (1000, model.config.width))
    large = embed.with_vocabulary(model, many, dtype=jnp.float32)
    reader, prompts = embed.dynamic_prompts(large, made)
    assert min(int(row.min()) for row in prompts) >= 1000
    target = embed.candidate_target(reader, candidates=20)
    got = decode.generate(target, prompts, params=reader.params, max_new_tokens=3)
    vectors = made.vectors[0][np.asarray(made.mask[0])]
    logits = large(vectors[None], logits="last").logits[0, 0]
    assert int(np.asarray(got.tokens)[0][0]) == int(jnp.argmax(logits))


def test_bad_input_is_named(model):
    _, made = inputs_of(model, 2)
    with pytest.raises(ArgumentError, match="own_ids"):
        embed.dynamic_prompts(model, made, own_ids=model.config.vocab_size + 1)
    with pytest.raises(ArgumentError, match="vectors"):
        embed.dynamic_prompts(model, made._replace(vectors=made.vectors[..., :31]))
