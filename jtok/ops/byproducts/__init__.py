"""Attention that also says who was looked at, in memory linear in the tokens."""

from jtok.ops.byproducts.api import (
    Byproducts,
    attention_byproducts,
    attention_power,
)
from jtok.ops.byproducts.reference import power_from_logits

__all__ = [
    "Byproducts",
    "attention_byproducts",
    "attention_power",
    "power_from_logits",
]
