"""Methods that refuse vectors which are not finite, to find where they arose."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.errors import ArgumentTypeError, check

__all__ = ["checked"]


def checked(method: Any) -> Callable[..., Any]:
    """The method, refusing vectors that hold NaN or infinity.

    Methods themselves do not look: it would cost a pass over the tokens and a stop of
    the device. A NaN makes similarities NaN, and no order of them means anything.

    Args:
      method: what takes `[batch, seq, dim]` vectors first, such as
        `jtok.compress.pitome`; it also goes into `jtok.compress.schedule`.

    Returns:
      A function of the same arguments. It raises `ArgumentError`; inside `jit`, where
      values come later, the runtime's error carries that text.

    Raises:
      ArgumentTypeError: no function.

    Source: none.

    Example:
      >>> from jtok.compress import tome
      >>> checked(tome)(jnp.eye(4)[None], remove=1).num_rows
      3
    """
    if not callable(method):
        raise ArgumentTypeError(
            f"method: got {type(method).__name__}, expected a function of vectors."
        )

    @functools.wraps(method)
    def run(metric: Any, *args: Any, **options: Any) -> Any:
        bad = jnp.sum(~jnp.isfinite(metric))
        if isinstance(bad, jax.core.Tracer):
            jax.debug.callback(_refuse, bad)
        else:
            _refuse(bad)
        return method(metric, *args, **options)

    return run


def _refuse(bad: Any) -> None:
    count = int(np.asarray(bad))
    check(count == 0, "metric", f"{count} numbers that are not finite", "finite ones")
