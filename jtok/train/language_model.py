"""Next-token loss and held-out bits per byte of a causal language model."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    VocabMismatchError,
    check,
)
from jtok.ops.sharding import constrain, to_host

__all__ = ["bits_per_byte", "lm_loss"]


def lm_loss(
    model: Any, *, softcap: float | None = None, chunk: int | None = None
) -> Callable[..., Any]:
    """Makes the loss of `fit` for a causal language model: mean nats a token.

    Trainable is `model.params`; nothing else of `model` is kept, so its arrays are not
    held twice. A batch is a dict with `tokens` `[batch, length + 1]` int32 and maybe
    `mask` of the same shape (True = a real token; False is no target), as
    `jtok.train.packed_batches` gives them. Documents of one row see one another, unless
    the batch has `segments` and `positions` (its option `documents=True`). Logits are
    never written whole.

    Args:
      model: a `jtok.models.Model`, or anything with its `replace(params=)`,
        `model(ids, logits="none").hidden` and `unembedding()`.
      softcap: cap of the logits; None takes `model.config.final_softcap`, if any.
      chunk: tokens a piece of the cross-entropy; None leaves that to the operation.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)` with the metric `tokens`, the
      number of targets.

    Raises:
      ArgumentTypeError: `model` has no `replace`; while tracing: a batch without
        `tokens`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, batch = tiny_model(), {"tokens": jnp.ones((2, 9), jnp.int32)}
      >>> loss, (metrics, _) = lm_loss(model)(
      ...     model.params, None, None, batch, jax.random.key(0))
      >>> int(metrics["tokens"])
      16
    """
    if not hasattr(model, "replace"):
        kind = type(model).__name__
        raise ArgumentTypeError(f"model: got {kind}, expected a jtok.models.Model.")
    shell = model.replace(params=None)

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del frozen, key
        tokens = _tokens_of(batch)
        nats = _token_nats(
            shell.replace(params=trainable),
            tokens,
            options=_apart(batch),
            softcap=softcap,
            chunk=chunk,
        )
        weight = batch.get("mask", jnp.ones(tokens.shape, bool))[:, 1:]
        count = jnp.sum(weight, dtype=jnp.int32)
        loss = jnp.sum(jnp.where(weight, nats, 0.0)) / jnp.maximum(count, 1)
        return loss, ({"tokens": count}, state)

    return loss_fn


def _tokens_of(batch: Any) -> Int32[Array, "batch row"]:
    if not isinstance(batch, dict) or "tokens" not in batch:
        found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ArgumentTypeError(f"data: got {found}, expected a dict with 'tokens'.")
    return jnp.asarray(batch["tokens"])


def _apart(batch: dict[str, Any]) -> dict[str, jax.Array]:
    """What keeps the documents of a row apart: positions and who may see whom."""
    options = {}
    if "positions" in batch:
        options["positions"] = jnp.asarray(batch["positions"])[:, :-1]
    if "segments" in batch:
        segments = jnp.asarray(batch["segments"])[:, :-1]
        same = segments[:, :, None] == segments[:, None, :]
        options["mask"] = jnp.tril(same)
    return options


def _token_nats(
    model: Any,
    tokens: Int32[Array, "batch row"],
    *,
    options: dict[str, jax.Array],
    softcap: float | None,
    chunk: int | None,
) -> Float[Array, "batch length"]:
    """Nats of each token of a row but the first, given those before it."""
    from jtok.ops.unembed import cross_entropy

    tokens = constrain(tokens, "batch", None)
    hidden = model(tokens[:, :-1], logits="none", **options).hidden
    weight, bias = model.unembedding()
    if softcap is None:
        softcap = getattr(getattr(model, "config", None), "final_softcap", None)
    return cross_entropy(
        hidden, weight, tokens[:, 1:], bias=bias, softcap=softcap, chunk=chunk
    )


def bits_per_byte(
    model: Any,
    vocabulary: Any,
    texts: Iterable[str],
    *,
    length: int,
    stride: int | None = None,
    batch_size: int = 16,
    start_id: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> float:
    """Bits that a model needs for each UTF-8 byte of held-out texts.

    The nats of all tokens of all texts, over ln 2 and the number of bytes, so models
    with different vocabularies compare. Each text stands alone, behind a start token
    that is not scored; its end is not scored either. Windows of `length` tokens move by
    `stride`: the first scores all of its tokens, each later one its last `stride`,
    which so have at least `length - stride` tokens before them.

    Args:
      model: as for `lm_loss`, with its parameters.
      vocabulary: a `jtok.text.Vocabulary`, or anything with `encode(text) -> ids`.
      texts: the texts; empty ones count nothing.
      length: tokens a window, at most what the model takes.
      stride: tokens between windows, `1 <= stride <= length`; None means half.
      batch_size: windows a call.
      start_id: the token before each text; None means the vocabulary's BOS, else EOS.
      softcap: cap of the logits; None takes `model.config.final_softcap`, if any.
      chunk: tokens a piece of the cross-entropy; None leaves that to the operation.

    Returns:
      Bits per byte; lower is better, 8 knows nothing.

    Raises:
      ArgumentError: a number out of range, no byte of text, or no start token known.
      ArgumentTypeError: `texts` is one string.
      VocabMismatchError: an id that the model has no row for.

    Example:
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> vocabulary = tiny_vocabulary()
      >>> model = tiny_model(vocab_size=vocabulary.size)
      >>> bits = bits_per_byte(model, vocabulary, ["held out"], length=8, start_id=0)
      >>> 0 < bits < 16
      True
    """
    if isinstance(texts, str | bytes):
        raise ArgumentTypeError("texts: got one string, expected several in a list.")
    check(length >= 1, "length", length, "a count >= 1")
    step = max(1, length // 2) if stride is None else stride
    check(1 <= step <= length, "stride", stride, f"1 <= stride <= length={length}")
    check(batch_size >= 1, "batch_size", batch_size, "a count >= 1")
    encode, start = _encoder(vocabulary, start_id)
    texts = list(texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    check(num_bytes > 0, "texts", "no byte of text", "some text")
    vocab = model.unembedding()[0].shape[0]
    windows = itertools.chain.from_iterable(
        _windows(_ids(encode, text, vocab), start, length, step) for text in texts
    )
    unused = (np.full(length + 1, start, np.int32), np.zeros(length, bool))
    nats = 0.0
    while group := list(itertools.islice(windows, batch_size)):
        group += [unused] * (batch_size - len(group))
        nats += _batch_nats(model, group, softcap, chunk)
    return nats / math.log(2) / num_bytes


def _encoder(vocabulary: Any, start_id: int | None) -> tuple[Callable[[str], Any], int]:
    special = getattr(vocabulary, "special", None)
    if start_id is None:
        roles = special or {}
        start_id = roles.get("bos", roles.get("eos"))
    if start_id is None:
        raise ArgumentError(
            "start_id: got None, and the vocabulary has neither a BOS nor an EOS; give "
            "the id that stood before each text in training."
        )
    if special is None:
        return vocabulary.encode, start_id
    # The start token stands before the text already.
    return lambda text: vocabulary.encode(text, specials=False), start_id


def _ids(encode: Callable[[str], Any], text: str, vocab: int) -> np.ndarray:
    ids = np.asarray(encode(text), np.int32)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab):
        raise VocabMismatchError(
            f"vocabulary: it gives the id {ids.max()}, the model has {vocab} rows."
        )
    return ids


def _windows(
    ids: np.ndarray, start: int, length: int, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows `[length + 1]` and which of their `length` targets they score."""
    scored = 0
    for first in range(0, len(ids), stride):
        if scored >= len(ids):
            return
        row = np.full(length + 1, start, np.int32)
        piece = ids[max(first - 1, 0) : first + length]
        row[int(first == 0) :][: len(piece)] = piece
        index = first + np.arange(length)
        yield row, (index >= scored) & (index < len(ids))
        scored = first + length


def _batch_nats(
    model: Any,
    windows: list[tuple[np.ndarray, np.ndarray]],
    softcap: float | None,
    chunk: int | None,
) -> float:
    tokens, scored = (np.stack(parts) for parts in zip(*windows))
    rows = _row_nats(model, tokens, scored, softcap, chunk)
    return float(to_host(rows).astype(np.float64).sum())


def _row_nats_of(
    model: Any,
    tokens: Int32[Array, "batch row"],
    scored: Bool[Array, "batch length"],
    softcap: float | None,
    chunk: int | None,
) -> Float[Array, " batch"]:
    nats = _token_nats(model, tokens, options={}, softcap=softcap, chunk=chunk)
    return jnp.sum(jnp.where(scored, nats, 0.0), axis=1)


_row_nats = jax.jit(_row_nats_of, static_argnames=("softcap", "chunk"))
