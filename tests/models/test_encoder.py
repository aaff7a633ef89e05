"""Encoders: against foreign outputs, and their many ways against each other."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models
from jtok.decode import generate
from jtok.errors import ArgumentError, ArgumentTypeError, CheckpointError
from jtok.models import FAMILIES as KNOWN
from jtok.models import Segments, Taps, config_from, encoder_heads
from jtok.nn import SITES, EncoderConfig
from jtok.ops import local_attention
from jtok.ops.attention import attention
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_config, tiny_model
from tests.models.decoders import GOLDENS
from tests.models.encoders import ENCODERS, FAMILIES


@functools.lru_cache
def golden_model(folder, dtype=None):
    return models.load(GOLDENS / folder, dtype=dtype)


def expected_of(folder):
    return load_golden(f"hf_checkpoints/{folder}/expected.npz")


def inputs_of(folder):
    expected = expected_of(folder)
    mask = expected["in_attention_mask"] == 1
    assert not mask.all()
    return jnp.asarray(expected["in_input_ids"]), jnp.asarray(mask)


def stacked(model):
    return model.replace(params=models.stack_layers(model.params))


def stackable(folder):
    """ModernBERT's first layer has no norm of its attention."""
    return golden_model(folder).config.first_attn_norm


run = jax.jit(lambda model, ids, **arrays: model(ids, taps=["resid_post"], **arrays))


# ---- foreign outputs


@pytest.mark.parametrize("layers", ["split", "stacked"])
@pytest.mark.parametrize("folder", ENCODERS)
def test_outputs_of_transformers(folder, layers):
    expected, model = expected_of(folder), golden_model(folder)
    ids, mask = inputs_of(folder)
    if layers == "stacked":
        if not stackable(folder):
            with pytest.raises(ArgumentError, match="layers have different"):
                stacked(model)
            return
        model = stacked(model)
    out = run(model, ids, mask=mask)
    found = {"out_last_hidden": out.hidden, "out_mid_hidden": out.taps["resid_post"][0]}
    if "out_logits" in expected:
        found["out_logits"] = out.logits
    else:
        assert folder == "t5_encoder" and out.logits is None
    for name, value in found.items():
        # The README's tolerance: another framework, another order of summation.
        assert_close(
            np.asarray(value)[mask], expected[name][mask], atol=2e-4, name=name
        )


def ernie_of(arrays):
    """The released encoder, whose files call its weights otherwise."""
    held = {name[2:]: jnp.asarray(arrays[name]) for name in arrays if name[0] == "w"}

    def part(name, weight="kernel"):
        return {weight: held[f"{name}.weight"], "bias": held[f"{name}.bias"]}

    def layer(index):
        own = f"encoder_stack.block.{index}"
        names = {"query": "q", "key": "k", "value": "v", "out": "o"}
        maps = {name: part(f"{own}.attn.{short}") for name, short in names.items()}
        mlp = {"up": part(f"{own}.ffn.i"), "down": part(f"{own}.ffn.o")}
        norms = {"attn_norm": part(f"{own}.ln1", "scale")}
        return maps | norms | {"mlp": mlp, "mlp_norm": part(f"{own}.ln2", "scale")}

    embed = {
        "tokens": held["word_emb.weight"],
        "positions": held["pos_emb.weight"],
        "types": held["sent_emb.weight"],
        "norm": part("ln", "scale"),
    }
    params = {"embed": embed, "layers": (layer(0), layer(1))}
    params["pooler"] = {"dense": part("pooler")}
    table = held.get("rel_pos_bias_emb.weight")
    if table is not None:
        params["relative"] = {"table": table}
    config = EncoderConfig(
        family="ernie", vocab_size=40, width=16, num_layers=2, num_heads=4, head_dim=4,
        mlp_width=24, max_positions=32, norm_eps=1e-5, pooler=True,
        relative=None if table is None else "ernie",
    )  # fmt: skip
    return models.Model(params, config)


