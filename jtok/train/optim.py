"""The optimizer and learning-rate schedules that training uses, thin over Optax."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from jtok.errors import ArgumentError, check, near

__all__ = ["adamw", "matrices_only", "schedule"]

_KINDS = ("constant", "cosine", "linear", "wsd")


def schedule(
    kind: Literal["constant", "cosine", "linear", "wsd"],
    *,
    peak: float,
    steps: int,
    warmup: int = 0,
    floor: float = 0.0,
    decay: float = 0.2,
) -> optax.Schedule:
    """A learning rate that rises linearly to `peak`, then goes as `kind` says.

    The rate of update t (0-based) of the warm-up is `peak * (t + 1) / warmup`: never 0.
    Beyond `steps` the last rate holds.

    Args:
      kind: `"constant"`; `"cosine"` and `"linear"` fall to the floor over all steps
        after the warm-up; `"wsd"` (warm-up, stable, decay) holds `peak` and falls
        linearly over the last part.
      peak: highest rate, > 0.
      steps: length of the training, warm-up included.
      warmup: steps of the rise, `0 <= warmup < steps`.
      floor: last rate as a fraction of `peak`, in [0, 1].
      decay: with `"wsd"`, the fraction of `steps` that decays, in (0, 1].

    Returns:
      A function from a step (0-based) to a float32 rate.

    Raises:
      ArgumentError: an argument out of its range.

    Example:
      >>> rate = schedule("linear", peak=1.0, steps=10, warmup=2)
      >>> [round(float(rate(t)), 3) for t in (0, 1, 6, 10)]
      [0.5, 1.0, 0.5, 0.0]

    Source: `"wsd"`: Hu et al. 2024, arXiv 2404.06395, section 4. Differs: the decay
    is linear.
    """
    if kind not in _KINDS:
        hint = near(str(kind), _KINDS)
        raise ArgumentError(f"kind: got {kind!r}, expected a kind of schedule{hint}")
    check(peak > 0, "peak", peak, "a rate > 0")
    check(steps >= 1, "steps", steps, "a count >= 1")
    check(0 <= warmup < steps, "warmup", warmup, f"0 <= warmup < steps={steps}")
    check(0 <= floor <= 1, "floor", floor, "a fraction of the peak in [0, 1]")
    check(0 < decay <= 1, "decay", decay, "a fraction of the steps in (0, 1]")
    rest = steps - warmup
    tail = min(rest, max(1, round(decay * steps)))
    body = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=floor),
        "linear": lambda: optax.linear_schedule(peak, floor * peak, rest),
        "wsd": lambda: optax.linear_schedule(peak, floor * peak, tail, rest - tail),
    }[kind]()
    if warmup == 0:
        return body
    # Reaches the peak at the warm-up's last update, where `body` would start.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, body], [warmup])


def matrices_only(params: Any, *, stacked: tuple[str, ...] = ("layers",)) -> Any:
    """Which leaves weight decay touches: matrices, not biases or norms' scales.

    Args:
      params: the trainable tree.
      stacked: names of subtrees whose leaves carry a leading axis of layers, which
        does not count as a dimension of theirs; lists and tuples below such a name
        are per-layer trees without that axis.

    Returns:
      The tree with, at each leaf, True for a leaf of at least two dimensions that is
      not called `bias` or `scale`.

    Example:
      >>> import numpy as np
      >>> layers = {"norm": {"scale": np.ones((3, 4))}, "up": np.ones((3, 4, 8))}
      >>> matrices_only({"layers": layers})
      {'layers': {'norm': {'scale': False}, 'up': True}}
    """

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        names = [_name(entry) for entry in path]
        # A tuple of per-layer trees has an index after the name, and no extra axis.
        split = [isinstance(entry, jax.tree_util.SequenceKey) for entry in path[1:]]
        extra = any(n in stacked and not s for n, s in zip(names, [*split, False]))
        return leaf.ndim - extra >= 2 and names[-1:] not in (["bias"], ["scale"])

    return jax.tree_util.tree_map_with_path(decays, params)


def _name(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", entry)))


def adamw(
    learning_rate: float | optax.Schedule,
    *,
    weight_decay: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    clip_norm: float | None = 1.0,
    decay_mask: Callable[[Any], Any] | Any = matrices_only,
) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm of the gradient.

    Args:
      learning_rate: a rate > 0 or a schedule.
      weight_decay: decoupled decay, times the learning rate, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment, > 0.
      clip_norm: gradients of a larger norm are scaled down to it; None never.
      decay_mask: which leaves decay: a tree of booleans, or a function from the
        parameters to one.

    Returns:
      The Optax transformation.

    Raises:
      ArgumentError: an argument out of its range.

    Example:
      >>> optimizer = adamw(schedule("cosine", peak=3e-4, steps=1000, warmup=50))
      >>> type(optimizer.init({"w": jax.numpy.ones((2, 2))})).__name__
      'tuple'

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2.
    """
    if not callable(learning_rate):
        check(learning_rate > 0, "learning_rate", learning_rate, "a rate > 0")
    check(weight_decay >= 0, "weight_decay", weight_decay, "a number >= 0")
    check(0 <= b1 < 1, "b1", b1, "a number in [0, 1)")
    check(0 <= b2 < 1, "b2", b2, "a number in [0, 1)")
    check(eps > 0, "eps", eps, "a number > 0")
    check(clip_norm is None or clip_norm > 0, "clip_norm", clip_norm, "> 0 or None")
    update = optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask
    )
    if clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(clip_norm), update)
