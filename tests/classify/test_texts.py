"""The whole network against the slow reference, training, and reading."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from jtok import models, train
from jtok.classify import (
    ClassifierConfig,
    HeadConfig,
    classifier_loss,
    head_loss,
    init_classifier,
    init_head,
    read_hidden,
    read_texts,
    shuffled_batches,
)
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.nn import (
    LamaPooler,
    MaxPooler,
    MeanPooler,
    StructuredPooler,
    attention_penalty,
    bi_gru_from_tensors,
    fold_context,
)
from jtok.testing import assert_close, load_golden, tiny_model

CONTEXTS = ("learned", "mean")
read = functools.partial(jax.jit, static_argnums=1)(read_texts)


def config_of(**options):
    pooler = LamaPooler(8, heads=3)
    head = {"pooler": pooler, "classes": 3} | options.pop("head", {})
    sizes = {"vocab_size": 11, "embedding": 5, "state": 4} | options
    return ClassifierConfig(head=HeadConfig(**head), **sizes)


@pytest.fixture(scope="module")
def file():
    return load_golden("lama/lama_full_a.npz")


def golden_model(file, context):
    embedding, state, heads, classes = file["dims"].tolist()
    pooler = LamaPooler(2 * state, heads=heads, context=context)
    config = ClassifierConfig(
        vocab_size=len(file["emb"]), embedding=embedding, state=state,
        head=HeadConfig(pooler=pooler, classes=classes),
    )  # fmt: skip
    of_pooler = {"context_map": file["P"], "word_map": file["Q"]}
    if context == "learned":
        of_pooler["context"] = file["c"]
    params = {
        "embed": file["emb"],
        "gru": bi_gru_from_tensors({n: file[n] for n in file if "gru." in n}, "gru."),
        "head": {
            "pooler": of_pooler,
            "words": {"kernel": file["Wu"], "bias": file["bu"]},
            "labels": {"kernel": file["Wo"], "bias": file["bo"]},
        },
    }
    return config, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("context", CONTEXTS)
def test_outputs_and_gradients_of_the_reference(file, context):
    config, params = golden_model(file, context)
    ids, mask, labels = (jnp.asarray(file[n]) for n in ("ids", "mask", "labels"))
    made = read(params, config, ids, mask)
    assert_close(made.attention, file[f"{context}.A"])
    assert_close(made.logits, file[f"{context}.logits"])
    assert_close(attention_penalty(made.attention), file[f"{context}.penalty"])
    pooled = config.head.pooler(
        params["head"]["pooler"], jnp.asarray(file[f"{context}.h"]), mask,
        scored=jnp.asarray(file[f"{context}.u"]),
    )  # fmt: skip
    assert_close(pooled.vectors, file[f"{context}.M"])
    batch = {"ids": ids, "mask": mask, "labels": labels}
    loss = jax.value_and_grad(
        lambda p: classifier_loss(config)(p, None, None, batch, None)[0]
    )
    value, grads = jax.jit(loss)(params)
    assert_close(value, file[f"{context}.ce"])
    head = grads["head"]
    names = {
        "grad_P": head["pooler"]["context_map"],
        "grad_Q": head["pooler"]["word_map"],
        "grad_Wu": head["words"]["kernel"],
        "grad_Wo": head["labels"]["kernel"],
    }
    if context == "learned":
        names["grad_c"] = head["pooler"]["context"]
    for name, got in names.items():
        # The README's tolerance for gradients.
        assert_close(got, file[f"{context}.{name}"], rtol=1e-4, atol=1e-6, name=name)


def test_the_words_of_the_reference(file):
    """Its MLP on words, pads included, by the states that it lists."""
    for context in CONTEXTS:
        h = jnp.asarray(file[f"{context}.h"])
        u = jnp.tanh(h @ jnp.asarray(file["Wu"]) + jnp.asarray(file["bu"])[None, None])
        assert_close(u, file[f"{context}.u"])


@hypothesis.given(st.integers(0, 2**31 - 1), st.permutations(range(3)))
@hypothesis.settings(max_examples=5)
def test_permuted_heads_and_blocks_leave_the_logits(seed, order):
    config, order = config_of(), list(order)
    params = init_classifier(config, jax.random.key(seed))
    ids = jax.random.randint(jax.random.key(seed + 1), (2, 4), 2, 11)
    head = params["head"]
    pooler = head["pooler"] | {
        name: head["pooler"][name][:, jnp.array(order)]
        for name in ("context_map", "word_map")
    }
    kernel = head["labels"]["kernel"].reshape(3, 8, 3)[jnp.array(order)].reshape(24, 3)
    labels = head["labels"] | {"kernel": kernel}
    turned = params | {"head": head | {"pooler": pooler, "labels": labels}}
    assert_close(read(turned, config, ids).logits, read(params, config, ids).logits)
    folded = params | {"head": head | {"pooler": fold_context(head["pooler"])}}
    assert_close(read(folded, config, ids).logits, read(params, config, ids).logits)


def test_more_padding_and_empty_rows():
    config = config_of()
    params = init_classifier(config, jax.random.key(0))
    ids = jnp.array([[3, 4, 5], [6, 0, 0], [0, 0, 0]])
    made, wide = read(params, config, ids), read(params, config, jnp.pad(ids, ((0, 0), (0, 4))))  # noqa: E501  # fmt: skip
    assert_close(made.logits, wide.logits, atol=1e-6)
    assert_close(made.attention[1], jnp.tile(jnp.array([[1.0, 0, 0]]), (3, 1)))
    assert_close(made.logits[2], params["head"]["labels"]["bias"])
    batch = {"ids": ids, "labels": jnp.array([0, 1, 2])}
    loss = lambda p: classifier_loss(config)(p, None, None, batch, None)[0]
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(np.asarray(leaf)).all()
    assert read(params, config, ids[:0]).logits.shape == (0, 3)


def test_half_precision():
    config = config_of(
        dtype="bfloat16", head={"pooler": LamaPooler(8, heads=3, dtype="bfloat16")}
    )
    params = init_classifier(config, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.bfloat16.dtype}
    ids = jnp.array([[3, 4, 5]])
    made = read(params, config, ids)
    exact = read(jax.tree.map(lambda x: x.astype(jnp.float32), params), config, ids)
    assert made.logits.dtype == jnp.float32
    assert_close(made.logits, exact.logits, atol=5e-2)  # three rounded layers


def test_context_of_the_embeddings():
    pooler = LamaPooler(8, heads=3, context="mean", context_width=5)
    config = config_of(context_from="embeddings", head={"pooler": pooler})
    params = init_classifier(config, jax.random.key(0))
    ids = jnp.array([[3, 4, 0]])
    made = read(params, config, ids)
    other = params["embed"].at[4].add(3.0)
    changed = read(params | {"embed": other}, config, ids).logits
    assert np.abs(made.logits - changed).max() > 1e-4
    padding = params["embed"].at[0].add(3.0)
    assert_close(read(params | {"embed": padding}, config, ids).logits, made.logits)


def two_topics(count=96, seed=0):
    """Rows whose label is whether word 2 or word 3 is among others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    ids = rng.integers(4, 11, (count, 6))
    ids[np.arange(count), rng.integers(0, 6, count)] = 2 + labels
    return {"ids": ids.astype(np.int32), "labels": labels.astype(np.int32)}


