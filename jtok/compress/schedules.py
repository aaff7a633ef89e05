"""How many tokens are left after every layer, counted on the host."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from jtok.compress.matching import removed
from jtok.errors import check

__all__ = ["linear_margins", "removal_schedule", "token_counts"]


def removal_schedule(
    num_layers: int, remove: int | Sequence[int] | tuple[int, float]
) -> tuple[int, ...]:
    """Tokens that leave in every layer, as ToMe's `r` says.

    Args:
      num_layers: layers, at least 1.
      remove: one number for all layers, a list for the first ones (0 for the others),
        or a tuple `(mean, inflection)` with an inflection in -1..1: the first layer
        removes `int(mean * (1 - inflection))`, the last one what makes that the mean,
        the others what lies between; -1 is the paper's decreasing schedule. A tuple
        whose second number is an integer beyond 1 is read like a list.

    Returns:
      One integer a layer.

    Raises:
      ArgumentError: no layer, negative numbers, more numbers than layers, or an
        inflection outside of -1..1.

    Source: `parse_r` of the code of Bolya et al. 2023, arXiv 2210.09461. Differs: one
      layer divides by nothing.

    Example:
      >>> removal_schedule(4, (8, -1.0))
      (16, 10, 5, 0)
    """
    check(num_layers >= 1, "num_layers", num_layers, "at least 1")
    if isinstance(remove, int | np.integer):
        check(remove >= 0, "remove", remove, "at least 0")
        return (int(remove),) * num_layers
    if inflected(remove):
        mean, inflection = remove
        check(mean >= 0, "remove", remove, "a mean of at least 0")
        check(-1.0 <= inflection <= 1.0, "remove", remove, "an inflection of -1 to 1")
        low = int(mean * (1.0 - inflection))
        step = (2 * mean - low - low) / max(num_layers - 1, 1)
        return tuple(int(low + step * layer) for layer in range(num_layers))
    each = [int(item) for item in remove]
    expected = f"at most {num_layers} integers of at least 0"
    check(
        len(each) <= num_layers and min(each, default=0) >= 0,
        "remove",
        remove,
        expected,
    )
    return (*each, *(0,) * (num_layers - len(each)))


def inflected(remove: Any) -> TypeGuard[tuple[int, float]]:
    """Whether numbers are `(mean, inflection)` rather than one for each layer."""
    if not isinstance(remove, tuple) or len(remove) != 2:
        return False
    floats = isinstance(remove[1], float | np.floating)
    return floats or -1 <= remove[1] <= 1


def token_counts(
    seq: int,
    *,
    keep: float | Sequence[float] | None = None,
    remove: Sequence[int] | None = None,
    num_layers: int | None = None,
    protect: int = 0,
) -> tuple[int, ...]:
    """Tokens that enter every layer, and those that leave the last one.

    Args:
      seq: tokens that enter the first layer, protected ones included.
      keep: share of the unprotected tokens that each layer keeps; one number wants
        `num_layers`. Or
      remove: tokens that leave in each layer; no layer loses more than half.
      num_layers: layers, where one `keep` is for all.
      protect: first tokens that always stay and do not count in shares.

    Returns:
      `layers + 1` integers.

    Raises:
      ArgumentError: none or both of `keep` and `remove`, a share outside of 0 to 1, or
        no `num_layers` for one share.

    Source: sections 3.2 and 3.5 of arXiv 2405.16148's code (`floor(n - n * keep)`).

    Example:
      >>> token_counts(197, keep=0.9, num_layers=3, protect=1)
      (197, 178, 161, 145)
    """
    one = (keep is None) != (remove is None)
    check(one, "keep, remove", (keep, remove), "exactly one of the two")
    if isinstance(keep, int | float):
        given = num_layers is not None and num_layers >= 1
        check(given, "num_layers", num_layers, "at least 1 beside one share")
        keep = [float(keep)] * int(num_layers or 0)
    counts = [seq]
    for step in keep if keep is not None else remove or ():
        free = counts[-1] - protect
        if keep is not None:
            check(0.0 <= step <= 1.0, "keep", step, "0 to 1")
            gone = removed(free, float(step))
        else:
            check(step >= 0, "remove", step, "at least 0")
            gone = min(int(step), free // 2)
        counts.append(counts[-1] - gone)
    return tuple(counts)


def linear_margins(
    num_layers: int, start: float, slope: float | None = None
) -> tuple[float, ...]:
    """PiToMe's margins: they fall linearly with depth.

    Args:
      num_layers: layers.
      start: margin of the first layer.
      slope: `start - slope * layer / num_layers` is a layer's; None takes `start`.

    Returns:
      One margin a layer.

    Raises:
      ArgumentError: no layer.

    Source: the code of Tran et al. 2024, arXiv 2405.16148, whose models take .75/.75
      (DeiT, MAE), .9/.9 (BLIP, LLaVA), .95/.95 (CLIP) or .9/.25 (BERT).

    Example:
      >>> linear_margins(4, 0.8)
      (0.8, 0.6, 0.4, 0.2)
    """
    check(num_layers >= 1, "num_layers", num_layers, "at least 1")
    slope = start if slope is None else slope
    margins = (start - slope * layer / num_layers for layer in range(num_layers))
    return tuple(round(margin, 12) for margin in margins)
