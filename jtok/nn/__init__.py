"""Flax Linen blocks, configured by frozen dataclasses."""

from jtok.nn.block import SITES, Block
from jtok.nn.config import DecoderConfig
from jtok.nn.layers import Linear, Mlp, Norm, activation
from jtok.nn.positions import rotary_frequencies, rotate

__all__ = [
    "SITES",
    "Block",
    "DecoderConfig",
    "Linear",
    "Mlp",
    "Norm",
    "activation",
    "rotary_frequencies",
    "rotate",
]
