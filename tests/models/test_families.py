"""Configurations of every family: read, written, and refused by name."""

import dataclasses
import json

import pytest

from jtok import models
from jtok.errors import ArgumentError, CheckpointError, UnsupportedCheckpointError
from jtok.models import FAMILIES, config_from, family_of
from jtok.nn import DecoderConfig
from jtok.testing import tiny_config
from tests.models.decoders import DECODERS, GOLDENS

FULL, SLIDING = "full_attention", "sliding_attention"
ORIGINAL = "original_max_position_embeddings"


def fields_of(folder, **changes):
    fields = json.loads((GOLDENS / folder / "config.json").read_text())
    return {k: v for k, v in {**fields, **changes}.items() if v != "absent"}


TRANSFORMERS = [name for name, made in FAMILIES.items() if made.config is DecoderConfig]


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_what_is_written_is_read_back(family):
    config = tiny_config(family=family)
    fields = FAMILIES[family].write(config)
    assert fields["model_type"] == family
    again = config_from(fields)
    assert again == config_from(fields, dtype="float32")
    assert FAMILIES[family].write(again) == fields
    bare = {"source": "{}", "family": family}
    assert dataclasses.replace(again, **bare) == dataclasses.replace(config, **bare)


@pytest.mark.parametrize("folder", DECODERS)
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
    assert "Known: Dream, bert, clip, clip_vision_model, deit, dinov2" in message
    with pytest.raises(CheckpointError, match="there is no model_type"):
        family_of({})


@pytest.mark.parametrize(
    "folder, name",
    [
        ("llama", "hidden_size"),
        ("qwen2", "num_hidden_layers"),
        ("gpt2", "n_embd"),
        ("gpt2", "vocab_size"),
        ("gemma3_text", "hidden_size"),
        ("gpt_neox", "intermediate_size"),
        ("mixtral", "num_attention_heads"),
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
            {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}},
            "rope_type 'longrope'.*Known: default, linear, llama3, yarn",
        ),
        (
            "llama",
            {"rope_parameters": "absent", "rope_scaling": {"type": "dynamic"}},
            "rope_type 'dynamic'",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"layer_types": [SLIDING] * 2}, "no sliding_window in use"),
        ("mistral_sliding", {"layer_types": ["chunked_attention"] * 2}, "chunked"),
        ("mistral_sliding", {"layer_types": [FULL]}, "1 entries.*each of 2 layers"),
        ("mistral_sliding", {"attention_bias": True}, "attention_bias=True"),
        ("qwen2", {"layer_types": [SLIDING] * 2}, "no sliding_window in use"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"use_bidirectional_attention": True}, "=True is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "only False"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"layer_types": [FULL]}, "each of 6 layers"),
        (
            "phi3",
            {"rope_parameters": {"type": "su", "long_factor": [1.0]}},
            "rope_type 'su'",
        ),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope'"),
        ("phi3", {"attention_bias": True}, "attention_bias=True"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_type='yarn' is not supported, only 'default'",
        ),
        ("mixtral", {"attention_bias": True}, "attention_bias=True"),
        ("olmo2", {"layer_types": [SLIDING] * 2}, "no sliding_window in use"),
        (
            "gpt_neox",
            {
                "rope_scaling": {"type": "dynamic", "factor": 2.0},
                "rope_parameters": "absent",
            },
            "rope_type 'dynamic'",
        ),
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


@pytest.mark.parametrize(
    "folder, changes, expected",
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4}},
            {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 128},
        ),
        (
            "qwen2",
            {
                "rope_parameters": "absent",
                "rope_scaling": {
                    "type": "yarn", "factor": 4.0, ORIGINAL: 32, "beta_fast": 16,
                    "attention_factor": None, "truncate": False,
                },
            },
            {
                "rope_type": "yarn", "factor": 4.0, ORIGINAL: 32, "beta_fast": 16,
                "truncate": False,
            },
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", ORIGINAL: 32}},
            {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 32},
        ),
        (
            "llama3_rope_tied",
            {
                "rope_parameters": "absent", "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3", "type": "llama3", "factor": 8.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                },
            },
            {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, ORIGINAL: 128,
            },
        ),
        (
            "phi3",
            {"rope_parameters": "absent", "rope_scaling": None},
            {},
        ),
    ],
)  # fmt: skip
def test_scalings(folder, changes, expected):
    assert config_from(fields_of(folder, **changes)).rotary_scaling == expected


