"""How probable a masked-diffusion model finds a text: bounds, and tiny models exactly.

Source: Nie et al. 2025, arXiv 2502.09992, equation 6 and its code.
"""

import functools
import importlib
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UnsupportedImplementationError, check
from jtok.models import Model
from jtok.ops import cross_entropy
from jtok.predict.denoiser import Denoiser, denoiser_of
from jtok.predict.masked_losses import masked_token_losses
from jtok.predict.masking import mask_exactly, stratified_counts
from jtok.predict.reveal import position_scores
from jtok.predict.unmask import look, view_logits

__all__ = [
    "exact_bound",
    "exact_joint",
    "joint_divergence",
    "log_likelihood",
    "mauve_score",
]

PyTree = Any


def log_likelihood(
    model: Model | Denoiser,
    tokens: Int[Array, "batch seq"],
    maskable: Bool[Array, "batch seq"],
    key: Array,
    *,
    draws: int = 128,
    chunk: int = 32,
    guidance: float = 0.0,
    valid: Bool[Array, "batch seq"] | None = None,
    params: PyTree = None,
) -> Float[Array, " batch"]:
    """Estimates a lower bound of the log-probability of some tokens given the others.

    Every draw masks a number k of the L maskable tokens (k uniform, spread evenly over
    the draws) and counts their log-probabilities L / k times.

    Args:
      model: a `Model` or a `Denoiser`.
      tokens: `[batch, seq]` int32.
      maskable: `[batch, seq]` bool: whose probability is asked for; at least one a row.
      key: typed key, consumed.
      draws: of each row; one is exact where one token is asked for.
      chunk: draws at a time.
      guidance: scale of guidance, see `sample_masked`.
      valid: `[batch, seq]` bool, False for padding; None where there is none.
      params: of a `Denoiser`.

    Returns:
      `[batch]` float32 nats.

    Raises:
      ArgumentError: `draws` or `chunk` below 1, or `guidance` below 0.

    Source: `get_log_likelihood` of arXiv 2502.09992's code.

    Example:
      >>> from jtok.testing import tiny_model
      >>> row, one = jnp.array([[5, 6, 7]]), jnp.array([[False, True, False]])
      >>> log_likelihood(tiny_model(family="llada"), row, one, jax.random.key(0),
      ...                draws=1).shape
      (1,)
    """
    check(draws >= 1, "draws", draws, "at least 1")
    check(chunk >= 1, "chunk", chunk, "at least 1")
    check(guidance >= 0, "guidance", guidance, "a number >= 0")
    made, values = denoiser_of(model, params)
    size = min(chunk, draws)
    run = _compiled(made, draws, size, guidance != 0)
    return run(values, tokens, maskable, valid, key, jnp.float32(guidance))


