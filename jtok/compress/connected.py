"""Fewer tokens through a trained connector, with the plan of what went where.

Source: Shao et al. 2025, arXiv 2507.20198, the transformation-based family.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.cells import Grid, factor_of, window_index, window_of
from jtok.compress.declared import declared
from jtok.compress.frames import frame_plan, frames_of
from jtok.compress.interface import Compressed, check_tokens
from jtok.compress.resample import plan_at
from jtok.errors import check
from jtok.nn.connectors import (
    FrameConnector,
    PoolingConnector,
    SpaceTimeConnector,
    UnshuffleConnector,
)

__all__ = ["internvl", "mobilevlm", "slam_asr", "videollama2"]


@declared(
    "transformation", ("image", "video"), "Pixel unshuffle and a trained MLP.",
    "arXiv 2404.16821", fixed=True,
)  # fmt: skip
def internvl(
    x: Float[Array, "batch seq dim"],
    *,
    params: Any,
    grid: Grid,
    budget: int | None = None,
    factor: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Pixel unshuffle, then norm, linear, GELU, linear.

    Args:
      x: `[batch, seq, dim]`.
      params: of `jtok.nn.UnshuffleConnector`.
      grid: `(frames, height, width)` whose product is `seq`.
      budget: as `unshuffle`.
      factor: as `unshuffle`.
      valid: as `unshuffle`.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed` with rows of the connector's width.

    Raises:
      ArgumentError: as `unshuffle`.

    Source: InternVL 1.5, arXiv 2404.16821, and its code.

    Example:
      >>> x, init = jnp.ones((1, 16, 3)), jtok.nn.UnshuffleConnector(5).init
      >>> params = lambda key: init(key, x.reshape(1, 4, 4, 3))["params"]
      >>> run = lambda key: internvl(x, params=params(key), grid=(1, 4, 4))
      >>> jax.eval_shape(run, jax.random.key(0)).tokens.shape
      (1, 4, 5)
    """
    real = check_tokens(x, budget, valid, grid=grid)
    side = factor_of(budget, grid, factor)
    module = UnshuffleConnector(_width(params), side)
    frames = lambda y: y.reshape(-1, *grid[1:], *y.shape[2:])
    out: Any = module.apply({"params": params}, frames(x), frames(real))
    return _placed(out[0], x, grid, (1, side, side), real, position)