@pytest.mark.parametrize(
    "kind, needed",
    [("linear", "factor"), ("llama3", "low_freq_factor"), ("llama3", "factor")],
)
def test_a_scaling_without_its_numbers_is_refused(kind, needed):
    whole = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {"rope_type": kind, **whole}
    del scaling[needed]
    with pytest.raises(CheckpointError, match=f"there is no field '{needed}'"):
        config_from(fields_of("llama", rope_parameters=scaling))


@pytest.mark.parametrize(
    "folder, changes, expected",
    [
        ("mistral_sliding", {}, (8, 8)),
        ("mistral_sliding", {"sliding_window": None}, ()),
        ("mistral_sliding", {"sliding_window": "absent"}, ()),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8,
                   "max_window_layers": 1, "layer_types": "absent"}, (None, 8)),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8,
                   "layer_types": [SLIDING, FULL]}, (8, None)),
        ("qwen3", {"use_sliding_window": False, "sliding_window": 8,
                   "max_window_layers": 0, "layer_types": "absent"}, ()),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}, (8, 8)),
        ("qwen3_moe", {"use_sliding_window": False, "sliding_window": 8}, ()),
        ("phi3", {"sliding_window": 9}, (9, 9)),
        ("mixtral", {"sliding_window": 9}, (9, 9)),
        ("gemma2", {}, (8, None)),
        ("gemma2", {"layer_types": "absent", "num_hidden_layers": 3}, (8, None, 8)),
        ("gemma3_text", {}, (8,) * 5 + (None,)),
        ("gemma3_text", {"layer_types": "absent", "_sliding_window_pattern": "absent",
                         "sliding_window_pattern": 3}, (8, 8, None) * 2),
        ("gemma3_text", {"layer_types": "absent"}, (8,) * 5 + (None,)),
    ],
)  # fmt: skip
def test_windows(folder, changes, expected):
    assert config_from(fields_of(folder, **changes)).windows == expected


def test_bases_of_local_and_other_layers():
    new = config_from(fields_of("gemma3_text"))
    assert (new.rope_theta, new.local_rope_theta) == (1e6, 1e4)
    old = {
        "rope_parameters": "absent",
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config = config_from(fields_of("gemma3_text", **old))
    assert (config.rope_theta, config.local_rope_theta) == (5e5, 2e4)
    assert config.rotary_scaling == {"rope_type": "linear", "factor": 8.0}
    assert config.local_rope_scaling == ()
    bare = config_from(fields_of("gemma3_text", rope_parameters="absent"))
    assert (bare.rope_theta, bare.local_rope_theta) == (1e6, 1e4)
    both = {
        FULL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e5},
        SLIDING: {"rope_type": "linear", "factor": 4.0, "rope_theta": 7e3},
    }
    config = config_from(fields_of("gemma3_text", rope_parameters=both))
    assert (config.rope_theta, config.local_rope_theta) == (3e5, 7e3)
    assert dict(config.local_rope_scaling)["factor"] == 4.0
    assert config.rotary_scaling["factor"] == 2.0


