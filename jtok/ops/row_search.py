"""The best rows for a vector among very many: exact by blocks, or approximate.

Exact search is `readout(hidden, rows, Want(top_k=k))`. Both approximate ones give exact
scores of the rows that they find.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.errors import check

__all__ = ["RowClusters", "approximate_top", "cluster_rows", "probe_top"]


class RowClusters(NamedTuple):
    """Rows sorted into leaves by direction.

    Attributes:
      centers: `[leaves, dim]` float32, of length 1.
      members: `[leaves, most]` int32 rows of each leaf in order, -1 behind the last.
    """

    centers: jax.Array
    members: jax.Array


def approximate_top(
    hidden: Float[Array, "batch nodes dim"],
    rows: Float[Array, "rows dim"],
    k: int,
    *,
    bias: Float[Array, " rows"] | None = None,
    block: int = 65536,
    recall: float = 0.95,
) -> tuple[Float[Array, "batch nodes k"], Int[Array, "batch nodes k"]]:
    """The best rows of every block by the backend's approximate top-k, joined.

    Fast on a TPU, where each block is cut to few candidates in hardware; elsewhere the
    backend may search exactly.

    Args:
      hidden: `[batch, nodes, dim]`.
      rows: `[rows, dim]`, any float dtype; scores are float32.
      k: how many, at most the rows (static).
      bias: `[rows]` or None.
      block: rows at a time (static).
      recall: share of the true ones that a block is expected to find, in (0, 1].

    Returns:
      Scores, best first, and ids int32; equal scores of different blocks go to the
      lower id.

    Raises:
      ArgumentError: `k`, `block` or `recall` out of range.

    Example:
      >>> scores, ids = approximate_top(jnp.ones((1, 1, 2)), jnp.eye(3)[:, :2], 2)
      >>> ids.tolist()
      [[[0, 1]]]
    """
    count = rows.shape[0]
    check(1 <= k <= count, "k", k, f"1 to {count} rows")
    check(block >= 1, "block", block, "at least 1")
    check(0 < recall <= 1, "recall", recall, "a share in (0, 1]")
    block = max(min(block, count), k)
    best: list[Array] = []
    ids: list[Array] = []

    def one(start: Array | int) -> tuple[Array, Array]:
        low = jnp.minimum(start, count - block)
        part = jax.lax.dynamic_slice_in_dim(rows, low, block)
        scores = _scores(hidden, part)
        if bias is not None:
            scores += jax.lax.dynamic_slice_in_dim(bias, low, block)[None, None]
        # The last block is moved back; what it repeats is masked.
        fresh = low + jnp.arange(block) >= start
        scores = jnp.where(fresh[None, None], scores, -jnp.inf)
        values, places = jax.lax.approx_max_k(scores, k, recall_target=recall)
        return values, (places + low).astype(jnp.int32)

    starts = jnp.arange(0, count, block)
    values, places = jax.lax.map(one, starts)
    for part in range(starts.shape[0]):
        best.append(values[part])
        ids.append(places[part])
    return _ordered(jnp.concatenate(best, axis=-1), jnp.concatenate(ids, axis=-1), k)


def _scores(hidden: Array, rows: Array) -> Array:
    return jnp.einsum("bnd,vd->bnv", hidden, rows, preferred_element_type=jnp.float32)


def _ordered(scores: Array, ids: Array, k: int) -> tuple[Array, Array]:
    """The best `k`, of equal ones those with lower ids first."""
    ranked, ids = jax.lax.sort((-scores, ids), dimension=-1, num_keys=2)
    return -ranked[..., :k], ids[..., :k]


def cluster_rows(
    rows: Float[Array, "rows dim"],
    leaves: int,
    key: jax.Array,
    *,
    steps: int = 8,
    sample: int = 65536,
) -> RowClusters:
    """Sorts rows into leaves by spherical k-means.

    Args:
      rows: `[rows, dim]`.
      leaves: how many, at most the rows.
      key: typed key; chooses the first centers and the sample.
      steps: of k-means.
      sample: rows that k-means looks at; all are sorted in at the end.

    Returns:
      `RowClusters`; a tie goes to the lower leaf.

    Raises:
      ArgumentError: a number out of range.

    Source: the search of Feher et al. 2024, arXiv 2411.18553v1, section 3.3 (ScaNN,
    2000 leaves). Differs: no quantisation, scores are dot products.

    Example:
      >>> found = cluster_rows(jnp.eye(4), 2, jax.random.key(0))
      >>> int((found.members >= 0).sum())
      4
    """
    count = rows.shape[0]
    check(1 <= leaves <= count, "leaves", leaves, f"1 to {count} rows")
    check(steps >= 0, "steps", steps, "at least 0")
    check(sample >= leaves, "sample", sample, f"at least {leaves}, the leaves")
    chosen = jax.random.permutation(key, count)[: min(sample, count)]
    some = _unit(rows[chosen].astype(jnp.float32))
    centers = _k_means(some, some[:leaves], steps)
    size = 16384
    parts = [_nearest(rows[i : i + size], centers) for i in range(0, count, size)]
    leaf = np.concatenate([np.asarray(part) for part in parts])
    order = np.argsort(leaf, kind="stable").astype(np.int32)
    bounds = np.searchsorted(leaf[order], np.arange(leaves + 1))
    most = int(np.max(np.diff(bounds)))
    members = np.full((leaves, most), -1, np.int32)
    for number in range(leaves):
        own = order[bounds[number] : bounds[number + 1]]
        members[number, : len(own)] = own
    return RowClusters(centers, jnp.asarray(members))


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@jax.jit
def _nearest(rows: Array, centers: Array) -> Array:
    return jnp.argmax(rows.astype(jnp.float32) @ centers.T, axis=1)


@jax.jit
def _k_means(rows: Array, centers: Array, steps: Any) -> Array:
    def step(_: Array, centers: Array) -> Array:
        leaf = _nearest(rows, centers)
        total = jnp.zeros_like(centers).at[leaf].add(rows)
        empty = jnp.all(total == 0, axis=1, keepdims=True)
        return _unit(jnp.where(empty, centers, total))

    return jax.lax.fori_loop(0, steps, step, centers)


def probe_top(
    hidden: Float[Array, "batch nodes dim"],
    rows: Float[Array, "rows dim"],
    clusters: RowClusters,
    k: int,
    *,
    probes: int,
    bias: Float[Array, " rows"] | None = None,
) -> tuple[Float[Array, "batch nodes k"], Int[Array, "batch nodes k"]]:
    """The best rows of the leaves that point most like the vector.

    Reads `probes` leaves a vector in place of all rows; with all leaves it is exact.

    Args:
      hidden: `[batch, nodes, dim]`.
      rows: `[rows, dim]`.
      clusters: of these rows.
      k: how many (static).
      probes: leaves to read (static).
      bias: `[rows]` or None.

    Returns:
      Float32 scores, best first, and int32 ids; -inf and the number of rows where the
      leaves hold fewer than `k`. Ties go to the lower id.

    Raises:
      ArgumentError: `probes` or `k` out of range.

    Source: as `cluster_rows`.

    Example:
      >>> rows = jnp.eye(4)
      >>> clusters = cluster_rows(rows, 2, jax.random.key(0))
      >>> probe_top(rows[None, 1:2], rows, clusters, 1, probes=2)[1].tolist()
      [[[1]]]
    """
    leaves, most = clusters.members.shape
    check(1 <= probes <= leaves, "probes", probes, f"1 to {leaves} leaves")
    check(1 <= k <= probes * most, "k", k, f"1 to {probes * most}, what {probes} hold")
    near = _scores(hidden, clusters.centers)
    _, chosen = jax.lax.top_k(near, probes)
    ids = clusters.members[chosen].reshape(*hidden.shape[:2], probes * most)
    found = rows.at[ids].get(mode="clip")
    scores = jnp.einsum(
        "bnd,bncd->bnc", hidden, found, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).at[ids].get(mode="clip")
    scores = jnp.where(ids >= 0, scores, -jnp.inf)
    ids = jnp.where(ids >= 0, ids, rows.shape[0])
    values, places = jax.lax.top_k(scores, k)
    return _ordered(values, jnp.take_along_axis(ids, places, axis=-1), k)
