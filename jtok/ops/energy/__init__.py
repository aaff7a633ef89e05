"""How many close neighbours each token has, without a matrix of all pairs."""

from jtok.ops.energy.api import energy
from jtok.ops.energy.reference import unit_rows

__all__ = ["energy", "unit_rows"]