@pytest.mark.medium
def test_training_finds_the_word_and_looks_at_it():
    pooler = LamaPooler(8, heads=3, learn_scale=True)
    head = {"pooler": pooler, "classes": 2, "dropout": 0.1, "penalty": 0.01}
    config = config_of(head=head, dropout=0.1)
    arrays = two_topics()
    result = train.fit(
        classifier_loss(config), init_classifier(config, jax.random.key(0)),
        optimizer=optax.adam(2e-2), steps=120, key=jax.random.key(1), progress=False,
        data=shuffled_batches(arrays, batch=32, seed=0),
    )  # fmt: skip
    assert result.metrics["penalty"][-1] > 0
    fresh = two_topics(seed=1)
    made = read(result.trainable, config, fresh["ids"])
    right = np.asarray(made.logits).argmax(1) == fresh["labels"]
    assert right.mean() > 0.95
    told = np.asarray(made.attention).max(1)[fresh["ids"] < 4].mean()
    other = np.asarray(made.attention).max(1)[fresh["ids"] >= 4].mean()
    assert told > 1.5 * other


def test_dropout_needs_a_key_and_changes_with_it():
    config = config_of(head={"dropout": 0.5}, dropout=0.5)
    params = init_classifier(config, jax.random.key(0))
    ids = jnp.array([[3, 4, 5]])
    some = [read(params, config, ids, key=jax.random.key(s)).logits for s in (1, 1, 2)]
    np.testing.assert_array_equal(some[0], some[1])
    assert np.abs(some[0] - some[2]).max() > 1e-4
    assert np.abs(some[0] - read(params, config, ids).logits).max() > 1e-4