@pytest.mark.parametrize("kind", ["rel", "norel"])
def test_outputs_of_the_released_ernie(kind):
    arrays = load_golden(f"ernie_gram/official_encoder_{kind}.npz")
    model, ids = ernie_of(arrays), jnp.asarray(arrays["ids"])
    mask = ids != 0
    out = run(model, Segments(ids, jnp.asarray(arrays["sent"])), mask=mask)
    assert_close(
        np.asarray(out.hidden)[mask], arrays["encoded"][mask], atol=2e-5, rtol=0.0
    )
    pooled = models.pool(out.hidden, mask, how="pooler", model=model)
    assert_close(pooled, arrays["pooled"], atol=2e-5, rtol=0.0)
    # The second call gives positions, but its relative ones count places.
    order = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    allow = jnp.asarray(arrays["allow"]) == 1
    places = jnp.asarray(arrays["pos"])
    out = run(model, Segments(ids, order=order), mask=allow, positions=places)
    assert_close(out.hidden, arrays["encoded_allow"], atol=2e-5, rtol=0.0)
    pooled = models.pool(out.hidden, how="pooler", model=model)
    assert_close(pooled, arrays["pooled_allow"], atol=2e-5, rtol=0.0)
    if kind == "rel":
        # A bias from the caller is added to the table's.
        table = models.relative_bias(model.params, model.config, order[:1])
        bare = model.replace(config=dataclasses.replace(model.config, relative=None))
        again = run(bare, ids, mask=allow, positions=places, bias=table)
        assert_close(again.hidden, arrays["encoded_allow"], atol=2e-5, rtol=0.0)
        moved = run(model, ids, mask=allow, positions=places)
        assert np.abs(moved.hidden - again.hidden).max() > 1e-3


# ---- the same model in other ways


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    model = tiny_model(family=family)
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 96, (2, 18)))
    alone = run(model, ids)
    # The first row ends early, in whatever ids; RoBERTa's positions skip only its own.
    mask = jnp.arange(24)[None] < jnp.array([[18], [18]])
    padded = jnp.pad(ids, ((0, 0), (0, 6)), constant_values=1)
    found = run(model, padded, mask=mask)
    assert_close(found.hidden[:, :18], alone.hidden, atol=2e-5)
    short = run(model, ids[:, :11])
    both = run(model, ids, mask=(jnp.arange(18) < 11)[None].repeat(2, 0))
    assert_close(both.hidden[:, :11], short.hidden, atol=2e-5)
    # A mask of pairs says the same.
    pairs = jnp.broadcast_to(mask[:, None], (2, 24, 24))
    again = run(model, padded, mask=pairs)
    assert_close(again.hidden[:, :18], alone.hidden, atol=2e-5)
    # Tokens that are seen do count.
    assert np.abs(run(model, ids.at[:, 12].set(5)).hidden - alone.hidden).max() > 1e-3


def test_rows_do_not_mix_and_vectors_stand_for_ids():
    model = tiny_model(family="bert")
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 96, (2, 9)))
    both, other = run(model, ids), run(model, ids.at[1].set(4))
    np.testing.assert_array_equal(both.logits[0], other.logits[0])
    vectors = model.params["embed"]["tokens"][ids]
    np.testing.assert_array_equal(both.logits, run(model, vectors).logits)
    clamped = run(model, ids.at[0, 0].set(500).at[0, 1].set(-3))
    inside = run(model, ids.at[0, 0].set(95).at[0, 1].set(0))
    np.testing.assert_array_equal(clamped.logits, inside.logits)


@pytest.mark.parametrize("folder", ["bert", "modernbert", "t5_encoder"])
def test_bfloat16_stays_close(folder):
    narrow, wide = golden_model(folder, "bfloat16"), golden_model(folder)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(narrow.params)}
    assert kinds == {jnp.dtype("bfloat16")}
    ids, mask = inputs_of(folder)
    found, wanted = run(narrow, ids, mask=mask), run(wide, ids, mask=mask)
    assert found.hidden.dtype == jnp.bfloat16
    error = np.abs(found.hidden.astype(jnp.float32) - wanted.hidden)
    assert np.asarray(error)[np.asarray(mask)].mean() < 0.05 * np.std(wanted.hidden)
    if folder != "t5_encoder":
        assert found.logits.dtype == jnp.float32


