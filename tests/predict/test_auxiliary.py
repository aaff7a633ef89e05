"""Auxiliary heads: what they see, what they are asked, what trains with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok import models, train
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.models import split_layers, stack_layers
from jtok.ops.sharding import mesh_from
from jtok.predict import (
    IGNORE,
    TUNING_MODES,
    AuxiliaryLosses,
    HeadsConfig,
    auxiliary_hidden,
    auxiliary_loss,
    auxiliary_losses,
    combine_losses,
    concept_tune,
    count_targets,
    encode_pieces,
    eval_losses,
    init_heads,
    out_of_patience,
    pad_rows,
    pretrain_heads,
    real_eval_loss,
    schedule_weight,
    span_labels,
    tuning_parts,
)
from jtok.testing import assert_close, tiny_model, tiny_vocabulary

MODEL = tiny_model()
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 9)).astype(np.int32))
LABELS = IDS.at[0, :3].set(IGNORE).at[1, 7:].set(IGNORE)
KINDS = {
    "default": HeadsConfig(num_auxiliary=3),
    "official": HeadsConfig.official(num_auxiliary=3),
    "deep": HeadsConfig(num_auxiliary=2, depth=2, head_input="final_norm"),
    "linear": HeadsConfig(num_auxiliary=3, arch="linear", head_input="final_norm"),
    "own": HeadsConfig(num_auxiliary=2, separate_unembedding=True),
}


@functools.lru_cache
def heads_of(name, model=MODEL):
    """Heads that differ from one another, and from the model."""
    made = init_heads(model, KINDS[name], key=jax.random.key(5))
    leaves, tree = jax.tree.flatten(made.params)
    keys = jax.random.split(jax.random.key(6), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return made.replace(params=jax.tree.unflatten(tree, moved))


def logits_of(model, heads, hidden):
    own = heads.params.get("unembed")
    if own is not None:
        return jnp.einsum("nbtd,nvd->nbtv", hidden, own["kernel"])
    weight = model.unembedding()[0]
    logits = jnp.einsum("nbtd,vd->nbtv", hidden, weight)
    cap = model.config.final_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


# What heads say ------------------------


@pytest.mark.medium
@pytest.mark.parametrize(
    "family",
    ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2",
     "gpt_neox", "olmo2", "phi3", "mixtral"],
)  # fmt: skip
def test_heads_start_saying_what_the_model_says(family):
    """Copies of the last layer, before the final norm: of every family."""
    model = tiny_model(family=family)
    heads = init_heads(model, HeadsConfig(num_auxiliary=2, depth=2))
    hidden = auxiliary_hidden(model, heads, IDS)
    for one in hidden:
        assert_close(one, model(IDS, logits="none").hidden, atol=2e-5)


def shifted_loss(model, distance):
    """What the model's own logits say of the tokens some places later."""
    nats = jax.nn.log_softmax(model(IDS).logits[:, :-distance])
    return -jnp.take_along_axis(nats, IDS[:, distance:, None], axis=-1).mean()