@functools.lru_cache(maxsize=32)
def _compiled(model: Denoiser, draws: int, size: int, guided: bool) -> Any:
    count = -(-draws // size)

    def losses(
        params: PyTree, noisy: Array, row: Any, masked: Array, scale: Any
    ) -> Any:
        tokens, maskable, valid = row
        mask = None if valid is None else jnp.broadcast_to(valid, noisy.shape)
        given = jnp.broadcast_to(~maskable, noisy.shape)
        how = {"given": given, "guidance": scale} if guided else {}
        view = look(model, params, noisy, mask, **how)
        labels = jnp.broadcast_to(tokens, noisy.shape)
        return cross_entropy(*view[:2], labels, mask=masked, bias=view.bias)

    def one(params: PyTree, scale: Any, row: Any, key: Array) -> Array:
        tokens, maskable, _ = row
        total = jnp.sum(maskable)
        keys = jax.random.split(key, count + 1)
        numbers = stratified_counts(keys[0], draws, total)
        # A last chunk that is not full repeats draws, which then weigh nothing.
        padded = jnp.resize(numbers, (count, size))
        real = (jnp.arange(count * size) < draws).reshape(count, size)

        def some(item: tuple[Array, Array, Array]) -> Array:
            key, numbers, real = item
            shape = (size, tokens.shape[0])
            every = jnp.broadcast_to(tokens, shape), jnp.broadcast_to(maskable, shape)
            made = mask_exactly(key, *every, numbers, mask_id=model.mask_id)
            found = losses(params, made.tokens, row, made.masked, scale)
            return jnp.sum(jnp.where(real, jnp.sum(found, 1) / made.rate, 0.0))

        sums = jax.lax.map(some, (keys[1:], padded, real))
        return -jnp.sum(sums) / draws

    def run(
        params: PyTree, tokens: Array, maskable: Array, valid: Any, key: Array,
        scale: Array,
    ) -> Array:  # fmt: skip
        keys = jax.random.split(key, tokens.shape[0])
        body = lambda item: one(params, scale, item[0], item[1])
        return jax.lax.map(body, ((tokens, maskable, valid), keys))

    return jax.jit(run)


def exact_bound(
    model: Model | Denoiser,
    tokens: Int[np.ndarray, " seq"] | Int[Array, " seq"],
    maskable: Bool[np.ndarray, " seq"] | Bool[Array, " seq"],
    *,
    params: PyTree = None,
) -> float:
    """What `log_likelihood` estimates, from all sets of masks: for a few tokens.

    Args:
      model: a `Model` or a `Denoiser`.
      tokens: `[seq]` int32, a single example.
      maskable: `[seq]` bool, up to 12 of them.
      params: of a `Denoiser`.

    Returns:
      Nats: the mean over all orders of the log-probability of revealing the tokens in
      that order.

    Raises:
      ArgumentError: none or too many are maskable.

    Source: arXiv 2502.09992, equation 6, in full.

    Example:
      >>> from jtok.testing import tiny_model
      >>> row, two = np.array([5, 6, 7]), np.array([False, True, True])
      >>> exact_bound(tiny_model(family="llada"), row, two) < 0
      True
    """
    made, values = denoiser_of(model, params)
    places = np.flatnonzero(np.asarray(maskable))
    check(1 <= len(places) <= 12, "maskable", f"{len(places)} tokens", "1 to 12 tokens")
    masks, weights = [], []
    for size in range(1, len(places) + 1):
        sets = list(itertools.combinations(places, size))
        for some in sets:
            masks.append(np.isin(np.arange(len(tokens)), some))
            weights.append(1.0 / (len(sets) * size))
    masked = np.stack(masks)
    rows = np.broadcast_to(np.asarray(tokens, np.int32), masked.shape)
    noisy = np.where(masked, made.mask_id, rows).astype(np.int32)
    run = jax.jit(functools.partial(masked_token_losses, made))
    losses = run(values, jnp.asarray(noisy), jnp.asarray(rows), jnp.asarray(masked))
    return -float(np.asarray(losses).sum(axis=1) @ np.asarray(weights))


def exact_joint(
    model: Model | Denoiser,
    tokens: Int[np.ndarray, " seq"] | Int[Array, " seq"],
    *,
    order: str = "entropy",
    temperature: float = 1.0,
    forbid: Sequence[int] = (),
    params: PyTree = None,
) -> tuple[Int[np.ndarray, "fills seq"], Float[np.ndarray, " fills"]]:
    """The law of one-at-a-time sampling, by enumeration: for tiny models.

    Args:
      model: a `Model` or a `Denoiser`.
      tokens: `[seq]` int32 with MASK, a single example.
      order: "entropy", "margin" or "random".
      temperature: above 0.
      forbid: ids that are never written; MASK never is.
      params: of a `Denoiser`.

    Returns:
      `[fills, seq]` int32, each fill once, and its probability, float64.

    Raises:
      ArgumentError: another order, no mask, over a million fills.

    Source: arXiv 2509.22738, section 2: the law that K = 1 samples.

    Example:
      >>> from jtok.testing import tiny_model
      >>> fills, probs = exact_joint(tiny_model(family="llada"), np.array([5, 95]))
      >>> len(fills), round(float(probs.sum()), 5)
      (95, 1.0)
    """
    known = ("entropy", "margin", "random")
    check(order in known, "order", order, f"one of {known}")
    check(temperature > 0, "temperature", temperature, "a number above 0")
    made, values = denoiser_of(model, params)
    banned = np.unique([made.mask_id, *forbid])
    count = int((np.asarray(tokens) == made.mask_id).sum())
    good = count >= 1 and (made.vocab_size - len(banned)) ** count <= 10**6
    check(good, "tokens", f"{count} masks", "at least one, and at most a million fills")

    @jax.jit
    def see(states: Array) -> tuple[Array, Array]:
        logits = view_logits(look(made, values, states, None)) / temperature
        logits = logits.at[..., banned].set(-jnp.inf)
        scores = jnp.zeros(states.shape)
        if order != "random":
            scores = position_scores(logits, order)
        return jax.nn.softmax(logits, axis=-1), scores

    states: Any = np.asarray(tokens, np.int32)[None]
    probs: Any = np.ones(1)
    for _ in range(count):
        law, scores = (np.asarray(x, np.float64) for x in see(jnp.asarray(states)))
        masked = states == made.mask_id
        share = masked / masked.sum(axis=1, keepdims=True)
        if order != "random":
            best = np.where(masked, scores, -np.inf).argmax(axis=1)
            share = np.eye(states.shape[1])[best]
        parts = []
        for row, place in zip(*np.nonzero(share), strict=True):
            for token in np.flatnonzero(law[row, place] > 0):
                state = states[row].copy()
                state[place] = token
                chance = probs[row] * share[row, place] * law[row, place, token]
                parts.append((state, chance))
        grown = np.stack([state for state, _ in parts])
        states, where = np.unique(grown, axis=0, return_inverse=True)
        chances = np.asarray([chance for _, chance in parts])
        probs = np.bincount(where.reshape(-1), chances, minlength=len(states))
    return states, probs


def joint_divergence(
    samples: Int[np.ndarray, "count seq"] | Int[Array, "count seq"],
    fills: Int[np.ndarray, "fills seq"],
    probs: Float[np.ndarray, " fills"],
) -> float:
    """KL(empirical, exact) of samples of a tiny model, in nats.

    With n samples of the exact law over m fills its mean is about (m - 1) / 2n.

    Args:
      samples: `[count, seq]` int32.
      fills: `[fills, seq]` int32, as `exact_joint` gives them.
      probs: `[fills]` their probabilities.

    Returns:
      Nats; infinite where a sample is none of the fills.

    Source: after arXiv 2509.22738, whose joint law is not known.

    Example:
      >>> fills, probs = np.array([[0], [1]]), np.array([0.5, 0.5])
      >>> joint_divergence(np.array([[0], [1]]), fills, probs)
      0.0
    """
    index = {tuple(fill): i for i, fill in enumerate(np.asarray(fills).tolist())}
    found = [index.get(tuple(row), -1) for row in np.asarray(samples).tolist()]
    if min(found) < 0:
        return float("inf")
    share = np.bincount(found, minlength=len(probs)) / len(found)
    seen = share > 0
    with np.errstate(divide="ignore"):
        return float(np.sum(share[seen] * np.log(share[seen] / probs[seen])))


def mauve_score(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    max_tokens: int = 1024,
    least: int = 500,
) -> float:
    """MAUVE of generated texts against reference texts, by its authors' package.

    Args:
      texts: generated.
      references: what they should be like: such as one-at-a-time samples of the model.
      max_tokens: a longer text is cut.
      least: texts of each that it takes to mean anything.

    Returns:
      In (0, 1], 1 for equal laws.

    Raises:
      ArgumentError: too few texts.
      UnsupportedImplementationError: the package `mauve-text` is not installed.

    Source: Pillutla et al. 2021, arXiv 2102.01454; used by arXiv 2509.22738.

    Example:
      >>> mauve_score(["a"], ["a"])
      Traceback (most recent call last):
      jtok.errors.ArgumentError: texts: got '1 texts', expected at least 500.
    """
    for name, some in (("texts", texts), ("references", references)):
        check(len(some) >= least, name, f"{len(some)} texts", f"at least {least}")
    try:
        package = importlib.import_module("mauve")
    except ImportError as error:
        raise UnsupportedImplementationError(
            "mauve_score: the package mauve-text is not installed; it needs PyTorch "
            "and a language model that embeds the texts."
        ) from error
    made = package.compute_mauve(
        p_text=list(texts), q_text=list(references), max_text_length=max_tokens,
        verbose=False,
    )  # fmt: skip
    return float(made.mauve)