@pytest.mark.parametrize("folder", ["bert", "t5_encoder"])
def test_a_sharded_model_gives_the_same(folder):
    ids, mask = inputs_of(folder)
    wanted = run(golden_model(folder), ids, mask=mask)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        model = models.load(GOLDENS / folder)
        layer = model.params["layers"][1]
        for leaf in (layer["query"], layer["out"], layer["mlp"]["down"]):
            kernel = leaf["kernel"]
            part = kernel.sharding.shard_shape(kernel.shape)
            assert 4 * np.prod(part) == kernel.size
        out, scanned = (run(m, ids, mask=mask) for m in (model, stacked(model)))
    assert_close(out.hidden, wanted.hidden, atol=2e-5)
    assert_close(scanned.hidden, wanted.hidden, atol=2e-5)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_taps_read_and_edit_at_every_site(family):
    model = tiny_model(family=family)
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 96, (1, 7)))
    before = jax.jit(lambda model: model(ids, taps=SITES))(model)
    assert set(before.taps) == set(SITES)

    @jax.jit
    def edited(model, amount):
        def edit(layer, site, x):
            ramp = jnp.linspace(0, 1, x.shape[-1]).reshape(1, 1, -1)
            ramp = ramp if x.ndim == 3 else ramp[None]
            return x * (1 + amount[SITES.index(site), layer] * ramp)

        return model(ids, taps=Taps(SITES, edit))

    for site in range(len(SITES)):
        amount = jnp.zeros((len(SITES), 2)).at[site, 1].set(0.5)
        unrolled, scanned = edited(model, amount), edited(stacked(model), amount)
        assert_close(unrolled.hidden, scanned.hidden, atol=1e-4)
        assert np.abs(unrolled.hidden - before.hidden).max() > 1e-3, SITES[site]
        for name, value in unrolled.taps.items():
            assert_close(value[0], before.taps[name][0], name=name)


def test_logits_of_some_rows():
    model = tiny_model(family="bert")
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 96, (2, 6)))
    whole = model(ids)
    assert model(ids, logits="none").logits is None
    assert_close(model(ids, logits="last").logits, whole.logits[:, -1:], atol=1e-5)
    rows = jnp.array([[3, 0], [5, 5]])
    wanted = jnp.take_along_axis(whole.logits, rows[..., None], axis=1)
    assert_close(model(ids, logits=rows).logits, wanted, atol=1e-5)
    features = models.masked_features(model.params, model.config, whole.hidden)
    weight, bias = models.masked_rows(model.params, model.config)
    logits = jnp.einsum("bnd,vd->bnv", features, weight) + bias[None, None]
    assert_close(logits, whole.logits, atol=1e-5)
    bare = tiny_model(family="t5")
    assert bare(ids).logits is None
    with pytest.raises(ArgumentError, match="logits: .*no masked-LM head"):
        bare(ids, logits=rows)
    with pytest.raises(ArgumentError, match="masked-LM head"):
        models.masked_features(bare.params, bare.config, whole.hidden)


# ---- positions, segments, windows


def test_positions_of_roberta_count_what_is_not_padding():
    model = tiny_model(family="roberta")
    assert model.config.padding_id == 1 and model.config.position_offset == 2
    assert len(model.params["embed"]["positions"]) == 66
    ids = jnp.array([[1, 1, 5, 6, 7, 8]])
    mask = ids != 1
    left, alone = run(model, ids, mask=mask), run(model, ids[:, 2:])
    assert_close(left.hidden[:, 2:], alone.hidden, atol=2e-5)
    given = run(model, ids[:, 2:], positions=jnp.arange(4)[None])
    np.testing.assert_array_equal(given.hidden, alone.hidden)
    # Of vectors the mask says what is there.
    vectors = model.params["embed"]["tokens"][ids]
    again = run(model, vectors, mask=mask)
    assert_close(again.hidden[:, 2:], alone.hidden, atol=2e-5)
    # An id of padding in the text takes no position, as in transformers.
    inside = run(model, jnp.array([[5, 1, 6]]), positions=jnp.array([[0, -1, 1]]))
    wanted = run(model, jnp.array([[5, 1, 6]]))
    np.testing.assert_array_equal(inside.hidden, wanted.hidden)