@pytest.mark.parametrize("stacked", [False, True])
def test_linear_heads_start_as_the_identity(stacked):
    model = MODEL
    if stacked:
        model = model.replace(params=stack_layers(model.params))
    # Not one: what was normed already must not be normed again.
    scale = {"scale": jnp.linspace(0.5, 3.0, 32)}
    model = model.replace(params={**model.params, "final_norm": scale})
    heads = init_heads(model, KINDS["linear"])
    hidden = auxiliary_hidden(model, heads, IDS)
    assert hidden.shape == (3, 2, 9, 32)
    for one in hidden:
        assert_close(one, model(IDS, logits="none").hidden)
    # So do those before the last layer, but for what that layer adds.
    before = auxiliary_hidden(model, heads, IDS, head_input="pre_last")
    site = ("resid_pre", 1)
    read = model(IDS, taps=[site], logits="none").taps[site]
    normed = read * jax.lax.rsqrt(jnp.mean(read**2, -1, keepdims=True) + 1e-5)
    assert_close(before[0], normed * scale["scale"][None, None], rtol=1e-3, atol=1e-4)
    losses = auxiliary_losses(model, heads, IDS, IDS)
    assert_close(losses.means[1], shifted_loss(model, 2), rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_token_changes_nothing_before_it(name):
    heads = heads_of(name)
    run = jax.jit(lambda ids: auxiliary_hidden(MODEL, heads, ids))
    before, after = run(IDS), run(IDS.at[:, 5].set(1))
    np.testing.assert_array_equal(before[:, :, :5], after[:, :, :5])
    changed = np.abs(before[:, :, 5:] - after[:, :, 5:]).max((1, 2, 3))
    assert (changed > 1e-3).all()


@pytest.mark.medium
@pytest.mark.parametrize("padding, name", [(1, "default"), (4, "official")])
def test_what_pads_changes_no_loss(padding, name):
    heads = heads_of(name)
    run = jax.jit(functools.partial(auxiliary_losses, MODEL, heads))
    fill = np.random.default_rng(padding).integers(0, 96, (2, padding))
    ids = jnp.concatenate([IDS, jnp.asarray(fill, jnp.int32)], axis=1)
    labels = jnp.pad(LABELS, ((0, 0), (0, padding)), constant_values=IGNORE)
    mask = jnp.asarray(np.arange(9 + padding) < 9)[None].repeat(2, 0)
    wanted = run(IDS, LABELS)
    for content in (ids, ids.at[:, 9:].set(3)):
        got = run(content, labels, mask=mask)
        np.testing.assert_array_equal(got.counts, wanted.counts)
        assert_close(got.sums, wanted.sums, rtol=1e-5)


def test_official_heads_count_from_the_rows_start_and_see_padding():
    mask = jnp.asarray(np.arange(9) > 2)[None].repeat(2, 0)
    shifted = jnp.asarray(np.arange(9))[None].repeat(2, 0).astype(jnp.int32)
    options = {"mask": mask, "positions": shifted}
    other = IDS.at[:, 0].set(5)
    for name, sees in (("default", False), ("official", True)):
        heads = heads_of(name)
        one = auxiliary_hidden(MODEL, heads, IDS, **options)
        two = auxiliary_hidden(MODEL, heads, other, **options)
        assert bool(jnp.any(one[:, :, 3:] != two[:, :, 3:])) == sees


# What they are asked ------------------------


def loop_losses(model, heads, ids, labels):
    """The losses as a loop over tokens finds them."""
    hidden = model(ids, logits="none").hidden[None]
    weight = model.unembedding()[0]
    every = jnp.einsum("nbtd,vd->nbtv", hidden, weight)
    own = logits_of(model, heads, auxiliary_hidden(model, heads, ids))
    logits = np.concatenate([every, own]).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    sums, counts = np.zeros(len(logits)), np.zeros(len(logits), int)
    for i, b, t in np.ndindex(logits.shape[:3]):
        if t + 1 + i < ids.shape[1] and labels[b, t + 1 + i] >= 0:
            sums[i] -= logits[i, b, t, labels[b, t + 1 + i]]
            counts[i] += 1
    return sums, counts


@pytest.mark.parametrize("name", KINDS)
def test_losses_are_those_of_a_loop(name):
    heads = heads_of(name)
    found = jax.jit(functools.partial(auxiliary_losses, MODEL, heads))(IDS, LABELS)
    sums, counts = loop_losses(MODEL, heads, IDS, LABELS)
    np.testing.assert_array_equal(found.counts, counts)
    assert_close(found.sums, sums.astype(np.float32), rtol=2e-5)


def test_documents_of_a_row_are_apart():
    """Each as if it stood alone, but for the positions, which the batch says."""
    heads = heads_of("default")
    segments = jnp.asarray([[0] * 4 + [1] * 5] * 2)
    positions = jnp.asarray([[*range(4), *range(5)]] * 2)
    run = jax.jit(functools.partial(auxiliary_losses, MODEL, heads))
    packed = run(IDS, LABELS, segments=segments, positions=positions)
    parts = [run(IDS[:, some], LABELS[:, some]) for some in (np.s_[:4], np.s_[4:])]
    np.testing.assert_array_equal(packed.counts, sum(p.counts for p in parts))
    assert_close(packed.sums, sum(p.sums for p in parts), rtol=2e-5)


def test_documents_and_padding_of_a_row_are_both_apart():
    """A token that pads inside a document is seen by none of it, and asked nothing."""
    heads = heads_of("default")
    mask = jnp.ones(IDS.shape, bool).at[:, jnp.array([1, 6])].set(False)
    batch = {
        "mask": mask, "segments": jnp.asarray([[0] * 4 + [1] * 5] * 2),
        "positions": jnp.asarray([[*range(4), *range(5)]] * 2),
    }  # fmt: skip
    loss_fn = auxiliary_loss(MODEL, heads, steps=1, weight=1.0)
    params = {"base": MODEL.params, "heads": heads.params}

    @jax.jit
    def run(ids):
        given = {"tokens": ids, **batch}
        metrics = loss_fn(params, None, {"seen": jnp.int32(0)}, given, None)[1][0]
        return jnp.stack([metrics[f"loss_{i}"] for i in range(4)])

    other = jnp.where(mask, IDS, 3)
    np.testing.assert_array_equal(run(IDS), run(other))
    labels = jnp.where(mask, IDS, IGNORE)
    found = auxiliary_losses(MODEL, heads, IDS, labels, **batch)
    assert_close(found.means, run(IDS), rtol=1e-5)
    counted = count_targets(IDS, 4, mask=mask, segments=batch["segments"])
    np.testing.assert_array_equal(found.counts, np.array(counted, np.int32))


def test_without_a_target_the_loss_is_zero_and_gradients_are_finite():
    heads = heads_of("linear")
    none = jnp.full_like(IDS, IGNORE)
    few = IDS.at[:, 3:].set(IGNORE)  # none that the last head could see

    def loss(params, ids, labels):
        found = auxiliary_losses(MODEL.replace(params=params), heads, ids, labels)
        return combine_losses(found.means, weight=1.0), found.counts

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, counts), grads = grad(MODEL.params, IDS, none)
    assert value == 0.0 and counts.tolist() == [0, 0, 0, 0]
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(grads))
    (value, counts), grads = grad(MODEL.params, IDS, few)
    assert counts.tolist() == [4, 2, 0, 0] and np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    # A row that is shorter than the distance of a head.
    assert loss(MODEL.params, IDS[:, :2], IDS[:, :2])[1].tolist() == [2, 0, 0, 0]


