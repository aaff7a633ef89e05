"""Which masked positions are revealed, how many at a time, and how a token is drawn.

Source: the samplers of Dream (arXiv 2508.15487) and LLaDA (arXiv 2502.09992), the
threshold rule of Fast-dLLM (arXiv 2505.22618), and adaptive parallel decoding (arXiv
2506.00413).
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, check, near
from jtok.ops.sampling import filter_logits

__all__ = [
    "ORDERS",
    "Pace",
    "adaptive_pace",
    "clip_conditional",
    "dream_pace",
    "even_pace",
    "fixed_pace",
    "nucleus",
    "perturbed_argmax",
    "position_scores",
    "reveal_counts",
    "threshold_pace",
]

ORDERS = ("entropy", "margin", "confidence", "plain_confidence", "random", "origin")


class Pace(NamedTuple):
    """How many tokens are revealed after each forward pass.

    Attributes:
      kind: "even", "dream", "fixed", "threshold" or "adaptive".
      steps: forward passes; None: as many as are needed.
      tokens: of a step ("fixed"), or at most ("adaptive").
      eps: where the grid of "dream" ends.
      bound: confidence above which a token is revealed ("threshold"), or the masked
        model's share of the mixture ("adaptive").
    """

    kind: Literal["even", "dream", "fixed", "threshold", "adaptive"]
    steps: int | None = None
    tokens: int = 1
    eps: float = 1e-3
    bound: float = 0.9


def even_pace(steps: int) -> Pace:
    """So many forward passes; numbers of tokens differ by at most 1, larger ones first.

    Counts are exact and each row's own. Spare steps reveal nothing.

    Args:
      steps: at least 1.

    Returns:
      `Pace`.

    Raises:
      ArgumentError: fewer.

    Source: `get_num_transfer_tokens` of LLaDA (arXiv 2502.09992).

    Example:
      >>> reveal_counts(7, even_pace(3)).tolist()
      [3, 2, 2]
    """
    check(steps >= 1, "steps", steps, "at least 1")
    return Pace("even", steps)


def dream_pace(steps: int, *, eps: float = 1e-3) -> Pace:
    """Dream's own counts: shares of what is masked along a grid of times, rounded down.

    With as many steps as masks the first reveals nothing and the last one two tokens at
    once: for "one at a time" take `even_pace` or `fixed_pace`.

    Args:
      steps: at least 1.
      eps: where the grid ends, in (0, 1).

    Returns:
      `Pace`.

    Raises:
      ArgumentError: a number out of its range.

    Source: the sampler of Dream (arXiv 2508.15487), bit by bit. Differs: every row has
    its own counts, there all have those of the mean row (`compat="official"`).

    Example:
      >>> reveal_counts(7, dream_pace(7)).tolist()
      [0, 1, 1, 1, 1, 1, 2]
    """
    check(steps >= 1, "steps", steps, "at least 1")
    check(0 < eps < 1, "eps", eps, "a number in (0, 1)")
    return Pace("dream", steps, eps=eps)


def fixed_pace(count: int) -> Pace:
    """So many tokens after every forward pass, fewer where no more are masked.

    Args:
      count: at least 1.

    Returns:
      `Pace`.

    Raises:
      ArgumentError: fewer.

    Source: arXiv 2509.22738, its K.

    Example:
      >>> reveal_counts(7, fixed_pace(3)).tolist()
      [3, 3, 1]
    """
    check(count >= 1, "count", count, "at least 1")
    return Pace("fixed", tokens=count)


def threshold_pace(bound: float = 0.9) -> Pace:
    """All tokens that are more probable than a bound, and always the best one.

    Args:
      bound: in [0, 1].

    Returns:
      `Pace`, for the orders by confidence.

    Raises:
      ArgumentError: a bound out of its range.

    Source: Wu et al. 2025, arXiv 2505.22618, section 3.

    Example:
      >>> threshold_pace(0.9).kind
      'threshold'
    """
    check(0 <= bound <= 1, "bound", bound, "a number in [0, 1]")
    return Pace("threshold", bound=bound)


def adaptive_pace(most: int, *, mixture: float = 0.5) -> Pace:
    """From left to right, as many tokens as a causal model agrees with.

    All masks are drawn from the marginals, and with the same noise from a mixture of
    their logits and those of a causal model that reads these draws. The first mask and
    those after it up to the first one where the two draws differ are revealed.

    Args:
      most: tokens of a forward at most, at least 1.
      mixture: the masked model's share of the mixture, in [0, 1].

    Returns:
      `Pace`, for `sample_masked(..., causal=)`.

    Raises:
      ArgumentError: a number out of its range.

    Source: Israel et al. 2025, arXiv 2506.00413, as the code of arXiv 2509.22738 has
    it. Differs: `most` bounds every run, there only those that agree to the end.

    Example:
      >>> adaptive_pace(8).bound
      0.5
    """
    check(most >= 1, "most", most, "at least 1")
    check(0 <= mixture <= 1, "mixture", mixture, "a number in [0, 1]")
    return Pace("adaptive", tokens=most, bound=mixture)


@functools.lru_cache(maxsize=64)
def grid_shares(steps: int, eps: float) -> np.ndarray:
    """`[steps]` float32 share of the masks that each step of Dream's grid reveals."""
    one, last = np.float32(1.0), np.float32(eps)
    width = (last - one) / np.float32(steps)
    index = np.arange(steps + 1)
    # As PyTorch computes it: each half from its own end.
    near_start = one + width * index.astype(np.float32)
    near_end = last - width * (steps - index).astype(np.float32)
    times = np.where(index < (steps + 1) // 2, near_start, near_end)
    times = times.astype(np.float32)
    return (one - times[1:] / times[:-1]).astype(np.float32)


def reveal_counts(num_masked: int, pace: Pace) -> Int[np.ndarray, " steps"]:
    """How many tokens each step reveals of a row of which so many are masked.

    Args:
      num_masked: at least 0.
      pace: not by a threshold nor adaptive, which depend on the model.

    Returns:
      `[steps]` int32 with the sum `num_masked`.

    Raises:
      ArgumentError: a negative number, or a pace that depends on the model.

    Source: the samplers of arXiv 2502.09992 and 2508.15487.

    Example:
      >>> reveal_counts(5, even_pace(8)).tolist()
      [1, 1, 1, 1, 1, 0, 0, 0]
    """
    check(num_masked >= 0, "num_masked", num_masked, "at least 0")
    known = pace.kind not in ("threshold", "adaptive")
    check(known, "pace", pace.kind, "a pace of fixed counts")
    if pace.kind == "fixed":
        steps = -(-num_masked // pace.tokens)
        rest = num_masked - pace.tokens * np.arange(steps)
        return np.minimum(rest, pace.tokens).astype(np.int32)
    steps = pace.steps or 1
    if pace.kind == "even":
        extra = np.arange(steps) < num_masked % steps
        return (num_masked // steps + extra).astype(np.int32)
    counts = []
    for index, share in enumerate(grid_shares(steps, pace.eps)):
        last = index == steps - 1
        count = num_masked if last else int(np.float32(num_masked) * share)
        counts.append(count)
        num_masked -= count
    return np.asarray(counts, np.int32)


def nucleus(
    logits: Float[Array, "*rows vocab"],
    *,
    top_p: float | Float[Array, ""] | None = None,
    top_k: int | None = None,
    keep_ties: bool = False,
) -> Float[Array, "*rows vocab"]:
    """Sets what top-p, and then top-k, exclude to -inf, as masked models do.

    Top-p drops a token where those above it have more than `top_p` together. Ties at
    the border go to the lower id.

    Args:
      logits: `[..., vocab]` float32, divided by the temperature.
      top_p: in (0, 1], None for all.
      top_k: tokens to keep, None for all (static).
      keep_ties: top-k keeps all that tie with the last one, as Dream's does.

    Returns:
      `[..., vocab]` float32.

    Raises:
      ArgumentError: `top_k` below 1.

    Source: the sampler of Dream (arXiv 2508.15487).

    Example:
      >>> nucleus(jnp.array([0.0, 2.0, 1.0]), top_k=2).tolist()
      [-inf, 2.0, 1.0]
    """
    check(top_k is None or top_k >= 1, "top_k", top_k, "None or at least 1")
    if top_p is not None:
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        total = jnp.cumsum(probs, axis=-1)
        before = jnp.concatenate([jnp.zeros_like(total[..., :1]), total[..., :-1]], -1)
        kept = (before <= top_p).at[..., 0].set(True)
        kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(kept, logits, -jnp.inf)
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    if keep_ties:
        last = jax.lax.top_k(logits, top_k)[0][..., -1:]
        return jnp.where(logits < last, -jnp.inf, logits)
    return filter_logits(logits, top_k=top_k)


def perturbed_argmax(
    logits: Float[Array, "*rows vocab"],
    uniforms: Float[Array, "*rows vocab"],
    temperature: float,
) -> Int[Array, "*rows"]:
    """A draw from softmax(logits / temperature), as an arg-max of noised logits.

    It is the arg-max of exp(logits) / (-log u)^temperature, computed by its logarithm,
    which float32 holds where the quotient would need float64.

    Args:
      logits: `[..., vocab]` float32.
      uniforms: `[..., vocab]` in (0, 1).
      temperature: >= 0; 0 takes the arg-max.

    Returns:
      `[...]` int32, ties to the lower id.

    Raises:
      ArgumentError: a negative temperature.

    Source: `add_gumbel_noise` of LLaDA (arXiv 2502.09992). Differs: in logarithms.

    Example:
      >>> perturbed_argmax(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.5]), 1.0).tolist()
      1
    """
    check(temperature >= 0, "temperature", temperature, "a number >= 0")
    noise = -jnp.log(-jnp.log(uniforms))
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


def clip_conditional(
    log_probs: Float[Array, "*rows vocab"],
    marginal: Float[Array, "*rows vocab"],
    path: Float[Array, "*rows"],
) -> Float[Array, "*rows vocab"]:
    """A law given what was drawn, held within what the marginals allow.

    Where the tokens so far had the chance s and a token has the chance p, its chance
    given them lies in [(p - 1 + s) / s, p / s], whatever the joint law. A law of which
    nothing lies there becomes the marginal one.

    Args:
      log_probs: `[..., vocab]` float32 the law to hold.
      marginal: `[..., vocab]` float32 log-probabilities before anything was drawn.
      path: `[...]` float32 log of the chance of the tokens so far.

    Returns:
      `[..., vocab]` float32 log-probabilities, normalised.

    Source: `clipped_probs` in the code of arXiv 2509.22738, experimental there: s is
    the product of the marginals.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> sure = jnp.log(jnp.array([0.75, 0.25]))
      >>> jnp.exp(clip_conditional(sure, half, jnp.float32(0.0))).tolist()
      [0.5, 0.5]
    """
    chance, before = jnp.exp(marginal), jnp.exp(path)[..., None]
    least = jnp.maximum((chance - 1.0 + before) / before, 0.0)
    held = jnp.clip(jnp.exp(log_probs), least, chance / before)
    total = jnp.sum(held, axis=-1, keepdims=True)
    held = jnp.where(total > 0, held / jnp.where(total > 0, total, 1.0), chance)
    return jnp.where(held > 0, jnp.log(jnp.where(held > 0, held, 1.0)), -jnp.inf)


def position_scores(
    logits: Float[Array, "*rows vocab"], order: str, *, choice: Any = None
) -> Float[Array, "*rows"]:
    """How sure a model is of a position, from its (filtered) logits; higher goes first.

    "entropy" is the negative entropy in nats, "margin" the two best probabilities'
    difference, "confidence" the probability of what was drawn. The orders "random" and
    "origin" do not ask the model.

    Args:
      logits: `[..., vocab]` float32, what is excluded at -inf.
      order: "entropy", "margin", "confidence" or "plain_confidence".
      choice: `[...]` int32 drawn ids, for confidence; None takes the best ones.

    Returns:
      `[...]` float32.

    Raises:
      ArgumentError: an unknown order, or one that does not ask the model.

    Source: `sample_tokens` of Dream (arXiv 2508.15487). Differs: no 1e-10 in the
    logarithm.

    Example:
      >>> position_scores(jnp.zeros(4), "margin").tolist()
      0.0
    """
    check_order(order)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    probs = jnp.exp(log_probs)
    if order == "entropy":
        return jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0), axis=-1)
    if order == "margin":
        best = jax.lax.top_k(probs, 2)[0]
        return best[..., 0] - best[..., 1]
    good = order not in ("random", "origin")
    check(good, "order", order, "one that asks the model")
    if choice is None:
        return jnp.max(probs, axis=-1)
    return jnp.take_along_axis(probs, choice[..., None], axis=-1)[..., 0]


def check_order(order: Any) -> None:
    """Refuses an order that does not exist."""
    if order not in ORDERS:
        raise ArgumentError(f"order: got {order!r}{near(str(order), ORDERS)}")


def best_positions(
    scores: Float[Array, "batch seq"],
    masked: Bool[Array, "batch seq"],
    count: Int[Array, " batch"],
    width: int,
    *,
    guarded: bool = True,
) -> tuple[Int[Array, "batch width"], Bool[Array, "batch width"]]:
    """Indices of the best masked positions, ties to the lower one, and which count.

    Unguarded, a row with fewer masks than `count` also takes positions that are not.
    """
    scores = jnp.where(masked, scores, -jnp.inf)
    _, index = jax.lax.top_k(scores, width)
    taken = jnp.arange(width)[None] < count[:, None]
    if guarded:
        taken = taken & jnp.take_along_axis(masked, index, axis=1)
    return index.astype(jnp.int32), taken
