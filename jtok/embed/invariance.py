"""Predictions of a lexinvariant model that depend less, or not at all, on the draw.

Source: Huang et al. 2023, arXiv 2305.16349 (invariance in distribution over the draw).
Differs: averages over draws, and tables by first appearance, which are exactly
invariant.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.embed.dense_tables import dense_tables
from jtok.embed.lexinvariant import (
    check_ids,
    lexinvariant_hidden,
    lexinvariant_logits,
    read_logits,
)
from jtok.embed.random_tables import LexinvariantModel, example_keys, lexinvariant_table
from jtok.errors import check

__all__ = [
    "averaged_log_probs",
    "first_appearance",
    "invariant_log_probs",
    "share_unseen",
]


def averaged_log_probs(
    model: LexinvariantModel,
    ids: Int[Array, "batch seq"],
    key: jax.Array,
    *,
    draws: int = 1,
    examples: Int[Array, " batch"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq vocab"]:
    """Log-probabilities of the next symbol, averaged over draws of the table.

    Draws run one after the other, so the memory is that of one.

    Args:
      model: a lexinvariant model.
      ids: `[batch, seq]` int32.
      key: typed key; draw k uses `fold_in(key, k)`.
      draws: tables for each sequence, at least 1 (static).
      examples: as for `lexinvariant_logits`.
      mask: `[batch, seq]` True for real tokens, None for all.

    Returns:
      `[batch, seq, vocab]` float32 nats.

    Raises:
      ArgumentError: no draw.
      VocabMismatchError: an id outside the vocabulary, outside `jit`.

    Source: arXiv 2305.16349, section 3. Differs: more than one draw.

    Example:
      >>> from jtok.embed import lexinvariant_from
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> found = averaged_log_probs(
      ...     model, jnp.array([[5, 6]]), jax.random.key(1), draws=2)
      >>> bool(jnp.allclose(jnp.exp(found).sum(-1), 1))
      True
    """
    check(draws >= 1, "draws", draws, "at least 1")
    check_ids(ids, model.config.model.vocab_size)

    def one(total: Array, index: Array) -> tuple[Array, None]:
        logits = lexinvariant_logits(
            model, ids, jax.random.fold_in(key, index), examples=examples, mask=mask
        )
        return jnp.logaddexp(total, jax.nn.log_softmax(logits, axis=-1)), None

    start = jnp.full((*ids.shape, model.config.model.vocab_size), -jnp.inf)
    total, _ = jax.lax.scan(one, start, jnp.arange(draws))
    return total - jnp.log(jnp.float32(draws))


def first_appearance(
    ids: Int[Array, "batch seq"],
    vocab_size: int,
    *,
    fixed_ids: tuple[int, ...] = (),
    mask: Bool[Array, "batch seq"] | None = None,
) -> Int[Array, "batch vocab"]:
    """New names by first appearance: the k-th distinct symbol is called k.

    Symbols that do not occur get the remaining names, in the order of their ids.
    `fixed_ids` keep their own name, and the others share the rest.

    Args:
      ids: `[batch, seq]` int32 in the vocabulary.
      vocab_size: number of symbols (static).
      fixed_ids: symbols that are not renamed (static).
      mask: `[batch, seq]` True for real tokens, None for all.

    Returns:
      `[batch, vocab]` int32, a permutation a row: name of each id.

    Source: none; arXiv 2305.16349 draws tables at random.

    Example:
      >>> first_appearance(jnp.array([[2, 0, 2]]), 4).tolist()
      [[1, 2, 0, 3]]
    """
    batch, seq = ids.shape
    places = jnp.broadcast_to(jnp.arange(seq)[None], ids.shape)
    if mask is not None:
        places = jnp.where(mask, places, seq)
    rows = jnp.arange(batch)[:, None]
    first = jnp.full((batch, vocab_size), seq).at[rows, ids].min(places)
    free = [i for i in range(vocab_size) if i not in set(fixed_ids)]
    among = jnp.asarray(free, jnp.int32)
    order = jnp.argsort(first[:, among], axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    names = jnp.broadcast_to(jnp.arange(vocab_size, dtype=jnp.int32)[None], first.shape)
    return names.at[:, among].set(among[rank])


def share_unseen(
    log_probs: Float[Array, "batch seq vocab"],
    ids: Int[Array, "batch seq"],
    *,
    kept_ids: tuple[int, ...] = (),
) -> Float[Array, "batch seq vocab"]:
    """Gives all symbols that a sequence has not shown yet the same probability.

    Args:
      log_probs: `[batch, seq, vocab]` float32 of the next symbol, in nats.
      ids: `[batch, seq]` int32 symbols, the one at each position included.
      kept_ids: symbols that are never counted as unseen (static).

    Returns:
      `[batch, seq, vocab]` with the same total.

    Source: none; a lexinvariant model must do so, arXiv 2305.16349, section 2.

    Example:
      >>> log_probs = jnp.log(jnp.array([[[0.5, 0.4, 0.1]]]))
      >>> jnp.exp(share_unseen(log_probs, jnp.array([[0]]))).round(2).tolist()
      [[[0.5, 0.25, 0.25]]]
    """
    vocab = log_probs.shape[-1]
    shown = jax.nn.one_hot(ids, vocab, dtype=jnp.int32)
    seen = jnp.cumsum(shown, axis=1) > 0
    for kept in kept_ids:
        seen = seen.at[..., kept].set(True)
    unseen = jnp.where(seen, -jnp.inf, log_probs)
    count = jnp.maximum(jnp.sum(~seen, axis=-1, keepdims=True), 1)
    total = jax.nn.logsumexp(unseen, axis=-1, keepdims=True)
    return jnp.where(seen, log_probs, total - jnp.log(count.astype(jnp.float32)))


def invariant_log_probs(
    model: LexinvariantModel,
    ids: Int[Array, "batch seq"],
    key: jax.Array,
    *,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq vocab"]:
    """Log-probabilities that renaming permutes, exactly: the same table for all.

    The k-th distinct symbol of every sequence gets row k of one table, and unseen
    symbols share their probability. The same key gives the same predictions.

    Args:
      model: a lexinvariant model, q = 1; fixed and excluded ids are not renamed.
      ids: `[batch, seq]` int32.
      key: typed key of the one table.
      mask: `[batch, seq]` True for real tokens, None for all.

    Returns:
      `[batch, seq, vocab]` float32 nats.

    Raises:
      ArgumentError: a model with q < 1.
      VocabMismatchError: an id outside the vocabulary, outside `jit`.

    Source: none; arXiv 2305.16349 draws a table for every sequence.

    Example:
      >>> from jtok.embed import lexinvariant_from
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> a, b = invariant_log_probs(
      ...     model, jnp.array([[5, 6], [6, 5]]), jax.random.key(1))[:, 1]
      >>> bool(a[5] == b[6])
      True
    """
    config: Any = model.config
    check(config.q == 1, "model", f"q={config.q}", "a model with q=1")
    size = config.model.vocab_size
    check_ids(ids, size)
    kept = tuple(sorted({*config.fixed_ids, *config.excluded_ids}))
    names = first_appearance(ids, size, fixed_ids=kept, mask=mask)
    renamed = jnp.take_along_axis(names, ids, axis=1)
    same = jnp.zeros(ids.shape[0], jnp.int32)
    table = dense_tables(lexinvariant_table(model, example_keys(key, same)))
    hidden = lexinvariant_hidden(model, renamed, table, mask=mask)
    log_probs = jax.nn.log_softmax(read_logits(model, hidden, table), axis=-1)
    # Shared among names, so that equal texts under renaming add up in equal order.
    log_probs = share_unseen(log_probs, renamed, kept_ids=kept)
    return jnp.take_along_axis(log_probs, names[:, None, :], axis=-1)
