"""Sound made shorter at fixed places: pooling and stacking of frames.

Source: Shao et al. 2025, arXiv 2507.20198, the transformation-based family.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.cells import window_index
from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens
from jtok.compress.resample import plan_at
from jtok.errors import check
from jtok.ops.grids import pool_grid, stack_frames
from jtok.ops.plan import Plan

__all__ = ["frame_pooling", "frame_stacking"]


@declared(
    "transformation", ("audio",), "Averages neighbouring frames of sound.",
    "arXiv 2407.10759, section 2", fixed=True,
)  # fmt: skip
def frame_pooling(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int | None = None,
    window: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Averages neighbouring frames of sound: 50 tokens a second become 25.

    Of `n` real frames come `floor((n - window) / window) + 1` rows: a window with
    padding is dropped, as are the frames behind the last window.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out, or None.
      window: frames that become one; None takes `seq // budget`, without a budget 2.
      valid: `[batch, seq]` bool; real frames come first. None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: a budget that no window gives, or a window outside of 1 to `seq`.

    Source: Qwen2-Audio, arXiv 2407.10759, section 2.

    Example:
      >>> x = jnp.arange(5.0).reshape(1, 5, 1)
      >>> frame_pooling(x).tokens[0, :, 0].tolist()
      [0.5, 2.5]
    """
    real = check_tokens(x, budget, valid)
    step = frames_of(budget, x.shape[1], window, "window", 2)
    tokens, there = pool_grid(x, (step,), valid=real, whole=True)
    return Compressed(frame_plan(there, step, real, position), tokens)


@declared(
    "transformation", ("audio",), "Frames of sound side by side in the channels.",
    "arXiv 2402.08846, 2409.06666", trained=True, fixed=True,
)  # fmt: skip
def frame_stacking(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int | None = None,
    count: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Puts the channels of neighbouring frames of sound side by side.

    Frames that fill no stack are dropped, those before padding too.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out, or None.
      count: frames of a stack; None takes `seq // budget`, without a budget 5.
      valid: `[batch, seq]` bool; real frames come first. None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed` with rows of `count * dim` channels.

    Raises:
      ArgumentError: a budget that no stack gives, or `count` outside of 1 to `seq`.

    Source: SLAM-ASR, arXiv 2402.08846; LLaMA-Omni, arXiv 2409.06666.

    Example:
      >>> out = frame_stacking(jnp.ones((1, 23, 6)))
      >>> out.tokens.shape, out.assign[0, -4:].tolist()
      ((1, 4, 30), [3, -1, -1, -1])
    """
    real = check_tokens(x, budget, valid)
    step = frames_of(budget, x.shape[1], count, "count", 5)
    tokens, there = stack_frames(x, step, valid=real)
    return Compressed(frame_plan(there, step, real, position), tokens)


def frames_of(
    budget: int | None, seq: int, step: int | None, name: str, default: int
) -> int:
    """Frames that become one row."""
    if step is None:
        step = default if budget is None else seq // budget
    good = isinstance(step, int) and 1 <= step <= seq
    check(good, name, step, f"1 to {seq}, the frames")
    good = budget is None or budget == seq // step
    expected = f"None or {seq // step}, what {step} frames a row give"
    check(good, "budget", budget, expected)
    return step


def frame_plan(there: Array, step: int, real: Array, position: Array | None) -> Plan:
    """Frames join their row where it is real."""
    seq, rows = real.shape[1], there.shape[1]
    cell = window_index((seq, 1, 1), (step, 1, 1))
    inside = jnp.take(there, jnp.maximum(cell, 0), axis=1)
    return plan_at(cell, rows, real & inside, position)
