"""Tables that are held whole, one a sequence: for small vocabularies, or by hand.

Source: Huang et al. 2023, arXiv 2305.16349, sections 3 and 6.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.ops import GeneratedTable, table_rows

__all__ = ["dense_tables", "embed_by_tables", "logits_by_tables", "mix_tables"]


def dense_tables(table: GeneratedTable) -> Float[Array, "batch vocab dim"]:
    """Writes generated tables whole.

    Args:
      table: from `jtok.ops.generated_table` or `lexinvariant_table`.

    Returns:
      `[batch, vocab, dim]` in the table's dtype.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> keys = example_keys(jax.random.key(0), jnp.arange(2))
      >>> dense_tables(jtok.ops.generated_table(keys, 5, 4)).shape
      (2, 5, 4)
    """
    shape = (table.keys.shape[0], table.vocab_size)
    every = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
    return table_rows(table, every)


def mix_tables(
    tables: Float[Array, "batch vocab dim"],
    learned: Float[Array, "vocab dim"],
    random_rows: Bool[Array, "batch vocab"],
) -> Float[Array, "batch vocab dim"]:
    """Tables whose entries are random where that is said, and learned elsewhere.

    Args:
      tables: `[batch, vocab, dim]` random rows.
      learned: `[vocab, dim]` learned rows.
      random_rows: `[batch, vocab]` which entries are random.

    Returns:
      `[batch, vocab, dim]`.

    Source: arXiv 2305.16349, section 6.

    Example:
      >>> mixed = mix_tables(jnp.ones((1, 2, 3)), jnp.zeros((2, 3)),
      ...     jnp.array([[True, False]]))
      >>> mixed[0, :, 0].tolist()
      [1.0, 0.0]
    """
    return jnp.where(random_rows[..., None], tables, learned[None].astype(tables.dtype))


def embed_by_tables(
    tables: Float[Array, "batch vocab dim"], ids: Int[Array, "batch seq"]
) -> Float[Array, "batch seq dim"]:
    """Rows of tokens, each sequence from its own table.

    Args:
      tables: `[batch, vocab, dim]`.
      ids: `[batch, seq]` int32; those outside the vocabulary are clamped.

    Returns:
      `[batch, seq, dim]`.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> embed_by_tables(jnp.eye(3)[None], jnp.array([[2, 0]])).tolist()
      [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
    """
    ids = jnp.clip(ids, 0, tables.shape[1] - 1)
    return jnp.take_along_axis(tables, ids[..., None], axis=1)


def logits_by_tables(
    hidden: Float[Array, "batch seq dim"],
    tables: Float[Array, "batch vocab dim"],
    *,
    softcap: float | None = None,
    excluded_ids: tuple[int, ...] = (),
) -> Float[Array, "batch seq vocab"]:
    """Logits of all symbols, each sequence against its own table; no scaling.

    Args:
      hidden: `[batch, seq, dim]` final states.
      tables: `[batch, vocab, dim]`.
      softcap: logits become `softcap * tanh(logits / softcap)`, None for no cap.
      excluded_ids: ids that get -inf (static).

    Returns:
      `[batch, seq, vocab]` float32.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> logits_by_tables(jnp.ones((1, 1, 3)), jnp.eye(3)[None]).tolist()
      [[[1.0, 1.0, 1.0]]]
    """
    logits = jnp.einsum(
        "btd,bvd->btv", hidden, tables, preferred_element_type=jnp.float32
    )
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    if not excluded_ids:
        return logits
    return logits.at[..., jnp.asarray(excluded_ids)].set(-jnp.inf)
