"""Training on meshes of eight devices: the numbers of one, laid out by the rules."""

import contextlib
import dataclasses

import jax
import numpy as np
import optax
import pytest

from jtok import models
from jtok.models.checkpoint import axis_units, param_axes
from jtok.ops.sharding import abstract_tree, mesh_from
from jtok.testing import collectives, tiny_config
from jtok.train import adamw, fit, lm_loss, lower_update

ROWS = np.random.default_rng(0).integers(0, 96, (3, 8, 17)).astype(np.int32)
SHELL = models.abstract(tiny_config())
LOSS, OPTIMIZER = lm_loss(SHELL, chunk=32), adamw(1e-2)


def batch(step):
    return {"tokens": ROWS[step % 3]}


def train(spec, steps, folder=None):
    """The result of training the same model, on a mesh or on one device."""
    mesh = mesh_from(spec) if spec else None
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        model = models.init(tiny_config(), jax.random.key(3))
        return fit(
            LOSS, models.stack_layers(model.params), optimizer=OPTIMIZER,
            data=batch, steps=steps, key=jax.random.key(0), folder=folder,
            save_every=50, progress=False,
        )  # fmt: skip


@pytest.mark.slow
def test_twenty_steps_on_a_mesh_are_those_of_one_device(tmp_path):
    alone = train(None, 20)
    assert alone.metrics["loss"][-1] < alone.metrics["loss"][0] - 1
    folder = tmp_path / "run"
    half = train("data=2,model=4", 10, folder)
    # By the table: heads, MLP and vocabulary over four, key-value heads not cut.
    shards = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), half.trainable)
    assert shards["embed"]["tokens"] == (24, 32)
    assert shards["layers"]["query"]["kernel"] == (2, 32, 8)
    assert shards["layers"]["key"]["kernel"] == (2, 32, 16)
    assert shards["layers"]["mlp"]["down"]["kernel"] == (2, 16, 32)
    moments = optax.tree_utils.tree_get(half.opt_state, "mu")
    jax.tree.map(
        lambda moment, parameter: np.testing.assert_equal(
            moment.sharding, parameter.sharding
        ),
        moments,
        half.trainable,
    )
    # On from that checkpoint: the same mesh, another one, a single device.
    for spec in ("data=2,model=4", "data=8", None):
        place = tmp_path / str(spec)
        place.symlink_to(folder) if spec is None else _copy(folder, place)
        result = train(spec, 20, place)
        losses = result.metrics["loss"]
        np.testing.assert_allclose(losses, alone.metrics["loss"], rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            result.trainable,
            alone.trainable,
        )


def _copy(source, target):
    import shutil

    shutil.copytree(source, target)


@pytest.mark.medium
def test_an_update_sends_gradients_and_nothing_else_of_that_size():
    """Every device computes the loss of its own rows, with weights where they are."""
    config = tiny_config(vocab_size=512)
    rows = jax.ShapeDtypeStruct((16, 33), np.int32)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        model = models.abstract(config)
        shapes = jax.eval_shape(models.stack_layers, model.params)
        stacked = abstract_tree(shapes, param_axes(shapes), units=axis_units(config))
        loss = lm_loss(model, chunk=64)
        program = lower_update(
            loss, stacked, {"tokens": rows}, optimizer=OPTIMIZER
        ).compile()
    text = program.as_text()
    # Logits of 64 of a device's own 128 tokens, over its half of the vocabulary.
    assert "f32[64,256]" in text
    assert "f32[128,256]" not in text and "f32[64,512]" not in text
    sent = collectives(text)
    assert {c.kind for c in sent} == {"all-reduce"}
    # Of the activations sums over heads and MLP; the rest are gradients, in parts.
    largest = max(c.num_bytes for c in sent if c.shape != (4, 32, 32))
    assert largest <= 256 * 32 * 4 * 2
    held = sum(x.size for x in jax.tree.leaves(shapes)) * 4 * 3 / 2
    assert program.memory_analysis().argument_size_in_bytes < 1.2 * held


@pytest.mark.medium
def test_attention_scores_are_not_kept_for_the_gradient():
    """Of one layer at a time they exist, in the backward pass too."""

    def temporaries(length):
        model = models.abstract(dataclasses.replace(tiny_config(), num_layers=8))
        stacked = jax.eval_shape(models.stack_layers, model.params)
        batch = {"tokens": jax.ShapeDtypeStruct((2, length + 1), np.int32)}
        lowered = lower_update(lm_loss(model), stacked, batch, optimizer=OPTIMIZER)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # All of eight layers, and their softmax, would be 22 times those of one.
    assert temporaries(512) < 6 * (2 * 4 * 512 * 512 * 4)