@declared(
    "transformation", ("image", "video"),
    "A trained MLP, 2 x 2 averages, a depthwise convolution.",
    "arXiv 2402.03766, section 3.3", fixed=True,
)  # fmt: skip
def mobilevlm(
    x: Float[Array, "batch seq dim"],
    *,
    params: Any,
    grid: Grid,
    budget: int | None = None,
    window: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Two linear maps, squares averaged, a depthwise convolution added (MobileVLM V2).

    Args:
      x: `[batch, seq, dim]`.
      params: of `jtok.nn.PoolingConnector`.
      grid: `(frames, height, width)` whose product is `seq`.
      budget: rows that come out, or None.
      window: side of a square; None takes that of `budget`, without one 2.
      valid: `[batch, seq]` bool; a row is real where one of its tokens is. None lets
        all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed` with rows of the connector's width.

    Raises:
      ArgumentError: a budget that no square gives, or shapes that do not fit.

    Source: MobileVLM V2, arXiv 2402.03766, section 3.3.

    Example:
      >>> x, init = jnp.ones((1, 16, 3)), jtok.nn.PoolingConnector(5).init
      >>> params = lambda key: init(key, x.reshape(1, 4, 4, 3))["params"]
      >>> run = lambda key: mobilevlm(x, params=params(key), grid=(1, 4, 4))
      >>> jax.eval_shape(run, jax.random.key(0)).tokens.shape
      (1, 4, 5)
    """
    real = check_tokens(x, budget, valid, grid=grid)
    given = None if window is None else (1, window, window)
    chosen = window_of(budget, grid, given)
    good = chosen[0] == 1 and chosen[1] == chosen[2]
    check(good, "budget", budget, f"a number of squares in the grid {grid}")
    module = PoolingConnector(_width(params), chosen[1])
    frames = lambda y: y.reshape(-1, *grid[1:], *y.shape[2:])
    out: Any = module.apply({"params": params}, frames(x), frames(real))
    return _placed(out[0], x, grid, chosen, real, position)


@declared(
    "transformation", ("video",), "Trained convolutions over space and time.",
    "arXiv 2406.07476, section 2.1", fixed=True,
)  # fmt: skip
def videollama2(
    x: Float[Array, "batch seq dim"],
    *,
    params: Any,
    grid: Grid,
    budget: int | None = None,
    window: Grid = (2, 2, 2),
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Convolutions over space, over space and time, over space again (VideoLLaMA 2).

    Args:
      x: `[batch, seq, dim]`.
      params: of `jtok.nn.SpaceTimeConnector`.
      grid: `(frames, height, width)` whose product is `seq`; the window divides it.
      budget: None, or what the window gives.
      window: frames, rows and columns that become one token, those of the parameters.
      valid: `[batch, seq]` bool; a row is real where one of its tokens is. None lets
        all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed` with rows of the connector's width.

    Raises:
      ArgumentError: a grid that the window does not divide (an odd number of frames),
        another budget, or shapes that do not fit.

    Source: VideoLLaMA 2, arXiv 2406.07476, section 2.1.

    Example:
      >>> x, init = jnp.ones((1, 32, 3)), jtok.nn.SpaceTimeConnector(5, depth=1).init
      >>> params = lambda key: init(key, x.reshape(1, 2, 4, 4, 3))["params"]
      >>> run = lambda key: videollama2(x, params=params(key), grid=(2, 4, 4))
      >>> jax.eval_shape(run, jax.random.key(0)).tokens.shape
      (1, 4, 5)
    """
    real = check_tokens(x, budget, valid, grid=grid)
    good = all(side % step == 0 for side, step in zip(grid, window, strict=True))
    check(good, "grid", grid, f"sides that the window {window} divides")
    window_of(budget, grid, window)
    hidden = params["sampler"]["kernel"].shape[-1]
    depth = sum(name.startswith("before_") for name in params)
    module = SpaceTimeConnector(_width(params), hidden, depth, window)
    on_grid = lambda y: y.reshape(len(y), *grid, *y.shape[2:])
    out: Any = module.apply({"params": params}, on_grid(x), on_grid(real))
    return _placed(out[0], x, grid, window, real, position)


@declared(
    "transformation", ("audio",), "Frames side by side and a trained MLP.",
    "arXiv 2402.08846", fixed=True,
)  # fmt: skip
def slam_asr(
    x: Float[Array, "batch seq dim"],
    *,
    params: Any,
    budget: int | None = None,
    count: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """Neighbouring frames side by side, then linear, ReLU, linear (SLAM-ASR).

    Args:
      x: `[batch, seq, dim]`.
      params: of `jtok.nn.FrameConnector`.
      budget: as `frame_stacking`.
      count: as `frame_stacking`.
      valid: as `frame_stacking`.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed` with rows of the connector's width.

    Raises:
      ArgumentError: as `frame_stacking`.

    Source: SLAM-ASR, arXiv 2402.08846; LLaMA-Omni, arXiv 2409.06666.

    Example:
      >>> x, init = jnp.ones((1, 12, 3)), jtok.nn.FrameConnector(5).init
      >>> run = lambda key: slam_asr(x, params=init(key, x)["params"])
      >>> jax.eval_shape(run, jax.random.key(0)).tokens.shape
      (1, 2, 5)
    """
    real = check_tokens(x, budget, valid)
    step = frames_of(budget, x.shape[1], count, "count", 5)
    hidden = params["up"]["kernel"].shape[-1]
    module = FrameConnector(_width(params), hidden, step)
    out: Any = module.apply({"params": params}, x, real)
    return Compressed(frame_plan(out[1], step, real, position), out[0])


def _width(params: Any) -> int:
    """Width that comes out of a connector."""
    return int(params["down"]["kernel"].shape[-1])


def _placed(
    tokens: Array,
    x: Array,
    grid: Grid,
    window: Grid,
    real: Array,
    position: Array | None,
) -> Compressed:
    tokens = jnp.reshape(tokens, (x.shape[0], -1, tokens.shape[-1]))
    plan = plan_at(window_index(grid, window), tokens.shape[1], real, position)
    return Compressed(plan, tokens)
