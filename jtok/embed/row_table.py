"""Rows of recent tokens on the device: a fixed table, the least recent one goes first.

Source: Feher et al. 2024, arXiv 2411.18553, section 3.2. Differs: a batch that does not
fit changes nothing.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from jtok.errors import ArgumentError, check

__all__ = ["RowTable"]

_PIECE = 64  # rows a scatter, so that few shapes are compiled


class RowTable:
    """A `[capacity, width]` array on the device, and which token has which row.

    Keys are any hashable values: bytes of a token, say. The least recently used go
    first; `get` and `put` make keys recent, in the order that they are given.

    Args:
      capacity: rows.
      width: of a row.
      dtype: of the table.

    Raises:
      ArgumentError: a size below 1.

    Source: arXiv 2411.18553, section 3.2 (5000 to 10000 rows).

    Example:
      >>> table = RowTable(2, 3)
      >>> table.put(["a"], jnp.ones((1, 3))).tolist(), table.keys
      ([0], ('a',))
    """

    def __init__(self, capacity: int, width: int, dtype: Any = jnp.float32):
        check(capacity >= 1, "capacity", capacity, "at least 1")
        check(width >= 1, "width", width, "at least 1")
        self.capacity, self.width = capacity, width
        self._values = jnp.zeros((capacity, width), dtype)
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def values(self) -> jax.Array:
        """`[capacity, width]`, the table. A later `put` takes its memory: copy it, or
        use it before."""
        return self._values

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """Keys from least to most recently used."""
        return tuple(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def slots(self) -> dict[Hashable, int]:
        """Row of every key, from least to most recently used.

        Returns:
          Row by key.

        Example:
          >>> RowTable(2, 3).slots()
          {}
        """
        return dict(self._slots)

    def get(self, keys: Sequence[Hashable]) -> Int32[np.ndarray, " keys"]:
        """Rows of keys that are there; they become recent.

        Args:
          keys: the keys.

        Returns:
          `[keys]` int32 rows of the table.

        Raises:
          ArgumentError: a key that is not there; nothing changes.

        Example:
          >>> table = RowTable(2, 1)
          >>> _ = table.put(["a", "b"], jnp.ones((2, 1)))
          >>> table.get(["a"]).tolist(), table.keys
          ([0], ('b', 'a'))
        """
        for key in keys:
            if key not in self._slots:
                raise ArgumentError(f"keys: got {key!r}, expected keys of the table.")
        for key in keys:
            self._slots.move_to_end(key)
        return np.asarray([self._slots[key] for key in keys], np.int32)

    def put(
        self, keys: Sequence[Hashable], rows: Float[Array, "keys width"]
    ) -> Int32[np.ndarray, " keys"]:
        """Stores rows; keys that are there keep their place and get the new row.

        Args:
          keys: the keys, each once.
          rows: `[keys, width]`.

        Returns:
          `[keys]` int32 rows of the table.

        Raises:
          ArgumentError: rows of another shape, a repeated key, or more new keys than
            free rows; nothing changes.

        Example:
          >>> table = RowTable(1, 1)
          >>> _ = table.put(["a"], jnp.ones((1, 1)))
          >>> table.put(["b"], jnp.ones((1, 1)))
          Traceback (most recent call last):
          jtok.errors.ArgumentError: keys: got 1 new, expected at most the 0 free...
        """
        shape = (len(keys), self.width)
        check(rows.shape == shape, "rows", f"shape {rows.shape}", f"{shape}")
        check(len(set(keys)) == len(keys), "keys", list(keys)[:8], "each once")
        new = [key for key in keys if key not in self._slots]
        free = len(self._free)
        if len(new) > free:
            raise ArgumentError(
                f"keys: got {len(new)} new, expected at most the {free} free of "
                f"{self.capacity} rows; evict some first."
            )
        for key in new:
            self._slots[key] = self._free.pop()
        for key in keys:
            self._slots.move_to_end(key)
        places = np.asarray([self._slots[key] for key in keys], np.int32)
        self._write(places, rows)
        return places

    def evict(self, count: int, *, keep: Iterable[Hashable] = ()) -> list[Hashable]:
        """Forgets the least recently used keys.

        Args:
          count: how many.
          keep: keys that stay, such as those of the batch at hand.

        Returns:
          The keys that went, least recent first.

        Raises:
          ArgumentError: fewer keys than that may go; nothing changes.

        Example:
          >>> table = RowTable(2, 1)
          >>> _ = table.put(["a", "b"], jnp.ones((2, 1)))
          >>> table.evict(1, keep=["a"])
          ['b']
        """
        kept = set(keep)
        going = [key for key in self._slots if key not in kept]
        good = 0 <= count <= len(going)
        check(good, "count", count, f"0 to {len(going)}, the keys that may go")
        going = going[:count]
        for key in going:
            self._free.append(self._slots.pop(key))
        return going

    def rows_for(
        self,
        keys: Sequence[Hashable],
        make: Callable[[list[Hashable]], Float[Array, "missing width"]],
    ) -> Int32[np.ndarray, " keys"]:
        """Rows of the keys of a batch; those that are not there are made and stored.

        Keys of the batch are never evicted for one another.

        Args:
          keys: the keys; the same one may come again.
          make: from the missing keys, each once, to their rows.

        Returns:
          `[keys]` int32 rows of the table.

        Raises:
          ArgumentError: more different keys than rows; nothing changes.

        Example:
          >>> table = RowTable(2, 1)
          >>> table.rows_for(["a", "b", "a"], lambda new: jnp.ones((len(new), 1)))
          array([0, 1, 0], dtype=int32)
        """
        unique = list(dict.fromkeys(keys))
        if len(unique) > self.capacity:
            raise ArgumentError(
                f"keys: got {len(unique)} different ones, expected at most "
                f"{self.capacity}, the rows of the table."
            )
        new = [key for key in unique if key not in self._slots]
        rows = make(new) if new else None
        if rows is not None:
            shape = (len(new), self.width)
            check(rows.shape == shape, "make", f"shape {rows.shape}", f"{shape}")
            self.evict(max(0, len(new) - len(self._free)), keep=unique)
            self.put(new, rows)
        self.get(unique)
        return np.asarray([self._slots[key] for key in keys], np.int32)

    def _write(self, places: np.ndarray, rows: Array) -> None:
        count = len(places)
        size = -(-count // _PIECE) * _PIECE
        padded = np.full(size, self.capacity, np.int32)  # Beyond the table: dropped.
        padded[:count] = places
        filled = jnp.pad(rows, ((0, size - count), (0, 0)))
        if count:
            self._values = _scatter(self._values, jnp.asarray(padded), filled)


@functools.partial(jax.jit, donate_argnums=0)
def _scatter(
    table: Float[Array, "capacity width"],
    places: Int[Array, " rows"],
    rows: Float[Array, "rows width"],
) -> Float[Array, "capacity width"]:
    return table.at[places].set(rows.astype(table.dtype), mode="drop")
