"""Sizes that cannot be are refused where the configuration is made."""

import dataclasses

import pytest

from jtok.errors import ArgumentError
from jtok.nn import DecoderConfig

SIZES = {
    "vocab_size": 8,
    "width": 12,
    "num_layers": 1,
    "num_heads": 6,
    "num_kv_heads": 3,
    "head_dim": 2,
    "mlp_width": 8,
    "max_positions": 16,
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -2])
def test_sizes_are_positive(name, value):
    with pytest.raises(ArgumentError, match=rf"^{name}: got {value}, .*at least 1"):
        DecoderConfig(**{**SIZES, name: value})


@pytest.mark.parametrize("kv_heads", [4, 5, 12])
def test_kv_heads_divide_the_heads(kv_heads):
    message = rf"num_kv_heads: got {kv_heads}, expected a divisor of num_heads=6"
    with pytest.raises(ArgumentError, match=message):
        DecoderConfig(**{**SIZES, "num_kv_heads": kv_heads})


def test_equal_configs_hash_alike_and_are_frozen():
    scaling = (("factor", 2.0), ("rope_type", "linear"))
    one, other = (DecoderConfig(**SIZES, rope_scaling=scaling) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one.rotary_scaling == {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.width = 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"windows": (4, 4)}, "windows: got .*each of 1 layers"),
        ({"windows": (0,)}, "windows: got .*None or at least 1"),
        ({"num_experts": 2, "experts_per_token": 3}, "experts_per_token: got 3"),
        ({"num_experts": 2, "experts_per_token": 1}, "expert_width: got 0"),
        ({"dense_layers": (1,)}, r"dense_layers: got \(1,\), expected ascending"),
        ({"head_dim": 8, "rotary_fraction": 0.4}, "rotary_fraction: got 0.4"),
        ({"head_dim": 8, "rotary_fraction": 1.5}, "rotary_fraction: got 1.5"),
    ],
)
def test_layers_and_rotation_fit(options, message):
    with pytest.raises(ArgumentError, match=message):
        DecoderConfig(**{**SIZES, **options})


def test_what_a_layer_is():
    config = DecoderConfig(
        **{**SIZES, "num_layers": 3},
        windows=(4, None, 4),
        num_experts=2,
        experts_per_token=1,
        expert_width=8,
        dense_layers=(1,),
    )
    assert [config.window(i) for i in range(3)] == [4, None, 4]
    assert [config.sparse(i) for i in range(3)] == [True, False, True]
    assert config.score_scale == 2**-0.5
    plain = DecoderConfig(**SIZES)
    assert plain.window(0) is None and not plain.sparse(0)