def test_bfloat16_agrees():
    config = dataclasses.replace(MODEL.config, dtype="bfloat16")
    narrow = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    model = dataclasses.replace(MODEL, params=narrow(MODEL.params), config=config)
    heads = heads_of("default")
    small = dataclasses.replace(heads, params=narrow(heads.params), base=config)
    got = jax.jit(auxiliary_losses)(model, small, IDS, LABELS)
    wanted = jax.jit(auxiliary_losses)(MODEL, heads, IDS, LABELS)
    assert got.sums.dtype == jnp.float32
    assert_close(got.means, wanted.means, rtol=0.05)  # random, peaky weights


def test_no_logits_of_all_heads_in_memory():
    """Of the backward pass, too: one head's chunk of logits at a time."""
    config = dataclasses.replace(MODEL.config, vocab_size=65536)
    model = models.abstract(config)
    heads = jax.eval_shape(
        lambda p: init_heads(model.replace(params=p), KINDS["default"]), model.params
    )
    ids = jax.ShapeDtypeStruct((4, 128), jnp.int32)

    def loss(params, own, ids):
        found = auxiliary_losses(
            model.replace(params=params), heads.replace(params=own), ids, ids, chunk=64
        )
        return combine_losses(found.means)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
    compiled = grad.lower(model.params, heads.params, ids).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    assert held < 4 * 128 * 65536 * 4 / 2  # half the logits of one head


@pytest.mark.medium
def test_a_mesh_changes_nothing():
    heads = heads_of("default")
    ids = jnp.tile(IDS, (2, 1))

    def loss(params, own):
        found = auxiliary_losses(
            MODEL.replace(params=params), heads.replace(params=own), ids, ids
        )
        return combine_losses(found.means, weight=0.5)

    grad = jax.value_and_grad(loss, argnums=(0, 1))
    wanted = jax.jit(grad)(MODEL.params, heads.params)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        placed = models.checkpoint.place_params(MODEL.params, MODEL.config)
        own = models.checkpoint.place_params(heads.params, MODEL.config)
        kernel = own["layers"][0]["mlp"]["up"]["kernel"]
        assert kernel.sharding.spec[2] == "model"
        got = jax.jit(grad)(placed, own)
    assert_close(got[0], wanted[0])
    for one, other in zip(
        jax.tree.leaves(got[1]), jax.tree.leaves(wanted[1]), strict=True
    ):
        assert_close(one, other, atol=2e-5)


