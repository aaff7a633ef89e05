"""Vectors to fewer vectors: plans that merge or drop tokens."""

from jtok.compress.pitome import pitome
from jtok.compress.schedules import linear_margins, removal_schedule, token_counts
from jtok.compress.spectral import SpectralDistance, spectral_distance
from jtok.compress.tome import grouped, random_merge, tome

__all__ = [
    "SpectralDistance",
    "grouped",
    "linear_margins",
    "pitome",
    "random_merge",
    "removal_schedule",
    "spectral_distance",
    "token_counts",
    "tome",
]
