"""How many tokens are left after each layer of a language model, counted on the host.

Every method that drops tokens inside a language model says after which layers some
leave: all at once (FastV, VTW), in a few stages (PyramidDrop) or a little after every
layer (AIM). Here all of them are one `LayerSchedule`.
"""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import numpy as np

from jtok.errors import check

__all__ = [
    "LayerSchedule",
    "fastv_schedule",
    "kept_schedule",
    "pyramid_schedule",
    "ramp_schedule",
    "stage_schedule",
    "vtw_schedule",
]

Rounding = Literal["floor", "half_even"]


@dataclasses.dataclass(frozen=True)
class LayerSchedule:
    """Shares of the prunable tokens that are left after each layer.

    Attributes:
      rates: one number for each layer, 0 to 1, that never rises: of the tokens that
        entered the first layer, how many the layers after this one still see.
      rounding: of `rate * tokens`: "floor", or "half_even" for the nearest integer and
        the even one of two that are as near.

    Example:
      >>> ramp_schedule(6, 2, 4).kept(9)
      (9, 9, 4, 0, 0, 0)
    """

    rates: tuple[Fraction | float, ...]
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        known = ("floor", "half_even")
        check(self.rounding in known, "rounding", self.rounding, f"one of {known}")
        check(len(self.rates) >= 1, "rates", self.rates, "one for each layer")
        good = all(0 <= rate <= 1 for rate in self.rates)  # NaN fails, too
        check(good, "rates", self.rates, "shares of 0 to 1")
        pairs = zip(self.rates, self.rates[1:], strict=False)
        falls = all(one >= two for one, two in pairs)
        check(
            falls, "rates", self.rates, "shares that never rise: tokens do not return"
        )

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.rates)

    def kept(self, prunable: int) -> tuple[int, ...]:
        """Prunable tokens that are left after each layer.

        Args:
          prunable: those that enter the first one.

        Returns:
          One integer for each layer.

        Raises:
          ArgumentError: fewer than none.
        """
        check(prunable >= 0, "prunable", prunable, "0 or more tokens")
        one = np.array([prunable])
        return tuple(int(_share(rate, one, self.rounding)[0]) for rate in self.rates)

    def token_counts(self, prunable: int, protected: int) -> tuple[int, ...]:
        """Tokens that enter each layer, and those that leave the last one.

        `jtok.compress.flops` takes them. AIM's tables charge a layer for the tokens
        that leave it (`tokens="leaving"`), which is less than what is computed.

        Args:
          prunable: tokens that may leave, as they enter the first layer.
          protected: all other tokens.

        Returns:
          `layers + 1` integers.

        Raises:
          ArgumentError: fewer than no tokens.

        Example:
          >>> ramp_schedule(6, 2, 4).token_counts(9, 3)
          (12, 12, 12, 7, 3, 3, 3)
        """
        check(protected >= 0, "protected", protected, "0 or more tokens")
        kept = (prunable, *self.kept(prunable))
        return tuple(count + protected for count in kept)

    def table(self, most: int) -> np.ndarray:
        """`kept` of every count up to `most`, for counts that only the device knows.

        Args:
          most: the largest count.

        Returns:
          `[layers, most + 1]` int32.
        """
        counts = np.arange(most + 1)
        return np.stack([_share(rate, counts, self.rounding) for rate in self.rates])

    def drops(self, prunable: int) -> tuple[int, ...]:
        """Layers after which some of `prunable` tokens, or fewer, leave.

        Args:
          prunable: the largest count of any row.

        Returns:
          Ascending layers; behind the others nothing need be ranked.
        """
        table = np.concatenate([np.arange(prunable + 1)[None], self.table(prunable)])
        return tuple(int(i) for i in np.flatnonzero(np.diff(table, axis=0).any(1)))