# How they weigh ------------------------


@given(st.integers(0, 20), st.integers(1, 20))
def test_schedules(step, extra):
    steps = step + extra
    sine, rsine = (schedule_weight(n, step, steps) for n in ("sine", "rsine"))
    assert float(sine) ** 2 + float(rsine) ** 2 == pytest.approx(1.0, abs=1e-6)
    for name in ("linear", "sine", "sine_r"):
        later = schedule_weight(name, step + 1, steps)
        assert float(later) >= float(schedule_weight(name, step, steps))
    assert float(schedule_weight("rsine", step + 1, steps)) <= float(rsine) + 1e-7
    for name, ends in {"linear": (0, 1), "sine": (0, 1), "rsine": (1, 0)}.items():
        got = [float(schedule_weight(name, at, steps)) for at in (0, steps)]
        assert got == pytest.approx(ends, abs=1e-6)
    assert float(schedule_weight("rsine", 0, 0)) == 1.0


def _plain(mode, weight, heads, batch, schedule="constant"):
    parts = tuning_parts(MODEL, heads, mode)
    loss_fn = auxiliary_loss(
        MODEL, heads, steps=4, weight=weight, schedule=schedule, combine=parts.combine
    )
    seen = 4 if schedule == "rsine" else 0

    def loss(trainable):
        state = {"seen": jnp.int32(seen)}
        return loss_fn(trainable, parts.frozen, state, batch, None)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(parts.trainable)
    return value, grads["base"]


@pytest.mark.parametrize("how", ["beta", "gamma", "one"])
def test_without_weight_it_is_plain_fine_tuning(how):
    """A weight of 0, a schedule at its end, or one prediction."""
    batch = {"tokens": IDS, "labels": LABELS}
    heads = heads_of("default")
    if how == "one":
        heads = init_heads(MODEL, HeadsConfig(num_auxiliary=0))
    options = {"beta": (0.0, "constant"), "gamma": (1.0, "rsine")}
    weight, schedule = options.get(how, (1.0, "constant"))
    value, grads = _plain("base", weight, heads, batch, schedule)
    wanted, expected = _plain("base", 0.0, None, batch)
    exact = how != "gamma"  # sin(0) times finite numbers: 0, but for the sum's order
    assert float(value) == float(wanted)
    for one, other in zip(
        jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
    ):
        if exact:
            np.testing.assert_array_equal(one, other)
        else:
            assert_close(one, other, atol=1e-7)


BATCH = {"tokens": IDS, "labels": LABELS}


def gradient(mode, **options):
    heads = heads_of("default")
    parts = tuning_parts(MODEL, heads, mode, key=jax.random.key(0), rank=2, **options)
    loss_fn = auxiliary_loss(
        MODEL, heads, steps=4, weight=1.0, base=mode != "heads",
        combine=parts.combine,
    )  # fmt: skip
    state = {"seen": jnp.int32(0)}
    run = lambda tree: loss_fn(tree, parts.frozen, state, BATCH, None)[0]
    return parts, jax.jit(jax.grad(run))(parts.trainable)


def names(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(getattr(p, "key", p)) for p in path) for path, _ in flat}


def test_heads_alone_leave_the_model_and_its_unembedding():
    parts, grads = gradient("heads")
    assert all(name.startswith("heads/") for name in names(parts.trainable))
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads))


def test_frozen_heads_pass_gradients_on():
    parts, grads = gradient("base")
    assert all(name.startswith("base/") for name in names(parts.trainable))
    assert "base/unembed/kernel" not in names(parts.trainable)
    plain = _plain("base", 0.0, None, BATCH)[1]
    first = lambda tree: np.asarray(tree["layers"]["query"]["kernel"][0])
    assert np.abs(first(grads["base"]) - first(plain)).max() > 1e-3
    _, every = gradient("base", freeze_unembedding=False)
    assert np.abs(every["base"]["unembed"]["kernel"]).max() > 0


