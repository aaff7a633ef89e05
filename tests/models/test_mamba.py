"""Mamba: foreign outputs, its many ways against each other, its checkpoints."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models, train
from jtok.decode import generate
from jtok.errors import ArgumentError, ArgumentTypeError, CheckpointError
from jtok.models import Info, StepInput, Taps, backbone_of, init_cache, model_target
from jtok.nn import MAMBA_SITES, MambaConfig
from jtok.ops import Want
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_config, tiny_model

FOLDER = (
    pathlib.Path(__file__).resolve().parents[1] / "goldens" / "hf_checkpoints" / "mamba"
)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 18)))


@functools.lru_cache
def golden_model(dtype=None):
    return models.load(FOLDER, dtype=dtype)


def expected():
    return load_golden("hf_checkpoints/mamba/expected.npz")


def stacked(model):
    return model.replace(params=models.stack_layers(model.params))


run = jax.jit(lambda model, ids, **arrays: model(ids, taps=["resid_post"], **arrays))


@jax.jit
def feed(model, ids, cache, count):
    """A step that keeps the first `count` of its ids."""
    out = model(ids, cache=cache)
    path = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    return out, models.commit(out.cache, path, count)


# ---- foreign outputs


@pytest.mark.parametrize("layers", ["split", "stacked"])
def test_outputs_of_transformers(layers):
    wanted, model = expected(), golden_model()
    model = stacked(model) if layers == "stacked" else model
    assert (wanted["in_attention_mask"] == 1).all()
    out = run(model, jnp.asarray(wanted["in_input_ids"]))
    for name, found in (
        ("out_logits", out.logits),
        ("out_last_hidden", out.hidden),
        # Index 1 of the `hidden_states` of transformers: its Mamba does not begin
        # them with the embeddings, so that is the output of block 1.
        ("out_mid_hidden", out.taps["resid_post"][1]),
    ):
        # The README's tolerance: another framework, another order of summation.
        assert_close(found, wanted[name], atol=2e-4, name=name)


def test_greedy_continuation_of_transformers():
    wanted = expected()
    prompt, whole = wanted["in_input_ids"][0], wanted["out_greedy"][0]
    count = len(whole) - len(prompt)
    out = generate(golden_model(), prompt, max_new_tokens=count, stop_ids=())
    assert [*prompt, *out.tokens] == whole.tolist()


# ---- the same model in pieces, padded, scanned, narrow, spread


def test_a_cache_filled_in_pieces_gives_the_same():
    model, whole = golden_model(), run(golden_model(), IDS)
    cache, start, logits = init_cache(model.config, 2, 1), 0, []
    for size in (5, 1, 2, 10):
        piece = IDS[:, start : start + size]
        out, cache = feed(model, piece, cache, jnp.full(2, size))
        logits.append(out.logits)
        start += size
    assert_close(jnp.concatenate(logits, axis=1), whole.logits, atol=2e-5)
    assert cache.length.tolist() == [18, 18]


@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding_changes_nothing(side):
    model = golden_model()
    places = {
        "left": np.arange(18) >= 5,
        "right": np.arange(18) < 13,
        "inside": np.isin(np.arange(18), (0, 3, 4, 9, 17), invert=True),
    }[side]
    alone = run(model, IDS[:, places]).logits
    mask = jnp.broadcast_to(jnp.asarray(places)[None], (2, 18))
    for version in (model, stacked(model)):
        out = run(version, jnp.where(mask, IDS, 95 - IDS), mask=mask)
        assert_close(out.logits[:, places], alone, atol=2e-5)


def test_rows_do_not_mix():
    model = golden_model()
    both, other = run(model, IDS).logits, run(model, IDS.at[1].set(0)).logits
    np.testing.assert_array_equal(both[0], other[0])


def test_vectors_stand_for_ids():
    model = golden_model()
    vectors = model.params["embed"]["tokens"][IDS]
    np.testing.assert_array_equal(run(model, IDS).logits, run(model, vectors).logits)


def test_bfloat16_stays_close():
    narrow, wide = golden_model("bfloat16"), golden_model()
    kinds = {leaf.dtype for leaf in jax.tree.leaves(narrow.params)}
    assert kinds == {jnp.dtype("bfloat16")}
    found, wanted = run(narrow, IDS), run(wide, IDS).logits
    assert found.logits.dtype == jnp.float32 and found.hidden.dtype == jnp.bfloat16
    # The residual stream stays in float32.
    assert found.taps["resid_post"].dtype == jnp.float32
    assert np.abs(found.logits - wanted).mean() < 0.03 * np.std(wanted)
    cache = init_cache(narrow.config, 2, 1)
    history, state = cache.layers[0]
    assert (history.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    for start in (0, 5):
        ids = IDS[:, start : start + 5]
        out, cache = feed(narrow, ids, cache, jnp.array([5, 5]))
    error = np.abs(out.logits - wanted[:, 5:10])
    assert error.mean() < 0.03 * np.std(wanted)


def test_a_sharded_model_gives_the_same():
    wanted = run(golden_model(), IDS).logits
    with jax.set_mesh(mesh_from("data=2,model=4")):
        model = models.load(FOLDER)
        mixer = model.params["layers"][1]["mixer"]
        for part in ("in_proj", "gate_proj", "x_proj", "dt_proj", "out_proj", "conv"):
            leaf = mixer[part]["kernel"]
            assert np.prod(leaf.sharding.shard_shape(leaf.shape)) * 4 == leaf.size, part
        for part in ("A_log", "D"):
            leaf = mixer[part]
            assert leaf.sharding.shard_shape(leaf.shape)[0] == 16, part
        out, scanned = run(model, IDS), run(stacked(model), IDS)
        cache = init_cache(model.config, 2, 1)
        first, cache = feed(model, IDS[:, :9], cache, jnp.array([9, 9]))
        second, cache = feed(model, IDS[:, 9:], cache, jnp.array([9, 9]))
        state = cache.layers[0][1]
        assert state.sharding.shard_shape(state.shape) == (1, 16, 8)
    assert_close(out.logits, wanted, atol=2e-5)
    assert_close(scanned.logits, wanted, atol=2e-5)
    pieces = np.concatenate([first.logits, second.logits], axis=1)
    assert_close(pieces, wanted, atol=2e-5)


def test_taps_read_and_edit_at_every_site():
    model = golden_model()
    plain = jax.jit(lambda model: model(IDS, taps=MAMBA_SITES))

    @jax.jit
    def edited(model, amount):
        def edit(layer, site, x):
            ramp = jnp.linspace(0, 1, x.shape[-1]).reshape(1, 1, -1)
            return x * (1 + amount[MAMBA_SITES.index(site), layer] * ramp).astype(
                x.dtype
            )

        return model(IDS, taps=Taps(MAMBA_SITES, edit))

    before = plain(model)
    assert set(before.taps) == set(MAMBA_SITES)
    for site in range(len(MAMBA_SITES)):
        amount = jnp.zeros((len(MAMBA_SITES), 2)).at[site, 1].set(0.5)
        unrolled, scanned = edited(model, amount), edited(stacked(model), amount)
        assert_close(unrolled.logits, scanned.logits, atol=1e-4, rtol=1e-5)
        assert np.abs(unrolled.logits - before.logits).max() > 1e-3
        for name, value in unrolled.taps.items():
            assert_close(value, scanned.taps[name], atol=1e-4, rtol=1e-4)
        first = {name: unrolled.taps[name][0] for name in MAMBA_SITES}
        for name, value in first.items():
            assert_close(value, before.taps[name][0], name=name)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bias": jnp.zeros((1, 1, 3, 3))}, "bias: got an array, .* no attention"),
        ({"positions": jnp.zeros((1, 3), int)}, "positions: got an array, .* order"),
        (
            {"mask": jnp.ones((1, 3, 3), bool)},
            r"mask: got 'shape \(1, 3, 3\)', expected \[1, 3\]: a recurrent model",
        ),
        ({"taps": ["query"]}, "site 'query'. Known: conv_out, mixer_out, resid_p"),
        ({"taps": [("scan_out", 2)]}, r"taps: got \('scan_out', 2\)"),
    ],
)
def test_what_a_recurrent_model_has_no_use_for_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        golden_model()(jnp.zeros((1, 3), int), **options)


def test_bad_caches_and_configurations():
    model, ids = golden_model(), jnp.zeros((1, 3), int)
    cache = init_cache(model.config, 1, 8)
    with pytest.raises(ArgumentError, match="cache: got one without pending nodes"):
        models.commit(cache, jnp.zeros((1, 1), int), jnp.ones(1, int))
    with pytest.raises(ArgumentError, match=r"use jtok\.models\.split_layers"):
        stacked(model)(ids, cache=cache)
    for batch, capacity, name in ((0, 8, "batch"), (1, 0, "capacity")):
        with pytest.raises(ArgumentError, match=rf"{name}: got 0, expected at least 1"):
            init_cache(model.config, batch, capacity)
    with pytest.raises(ArgumentTypeError, match="config: got int, expected one of Dec"):
        backbone_of(3)


def test_texts_are_scored_and_encoded():
    model = golden_model()
    texts = [IDS[0].tolist(), IDS[1, :7].tolist()]
    scores = models.score(model, texts)
    for row, text in enumerate(texts):
        logits = run(model, IDS[row : row + 1]).logits[0, : len(text) - 1]
        log_probs = jax.nn.log_softmax(logits)
        wanted = sum(float(log_probs[i, t]) for i, t in enumerate(text[1:]))
        assert scores.log_likelihood[row] == pytest.approx(wanted, rel=1e-5)
    vectors = models.encode(model, texts, pool="last")
    assert_close(vectors[1], run(model, IDS).hidden[1, 6], atol=2e-5)


# ---- training


def test_gradients_of_scanned_and_split_layers_agree():
    model = golden_model()
    batch = {"tokens": IDS}
    loss_fn = train.lm_loss(model)
    loss = lambda params: loss_fn(params, None, None, batch, jax.random.key(0))[0]
    gradient = jax.jit(jax.grad(loss))
    split = gradient(model.params)
    scanned = models.split_layers(gradient(models.stack_layers(model.params)))
    for (path, found), wanted in zip(
        jax.tree.leaves_with_path(scanned), jax.tree.leaves(split), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(found).all() and np.abs(found).max() > 0, name
        assert_close(found, wanted, rtol=1e-4, atol=1e-6, name=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_lowers_the_loss(dtype):
    config = dataclasses.replace(tiny_config(family="mamba"), dtype=dtype)
    model = stacked(models.init(config, jax.random.key(0)))
    ids = np.tile(np.arange(1, 9, dtype=np.int32), 40)
    result = train.fit(
        train.lm_loss(model),
        model.params,
        optimizer=train.adamw(1e-2),
        data=train.packed_batches(ids, length=16, batch_size=4, seed=0, eos_id=0),
        steps=30,
        key=jax.random.key(0),
        progress=False,
    )
    losses = result.metrics["loss"]
    assert np.isfinite(result.metrics["grad_norm"]).all()
    assert losses[0] > 4.0 > 2.0 > losses[-1]


def test_documents_that_share_a_row_are_refused():
    model = golden_model()
    ids = np.arange(1, 40, dtype=np.int32)
    batch = train.packed_batches(
        ids, length=8, batch_size=1, seed=0, eos_id=0, documents=True
    )[0]
    with pytest.raises(ArgumentError, match="for a recurrent model"):
        train.lm_loss(model)(model.params, None, None, batch, jax.random.key(0))


# ---- checkpoints


def test_the_golden_checkpoint_comes_back_byte_for_byte(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("expected.npz"))
    model = models.load(source)
    assert isinstance(model.config, MambaConfig) and model.config.tied
    for version in (model, stacked(model)):
        models.save(version, tmp_path / "out")
        for path in source.iterdir():
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert model.generation_config.eos_token_ids == (2,)
    assert model.num_params == sum(x.size for x in jax.tree.leaves(model.params))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_new_model_is_saved_and_loaded(dtype, tmp_path):
    config = dataclasses.replace(
        tiny_config(family="mamba"), dtype=dtype, proj_bias=True, conv_bias=False
    )
    model = models.init(config, jax.random.key(1))
    models.save(model, tmp_path / "out")
    again = models.load(tmp_path / "out")
    assert dataclasses.replace(again.config, source="{}") == config
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    for got, wanted in zip(
        jax.tree.leaves(again.params), jax.tree.leaves(model.params)
    ):
        assert got.dtype == wanted.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(got, wanted)
    names = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" in names
    assert names["backbone.layers.1.mixer.in_proj.weight"].shape == (128, 32)
    assert names["backbone.layers.1.mixer.conv1d.weight"].shape == (64, 1, 4)
    assert "backbone.layers.1.mixer.in_proj.bias" in names
    assert "backbone.layers.1.mixer.conv1d.bias" not in names


def fields(**changes):
    held = json.loads((FOLDER / "config.json").read_text())
    return {k: v for k, v in {**held, **changes}.items() if v != "absent"}


def test_configurations_are_read_and_written():
    config = models.config_from(fields())
    written = models.FAMILIES["mamba"].write(config)
    assert written == {name: fields()[name] for name in written}
    small = models.config_from(
        fields(time_step_rank="auto", intermediate_size="absent", expand=3)
    )
    assert (small.dt_rank, small.inner_width) == (2, 96)
    assert models.config_from(models.FAMILIES["mamba"].write(small)).inner_width == 96
    with pytest.raises(CheckpointError, match="hidden_act 'gelu'; .* 'silu'"):
        models.config_from(fields(hidden_act="gelu"))
    with pytest.raises(CheckpointError, match="there is no field 'hidden_size'"):
        models.config_from(fields(hidden_size="absent"))


def test_init_takes_the_fields_of_a_config():
    one, same = (models.init(fields(), jax.random.key(3)) for _ in range(2))
    shapes = lambda params: jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes(one.params) == shapes(golden_model().params)
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    layers = one.params["layers"]
    kernels = [layer["mixer"]["out_proj"]["kernel"] for layer in layers]
    assert not np.array_equal(*kernels)
    wanted = 0.02 / np.sqrt(2)
    assert np.std(kernels[0]) == pytest.approx(wanted, rel=0.1)


# ---- the target


def nodes_of(ids, valid=None):
    batch, count = ids.shape
    causal = jnp.tril(jnp.ones((count, count), bool))
    return StepInput(
        ids=ids,
        positions=jnp.zeros((batch, count), jnp.int32),
        allow=jnp.broadcast_to(causal[None], (batch, count, count)),
        valid=jnp.ones((batch, count), bool) if valid is None else valid,
    )


def test_equal_configs_give_the_same_functions():
    config = tiny_config(family="mamba")
    target = model_target(config)
    assert target is tiny_model(family="mamba").target()
    assert target is not model_target(config, (("scan_out", 0),))
    assert target.info == Info(96, None, trees=False)


def test_commit_keeps_the_state_after_so_many_nodes():
    model = tiny_model(family="mamba", scale=10.0)
    target = model_target(model.config, (("conv_out", 1),))
    step, commit = jax.jit(target.step), jax.jit(target.commit)
    cache = target.init_cache(model.params, 2, 1)
    path = jnp.tile(jnp.arange(5), (2, 1))
    texts = [[], []]
    for start, counts in ((0, [5, 2]), (5, [0, 3]), (10, [1, 5])):
        ids = IDS[:, start : start + 5]
        out, pending = step(model.params, cache, nodes_of(ids))
        assert out.taps["conv_out", 1].shape == (2, 5, 64)
        jax.tree.map(np.testing.assert_array_equal, pending.layers, cache.layers)
        # Another step before the commit sees nothing of the one before.
        again, pending = step(model.params, pending, nodes_of(ids))
        np.testing.assert_array_equal(out.hidden, again.hidden)
        kept = commit(pending, jnp.where(path < jnp.array(counts)[:, None], path, -1),
                      jnp.array(counts))  # fmt: skip
        for row, count in enumerate(counts):
            texts[row] += ids[row, :count].tolist()
            if count == 0:
                for was, now in zip(
                    jax.tree.leaves(cache.layers), jax.tree.leaves(kept.layers)
                ):
                    assert was[row].tobytes() == now[row].tobytes()
        cache = kept
    assert cache.pending is None
    assert cache.length.tolist() == [len(text) for text in texts] == [6, 10]
    for row, text in enumerate(texts):
        empty = target.init_cache(model.params, 1, 1)
        _, fresh = step(model.params, empty, nodes_of(jnp.array([text])))
        places = jnp.arange(len(text))[None]
        fresh = commit(fresh, places, jnp.array([len(text)]))
        for found, wanted in zip(
            jax.tree.leaves(cache.layers), jax.tree.leaves(fresh.layers)
        ):
            assert np.abs(wanted).max() > 0
            assert_close(found[row], wanted[0], atol=1e-5, rtol=1e-5)


def test_what_waits_for_a_commit_is_small():
    """No state a node: a chunk of 256 tokens costs what its activations cost."""
    config = dataclasses.replace(tiny_config(family="mamba"), state_size=64)
    target = model_target(config)
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)).params)
    cache = jax.eval_shape(lambda: target.init_cache(params, 1, 1))
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def prefill(params, cache, ids):
        _, cache = target.step(params, cache, nodes_of(ids))
        path = jnp.arange(256)[None]
        return target.commit(cache, path, jnp.array([200]))

    _, waiting = jax.eval_shape(
        target.step, params, cache, jax.eval_shape(nodes_of, ids)
    )
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(waiting.pending))
    assert held < 2 * 4 * 256 * (3 * 64 + 64) * 1.2
    compiled = jax.jit(prefill).lower(params, cache, ids).compile()
    states = 4 * 256 * 64 * 64
    assert compiled.memory_analysis().temp_size_in_bytes < states / 2


def test_readout_is_the_model_s_own():
    model = golden_model()
    out = run(model, IDS)
    read = model.target().readout(model.params, out.hidden, Want(rows=True))
    assert_close(read.rows, out.logits)
