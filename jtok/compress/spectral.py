"""How much merging changes the spectrum of the graph of similarities."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from jtok.errors import check

__all__ = ["SpectralDistance", "spectral_distance"]


class SpectralDistance(NamedTuple):
    """Spectra before and after merging.

    Attributes:
      distance: sum of the absolute differences of the two spectra.
      before: `[tokens]` float64 ascending eigenvalues of the normalised Laplacian.
      after: `[tokens]` float64 those of the merged graph, lifted to all tokens.
      weights: `[tokens, tokens]` float64, 1 - cosine, 0 on the diagonal.
      coarse: `[groups, groups]` float64 means of the blocks of `weights`.
      lifted: `[tokens, tokens]` float64 the mean of each pair's block.
    """

    distance: float
    before: np.ndarray
    after: np.ndarray
    weights: np.ndarray
    coarse: np.ndarray
    lifted: np.ndarray


def spectral_distance(
    metric: Float[np.ndarray, "tokens dim"], partition: Integer[np.ndarray, " tokens"]
) -> SpectralDistance:
    """Compares the spectra of a graph of tokens and of its merged version.

    Host side, in float64; it holds matrices of all pairs.

    Args:
      metric: `[tokens, dim]`, any scale.
      partition: `[tokens]` group of each token, such as a row of `Plan.assign`; groups
        are named 0, 1, ... and none is empty.

    Returns:
      `SpectralDistance`.

    Raises:
      ArgumentError: shapes that do not fit, or groups that are not named so.

    Source: Tran et al. 2024, arXiv 2405.16148, section 4.

    Example:
      >>> spectral_distance(np.eye(3), np.arange(3)).distance
      0.0
    """
    shapes = (metric.shape, partition.shape)
    good = metric.ndim == 2 and partition.shape == metric.shape[:1]
    check(good, "metric, partition", shapes, "[tokens, dim] and [tokens]")
    groups = int(partition.max(initial=-1)) + 1
    named = np.array_equal(np.unique(partition), np.arange(groups))
    check(named, "partition", partition, "groups 0, 1, ... without a gap")
    wide = np.asarray(metric, np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.maximum(length, 1e-12)
    weights = np.maximum(1.0 - unit @ unit.T, 0.0)
    np.fill_diagonal(weights, 0.0)
    member = np.eye(groups)[partition]
    sizes = member.sum(0)
    coarse = member.T @ weights @ member / np.outer(sizes, sizes)
    lifted = member @ coarse @ member.T
    before, after = _spectrum(weights), _spectrum(lifted)
    distance = float(np.abs(before - after).sum())
    return SpectralDistance(distance, before, after, weights, coarse, lifted)


def _spectrum(weights: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues of `I - D^-1/2 W D^-1/2`."""
    degree = weights.sum(1)
    inverse = np.where(
        degree > 0, 1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0
    )
    scaled = weights * inverse[:, None] * inverse[None, :]
    return np.linalg.eigvalsh(np.eye(len(weights)) - scaled)