@pytest.mark.parametrize("mode", ["base_adapters", "adapters"])
def test_adapters_alone_train(mode):
    parts, grads = gradient(mode)
    found = names(parts.trainable)
    assert all(name.split("/")[-1] in ("lora_a", "lora_b") for name in found)
    assert any(name.startswith("heads/") for name in found) == (mode == "adapters")
    assert np.abs(grads["base"]["layers"]["mlp"]["up"]["lora_b"]).max() > 0
    made = parts.finish(parts.trainable, parts.frozen)
    kernel = split_layers(made["base"])["layers"][0]["query"]["kernel"]
    np.testing.assert_array_equal(kernel, MODEL.params["layers"][0]["query"]["kernel"])


@pytest.mark.slow
def test_micro_batches_weigh_by_their_tokens():
    """With `targets` the gradient of parts is that of the whole, however uneven."""
    heads = heads_of("linear")
    labels = LABELS.at[0].set(IGNORE).at[0, 5:].set(IDS[0, 5:])
    batch = {"tokens": np.asarray(IDS), "labels": np.asarray(labels)}
    parts = tuning_parts(MODEL, heads, "both")
    results = {}
    for accumulate, exact in ((1, True), (2, True), (2, False)):
        loss_fn = auxiliary_loss(
            MODEL, heads, steps=1, weight=0.5, accumulate=accumulate,
            combine=parts.combine,
        )  # fmt: skip
        given = dict(batch)
        if exact:
            given["targets"] = count_targets(labels, 4, accumulate=accumulate)
        out = train.fit(
            loss_fn, parts.trainable, frozen=parts.frozen,
            data=functools.partial(lambda given, step: given, given),
            optimizer=train.adamw(1e-3), state={"seen": jnp.int32(0)}, steps=1,
            key=jax.random.key(0), accumulate=accumulate, progress=False,
        )  # fmt: skip
        results[accumulate, exact] = out.metrics
    whole = auxiliary_losses(MODEL, heads, IDS, labels).means
    losses = lambda row: np.array([row[f"loss_{i}"][0] for i in range(4)])
    for key in ((1, True), (2, True)):
        assert_close(losses(results[key]), np.asarray(whole, np.float64), rtol=1e-5)
    norms = {key: row["grad_norm"][0] for key, row in results.items()}
    assert norms[1, True] == pytest.approx(norms[2, True], rel=1e-4)
    assert abs(norms[2, False] - norms[1, True]) > 1e-3 * norms[1, True]
    assert results[2, True]["tokens"][0] == count_targets(labels, 1)[0]


# Jobs ------------------------


SLOW = ("base", "base_adapters")  # the other two run their code, too


@pytest.mark.medium
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=[pytest.mark.slow] if mode in SLOW else [])
        for mode in TUNING_MODES
        if mode != "heads"
    ],
)
def test_the_two_stages(mode):
    """Heads learn to predict, then the model learns with them and stands alone."""
    rows = np.tile(np.arange(8, dtype=np.int32), 3)[None].repeat(4, 0)
    data = lambda step: {"tokens": (rows + step) % 8}
    options = {"key": jax.random.key(1), "progress": False, "steps": 12}
    heads, fit = pretrain_heads(
        MODEL, init_heads(MODEL, HeadsConfig(num_auxiliary=2)), data,
        learning_rate=1e-2, **options,
    )  # fmt: skip
    assert fit.metrics["loss_2"][-1] < 0.7 * fit.metrics["loss_2"][0]
    tuned = concept_tune(
        MODEL, heads, data, mode=mode, weight=0.3, learning_rate=3e-3, rank=2,
        dropout=0.1 if "adapters" in mode else 0.0, **options,
    )  # fmt: skip
    losses = tuned.fit.metrics
    # Of adapters of rank 2 twelve updates make less.
    assert (
        losses["loss_0"][-1] < (0.95 if "adapt" in mode else 0.7) * losses["loss_0"][0]
    )
    assert losses["head_weight"][0] == pytest.approx(0.3)
    assert losses["head_weight"][-1] < 0.05
    logits = tuned.model(jnp.asarray(rows)).logits
    score = auxiliary_losses(tuned.model, None, jnp.asarray(rows), jnp.asarray(rows))
    assert score.means[0] < losses["loss_0"][0] and np.isfinite(logits).all()
    same = jax.tree.all(
        jax.tree.map(
            lambda a, b: bool((a == b).all()), tuned.heads.params, heads.params
        )
    )
    assert same == (mode in ("base", "base_adapters"))
    assert (tuned.adapters is not None) == ("adapters" in mode)


