"""Rows for new tokens from their pieces and from what is spelled or meant alike.

Source: Sharthak et al. 2025, arXiv 2505.09738, and its code.
"""

import dataclasses
import os
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtok.embed.encoders import Encoder, TextVectors
from jtok.embed.init import (
    HOW,
    EmbeddingInit,
    Made,
    Options,
    Task,
    initialiser,
)
from jtok.embed.mixing import (
    Mix,
    global_weights,
    hybrid,
    local_weights,
    mixed_rows,
    nearest_tokens,
    unit,
)
from jtok.errors import ArgumentError, check
from jtok.text import Vocabulary
from jtok.text.overlap import spelled_bytes
from jtok.text.pieces import decompose

__all__ = ["tokenadapt"]

Compat = Literal["official"]
_MADE, _FALLBACK = HOW.index("made"), HOW.index("fallback")


def tokenadapt(
    encoder: Encoder | None = None,
    *,
    k: int = 3,
    weight: float = 0.3,
    temperature: float = 0.3,
    threshold: float | None = None,
    length_unit: Literal["byte", "char"] | None = None,
    fallback: Literal["normal", "mean"] = "normal",
    cache: str | os.PathLike[str] | None = None,
    encoder_name: str | None = None,
    options: Options | None = None,
    compat: Compat | None = None,
) -> EmbeddingInit:
    """New rows are weighted sums: of the token's pieces, and of its nearest neighbours.

    The pieces are those of the old tokenizer, weighted by likeness to the token and by
    length. The neighbours are the old tokens whose texts have the nearest vectors; ties
    go to the lower id. Both matrices get the same weights. A token that can be made
    neither way (it has no pieces or a zero vector, nothing is above the threshold) gets
    the fallback.

    Args:
      encoder: `(list of texts) -> [texts, dim]`, such as `hashed_ngrams()` or
        `model_encoder(model)`; needed.
      k: neighbours, at least 1.
      weight: share of the neighbours, of 0 to 1. At 0 only pieces count, at 1 only
        neighbours.
      temperature: of the weights, above 0; 1e-5 is added.
      threshold: least cosine of a neighbour; None for any.
      length_unit: what lengths are counted in: "byte" of the token as it is spelled,
        or "char" of its decoded text. None is "byte", or "char" with `compat`.
      fallback: "normal" draws with the mean and deviation of all entries of the
        matrix; "mean" is the mean row.
      cache: npz in which the encoder's vectors are kept between runs.
      encoder_name: of the encoder in that file, where it has no `name`.
      options: what all methods take. Its `anchors` are the only neighbours, too.
      compat: "official" works on decoded texts, matches tokens by printed form, and
        takes special tokens, pieces of characters and tokens without a row (which are
        dropped again) for neighbours. The official threshold is `threshold=0.0`.

    Returns:
      `EmbeddingInit`. Its report counts valid estimates of either kind.

    Raises:
      ArgumentError: no encoder, an option out of range, or an encoder that gives other
        shapes or numbers that are not finite.
      CheckpointError: `cache` is damaged.
      WriteError: `cache` cannot be written.

    Source: Sharthak et al. 2025, arXiv 2505.09738, hybrid heuristic. Differs: bytes in
    place of decoded texts; special tokens match by role and are no neighbours, nor are
    bytes that are no UTF-8; float32.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((270, 2)), None, tiny_vocabulary(270))
      >>> method = tokenadapt(hashed_ngrams())
      >>> made, _, _ = method(tiny_vocabulary(), rows, jax.random.key(0))
      >>> made[-1].round(3).tolist()
      [1.0, 1.0]
    """
    if encoder is None:
        raise ArgumentError(
            "encoder: got None, expected a callable from texts to vectors, such as "
            "jtok.embed.hashed_ngrams()."
        )
    unit_of_length = length_unit or ("char" if compat else "byte")
    check(k >= 1, "k", k, "at least 1")
    check(0 <= weight <= 1, "weight", weight, "0 to 1")
    check(temperature > 0, "temperature", temperature, "above 0")
    good = unit_of_length in ("byte", "char")
    check(good, "length_unit", length_unit, "'byte' or 'char'")
    check(fallback in ("normal", "mean"), "fallback", fallback, "'normal' or 'mean'")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    options = options or Options()
    if compat is not None:
        options = dataclasses.replace(options, compat=compat)
    vectors = TextVectors(encoder, cache, name=encoder_name)
    settings = _Settings(
        vectors, k, weight, temperature, threshold, unit_of_length == "char", compat,
        options.anchors,
    )  # fmt: skip
    last: list[tuple[Any, Mix, dict[str, int]]] = []

    def make(task: Task) -> Made:
        asked = (
            task.source_vocabulary.hash, task.target_vocabulary.hash,
            task.source.shape[0], task.ids.tobytes(),
        )  # fmt: skip
        if not last or last[0][0] != asked:  # The other matrix takes the same weights.
            last[:] = [(asked, *_weigh(task, settings))]
            vectors.save()
        _, mix, extras = last[0]
        rows = _filled(task, mix, fallback)
        how = np.where(np.asarray(mix.valid), _MADE, _FALLBACK).astype(np.int8)
        return Made(rows, how, extras)

    return initialiser("tokenadapt", make, options)


