"""Shapes that tests and benchmarks of energies share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["cases", "inputs"]


def cases() -> dict[str, dict[str, Any]]:
    """Named shapes of real use.

    Returns:
      By name: `batch, seq, dim, dtype`, and the `kernel` of `energy`.

    Example:
      >>> cases()["vit-b"]["seq"]
      197
    """
    names = ("batch", "seq", "dim", "dtype", "kernel")
    case = lambda *values: dict(zip(names, values))
    return {
        "vit-b": case(32, 197, 64, "float32", "elu"),
        "vit-l-384": case(8, 577, 64, "bfloat16", "elu"),
        "bert": case(16, 512, 768, "float32", "gaussian"),
        "long": case(1, 4096, 768, "bfloat16", "paper"),
    }


def inputs(case: dict[str, Any], *, seed: int = 0) -> dict[str, Array]:
    """Random arguments of a case, by the names that `energy` gives them.

    Args:
      case: one of `cases()`, or a dict like it.
      seed: of the arrays.

    Returns:
      `metric`, some of whose tokens are near each other, and `valid`.

    Example:
      >>> inputs({**cases()["vit-b"], "batch": 1, "seq": 4})["metric"].shape
      (1, 4, 64)
    """
    batch, seq, dim = case["batch"], case["seq"], case["dim"]
    keys = jax.random.split(jax.random.key(seed), 3)
    centres = jax.random.normal(keys[0], (batch, seq, dim))
    nearest = jax.random.randint(keys[1], (batch, seq), 0, max(seq // 4, 1))
    metric = jnp.take_along_axis(centres, nearest[..., None], axis=1)
    metric = metric + 0.3 * jax.random.normal(keys[2], (batch, seq, dim))
    length = jnp.linspace(seq, 1, batch).astype(jnp.int32)
    valid = jnp.arange(seq)[None] < length[:, None]
    return {"metric": metric.astype(case["dtype"]), "valid": valid}
