"""What several predictions from one position are trained on, and how they weigh.

Shared by every method that looks more than one token ahead: labels at several offsets
with the masks that go with them, means that are 0 and not NaN where nothing counts,
weights by distance, and schedules over a training run.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, check, near

__all__ = [
    "IGNORE",
    "SCHEDULES",
    "distance_weights",
    "future_labels",
    "safe_mean",
    "schedule_weight",
    "weigh_offsets",
]

IGNORE = -100  # a label that is not trained on

SCHEDULES = ("constant", "linear", "sine", "rsine", "sine_r")


def future_labels(
    labels: Int[Array, "batch seq"],
    offsets: int | Sequence[int],
    *,
    segments: Int[Array, "batch seq"] | None = None,
    contiguous: bool = False,
) -> tuple[Int[Array, "batch seq offsets"], Bool[Array, "batch seq offsets"]]:
    """The labels that stand some tokens later, at several distances.

    Args:
      labels: `[batch, seq]` int32; negative ones (`IGNORE`) are not trained on.
      offsets: distances >= 0 (static); a number n means 1..n.
      segments: `[batch, seq]` int32 of packed documents; a label of another document
        does not count. None: each row is one.
      contiguous: a label counts only where every label between counts, too.

    Returns:
      `[batch, seq, offsets]` int32 labels (0 where none counts) and which count.

    Raises:
      ArgumentError: no offset, a negative one, or a wrong shape.

    Example:
      >>> ids, valid = future_labels(jnp.array([[5, 6, 7]]), 2)
      >>> ids[0].tolist(), valid[0].tolist()
      ([[6, 7], [7, 0], [0, 0]], [[True, True], [True, False], [False, False]])
    """
    if isinstance(offsets, int):
        check(offsets >= 1, "offsets", offsets, "at least 1")
        offsets = range(1, offsets + 1)
    distances = np.asarray(tuple(offsets), np.int32)
    good = distances.size > 0 and bool((distances >= 0).all())
    check(good, "offsets", tuple(offsets), "at least one distance, none negative")
    check(labels.ndim == 2, "labels", f"shape {labels.shape}", "[batch, seq]")
    seq = labels.shape[1]

    def ahead(distance: int) -> tuple[Array, Array]:
        place = np.arange(seq) + distance
        there = jnp.asarray(place < seq)[None]
        at = np.minimum(place, seq - 1)
        moved = labels[:, at]
        counts = there & (moved >= 0)
        if segments is not None:
            good = segments.shape == labels.shape
            check(good, "segments", f"shape {segments.shape}", f"{labels.shape}")
            counts = counts & (segments[:, at] == segments)
        return moved, counts

    moved, counts = [], []
    for distance in distances.tolist():
        value, count = ahead(distance)
        if contiguous:
            for between in range(1, distance):
                count = count & ahead(between)[1]
        moved.append(jnp.where(count, value, 0))
        counts.append(count)
    return jnp.stack(moved, -1).astype(jnp.int32), jnp.stack(counts, -1)


def safe_mean(
    values: Float[Array, "..."],
    mask: Bool[Array, "..."],
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """Mean of what the mask keeps; 0, with gradient 0, where it keeps nothing.

    Args:
      values: any shape; what is masked may be NaN.
      mask: of the same shape.
      axis: axes to reduce, None for all.

    Returns:
      float32.

    Example:
      >>> float(safe_mean(jnp.array([1.0, jnp.nan]), jnp.array([True, False])))
      1.0
    """
    kept = jnp.where(mask, values, 0.0).astype(jnp.float32)
    count = jnp.sum(mask, axis=axis, dtype=jnp.float32)
    return jnp.sum(kept, axis=axis) / jnp.maximum(count, 1.0)


def distance_weights(count: int, decay: float) -> Float[Array, " count"]:
    """`decay ** 0, decay ** 1, ...`, with `0 ** 0 = 1`.

    Args:
      count: how many.
      decay: >= 0; 0 keeps the nearest only.

    Returns:
      `[count]` float32.

    Raises:
      ArgumentError: a negative decay or no weight.

    Example:
      >>> distance_weights(3, 0.5).tolist()
      [1.0, 0.5, 0.25]
    """
    check(count >= 1, "count", count, "at least 1")
    check(decay >= 0, "decay", decay, "at least 0")
    return jnp.asarray(np.float32(decay) ** np.arange(count, dtype=np.float32))


def weigh_offsets(
    losses: Float[Array, "*tokens offsets"],
    valid: Bool[Array, "*tokens offsets"],
    weights: Float[Array, " offsets"],
    *,
    reduction: Literal["tokens", "offsets"] = "tokens",
) -> Float[Array, ""]:
    """One loss of predictions at several distances.

    Args:
      losses: `[..., offsets]` float32.
      valid: `[..., offsets]` which count.
      weights: `[offsets]` float32 of each distance.
      reduction: "tokens" divides the weighted sum by the weights of all that counts;
        "offsets" weighs the means of the distances where something counts, and divides
        by their weights.

    Returns:
      float32 scalar; 0 where nothing counts.

    Example:
      >>> losses, valid = jnp.array([[1.0, 3.0]]), jnp.ones((1, 2), bool)
      >>> float(weigh_offsets(losses, valid, jnp.array([1.0, 1.0])))
      2.0
    """
    known = ("tokens", "offsets")
    check(reduction in known, "reduction", reduction, "'tokens' or 'offsets'")
    kept = jnp.where(valid, losses, 0.0).astype(jnp.float32)
    flat = kept.reshape(-1, kept.shape[-1])
    counts = jnp.sum(valid.reshape(-1, kept.shape[-1]), 0, dtype=jnp.float32)
    sums = jnp.sum(flat, axis=0)
    if reduction == "offsets":
        means = sums / jnp.maximum(counts, 1.0)
        present = jnp.sum(weights * (counts > 0))
        return jnp.sum(weights * means) / jnp.where(present > 0, present, 1.0)
    total = jnp.sum(weights * counts)
    return jnp.sum(weights * sums) / jnp.where(total > 0, total, 1.0)


def schedule_weight(
    name: str, step: int | Int[Array, ""], steps: int, *, ratio: float = 1.0
) -> Float[Array, ""]:
    """A weight that changes over a training run.

    With p = step / steps: "constant" 1, "linear" p, "sine" sin(pi/2 p), "rsine"
    sin(pi/2 (1 - p)), "sine_r" sin(pi/2 p / ratio) up to p = ratio and then 1. Where
    there are no steps (evaluation) it is 1. A traced step beyond the last counts as the
    last.

    Args:
      name: one of `SCHEDULES`.
      step: optimizer steps made, 0..steps; may be traced.
      steps: of the whole run.
      ratio: in (0, 1], of "sine_r".

    Returns:
      float32 scalar.

    Raises:
      ArgumentError: an unknown name, negative steps, a step beyond them, a ratio out
        of its range.

    Source: the schedules of arXiv 2506.07833's code.

    Example:
      >>> float(schedule_weight("linear", 1, 4))
      0.25
    """
    if name not in SCHEDULES:
        raise ArgumentError(f"name: got {name!r}{near(name, SCHEDULES)}.")
    check(steps >= 0, "steps", steps, "at least 0")
    check(0 < ratio <= 1, "ratio", ratio, "above 0 and at most 1")
    if isinstance(step, int):
        check(0 <= step <= steps, "step", step, f"0 to {steps}")
    if steps == 0 or name == "constant":
        return jnp.float32(1.0)
    part = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    quarter = jnp.float32(math.pi / 2)
    if name == "linear":
        return part
    if name == "sine":
        return jnp.sin(quarter * part)
    if name == "rsine":
        return jnp.sin(quarter * (1.0 - part))
    return jnp.sin(quarter * jnp.minimum(part / ratio, 1.0))