def test_segments_and_tasks_have_their_vectors():
    model = tiny_model(family="ernie")
    ids = jnp.array([[2, 9, 3, 7, 3]])
    types = jnp.array([[0, 0, 0, 1, 1]])
    plain = run(model, ids)
    np.testing.assert_array_equal(
        run(model, Segments(ids, 0 * types, 0 * types)).hidden, plain.hidden
    )
    embed = dict(model.params["embed"])
    embed["tokens"] = embed["tokens"] + (embed["types"][1] - embed["types"][0])[None]
    shifted = model.replace(params={**model.params, "embed": embed})
    assert_close(
        run(shifted, ids).hidden,
        run(model, Segments(ids, jnp.ones_like(types))).hidden,
        atol=2e-5,
    )
    for other in (Segments(ids, types), Segments(ids, tasks=types)):
        assert np.abs(run(model, other).hidden - plain.hidden).max() > 1e-3
    with pytest.raises(ArgumentError, match="tasks: got an array, expected None"):
        tiny_model(family="bert")(Segments(ids, tasks=types))
    with pytest.raises(ArgumentError, match=r"types: got .shape \(1, 4\)"):
        model(Segments(ids, types[:, 1:]))


@pytest.mark.parametrize("seq, reach", [(70, 3), (64, 0), (200, 40), (33, 8)])
def test_local_attention_is_attention_under_a_band(seq, reach):
    draw = np.random.default_rng(seq)
    query, key, value = (
        jnp.asarray(draw.standard_normal((2, seq, 3, 8)), jnp.float32) for _ in "qkv"
    )
    mask = jnp.asarray(draw.random((2, seq)) < 0.8).at[:, 0].set(True)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    places = np.arange(seq)
    near = jnp.asarray(np.abs(places[:, None] - places[None]) <= reach)
    allow = near[None] & mask[:, None]
    wanted = attention(query, key, value, allow, scale=0.3)
    found = local_attention(query, key, value, mask, reach=reach, scale=0.3)
    seen = np.asarray(allow.any(-1))
    assert seen.any()
    assert_close(np.asarray(found)[seen], np.asarray(wanted)[seen], atol=1e-5)
    whole = local_attention(query, key, value, reach=reach, scale=0.3)
    wanted = attention(
        query, key, value, jnp.broadcast_to(near[None], allow.shape), scale=0.3
    )
    assert_close(whole, wanted, atol=1e-5)


def test_windows_look_both_ways_and_long_texts_need_little_memory():
    model = golden_model("modernbert")
    assert model.config.windows == (None, 4, 4, None)
    config = dataclasses.replace(
        model.config, num_layers=1, windows=(4,), first_attn_norm=False
    )
    params = {**model.params, "layers": model.params["layers"][:1]}
    local = model.replace(params=params, config=config)
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 96, (1, 40)))
    before = run(local, ids).hidden
    after = run(local, ids.at[0, 20].set(7)).hidden
    changed = np.flatnonzero(np.abs(np.asarray(after - before)[0]).max(-1) > 1e-6)
    assert changed.tolist() == list(range(16, 25))
    # Given positions are what the window counts; then scores are whole.
    given = run(local, ids, positions=jnp.arange(40)[None])
    assert_close(given.hidden, before, atol=2e-5)

    def temporaries(seq):
        ids = jnp.zeros((1, seq), jnp.int32)
        lowered = jax.jit(lambda m, ids: m(ids, logits="none").hidden).lower(local, ids)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Four heads: all scores of 1,920 tokens in float32 would be 59 MB.
    assert temporaries(1920) < 12e6
    assert temporaries(1920) < 2.6 * temporaries(960)


# ---- configurations and folders


