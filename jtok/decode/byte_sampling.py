"""Drawing bytes: temperature and nucleus on probabilities, and the loop that draws."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jtok.errors import ArgumentError, NoCoverError, check

__all__ = ["END_OF_TEXT", "draw_bytes", "nucleus", "scale_temperature"]

END_OF_TEXT = 256  # the symbol after the bytes

_FLOOR = 1e-7
_GREEDY_BELOW = 0.1


def scale_temperature(
    probs: Float[np.ndarray, "*batch symbols"], temperature: float
) -> Float[np.ndarray, "*batch symbols"]:
    """Probabilities at a temperature, `(p + 1e-7) ** (1 / T)` over their sum.

    Below 0.1 all mass goes to the most probable symbol, the lowest of equals. The floor
    gives impossible symbols some mass at high temperatures; `draw_bytes` takes it away.

    Args:
      probs: `[..., symbols]` probabilities.
      temperature: above 0.

    Returns:
      `[..., symbols]` probabilities.

    Raises:
      ArgumentError: `temperature` is not a finite number above 0.

    Source: Phan et al. 2025, arXiv 2410.09303, released code.

    Example:
      >>> scale_temperature(np.array([0.2, 0.8]), 0.5).round(3).tolist()
      [0.059, 0.941]
    """
    good = np.isfinite(temperature) and temperature > 0
    check(good, "temperature", temperature, "a finite number above 0")
    if temperature < _GREEDY_BELOW:
        best = np.argmax(probs, axis=-1)[..., None]
        return (np.arange(probs.shape[-1]) == best).astype(probs.dtype)
    logs = np.log(probs.astype(np.float64) + _FLOOR) / temperature
    scaled = np.exp(logs - logs.max(-1, keepdims=True))
    return (scaled / scaled.sum(-1, keepdims=True)).astype(probs.dtype)


def nucleus(
    probs: Float[np.ndarray, "*batch symbols"], top_p: float
) -> Float[np.ndarray, "*batch symbols"]:
    """The most probable symbols, normalised: those before which at most `top_p` stand.

    Args:
      probs: `[..., symbols]` probabilities.
      top_p: in (0, 1]. One symbol always stays; equals go by their place, the lowest
        first.

    Returns:
      `[..., symbols]` probabilities, 0 for the others.

    Raises:
      ArgumentError: `top_p` is out of range.

    Source: Phan et al. 2025, arXiv 2410.09303, released code.

    Example:
      >>> nucleus(np.array([0.25, 0.5, 0.25]), 0.4).tolist()
      [0.0, 1.0, 0.0]
    """
    check(0 < top_p <= 1, "top_p", top_p, "a number in (0, 1]")
    order = np.argsort(-probs, axis=-1, kind="stable")
    sorted_ = np.take_along_axis(probs, order, axis=-1)
    before = np.cumsum(sorted_, axis=-1) - sorted_
    kept = np.where(before <= top_p, sorted_, 0)
    out = np.zeros_like(probs)
    np.put_along_axis(out, order, kept / kept.sum(-1, keepdims=True), axis=-1)
    return out


Allowed = Bool[np.ndarray, " symbols"] | Callable[[bytes], Any] | None


def draw_bytes(
    state: Any,
    distribution: Callable[[Any], np.ndarray],
    push: Callable[[Any, Sequence[int]], Any],
    *,
    rows: int,
    max_bytes: int,
    temperature: float,
    top_p: float,
    seed: int,
    allowed: Allowed,
) -> list[bytes]:
    """Draws bytes for every row until its text ends.

    Args:
      state: of the prompts.
      distribution: `state -> [rows, 257]` log-probabilities.
      push: `(state, bytes) -> state`.
      rows: number of prompts.
      max_bytes: most bytes of a row.
      temperature: as for `scale_temperature`.
      top_p: as for `nucleus`.
      seed: row `i` draws from `(seed, i)`.
      allowed: `[257]` bool symbols that may come, or a function that gives it from the
        bytes drawn so far; None for all.

    Returns:
      The bytes of each row, without the prompt.

    Raises:
      ArgumentError: a number out of range.
      NoCoverError: no allowed symbol has mass.
    """
    check(max_bytes >= 0, "max_bytes", max_bytes, "at least 0")
    scale_temperature(np.ones(1), temperature)  # refuse before the first call
    nucleus(np.ones(1), top_p)
    generators = [np.random.default_rng([seed, row]) for row in range(rows)]
    texts = [b""] * rows
    live = [True] * rows
    for _ in range(max_bytes):
        probs = np.exp(distribution(state).astype(np.float64))
        chosen = []
        for row, generator in enumerate(generators):
            mask = allowed(texts[row]) if callable(allowed) else allowed
            symbol = _draw(probs[row], mask, temperature, top_p, generator)
            live[row] &= symbol != END_OF_TEXT
            # A row that is done goes on somewhere, unseen, so that shapes stay.
            chosen.append(symbol if live[row] else int(np.argmax(probs[row, :256])))
            texts[row] += bytes([symbol]) if live[row] else b""
        if not any(live):
            break
        state = push(state, chosen)
    return texts


def _draw(
    probs: np.ndarray, mask: Any, temperature: float, top_p: float, generator: Any
) -> int:
    probs = masked(probs, mask)
    scaled = np.where(probs > 0, scale_temperature(probs, temperature), 0)
    kept = nucleus(scaled / scaled.sum(), top_p)
    return int(
        np.searchsorted(np.cumsum(kept), generator.random() * kept.sum(), "right")
    )


def masked(probs: np.ndarray, mask: Any) -> np.ndarray:
    """Probabilities of the allowed symbols, normalised.

    Raises:
      ArgumentError: a mask of another shape.
      NoCoverError: none of them has mass.
    """
    if mask is not None:
        mask = np.asarray(mask)
        good = mask.shape == probs.shape[-1:] and mask.dtype == bool
        if not good:
            raise ArgumentError(
                f"allowed: got shape {mask.shape} and dtype {mask.dtype}, expected "
                f"{probs.shape[-1]} bools: 256 bytes and the end of the text."
            )
        probs = np.where(mask, probs, 0.0)
    total = probs.sum(-1, keepdims=True)
    if not (total > 0).all():
        raise NoCoverError(
            "allowed: no valid cover, every symbol that may come has no mass; expected "
            "text and masks that this tokenizer can follow."
        )
    return probs / total
