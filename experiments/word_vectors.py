"""Auxiliary vectors of tokens from which of them stand near each other in text."""

from collections.abc import Iterable

import numpy as np

__all__ = ["cooccurrence_vectors"]


def cooccurrence_vectors(
    documents: Iterable[np.ndarray], size: int, *, width: int = 100, window: int = 5
) -> np.ndarray:
    """Vectors of ids: the principal part of how surprising each neighbourhood is.

    Positive pointwise mutual information of pairs within the window, factored. It
    stands in for fastText's skip-grams, which factor nearly the same matrix.

    Args:
      documents: rows of ids; pairs do not cross from one to the next.
      size: of the vocabulary; some thousands, as pairs are counted densely.
      width: of the vectors.
      window: neighbours on either side.

    Returns:
      `[size, width]` float32; zeros for ids that never occur.
    """
    counts = np.zeros((size, size))
    for ids in documents:
        for offset in range(1, min(window, len(ids) - 1) + 1):
            np.add.at(counts, (ids[:-offset], ids[offset:]), 1.0 / offset)
    counts = counts + counts.T
    total = counts.sum()
    each = counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts * total / (each * each.T))
    information = np.where(counts > 0, np.maximum(information, 0.0), 0.0)
    left, values, _ = np.linalg.svd(information)
    vectors = (left * np.sqrt(values)[None, :])[:, :width].astype(np.float32)
    return np.where(each > 0, vectors, 0.0).astype(np.float32)
