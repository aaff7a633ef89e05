"""Fields of a configuration: each kind is demanded, and named when it is another."""

import re

import pytest

from jtok import models, nn
from jtok.errors import ArgumentError, CheckpointError
from jtok.models.families import FAMILIES
from jtok.models.fields import Fields, check_types
from jtok.testing import tiny_config


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("hidden_size", [1, 2**31 - 1], [True, 1.0, "8", [8], {}, -1, 2**31, 10**40]),
        ("num_hidden_layers", [3, 10_000], ["3", 3.5, 10_001]),
        ("n_embd", [3], [[3]]),
        ("rms_norm_eps", [1e-6, 0, 1], ["1e-6", float("nan"), float("inf"), True]),
        ("rope_theta", [1, 5e5], [0, -1.0, 10**400, "1"]),
        ("tie_word_embeddings", [True, False], [0, "no", []]),
        ("attention_bias", [False], [1, {}]),
        ("hidden_act", ["silu"], [1, ["silu"], {}]),
        ("model_type", ["llama"], [[], 3]),
        ("layer_types", [["a", "b"], []], ["a", [1], {}]),
        ("eos_token_id", [0, -1, [1, 2], []], [True, 1.0, "2", [None], [[1]], 2**31]),
        ("rope_scaling", [{}], [[], "linear", 3]),
        ("anything", [1, "x", [], {}], []),
    ],
)
def test_kinds(name, good, bad):
    for value in good:
        fields = Fields({name: value})
        assert fields[name] == fields.get(name) == fields.get(name, 3) == value
    for value in bad:
        fields = Fields({name: value}, where="a/config.json")
        for read in (
            lambda f: f[name],
            lambda f: f.get(name),
            lambda f: f.get(name, 3),
        ):
            with pytest.raises(CheckpointError, match=rf"^a/config\.json: {name} is "):
                read(fields)


def test_missing_null_and_zero():
    fields = Fields({"hidden_size": None, "n_head": 0, "rms_norm_eps": None})
    for name in ("hidden_size", "n_head", "rms_norm_eps"):
        with pytest.raises(CheckpointError, match=f"{name} is (null|0), expected"):
            fields[name]
    with pytest.raises(CheckpointError, match="there is no field 'vocab_size'"):
        fields["vocab_size"]
    assert fields.get("hidden_size") is None
    assert fields.get("hidden_size", 4) is None  # null is what the file says
    assert fields.get("n_head") == 0
    assert fields.get("rms_norm_eps") is None
    with pytest.raises(CheckpointError, match="rms_norm_eps is null, expected a fin"):
        fields.get("rms_norm_eps", 1e-6)  # a number has a default: null is damage
    assert fields.get("vocab_size", 7) == 7


def test_rope_scaling_is_plain_and_can_be_hashed():
    scaling = {"factor": 2, "rope_theta": None, "short_factor": [1.0, 2]}
    read = Fields({"rope_scaling": scaling})["rope_scaling"]
    assert type(read) is dict
    assert read == {"factor": 2, "short_factor": (1.0, 2)}
    again = Fields({"rope_scaling": scaling}).checked().checked()
    assert again["rope_scaling"] == again.get("rope_scaling") == read
    for inner in ({"factor": "2"}, {"type": 1}, {"x": ["y"]}, {"x": {}}, {"x": [[1]]}):
        with pytest.raises(
            CheckpointError, match=r"c: rope_scaling: \w+ is .*expected"
        ):
            Fields({"rope_scaling": inner}, "c").get("rope_scaling")


def test_checked_looks_at_all_and_copies_keep_it():
    fields = Fields(
        {"a": [{}], "head_dim": None, "n_head": 2, "rope_scaling": {"factor": None}}
    )
    copied = {**fields.checked(), "more": 1}
    assert copied == {
        "a": [{}],
        "head_dim": None,
        "n_head": 2,
        "rope_scaling": {},
        "more": 1,
    }
    for name, value in (
        ("head_dim", "8"),
        ("hidden_size", None),
        ("num_attention_heads", 0),
        ("num_hidden_layers", 10_001),
        ("decoder_sparse_step", 0),
        ("query_pre_attn_scalar", -1),
    ):
        with pytest.raises(CheckpointError, match=f"^c: {name} is"):
            Fields({**fields, name: value}, "c").checked()


def test_a_long_value_is_shown_in_part():
    with pytest.raises(CheckpointError) as caught:
        Fields({"hidden_size": "x" * 10**6})["hidden_size"]
    assert len(str(caught.value)) < 200


def test_check_types():
    good = {"width": 8, "norm_eps": 1e-6, "tied": True, "norm": "rms", "unknown": ...}
    check_types(good, nn.DecoderConfig, where="c")
    for name, value in (
        ("width", None),
        ("norm_eps", None),
        ("tied", 1),
        ("norm", "batch"),
        ("activation", 3),
    ):
        with pytest.raises(CheckpointError, match=f"^c: its fields give {name}="):
            check_types({**good, name: value}, nn.DecoderConfig, where="c")


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"hidden_size": "32"}, CheckpointError, "hidden_size is '32', expected a"),
        ({"num_attention_heads": 0}, CheckpointError, "num_attention_heads is 0"),
        ({"num_attention_heads": 64}, ArgumentError, "head_dim: got 0"),
        ({"max_position_embeddings": None}, CheckpointError, "max_positions=None"),
        ({"model_type": ["llama"]}, CheckpointError, "model_type is"),
        (
            {"rope_scaling": {"rope_type": "linear"}},
            CheckpointError,
            "there is no field 'factor'",
        ),
        ({"rope_theta": 1e-300}, CheckpointError, "frequencies that are not finite"),
    ],
)
def test_the_file_is_named(change, error, message):
    fields = {**FAMILIES["llama"].write(tiny_config()), **change}
    for name in ("head_dim", "num_key_value_heads", "rope_parameters"):
        del fields[name]
    with pytest.raises(error, match=rf"^x/config\.json: .*{re.escape(message)}"):
        models.config_from(Fields(fields, "x/config.json"))
