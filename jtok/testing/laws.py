"""Verification rules in float64 NumPy, summed over all outcomes: what the law is."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jtok.errors import check

__all__ = ["CandidateLaw", "ChainLaw", "candidate_law", "chain_law", "try_candidates"]


class CandidateLaw(NamedTuple):
    """What several drafts of one node come to, over all draws.

    Attributes:
      accepted: probability that one of them is accepted.
      output: `[vocab]` float64 law of the token that is emitted.
    """

    accepted: float
    output: np.ndarray


class ChainLaw(NamedTuple):
    """What a step with a chain of two drafts emits, over all draws.

    Attributes:
      joint: `[vocab, vocab]` float64 law of the first two tokens, where the step after
        draws what this one did not emit.
      emitted: `[4]` float64 probability of 0, 1, 2, 3 tokens in the step.
    """

    joint: np.ndarray
    emitted: np.ndarray


def _normal(law: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    total = law.sum()
    return law / total if total > 0 else otherwise


def _chance(p: np.ndarray, q: np.ndarray, token: int) -> float:
    """Probability that a draft is accepted, `P(u * q < p)` for uniform u."""
    return min(1.0, p[token] / q[token]) if q[token] > 0 else 0.0


def _refused(p: np.ndarray, q: np.ndarray, token: int) -> np.ndarray:
    """The law that is left after a draft was refused."""
    return _normal(np.maximum(p - q, 0), p) if q[token] > 0 else p


def _drawn(q: np.ndarray, token: int) -> np.ndarray:
    """The law of the next draft, drawn without replacement."""
    left = np.where(np.arange(len(q)) == token, 0, q)
    return _normal(left, left)


def try_candidates(
    p: np.ndarray,
    q: np.ndarray | None,
    candidates: Sequence[int] | np.ndarray,
    uniforms: Sequence[float] | np.ndarray,
    *,
    replacement: bool = False,
) -> tuple[int, np.ndarray]:
    """Tries the drafts of a node in order.

    Args:
      p: `[vocab]` law of the target.
      q: `[vocab]` law that they were drawn from; None for point masses.
      candidates: `[drafts]` tokens.
      uniforms: `[drafts]` in [0, 1).
      replacement: drawn with replacement.

    Returns:
      Index of the accepted draft or -1, and what is then left of `p`, `[vocab]`
      float64: where none is accepted, the law of the emitted token.

    Example:
      >>> p, q = np.array([0.5, 0.5]), np.array([0.0, 1.0])
      >>> index, law = try_candidates(p, q, np.array([1]), np.array([0.7]))
      >>> index, law.tolist()
      (-1, [1.0, 0.0])
    """
    p = np.asarray(p, np.float64)
    law = None if q is None else np.asarray(q, np.float64)
    tokens = [int(token) for token in candidates]
    for index, (token, u) in enumerate(zip(tokens, uniforms, strict=True)):
        here = np.eye(len(p))[token] if law is None else law
        if here[token] > 0 and u * here[token] < p[token]:
            return index, p
        p = _refused(p, here, token)
        if law is not None and not replacement:
            law = _drawn(law, token)
    return -1, p


def candidate_law(
    p: np.ndarray,
    q: np.ndarray,
    num_drafts: int,
    how: Literal["without", "with", "top"] = "without",
) -> CandidateLaw:
    """Sums the rule over every sequence of drafts and every outcome.

    Args:
      p: `[vocab]` law of the target.
      q: `[vocab]` law of the drafter.
      num_drafts: drafts of the node.
      how: drawn "without" or "with" replacement, or the "top" of q as point masses.

    Returns:
      `CandidateLaw`; `output` equals `p` where the rule is right.

    Raises:
      ArgumentError: fewer tokens than drafts.

    Example:
      >>> p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.2, 0.6])
      >>> law = candidate_law(p, q, 2)
      >>> bool(np.allclose(law.output, p, atol=1e-12)), float(round(law.accepted, 3))
      (True, 0.75)
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    vocab = len(p)
    check(1 <= num_drafts <= vocab, "num_drafts", num_drafts, f"1 to {vocab}")
    if how == "top":
        sequences = [tuple(np.argsort(-q, kind="stable")[:num_drafts].tolist())]
    else:
        sequences = list(itertools.product(range(vocab), repeat=num_drafts))
    output, accepted = np.zeros(vocab), 0.0
    for drafts in sequences:
        # `still` of this sequence's draws has accepted nothing yet.
        weight, still, law, left = 1.0, 1.0, q, p
        tried = np.zeros(vocab)
        for token in drafts:
            here = np.eye(vocab)[token] if how == "top" else law
            weight *= here[token]
            chance = _chance(left, here, token)
            tried[token] += still * chance
            still *= 1 - chance
            left = _refused(left, here, token)
            if how == "without":
                law = _drawn(law, token)
        output += weight * (tried + still * left)
        accepted += weight * (1 - still)
    return CandidateLaw(accepted, output)


def chain_law(
    p0: np.ndarray, p1: np.ndarray, q0: np.ndarray, q1: np.ndarray
) -> ChainLaw:
    """Sums the rule for a chain of two drafts over every outcome.

    Args:
      p0: `[vocab]` the target's law of the first token.
      p1: `[vocab, vocab]` its law of a token after each token.
      q0: as `p0`, of the drafter.
      q1: as `p1`, of the drafter.

    Returns:
      `ChainLaw`; `joint` equals `p0[:, None] * p1` where the rule is right.

    Example:
      >>> p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
      >>> chain_law(p, np.stack([p, p]), q, np.stack([q, q])).emitted.round(4).tolist()
      [0.0, 0.25, 0.1875, 0.5625]
    """
    p0, p1, q0, q1 = (np.asarray(law, np.float64) for law in (p0, p1, q0, q1))
    vocab = len(p0)
    joint, emitted = np.zeros((vocab, vocab)), np.zeros(4)
    for first in range(vocab):
        chance = _chance(p0, q0, first)
        # Refused: one token comes from what is left, the next from a later step.
        lost = q0[first] * (1 - chance)
        joint += lost * _refused(p0, q0, first)[:, None] * p1
        emitted[1] += lost
        for second in range(vocab):
            weight = q0[first] * chance * q1[first, second]
            again = _chance(p1[first], q1[first], second)
            joint[first, second] += weight * again
            joint[first] += (
                weight * (1 - again) * _refused(p1[first], q1[first], second)
            )
            emitted[2] += weight * (1 - again)
            emitted[3] += weight * again
    return ChainLaw(joint, emitted)
