"""DyCoke: what repeats in the next frame leaves; what is looked at is chosen anew.

Source: Tao et al. 2024, arXiv 2411.15024.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens, compressed
from jtok.compress.matching import ranks_among
from jtok.compress.selection import kept_in_order, token_scores, top_tokens
from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.energy import unit_rows
from jtok.ops.plan import keep_plan

__all__ = ["Reselection", "dycoke", "dycoke_budget", "reselect", "start_reselection"]

_FULL, _LOST = -1, -2


def dycoke_budget(
    frames: int,
    places: int,
    merging_ratio: float,
    *,
    compat: Literal["official"] | None = None,
) -> int:
    """Rows that are left of a video when frames lose a share of their tokens.

    Args:
      frames: of the video.
      places: tokens of each.
      merging_ratio: share of a reduced frame that leaves, 0 to 1.
      compat: "official" as the code has it: see `dycoke`.

    Returns:
      `int((1 - merging_ratio) * places)`, in float64, for every reduced frame and
      `places` for the full ones.

    Raises:
      ArgumentError: a share out of range, no frame, or no token in it.

    Source: Tao et al. 2024, arXiv 2411.15024, and its code.

    Example:
      >>> dycoke_budget(8, 12, 0.7), dycoke_budget(8, 12, 0.7, compat="official")
      (42, 51)
    """
    good = 0.0 <= merging_ratio <= 1.0  # NaN fails, too
    check(good, "merging_ratio", merging_ratio, "a share of 0 to 1")
    check(frames >= 1, "frames", frames, "at least 1")
    check(places >= 1, "places", places, "at least 1")
    against = _references(frames, compat)
    full, reduced = int(np.sum(against == _FULL)), int(np.sum(against >= 0))
    return full * places + reduced * int((1 - merging_ratio) * places)


def _references(frames: int, compat: str | None) -> np.ndarray:
    """The frame that each one is compared with, or that it is full or lost."""
    against = np.full(frames, _FULL, np.int32)
    if compat is None:
        for frame in range(frames):
            if frame % 4:
                against[frame] = frame - 1 if frame % 2 else frame - 2
        return against
    if frames % 2:
        against[-1] = _LOST
    for frame in range(0, frames - 1, 2):
        against[frame + 1] = frame
    for frame in range(0, frames - 4, 4):
        against[frame + 2] = frame
    return against


@declared(
    "similarity", ("video",),
    "Drops tokens that look as the same place did in a frame before.",
    "Tao et al. 2024, arXiv 2411.15024",
)  # fmt: skip
def dycoke(
    x: Float[Array, "batch seq dim"],
    *,
    budget: int,
    grid: tuple[int, int, int],
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    order: Literal["source", "official"] = "source",
    compat: Literal["official"] | None = None,
) -> Compressed:
    """Drops tokens that look as the same place did in a frame before.

    Of every four frames the first stays whole. The second is compared with the first,
    the fourth with the third, the third with the first; each keeps the tokens whose
    cosine with the same place there is lowest. Ties go to the lower place.

    Args:
      x: `[batch, seq, dim]`, frame by frame.
      budget: rows that come out. What the full frames leave of it is shared by the
        others, the first ones get one more where it does not divide;
        `dycoke_budget` computes it from a share.
      grid: `(frames, height, width)`.
      valid: `[batch, seq]` bool; None lets all tokens be real. Padding is compared
        with nothing; frames without any real token do not count.
      position: `[batch, seq, axes]`; None counts from 0.
      order: rows of a reduced frame by "source", or "official": most changed first.
      compat: "official": frames are paired, of each second pair but the last the even
        frame is reduced, too, so the last window keeps three quarters of what it
        should lose; with an odd number of frames the last one is lost.

    Returns:
      `Compressed`; `score` is one minus the cosine, 2 in full frames.

    Raises:
      ArgumentError: a budget that the full frames do not fit in, a grid that does not
        match, other shapes that do not fit.

    Source: Tao et al. 2024, arXiv 2411.15024, section 3.2, and its code
      (`dycole_ttm`). Differs: all windows, all frames, any budget, batches, padding.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.0]]])
      >>> dycoke(x, budget=3, grid=(2, 1, 2)).keep.tolist()
      [[0, 1, 3]]
    """
    check(grid is not None, "grid", grid, "(frames, height, width)")
    real = check_tokens(x, budget, valid, grid=grid)
    frames, places = grid[0], grid[1] * grid[2]
    against = _references(frames, compat)
    full, reduced = int(np.sum(against == _FULL)), int(np.sum(against >= 0))
    least, most = full * places, (full + reduced) * places
    expected = f"{least} to {most}: {full} frames stay whole, {reduced} are reduced"
    check(least <= budget <= most, "budget", budget, expected)
    score = _changes(x, against, places)
    cut = lambda flat: flat.reshape(-1, frames, places)
    there = cut(real) & jnp.asarray(against != _LOST)[None, :, None]
    whole = jnp.asarray(against == _FULL)[None, :, None]
    share = _shares(jnp.any(there, axis=2), whole[..., 0], budget, places)
    change = jnp.where(there, cut(score), -jnp.inf)
    flat = lambda value: value.reshape(-1, places)
    rank = cut(ranks_among(flat(change)))
    chosen = there & (whole | (rank < share[..., None]))
    place = None
    if order == "official":
        first = jnp.arange(frames)[None, :, None] * places
        place = (first + jnp.where(whole, jnp.arange(places), rank)).reshape(real.shape)
    keep = kept_in_order(chosen.reshape(real.shape), budget, place)
    plan = keep_plan(keep, x.shape[1], position=position)
    return compressed(x, plan, jnp.where(real, score, -jnp.inf))


def _changes(x: Array, against: np.ndarray, places: int) -> Array:
    """`[batch, seq]`: one minus the cosine with the same place of a frame before."""
    batch, seq, dim = x.shape
    unit = unit_rows(jax.lax.stop_gradient(x)).reshape(batch, -1, places, dim)
    other = unit[:, np.maximum(against, 0)]
    change = 1.0 - jnp.sum(unit * other, axis=-1)
    return jnp.where((against >= 0)[None, :, None], change, 2.0).reshape(batch, seq)


def _shares(there: Array, whole: Array, budget: int, places: int) -> Array:
    """`[batch, frames]`: tokens that each reduced frame keeps."""
    full = jnp.sum(there & whole, axis=1, keepdims=True)
    cut = there & ~whole
    reduced = jnp.maximum(jnp.sum(cut, axis=1, keepdims=True), 1)
    left = jnp.maximum(budget - full * places, 0)
    more = jnp.cumsum(cut, axis=1) <= left % reduced
    return left // reduced + more


@struct.dataclass
class Reselection:
    """What decoding remembers between two steps of DyCoke's second stage.

    Attributes:
      attention: `[batch, seq]` float32 of the step before.
      chosen: `[batch, seq]` bool the visual tokens that layers above see.
      started: `[batch]` bool; other rows have chosen nothing yet.
      renewed: `[batch]` int32 how often a row chose.
    """

    attention: jax.Array
    chosen: jax.Array
    started: jax.Array
    renewed: jax.Array


def start_reselection(batch: int, seq: int) -> Reselection:
    """The state before the first decoded token: everything is visible.

    Args:
      batch: rows of the batch.
      seq: visual tokens.

    Returns:
      `Reselection`.

    Source: Tao et al. 2024, arXiv 2411.15024, section 3.3.

    Example:
      >>> start_reselection(1, 4).chosen.tolist()
      [[True, True, True, True]]
    """
    no = jnp.zeros((batch,), bool)
    zeros = jnp.zeros((batch, seq), jnp.float32)
    return Reselection(zeros, jnp.ones((batch, seq), bool), no, no.astype(jnp.int32))


@one_program
def reselect(
    state: Reselection,
    attn: Array,
    *,
    budget: int,
    threshold: float = 0.9,
    valid: Bool[Array, "batch seq"] | None = None,
) -> Reselection:
    """Chooses the visual tokens of a decoding step, anew if attention has moved.

    The cache stays whole, so tokens can come back: `chosen` masks the visual keys of
    the layers above the one whose attention this is (the paper's: layer 3, 0-based).

    Args:
      state: of the step before, `start_reselection` at first.
      attn: `[batch, seq]` or `[batch, heads, seq]`: attention of the newest token to
        the visual tokens.
      budget: tokens to choose; the paper's is `int(seq * (1 - 0.8))`.
      threshold: below this cosine with the attention of the step before a row chooses
        anew.
      valid: `[batch, seq]` bool; None lets all tokens be real.

    Returns:
      `Reselection` of this step.

    Raises:
      ArgumentError: a budget or a threshold out of range, or shapes that do not fit.

    Source: Tao et al. 2024, arXiv 2411.15024, section 3.3, and its code. Differs: each
      row of a batch decides for itself.

    Example:
      >>> state = start_reselection(1, 3)
      >>> state = reselect(state, jnp.array([[0.1, 0.7, 0.2]]), budget=1)
      >>> reselect(state, jnp.array([[0.2, 0.7, 0.1]]), budget=1).renewed.tolist()
      [1]
    """
    batch, seq = state.chosen.shape
    good = isinstance(budget, int) and 1 <= budget <= seq
    check(good, "budget", budget, f"1 to {seq}, the visual tokens")
    check(-1.0 <= threshold <= 1.0, "threshold", threshold, "-1 to 1")
    real = jnp.ones((batch, seq), bool) if valid is None else valid
    check(real.shape == (batch, seq), "valid", f"shape {real.shape}", f"{batch, seq}")
    now = jnp.where(real, token_scores(attn, batch, seq), 0.0)
    both = unit_rows(now) * unit_rows(state.attention)
    anew = ~state.started | (jnp.sum(both, axis=-1) < threshold)
    chosen = top_tokens(now, budget, real)
    return Reselection(
        now,
        jnp.where(anew[:, None], chosen, state.chosen),
        jnp.ones_like(state.started),
        state.renewed + anew,
    )
