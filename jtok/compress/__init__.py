"""Vectors to fewer vectors: plans that merge or drop tokens."""

from jtok.compress.baselines import random_tokens, uniform_tokens
from jtok.compress.flops import Cost, flops
from jtok.compress.interface import Budget, Compressed, Method, compress
from jtok.compress.menu import methods
from jtok.compress.pitome import pitome
from jtok.compress.presets import mean_by_size, pitome_preset
from jtok.compress.schedule import Schedule, schedule
from jtok.compress.schedules import linear_margins, removal_schedule, token_counts
from jtok.compress.spectral import SpectralDistance, spectral_distance
from jtok.compress.tome import grouped, random_merge, tome, uniform_merge

__all__ = [
    "Budget",
    "Compressed",
    "Cost",
    "Method",
    "Schedule",
    "SpectralDistance",
    "compress",
    "flops",
    "grouped",
    "linear_margins",
    "mean_by_size",
    "methods",
    "pitome",
    "pitome_preset",
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
