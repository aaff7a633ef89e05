"""States, logits and loss of a decoder whose tables are random.

Source: Huang et al. 2023, arXiv 2305.16349. Differs: logits may be scaled, a map of the
previous token may be added to the input.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.embed.dense_tables import dense_tables, embed_by_tables, logits_by_tables
from jtok.embed.random_tables import (
    LexinvariantModel,
    example_keys,
    lexinvariant_table,
)
from jtok.errors import ArgumentTypeError, VocabMismatchError, check
from jtok.ops import GeneratedTable, generated_cross_entropy, table_rows
from jtok.ops.sharding import constrain

__all__ = [
    "lexinvariant_hidden",
    "lexinvariant_inputs",
    "lexinvariant_logits",
    "lexinvariant_loss",
]

PyTree = Any


def lexinvariant_inputs(
    model: LexinvariantModel,
    rows: Float[Array, "batch seq dim"],
    previous: Float[Array, "batch seq dim"],
) -> Float[Array, "batch seq dim"]:
    """What the decoder reads: the rows, and the map of the previous ones if there is.

    Args:
      model: a lexinvariant model.
      rows: `[batch, seq, dim]` row of each token.
      previous: `[batch, seq, dim]` row of the token before it, 0 where there is none.

    Returns:
      `[batch, seq, dim]`.

    Source: none; arXiv 2305.16349 has no such map.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(
      ...     tiny_model(), key=jax.random.key(0), previous_token=True)
      >>> lexinvariant_inputs(model, jnp.ones((1, 2, 32)), jnp.zeros((1, 2, 32))).shape
      (1, 2, 32)
    """
    if not model.config.previous_token:
        return rows
    linear = model.params["previous"].astype(rows.dtype)
    return rows + jnp.einsum("btd,de->bte", previous, linear)


def lexinvariant_hidden(
    model: LexinvariantModel,
    ids: Int[Array, "batch seq"],
    table: GeneratedTable | Float[Array, "batch vocab dim"],
    *,
    positions: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
) -> Float[Array, "batch seq dim"]:
    """Final states, scaled: their products with the table's rows are the logits.

    Args:
      model: a lexinvariant model.
      ids: `[batch, seq]` int32.
      table: from `lexinvariant_table`, or `[batch, vocab, dim]` tables held whole.
      positions: `[batch, seq]` int32, None counts from 0; a token at position 0 has no
        token before it.
      mask: as `Model` takes it.

    Returns:
      `[batch, seq, dim]` in the model's dtype.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> table = lexinvariant_table(
      ...     model, example_keys(jax.random.key(1), jnp.arange(1)))
      >>> lexinvariant_hidden(model, jnp.array([[5, 6]]), table).shape
      (1, 2, 32)
    """
    if isinstance(table, GeneratedTable):
        rows = table_rows(table, ids)
    else:
        rows = embed_by_tables(table, ids)
    rows = constrain(rows, "batch", "seq", "embed")
    before = jnp.pad(rows, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    if positions is not None:
        before = jnp.where((positions == 0)[..., None], 0, before)
    vectors = lexinvariant_inputs(model, rows, before)
    out = model.body(vectors, positions=positions, mask=mask, logits="none")
    return scaled_states(model, out.hidden)


def scaled_states(model: LexinvariantModel, hidden: Array) -> Array:
    """Final states times the factor that the configuration asks for."""
    kind = model.config.logit_scale
    if kind == "none":
        return hidden
    scale: Any = model.config.model.width**-0.5
    if kind == "learned":
        scale = model.params["logit_scale"]
    return (hidden.astype(jnp.float32) * scale).astype(hidden.dtype)


def softcap_of(config: Any) -> float | None:
    """Cap of the logits of a model, if its kind has one."""
    return getattr(config, "final_softcap", None)


def read_logits(
    model: LexinvariantModel, hidden: Array, tables: GeneratedTable | Array
) -> Array:
    """Float32 logits `[batch, seq, vocab]`; excluded ids at -inf."""
    whole = dense_tables(tables) if isinstance(tables, GeneratedTable) else tables
    config = model.config
    return logits_by_tables(
        hidden, whole, softcap=softcap_of(config.model),
        excluded_ids=config.excluded_ids,
    )  # fmt: skip


def check_ids(ids: Any, size: int) -> None:
    """Refuses ids outside the vocabulary, where they are known (not inside `jit`)."""
    if isinstance(ids, jax.core.Tracer):
        return
    found = np.asarray(ids)
    outside = found.size > 0 and not (found.min() >= 0 and found.max() < size)
    got = (int(found.min()), int(found.max())) if outside else ()
    check(not outside, "ids", got, f"ids in 0..{size - 1}", VocabMismatchError)


def lexinvariant_logits(
    model: LexinvariantModel,
    ids: Int[Array, "batch seq"],
    key: jax.Array | None = None,
    *,
    examples: Int[Array, " batch"] | None = None,
    tables: Float[Array, "batch vocab dim"] | None = None,
    positions: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
) -> Float[Array, "batch seq vocab"]:
    """Logits of the next symbol, with one draw of a table for each sequence.

    All logits are written: for vocabularies of characters. `lexinvariant_loss` and
    `jtok.ops.generated_statistics` stream over large ones.

    Args:
      model: a lexinvariant model.
      ids: `[batch, seq]` int32; inside `jit` those outside the vocabulary are clamped.
      key: typed key of the draws; None with `tables`.
      examples: `[batch]` int32 index of each sequence, None numbers them; equal
        indices get equal tables.
      tables: `[batch, vocab, dim]` in place of draws, None draws.
      positions: `[batch, seq]` int32, None counts from 0.
      mask: as `Model` takes it.

    Returns:
      `[batch, seq, vocab]` float32; excluded ids at -inf.

    Raises:
      ArgumentError: neither a key nor tables, both, or tables of another shape.
      VocabMismatchError: an id outside the vocabulary, outside `jit`.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> lexinvariant_logits(model, jnp.array([[5, 6]]), jax.random.key(1)).shape
      (1, 2, 96)
    """
    check_ids(ids, model.config.model.vocab_size)
    one = (key is None) != (tables is None)
    check(one, "key", "both" if key is not None else None, "a key or tables")
    table: Any = tables
    if key is not None:
        index = jnp.arange(ids.shape[0]) if examples is None else examples
        table = dense_tables(lexinvariant_table(model, example_keys(key, index)))
    size = (ids.shape[0], model.config.model.vocab_size, model.config.model.width)
    check(table.shape == size, "tables", table.shape, f"{size} rows")
    hidden = lexinvariant_hidden(model, ids, table, positions=positions, mask=mask)
    return read_logits(model, hidden, table)


def lexinvariant_loss(
    model: LexinvariantModel, *, block: int | None = None
) -> Callable[..., Any]:
    """Makes the loss of `fit`: mean nats a token, with fresh tables in every step.

    The table of a sequence is keyed by the step's key and the sequence's index in the
    batch, or by the batch's `example` `[batch]` where it has that: draws are the same
    on any mesh. Tables and logits are never written whole.

    Args:
      model: a lexinvariant model; only its configuration is kept. Trainable is
        `model.params`.
      block: vocabulary entries at a time; None leaves that to the operation.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)`, see `jtok.train.fit`. A batch is
      as `jtok.train.lm_loss` takes it: `tokens` `[batch, length + 1]`, maybe `mask`,
      `positions` and `segments`. Excluded ids are no targets. Metric: `tokens`.

    Raises:
      ArgumentTypeError: no lexinvariant model; while tracing: a batch without `tokens`.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = lexinvariant_from(tiny_model(), key=jax.random.key(0))
      >>> batch = {"tokens": jnp.ones((2, 9), jnp.int32)}
      >>> loss, (metrics, _) = lexinvariant_loss(model)(
      ...     model.params, None, None, batch, jax.random.key(1))
      >>> int(metrics["tokens"])
      16
    """
    if not isinstance(model, LexinvariantModel):
        kind = type(model).__name__
        raise ArgumentTypeError(f"model: got {kind}, expected a LexinvariantModel.")
    shell = dataclasses.replace(model, params=None)

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del frozen
        tokens, seen = _read_batch(batch)
        learner = dataclasses.replace(shell, params=trainable)
        index = batch.get("example", jnp.arange(tokens.shape[0]))
        table = lexinvariant_table(learner, example_keys(key, jnp.asarray(index)))
        hidden = lexinvariant_hidden(learner, tokens[:, :-1], table, **seen)
        targets = tokens[:, 1:]
        nats = generated_cross_entropy(
            hidden, table, targets, softcap=softcap_of(shell.config.model), block=block
        )
        counts = jnp.asarray(batch.get("mask", jnp.ones(tokens.shape, bool)))[:, 1:]
        for excluded in shell.config.excluded_ids:
            counts = counts & (targets != excluded)
        count = jnp.sum(counts, dtype=jnp.int32)
        loss = jnp.sum(jnp.where(counts, nats, 0.0)) / jnp.maximum(count, 1)
        return loss, ({"tokens": count}, state)

    return loss_fn


def _read_batch(batch: Any) -> tuple[Array, dict[str, Any]]:
    """The tokens of a batch, and what keeps the documents of its rows apart."""
    if not isinstance(batch, dict) or "tokens" not in batch:
        found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ArgumentTypeError(f"data: got {found}, expected a dict with 'tokens'.")
    seen: dict[str, Any] = {}
    if "positions" in batch:
        seen["positions"] = jnp.asarray(batch["positions"])[:, :-1]
    if "segments" in batch:
        segments = jnp.asarray(batch["segments"])[:, :-1]
        seen["mask"] = jnp.tril(segments[:, :, None] == segments[:, None, :])
    return constrain(jnp.asarray(batch["tokens"]), "batch", None), seen
