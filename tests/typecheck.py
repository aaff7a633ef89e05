"""The run-time type checker of the suite: beartype on functions, not on records.

A pytree record is rebuilt with shapes, None or tracers at its leaves by `jax.tree.map`
and `jax.eval_shape`, so checking what its generated `__init__` gets would break both.
"""

from typing import Any

from beartype import beartype


def check(function: Any) -> Any:
    """`beartype(function)`, except for `__init__`."""
    if getattr(function, "__name__", "") == "__init__":
        return function
    return beartype(function)
