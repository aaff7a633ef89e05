"""Tables of random rows that are made where they are read, one table a sequence.

Row `id` of a sequence's table is a function of the sequence's key and the id alone, so
it is the same whatever the block, the sharding or the order of the batch. A table for
a large vocabulary is never held: the softmax over it is streamed in blocks, and its
gradient makes the rows once more.

Source: Huang et al. 2023, arXiv 2305.16349 (a random embedding for each sequence).
Differs: rows come from a counter-based generator, and learned rows may be mixed in.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from jtok.errors import check

__all__ = [
    "GeneratedTable",
    "generated_rows",
    "generated_table",
    "random_entries",
    "table_rows",
]

_MIXING = 2**31 + 2  # above every id, so that no choice meets the noise of a row


@struct.dataclass
class GeneratedTable:
    """One table of rows for every sequence of a batch, none of which is stored.

    Attributes:
      keys: `[batch, 2]` uint32 raw threefry keys, one a sequence.
      scale: float32 factor on the random rows.
      learned: `[vocab, dim]` rows of the entries that are not random, or None.
      fixed_rows: `[fixed, dim]` rows of `fixed_ids` in every table, or None.
      vocab_size: rows of a table.
      dim: size of a row.
      q: probability that an entry is random, for each sequence and entry.
      fixed_ids: ids that are never random.
      excluded_ids: ids without probability, such as padding.
      dtype: of the rows.
    """

    keys: jax.Array
    scale: jax.Array
    learned: jax.Array | None
    fixed_rows: jax.Array | None
    vocab_size: int = struct.field(pytree_node=False)
    dim: int = struct.field(pytree_node=False)
    q: float = struct.field(pytree_node=False)
    fixed_ids: tuple[int, ...] = struct.field(pytree_node=False)
    excluded_ids: tuple[int, ...] = struct.field(pytree_node=False)
    dtype: str = struct.field(pytree_node=False)


def generated_rows(
    keys: UInt32[Array, "batch 2"],
    ids: Int[Array, "batch rows"],
    dim: int,
    scale: float | Float[Array, ""] = 1.0,
    dtype: Any = jnp.float32,
) -> Float[Array, "batch rows dim"]:
    """Random rows of chosen ids: standard normal, times `scale`.

    Row `id` equals `scale * jax.random.normal(jax.random.fold_in(key, id), (dim,))` of
    the sequence's key. It is drawn in float32 and cast.

    Args:
      keys: `[batch, 2]` uint32 raw threefry keys.
      ids: `[batch, rows]` int32, at least 0; any size of vocabulary.
      dim: size of a row (static).
      scale: float32 factor.
      dtype: of the result (static).

    Returns:
      `[batch, rows, dim]`.

    Source: arXiv 2305.16349, section 3. Differs: keyed by the token id.

    Example:
      >>> keys = row_keys(jnp.array([7, 8]))
      >>> generated_rows(keys, jnp.array([[3], [3]]), 4).shape
      (2, 1, 4)
    """

    def one(key: Array, token: Array) -> Array:
        folded = jax.random.fold_in(_typed(key), token)
        return jax.random.normal(folded, (dim,), jnp.float32)

    made = jax.vmap(jax.vmap(one, (None, 0)))(keys, ids)
    return (made * jnp.float32(scale)).astype(dtype)


def random_entries(
    keys: UInt32[Array, "batch 2"], ids: Int[Array, "batch rows"], q: float
) -> Bool[Array, "batch rows"]:
    """Which entries of each sequence's table are random: each with probability `q`.

    Args:
      keys: `[batch, 2]` uint32 raw threefry keys.
      ids: `[batch, rows]` int32.
      q: probability in [0, 1] (static); 0 chooses none, 1 all.

    Returns:
      `[batch, rows]` bool, independent of the rows themselves.

    Raises:
      ArgumentError: `q` outside [0, 1].

    Source: arXiv 2305.16349, section 6 (partial lexinvariance).

    Example:
      >>> keys = row_keys(jnp.array([7]))
      >>> bool(random_entries(keys, jnp.arange(5)[None], 1.0).all())
      True
    """
    check(0 <= q <= 1, "q", q, "a probability, 0 to 1")

    def one(key: Array, token: Array) -> Array:
        mixing = jax.random.fold_in(_typed(key), jnp.uint32(_MIXING))
        return jax.random.uniform(jax.random.fold_in(mixing, token)) < q

    return jax.vmap(jax.vmap(one, (None, 0)))(keys, ids)


def _typed(key: Array) -> Array:
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def generated_table(
    keys: UInt32[Array, "batch 2"],
    vocab_size: int,
    dim: int,
    *,
    q: float = 1.0,
    scale: float | Float[Array, ""] = 1.0,
    learned: Float[Array, "vocab dim"] | None = None,
    fixed_ids: tuple[int, ...] = (),
    fixed_rows: Float[Array, "fixed dim"] | None = None,
    excluded_ids: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> GeneratedTable:
    """Describes the tables of a batch of sequences; nothing is drawn yet.

    Args:
      keys: `[batch, 2]` uint32 raw threefry keys, one a sequence.
      vocab_size: rows of a table (static).
      dim: size of a row (static).
      q: probability that an entry is random (static); below 1 `learned` is needed.
      scale: float32 factor on random rows, such as the spread of the learned ones.
      learned: `[vocab, dim]` rows of the other entries.
      fixed_ids: ids that are never random (static), such as BOS.
      fixed_rows: `[fixed, dim]` their rows; None takes them from `learned`.
      excluded_ids: ids that get no probability (static), such as padding.
      dtype: of the rows (static).

    Returns:
      `GeneratedTable`.

    Raises:
      ArgumentError: `q` outside [0, 1], ids outside the vocabulary or all of them
        excluded, or rows that are missing or of another shape.

    Source: arXiv 2305.16349, sections 3 and 6.

    Example:
      >>> table = generated_table(row_keys(jnp.array([7])), 5, 4)
      >>> table_rows(table, jnp.array([[0, 4]])).shape
      (1, 2, 4)
    """
    check(0 <= q <= 1, "q", q, "a probability, 0 to 1")
    check(vocab_size >= 1, "vocab_size", vocab_size, "at least 1")
    check(dim >= 1, "dim", dim, "at least 1")
    for name, ids in (("fixed_ids", fixed_ids), ("excluded_ids", excluded_ids)):
        good = all(0 <= i < vocab_size for i in ids) and len(set(ids)) == len(ids)
        check(good, name, ids, f"different ids in 0..{vocab_size - 1}")
    some = len(excluded_ids) < vocab_size
    check(some, "excluded_ids", excluded_ids, "fewer ids than there are")
    if learned is not None:
        good = learned.shape == (vocab_size, dim)
        check(good, "learned", learned.shape, f"[{vocab_size}, {dim}] rows")
    else:
        check(q == 1, "learned", None, f"[{vocab_size}, {dim}] rows, as q={q} is not 1")
    if fixed_rows is not None:
        good = fixed_rows.shape == (len(fixed_ids), dim)
        check(good, "fixed_rows", fixed_rows.shape, f"[{len(fixed_ids)}, {dim}] rows")
    elif learned is None:
        check(not fixed_ids, "fixed_rows", None, f"a row for each of {fixed_ids}")
    return GeneratedTable(
        keys, jnp.asarray(scale, jnp.float32), learned, fixed_rows, vocab_size, dim,
        float(q), tuple(fixed_ids), tuple(excluded_ids), jnp.dtype(dtype).name,
    )  # fmt: skip


def table_rows(
    table: GeneratedTable, ids: Int[Array, "batch rows"]
) -> Float[Array, "batch rows dim"]:
    """Rows of chosen ids in each sequence's table: random, learned or fixed.

    Gradients reach the learned and the fixed rows, and the scale.

    Args:
      table: from `generated_table`.
      ids: `[batch, rows]` int32; ids outside the vocabulary are clamped.

    Returns:
      `[batch, rows, dim]` in the table's dtype.

    Source: arXiv 2305.16349, sections 3 and 6.

    Example:
      >>> table = generated_table(row_keys(jnp.array([7])), 5, 4)
      >>> same = table_rows(table, jnp.array([[3, 3]]))
      >>> bool((same[0, 0] == same[0, 1]).all())
      True
    """
    ids = jnp.clip(ids, 0, table.vocab_size - 1)
    learned = None if table.learned is None else table.learned[ids]
    return mixed_rows(table, ids, learned)


def mixed_rows(table: GeneratedTable, ids: Array, learned: Array | None) -> Array:
    """Rows `[batch, rows, dim]`, given the learned rows of the same ids or None."""
    if learned is not None and table.q == 0 and table.fixed_rows is None:
        return jnp.broadcast_to(learned, (*ids.shape, table.dim)).astype(table.dtype)
    made = generated_rows(table.keys, ids, table.dim, table.scale, table.dtype)
    if learned is not None:
        chosen = random_entries(table.keys, ids, table.q) & ~among(ids, table.fixed_ids)
        made = jnp.where(chosen[..., None], made, learned.astype(made.dtype))
    if table.fixed_rows is not None:
        for index, fixed in enumerate(table.fixed_ids):
            row = table.fixed_rows[index].astype(made.dtype)[None, None]
            made = jnp.where((ids == fixed)[..., None], row, made)
    return made


def among(ids: Array, some: tuple[int, ...]) -> Array:
    found = jnp.zeros(ids.shape, bool)
    for one in some:
        found = found | (ids == one)
    return found
