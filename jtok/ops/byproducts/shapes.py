"""Shapes that tests and benchmarks of attention's by-products share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["cases", "inputs"]


def cases() -> dict[str, dict[str, Any]]:
    """Named shapes of real use; `options` go to `attention_byproducts`.

    Returns:
      By name: `batch, seq, keys, heads, kv_heads, head_dim, dtype, options`.

    Example:
      >>> cases()["llava-7b"]["options"]["causal"]
      True
    """
    names = ("batch", "seq", "keys", "heads", "kv_heads", "head_dim", "dtype")

    def case(*values: Any, **options: Any) -> dict[str, Any]:
        options = {"scale": values[5] ** -0.5, "columns": True, **options}
        return {**dict(zip(names, values)), "options": options}

    return {
        "vit-b": case(8, 197, 197, 12, 12, 64, "float32"),
        "vit-l-384": case(4, 577, 577, 16, 16, 64, "bfloat16"),
        "llava-7b": case(1, 4096, 4096, 32, 32, 128, "bfloat16", causal=True),
        "qwen2-7b": case(1, 1668, 1668, 28, 4, 128, "bfloat16", causal=True),
        "last-questions": case(1, 64, 2048, 28, 4, 128, "bfloat16", causal=True),
    }


def inputs(case: dict[str, Any], *, seed: int = 0) -> dict[str, Array]:
    """Random arguments of a case, by the names `attention_byproducts` gives them.

    Args:
      case: one of `cases()`, or a dict like it.
      seed: of the arrays.

    Returns:
      `query`, `key`, `value`, `valid`, `key_bias` and `on`.

    Example:
      >>> small = {**cases()["vit-b"], "batch": 1, "seq": 2, "keys": 3}
      >>> inputs(small)["key"].shape
      (1, 3, 12, 64)
    """
    batch, keys, dim = case["batch"], case["keys"], case["head_dim"]
    seeds = jax.random.split(jax.random.key(seed), 5)
    normal = lambda i, *shape: jax.random.normal(seeds[i], shape, case["dtype"])
    length = jnp.linspace(keys, max(keys // 2, 1), batch).astype(jnp.int32)
    size = 1.0 + jax.random.randint(seeds[3], (batch, keys), 0, 3)
    return {
        "query": normal(0, batch, case["seq"], case["heads"], dim),
        "key": normal(1, batch, keys, case["kv_heads"], dim),
        "value": normal(2, batch, keys, case["kv_heads"], dim),
        "valid": jnp.arange(keys)[None] < length[:, None],
        "key_bias": jnp.log(size),
        "on": jax.random.bernoulli(seeds[4], 0.3, (batch, keys)),
    }
