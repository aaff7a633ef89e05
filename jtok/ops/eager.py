"""Array functions as one program each, also where no caller compiles them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

__all__ = ["one_program"]

P = ParamSpec("P")
R = TypeVar("R")


def one_program(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled as a whole where it is called outside of `jit`.

    Called there as it stands, each of its operations would be compiled by itself,
    which takes seconds. What holds arrays is traced; all else is static, and a program
    is kept for each set of it. Within a trace (`jit`, `grad`, `vmap`) the function is
    called as it stands. So it is where a static argument has no hash.

    Checks of shapes and of static arguments raise as before: they run while the
    program is traced, and an error leaves none behind.

    Args:
      function: of arrays, trees of arrays, and static arguments.

    Returns:
      A function of the same arguments.
    """

    def run(fixed: tuple[tuple[Any, ...], ...], arrays: dict[str, Any]) -> R:
        given = {name: value for name, value, _ in fixed} | arrays
        places = sorted((name for name in given if name.isdigit()), key=int)
        return function(*[given.pop(name) for name in places], **given)

    run.__name__ = run.__qualname__ = function.__name__
    program = jax.jit(run, static_argnums=0, inline=True)

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        given = {str(at): value for at, value in enumerate(args)} | options
        leaves = {name: jax.tree.leaves(value) for name, value in given.items()}
        arrays = {
            name: given.pop(name)
            for name, some in leaves.items()
            if any(isinstance(leaf, jax.Array | np.ndarray) for leaf in some)
        }
        every = jax.tree.leaves(arrays)
        fixed = tuple((name, value, _kind(value)) for name, value in given.items())
        if any(isinstance(leaf, jax.core.Tracer) for leaf in every) or not _hashes(
            fixed
        ):
            return function(*args, **options)
        return program(fixed, arrays)

    # Other wrappers are not shown, so that signatures are those of the function.
    vars(call)["__wrapped__"] = inspect.unwrap(function)
    return call


def _kind(value: Any) -> Any:
    """Types, so that 1, 1.0 and True name different programs."""
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    return type(value)


def _hashes(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