@pytest.mark.parametrize(
    "mode, weight, wanted",
    [("both", 0.1, "final_norm"), ("base", 0.1, "pre_last"), ("both", 0.0, "pre_last")],
)
def test_tuned_heads_say_what_they_learnt_to_read(mode, weight, wanted):
    """Official ones change their input, but only where they train on the other one."""
    heads = heads_of("official")
    tuned = concept_tune(
        MODEL, heads, lambda step: BATCH, steps=1, mode=mode, weight=weight,
        key=jax.random.key(0), progress=False,
    )  # fmt: skip
    assert tuned.heads.config.head_input == wanted
    assert tuned.heads.config.tuning_input == "final_norm"


def test_a_stop_on_the_way_changes_nothing(tmp_path):
    """Two epochs in two calls are the two of one call; schedules know the whole."""
    options = {
        "steps": 4, "mode": "base_adapters", "rank": 2, "key": jax.random.key(0),
        "progress": False, "learning_rate": 1e-2,
    }  # fmt: skip
    data = lambda step: BATCH
    once = concept_tune(MODEL, None, data, **options)
    for until in (2, 4):
        twice = concept_tune(
            MODEL, None, data, until=until, folder=tmp_path / "run", **options
        )
        assert twice.fit.step == until
    jax.tree.map(np.testing.assert_array_equal, once.adapters, twice.adapters)
    with pytest.raises(ArgumentError, match="until: got 5, expected None or 1 to 4"):
        concept_tune(MODEL, None, data, until=5, **options)


def test_heads_leave_the_models_logits_alone():
    """Training them does not touch the model; dropping them is not using them."""
    before = np.asarray(MODEL(IDS).logits)
    data = lambda step: {"tokens": IDS}
    pretrain_heads(
        MODEL, heads_of("default"), data, steps=2, key=jax.random.key(0), progress=False
    )
    np.testing.assert_array_equal(MODEL(IDS).logits, before)


def test_what_heads_are_judged_by():
    some = AuxiliaryLosses(jnp.array([2.0, 4.0, 0.0]), jnp.array([2, 2, 0]))
    more = AuxiliaryLosses(jnp.array([9.0, 1.0, 0.0]), jnp.array([3, 1, 0]))
    np.testing.assert_allclose(eval_losses([some, more])[:2], [11 / 5, 5 / 3])
    official = eval_losses([some, more], compat="official")
    np.testing.assert_allclose(official[:2], [2.0, 1.5])
    assert np.isnan(official[2])
    assert real_eval_loss(official) == pytest.approx(2.0 + 0.8 * 1.5)
    assert not out_of_patience([1.0, 2.0]) and out_of_patience([1.0, 2.0, 2.0])
    assert not out_of_patience([])


# Spans ------------------------


@given(st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 11)), max_size=3))
def test_labels_of_spans(spans):
    given_ = np.array([*spans, (-1, -1)], np.int32)[None].repeat(2, 0)
    got = span_labels(IDS, jnp.asarray(given_))
    for b, t in np.ndindex(IDS.shape):
        inside = any(start <= t < stop for start, stop in spans)
        assert got[b, t] == (IDS[b, t] if inside else IGNORE)


def test_an_answer_that_the_question_quotes_is_labelled_once():
    vocabulary = tiny_vocabulary()
    pieces = [("is it the cat? ", False), ("the cat", True), (" so", False)]
    ids, spans = encode_pieces(vocabulary, pieces)
    batch = pad_rows(
        [(ids, spans), (ids[:2], [])], length=len(ids) + 2, pad_id=int(ids[0])
    )
    labels = batch["labels"]
    answer = vocabulary.encode("the cat", specials=False)
    assert labels[0][labels[0] >= 0].tolist() == np.asarray(answer).tolist()
    assert (labels[0, : spans[0, 0]] == IGNORE).all()
    assert (labels[1] == IGNORE).all()
    assert batch["mask"].sum(1).tolist() == [len(ids), 2]
    one = jnp.asarray(ids)[None]
    np.testing.assert_array_equal(
        span_labels(one, jnp.asarray(spans)[None])[0], labels[0, : len(ids)]
    )


