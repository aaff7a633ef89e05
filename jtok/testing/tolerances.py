"""One table of tolerances by dtype, and the comparison that uses it."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jtok.errors import check

__all__ = ["assert_close", "tolerance"]

# (relative, absolute), wide enough for another order of summation over ~1000 terms.
_TABLE: dict[str, tuple[float, float]] = {
    "float64": (1e-12, 1e-12),
    "float32": (1e-5, 1e-5),
    "bfloat16": (2e-2, 2e-2),
    "float16": (2e-3, 2e-3),
}


def tolerance(dtype: Any) -> tuple[float, float]:
    """Relative and absolute tolerance of a dtype.

    Args:
      dtype: anything that names a dtype.

    Returns:
      `(rtol, atol)`; zeros for integers and booleans, which compare exactly.

    Raises:
      ArgumentError: a floating dtype that the table does not list.

    Example:
      >>> tolerance("float32")
      (1e-05, 1e-05)
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0, 0.0
    check(dtype.name in _TABLE, "dtype", dtype.name, f"one of {sorted(_TABLE)}")
    return _TABLE[dtype.name]


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    name: str = "arrays",
) -> None:
    """Fails unless two arrays agree to the tolerance of the coarser dtype.

    Integers and booleans must be equal. Infinities must stand at the same places, and
    so must NaNs.

    Args:
      actual: what was computed.
      expected: what it must be; the same shape.
      rtol: relative tolerance instead of the table's; say why where you pass it.
      atol: absolute tolerance instead of the table's; likewise.
      name: what is compared, for the message.

    Raises:
      AssertionError: with the worst index, both values there and the number at fault.

    Example:
      >>> assert_close(np.float32([1.0, 2.0]), np.float32([1.0, 2.000001]))
    """
    got, want = np.asarray(actual), np.asarray(expected)
    if got.shape != want.shape:
        raise AssertionError(f"{name}: shape {got.shape}, expected {want.shape}")
    rtol, atol = _limits(got, want, rtol, atol)
    excess = _excess(got, want, rtol, atol)
    if excess.any():
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        index = tuple(int(axis) for axis in worst)
        raise AssertionError(
            f"{name}: {np.count_nonzero(excess)} of {excess.size} elements differ by "
            f"more than rtol={rtol:g}, atol={atol:g}; worst at {index}: "
            f"got {got[index]!r}, expected {want[index]!r}"
        )


def _limits(
    got: np.ndarray, want: np.ndarray, rtol: float | None, atol: float | None
) -> tuple[float, float]:
    """The caller's tolerances where any is given, else the coarser dtype's."""
    if rtol is None and atol is None:
        return max(tolerance(got.dtype), tolerance(want.dtype))
    return rtol or 0.0, atol or 0.0


def _excess(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """By how much each difference passes the limit; 0 where it does not."""
    if rtol == atol == 0.0:  # integers: exact, also where float64 would round
        same = (got == want) | ((got != got) & (want != want))
        return np.where(same, 0.0, 1.0)
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - want))
    error = np.where(np.isnan(error), np.inf, error)
    limit = atol + rtol * np.abs(np.where(np.isfinite(want), want, 0.0))
    return np.where(error <= limit, 0.0, error)