def test_options_of_gemma():
    gemma = config_from(fields_of("gemma", head_dim="absent"))
    assert (gemma.head_dim, gemma.tied, gemma.norm_offset) == (256, True, True)
    assert gemma.embed_scale == 32**0.5 and gemma.activation == "gelu_tanh"
    # The newer name goes first; the first release said "gelu" and meant the other.
    both = {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}
    assert config_from(fields_of("gemma", **both)).activation == "gelu_tanh"
    assert config_from(fields_of("gemma", hidden_act="gelu")).activation == "gelu"
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    gemma2 = config_from(fields_of("gemma2", **dict.fromkeys(names, "absent")))
    assert (gemma2.attn_softcap, gemma2.final_softcap) == (50.0, 30.0)
    gemma2 = config_from(fields_of("gemma2", **dict.fromkeys(names), head_dim=8))
    assert (gemma2.attn_softcap, gemma2.final_softcap) == (None, None)
    assert gemma2.score_scale == 0.25  # of query_pre_attn_scalar, not of the head
    gemma3 = config_from(fields_of("gemma3_text", final_logit_softcapping=12))
    assert gemma3.final_softcap == 12.0 and gemma3.attn_softcap is None


def test_options_of_gpt_neox():
    old = {"rope_parameters": "absent", "rotary_pct": 0.5, "rotary_emb_base": 500}
    config = config_from(fields_of("gpt_neox", **old))
    assert (config.rotary_fraction, config.rope_theta) == (0.5, 500.0)
    assert config.rotary_dim == 4
    bare = config_from(fields_of("gpt_neox", rope_parameters="absent"))
    assert (bare.rotary_fraction, bare.rope_theta) == (0.25, 1e4)
    serial = config_from(fields_of("gpt_neox", use_parallel_residual=False))
    assert not serial.parallel_residual and config.parallel_residual
    unbiased = config_from(fields_of("gpt_neox", attention_bias=False))
    assert not unbiased.query_bias and not unbiased.out_bias and unbiased.mlp_bias


def test_partial_rotation_of_phi3():
    config = config_from(fields_of("phi3", rope_parameters="absent",
                                   partial_rotary_factor=0.75))  # fmt: skip
    assert config.rotary_fraction == 0.75 and config.rotary_dim == 6


@pytest.mark.parametrize(
    "changes, dense",
    [
        ({}, ()),
        ({"mlp_only_layers": [1]}, (1,)),
        ({"decoder_sparse_step": 2}, (0,)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, (0, 1)),
        ({"mlp_only_layers": None}, ()),
    ],
)
def test_layers_without_experts(changes, dense):
    config = config_from(fields_of("qwen3_moe", **changes))
    assert config.dense_layers == dense
    assert (config.expert_width, config.mlp_width) == (32, 64)


def test_options_of_experts():
    fields = fields_of("qwen3_moe", num_local_experts="absent", num_experts=6)
    config = config_from({**fields, "norm_topk_prob": False, "num_experts_per_tok": 3})
    assert (config.num_experts, config.experts_per_token) == (6, 3)
    assert not config.experts_sum_to_one
    assert config_from(fields_of("mixtral")).experts_sum_to_one


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


def test_options_of_masked_models():
    dream = config_from(FAMILIES["Dream"].write(tiny_config(family="Dream")))
    assert (dream.causal, dream.logit_shift, dream.mask_token_id) == (False, True, 95)
    assert dream.query_bias and not dream.out_bias
    fields = FAMILIES["llada"].write(tiny_config(family="llada"))
    llada = config_from(fields)
    assert (llada.causal, llada.logit_shift, llada.query_bias) == (False, False, False)
    assert config_from({**fields, "n_kv_heads": None}).num_kv_heads == 4
    with pytest.raises(UnsupportedCheckpointError, match="block_type='sequential'"):
        config_from({**fields, "block_type": "sequential"})
    with pytest.raises(CheckpointError, match="mask_token_id"):
        config_from({**fields, "mask_token_id": None})
    with pytest.raises(ArgumentError, match="mask_token_id: got 96"):
        config_from({**fields, "mask_token_id": 96})


def test_a_model_that_looks_both_ways_does_not_generate():
    from jtok.decode import generate
    from jtok.testing import tiny_model

    with pytest.raises(ArgumentError, match="looks both ways .causal=False."):
        generate(tiny_model(family="Dream"), [1, 2, 3], max_new_tokens=2)
