"""Shapes that tests and benchmarks of the readout share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok.ops.readouts import Draw, Want
from jtok.ops.sampling import row_keys

__all__ = ["cases", "inputs"]

_KINDS = ("greedy", "gumbel", "top-k")


def cases() -> dict[str, dict[str, Any]]:
    """Named shapes of real use.

    Returns:
      By name: `batch, nodes, dim, vocab, dtype, kind, top_k`; a kind is "greedy",
      "gumbel" or "top-k" (drawn from the 20 best), `top_k` what is returned.

    Example:
      >>> cases()["tree-8b"]["dim"]
      4096
    """
    names = ("batch", "nodes", "dim", "vocab", "dtype", "kind", "top_k")
    case = lambda *values: dict(zip(names, values))
    return {
        "token-8b": case(8, 1, 4096, 128256, "bfloat16", "greedy", 0),
        "tree-8b": case(1, 81, 4096, 128256, "bfloat16", "gumbel", 8),
        "tree-0.5b": case(8, 81, 896, 151936, "bfloat16", "greedy", 8),
        "sampled-0.5b": case(8, 81, 896, 151936, "bfloat16", "top-k", 8),
        "float32": case(1, 27, 256, 32000, "float32", "gumbel", 4),
    }


def inputs(case: dict[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Random arguments of a case, by the names that `readout` gives them.

    Args:
      case: one of `cases()`, or a dict like it.
      seed: of the arrays.

    Returns:
      `hidden`, `weight`, and a `want` with gap and log-sum-exp.

    Example:
      >>> small = {**cases()["float32"], "dim": 8, "vocab": 64}
      >>> inputs(small)["weight"].shape
      (64, 8)
    """
    batch, nodes, dim = case["batch"], case["nodes"], case["dim"]
    keys = jax.random.split(jax.random.key(seed), 2)
    normal = lambda key, *shape: jax.random.normal(key, shape, case["dtype"])
    weight = normal(keys[1], case["vocab"], dim) * dim**-0.5
    want = Want(
        draw=None if case["kind"] == "greedy" else _draw(case),
        top_k=case["top_k"],
        log_sum_exp=True,
        gap=True,
    )
    hidden = normal(keys[0], batch, nodes, dim)
    return {"hidden": hidden, "weight": weight.astype(case["dtype"]), "want": want}


def _draw(case: dict[str, Any]) -> Draw:
    batch, nodes = case["batch"], case["nodes"]
    depth: Array = jnp.broadcast_to(jnp.arange(nodes) % 5, (batch, nodes))
    return Draw(
        keys=row_keys(jnp.arange(batch)),
        start=7 * jnp.arange(batch),
        depth=depth,
        # The first row is greedy where there are several.
        temperature=jnp.where(jnp.arange(batch) == batch - 1, 0.8, 0.0),
        top_k=20 if case["kind"] == "top-k" else None,
        max_depth=4,
    )
