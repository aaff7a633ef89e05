"""Heads of encoders: against foreign outputs, fresh ones, and one vector a text."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok import models, train
from jtok.errors import ArgumentError, ArgumentTypeError, UnsupportedCheckpointError
from jtok.models import Segments, add_classifier, classify, pool
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_model
from tests.models.encoders import FAMILIES

HEADS = pathlib.Path(__file__).resolve().parents[1] / "goldens" / "encoder_heads"
CLASSIFIERS = sorted(
    place.name
    for place in HEADS.iterdir()
    if place.name.endswith(("sequence", "token"))
)


def expected_of(folder):
    return load_golden(f"encoder_heads/{folder}/expected.npz")


def inputs_of(expected):
    ids = jnp.asarray(expected["in_input_ids"])
    names = {"in_token_type_ids": "types", "in_task_type_ids": "tasks"}
    more = {
        short: jnp.asarray(expected[name])
        for name, short in names.items()
        if name in expected
    }
    mask = jnp.asarray(expected["in_attention_mask"]) == 1
    return (Segments(ids, **more) if more else ids), mask


# ---- foreign outputs


@pytest.mark.parametrize("folder", CLASSIFIERS)
def test_labels_of_transformers(folder, tmp_path):
    expected, model = expected_of(folder), models.load(HEADS / folder)
    inputs, mask = inputs_of(expected)
    found = jax.jit(classify)(model, inputs, mask=mask)
    wanted = expected["out_logits"]
    assert found.dtype == jnp.float32 and found.shape == wanted.shape
    if folder.endswith("token"):
        keep = np.asarray(mask)
        found, wanted = np.asarray(found)[keep], wanted[keep]
    # The README's tolerance: another framework, another order of summation.
    assert_close(found, wanted, atol=2e-4)
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        whole = (HEADS / folder / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == whole


def test_pretraining_of_bert_has_both_heads(tmp_path):
    expected, model = (
        expected_of("bert_pretraining"),
        models.load(HEADS / "bert_pretraining"),
    )
    inputs, mask = inputs_of(expected)
    out = model(inputs, mask=mask)
    keep = np.asarray(mask)
    assert_close(np.asarray(out.logits)[keep], expected["out_logits"][keep], atol=2e-4)
    pooled = pool(out.hidden, mask, how="pooler", model=model)
    following = model.params["next_sentence"]
    logits = pooled @ following["kernel"] + following["bias"][None]
    assert_close(logits, expected["out_next_sentence"], atol=2e-4)
    models.save(model, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == ["BertForPreTraining"]


def test_a_bare_model_has_a_pooler():
    expected, model = expected_of("roberta_model"), models.load(HEADS / "roberta_model")
    inputs, mask = inputs_of(expected)
    out = model(inputs, mask=mask)
    assert out.logits is None
    keep = np.asarray(mask)
    wanted = expected["out_last_hidden"]
    assert_close(np.asarray(out.hidden)[keep], wanted[keep], atol=2e-4)
    pooled = pool(out.hidden, mask, how="pooler", model=model)
    assert_close(pooled, expected["out_pooled"], atol=2e-4)


def test_a_plain_t5_meets_every_bucket():
    expected, model = expected_of("t5_relu"), models.load(HEADS / "t5_relu")
    assert (model.config.mlp, model.config.activation) == ("plain", "relu")
    out = model(jnp.asarray(expected["in_input_ids"]))
    assert_close(out.hidden, expected["out_last_hidden"], atol=2e-4)


# ---- pooling


def test_pools():
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 2)), "float32")
    mask = jnp.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]) == 1
    mean = pool(hidden, mask)
    assert_close(mean[0], hidden[0, :2].mean(0))
    assert_close(mean[1], hidden[1, 1:].mean(0))
    assert mean[2].tolist() == [0.0, 0.0]
    assert_close(pool(hidden), hidden.mean(1))
    first = pool(hidden, mask, how="cls")
    np.testing.assert_array_equal(first[:2], jnp.stack([hidden[0, 0], hidden[1, 1]]))
    np.testing.assert_array_equal(pool(hidden, how="cls"), hidden[:, 0])
    assert pool(hidden.astype(jnp.bfloat16), mask).dtype == jnp.bfloat16


# ---- fresh heads


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_head_is_saved_and_loaded(family, per_token, tmp_path):
    plain = tiny_model(family=family)
    model = add_classifier(plain, 5, jax.random.key(3), per_token=per_token)
    assert model.params["layers"] is plain.params["layers"]
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 96, (2, 7)))
    mask = jnp.arange(7)[None] < jnp.array([[7], [4]])
    logits = classify(model, ids, mask=mask)
    assert logits.shape == ((2, 7, 5) if per_token else (2, 5))
    assert np.std(logits) > 0
    alone = classify(model, ids[1:, :4])[0]
    cut = logits[1, :4] if per_token else logits[1]
    assert_close(cut, alone, atol=2e-5)
    if family == "t5":
        with pytest.raises(UnsupportedCheckpointError, match="no place"):
            models.save(model, tmp_path / "out")
        return
    models.save(model, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    end = "TokenClassification" if per_token else "SequenceClassification"
    assert fields["architectures"][0].endswith(end) and len(fields["id2label"]) == 5
    again = models.load(tmp_path / "out")
    assert_close(classify(again, ids, mask=mask), logits)


def test_trained_parts_stay_under_a_fresh_head():
    bert = models.load(HEADS / "bert_pretraining")
    both = add_classifier(bert, 2, jax.random.key(0))
    assert both.params["pooler"] is bert.params["pooler"]
    assert {"masked_lm", "next_sentence"}.isdisjoint(both.params)
    modern = tiny_model(family="modernbert")
    labelled = add_classifier(modern, 2, jax.random.key(0))
    old, new = modern.params["masked_lm"], labelled.params["sequence"]
    assert new["dense"] is old["dense"] and new["norm"] is old["norm"]
    one, other = (
        add_classifier(bert, 2, jax.random.key(seed)).params["sequence"]["labels"]
        for seed in (1, 2)
    )
    assert not np.array_equal(one["kernel"], other["kernel"])


def test_names_of_other_labels_do_not_stay(tmp_path):
    model = models.load(HEADS / "bert_token")
    fields = {
        **json.loads(model.config.source),
        "id2label": {"0": "x", "1": "y", "2": "z"},
    }
    config = dataclasses.replace(model.config, source=json.dumps(fields))
    models.save(model.replace(config=config), tmp_path / "same")
    kept = json.loads((tmp_path / "same" / "config.json").read_text())["id2label"]
    assert kept["2"] == "z"
    fresh = add_classifier(model.replace(config=config), 3, jax.random.key(0))
    models.save(fresh, tmp_path / "fresh")
    kept = json.loads((tmp_path / "fresh" / "config.json").read_text())["id2label"]
    assert kept == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}


@pytest.mark.parametrize("per_token", [False, True])
def test_a_step_of_training_lowers_the_loss(per_token):
    model = add_classifier(
        tiny_model(family="bert", scale=1.0), 3, jax.random.key(0), per_token=per_token
    )
    model = model.replace(params=models.stack_layers(model.params))
    draw = np.random.default_rng(0)
    ids = draw.integers(3, 96, (4, 6))
    labels = ids % 3 if per_token else ids[:, 0] % 3
    batch = {"ids": ids, "mask": np.ones((4, 6), bool), "labels": labels}

    def loss_fn(params, frozen, state, batch, key):
        logits = classify(
            model.replace(params=params), batch["ids"], mask=batch["mask"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return jnp.mean(loss), ({}, state)

    result = train.fit(
        loss_fn, model.params, optimizer=optax.sgd(0.05), data=lambda step: batch,
        steps=3, key=jax.random.key(0), progress=False,
    )  # fmt: skip
    losses = result.metrics["loss"]
    assert losses[1] < losses[0] and losses[2] < losses[1]
    moved = jax.tree.map(
        lambda new, old: bool((new != old).any()), result.trainable, model.params
    )
    assert moved["layers"]["query"]["kernel"] and moved["embed"]["tokens"]


def test_a_sharded_classifier_gives_the_same():
    expected = expected_of("bert_sequence")
    inputs, mask = inputs_of(expected)
    with jax.set_mesh(mesh_from("data=2,model=2", devices=jax.devices()[:4])):
        model = models.load(HEADS / "bert_sequence")
        found = jax.jit(classify)(model, inputs, mask=mask)
        fresh = add_classifier(model, 4, jax.random.key(0)).params
        places = fresh["sequence"]["labels"]["kernel"].sharding.device_set
        assert len(places) == 4
    assert_close(found, expected["out_logits"], atol=2e-4)


# ---- bad input


def test_what_cannot_be_classified():
    bert, ids = tiny_model(family="bert"), jnp.array([[1, 2]])
    with pytest.raises(ArgumentError, match="head='masked_lm'.*add_classifier"):
        classify(bert, ids)
    with pytest.raises(ArgumentTypeError, match="DecoderConfig, expected an encoder"):
        classify(tiny_model(), ids)
    with pytest.raises(ArgumentTypeError, match="expected an encoder"):
        add_classifier(tiny_model(), 2, jax.random.key(0))
    with pytest.raises(ArgumentError, match="num_labels: got 0"):
        add_classifier(bert, 0, jax.random.key(0))
    hidden = jnp.zeros((1, 2, 32))
    with pytest.raises(ArgumentError, match="model: got 'one without a pooler'"):
        pool(hidden, how="pooler", model=bert)
    with pytest.raises(ArgumentError, match="mask: got .shape .1, 3."):
        pool(hidden, jnp.ones((1, 3), bool))


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("bert", {"architectures": ["BertForQuestionAnswering"]}, "did you mean|Known"),
        ("bert", {"is_decoder": True}, "is_decoder=True"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"hidden_size": 30}, "hidden_size=30 is no multiple of 4"),
        ("bert", {"hidden_act": "mish"}, "activation 'mish'"),
        ("roberta", {"pad_token_id": None}, "pad_token_id=None"),
        ("roberta", {"max_position_embeddings": 2}, "leaves no position"),
        ("ernie", {"rel_pos_size": 3}, "rel_pos_size=3"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling='max'"),
        ("modernbert", {"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
        (
            "modernbert",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0}
                }
            },
            "rope_parameters of full_attention scale",
        ),
        ("t5", {"architectures": ["T5ForTokenClassification"]}, "T5ForTokenClass"),
        ("t5", {"feed_forward_proj": "gated-gelu-x"}, "feed_forward_proj='gated-gelu-"),
    ],
)
def test_options_that_are_not_there_are_refused(family, changes, message):
    config = tiny_model(family=family).config
    fields = {**models.FAMILIES[family].write(config), **changes}
    with pytest.raises(UnsupportedCheckpointError, match=message):
        models.config_from(fields)


def test_a_pooler_that_the_file_has_not_can_be_said():
    fields = models.FAMILIES["bert"].write(tiny_model(family="bert").config)
    fields |= {"architectures": ["BertModel"]}
    assert models.config_from(fields).pooler
    bare = models.config_from({**fields, "add_pooling_layer": False})
    assert not bare.pooler
    assert models.FAMILIES["bert"].write(bare)["add_pooling_layer"] is False
