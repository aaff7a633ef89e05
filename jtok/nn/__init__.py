"""Flax Linen blocks, configured by frozen dataclasses."""

from jtok.nn.block import SITES, Block
from jtok.nn.config import DecoderConfig
from jtok.nn.experts import Experts, route
from jtok.nn.layers import Linear, Mlp, Norm, activation
from jtok.nn.positions import rotary_frequencies, rotary_gain, rotate

__all__ = [
    "SITES",
    "Block",
    "DecoderConfig",
    "Experts",
    "Linear",
    "Mlp",
    "Norm",
    "activation",
    "rotary_frequencies",
    "rotary_gain",
    "rotate",
    "route",
]
