"""What the low-rank attention experiment does with every pooling: times and tables."""

import functools
import time
from typing import Any

import jax
import numpy as np
import optax

from experiments.intervals import student_interval
from experiments.lama_poolings import head_parameters
from jtok import classify

__all__ = ["accuracy_rows", "gap_of", "optimizer", "pooling_seconds"]


@functools.lru_cache
def optimizer(rate: float) -> optax.GradientTransformation:
    """Adam, the same object for the same rate, so that steps are compiled once."""
    return optax.adam(rate)


_read = jax.jit(classify.read_hidden, static_argnums=1)


def pooling_seconds(params: Any, head: classify.HeadConfig, x: jax.Array) -> float:
    """The median of nine calls."""
    read = _read.lower(params, head, x).compile()
    jax.block_until_ready(read(params, x))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready(read(params, x))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def gap_of(found: dict[str, Any], over: str, under: str) -> tuple[float, Any]:
    """Mean difference of accuracies in points, seed by seed, and its interval."""
    gaps = 100 * (
        np.array(found[over]["accuracy"]) - np.array(found[under]["accuracy"])
    )
    return float(gaps.mean()), student_interval(gaps)


def accuracy_rows(
    config: Any, found: dict[str, Any], width: int
) -> list[dict[str, Any]]:
    """A row of a table for each pooling: parameters, mean, spread, interval."""
    rows = []
    for name, seen in found.items():
        values = 100 * np.array(seen["accuracy"])
        low, high = student_interval(values) or (float("nan"),) * 2
        rows.append({
            "pooling": name,
            "head parameters": head_parameters(config, name, width),
            "accuracy, %": float(values.mean()),
            "sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
            "low": low, "high": high, "seeds": len(values),
            "seconds of training": float(np.mean(seen["seconds"])),
        })  # fmt: skip
    return rows
