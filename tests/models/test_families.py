"""Configurations of every family: read, written, and refused by name."""

import json
import pathlib

import pytest

from jtok import models
from jtok.errors import ArgumentError, CheckpointError, UnsupportedCheckpointError
from jtok.models import FAMILIES, config_from, family_of
from jtok.nn import DecoderConfig
from jtok.testing import tiny_config

GOLDENS = pathlib.Path(__file__).resolve().parents[1] / "goldens" / "hf_checkpoints"


def fields_of(folder, **changes):
    fields = json.loads((GOLDENS / folder / "config.json").read_text())
    return {k: v for k, v in {**fields, **changes}.items() if v != "absent"}


DECODERS = [name for name, made in FAMILIES.items() if made.config is DecoderConfig]


@pytest.mark.parametrize("family", DECODERS)
def test_what_is_written_is_read_back(family):
    config = tiny_config(family=family)
    fields = FAMILIES[family].write(config)
    assert fields["model_type"] == family
    again = config_from(fields)
    assert again == config_from(fields, dtype="float32")
    assert FAMILIES[family].write(again) == fields
    sizes = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "tied")
    for name in (*sizes, "head_dim", "mlp_width", "norm", "activation", "rope_theta"):
        assert getattr(again, name) == getattr(config, name), name


@pytest.mark.parametrize("folder", ["llama", "llama3_rope_tied", "qwen2", "gpt2"])
def test_translation_of_real_configurations(folder):
    fields = fields_of(folder)
    config = config_from(fields)
    written = FAMILIES[config.family].write(config)
    for name, value in written.items():
        if name in fields and fields[name] is not None:
            assert fields[name] == value, name


def test_an_unknown_model_type_lists_the_known():
    with pytest.raises(UnsupportedCheckpointError) as caught:
        family_of({"model_type": "qwen22"}, where="here/config.json")
    message = str(caught.value)
    assert message.startswith("here/config.json: model_type 'qwen22'; did you mean")
    assert "Known: gpt2, llama, mamba, qwen2" in message
    with pytest.raises(CheckpointError, match="there is no model_type"):
        family_of({})


@pytest.mark.parametrize(
    "folder, name",
    [
        ("llama", "hidden_size"),
        ("qwen2", "num_hidden_layers"),
        ("gpt2", "n_embd"),
        ("gpt2", "vocab_size"),
    ],
)
def test_a_missing_field_is_named(folder, name):
    with pytest.raises(CheckpointError, match=f"there is no field '{name}'"):
        config_from(fields_of(folder, **{name: "absent"}))


@pytest.mark.parametrize(
    "folder, changes, message",
    [
        ("llama", {"hidden_act": "mish"}, "activation 'mish'.*Known: gelu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type 'yarn'.*Known: default, linear, llama3",
        ),
        (
            "llama",
            {"rope_parameters": "absent", "rope_scaling": {"type": "dynamic"}},
            "rope_type 'dynamic'",
        ),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is set"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "sliding windows"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True",
        ),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
    ],
)
def test_options_that_are_not_there_are_refused(folder, changes, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        config_from(fields_of(folder, **changes))


@pytest.mark.parametrize("kv_heads", [3, 8])
def test_kv_heads_must_divide_the_heads(kv_heads):
    with pytest.raises(ArgumentError, match=rf"num_kv_heads: got {kv_heads}"):
        config_from(fields_of("llama", num_key_value_heads=kv_heads))


def test_rotary_fields_of_older_files():
    old = {"rope_parameters": "absent", "rope_theta": 5e5}
    assert config_from(fields_of("llama", **old)).rope_theta == 5e5
    scaling = {"type": "linear", "factor": 2.0}
    config = config_from(fields_of("llama", **old, rope_scaling=scaling))
    assert config.rotary_scaling == {"rope_type": "linear", "factor": 2.0}
    assert config.rope_theta == 5e5
    new = config_from(fields_of("llama3_rope_tied"))
    assert new.rope_theta == 500000.0
    assert new.rotary_scaling["original_max_position_embeddings"] == 32
    plain = config_from(fields_of("llama", rope_parameters="absent"))
    assert plain.rope_theta == 10000.0 and not plain.rotary_scaling


def test_defaults_of_absent_fields():
    names = ("num_key_value_heads", "head_dim", "tie_word_embeddings", "dtype")
    config = config_from(fields_of("llama", **dict.fromkeys(names, "absent")))
    assert (config.num_kv_heads, config.head_dim, config.tied) == (4, 8, False)
    assert config.dtype == "float32"
    gpt2 = config_from(fields_of("gpt2", tie_word_embeddings="absent", n_inner=48))
    assert (gpt2.tied, gpt2.mlp_width) == (True, 48)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("stored", ["bfloat16", "torch.bfloat16"])
def test_dtype_of_the_file_and_of_the_caller(name, stored):
    fields = fields_of("llama", **{"dtype": "absent", name: stored})
    assert config_from(fields).dtype == "bfloat16"
    assert config_from(fields, dtype="float32").dtype == "float32"
    assert config_from(fields_of("llama", dtype="float16")).dtype == "float32"
    with pytest.raises(ArgumentError, match="dtype: got 'float16', expected 'float32'"):
        models.config_from(fields, dtype="float16")
