"""Rows for new tokens out of their nearest neighbours among the old ones."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.embed.donors import donor_rows, donor_view
from jtok.embed.init import (
    FALLBACK,
    MADE,
    ZERO,
    EmbeddingInit,
    Made,
    Options,
    Task,
    check_anchors,
    initialiser,
)
from jtok.embed.weighted import weighted_rows
from jtok.errors import ArgumentError, check
from jtok.text import Vocabulary
from jtok.text.overlap import Overlap

__all__ = [
    "common_interpolation",
    "focus",
    "interpolation_weights",
    "sparsemax",
    "trans_tokenization",
    "wechsel",
]

Metric = Literal["euclidean", "cosine"]
WEIGHTS = ("distance_proportional", "barycentric", "least_squares")
_HIGHEST = jax.lax.Precision.HIGHEST
_BLOCK = 256


def common_interpolation(
    donor: Any,
    *,
    k: int = 5,
    metric: Metric = "cosine",
    weights: str = "distance_proportional",
    options: Options | None = None,
) -> EmbeddingInit:
    """New rows from the `k` shared tokens that are nearest in a donor's space.

    Args:
      donor: a `Model`, `Rows`, folder or hub id, as for `omp`.
      k: neighbours, at most the shared tokens; of equals the lower target id.
      metric: "euclidean" or "cosine".
      weights: "distance_proportional" (inverse distances, or cosines, that sum to 1),
        "barycentric" (the best combination whose weights sum to 1), "least_squares"
        (the best combination).
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: `k` below 1, an unknown name; when it runs, more neighbours than
        shared tokens.
      VocabMismatchError: when it runs, nothing is shared.

    Source: the baseline `common_interpolation` of arXiv 2506.06607.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> old = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> donor = Rows(jnp.eye(280, 3) + 1, None, tiny_vocabulary())
      >>> made, _, _ = common_interpolation(donor, k=3)(
      ...     donor.vocabulary, old, jax.random.key(0))
      >>> made[-1].round(3).tolist()
      [1.0, 1.0]
    """
    check(k >= 1, "k", k, "at least 1")
    check(metric in ("euclidean", "cosine"), "metric", metric, "euclidean or cosine")
    check(weights in WEIGHTS, "weights", weights, " or ".join(map(repr, WEIGHTS)))
    giver = donor_rows(donor)

    def make(task: Task) -> Made:
        view = donor_view(task, giver, least=k)
        atoms = view.atoms.astype(jnp.float32)
        base = view.base.astype(jnp.float32)

        def block(targets: Array) -> Array:
            near, found = interpolation_weights(
                targets.astype(jnp.float32), atoms, k, metric=metric, weights=weights
            )
            return weighted_rows(near, found, base)

        rows = _in_blocks(block, view.targets, base.shape[1])
        return _spread(rows, view.found)

    return initialiser("common_interpolation", make, options)


def interpolation_weights(
    targets: Float[Array, "targets dim"],
    atoms: Float[Array, "atoms dim"],
    k: int,
    *,
    metric: Metric = "cosine",
    weights: str = "distance_proportional",
) -> tuple[Int[Array, "targets k"], Float[Array, "targets k"]]:
    """The `k` nearest atoms of each target, nearest first, and their weights.

    Args:
      targets: `[targets, dim]` float32.
      atoms: `[atoms, dim]` float32.
      k: neighbours, at most the atoms (static).
      metric: as for `common_interpolation`.
      weights: likewise.

    Returns:
      `[targets, k]` int32 indices, ties to the lower one, and float32 weights.

    Raises:
      ArgumentError: more neighbours than atoms.

    Source: as for `common_interpolation`.

    Example:
      >>> near, weights = interpolation_weights(jnp.ones((1, 2)), jnp.eye(2), 2)
      >>> near.tolist(), weights.round(3).tolist()
      ([[0, 1]], [[0.5, 0.5]])
    """
    check(k <= len(atoms), "k", k, f"at most {len(atoms)}, the number of atoms")
    if metric == "cosine":
        score = _cosines(targets, atoms)
    else:
        products = jnp.einsum("nd,ad->na", targets, atoms, precision=_HIGHEST)
        squares = (atoms**2).sum(1)[None, :] + (targets**2).sum(1)[:, None]
        score = -jnp.sqrt(jnp.maximum(squares - 2 * products, 0.0))
    best, near = jax.lax.top_k(score, k)
    points = atoms[near]
    if weights == "barycentric":
        return near, _barycentric(targets, points)
    if weights == "least_squares":
        return near, _least_squares(targets, points)
    if metric == "cosine":
        found = best
    else:  # Anew: those of the search lose digits where points are near.
        far = jnp.linalg.norm(points - targets[:, None, :], axis=2)
        found = 1.0 / jnp.maximum(far, 1e-6)
    return near, found / jnp.maximum(found.sum(axis=1, keepdims=True), 1e-6)


def _cosines(one: Array, other: Array) -> Array:
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return jnp.einsum("nd,ad->na", unit(one), unit(other), precision=_HIGHEST)


def _barycentric(targets: Array, points: Array) -> Array:
    """Weights that sum to 1; of several that are as good, the smallest."""
    k = points.shape[1]
    # An orthonormal basis of what sums to 0, so that no system of squares is solved.
    free = jnp.linalg.qr(jnp.ones((k, 1)), mode="complete")[0][:, 1:]
    even = jnp.full(k, 1 / k)

    def solve(target: Array, near: Array) -> Array:
        moved = near - target[None, :]
        left = jnp.einsum("k,kd->d", even, moved, precision=_HIGHEST)
        turned = jnp.einsum("kj,kd->dj", free, moved, precision=_HIGHEST)
        return even - jnp.einsum(
            "kj,j->k", free, jnp.linalg.lstsq(turned, left)[0], precision=_HIGHEST
        )

    return jax.vmap(solve)(targets, points) if k > 1 else jnp.ones((len(targets), 1))


def _least_squares(targets: Array, points: Array) -> Array:
    solve = lambda t, p: jnp.linalg.lstsq(p.T, t)[0]
    return jax.vmap(solve)(targets, points)


def _in_blocks(
    block: Callable[[Array], Array], targets: Array, width: int
) -> Float[Array, "targets dim"]:
    """Applies a function to some targets at a time, of one shape."""
    count = targets.shape[0]
    if not count:
        return jnp.zeros((0, width))
    size = min(_BLOCK, count)
    padded = jnp.pad(targets, ((0, -count % size), (0, 0)))
    grouped = padded.reshape(-1, size, targets.shape[1])
    return jax.lax.map(block, grouped).reshape(-1, width)[:count]


def _spread(rows: Array, found: np.ndarray) -> Made:
    """Rows of the tokens that were found among all; the others are zero."""
    whole = jnp.zeros((len(found), rows.shape[1])).at[np.flatnonzero(found)].set(rows)
    return Made(whole, np.where(found, MADE, ZERO).astype(np.int8))


def sparsemax(scores: Float[Array, "rows atoms"]) -> Float[Array, "rows atoms"]:
    """The nearest point of the simplex to each row: weights, most of them zero.

    Args:
      scores: `[rows, atoms]` float32.

    Returns:
      `[rows, atoms]`, each row sums to 1.

    Source: Martins and Astudillo 2016, arXiv 1602.02068, algorithm 1.

    Example:
      >>> sparsemax(jnp.array([[1.0, 0.5, -1.0]])).tolist()
      [[0.75, 0.25, 0.0]]
    """
    falling = -jnp.sort(-scores, axis=1)
    above = jnp.cumsum(falling, axis=1) - 1.0
    rank = jnp.arange(1, scores.shape[1] + 1)[None, :]
    support = (rank * falling > above).sum(axis=1, keepdims=True)
    level = jnp.take_along_axis(above, support - 1, axis=1) / support
    return jnp.maximum(scores - level, 0.0)


def focus(target_vectors: Any, *, options: Options | None = None) -> EmbeddingInit:
    """New rows as sparse convex combinations of all shared tokens' rows.

    Weights are the sparsemax of cosines between auxiliary vectors, such as fastText's
    trained on text that the new tokenizer has cut. A new token without a vector (zeros)
    gets a normal draw with the mean and deviation of each dimension.

    Args:
      target_vectors: `[target size, aux]` float, a vector for each target id.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: no vectors; when it runs, not one for each target id.
      VocabMismatchError: when it runs, nothing is shared.

    Source: Dobler and de Melo 2023, arXiv 2305.14481, section 3.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> vectors = jax.random.normal(jax.random.key(1), (280, 4))
      >>> made, _, _ = focus(vectors)(tiny_vocabulary(), rows, jax.random.key(0))
      >>> made[-1].round(3).tolist()
      [1.0, 1.0]
    """
    vectors = _vectors(target_vectors, "target_vectors")

    def make(task: Task) -> Made:
        check_anchors(task)
        _check_count(vectors, task.target_vocabulary, "target_vectors")
        source_ids, target_ids = task.anchors
        shared = vectors[target_ids]
        usable = jnp.abs(shared).max(axis=1) > 0
        base = task.source[source_ids].astype(jnp.float32)

        def block(part: Array) -> Array:
            cosines = jnp.where(usable[None, :], _cosines(part, shared), -2.0)
            return jnp.einsum("na,ad->nd", sparsemax(cosines), base, precision=_HIGHEST)

        own = vectors[task.ids]
        rows = _in_blocks(block, own, base.shape[1])
        return _drawn_where(jnp.abs(own).max(axis=1) == 0, rows, task)

    return initialiser("focus", make, options)


def wechsel(
    source_vectors: Any,
    target_vectors: Any,
    *,
    neighbours: int = 10,
    temperature: float = 0.1,
    compat: Literal["official"] | None = None,
    options: Options | None = None,
) -> EmbeddingInit:
    """New rows from the nearest source tokens in a space of word vectors.

    Weights are the softmax of cosines over the temperature. A new token without a
    vector (zeros) gets a normal draw with the mean and deviation of each dimension.

    Args:
      source_vectors: `[source size, aux]` float, a vector for each source id.
      target_vectors: `[target size, aux]` those of the target's, in the same space.
      neighbours: source tokens in a combination; of equals the lower id.
      temperature: of the softmax, above 0.
      compat: "official" replaces shared rows, too, but for special tokens.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: no vectors, of different widths, `neighbours` below 1 or above the
        source tokens, `temperature` not above 0.

    Source: Minixhofer et al. 2022, arXiv 2112.06598, section 3.2. Differs: shared rows
      are copied.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> vectors = jax.random.normal(jax.random.key(1), (280, 4))
      >>> made, _, _ = wechsel(vectors[:270], vectors)(
      ...     tiny_vocabulary(), rows, jax.random.key(0))
      >>> made[-1].round(3).tolist()
      [1.0, 1.0]
    """
    old = _vectors(source_vectors, "source_vectors")
    new = _vectors(target_vectors, "target_vectors")
    good = old.shape[1] == new.shape[1]
    check(good, "target_vectors", f"width {new.shape[1]}", f"{old.shape[1]}")
    good = 1 <= neighbours <= old.shape[0]
    check(good, "neighbours", neighbours, f"1 to {old.shape[0]}, the source tokens")
    check(temperature > 0, "temperature", temperature, "above 0")

    def make(task: Task) -> Made:
        _check_count(old, task.source_vocabulary, "source_vectors")
        _check_count(new, task.target_vocabulary, "target_vectors")
        rows_there = min(task.source.shape[0], old.shape[0])
        known = old[:rows_there]
        usable = jnp.abs(known).max(axis=1) > 0
        own = new[task.ids]

        def block(part: Array) -> Array:
            cosines = jnp.where(usable[None, :], _cosines(part, known), -jnp.inf)
            best, near = jax.lax.top_k(cosines, neighbours)
            weights = jax.nn.softmax(best / temperature, axis=1)
            return weighted_rows(near, weights, task.source)

        rows = _in_blocks(block, own, task.source.shape[1])
        return _drawn_where(jnp.abs(own).max(axis=1) == 0, rows, task)

    keep = _specials if compat else None
    return initialiser("wechsel", make, options, keep=keep)


def _specials(shared: Overlap, target: Vocabulary) -> np.ndarray:
    return np.isin(shared.target_ids, sorted(target.special_ids))


def _vectors(given: Any, name: str) -> jax.Array:
    if given is None:
        raise ArgumentError(
            f"{name}: got None; this method needs an auxiliary vector for each token."
        )
    vectors = jnp.asarray(given, jnp.float32)
    check(vectors.ndim == 2, name, f"shape {vectors.shape}", "[tokens, aux]")
    check(bool(jnp.isfinite(vectors).all()), name, "NaN or infinity", "finite numbers")
    return vectors


def _check_count(vectors: Array, vocabulary: Vocabulary, name: str) -> None:
    count = vectors.shape[0]
    check(count == vocabulary.size, name, f"{count} rows", f"{vocabulary.size}")


def _drawn_where(
    missing: Bool[Array, " new"], rows: Float[Array, "new dim"], task: Task
) -> Made:
    """Rows of tokens without a vector become normal draws."""
    source = task.source.astype(jnp.float32)
    drawn = source.mean(0)[None, :] + source.std(0)[None, :] * jax.random.normal(
        task.key, rows.shape
    )
    how = np.where(np.asarray(missing), FALLBACK, MADE).astype(np.int8)
    return Made(jnp.where(missing[:, None], drawn, rows), how)


def trans_tokenization(
    ids: Int[np.ndarray, "target most"],
    counts: Float[np.ndarray, "target most"],
    *,
    options: Options | None = None,
) -> EmbeddingInit:
    """New rows as means of the source tokens that they are aligned with in translation.

    A new token that is aligned with nothing gets a normal draw with the mean and
    deviation of each dimension.

    Args:
      ids: `[target size, most]` source ids aligned with each target id, -1 for none.
      counts: `[target size, most]` how often, 0 or more.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: a negative count, or another shape; when it runs, an id without a
        row or not a line for each target id.

    Source: Remy et al. 2024, arXiv 2408.04303, section 2.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.eye(270, 2), None, tiny_vocabulary(270))
      >>> made, _, _ = trans_tokenization(np.tile([[0, 1]], (280, 1)),
      ...     np.tile([[1.0, 3.0]], (280, 1)))(
      ...     tiny_vocabulary(), rows, jax.random.key(0))
      >>> made[-1].tolist()
      [0.25, 0.75]
    """
    ids, counts = np.asarray(ids, np.int32), np.asarray(counts, np.float32)
    good = ids.ndim == 2 and ids.shape == counts.shape
    check(good, "counts", f"shape {counts.shape}", f"{ids.shape} as ids have")
    check((counts >= 0).all(), "counts", float(counts.min(initial=0)), "0 or more")
    counts = np.where(ids >= 0, counts, 0.0)
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.where(total > 0, total, 1.0)

    def make(task: Task) -> Made:
        size = task.target_vocabulary.size
        check(len(ids) == size, "ids", f"{len(ids)} lines", f"{size}, the target ids")
        most = int(ids.max(initial=-1))
        good = most < task.source.shape[0]
        check(good, "ids", most, f"ids below {task.source.shape[0]}")
        own, share = ids[task.ids], shares[task.ids].astype(np.float32)
        rows = weighted_rows(jnp.asarray(own), jnp.asarray(share), task.source)
        return _drawn_where(jnp.asarray(total[task.ids, 0] == 0), rows, task)

    return initialiser("trans_tokenization", make, options)
