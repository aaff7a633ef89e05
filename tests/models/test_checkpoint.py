"""Folders in the Hugging Face format: exact round trips, and every kind of damage."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jtok import models
from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    VocabMismatchError,
    WriteError,
)
from jtok.models import weights
from jtok.ops.sharding import mesh_from
from jtok.testing import tiny_config, tiny_model, tiny_vocabulary
from tests.models.decoders import DECODERS, GOLDENS


@pytest.fixture
def altered(tmp_path):
    """`altered(folder, tensors=..., **fields)`: a golden checkpoint, changed."""

    def make(folder="llama", *, tensors=lambda tensors: None, **fields):
        place = tmp_path / "altered"
        place.mkdir()
        config = json.loads((GOLDENS / folder / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, **fields}))
        held = safetensors.numpy.load_file(GOLDENS / folder / "model.safetensors")
        held = tensors(held) or held
        safetensors.numpy.save_file(held, place / "model.safetensors")
        return place

    return make


def same_files(one, other):
    names = sorted(path.name for path in other.iterdir())
    assert sorted(path.name for path in one.iterdir()) == names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def same_leaves(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for got, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


# ---- round trips


@pytest.mark.parametrize("folder", DECODERS)
def test_golden_checkpoints_come_back_byte_for_byte(folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        GOLDENS / folder, source, ignore=shutil.ignore_patterns("expected.npz")
    )
    model = models.load(source)
    models.save(model, tmp_path / "out")
    same_files(tmp_path / "out", source)
    stacked = model.replace(params=models.stack_layers(model.params))
    models.save(stacked, tmp_path / "out")
    same_files(tmp_path / "out", source)
    assert model.vocabulary is None
    assert model.generation_config.eos_token_ids == (2,)


def test_a_real_checkpoint_comes_back_byte_for_byte(data, tmp_path):
    source = data("checkpoints/target-7m")
    model = models.load(source)
    models.save(model, tmp_path / "out")
    same_files(tmp_path / "out", source)
    assert model.config.dtype == "bfloat16"
    assert model.vocabulary.size == model.config.vocab_size == 4096
    assert model.generation_config.eos_token_ids == (0,)


@pytest.mark.parametrize(
    "family, dtype",
    [(name, "bfloat16" if name == "llama" else "float32") for name in models.FAMILIES],
)
def test_a_new_model_is_saved_and_loaded(family, dtype, tmp_path):
    config = dataclasses.replace(tiny_config(family=family), dtype=dtype)
    model = models.init(config, jax.random.key(1))
    models.save(model, tmp_path / "out")
    again = models.load(tmp_path / "out")
    same_leaves(again.params, model.params)
    assert again.config.dtype == dtype
    plain = lambda config: dataclasses.replace(config, source="{}")
    assert plain(again.config) == plain(dataclasses.replace(config, family=family))
    models.save(again, tmp_path / "twice")
    tensors = [tmp_path / name / "model.safetensors" for name in ("out", "twice")]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()


def test_a_new_model_with_its_vocabulary(tmp_path):
    vocabulary = tiny_vocabulary()
    config = tiny_config(vocab_size=320)
    model = models.init(config, jax.random.key(0), vocabulary=vocabulary)
    assert model.generation_config.eos_token_ids == (vocabulary.special["eos"],)
    models.save(model, tmp_path / "out")
    again = models.load(tmp_path / "out")
    assert again.vocabulary == vocabulary
    assert again.generation_config.eos_token_ids == (vocabulary.special["eos"],)


def test_init_follows_its_key_and_scales_residual_branches():
    one, same, other = (
        models.init(tiny_config(), jax.random.key(seed)) for seed in (0, 0, 1)
    )
    same_leaves(one.params, same.params)
    layers = one.params["layers"]
    assert not np.array_equal(layers[0]["out"]["kernel"], layers[1]["out"]["kernel"])
    assert not np.array_equal(
        layers[0]["out"]["kernel"], other.params["layers"][0]["out"]["kernel"]
    )
    ratio = np.std(layers[0]["out"]["kernel"]) / np.std(layers[0]["query"]["kernel"])
    assert ratio == pytest.approx((2 * 2) ** -0.5, rel=0.1)


def test_init_takes_the_fields_of_a_config():
    fields = json.loads((GOLDENS / "gpt2" / "config.json").read_text())
    model = models.init(fields, jax.random.key(0))
    loaded = models.load(GOLDENS / "gpt2")
    shapes = lambda params: jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes(model.params) == shapes(loaded.params)


def test_a_changed_configuration_is_written(tmp_path):
    model = models.load(GOLDENS / "llama")
    config = dataclasses.replace(model.config, rope_theta=77.0)
    models.save(model.replace(config=config), tmp_path / "out")
    assert models.load(tmp_path / "out").config.rope_theta == 77.0
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["initializer_range"] == 0.02  # kept from the source


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_another_dtype_rounds_and_is_saved_as_such(wanted, tmp_path):
    model = models.load(GOLDENS / "llama", dtype=wanted)
    original = models.load(GOLDENS / "llama")
    expected = jax.tree.map(lambda leaf: leaf.astype(wanted), original.params)
    same_leaves(model.params, expected)
    models.save(model, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == wanted
    same_leaves(models.load(tmp_path / "out").params, model.params)


def test_float16_becomes_float32(altered):
    half = lambda held: {k: v.astype(np.float16) for k, v in held.items()}
    model = models.load(altered(tensors=half, dtype="float16"))
    assert model.config.dtype == "float32"
    kernel = models.load(GOLDENS / "llama").params["embed"]["tokens"]
    found = model.params["embed"]["tokens"]
    np.testing.assert_array_equal(found, kernel.astype(jnp.float16))


# ---- onto a mesh


@pytest.mark.parametrize("folder", ["gpt2", "gpt_neox", "mixtral", "phi3"])
def test_a_mesh_reads_every_part_once_and_no_sharded_tensor_whole(folder, monkeypatch):
    read, seen = weights.read_part, {}

    def recorded(sources, *rest):
        part = read(sources, *rest)
        planned, place = sources[0]
        seen.setdefault(planned.keys[place], []).append(part.size)
        return part

    monkeypatch.setattr(weights, "read_part", recorded)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        params = models.load(GOLDENS / folder).params
    whole = models.load(GOLDENS / folder).params
    same_leaves(params, whole)
    # The second load, without a mesh, read each parameter in one piece.
    parts = {key: sizes[:-1] for key, sizes in seen.items()}
    sharded = 0
    for key, sizes in parts.items():
        leaf = weights.get(params, key)
        assert sum(sizes) == leaf.size, key
        local = int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        assert set(sizes) == {local}, key
        sharded += local < leaf.size
    assert sharded >= 10


# ---- names that differ between files


def test_a_tied_copy_of_the_head_is_accepted(altered):
    def copy(held):
        held["lm_head.weight"] = held["model.embed_tokens.weight"]
        held["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    model = models.load(altered("llama3_rope_tied", tensors=copy))
    same_leaves(model.params, models.load(GOLDENS / "llama3_rope_tied").params)


def test_gpt2_without_the_prefix_and_with_its_buffers(altered):
    def bare(held):
        named = {k.removeprefix("transformer."): v for k, v in held.items()}
        return {
            **named,
            "h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
            "h.1.attn.masked_bias": np.ones((), np.float32),
        }

    model = models.load(altered("gpt2", tensors=bare))
    same_leaves(model.params, models.load(GOLDENS / "gpt2").params)


def test_stop_ids_come_from_generation_config_first(altered):
    place = altered(eos_token_id=[2, 5])
    assert models.load(place).generation_config.eos_token_ids == (2, 5)
    file = place / "generation_config.json"
    file.write_text('{"eos_token_id": [7, 8], "top_k": 3}\n')
    model = models.load(place)
    assert model.generation_config.eos_token_ids == (7, 8)
    models.save(model, place)
    assert file.read_text() == '{"eos_token_id": [7, 8], "top_k": 3}\n'
    file.write_text("{}")
    assert models.load(place).generation_config.eos_token_ids == (2, 5)


# ---- what is refused


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"config\.json: not there"):
        models.load(tmp_path)
    shutil.copy(GOLDENS / "llama" / "config.json", tmp_path)
    with pytest.raises(MissingFileError, match=r"no weights.*model\.safetensors"):
        models.load(tmp_path)


@pytest.mark.parametrize("kept", [4, 300, -4])
def test_a_truncated_file_is_named(altered, kept):
    file = altered() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated, it has"):
        models.load(file.parent)


def test_all_disagreements_are_listed(altered):
    def change(held):
        held["model.norm.weight"] = np.ones(31, np.float32)
        del held["model.layers.1.mlp.up_proj.weight"]
        held["model.layers.0.extra"] = np.ones((2, 3), np.float32)

    with pytest.raises(CheckpointError) as caught:
        models.load(altered(tensors=change))
    message = str(caught.value)
    assert "model.norm.weight has shape [31], the configuration says [32]" in message
    assert "missing model.layers.1.mlp.up_proj.weight [64, 32]" in message
    assert "unknown model.layers.0.extra [2, 3]" in message


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_hidden_layers": 1}, r"unknown model\.layers\.1\..*"),
        ({"num_hidden_layers": 3}, r"missing model\.layers\.2\.input_layernorm"),
        ({"vocab_size": 97}, r"shape \[96, 32\], the configuration says \[97, 32\]"),
        ({"intermediate_size": 65}, r"gate_proj.weight has shape \[64, 32\]"),
        ({"num_key_value_heads": 4}, r"k_proj.weight has shape \[16, 32\]"),
        (
            {"attention_bias": True},
            r"missing model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        ({"model_type": "qwen2"}, r"missing model\.layers\.0\.self_attn\.q_proj\.bias"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors(altered, fields, message):
    with pytest.raises(CheckpointError, match=f"do not agree: .*{message}"):
        models.load(altered(**fields))


def test_an_untied_head_must_be_there(altered):
    place = altered("llama3_rope_tied", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight \[96, 32\]"):
        models.load(place)


@pytest.mark.parametrize(
    "fields, error, message",
    [
        ({"model_type": "lama"}, UnsupportedCheckpointError, "did you mean llama"),
        ({"num_key_value_heads": 3}, ArgumentError, "num_kv_heads: got 3"),
        ({"auto_map": {"AutoModel": "x.Y"}}, UnsupportedCheckpointError, "auto_map"),
        (
            {"quantization_config": {"bits": 4}},
            UnsupportedCheckpointError,
            "quantised weights",
        ),
    ],
)
def test_configurations_that_are_refused(altered, fields, error, message):
    with pytest.raises(error, match=message):
        models.load(altered(**fields))


@pytest.mark.parametrize(
    "name, message",
    [
        ("pytorch_model.bin", "PyTorch pickle"),
        ("model.pt", "PyTorch pickle"),
        ("model.gguf", "GGUF"),
    ],
)
def test_other_weights_are_refused_by_name(altered, name, message):
    place = altered()
    (place / "model.safetensors").rename(place / name)
    pattern = f"{re.escape(name)}.*{message}.*expected safetensors"
    with pytest.raises(UnsupportedCheckpointError, match=pattern):
        models.load(place)


def test_quantised_tensors_are_refused(altered):
    def pack(held):
        held["model.layers.0.mlp.up_proj.qweight"] = np.zeros((4, 4), np.int32)

    with pytest.raises(UnsupportedCheckpointError, match="is quantised"):
        models.load(altered(tensors=pack))


def test_a_tokenizer_larger_than_the_embedding(altered):
    place = altered()
    vocabulary = tiny_vocabulary()
    vocabulary.save(place)
    message = f"the tokenizer has {vocabulary.size} ids, the embedding 96 rows"
    with pytest.raises(VocabMismatchError, match=message):
        models.load(place)
    with pytest.raises(VocabMismatchError, match=f"vocabulary: {message}"):
        models.init(tiny_config(), jax.random.key(0), vocabulary=vocabulary)


@pytest.mark.parametrize("dtype", ["float16", "int8", "float64"])
def test_dtypes_that_are_not_offered(dtype):
    message = f"dtype: got '{dtype}', expected 'float32' or 'bfloat16'"
    with pytest.raises(ArgumentError, match=message):
        models.load(GOLDENS / "llama", dtype=dtype)


def test_save_leaves_other_folders_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match=r"holds files but no 'config\.json'"):
        models.save(tiny_model(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
