"""Vectors of merged batches: what a frozen model reads in place of its own tokens.

Source: Feher et al. 2024, arXiv 2411.18553, Algorithm 2.
"""

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.embed.hypernetwork import (
    Hypernetwork,
    apply_network,
    check_source,
    language_index,
)
from jtok.embed.residual_network import ResidualNetwork, correct_rows
from jtok.embed.row_table import RowTable
from jtok.errors import check
from jtok.text import ByteTokenizer, MergedBatch, surface_forms

__all__ = [
    "DynamicInputs",
    "RowMaker",
    "dynamic_inputs",
    "last_piece_rows",
    "network_rows",
    "piece_mean_rows",
    "residual_rows",
]

# From surface forms `[tokens, pieces]` to input rows `[tokens, width]`.
RowMaker = Callable[[Int[np.ndarray, "tokens pieces"]], Float[Array, "tokens width"]]


class DynamicInputs(NamedTuple):
    """A batch as a model takes it: `model(x.vectors, positions=..., mask=...)`.

    Attributes:
      vectors: `[batch, seq, width]` rows of the tokens, zeros for padding.
      mask: `[batch, seq]` bool, True for tokens.
      positions: `[batch, seq]` int32 from 0 at the first token.
      starts: `[batch, seq]` int32 first piece of each token in the sequence before
        merging, -1 for padding.
      ids: `[batch, seq]` int32 as in `MergedBatch`, -1 for padding.
      truncated: tokens of the batch's vocabulary with more pieces than are read.
    """

    vectors: jax.Array
    mask: jax.Array
    positions: jax.Array
    starts: np.ndarray
    ids: np.ndarray
    truncated: int


def piece_mean_rows(source: Float[Array, "source width"], *, pad_id: int) -> RowMaker:
    """Rows as the mean of the pieces' source rows (FVT); one piece gives its row.

    Args:
      source: `[source, width]` input rows.
      pad_id: fills surface forms up.

    Returns:
      `RowMaker`. Pieces beyond the source do not count; a form without any other
      gives zeros.

    Source: Gee et al. 2022, arXiv 2402.09977, section 3; the baseline of arXiv
    2411.18553.

    Example:
      >>> make = piece_mean_rows(jnp.array([[0.0], [1.0], [3.0]]), pad_id=0)
      >>> make(np.array([[1, 2, 0], [2, 0, 0]])).tolist()
      [[2.0], [3.0]]
    """

    def make(forms: Int[np.ndarray, "tokens pieces"]) -> Float[Array, "tokens width"]:
        return _piece_mean(source, jnp.asarray(forms), pad_id)

    return make


@jax.jit
def _piece_mean(source: Array, forms: Array, pad_id: Any) -> Array:
    counts = _real(forms, pad_id) & (forms < source.shape[0])
    rows = source.at[forms].get(mode="clip").astype(jnp.float32)
    total = jnp.sum(jnp.where(counts[..., None], rows, 0.0), axis=1)
    number = jnp.sum(counts, axis=1, dtype=jnp.float32)
    return total / jnp.maximum(number, 1.0)[:, None]


def _real(forms: Array, pad_id: Any) -> Array:
    """Pieces that are no filler; a first piece that is the padding token is itself."""
    return (forms != pad_id) | (jnp.arange(forms.shape[1]) == 0)[None]


def last_piece_rows(source: Float[Array, "source width"], *, pad_id: int) -> RowMaker:
    """Rows of the last piece that is read: a baseline that forgets the others.

    Args:
      source: `[source, width]` input rows.
      pad_id: fills surface forms up.

    Returns:
      `RowMaker`.

    Source: none.

    Example:
      >>> make = last_piece_rows(jnp.array([[0.0], [1.0], [3.0]]), pad_id=0)
      >>> make(np.array([[1, 2, 0], [1, 0, 0]])).tolist()
      [[3.0], [1.0]]
    """

    def make(forms: Int[np.ndarray, "tokens pieces"]) -> Float[Array, "tokens width"]:
        place = jnp.asarray(forms)
        last = jnp.sum(_real(place, pad_id), axis=1) - 1
        ids = jnp.take_along_axis(place, last[:, None], axis=1)[:, 0]
        return source.at[ids].get(mode="clip").astype(jnp.float32)

    return make