class _Settings(NamedTuple):
    vectors: TextVectors
    k: int
    weight: float
    temperature: float
    threshold: float | None
    characters: bool
    compat: Compat | None
    anchors: tuple[int, ...] | None


class _Texts(NamedTuple):
    """What tokens say, and how long they are."""

    texts: list[str]
    lengths: np.ndarray


class _Seen(NamedTuple):
    """What the weights are made of.

    Attributes:
      old: of every source id, and `new` of every target id.
      pieces: `[new, most]` source ids, -1 where there is none.
      may_be_near: `[old]` which source tokens may be neighbours.
      wanted: `[new, aux]` vectors of the new tokens.
      table: `[old, aux]` vectors of the source tokens, zero where not needed.
    """

    old: _Texts
    new: _Texts
    pieces: np.ndarray
    may_be_near: np.ndarray
    wanted: jax.Array
    table: jax.Array

    @classmethod
    def of(cls, task: Task, settings: _Settings) -> "_Seen":
        decoded = settings.compat is not None
        old = _texts(task.source_vocabulary, settings.characters, decoded)
        new = _texts(task.target_vocabulary, settings.characters, decoded)
        pieces = _pieces(task, new, settings.compat)
        near = _neighbours(task, settings.compat, settings.anchors)
        needed = np.isin(np.arange(len(old.texts)), pieces)
        needed |= near & (settings.weight > 0)
        wanted = settings.vectors([new.texts[id_] for id_ in task.ids])
        table = np.zeros((len(old.texts), wanted.shape[1]), np.float32)
        chosen = np.flatnonzero(needed)
        table[chosen] = settings.vectors([old.texts[id_] for id_ in chosen])
        arrays = jnp.asarray(wanted), jnp.asarray(table)
        return cls(old, new, pieces, near, *arrays)


def _texts(vocabulary: Vocabulary, characters: bool, decoded: bool) -> _Texts:
    """Of every id."""
    spelled = spelled_bytes(vocabulary)
    if decoded:
        ids = range(vocabulary.size)
        texts = [vocabulary.decode([id_], skip_special=False) for id_ in ids]
    else:
        texts = [token.decode(errors="replace") for token in spelled]
    counted = texts if characters else spelled
    return _Texts(texts, np.array([len(item) for item in counted], np.float32))


