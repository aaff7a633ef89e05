"""Shapes that tests and benchmarks of cached attention share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["cases", "inputs"]


def cases() -> dict[str, dict[str, Any]]:
    """Named shapes of real use; `options` go to `cached_attention`.

    Returns:
      By name: `batch, nodes, heads, kv_heads, head_dim, capacity, dtype, options`.

    Example:
      >>> cases()["tree-8b"]["kv_heads"]
      8
    """

    names = ("batch", "nodes", "heads", "kv_heads", "head_dim", "capacity")

    def case(*values: Any, **options: Any) -> dict[str, Any]:
        named = dict(zip(names, values))
        dtype = values[6] if len(values) > 6 else "bfloat16"
        options = {"scale": values[4] ** -0.5, **options}
        return {**named, "dtype": dtype, "options": options}

    return {
        "token-8b": case(8, 1, 32, 8, 128, 8192),
        "tree-8b": case(8, 81, 32, 8, 128, 8192),
        "tree-0.5b": case(8, 81, 14, 2, 64, 4096),
        "prefill-8b": case(1, 512, 32, 8, 128, 8192),
        "window-softcap": case(4, 81, 16, 8, 256, 8192, window=4096, softcap=50.0),
        "float32": case(2, 27, 8, 8, 64, 1000, "float32"),
    }


def inputs(case: dict[str, Any], *, seed: int = 0) -> dict[str, Array]:
    """Random arguments of a case, by the names that `cached_attention` gives them.

    Args:
      case: one of `cases()`, or a dict like it.
      seed: of the arrays.

    Returns:
      Arrays; rows have lengths from 0 to the capacity, nodes a random tree.

    Example:
      >>> small = {**cases()["float32"], "nodes": 2, "capacity": 8}
      >>> inputs(small)["allow"].shape
      (2, 2, 2)
    """
    batch, nodes, capacity = case["batch"], case["nodes"], case["capacity"]
    keys = jax.random.split(jax.random.key(seed), 6)
    normal = lambda key, *shape: jax.random.normal(key, shape, case["dtype"])
    kv = lambda key, seq: normal(key, batch, case["kv_heads"], seq, case["head_dim"])
    length = jnp.linspace(capacity, 0, batch).astype(jnp.int32)
    # Node i hangs off a node before it, or off the cache.
    parent = jax.random.randint(keys[5], (batch, nodes), -1, jnp.arange(nodes)[None])
    allow, depth = _ancestors(parent)
    return {
        "query": normal(keys[0], batch, nodes, case["heads"], case["head_dim"]),
        "key": kv(keys[1], nodes),
        "value": kv(keys[2], nodes),
        "cache_key": kv(keys[3], capacity),
        "cache_value": kv(keys[4], capacity),
        "length": length,
        "allow": allow,
        "positions": length[:, None] + depth,
    }


def _ancestors(parent: Array) -> tuple[Array, Array]:
    """Which nodes are above each one (itself included), and how many others."""
    batch, nodes = parent.shape
    rows = jnp.arange(batch)

    def hang(i: Array, allow: Array) -> Array:
        up = parent[:, i]
        above = jnp.where((up >= 0)[:, None], allow[rows, jnp.maximum(up, 0)], False)
        return allow.at[:, i].set(above.at[:, i].set(True))

    allow = jax.lax.fori_loop(0, nodes, hang, jnp.zeros((batch, nodes, nodes), bool))
    return allow, jnp.sum(allow, axis=-1, dtype=jnp.int32) - 1
