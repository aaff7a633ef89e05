"""Nested exits: their losses, their gradients, and the exit that is chosen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok import models
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.models import cut_layers, stack_layers
from jtok.ops.sharding import mesh_from
from jtok.predict import (
    choose_exit,
    early_exit,
    exit_hidden,
    exit_nats,
    sorted_loss,
)
from jtok.testing import assert_close, tiny_config, tiny_model
from jtok.train import lm_loss
from tests.predict.nested import EARLY, EXITS, HIDDEN, READS, llama_of, nested_model
from tests.predict.nested import LOGITS as LOGITS_OF

KEY = jax.random.key(0)
NATS = jax.jit(exit_nats, static_argnums=2)
# The goldens' own tolerances: another order of summation, in float32.
LOGITS, PROBABILITIES, GRADIENTS = 2e-4, 1e-4, 1e-4


def batch_of(rows=3, length=8, seed=0, masked=True):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 96, (rows, length + 1)).astype(np.int32)
    mask = rng.random(tokens.shape) > 0.3 if masked else np.ones(tokens.shape, bool)
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}


def nats_of(model, batch):
    """Mean cross-entropy of a whole model, from its logits."""
    logits = model(batch["tokens"][:, :-1]).logits
    log_probs = jax.nn.log_softmax(logits)
    target = batch["tokens"][:, 1:, None]
    nats = -jnp.take_along_axis(log_probs, target, axis=-1)[..., 0]
    mask = batch["mask"][:, 1:]
    return jnp.sum(jnp.where(mask, nats, 0)) / jnp.maximum(jnp.sum(mask), 1)


def run_loss(loss, model, batch, frozen=None):
    return loss(model.params, frozen, None, batch, KEY)


# Against the official code ------------------------


HF_GRADIENTS = {
    "grad/model.layers.0.self_attn.q_proj.weight": lambda g: (
        g["layers"][0]["query"]["kernel"].T
    ),
    "grad/model.layers.2.mlp.down_proj.weight": lambda g: (
        g["layers"][2]["mlp"]["down"]["kernel"].T
    ),
    "grad/model.layers.5.mlp.down_proj.weight": lambda g: (
        g["layers"][5]["mlp"]["down"]["kernel"].T
    ),
    "grad/lm_head.weight": lambda g: g["unembed"]["kernel"],
    "grad/model.norm.weight": lambda g: g["final_norm"]["scale"],
    "grad/model.embed_tokens.weight": lambda g: g["embed"]["tokens"],
}


def test_the_loss_is_the_official_one(golden, tmp_path):
    """Loss of every exit and gradients; the second row is padded."""
    file = golden("s2d/soft_loss.npz")
    model = llama_of(file, "w/", file["config"], tmp_path)
    exits = tuple(file["submodels"].tolist())
    ids, real = jnp.asarray(file["input_ids"]), file["attention_mask"].astype(bool)
    hidden = HIDDEN(model, ids, exits, mask=jnp.asarray(real))
    weight, _ = model.unembedding()
    logits = np.stack([states @ weight.T for states in hidden])
    expected = np.where(real[..., None], file["logits"], logits)
    assert_close(logits, expected, atol=LOGITS, name="logits")

    labels = file["labels"]
    np.testing.assert_array_equal(np.where(labels < 0, ids, labels), ids)
    batch = {"tokens": ids, "mask": jnp.asarray(labels >= 0)}
    nats = NATS(model, ids, exits, mask=batch["mask"])
    assert_close(nats, file["ce_per_submodel"], rtol=GRADIENTS)
    loss = jax.jit(jax.value_and_grad(sorted_loss(model, exits), has_aux=True))
    (value, (metrics, _)), grads = run_loss(loss, model, batch)
    assert_close(value, file["loss"], rtol=GRADIENTS)
    assert int(metrics["tokens"]) == np.sum(labels[:, 1:] >= 0)
    for name, ours in HF_GRADIENTS.items():
        size = float(np.abs(file[name]).max())
        assert_close(ours(grads), file[name], atol=GRADIENTS * size, name=name)


def test_exits_are_the_official_ones(golden, tmp_path):
    file = golden("s2d/early_exit.npz")
    model = llama_of(file, "w/", file["config"], tmp_path)
    exits, ids = tuple(file["submodels"].tolist()), jnp.asarray(file["contexts"])
    weight, _ = model.unembedding()
    logits = np.stack([h @ weight.T for h in HIDDEN(model, ids, exits)])
    assert_close(logits, file["logits"], atol=LOGITS, name="logits")
    reads = READS(model, ids, exits)
    assert_close(reads.confidence, file["max_prob"], atol=PROBABILITIES)
    for bounds, exit, token in zip(
        file["thresholds"], file["exit_index"], file["draft_token"], strict=True
    ):
        found = EARLY(model, ids, exits, tuple(bounds.tolist()))
        np.testing.assert_array_equal(found.exits, exit)
        np.testing.assert_array_equal(found.tokens, token)


# The loss ------------------------


@functools.lru_cache
def cut_nats(layers):
    model = nested_model()
    return jax.jit(lambda batch: nats_of(cut_layers(model, layers), batch))


@functools.lru_cache
def loss_of(exits, weights=None, **options):
    return jax.jit(sorted_loss(nested_model(), exits, weights=weights, **options))


@settings(max_examples=8)
@given(
    st.sampled_from([(1,), (1, 3, 4)]),
    st.integers(0, 9),
    st.booleans(),
)
def test_the_loss_is_the_mean_of_the_exits_losses(exits, seed, masked):
    batch = batch_of(seed=seed, masked=masked)
    alone = [float(cut_nats(layers)(batch)) for layers in exits]
    loss, (metrics, _) = run_loss(loss_of(exits), nested_model(), batch)
    assert_close(loss, np.float32(np.mean(alone)))
    for layers, nats in zip(exits, alone, strict=True):
        assert_close(metrics[f"nats_{layers}"], np.float32(nats))


def test_weights_are_shares():
    batch, model = batch_of(), nested_model()
    loss, (metrics, _) = run_loss(loss_of((1, 4), (1.0, 3.0)), model, batch)
    assert_close(loss, 0.25 * metrics["nats_1"] + 0.75 * metrics["nats_4"])


def test_the_last_exit_alone_is_a_language_model():
    """Plain fine-tuning: the same loss and the same gradients."""
    model, batch = nested_model(), batch_of()
    grad = lambda loss: jax.grad(lambda p: loss(p, None, None, batch, KEY)[0])
    ours = jax.jit(grad(sorted_loss(model, (4,))))(model.params)
    plain = jax.jit(grad(lm_loss(model)))(model.params)
    jax.tree.map(assert_close, ours, plain)


def test_an_exit_teaches_only_the_layers_below_it():
    model, batch = nested_model(), batch_of()
    loss = sorted_loss(model, (1, 3))
    grads = jax.jit(jax.grad(lambda p: loss(p, None, None, batch, KEY)[0]))
    sizes = [
        max(float(jnp.abs(x).max()) for x in jax.tree.leaves(layer))
        for layer in grads(model.params)["layers"]
    ]
    assert all(size > 0 for size in sizes[:3]) and sizes[3] == 0


def test_no_target_is_no_loss():
    batch = batch_of()
    batch["mask"] = jnp.zeros_like(batch["mask"])
    loss, (metrics, _) = run_loss(loss_of((1, 4)), nested_model(), batch)
    assert loss == 0.0 and int(metrics["tokens"]) == 0


def test_stacked_layers_are_the_same_model():
    model, batch = nested_model(), batch_of()
    stacked = model.replace(params=stack_layers(model.params))
    value = jax.jit(jax.value_and_grad(sorted_loss(stacked, EXITS), has_aux=True))
    (loss, _), grads = run_loss(value, stacked, batch)
    (expected, _), split = run_loss(value, model, batch)
    assert_close(loss, expected)
    jax.tree.map(assert_close, grads, stack_layers(split))


def test_packed_documents_do_not_see_one_another():
    batch = batch_of(rows=2, masked=False)
    segments = np.array([[0] * 5 + [1] * 4, [0] * 3 + [1] * 6], np.int32)
    starts = np.array([[0] * 5 + [5] * 4, [0] * 3 + [3] * 6], np.int32)
    positions = np.arange(9, dtype=np.int32)[None] - starts
    batch = {
        **batch,
        "segments": jnp.asarray(segments),
        "positions": jnp.asarray(positions),
    }
    whole = HIDDEN(
        nested_model(), batch["tokens"][:, :-1], EXITS,
        positions=batch["positions"][:, :-1],
        mask=jnp.tril(segments[:, :-1, None] == segments[:, None, :-1]),
    )  # fmt: skip
    alone = HIDDEN(nested_model(), batch["tokens"][:1, 5:], EXITS)
    for a, b in zip(whole, alone, strict=True):
        assert_close(a[:1, 5:], b[:, :3])
    loss, _ = run_loss(loss_of(EXITS), nested_model(), batch)
    together, _ = run_loss(loss_of(EXITS), nested_model(), batch_of(2, masked=False))
    assert abs(float(loss) - float(together)) > 1e-3


# A teacher ------------------------


def test_a_model_that_teaches_itself_has_nothing_to_say():
    """The last exit is the teacher: of all exits only the others diverge from it."""
    model, batch = nested_model(), batch_of()
    loss, (metrics, _) = run_loss(loss_of((4,), distill=0.5), model, batch)
    assert_close(loss, metrics["nats_4"])
    teacher = sorted_loss(model, (4,), teacher=model, distill=1.0)
    value = jax.jit(jax.value_and_grad(teacher, has_aux=True))
    (loss, _), grads = run_loss(value, model, batch, frozen=model.params)
    assert abs(float(loss)) < 1e-6
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    assert largest < 1e-5


def test_the_divergence_is_that_of_the_logits():
    model, guide, batch = nested_model(), nested_model(seed=1), batch_of()
    loss = sorted_loss(model, (2,), teacher=guide, distill=0.25, temperature=2.0)
    value, (metrics, _) = run_loss(jax.jit(loss), model, batch, frozen=guide.params)
    ids, mask = batch["tokens"][:, :-1], batch["mask"][:, 1:]
    p = jax.nn.log_softmax(guide(ids).logits / 2)
    q = jax.nn.log_softmax(cut_layers(model, 2)(ids).logits / 2)
    far = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
    far = 4 * jnp.sum(jnp.where(mask, far, 0)) / jnp.sum(mask)
    assert_close(value, 0.75 * metrics["nats_2"] + 0.25 * far)


def test_the_last_exit_teaches_without_learning_from_it():
    """The gradient of the last layers is that of their own cross-entropy."""
    model, batch = nested_model(), batch_of()
    last = lambda loss: jax.jit(
        jax.grad(lambda p: loss(p, None, None, batch, KEY)[0])
    )(model.params)["layers"][3]  # fmt: skip
    plain = last(sorted_loss(model, (2, 4)))
    taught = last(sorted_loss(model, (2, 4), distill=0.9))
    jax.tree.map(assert_close, taught, plain)


# Numbers, shapes, devices ------------------------


def test_the_memory_of_a_loss_does_not_hold_the_logits():
    """Three exits of 2,048 tokens and 32,000 ids would take 786 MB of logits."""
    config = dataclasses.replace(
        tiny_config(vocab_size=32000), num_layers=3, width=16, mlp_width=16
    )
    model = models.abstract(config)
    loss = sorted_loss(model, (1, 2, 3), chunk=128)
    spec = {"tokens": jax.ShapeDtypeStruct((4, 513), jnp.int32)}
    step = jax.jit(jax.grad(lambda p, b: loss(p, None, None, b, KEY)[0]))
    memory = step.lower(model.params, spec).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 200e6


def test_bfloat16_losses_are_near():
    batch = batch_of()
    narrow = nested_model(dtype="bfloat16")
    loss, (metrics, _) = run_loss(jax.jit(sorted_loss(narrow, EXITS)), narrow, batch)
    wide, _ = run_loss(loss_of(EXITS), nested_model(), batch)
    assert loss.dtype == metrics["nats_1"].dtype == jnp.float32
    assert_close(loss, wide, rtol=3e-2)  # weights and activations are rounded


def test_padding_changes_nothing():
    model, ids = nested_model(), batch_of(rows=2)["tokens"]
    padded = jnp.pad(ids, ((0, 0), (0, 3)), constant_values=7)
    mask = jnp.arange(padded.shape[1])[None] < ids.shape[1]
    mask = jnp.broadcast_to(mask, padded.shape)
    short, long = READS(model, ids, EXITS), READS(model, padded, EXITS, mask=mask)
    np.testing.assert_array_equal(long.tokens[:, :, : ids.shape[1]], short.tokens)
    nats = [NATS(model, x, EXITS, mask=m) for x, m in ((ids, None), (padded, mask))]
    assert_close(*nats)


@pytest.mark.medium
def test_eight_devices_have_the_same_loss():
    model, batch = nested_model(), batch_of(rows=8)
    value = lambda: jax.jit(jax.value_and_grad(sorted_loss(model, EXITS), has_aux=True))
    (expected, _), plain = run_loss(value(), model, batch)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        (loss, _), grads = run_loss(value(), model, batch)
    assert_close(loss, expected)
    jax.tree.map(assert_close, jax.device_get(grads), jax.device_get(plain))


# The exit that is chosen ------------------------


PROBABILITY = st.floats(0, 1, width=32)
BOUNDS = st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 2.0]), min_size=3, max_size=3)


@given(st.lists(PROBABILITY, min_size=3, max_size=3), BOUNDS)
def test_the_first_exit_that_is_sure_is_taken(sure, bounds):
    confidence = jnp.asarray(sure, jnp.float32)
    found = int(choose_exit(confidence, jnp.asarray(bounds, jnp.float32)))
    above = [i for i in (0, 1) if np.float32(sure[i]) > np.float32(bounds[i])]
    assert found == (above[0] if above else 2)


@given(BOUNDS, st.integers(0, 2))
def test_a_higher_threshold_makes_no_exit_earlier(bounds, which):
    rng = np.random.default_rng(which)
    confidence = jnp.asarray(rng.random((3, 40)), jnp.float32)
    raised = list(bounds)
    raised[which] += 0.3
    low, high = (choose_exit(confidence, jnp.asarray(b)) for b in (bounds, raised))
    assert bool(jnp.all(high >= low))


def test_thresholds_at_the_ends():
    model, ids = nested_model(), batch_of()["tokens"]
    never = EARLY(model, ids, EXITS, (1.1, 2.0, 0.0))
    assert bool(jnp.all(never.exits == 2))
    np.testing.assert_array_equal(never.tokens, jnp.argmax(LOGITS_OF(model, ids), -1))
    always = EARLY(model, ids, EXITS, (0.0, 0.5, 0.0))
    assert bool(jnp.all(always.exits == 0))
    first = jnp.argmax(LOGITS_OF(cut_layers(model, 1), ids), -1)
    np.testing.assert_array_equal(always.tokens, first)
    mixed = EARLY(model, ids, EXITS, (0.5, 0.6, 0.0))
    assert len(np.unique(mixed.exits)) == 3


# Bad input ------------------------


def test_bad_input_is_refused():
    model, ids = nested_model(), jnp.zeros((1, 2), jnp.int32)
    for exits in ((), (0, 2), (3, 1), (2, 2), (1, 5)):
        with pytest.raises(ArgumentError, match="exits: got"):
            sorted_loss(model, exits)
        with pytest.raises(ArgumentError, match="exits: got"):
            exit_hidden(model, ids, exits)
    for bounds in ((0.5,), (0.5, 0.5), (0.1, -0.1, 0.0), (float("nan"), 0.1, 0.0)):
        with pytest.raises(ArgumentError, match="thresholds: got"):
            early_exit(model, ids, EXITS, bounds)
    for weights in ((1.0,), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)):
        with pytest.raises(ArgumentError, match="weights: got"):
            sorted_loss(model, EXITS, weights=weights)
    with pytest.raises(ArgumentError, match="distill: got 2"):
        sorted_loss(model, EXITS, distill=2.0)
    with pytest.raises(ArgumentError, match="temperature: got 0"):
        sorted_loss(model, EXITS, temperature=0.0)
    with pytest.raises(ArgumentError, match="teacher: got '50 ids', expected 96 ids"):
        sorted_loss(model, EXITS, teacher=tiny_model(vocab_size=50), distill=0.5)
    with pytest.raises(ArgumentTypeError, match="model: got a MambaConfig"):
        sorted_loss(tiny_model(family="mamba"), (1,))
    with pytest.raises(ArgumentTypeError, match="data: got \\['ids'\\]"):
        sorted_loss(model, EXITS)(model.params, None, None, {"ids": ids}, KEY)
