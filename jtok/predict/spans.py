"""Which tokens of a text are trained on: spans of tokens, not searches in the text.

A search for the answer in the rendered prompt finds its first occurrence, which may be
a quotation in the question. Spans come from how the text was put together.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jtok.errors import ArgumentError, check
from jtok.predict.targets import IGNORE

__all__ = ["encode_pieces", "pad_rows", "span_labels"]


def span_labels(
    ids: Int[Array, "batch seq"], spans: Int[Array, "batch spans 2"]
) -> Int[Array, "batch seq"]:
    """Labels that count inside some spans of tokens only.

    Args:
      ids: `[batch, seq]` int32.
      spans: `[batch, spans, 2]` int32 first token and the one after the last; an empty
        span (also one of -1) marks nothing.

    Returns:
      `[batch, seq]` int32: the ids inside, `IGNORE` outside.

    Raises:
      ArgumentError: spans of another shape.

    Example:
      >>> span_labels(jnp.array([[5, 6, 7]]), jnp.array([[[1, 3], [-1, -1]]])).tolist()
      [[-100, 6, 7]]
    """
    good = spans.ndim == 3 and spans.shape[::2] == (ids.shape[0], 2)
    check(good, "spans", f"shape {spans.shape}", f"[{ids.shape[0]}, spans, 2]")
    at = jnp.arange(ids.shape[1])[None, None]
    inside = (at >= spans[..., :1]) & (at < spans[..., 1:])
    return jnp.where(jnp.any(inside, axis=1), ids, IGNORE).astype(jnp.int32)


def encode_pieces(
    vocabulary: Any, pieces: Sequence[tuple[str, bool]]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text that is put together from pieces, and the spans that are answers.

    Each piece is encoded by itself, so no token lies across a border. A text that a
    model shall continue ends where its answer begins, so this is what it then sees.

    Args:
      vocabulary: with `encode(text) -> ids`; pieces get no special tokens.
      pieces: texts in order, and whether each is trained on.

    Returns:
      `[tokens]` int32 ids, and `[answers, 2]` int32 spans.

    Raises:
      ArgumentError: no piece.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> pieces = [("the ", False), ("cat", True)]
      >>> ids, spans = encode_pieces(tiny_vocabulary(), pieces)
      >>> spans.tolist() == [[len(tiny_vocabulary().encode("the ")), len(ids)]]
      True
    """
    check(len(pieces) > 0, "pieces", 0, "at least one")
    rows, spans, start = [], [], 0
    for text, answers in pieces:
        if hasattr(vocabulary, "special"):
            row = np.asarray(vocabulary.encode(text, specials=False), np.int32)
        else:
            row = np.asarray(vocabulary.encode(text), np.int32)
        if answers:
            spans.append((start, start + len(row)))
        rows.append(row)
        start += len(row)
    return np.concatenate(rows), np.asarray(spans, np.int32).reshape(-1, 2)


def pad_rows(
    rows: Sequence[tuple[Any, Any]], *, length: int, pad_id: int = 0
) -> dict[str, np.ndarray]:
    """A batch of texts with their labels, padded on the right.

    What pads is told by position: a text may hold the id that pads.

    Args:
      rows: `(ids, spans)` of every text, as `encode_pieces` gives them.
      length: tokens of a row; longer texts are cut.
      pad_id: fills rows.

    Returns:
      `tokens` and `labels` `[batch, length]` int32, and `mask` (True = real), bool.

    Raises:
      ArgumentError: no row, or no room for a token.

    Example:
      >>> batch = pad_rows([([5, 6, 7], [[1, 3]])], length=4)
      >>> batch["labels"].tolist(), batch["mask"].tolist()
      ([[-100, 6, 7, -100]], [[True, True, True, False]])
    """
    check(length >= 1, "length", length, "at least 1")
    if not rows:
        raise ArgumentError("rows: got none, expected at least one text.")
    tokens = np.full((len(rows), length), pad_id, np.int32)
    labels = np.full((len(rows), length), IGNORE, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for index, (ids, spans) in enumerate(rows):
        row = np.asarray(ids, np.int32)[:length]
        tokens[index, : len(row)], mask[index, : len(row)] = row, True
        for start, stop in np.asarray(spans, np.int64).reshape(-1, 2):
            some = slice(max(int(start), 0), min(int(stop), len(row)))
            labels[index, some] = row[some]
    return {"tokens": tokens, "labels": labels, "mask": mask}