def network_rows(
    network: Hypernetwork,
    source: Float[Array, "source width"],
    *,
    language: int | str | None = None,
) -> RowMaker:
    """Input rows as a network predicts them.

    Args:
      network: the network.
      source: rows that it reads, see `source_rows`.
      language: as for `predict_rows`.

    Returns:
      `RowMaker`, compiled once a size class.

    Raises:
      ArgumentError: rows that do not fit, or an unknown language.

    Source: arXiv 2411.18553, Algorithm 2.

    Example:
      >>> from jtok.embed import HypernetworkConfig, init_hypernetwork
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> network_rows(network, jnp.ones((50, 8)))(np.array([[3, 0]])).shape
      (1, 8)
    """
    check_source(source, network.config)
    index = language_index(network, language)

    def make(forms: Int[np.ndarray, "tokens pieces"]) -> Float[Array, "tokens width"]:
        place = jnp.asarray(forms)
        made = _apply(network.params, network.config, source, place, index, None)
        return made.input

    return make


_apply = jax.jit(apply_network, static_argnums=(1, 5))


def residual_rows(
    network: ResidualNetwork,
    source: Float[Array, "source width"],
    *,
    pad_id: int,
) -> RowMaker:
    """Input rows as a network corrects the pooled ones of their pieces.

    Args:
      network: the network.
      source: `[source, kinds width]` input rows, beside them output rows if untied.
      pad_id: fills surface forms up.

    Returns:
      `RowMaker`.

    Source: tokenkit.

    Example:
      >>> from jtok.embed import PieceMixerConfig, init_residual_network
      >>> config = PieceMixerConfig(row_width=1, hidden=4, intermediate=8,
      ...     pooling="mean")
      >>> network = init_residual_network(config, jax.random.key(0))
      >>> make = residual_rows(network, jnp.array([[0.0], [1.0], [3.0]]), pad_id=0)
      >>> make(np.array([[1, 2, 0]])).tolist()
      [[2.0]]
    """

    def make(forms: Int[np.ndarray, "tokens pieces"]) -> Float[Array, "tokens width"]:
        return _corrected(network, source, jnp.asarray(forms), pad_id)[:, 0]

    return make


@jax.jit
def _corrected(
    network: ResidualNetwork, source: Array, forms: Array, pad_id: Any
) -> Array:
    shape = (*forms.shape, network.config.kinds, network.config.row_width)
    rows = source.at[forms].get(mode="clip").reshape(shape)
    return correct_rows(network, rows, _real(forms, pad_id))


def dynamic_inputs(
    batch: MergedBatch,
    tokenizer: ByteTokenizer,
    source: Float[Array, "source width"],
    make: RowMaker,
    *,
    pad_id: int,
    maxlen: int = 7,
    originals: Literal["all", "specials"] = "all",
    side: Literal["right", "left"] = "right",
    table: RowTable | None = None,
    length_multiple: int = 16,
    row_multiple: int = 64,
) -> DynamicInputs:
    """Vectors of a merged batch, made once for each of its different tokens.

    Lengths and numbers of tokens are filled up to multiples, so that few shapes are
    compiled.

    Args:
      batch: the merged batch.
      tokenizer: that its ids are of.
      source: `[source, width]` input rows of the model.
      make: makes rows, such as `network_rows` or `piece_mean_rows`.
      pad_id: fills surface forms up.
      maxlen: pieces that `make` gets of a token.
      originals: which tokens keep their source rows: all that the source has, so that
        without merges the model says what it always does, or special ones alone, as
        networks are trained.
      side: where rows are filled up; left for prompts that are gone on with.
      table: keeps made rows for later batches; None makes all anew.
      length_multiple: of `seq`.
      row_multiple: of the number of tokens that `make` gets.

    Returns:
      `DynamicInputs`, vectors in the dtype of `source`.

    Raises:
      ArgumentError: a multiple or `maxlen` below 1, an unknown side or `originals`, or
        more tokens than the table has rows.

    Source: arXiv 2411.18553, Algorithm 2.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> from jtok.text import merge_batch, merge_rule
      >>> rule = merge_rule(tiny_vocabulary())
      >>> batch = merge_batch(rule, [rule.tokenizer.encode("zz z")], 1)
      >>> source = jnp.eye(280)
      >>> out = dynamic_inputs(batch, rule.tokenizer, source,
      ...     piece_mean_rows(source, pad_id=0), pad_id=0)
      >>> out.vectors.shape, int(out.mask.sum())
      ((1, 16, 280), 3)
    """
    for name, value in (
        ("length_multiple", length_multiple), ("row_multiple", row_multiple)
    ):  # fmt: skip
        check(value >= 1, name, value, "at least 1")
    check(side in ("right", "left"), "side", side, "'right' or 'left'")
    known = originals in ("all", "specials")
    check(known, "originals", originals, "'all' or 'specials'")
    ids, starts = _padded(batch, side, length_multiple)
    unique, place = np.unique(ids, return_inverse=True)
    place = place.reshape(ids.shape)
    keep = _keeps(unique, tokenizer, source.shape[0], originals)
    tokens = [_token(batch, tokenizer, int(id_)) for id_ in unique[~keep]]
    forms = surface_forms(tokenizer, tokens, maxlen=maxlen, pad_id=pad_id)
    made, slots = _made(forms.ids, tokens, make, table, source, pad_id, row_multiple)
    # Where each token's row is: in the source, or behind it among the made ones.
    where = np.maximum(unique, 0)
    where[~keep] = source.shape[0] + slots
    mask = ids >= 0
    vectors = _gather(source, made, jnp.asarray(where[place]), jnp.asarray(mask))
    first = np.argmax(mask, axis=1)[:, None]
    positions = np.maximum(np.arange(ids.shape[1])[None] - first, 0).astype(np.int32)
    return DynamicInputs(
        vectors, jnp.asarray(mask), jnp.asarray(positions), starts, ids,
        int(forms.truncated.sum()),
    )  # fmt: skip


