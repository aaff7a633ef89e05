"""PiToMe's table of settings, pooling by size, encoders that merge on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok import models
from jtok.compress import mean_by_size, pitome, pitome_preset, schedule, tome
from jtok.errors import ArgumentError
from jtok.models import Model
from jtok.ops.sharding import mesh_from
from jtok.testing import tiny_model

IDS = jax.random.randint(jax.random.key(0), (8, 16), 5, 90)


def rows(model, num_layers=24, **options):
    made = pitome_preset(model, num_layers, keep=0.9, **options)
    return made, dict(made.options)


def test_the_table():
    deit, options = rows("deit")
    assert options["rule"] == ("bsm",) * 12 + ("all",) * 12
    assert options["margin"][:2] == (0.75, 0.71875) and deit.metric == "keys"
    assert dict(rows("mae", 5)[1])["rule"] == ("all",) * 3 + ("bsm",) * 2
    assert rows("augreg")[1]["margin"][0] == 0.9
    blip, options = rows("blip", 12)
    assert blip.layers == tuple(range(1, 12)) and blip.metric == "x"
    assert options["margin"][0] == pytest.approx(0.9 - 0.9 / 12)
    # The code pops shares from the end, so the 1 that it puts first comes last.
    popped, options = rows("blip", 12, compat="official")
    assert popped.layers == tuple(range(11)) and options["margin"][0] == 0.9
    assert popped.token_counts(197, 12, prefix=1)[:2] == (197, 178)
    blip2, options = rows("blip2", 4)
    assert blip2.proportional and options["margin"] == (0.75, 0.65, 0.55, 0.45)
    clip, options = rows("clip", 4)
    assert clip.metric == "x" and options["margin"][0] == 0.95
    assert [rows(m)[0].proportional for m in ("deit", "mae", "clip")] == [False] * 3
    bert, options = rows("bert", 12)
    assert bert.layers == (0, 1, 2) and bert.restart and bert.metric == "keys_sum"
    assert options["margin"] == pytest.approx((0.9, 0.9 - 0.25 / 12, 0.9 - 0.5 / 12))
    distilbert, _ = rows("distilbert", 6)
    assert distilbert.metric == "keys" and distilbert.layers == (0, 1, 2)


def test_the_tower_of_llava():
    made, _ = rows("llava")
    assert (made.where, made.how, made.metric) == ("layer", "mean", "x")
    assert made.method == (tome,) * 13 + (pitome,) * 11
    counts = made.token_counts(577, 24, prefix=1)
    official = rows("llava", compat="official")[0].token_counts(577, 24, prefix=1)
    assert counts[1] == 577 - 57  # of 576, 57.6
    # Of 577, 57.7; the class token counts up to layer 12.
    assert counts != official and official[1] == 577 - 57
    left = 577
    for layer in range(24):
        some = left if layer <= 12 else left - 1
        left -= int(np.floor(some - some * 0.9))
        assert official[layer + 1] == left
    assert rows("llava", 3)[0].token_counts(65, 3, prefix=1)[1] == 59


def test_the_code_for_texts_reads_shares_from_the_end():
    keep = (0.9, 0.8, 0.7)
    assert pitome_preset("bert", 12, keep=keep).keep == keep
    assert pitome_preset("bert", 12, keep=keep, compat="official").keep == keep[::-1]


def test_pooling_by_size_is_pooling_of_all_tokens():
    """Exactly so where nothing but merging happens."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 4)), jnp.float32)
    plan = jax.jit(functools.partial(tome, remove=5, protect=1))(x)
    merged, size = jax.jit(lambda plan, x: plan.merge(x))(plan, x)
    found = mean_by_size(merged, size, protect=1)
    np.testing.assert_allclose(found, x[:, 1:].mean(1), atol=1e-6)
    official = mean_by_size(merged, size, protect=1, compat="official")
    np.testing.assert_allclose(official, x[:, 1:].sum(1) / 3, atol=1e-5)
    real = plan.valid.at[:, -1].set(False)
    some = mean_by_size(merged, size, protect=1, valid=real)
    assert np.abs(some - found).max() > 1e-3
    nothing = mean_by_size(merged, size, valid=jnp.zeros_like(real))
    assert np.asarray(nothing).max() == 0
    narrow = mean_by_size(merged.astype(jnp.bfloat16), size)
    assert narrow.dtype == jnp.bfloat16


@functools.cache
def merged_model():
    made = schedule(pitome, keep=0.75, margin=0.5, order="source")
    return tiny_model(family="bert").replace(compress=made)


def test_a_batch_over_devices_merges_as_on_one():
    model = merged_model()
    step = lambda ids: jax.jit(lambda ids: model(ids, logits="none"))(ids)
    alone = step(IDS)
    mesh = mesh_from("data=8")
    with jax.set_mesh(mesh):
        over = step(jax.device_put(IDS, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(over.hidden.sharding.device_set) == 8
    np.testing.assert_allclose(over.hidden, alone.hidden, atol=2e-5)
    np.testing.assert_array_equal(over.plan.assign, alone.plan.assign)


def test_an_encoder_in_bfloat16_merges():
    model = merged_model()
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    config = dataclasses.replace(model.config, dtype="bfloat16")
    out = jax.jit(lambda ids: Model(narrow, config)(ids, compress=model.compress))(
        IDS[:2]
    )
    wide = jax.jit(lambda ids: model(ids))(IDS[:2])
    assert out.hidden.dtype == jnp.bfloat16
    assert out.plan.size.dtype == jnp.float32
    assert out.hidden.shape == wide.hidden.shape
    same = np.asarray(out.plan.assign == wide.plan.assign).mean()
    assert same > 0.7  # near pairs may swap


def test_gradients_through_an_encoder_that_merges():
    """The slope along a direction, with the plan held as it is."""
    model = merged_model()

    def loss(params):
        out = Model(params, model.config)(
            IDS[:2], compress=model.compress, logits="none"
        )
        return jnp.mean(out.hidden[:, 1:] ** 3), out.plan.assign

    value = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, plan), grad = value(model.params)
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(grad)))
    way = jax.tree.unflatten(
        jax.tree.structure(grad),
        [
            jax.random.normal(key, x.shape)
            for key, x in zip(keys, jax.tree.leaves(grad), strict=True)
        ],
    )
    move = lambda step: jax.tree.map(lambda p, w: p + step * w, model.params, way)
    step = 1e-4
    (above, up), _ = value(move(step))
    (below, down), _ = value(move(-step))
    assert (up == plan).all() and (down == plan).all()
    slope = sum(
        float(jnp.vdot(g, w))
        for g, w in zip(jax.tree.leaves(grad), jax.tree.leaves(way), strict=True)
    )
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=0.05)


def test_models_that_hold_a_schedule_are_saved_without_it(tmp_path):
    models.save(merged_model(), tmp_path / "m")
    assert models.load(tmp_path / "m").compress is None


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: pitome_preset("diet", 12, keep=0.9), "did you mean deit"),
        (lambda: pitome_preset("deit", 0, keep=0.9), "num_layers: got 0"),
        (lambda: pitome_preset("deit", 12, keep=1.2), "keep: got 1.2"),
        (
            lambda: mean_by_size(jnp.ones((1, 3, 2)), jnp.ones((1, 2))),
            "size",
        ),
        (
            lambda: mean_by_size(jnp.ones((1, 3, 2)), jnp.ones((1, 3)), protect=4),
            "protect: got 4",
        ),
    ],
)
def test_bad_input(call, said):
    with pytest.raises((ArgumentError, TypeError), match=said):
        call()
