"""One image at many lengths: nested pools, of which training draws one a step.

Source: Cai et al. 2024, arXiv 2405.17430.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.compress.cells import Grid
from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens
from jtok.compress.resample import average_pooling
from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.grids import nested_windows

__all__ = ["drawn_scale", "matryoshka", "matryoshka_budgets"]


def matryoshka_budgets(grid: Grid) -> tuple[int, ...]:
    """The numbers of tokens that a Matryoshka of a grid has, the most first.

    Args:
      grid: `(frames, height, width)`.

    Returns:
      Tokens of all frames at every scale: sides are halved while both are even, then
      one token a frame is left.

    Raises:
      ArgumentError: no three sizes of at least 1.

    Source: Cai et al. 2024, arXiv 2405.17430, section 3.

    Example:
      >>> matryoshka_budgets((1, 24, 24))
      (576, 144, 36, 9, 1)
    """
    good = len(grid) == 3 and min(grid) >= 1
    check(good, "grid", grid, "(frames, height, width), each at least 1")
    frames, height, width = grid
    return tuple(
        frames * (height // rows) * (width // columns)
        for rows, columns in nested_windows(height, width)
    )


@declared(
    "transformation", ("image", "video"), "One scale of nested averages of squares.",
    "arXiv 2405.17430, section 3", fixed=True,
)  # fmt: skip
def matryoshka(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    grid: Grid,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """One scale of nested pools: 24 x 24 tokens become 576, 144, 36, 9 or 1.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out, one of `matryoshka_budgets(grid)`.
      grid: `(frames, height, width)` whose product is `seq`; frames are pooled each.
      valid: `[batch, seq]` bool; means are those of real tokens. None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: a budget that is no scale, or shapes that do not fit.

    Source: Cai et al. 2024, arXiv 2405.17430, section 3.

    Example:
      >>> x = jnp.arange(16.0).reshape(1, 16, 1)
      >>> matryoshka(x, budget=4, grid=(1, 4, 4)).tokens[0, :, 0].tolist()
      [2.5, 4.5, 10.5, 12.5]
    """
    check_tokens(x, budget, valid, grid=grid)
    counts = matryoshka_budgets(grid)
    check(budget in counts, "budget", budget, f"one of the scales, {counts}")
    window = (1, *nested_windows(grid[1], grid[2])[counts.index(budget)])
    return average_pooling(
        x, budget=budget, grid=grid, window=window, valid=valid, position=position
    )


@one_program
def drawn_scale(
    x: Float[Array, "batch seq dim"],
    key: Array,
    *,
    grid: Grid,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> tuple[Compressed, Int[Array, ""]]:
    """A scale drawn evenly, as training does at every step, in one program.

    Shapes do not depend on the draw: rows behind those of the scale are empty, and a
    model that is told so by `valid` gives what it gives without them.

    Args:
      x: `[batch, seq, dim]`.
      key: typed PRNG key; the whole batch has one scale.
      grid: `(frames, height, width)` whose product is `seq`.
      valid: as `matryoshka`.
      position: as `matryoshka`.

    Returns:
      `Compressed` of `seq` rows, and the index of the scale in `matryoshka_budgets`,
      int32.

    Raises:
      ArgumentError: shapes that do not fit.

    Source: Cai et al. 2024, arXiv 2405.17430, section 3. Differs: one program for all
      scales, by padding.

    Example:
      >>> x, key = jnp.ones((1, 16, 2)), jax.random.key(0)
      >>> out, scale = drawn_scale(x, key, grid=(1, 4, 4))
      >>> int(out.valid.sum()) == matryoshka_budgets((1, 4, 4))[scale]
      True
    """
    check_tokens(x, None, valid, grid=grid)
    seq, counts = math.prod(grid), matryoshka_budgets(grid)
    scale = jax.random.randint(key, (), 0, len(counts), jnp.int32)

    def at(budget: int) -> Compressed:
        made = matryoshka(x, budget=budget, grid=grid, valid=valid, position=position)
        return _padded(made, seq - budget)

    branches = [lambda budget=budget: at(budget) for budget in counts]
    return jax.lax.switch(scale, branches), scale


def _padded(made: Compressed, more: int) -> Compressed:
    """Empty rows behind those that are there."""
    plan = made.plan
    pad = lambda values, fill=0: jnp.pad(
        values, [(0, 0), (0, more)] + [(0, 0)] * (values.ndim - 2), constant_values=fill
    )
    wide = dataclasses.replace(
        plan, keep=pad(plan.keep, -1), size=pad(plan.size), position=pad(plan.position),
        valid=pad(plan.valid, False),
    )  # fmt: skip
    return Compressed(wide, pad(made.tokens))