def test_penalty_is_added_with_its_weight():
    pooler = StructuredPooler(8, heads=2, hidden=3)
    plain, heavy = (
        config_of(head={"pooler": pooler, "word_mlp": False, "penalty": p})
        for p in (0.0, 0.5)
    )
    params = init_classifier(plain, jax.random.key(0))
    batch = {"ids": jnp.array([[3, 4, 5]]), "labels": jnp.array([1])}
    loss, (metrics, _) = jax.jit(classifier_loss(heavy))(
        params, None, None, batch, None
    )
    base, _ = jax.jit(classifier_loss(plain))(params, None, None, batch, None)
    assert_close(loss - base, 0.5 * metrics["penalty"])
    assert classifier_loss(plain) is classifier_loss(config_of(head={"pooler": pooler, "word_mlp": False}))  # noqa: E501  # fmt: skip


@struct.dataclass
class Table:
    """An encoder that looks each id up."""

    rows: jax.Array

    def __call__(self, ids, *, mask, logits):
        return models.Output(None, self.rows[ids], {}, None)


def test_a_frozen_encoder_gets_no_gradient():
    config = HeadConfig(LamaPooler(8, heads=2), classes=2, hidden=6)
    params = init_head(config, jax.random.key(0))
    table = Table(jax.random.normal(jax.random.key(1), (9, 8)))
    ids = jnp.array([[5, 6, 7, 0], [8, 1, 0, 0]])
    batch = {"ids": ids, "mask": ids != 0, "labels": jnp.array([0, 1])}
    loss = lambda p, t: head_loss(config)(p, t, None, batch, None)[0]
    grads, of_table = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, table)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))
    assert not np.asarray(of_table.rows).any()


@pytest.mark.medium
def test_a_head_on_a_model():
    model = tiny_model(family="bert")
    config = HeadConfig(LamaPooler(32, heads=4), classes=2)
    params = init_head(config, jax.random.key(0))
    ids = jnp.array([[5, 6, 7, 0], [8, 9, 0, 0]])
    batch = {"mask": ids != 0, "labels": jnp.array([0, 1])}
    hidden = model(ids, mask=ids != 0, logits="none").hidden
    loss = jax.jit(head_loss(config))
    before = loss(params, None, None, batch | {"hidden": hidden}, None)[0]
    assert_close(loss(params, model, None, batch | {"ids": ids}, None)[0], before)
    logits = read_hidden(params, config, hidden, ids != 0).logits
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    assert_close(before, expected.mean())


def test_rows_may_lie_on_eight_devices():
    config = config_of()
    params = init_classifier(config, jax.random.key(0))
    arrays = {"ids": np.arange(3, 11).reshape(8, 1).repeat(2, 1).astype(np.int32), "labels": np.arange(8, dtype=np.int32) % 3}  # noqa: E501  # fmt: skip
    run = functools.partial(
        train.fit, classifier_loss(config), params, optimizer=optax.sgd(0.1), steps=2,
        data=lambda step: arrays, key=jax.random.key(0), progress=False,
    )  # fmt: skip
    alone = run()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        spread = run()
    assert_close(spread.metrics["loss"], alone.metrics["loss"], atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vocab_size": 1}, "vocab_size: got 1, expected at least 2"),
        ({"state": 3}, "head: got 'width 8', expected 6, both ways"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"context_from": "words"}, "context_from: got 'words'"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"head": {"classes": 1}}, "classes: got 1"),
        ({"head": {"hidden": -1}}, "hidden: got -1"),
        ({"head": {"dropout": 2.0}}, "dropout: got 2.0"),
        ({"head": {"penalty": -1.0}}, "penalty: got -1.0"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        config_of(**options)


def test_bad_inputs_are_refused():
    with pytest.raises(ArgumentTypeError, match="pooler: got str, expected one as"):
        HeadConfig("mean", classes=2)
    config = config_of()
    params = init_classifier(config, jax.random.key(0))
    with pytest.raises(ArgumentError, match=r"mask: got 'shape \(1, 2\)'"):
        read_texts(params, config, jnp.array([[3]]), np.ones((1, 2), bool))
    with pytest.raises(ArgumentError, match=r"vectors: got 'shape \(2, 2\)'"):
        init_classifier(config, jax.random.key(0), vectors=np.ones((2, 2)))
    head = HeadConfig(MaxPooler(4), classes=2, word_mlp=False, penalty=1.0)
    batch = {"hidden": jnp.ones((1, 2, 4)), "labels": jnp.array([0])}
    with pytest.raises(ArgumentError, match="penalty: got 1.0, expected 0 for"):
        head_loss(head)(init_head(head, jax.random.key(0)), None, None, batch, None)
    assert MeanPooler(4) == MeanPooler(4)


def test_vectors_are_where_training_starts():
    vectors = np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)
    made = init_classifier(config_of(), jax.random.key(0), vectors=vectors)
    np.testing.assert_array_equal(made["embed"], vectors)
