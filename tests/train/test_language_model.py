"""The language-model loss and bits per byte against plain arithmetic."""

import math

import jax
import numpy as np
import pytest

from jtok import testing
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import stack_layers
from jtok.models.checkpoint import param_axes
from jtok.ops.sharding import mesh_from, shard_tree
from jtok.train import adamw, bits_per_byte, fit, lm_loss, packed_batches

MODEL = testing.tiny_model()
KEY = jax.random.key(0)
LOSS = jax.jit(lm_loss(MODEL))
SIZE = MODEL.config.vocab_size


class Letters:
    """Letters are ids; 0 ends a text."""

    special = {"eos": 0}

    def encode(self, text, *, specials):
        assert not specials
        return np.array([1 + ord(letter) % 64 for letter in text], np.int32)


@jax.jit
def logits_of(tokens):
    return MODEL(tokens, logits="all").logits


def full_log_probs(tokens):
    """[seq, vocab] log-probabilities of one row, whole and in float64."""
    # Padded to one shape, so compiled once; causal rows do not see the padding.
    padded = np.zeros((1, 40), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = np.asarray(logits_of(padded)[0, : len(tokens)], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def nats_of(tokens):
    """Nats of each token but the first, the whole row seen."""
    log_probs = full_log_probs(tokens[:-1])
    return -log_probs[np.arange(len(tokens) - 1), tokens[1:]]


def evaluate(batch):
    loss, (metrics, state) = LOSS(MODEL.params, None, {"kept": 3}, batch, KEY)
    assert state == {"kept": 3}
    return float(loss), int(metrics["tokens"])


def test_loss_is_the_mean_over_real_targets():
    tokens = np.random.default_rng(0).integers(0, SIZE, (2, 9)).astype(np.int32)
    mask = np.ones((2, 9), bool)
    mask[1, 6:] = False
    nats = np.stack([nats_of(row) for row in tokens])
    loss, count = evaluate({"tokens": tokens})
    assert count == 16
    np.testing.assert_allclose(loss, nats.mean(), rtol=1e-5)
    loss, count = evaluate({"tokens": tokens, "mask": mask})
    assert count == 8 + 5
    np.testing.assert_allclose(loss, nats[mask[:, 1:]].mean(), rtol=1e-5)


def test_documents_kept_apart_score_as_alone():
    first, second = np.array([5, 6, 7, 0]), np.array([8, 9, 3, 4, 2])
    ids = np.concatenate([first, second]).astype(np.int32)
    data = {"length": 8, "batch_size": 1, "seed": 0, "eos_id": 0}
    apart = packed_batches(ids, documents=True, **data)[0]
    together = packed_batches(ids, **data)[0]
    after_end = -full_log_probs(first)[3, 8]
    alone = nats_of(first).sum() + after_end + nats_of(second).sum()
    np.testing.assert_allclose(evaluate(apart)[0], alone / 8, rtol=1e-5)
    np.testing.assert_allclose(evaluate(together)[0], nats_of(ids).mean(), rtol=1e-5)
    assert abs(evaluate(apart)[0] - evaluate(together)[0]) > 1e-3


def test_batch_of_nothing_costs_nothing():
    mask = np.zeros((1, 5), bool)
    assert evaluate({"tokens": np.zeros((1, 5), np.int32), "mask": mask}) == (0.0, 0)


def test_loss_keeps_no_parameters():
    loss_fn = lm_loss(MODEL)
    kept = [cell.cell_contents for cell in loss_fn.__closure__]
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(kept))


def test_wrong_model_or_batch():
    with pytest.raises(ArgumentTypeError, match="model: got dict"):
        lm_loss({})
    with pytest.raises(ArgumentTypeError, match=r"data: got \['ids'\]"):
        lm_loss(MODEL)(MODEL.params, None, None, {"ids": 0}, KEY)


@pytest.mark.parametrize("stacked", [False, True])
def test_training_lowers_the_loss(stacked):
    ids = np.tile(np.arange(1, 9, dtype=np.int32), 40)
    result = fit(
        lm_loss(MODEL),
        stack_layers(MODEL.params) if stacked else MODEL.params,
        optimizer=adamw(1e-2),
        data=packed_batches(ids, length=16, batch_size=4, seed=0, eos_id=0),
        steps=30,
        key=KEY,
        progress=False,
    )
    losses = result.metrics["loss"]
    assert losses[0] > 0.9 * math.log(SIZE) > 2.0 > losses[-1]
    assert set(result.metrics["tokens"]) == {64, 63}  # the last row is one short


def test_sharded_training_equals_the_plain_one():
    def losses(params):
        ids = np.random.default_rng(1).integers(0, SIZE, 700).astype(np.int32)
        result = fit(
            lm_loss(MODEL),
            params,
            optimizer=adamw(1e-3),
            data=packed_batches(ids, length=8, batch_size=8, seed=0, eos_id=0),
            steps=4,
            key=KEY,
            accumulate=2,
            progress=False,
        )
        return result.metrics["loss"]

    plain = losses(MODEL.params)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        placed = shard_tree(MODEL.params, param_axes(MODEL.params))
        spread = losses(placed)
    shard = placed["embed"]["tokens"].sharding.shard_shape((SIZE, 32))
    assert shard == (SIZE // 2, 32)
    np.testing.assert_allclose(spread, plain, rtol=1e-5)


# ---- bits per byte


def windowed_nats(text, length, stride):
    """The rule of the docstring, one target at a time."""
    ids = [0, *Letters().encode(text, specials=False)]
    total, scored = 0.0, 0
    for first in range(0, len(ids), stride):
        window = ids[first : first + length + 1]
        nats = nats_of(np.array(window))
        for index in range(max(scored - first, 0), len(window) - 1):
            total += nats[index]
            scored = first + index + 1
        if scored == len(ids) - 1:
            return total
    raise AssertionError("not all scored")


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
@pytest.mark.parametrize(
    "texts", [["a"], ["abcdefgh"], ["någon text här", "", "b" * 21]]
)
def test_bits_per_byte_follows_its_rule(texts, stride):
    nats = sum(windowed_nats(text, 8, stride or 4) for text in texts if text)
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    got = bits_per_byte(MODEL, Letters(), texts, length=8, stride=stride, batch_size=2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_text_of_one_window_is_scored_whole():
    text = "abcdef"
    ids = np.array([0, *Letters().encode(text, specials=False)])
    expected = nats_of(ids).sum() / math.log(2) / 6
    got = bits_per_byte(MODEL, Letters(), [text], length=16, batch_size=2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_bits_per_byte_on_a_mesh():
    texts = ["some longer text to spread", "b"]
    plain = bits_per_byte(MODEL, Letters(), texts, length=8, batch_size=8)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        spread = bits_per_byte(MODEL, Letters(), texts, length=8, batch_size=8)
    np.testing.assert_allclose(spread, plain, rtol=1e-5)


def test_start_token_is_named_or_found():
    class Plain:
        def encode(self, text):
            return Letters().encode(text, specials=False)

    with pytest.raises(ArgumentError, match="start_id: got None"):
        bits_per_byte(MODEL, Plain(), ["abc"], length=8)
    named = bits_per_byte(MODEL, Plain(), ["abc"], length=8, start_id=0, batch_size=2)
    assert named == bits_per_byte(MODEL, Letters(), ["abc"], length=8, batch_size=2)


def test_vocabulary_larger_than_the_model_is_refused():
    class Large(Letters):
        def encode(self, text, *, specials):
            return np.full(len(text), SIZE, np.int32)

    with pytest.raises(
        VocabMismatchError, match=f"id {SIZE}, the model has {SIZE} rows"
    ):
        bits_per_byte(MODEL, Large(), ["abc"], length=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length: got 0"),
        ({"stride": 9}, "stride: got 9"),
        ({"stride": 0}, "stride: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"texts": [""]}, "texts: got 'no byte of text'"),
    ],
)
def test_bad_arguments(options, message):
    given = {"texts": ["abc"], "length": 8, **options}
    with pytest.raises(ArgumentError, match=message):
        bits_per_byte(MODEL, Letters(), given.pop("texts"), **given)
    with pytest.raises(ArgumentTypeError, match="got one string"):
        bits_per_byte(MODEL, Letters(), "abc", length=8)
