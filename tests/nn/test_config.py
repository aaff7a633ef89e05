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