def _padded(
    batch: MergedBatch, side: str, multiple: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and starts `[batch, seq]`, -1 for padding."""
    most = max((*batch.lengths, 1))
    shape = (len(batch.ids), -(-most // multiple) * multiple)
    ids, starts = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    for row, (own, first) in enumerate(zip(batch.ids, batch.starts, strict=True)):
        low = shape[1] - len(own) if side == "left" else 0
        ids[row, low : low + len(own)] = own
        starts[row, low : low + len(own)] = first
    return ids, starts


def _keeps(
    unique: np.ndarray, tokenizer: ByteTokenizer, rows: int, originals: str
) -> np.ndarray:
    """Which tokens keep their source rows; padding does not count."""
    special = np.isin(unique, sorted(tokenizer.special_ids))
    own = unique < min(tokenizer.vocabulary.size, rows)
    return (unique < 0) | (own & ((originals == "all") | special))


def _token(batch: MergedBatch, tokenizer: ByteTokenizer, id_: int) -> bytes | int:
    if id_ >= batch.size:
        return batch.merged[id_ - batch.size]
    return tokenizer.token_bytes[id_] or id_


def _made(
    forms: np.ndarray,
    tokens: list[bytes | int],
    make: RowMaker,
    table: RowTable | None,
    source: Array,
    pad_id: int,
    multiple: int,
) -> tuple[Array, np.ndarray]:
    """Made rows, and which of them each token has."""

    def rows(wanted: np.ndarray) -> Array:
        size = -(-len(wanted) // multiple) * multiple
        filler = ((0, size - len(wanted)), (0, 0))
        filled = np.pad(wanted, filler, constant_values=pad_id)
        return make(filled.astype(np.int32))

    if not tokens:
        return jnp.zeros((1, source.shape[1]), jnp.float32), np.zeros(0, np.int32)
    if table is None:
        return rows(forms), np.arange(len(tokens), dtype=np.int32)
    places = {token: row for row, token in enumerate(tokens)}

    def missing(new: list[Hashable]) -> Array:
        wanted = np.asarray([places[token] for token in new])  # type: ignore[index]
        return rows(forms[wanted])[: len(new)]

    slots = table.rows_for(tokens, missing)
    return table.values, slots


@jax.jit
def _gather(
    source: Float[Array, "source width"],
    made: Float[Array, "made width"],
    where: Int[Array, "batch seq"],
    mask: Array,
) -> Float[Array, "batch seq width"]:
    size = source.shape[0]
    old = source.at[where].get(mode="clip")
    new = made.at[jnp.maximum(where - size, 0)].get(mode="clip").astype(source.dtype)
    rows = jnp.where((where >= size)[..., None], new, old)
    return jnp.where(mask[..., None], rows, 0)
