"""Rows of several lengths in few shapes, and batches in a new order each epoch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jtok.errors import check

__all__ = ["Bucket", "bucket_rows", "shuffled_batches"]

SIZES = (32, 64, 128, 256, 512)


class Bucket(NamedTuple):
    """Rows of about one length.

    Attributes:
      rows: `[rows]` which of the given rows these are.
      ids: int32 `[batch, size]`, 0 where there is nothing; those after `rows` are
        padding only.
      mask: `[batch, size]` True for real tokens.
    """

    rows: np.ndarray
    ids: np.ndarray
    mask: np.ndarray


def bucket_rows(
    rows: Sequence[np.ndarray], *, batch: int = 64, sizes: Sequence[int] = SIZES
) -> Iterator[Bucket]:
    """Pads each row to the least size that holds it, so few shapes are compiled.

    Args:
      rows: ids of each text, `[tokens]`.
      batch: rows of a bucket; what is left over is filled with padding.
      sizes: lengths, rising. A row longer than the last loses its end.

    Yields:
      `Bucket`, each row in one of them; in each size rows keep their order.

    Raises:
      ArgumentError: a batch below 1, or sizes that do not rise from at least 1.

    Source: none.

    Example:
      >>> rows = [np.array([3]), np.array([4, 5, 6]), np.array([7])]
      >>> [b.rows.tolist() for b in bucket_rows(rows, batch=2, sizes=(1, 4))]
      [[0, 2], [1]]
    """
    check(batch >= 1, "batch", batch, "at least 1")
    rising = all(a < b for a, b in zip((0, *sizes), sizes))
    check(len(sizes) and rising, "sizes", tuple(sizes), "rising lengths from 1 on")
    return _buckets(rows, batch, sizes)


def _buckets(
    rows: Sequence[np.ndarray], batch: int, sizes: Sequence[int]
) -> Iterator[Bucket]:
    lengths = np.minimum([len(row) for row in rows], sizes[-1])
    place = np.searchsorted(sizes, lengths)
    for at, size in enumerate(sizes):
        members = np.flatnonzero(place == at)
        for start in range(0, len(members), batch):
            index = members[start : start + batch]
            ids = np.zeros((batch, size), np.int32)
            mask = np.zeros((batch, size), bool)
            for row, member in enumerate(index):
                some = np.asarray(rows[member])[:size]
                ids[row, : len(some)], mask[row, : len(some)] = some, True
            yield Bucket(index, ids, mask)


def shuffled_batches(
    arrays: Mapping[str, np.ndarray], *, batch: int, seed: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """Batches for `jtok.train.fit`: every epoch takes each row once, in a new order.

    The rows that do not fill a batch at the end of an epoch are left out of it.

    Args:
      arrays: name -> array; all have as many rows.
      batch: rows of a batch, at most those that there are.
      seed: of the orders; epoch e of a seed is always in the same order.

    Returns:
      A function from a step (0-based) to a batch.

    Raises:
      ArgumentError: no arrays, unequal numbers of rows, or a batch that does not fit.

    Source: none.

    Example:
      >>> data = shuffled_batches({"x": np.arange(4)}, batch=2, seed=0)
      >>> sorted(data(0)["x"].tolist() + data(1)["x"].tolist())
      [0, 1, 2, 3]
    """
    counts = {len(array) for array in arrays.values()}
    check(len(counts) == 1, "arrays", sorted(counts), "arrays of as many rows")
    (count,) = counts
    check(1 <= batch <= count, "batch", batch, f"1 to {count}, the rows that there are")
    each = count // batch
    orders: dict[int, np.ndarray] = {}

    def take(step: int) -> dict[str, np.ndarray]:
        epoch, at = divmod(step, each)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = np.random.default_rng((seed, epoch)).permutation(count)
        chosen = orders[epoch][at * batch : (at + 1) * batch]
        return {name: array[chosen] for name, array in arrays.items()}

    return take
