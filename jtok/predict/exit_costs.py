"""What leaving at each exit costs, and the thresholds that pay best.

Decoding a token reads weights: a draft costs the layers it runs and the unembeddings
it looks at, relative to what a call of the target reads. From a recorded trace of how
sure and how right every exit is, thresholds can be chosen without another run.

Source: Kavehzadeh et al. 2024, arXiv 2407.01955, sections 3.2 and 4 (thresholds by
hand). Differs: they are chosen from a trace, by the speed-up that it predicts.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jtok.errors import check
from jtok.models import Model, split_layers
from jtok.predict.sorted import check_exits, check_thresholds

__all__ = [
    "Calibrated",
    "calibrate_thresholds",
    "exit_costs",
    "exit_layers",
    "expected_speed",
    "modelled_speed",
]


class Calibrated(NamedTuple):
    """Thresholds that a trace recommends.

    Attributes:
      thresholds: one for each exit, 0 for the last.
      speed: the speed-up over plain decoding that the trace predicts.
      tried: every combination with its predicted speed-up, best first.
    """

    thresholds: tuple[float, ...]
    speed: int | float
    tried: tuple[tuple[tuple[float, ...], float], ...]


def exit_costs(
    draft: Model, exits: Sequence[int], target: Model, *, rows: int | None = None
) -> Float[np.ndarray, " exits"]:
    """Weights that a draft token reads if it leaves at each exit, per target call.

    A token that leaves at the third exit has run all layers up to there, and was
    tested at three exits.

    Args:
      draft: the draft model; may be abstract (`jtok.models.abstract`).
      exits: layers of each exit, increasing.
      target: the target model; may be abstract.
      rows: rows of the unembedding that a test reads; None reads all of them, and so
        gives the token, too. With fewer, all are read once more where it leaves.

    Returns:
      `[exits]` float64 share of a target call.

    Raises:
      ArgumentError: exits that do not fit, or a negative number of rows.

    Source: arXiv 2407.01955, section 4. Differs: the estimate itself.

    Example:
      >>> from jtok.testing import tiny_model
      >>> costs = exit_costs(tiny_model(), (1, 2), tiny_model())
      >>> bool(costs[0] < 1 < costs[1])
      True
    """
    exits = check_exits(exits, draft.config.num_layers)
    check(rows is None or rows >= 0, "rows", rows, "None or at least 0")
    layers = [_size(layer) for layer in _split(draft)]
    head, whole = _head(draft), _head(target)
    total = sum(map(_size, _split(target))) + whole
    costs = []
    for index, last in enumerate(exits):
        read = sum(layers[:last])
        if rows is None:
            read += (index + 1) * head
        else:  # the last exit needs no test
            tests = min(index + 1, len(exits) - 1)
            read += tests * rows * draft.config.width + head
        costs.append(read / total)
    return np.asarray(costs, np.float64)


def _split(model: Model) -> tuple[object, ...]:
    if isinstance(model.params["layers"], tuple):
        return model.params["layers"]
    return jax.eval_shape(split_layers, model.params)["layers"]


def _size(tree: object) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _head(model: Model) -> int:
    params = model.params  # may be shapes alone
    if "unembed" in params:
        return _size(params["unembed"])
    return _size(params["embed"]["tokens"])


def exit_layers(exits: Sequence[int], counts: Sequence[int] | np.ndarray) -> float:
    """Mean layers that draft tokens ran.

    Args:
      exits: layers of each exit.
      counts: `[exits]` how many tokens left at each.

    Returns:
      Layers a token; 0 where there is none.

    Raises:
      ArgumentError: another number of counts.

    Example:
      >>> exit_layers((2, 4), (3, 1))
      2.5
    """
    found = np.asarray(counts, np.float64)
    good = found.shape == (len(exits),)
    check(good, "counts", f"shape {found.shape}", f"[{len(exits)}], one an exit")
    return float(found @ np.asarray(exits, np.float64) / max(found.sum(), 1))


def modelled_speed(
    tokens_per_call: int | float, drafts_per_call: int | float, draft_cost: int | float
) -> float:
    """The speed-up over plain decoding, where reading weights is all that counts.

    Args:
      tokens_per_call: that a target call emits, drafts and its own.
      drafts_per_call: draft tokens that were made for it.
      draft_cost: of one, in target calls.

    Returns:
      Tokens for what a plain call costs; 1 is plain decoding.

    Raises:
      ArgumentError: a negative number.

    Example:
      >>> modelled_speed(3.0, 5.0, 0.1)
      2.0
    """
    for name, value in (
        ("tokens_per_call", tokens_per_call),
        ("drafts_per_call", drafts_per_call),
        ("draft_cost", draft_cost),
    ):
        check(value >= 0, name, value, "at least 0")
    return tokens_per_call / (1.0 + drafts_per_call * draft_cost)


def expected_speed(
    confidence: Float[np.ndarray, "exits batch seq"],
    correct: Bool[np.ndarray, "exits batch seq"],
    thresholds: Sequence[float | int],
    costs: Sequence[float | int] | np.ndarray,
    *,
    length: int = 5,
) -> float:
    """The speed-up of chains of drafts that a trace predicts for some thresholds.

    From every position of the trace a chain starts; its drafts are kept up to the
    first that is wrong. The trace stands for what the target emits, so the part that
    is kept is what a run would keep.

    Args:
      confidence: `[exits, batch, seq]` of every exit, from `read_exits` on tokens
        that the target emitted.
      correct: `[exits, batch, seq]` whether the exit's token is the target's.
      thresholds: one for each exit.
      costs: `[exits]` of a draft token in target calls, from `exit_costs`.
      length: drafts of a chain.

    Returns:
      Tokens for what a plain call costs.

    Raises:
      ArgumentError: shapes or numbers that do not fit, or a trace shorter than a chain.

    Example:
      >>> sure, right = np.ones((1, 1, 4)), np.ones((1, 1, 4), bool)
      >>> expected_speed(sure, right, (0.0,), (0.5,), length=2)
      1.5
    """
    exits, _, seq = confidence.shape
    bounds = check_thresholds(thresholds, exits)
    check(len(costs) == exits, "costs", len(costs), f"{exits}, one an exit")
    check(1 <= length <= seq, "length", length, f"1 to {seq}, the trace's")
    taken = confidence > np.asarray(bounds)[:, None, None]
    taken[-1] = True
    chosen = np.argmax(taken, axis=0)
    right = np.take_along_axis(correct, chosen[None], axis=0)[0]
    windows = np.lib.stride_tricks.sliding_window_view(right, length, axis=1)
    kept = np.cumprod(windows, axis=-1).sum(axis=-1).mean()
    cost = np.asarray(costs, np.float64)[chosen].mean()
    return modelled_speed(1.0 + float(kept), length, float(cost))


def calibrate_thresholds(
    confidence: Float[np.ndarray, "exits batch seq"],
    correct: Bool[np.ndarray, "exits batch seq"],
    costs: Sequence[float | int] | np.ndarray,
    *,
    length: int = 5,
    grid: Sequence[float | int] = (
        0.0,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        2.0,
    ),
) -> Calibrated:
    """Chooses the thresholds with the best predicted speed-up.

    All combinations of the grid are tried; where two are equally fast, the one that
    comes first in the grid wins. A grid with 0 and with a number above 1 includes every
    fixed exit, so on its own trace the result is never slower than the best of those.

    Args:
      confidence: `[exits, batch, seq]`, see `expected_speed`.
      correct: `[exits, batch, seq]` bool.
      costs: `[exits]` of a draft token in target calls.
      length: drafts of a chain.
      grid: thresholds to try at every exit but the last.

    Returns:
      `Calibrated`.

    Raises:
      ArgumentError: an empty grid, or see `expected_speed`.

    Example:
      >>> sure = np.array([[[0.9, 0.2]], [[0.5, 0.5]]])
      >>> right = np.array([[[True, False]], [[True, True]]])
      >>> best = calibrate_thresholds(sure, right, (0.1, 0.4), length=1, grid=(0, 0.5))
      >>> best.thresholds
      (0.5, 0.0)
    """
    check(len(grid) > 0, "grid", tuple(grid), "at least one threshold")
    tried = []
    for bounds in itertools.product(grid, repeat=confidence.shape[0] - 1):
        whole = (*map(float, bounds), 0.0)
        speed = expected_speed(confidence, correct, whole, costs, length=length)
        tried.append((whole, speed))
    tried.sort(key=lambda pair: -pair[1])
    return Calibrated(*tried[0], tuple(tried))
