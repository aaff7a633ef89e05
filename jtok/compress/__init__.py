"""Vectors to fewer vectors: plans that merge or drop tokens."""

from jtok.compress.baselines import random_tokens, uniform_tokens
from jtok.compress.interface import Budget, Compressed, Method, compress
from jtok.compress.menu import methods
from jtok.compress.pitome import pitome
from jtok.compress.schedule import Schedule, schedule
from jtok.compress.schedules import linear_margins, removal_schedule, token_counts
from jtok.compress.spectral import SpectralDistance, spectral_distance
from jtok.compress.tome import grouped, random_merge, tome, uniform_merge

__all__ = [
    "Budget",
    "Compressed",
    "Method",
    "Schedule",
    "SpectralDistance",
    "compress",
    "grouped",
    "linear_margins",
    "methods",
    "pitome",
    "random_merge",
    "random_tokens",
    "removal_schedule",
    "schedule",
    "spectral_distance",
    "token_counts",
    "tome",
    "uniform_merge",
    "uniform_tokens",
]
