"""Scores and vectors of texts: what one text alone gives, in batches."""

import dataclasses
import inspect
import math
import re

import jax
import numpy as np
import pytest

from jtok import models, train
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import encode, score
from jtok.models.scoring import _row_nats
from jtok.ops.sharding import mesh_from, shard_tree
from jtok.testing import assert_close, tiny_config, tiny_model, tiny_vocabulary

RNG = np.random.default_rng(0)
IDS = [RNG.integers(0, 96, n).tolist() for n in (5, 1, 40, 17, 3, 2)]


forward = jax.jit(lambda model, ids: model(ids).logits)


def nats_by_hand(ids, context, stride):
    """Every token's log-probability, each window computed alone."""
    total, done = 0.0, 0
    for first in range(0, len(ids) - 1, stride):
        if done >= len(ids) - 1:
            break
        window = ids[first : first + context]
        padded = np.zeros((1, context), np.int32)
        padded[0, : len(window)] = window
        logits = np.asarray(forward(tiny_model(), padded)[0], np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for at in range(len(window)):
            if done <= first + at < len(ids) - 1:
                total += log_probs[at, ids[first + at + 1]]
        done = first + context
    return total


@pytest.mark.medium
@pytest.mark.parametrize("context, stride", [(64, 64), (16, 8), (16, 5)])
def test_scores_are_those_of_one_window_at_a_time(context, stride):
    got = score(tiny_model(), IDS, context=context, stride=stride, batch_size=4)
    expected = [nats_by_hand(ids, context, stride) for ids in IDS]
    assert_close(got.log_likelihood, np.array(expected), rtol=1e-5, atol=1e-4)
    assert got.num_tokens.tolist() == [len(ids) - 1 for ids in IDS]
    assert got.num_bytes is None


def test_more_context_helps_no_less_than_the_window_says():
    """Texts within a window do not depend on its size; the start id shifts by one."""
    short = [ids for ids in IDS if len(ids) <= 17]
    one = score(tiny_model(), short, context=32)
    two = score(tiny_model(), short, context=64, batch_size=3)
    assert_close(one.log_likelihood, two.log_likelihood, rtol=1e-5, atol=1e-5)
    started = score(tiny_model(), [ids[1:] for ids in short if len(ids) > 1 and ids[0]
                                   == short[0][0]], start_id=short[0][0])  # fmt: skip
    assert_close(started.log_likelihood[0], one.log_likelihood[0], rtol=1e-5)


def speaking():
    vocabulary = tiny_vocabulary()
    config = tiny_config(vocab_size=vocabulary.size)
    return models.init(config, jax.random.key(1), vocabulary=vocabulary)


def test_bits_per_byte_agree_with_those_of_training():
    model, texts = speaking(), ["the cat", "", "a dog, é", "that is all there is, so"]
    got = score(model, texts, context=16, stride=8)
    assert got.num_bytes.tolist() == [len(text.encode()) for text in texts]
    assert got.log_likelihood[1] == 0 and np.isnan(got.bits_per_byte[1])
    whole = -got.log_likelihood.sum() / math.log(2) / got.num_bytes.sum()
    expected = train.bits_per_byte(model, model.vocabulary, texts, length=16, stride=8)
    assert whole == pytest.approx(expected, rel=1e-5)
    perplexity = np.exp(-got.log_likelihood[0] / got.num_tokens[0])
    assert got.perplexity[0] == pytest.approx(perplexity)
    # Ids with the start token are the same text.
    start = model.vocabulary.special["eos"]
    ids = [[start, *model.vocabulary.encode(text).tolist()] for text in texts]
    as_ids = score(model, ids, context=16, stride=8)
    assert_close(as_ids.log_likelihood, got.log_likelihood, rtol=1e-5)
    assert as_ids.num_bytes.tolist() == got.num_bytes.tolist()


states = jax.jit(lambda model, ids: model(ids, logits="none").hidden)


@pytest.mark.parametrize("pool", ["mean", "last", "first", "none"])
def test_vectors_are_those_of_each_text_alone(pool):
    got = encode(tiny_model(), IDS, pool=pool, batch_size=4)
    for index, ids in enumerate(IDS[:4]):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        hidden = np.asarray(states(tiny_model(), padded)[0])[: len(ids)]
        pools = {"mean": hidden.mean(0), "last": hidden[-1], "first": hidden[0]}
        expected = pools.get(pool, hidden)
        assert_close(got[index], expected, rtol=1e-5, atol=1e-5)
    if pool != "none":
        assert got.shape == (len(IDS), 32) and got.dtype == np.float32


@pytest.mark.medium
def test_normalized_vectors_have_length_one():
    plain = encode(tiny_model(), IDS)
    unit = encode(tiny_model(), IDS, normalize=True)
    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    assert_close(unit, plain / norms, rtol=1e-5, atol=1e-6)


@pytest.mark.medium
def test_on_a_mesh_the_numbers_are_the_same():
    scores, vectors = score(tiny_model(), IDS), encode(tiny_model(), IDS)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        axes = models.checkpoint.param_axes(tiny_model().params)
        params = shard_tree(tiny_model().params, axes)
        model = dataclasses.replace(tiny_model(), params=params)
        sharded = score(model, IDS)
        assert_close(encode(model, IDS), vectors, rtol=1e-4, atol=1e-5)
    assert_close(sharded.log_likelihood, scores.log_likelihood, rtol=1e-5, atol=1e-4)


def test_no_logits_of_all_tokens_are_written():
    """2048 tokens and 32768 ids in float32 would be 256 MB."""
    model = tiny_model(vocab_size=32768)
    tokens = np.zeros((8, 257), np.int32)
    lowered = _row_nats.lower(model, tokens, np.ones((8, 256), bool), 64)
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < 64 * 2**20


@pytest.mark.parametrize(
    "function, texts, options, error, message",
    [
        (score, "one", {}, ArgumentTypeError, "texts: got str"),
        (encode, "one", {}, ArgumentTypeError, "texts: got str"),
        (score, ["text"], {}, ArgumentError, "vocabulary: got None"),
        (score, [[1, 96]], {}, VocabMismatchError, "texts: text 0 has ids in 1..96"),
        (encode, [[1], [-1]], {}, VocabMismatchError, "texts: text 1 has ids in -1"),
        (encode, [[1], []], {}, ArgumentError, "texts: got 'text 1 without a token'"),
        (encode, [[0.5]], {}, ArgumentTypeError, "texts: text 0 has shape (1,)"),
        (score, [[1]], {"batch_size": 0}, ArgumentError, "batch_size: got 0"),
        (encode, [[1]], {"batch_size": 0}, ArgumentError, "batch_size: got 0"),
        (score, [[1]], {"context": 0}, ArgumentError, "context: got 0"),
        (score, [[1]], {"stride": 0}, ArgumentError, "stride: got 0"),
        (
            score, [[1]], {"context": 4, "stride": 5}, ArgumentError,
            "stride: got 5, expected 1..4",
        ),
        (score, [[1]], {"start_id": 96}, ArgumentError, "start_id: got 96"),
    ],
)  # fmt: skip
def test_bad_input(function, texts, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        inspect.unwrap(function)(tiny_model(), texts, **options)


def test_other_bad_input():
    with pytest.raises(ArgumentError, match="pool: got 'max', expected one of"):
        inspect.unwrap(encode)(tiny_model(), [[1]], pool="max")
    learned = tiny_model(family="gpt2")
    with pytest.raises(ArgumentError, match="context: got 600, expected at most 512"):
        score(learned, [[1]], context=600)
    with pytest.raises(ArgumentError, match="text 0 of 600 tokens"):
        encode(learned, [[1] * 600])
    with pytest.raises(ArgumentError, match="vocabulary: got None"):
        _ = score(tiny_model(), [[1, 2]]).bits_per_byte
