"""Merging visual tokens before a language model, each frame or image by itself.

Source: Zhong et al. 2024, arXiv 2412.03248, section 3.1.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_budget, check_tokens
from jtok.compress.matching import Sides, best_matches, plan_of, ranks_among
from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.plan import Plan, identity_plan, join_plan

__all__ = [
    "MergedFrames",
    "aim",
    "frame_removals",
    "grid_positions",
    "merge_frames",
    "merge_to_grid",
]

Order = Literal["official", "source"]


@struct.dataclass
class MergedFrames:
    """Tokens of frames after some steps of merging.

    Attributes:
      tokens: `[frames, rows, dim]`.
      metric: `[frames, rows, metric_dim]` what was compared, merged alike.
      plan: which token of its frame each row holds (`jtok.ops.Plan`), batch = frames.
        Rows are means of means: `plan.merge` of several steps weighs otherwise.
    """

    tokens: jax.Array
    metric: jax.Array
    plan: Plan


def frame_removals(
    tokens: int, *, halvings: int | None = None, keep: float | None = None
) -> tuple[int, ...]:
    """How many tokens of a frame leave in each step of merging.

    Args:
      tokens: of a frame.
      halvings: steps, of which step `i` (from 0) removes `tokens // 2 ** (i + 1)`, or
      keep: share to stay, above 0 and at most 1: halves while it can, then removes
        the rest, so that `ceil(keep * tokens)` are left.

    Returns:
      One integer for each step.

    Raises:
      ArgumentError: none or both of `halvings` and `keep`, or out of range.

    Source: arXiv 2412.03248, section 3.1: 196 tokens in 2 steps to 49; .375 of them by
      (98, 24).

    Example:
      >>> frame_removals(196, halvings=2), frame_removals(196, keep=0.375)
      ((98, 49), (98, 24))
    """
    check(tokens >= 1, "tokens", tokens, "at least 1")
    one = (halvings is None) != (keep is None)
    check(one, "halvings, keep", (halvings, keep), "exactly one of the two")
    if halvings is not None:
        check(halvings >= 0, "halvings", halvings, "0 or more steps")
        return tuple(tokens // 2 ** (step + 1) for step in range(halvings))
    share = float(keep or 0.0)
    check(0 < share <= 1, "keep", keep, "a share above 0 and at most 1")
    return _down_to(tokens, math.ceil(share * tokens))


def _down_to(tokens: int, target: int) -> tuple[int, ...]:
    steps = []
    while tokens > target:
        steps.append(min(tokens // 2, tokens - target))
        tokens -= steps[-1]
    return tuple(steps)


@one_program
def merge_frames(
    x: Float[Array, "frames tokens dim"],
    removed: Sequence[int],
    *,
    metric: Float[Array, "frames tokens metric_dim"] | None = None,
    valid: Bool[Array, "frames tokens"] | None = None,
    order: Order = "official",
) -> MergedFrames:
    """Joins similar tokens of a frame by plain means, in several steps.

    Each step pairs tokens at even places with the most similar ones at odd places and
    joins the best pairs, as ToMe does. Sizes do not count: a later step averages
    averages. Frames never mix. Ties go to the lower index.

    Args:
      x: `[frames, tokens, dim]` a frame or an image a row.
      removed: tokens that leave in each step (static); of at most half of them can.
        0 changes nothing.
      metric: `[frames, tokens, metric_dim]` what is compared, such as the keys of the
        tower's last layer (LLaVA-1.5), merged in lock step; None compares `x`.
      valid: `[frames, tokens]` bool; None lets all tokens be real.
      order: of the rows, see `tome`; "official" has unmerged even tokens first.

    Returns:
      `MergedFrames`.

    Raises:
      ArgumentError: a number below 0, or a metric of other tokens.

    Source: Zhong et al. 2024, arXiv 2412.03248, section 3.1. Differs: no removal is
      the identity, padding.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 2.0]]])
      >>> merge_frames(x, (2,)).tokens[0].tolist()
      [[1.0, 0.05000000074505806], [0.0, 1.5]]
    """
    for remove in removed:
        check(remove >= 0, "removed", tuple(removed), "numbers of at least 0")
    return _merged(x, [int(r) for r in removed], 1, metric, valid, order)


def _merged(
    x: Array, removed: Sequence[int], least: int, metric: Array | None,
    valid: Array | None, order: Order,
) -> MergedFrames:  # fmt: skip
    """Steps of merging in which no row falls below `least` tokens."""
    frames, tokens, _ = x.shape
    compared = x if metric is None else metric
    good = compared.shape[:2] == (frames, tokens)
    expected = f"[{frames}, {tokens}, ...], the tokens of x"
    check(good, "metric", f"shape {compared.shape}", expected)
    real = jnp.ones((frames, tokens), bool) if valid is None else valid
    path = identity_plan(frames, tokens, valid=valid)
    for remove in removed:
        most = min(remove, x.shape[1] // 2)
        if most == 0:
            continue
        plan = _paired(compared, most, least, real, order)
        x, _ = plan.merge(x, how="mean")
        compared = x if metric is None else plan.merge(compared, how="mean")[0]
        path, real = path.then(plan), plan.valid
    return MergedFrames(x, compared, path)


def _paired(metric: Array, most: int, least: int, real: Array, order: Order) -> Plan:
    """The best `most` pairs join; of a row with padding as many as without it."""
    frames, seq = real.shape
    check(order in ("official", "source"), "order", order, "'official' or 'source'")
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (frames, seq))
    sides = Sides(index[:, ::2], index[:, 1::2], real[:, ::2], real[:, 1::2])
    best, joined = best_matches(jax.lax.stop_gradient(metric), sides)
    rank = ranks_among(best)
    count = jnp.sum(real, axis=1, dtype=jnp.int32)
    each = jnp.minimum(jnp.minimum(count // 2, most), jnp.maximum(count - least, 0))
    leaves = (rank < each[:, None]) & (best > -jnp.inf)
    place = index
    if order == "official":  # what stays of the even ones, most similar first
        place = place.at[:, ::2].set(rank).at[:, 1::2].add(seq)
    return plan_of(sides, joined, leaves, place, seq - most, real)


def merge_to_grid(
    x: Float[Array, "frames tokens dim"],
    grid: tuple[int, int],
    *,
    metric: Float[Array, "frames tokens metric_dim"] | None = None,
) -> tuple[Float[Array, "frames rows dim"], tuple[int, int]]:
    """Merges each frame to as many tokens as a grid of half the height and width has.

    Qwen2-VL places visual tokens by frame, row and column. The merged tokens get the
    places of the smaller grid (`grid_positions`), whatever they hold.

    Args:
      x: `[frames, tokens, dim]` a temporal patch a row, after the tower's own merger.
      grid: height and width, whose product is `tokens`, both at least 2.
      metric: see `merge_frames`.

    Returns:
      `[frames, rows, dim]` and the smaller grid.

    Raises:
      ArgumentError: a grid that does not match the tokens.

    Source: the Qwen2-VL part of arXiv 2412.03248's code: two halvings, then the rest.

    Example:
      >>> tokens, grid = merge_to_grid(jnp.ones((1, 6, 2)), (2, 3))
      >>> tokens.shape, grid
      ((1, 1, 2), (1, 1))
    """
    height, width = grid
    count = x.shape[1]
    good = height >= 2 and width >= 2 and height * width == count
    check(good, "grid", grid, f"height and width of 2 or more with {count} places")
    small = height // 2, width // 2
    halved = frame_removals(count, halvings=2)
    steps = (*halved, *_down_to(count - sum(halved), small[0] * small[1]))
    return merge_frames(x, steps, metric=metric).tokens, small


def grid_positions(frames: int, height: int, width: int) -> np.ndarray:
    """Frame, row and column of every token of a grid, frame by frame, row by row.

    Args:
      frames: how many.
      height: rows of each.
      width: columns of each.

    Returns:
      `[frames * height * width, 3]` int32.

    Example:
      >>> grid_positions(1, 2, 2).tolist()
      [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    """
    sizes = (frames, height, width)
    check(min(sizes) >= 1, "frames, height, width", sizes, "numbers of at least 1")
    return np.indices(sizes).reshape(3, -1).T.astype(np.int32)


@declared(
    "similarity", ("image", "video"),
    "Halves each frame by joining its most similar tokens, until it fits.",
    "Zhong et al. 2024, arXiv 2412.03248, section 3.1",
)  # fmt: skip
def aim(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    valid: Bool[Array, "batch seq"] | None = None,
    keys: Float[Array, "batch seq key_dim"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    order: Order = "source",
    frames: int = 1,
) -> Compressed:
    """AIM's merging within each frame, halving until the budget is met.

    Args:
      x: `[batch, seq, dim]`.
      budget: rows that come out, a multiple of the frames (static).
      valid: `[batch, seq]` bool; None lets all tokens be real. A frame with fewer real
        tokens than rows keeps them all.
      keys: `[batch, seq, key_dim]` what is compared; None compares `x`.
      position: `[batch, seq, axes]` of each token; None counts from 0.
      order: of the rows within a frame, see `tome`.
      frames: of equally many tokens, that share the rows and never mix (static).

    Returns:
      `Compressed`.

    Raises:
      ArgumentError: a budget out of range, or tokens or rows that frames do not share
        evenly.

    Source: Zhong et al. 2024, arXiv 2412.03248, section 3.1.

    Example:
      >>> aim(jnp.ones((1, 8, 2)), budget=4, frames=2).tokens.shape
      (1, 4, 2)
    """
    check_tokens(x, budget, valid)
    batch, seq, _ = x.shape
    budget = check_budget(budget, seq)
    good = frames >= 1 and seq % frames == 0
    check(good, "frames", frames, f"a divisor of {seq}, the tokens")
    check(budget % frames == 0, "budget", budget, f"a multiple of {frames}, the frames")

    def cut(a: Any) -> Any:
        shape = (batch * frames, seq // frames)
        return None if a is None else a.reshape(*shape, *a.shape[2:])

    steps = _down_to(seq // frames, budget // frames)
    found = _merged(cut(x), steps, budget // frames, cut(keys), cut(valid), order)
    return Compressed(
        _joined(found.plan, batch, frames, position),
        found.tokens.reshape(batch, budget, -1),
    )


def _joined(plan: Plan, batch: int, frames: int, position: Array | None) -> Plan:
    """One plan for a row of frames, of one for each frame."""
    rows, tokens = plan.num_rows, plan.assign.shape[1]
    frame = jnp.tile(jnp.arange(frames, dtype=jnp.int32), batch)[:, None]
    host = jnp.take_along_axis(plan.keep, jnp.maximum(plan.assign, 0), axis=1)
    joins = (host + frame * tokens).reshape(batch, -1)
    order = (plan.assign + frame * rows).reshape(batch, -1)
    real = (plan.assign >= 0).reshape(batch, -1)
    return join_plan(joins, order, frames * rows, valid=real, position=position)