# Bad input ------------------------


def test_bad_choices_are_refused():
    for fields, message in (
        ({"num_auxiliary": -1}, "num_auxiliary: got -1, expected at least 0"),
        ({"depth": 0}, "depth: got 0"),
        ({"arch": "linera"}, "arch: got 'linera'; did you mean linear"),
        ({"head_input": "last"}, "head_input: got 'last'"),
        ({"tuning_input": "last"}, "tuning_input: got 'last'"),
        ({"compat": "paper"}, "compat: got 'paper'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            HeadsConfig(**fields)
    with pytest.raises(ArgumentError, match="layer: got 2, expected a layer of the 2"):
        init_heads(MODEL, HeadsConfig(layer=2))
    with pytest.raises(ArgumentError, match="key: got None"):
        init_heads(MODEL, HeadsConfig.official(arch="linear"))
    with pytest.raises(ArgumentTypeError, match="model: got a MambaConfig"):
        init_heads(tiny_model(family="mamba"))


def test_bad_arguments_of_losses_are_refused():
    heads = heads_of("default")
    # Without the suite's own checks of shapes and names.
    bare = getattr(auxiliary_losses, "__wrapped__", auxiliary_losses)
    with pytest.raises(ArgumentError, match=r"labels: got 'shape \(2, 8\)'"):
        bare(MODEL, heads, IDS, LABELS[:, :8])
    wide = dataclasses.replace(MODEL.config, width=64)
    with pytest.raises(ArgumentError, match="heads: got 'heads for width=64'"):
        auxiliary_losses(MODEL, heads.replace(base=wide), IDS, LABELS)
    with pytest.raises(ArgumentError, match="head_input: got 'middle'"):
        bare(MODEL, heads, IDS, LABELS, head_input="middle")
    for options, message in (
        ({"schedule": "cosine"}, "schedule: got 'cosine'"),
        ({"steps": 0}, "steps: got 0"),
        ({"decay": -1.0}, "decay: got -1.0"),
        ({"weight": -1.0}, "weight: got -1.0"),
        ({"ratio": 0.0}, "ratio: got 0.0"),
        ({"accumulate": 0}, "accumulate: got 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            auxiliary_loss(MODEL, heads, **{"steps": 3, **options})
    with pytest.raises(ArgumentError, match="base: got False"):
        auxiliary_loss(MODEL, None, steps=3, base=False)
    with pytest.raises(ArgumentError, match="step: got 5, expected 0 to 4"):
        schedule_weight("rsine", 5, 4)
    loss_fn = auxiliary_loss(MODEL, None, steps=3)
    with pytest.raises(
        ArgumentTypeError, match="data: got .*expected a dict with 'tok"
    ):
        loss_fn({"base": MODEL.params}, None, {"seen": jnp.int32(0)}, {"ids": 1}, None)


def test_bad_arguments_of_jobs_are_refused():
    heads = heads_of("default")
    bare = getattr(tuning_parts, "__wrapped__", tuning_parts)
    for mode, message in (
        ("lora", "mode: got 'lora'"),
        ("base_adapters", "key: got None"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bare(MODEL, heads, mode)
    with pytest.raises(ArgumentError, match="heads: got None, expected heads"):
        tuning_parts(MODEL, None, "heads")
    given_ = {"data": lambda step: BATCH, "steps": 1, "key": jax.random.key(0)}
    with pytest.raises(ArgumentError, match="dropout: got 1.0"):
        concept_tune(MODEL, heads, dropout=1.0, **given_)
    with pytest.raises(ArgumentError, match="mode: got 'heads'"):
        concept_tune(MODEL, heads, mode="heads", **given_)
    with pytest.raises(ArgumentError, match="heads: got 'linear ones'"):
        tuning_parts(MODEL, heads_of("linear"), "adapters", key=jax.random.key(0))


def test_masked_tokens_are_no_targets_that_are_counted():
    labels, mask = np.array([[1, 2, 3, 4]]), np.array([[True, True, True, False]])
    counted = count_targets(labels, 2, mask=mask)
    assert [float(x) for x in counted] == [2.0, 1.0]
