"""Rows for new tokens out of the pieces that the old tokenizer cuts them into."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from jtok.embed.init import MADE, ZERO, EmbeddingInit, Made, Options, Task, initialiser
from jtok.embed.weighted import weighted_rows
from jtok.errors import check
from jtok.text.overlap import spelled_bytes
from jtok.text.pieces import decompose

__all__ = ["piece_weights", "subword"]

Scheme = Literal["mean", "sum", "weighted_mean", "first_last"]
SCHEMES = ("mean", "sum", "weighted_mean", "first_last")


def subword(
    scheme: Scheme = "mean",
    *,
    whole: bool = False,
    compat: Literal["official"] | None = None,
    options: Options | None = None,
) -> EmbeddingInit:
    """New rows from the rows of the old tokenizer's pieces.

    Needs no other model. A token that the old tokenizer cannot cut gets zeros.

    Args:
      scheme: "mean" (FVT, ReTok); "sum"; "weighted_mean", weights 1 to m of m pieces,
        the last one heaviest for input rows and the first one for output rows;
        "first_last", the last piece for input rows and the first one for output rows.
      whole: cut by the merges alone, see `jtok.text.decompose`.
      compat: "official" turns the weights of "weighted_mean" around, as the code does.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: an unknown `scheme`.

    Source: Gee et al. 2022 (FVT), arXiv 2402.09977, and the baselines `subword` of
      arXiv 2506.06607.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> made, _, _ = subword()(tiny_vocabulary(), rows, jax.random.key(0))
      >>> made[-1].tolist()
      [1.0, 1.0]
    """
    check(scheme in SCHEMES, "scheme", scheme, " or ".join(map(repr, SCHEMES)))

    def make(task: Task) -> Made:
        spelled = spelled_bytes(task.target_vocabulary)
        tokens = [spelled[id_] for id_ in task.ids.tolist()]
        ids = decompose(tokens, task.source_vocabulary, whole=whole).ids
        ids = np.where(ids < task.source.shape[0], ids, -1)
        weights = piece_weights(ids, scheme, task.name, compat=compat)
        rows = weighted_rows(jnp.asarray(ids), jnp.asarray(weights), task.source)
        how = np.where((ids >= 0).any(axis=1), MADE, ZERO).astype(np.int8)
        lengths = (ids >= 0).sum(axis=1)
        return Made(rows, how, {"pieces": float(lengths.mean())})

    return initialiser(f"subword_{scheme}", make, options)


def piece_weights(
    ids: np.ndarray,
    scheme: Scheme,
    matrix: str,
    *,
    compat: Literal["official"] | None = None,
) -> np.ndarray:
    """The weight of each piece of each token.

    Args:
      ids: `[tokens, most]` pieces in order, -1 where there is none.
      scheme: as for `subword`.
      matrix: "input" or "output".
      compat: as for `subword`.

    Returns:
      `[tokens, most]` float32, 0 where there is no piece.

    Source: as for `subword`.

    Example:
      >>> piece_weights(np.array([[5, 7, -1]]), "weighted_mean", "output").round(2)
      array([[0.67, 0.33, 0.  ]], dtype=float32)
    """
    real = ids >= 0
    count = real.sum(axis=1, keepdims=True)
    place = np.cumsum(real, axis=1)  # 1 for the first piece
    late = matrix == "input"
    if scheme == "first_last":
        chosen = place == (count if late else 1)
        return (real & chosen).astype(np.float32)
    if scheme == "weighted_mean":
        rising = late if compat is None else not late
        weights = np.where(real, place if rising else count + 1 - place, 0)
    else:
        weights = real.astype(np.int64)
    if scheme == "sum":
        return weights.astype(np.float32)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    return (weights / total).astype(np.float32)