@pytest.mark.parametrize("folder", ENCODERS)
def test_golden_checkpoints_come_back_byte_for_byte(folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        GOLDENS / folder, source, ignore=shutil.ignore_patterns("expected.npz")
    )
    model = models.load(source)
    models.save(model, tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        wanted = (source / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == wanted
    written = KNOWN[model.config.family].write(model.config)
    fields = json.loads((source / "config.json").read_text())
    for name, value in written.items():
        if fields.get(name) is not None:
            assert fields[name] == value, name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_back(family):
    config = tiny_config(family=family)
    fields = KNOWN[family].write(config)
    assert fields["model_type"] == family
    again = config_from(fields)
    assert KNOWN[family].write(again) == fields
    bare = {"source": "{}"}
    assert dataclasses.replace(again, **bare) == dataclasses.replace(config, **bare)
    assert hash(again) == hash(config_from(fields))


@pytest.fixture
def altered(tmp_path):
    """`altered(folder, rename, **fields)`: a golden checkpoint, changed."""

    def make(folder, rename=lambda tensors: None, **fields):
        place = tmp_path / "altered"
        place.mkdir()
        config = json.loads((GOLDENS / folder / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, **fields}))
        held = safetensors.numpy.load_file(GOLDENS / folder / "model.safetensors")
        safetensors.numpy.save_file(rename(held) or held, place / "model.safetensors")
        return place

    return make


def test_every_tensor_has_its_place(altered):
    def change(held):
        del held["bert.encoder.layer.1.output.dense.bias"]
        held["bert.extra"] = np.zeros(2, np.float32)
        held["cls.predictions.bias"] = np.zeros(95, np.float32)

    with pytest.raises(CheckpointError) as caught:
        models.load(altered("bert", change))
    message = str(caught.value)
    assert "missing bert.encoder.layer.1.output.dense.bias [32]" in message
    assert "unknown bert.extra [2]" in message
    assert "cls.predictions.bias has shape [95]" in message


def test_files_of_older_and_other_makers(altered, tmp_path):
    """As `bert-base-uncased`: old names of norms, parts that its class has not."""

    def change(held):
        old = {
            "LayerNorm.weight": "LayerNorm.gamma",
            "LayerNorm.bias": "LayerNorm.beta",
        }
        for name in list(held):
            for new, ancient in old.items():
                if name.endswith(new):
                    held[name.replace(new, ancient)] = held.pop(name)
        held["bert.pooler.dense.weight"] = np.ones((32, 32), np.float32)
        held["cls.seq_relationship.weight"] = np.ones((2, 32), np.float32)
        held["cls.predictions.decoder.weight"] = np.ones((96, 32), np.float32)
        held["bert.embeddings.position_ids"] = np.arange(130)[None]

    model = models.load(altered("bert", change))
    wanted = golden_model("bert")
    for one, other in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(wanted.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_bare_encoder_whose_files_have_no_pooler(altered, tmp_path):
    """As `transformers` saves `BertModel(config, add_pooling_layer=False)`."""

    def change(held):
        return {name: x for name, x in held.items() if name.startswith("bert.")}

    model = models.load(altered("bert", change, architectures=["BertModel"]))
    assert not model.config.pooler and "pooler" not in model.params
    ids, mask = inputs_of("bert")
    found, wanted = (
        run(model, ids, mask=mask),
        run(golden_model("bert"), ids, mask=mask),
    )
    assert_close(found.hidden, wanted.hidden)
    models.save(model, tmp_path / "again")
    again = models.load(tmp_path / "again").config
    same = {"source": "{}"}
    assert dataclasses.replace(again, **same) == dataclasses.replace(
        model.config, **same
    )


@pytest.mark.parametrize(
    "folder, own, rows, bias",
    [
        ("bert", "cls.predictions", "decoder.weight", "decoder.bias"),
        ("roberta", "lm_head", "decoder.weight", "decoder.bias"),
        ("distilbert", "vocab_projector", "weight", "bias"),
        ("modernbert", "decoder", "weight", "bias"),
    ],
)
def test_a_masked_head_with_rows_of_its_own(altered, folder, own, rows, bias, tmp_path):
    """Its rows and their bias decide; the embedding and the tied bias do not."""
    made = np.random.default_rng(0).normal(size=(96, 32)).astype(np.float32)
    height = np.arange(96, dtype=np.float32)

    def change(held):
        held[f"{own}.{rows}"], held[f"{own}.{bias}"] = made, height

    model = models.load(altered(folder, change, tie_word_embeddings=False))
    found = models.masked_rows(model.params, model.config)
    jax.tree.map(np.testing.assert_array_equal, found, (made, height))
    if folder == "bert":
        x = jax.random.normal(jax.random.key(0), (1, 3, 32))
        features = models.masked_features(model.params, model.config, x)
        logits = encoder_heads.masked_logits(model.params, model.config, x, "all")
        assert_close(logits, features @ made.T + height[None, None], atol=1e-4)
    models.save(model, tmp_path / "again")
    again = models.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)
    fields = json.loads((tmp_path / "again" / "config.json").read_text())
    assert fields["tie_word_embeddings"] is False
    written = KNOWN[model.config.family].write(model.config)
    assert written["tie_word_embeddings"] is False
    new = models.abstract(model.config)
    assert new.params["unembed"]["kernel"].shape == (96, 32)


@pytest.mark.parametrize(
    "named, expected",
    [
        ("gelu_python", "gelu"),
        ("gelu_accurate", "gelu_tanh"),
        ("quick_gelu", "quick_gelu"),
    ],
)
def test_other_names_of_activations(named, expected):
    fields = json.loads((GOLDENS / "bert" / "config.json").read_text())
    config = config_from({**fields, "hidden_act": named})
    assert (config.activation, config.head_activation) == (expected, expected)
    written = KNOWN["bert"].write(config)
    assert config_from(written).activation == expected
    t5 = json.loads((GOLDENS / "t5_encoder" / "config.json").read_text())
    assert config_from({**t5, "feed_forward_proj": named}).activation == expected


def test_a_head_knows_the_activations_of_its_encoder():
    config = dataclasses.replace(
        tiny_config(family="bert"),
        activation="quick_gelu",
        head_activation="quick_gelu",
    )
    model = tiny_model(family="bert")
    x = jax.random.normal(jax.random.key(1), (3, config.width))
    head = model.params["masked_lm"]
    inner = x @ head["dense"]["kernel"]
    inner = inner * jax.nn.sigmoid(1.702 * inner)
    centred = inner - inner.mean(-1, keepdims=True)
    wanted = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps)
    assert_close(models.masked_features(model.params, config, x), wanted, atol=1e-5)