def _share(
    rate: Fraction | float, counts: np.ndarray, rounding: Rounding
) -> np.ndarray:
    """`rate * counts` as int32: exact for fractions, else as float64 has it."""
    if isinstance(rate, Fraction) and rounding == "floor":
        return (counts * rate.numerator // rate.denominator).astype(np.int32)
    shares = counts * float(rate)
    whole = np.floor(shares) if rounding == "floor" else np.rint(shares)
    return whole.astype(np.int32)


def ramp_schedule(num_layers: int, first: int, last: int) -> LayerSchedule:
    """AIM: after layer `first` the first tokens leave, before layer `last` the last.

    Args:
      num_layers: layers of the model.
      first: l1, 0-based; `num_layers` or more prunes nothing.
      last: l2, above `first`; beyond the layers some tokens are never dropped.

    Returns:
      `LayerSchedule` of exact fractions `1 - (l - first + 1) / (last - first)`.

    Raises:
      ArgumentError: no layer, `first` below 0, or `last` not above `first`.

    Source: Zhong et al. 2024, arXiv 2412.03248, section 3.2: (14, 22) of 28 layers and
      (13, 21) of 32.

    Example:
      >>> [float(rate) for rate in ramp_schedule(5, 1, 3).rates]
      [1.0, 0.5, 0.0, 0.0, 0.0]
    """
    check(num_layers >= 1, "num_layers", num_layers, "at least 1")
    check(first >= 0, "first", first, "a layer, 0 or above")
    check(last > first, "last", last, f"above first, which is {first}")
    wide = last - first
    steps = (Fraction(layer - first + 1, wide) for layer in range(num_layers))
    return LayerSchedule(
        tuple(min(max(1 - s, Fraction(0)), Fraction(1)) for s in steps)
    )


def kept_schedule(
    num_layers: int, first: int, last: int, prunable: int, protected: int
) -> tuple[int, ...]:
    """AIM's K: tokens that every layer's ranking keeps, protected ones included.

    Args:
      num_layers: layers of the model.
      first: l1, see `ramp_schedule`.
      last: l2.
      prunable: V, tokens that may leave.
      protected: P, all others.

    Returns:
      `floor(V * rate + P)` after each layer, without errors of floating point.

    Raises:
      ArgumentError: as for `ramp_schedule`, or fewer than no tokens.

    Source: section 3.2 of arXiv 2412.03248. Differs: rates are exact fractions.

    Example:
      >>> kept_schedule(6, 2, 4, 9, 3)
      (12, 12, 7, 3, 3, 3)
    """
    check(protected >= 0, "protected", protected, "0 or more tokens")
    kept = ramp_schedule(num_layers, first, last).kept(prunable)
    return tuple(count + protected for count in kept)


def stage_schedule(
    num_layers: int,
    stages: Mapping[int, Fraction | float],
    *,
    rounding: Rounding = "floor",
) -> LayerSchedule:
    """From given layers on, given shares of the tokens.

    Args:
      num_layers: layers of the model.
      stages: layer (0-based, 1 or above) -> share of all prunable tokens that it and
        the later layers see.
      rounding: see `LayerSchedule`.

    Returns:
      `LayerSchedule`.

    Raises:
      ArgumentError: a layer that does not exist, or shares that rise or are none.

    Example:
      >>> stage_schedule(4, {1: 0.5, 3: 0.25}).kept(8)
      (4, 4, 2, 2)
    """
    check(num_layers >= 1, "num_layers", num_layers, "at least 1")
    good = all(1 <= layer < num_layers for layer in stages)
    check(good, "stages", dict(stages), f"layers of 1 to {num_layers - 1}")
    now: Fraction | float = Fraction(1)
    rates: list[Fraction | float] = []
    for layer in range(1, num_layers + 1):
        now = stages.get(layer, now)
        rates.append(now)
    return LayerSchedule(tuple(rates), rounding)


def fastv_schedule(num_layers: int, layer: int = 2, drop: float = 0.5) -> LayerSchedule:
    """FastV: layer `layer` and the later ones see a share of the tokens.

    Rank by `LastTokenScore`, the attention of the last token in the layer before.

    Args:
      num_layers: layers of the model.
      layer: K, the first layer of fewer tokens.
      drop: R, share that leaves, 0 to 1.

    Returns:
      `LayerSchedule` that rounds `tokens * (1 - drop)` half to even.

    Raises:
      ArgumentError: a layer that does not exist, or another share.

    Source: Chen et al. 2024, arXiv 2403.06764, as pkunlp-icler/FastV has it.

    Example:
      >>> fastv_schedule(4, 2, 0.5).kept(9)
      (9, 4, 4, 4)
    """
    check(0 <= drop <= 1, "drop", drop, "a share of 0 to 1")
    return stage_schedule(num_layers, {layer: 1 - drop}, rounding="half_even")


def vtw_schedule(num_layers: int, layer: int) -> LayerSchedule:
    """VTW: layer `layer` and the later ones see no prunable token at all.

    Args:
      num_layers: layers of the model.
      layer: K, the first layer without them.

    Returns:
      `LayerSchedule`.

    Raises:
      ArgumentError: a layer that does not exist.

    Source: Lin et al. 2024, arXiv 2405.05803 (visual tokens withdrawal).

    Example:
      >>> vtw_schedule(4, 3).kept(9)
      (9, 9, 0, 0)
    """
    return stage_schedule(num_layers, {layer: Fraction(0)})


def pyramid_schedule(
    num_layers: int, *, keep: float = 0.5, stages: int = 4
) -> LayerSchedule:
    """PyramidDrop: layers in stages of equal length, each with a share of the last.

    Rank by `LastTokenScore`.

    Args:
      num_layers: layers of the model.
      keep: share that one stage hands to the next, 0 to 1.
      stages: how many, at most one for each layer.

    Returns:
      `LayerSchedule`.

    Raises:
      ArgumentError: another share or number of stages.

    Source: Xing et al. 2024, arXiv 2410.17247.

    Example:
      >>> pyramid_schedule(8).kept(64)
      (64, 32, 32, 16, 16, 8, 8, 8)
    """
    check(1 <= stages <= num_layers, "stages", stages, f"1 to {num_layers}, the layers")
    check(0 <= keep <= 1, "keep", keep, "a share of 0 to 1")
    begins = {num_layers * i // stages: keep**i for i in range(1, stages)}
    return stage_schedule(num_layers, begins)