def _weigh(task: Task, settings: _Settings) -> tuple[Mix, dict[str, int]]:
    """The weights of every new token, and how many estimates were valid."""
    seen = _Seen.of(task, settings)
    weight, extras = settings.weight, {}
    local = near = None
    if weight < 1:
        local = _from_pieces(task, seen, settings)
        extras["local"] = int(local.valid.sum())
    if weight > 0:
        near = _from_neighbours(task, seen, settings)
        extras["global"] = int(near.valid.sum())
    mix = hybrid(local or near, near or local, weight)  # type: ignore[arg-type]
    return mix, {**extras, "fallback": int((~mix.valid).sum())}


def _from_pieces(task: Task, seen: _Seen, settings: _Settings) -> Mix:
    lengths = np.maximum(1, seen.new.lengths[task.ids])
    share = seen.old.lengths[seen.pieces] / lengths[:, None]
    known = (seen.pieces >= 0) & (seen.pieces < task.source.shape[0])
    cosine, usable = _cosines(seen.wanted, seen.table, jnp.asarray(seen.pieces))
    return local_weights(
        jnp.asarray(seen.pieces),
        jnp.asarray(known) & usable,
        jnp.asarray(share),
        cosine,
        temperature=settings.temperature,
    )


def _from_neighbours(task: Task, seen: _Seen, settings: _Settings) -> Mix:
    allowed = jnp.asarray(seen.may_be_near)
    ids, cosine, found = nearest_tokens(seen.wanted, seen.table, allowed, k=settings.k)
    found &= ids < task.source.shape[0]
    if settings.compat is None:
        whole = [not _is_cut(seen.new.texts[id_]) for id_ in task.ids]
        found &= jnp.asarray(whole)[:, None]
    return global_weights(
        ids,
        found,
        cosine,
        temperature=settings.temperature,
        threshold=settings.threshold,
    )


def _is_cut(text: str) -> bool:
    """Whether bytes of the token are no UTF-8, so that its text says little."""
    return "\ufffd" in text


def _pieces(task: Task, new: _Texts, compat: Compat | None) -> np.ndarray:
    """`[new, pieces]` source ids, -1 where there is none."""
    if compat is None:
        spelled = spelled_bytes(task.target_vocabulary)
        return decompose([spelled[id_] for id_ in task.ids], task.source_vocabulary).ids
    texts = [new.texts[id_] for id_ in task.ids]
    rows = task.source_vocabulary.encode_batch(texts, specials=False)
    ids = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
    for row, pieces in zip(ids, rows, strict=True):
        row[: len(pieces)] = pieces
    return ids


@jax.jit
def _cosines(
    wanted: jax.Array, table: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Likeness of each token and its pieces, and where both vectors are not zero."""
    known, good = unit(table)

    def compare(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        query, asked = unit(row[0])
        cosine = jnp.einsum("a,pa->p", query, known[row[1]], precision="highest")
        return cosine, good[row[1]] & asked

    return jax.lax.map(compare, (wanted, ids), batch_size=1024)


def _neighbours(
    task: Task, compat: Compat | None, anchors: tuple[int, ...] | None
) -> np.ndarray:
    """`[old]` which old tokens may be neighbours."""
    old = task.source_vocabulary
    # In the official code tokens without a row are searched, too, and dropped then.
    allowed = np.arange(old.size) < (old.size if compat else task.source.shape[0])
    hidden = set(old.missing_ids) | (set() if compat else set(old.special_ids))
    allowed[sorted(hidden)] = False
    if compat is None:
        texts = [token.decode(errors="replace") for token in old.token_bytes]
        allowed &= ~np.array([_is_cut(text) for text in texts])
    if anchors is not None:
        allowed &= np.isin(np.arange(old.size), np.asarray(anchors))
    return allowed


def _filled(task: Task, mix: Mix, fallback: str) -> jax.Array:
    rows = mixed_rows(mix, task.source)
    known = task.source.astype(jnp.float32)
    if fallback == "mean":
        filled = jnp.broadcast_to(known.mean(axis=0)[None, :], rows.shape)
    else:
        drawn = jax.random.normal(task.key, rows.shape)
        filled = known.mean() + known.std() * drawn
    return jnp.where(mix.valid[:, None], rows, filled)