def test_the_encoder_of_a_whole_t5(altered, tmp_path):
    def change(held):
        held["decoder.final_layer_norm.weight"] = np.ones(32, np.float32)
        held["lm_head.weight"] = np.ones((96, 32), np.float32)

    whole = altered("t5_encoder", change, architectures=["T5ForConditionalGeneration"])
    model = models.load(whole)
    models.save(model, tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == ["T5EncoderModel"]
    kept = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    wanted = safetensors.numpy.load_file(GOLDENS / "t5_encoder" / "model.safetensors")
    assert kept.keys() == wanted.keys()


# ---- what encoders do not do


def test_encoders_neither_cache_nor_decode():
    model, ids = tiny_model(family="bert"), jnp.array([[1, 2]])
    with pytest.raises(ArgumentTypeError, match="family 'bert', .* reads its whole"):
        models.init_cache(model.config, 1, 4)
    with pytest.raises(ArgumentTypeError, match="family 'bert', .* does not decode"):
        model.target()
    with pytest.raises((ArgumentError, ArgumentTypeError), match="looks both ways"):
        generate(model, [1, 2, 3], max_new_tokens=2)
    with pytest.raises(ArgumentError, match="cache: got one"):
        model(ids, cache=())
    with pytest.raises(ArgumentTypeError, match="encoder 'bert'.*pseudo_score"):
        models.score(model, [[1, 2]])
    with pytest.raises(ArgumentError, match=r"mask: got .shape \(1, 3\)"):
        model(ids, mask=jnp.ones((1, 3), bool))
    with pytest.raises(ArgumentError, match=r"positions: got .shape \(1, 3\)"):
        model(ids, positions=jnp.arange(3)[None])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"windows": (1,)}, "windows: got"),
        ({"relative_buckets": 7}, "relative_buckets: got 7, expected an even number"),
        ({"relative_buckets": 2}, "relative_buckets: got 2, expected an even number"),
        ({"relative_distance": 8}, "relative_distance: got 8"),
        ({"num_types": -1}, "num_types: got -1"),
        ({"next_sentence": True}, "pooler: got False, expected True"),
        ({"positions": "rotary", "head_dim": 3}, "head_dim: got 3, expected an even"),
        ({"num_labels": 0}, "num_labels: got 0"),
    ],
)
def test_sizes_that_cannot_be(changes, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(tiny_config(family="bert"), **changes)
