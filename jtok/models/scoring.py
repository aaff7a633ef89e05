"""How likely a model finds texts, and the vectors it makes of them: in batches."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError, check
from jtok.models.model import Model
from jtok.ops.sharding import constrain
from jtok.ops.unembed import cross_entropy

__all__ = ["Scores", "encode", "score"]

Text = str | Sequence[int] | np.ndarray
# Rows are padded to powers of two from here on, so that few shapes are compiled.
_SHORTEST = 32
_CONTEXT = 2048


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `score` returns, an entry for each text.

    Attributes:
      log_likelihood: `[texts]` float64 nats, the sum over the scored tokens.
      num_tokens: `[texts]` int64 tokens that were scored.
      num_bytes: `[texts]` int64 bytes that these tokens spell, or None where ids were
        given without a vocabulary.

    Example:
      >>> Scores(np.array([-2.0]), np.array([4]), np.array([8])).perplexity.round(2)
      array([1.65])
    """

    log_likelihood: np.ndarray
    num_tokens: np.ndarray
    num_bytes: np.ndarray | None

    @property
    def bits_per_byte(self) -> np.ndarray:
        """`[texts]` float64; NaN for a text without bytes."""
        if self.num_bytes is None:
            raise ArgumentError(
                "vocabulary: got None, expected one when ids are scored: bytes are not "
                "known."
            )
        with np.errstate(invalid="ignore", divide="ignore"):
            return -self.log_likelihood / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> np.ndarray:
        """`[texts]` float64, of a token; NaN for a text without tokens."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.exp(-self.log_likelihood / self.num_tokens)


def score(
    model: Model,
    texts: Sequence[Text],
    *,
    batch_size: int = 8,
    context: int | None = None,
    stride: int | None = None,
    start_id: int | None = None,
    vocabulary: Any = None,
    chunk: int | None = None,
) -> Scores:
    """The log-likelihood of each text under a causal language model.

    A string stands behind a start token, which is not scored; ids are taken as they
    are, and without a `start_id` the first one is not scored. Windows of `context`
    tokens move by `stride`: the first scores all of its tokens, each later one its last
    `stride`, which so have at least `context - stride` tokens before them. Rows are
    batched by length and spread over the data axis of the mesh; logits are never
    written whole.

    Args:
      model: a causal language model.
      texts: strings or sequences of ids.
      batch_size: windows a call.
      context: tokens a window; None takes the model's positions, at most 2048, and
        2048 where it has none.
      stride: tokens between windows, `1 <= stride <= context`; None means half.
      start_id: token before each text; None takes the vocabulary's BOS, else its EOS,
        before strings, and none before ids.
      vocabulary: None takes the model's.
      chunk: tokens a piece of the cross-entropy; None leaves that to the operation.

    Returns:
      `Scores`.

    Raises:
      ArgumentError: a number out of range, or strings without a vocabulary or a start
        token.
      ArgumentTypeError: `texts` is one string, or holds something else than texts, or
        the model is an encoder.
      VocabMismatchError: an id that the model has no row for.

    Example:
      >>> from jtok.testing import tiny_model
      >>> scores = score(tiny_model(), [[1, 2, 3], [4, 5]])
      >>> scores.num_tokens.tolist(), bool((scores.log_likelihood < 0).all())
      ([2, 1], True)
    """
    vocabulary = model.vocabulary if vocabulary is None else vocabulary
    _check_counts(batch_size=batch_size)
    config = model.config
    if isinstance(config, nn.EncoderConfig):
        raise ArgumentTypeError(
            f"model: got the encoder {config.family!r}, which looks both ways, "
            "expected a causal language model; jtok.models.pseudo_score masks one "
            "token at a time."
        )
    made_for = getattr(config, "max_positions", _CONTEXT)
    length = min(made_for, _CONTEXT) if context is None else context
    check(length >= 1, "context", context, "a count >= 1")
    most = _max_len(config)
    if most is not None:
        check(length <= most, "context", context, f"at most {most}, the positions")
    step = max(1, length // 2) if stride is None else stride
    check(1 <= step <= length, "stride", stride, f"1..{length}, the context")
    if start_id is not None:
        size = config.vocab_size
        check(0 <= start_id < size, "start_id", start_id, f"0..{size - 1}")
    rows = [
        _with_start(text, index, vocabulary, config.vocab_size, start_id)
        for index, text in enumerate(_listed(texts))
    ]
    windows = [
        (index, row, scored)
        for index, ids in enumerate(rows)
        for row, scored in _windows(ids, length, step)
    ]
    nats = np.zeros(len(rows), np.float64)
    for group in _grouped(windows, batch_size, length, lambda w: len(w[1]) - 1):
        width, items = group
        tokens = np.zeros((batch_size, width + 1), np.int32)
        wanted = np.zeros((batch_size, width), bool)
        for at, (_, row, scored) in enumerate(items):
            tokens[at, : len(row)], wanted[at, : len(scored)] = row, scored
        found = np.asarray(_row_nats(model, tokens, wanted, chunk), np.float64)
        for at, (index, _, _) in enumerate(items):
            nats[index] += found[at]
    return Scores(
        -nats,
        np.array([max(len(row) - 1, 0) for row in rows], np.int64),
        _num_bytes(texts, rows, vocabulary),
    )


def encode(
    model: Model,
    texts: Sequence[Text],
    *,
    pool: Literal["mean", "last", "first", "none"] = "mean",
    normalize: bool = False,
    batch_size: int = 8,
    vocabulary: Any = None,
) -> Any:
    """A vector for each text: hidden states after the final norm, pooled.

    Texts are batched by length and spread over the data axis of the mesh; padding
    changes nothing.

    Args:
      model: a language model.
      texts: strings or sequences of ids.
      pool: "mean", "last" or "first" token, or "none" for all of them.
      normalize: divide each vector by its length.
      batch_size: texts a call.
      vocabulary: None takes the model's.

    Returns:
      `[texts, dim]` float32; for "none" a list of `[tokens, dim]` float32.

    Raises:
      ArgumentError: an unknown `pool`, a text without a token, or one that is longer
        than the model's positions.
      ArgumentTypeError: `texts` is one string, or holds something else than texts.
      VocabMismatchError: an id that the model has no row for.

    Example:
      >>> from jtok.testing import tiny_model
      >>> encode(tiny_model(), [[1, 2, 3], [4]], pool="last").shape
      (2, 32)
    """
    pools = ("mean", "last", "first", "none")
    check(pool in pools, "pool", pool, f"one of {pools}")
    _check_counts(batch_size=batch_size)
    vocabulary = model.vocabulary if vocabulary is None else vocabulary
    config = model.config
    rows = [
        _ids(text, index, vocabulary, config.vocab_size)
        for index, text in enumerate(_listed(texts))
    ]
    for index, row in enumerate(rows):
        good = len(row) > 0
        check(good, "texts", f"text {index} without a token", "at least one token")
        most = _max_len(config) or len(row)
        got, wanted = f"text {index} of {len(row)} tokens", f"at most {most}"
        check(len(row) <= most, "texts", got, wanted)
    longest = max(map(len, rows), default=1)
    found: list[Any] = [None] * len(rows)
    for width, items in _grouped(
        list(enumerate(rows)), batch_size, longest, lambda item: len(item[1])
    ):
        tokens = np.zeros((batch_size, width), np.int32)
        mask = np.zeros((batch_size, width), bool)
        for at, (_, row) in enumerate(items):
            tokens[at, : len(row)], mask[at, : len(row)] = row, True
        vectors = np.asarray(_pooled(model, tokens, mask, pool, normalize))
        for at, (index, row) in enumerate(items):
            found[index] = vectors[at, : len(row)] if pool == "none" else vectors[at]
    if pool == "none":
        return found
    return np.stack(found) if found else np.zeros((0, config.width), np.float32)


def _max_len(config: Any) -> int | None:
    """The longest text that a model takes, None for no bound."""
    learned = getattr(config, "positions", None) == "learned"
    return config.max_positions if learned else None


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ArgumentTypeError(f"{name}: got {value!r}, expected an int.")
        check(value >= 1, name, value, "a count >= 1")


def _listed(texts: Any) -> list[Any]:
    if isinstance(texts, str | bytes) or not hasattr(texts, "__len__"):
        raise ArgumentTypeError(
            f"texts: got {type(texts).__name__}, expected several texts in a list."
        )
    return list(texts)


def _ids(
    text: Any, index: int, vocabulary: Any, vocab_size: int, *, specials: bool = True
) -> np.ndarray:
    if isinstance(text, str):
        if vocabulary is None:
            raise ArgumentError(
                "vocabulary: got None, expected one: there are texts to encode."
            )
        text = vocabulary.encode(text, specials=specials)
    ids = np.asarray(text) if len(text) else np.zeros(0, np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ArgumentTypeError(
            f"texts: text {index} has shape {ids.shape} and dtype {ids.dtype}, "
            "expected a string or a flat sequence of integer ids."
        )
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise VocabMismatchError(
            f"texts: text {index} has ids in {ids.min()}..{ids.max()}, expected "
            f"0..{vocab_size - 1}: the model has {vocab_size} rows."
        )
    return ids.astype(np.int32)


def _with_start(
    text: Any, index: int, vocabulary: Any, vocab_size: int, start_id: int | None
) -> np.ndarray:
    """Ids whose first one is not scored."""
    ids = _ids(text, index, vocabulary, vocab_size, specials=False)
    if start_id is None and isinstance(text, str):
        start_id = vocabulary.special.get("bos", vocabulary.special.get("eos"))
        if start_id is None:
            raise ArgumentError(
                "start_id: got None, and the vocabulary has neither a BOS nor an EOS; "
                "give the id that stood before each text in training."
            )
    return ids if start_id is None else np.append(np.int32(start_id), ids)


def _windows(
    ids: np.ndarray, length: int, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of up to `length + 1` ids, and which of those after the first they score."""
    total, scored = len(ids) - 1, 0
    for first in range(0, max(total, 0), stride):
        if scored >= total:
            return
        row = ids[first : first + length + 1]
        yield row, first + np.arange(len(row) - 1) >= scored
        scored = first + length


def _grouped(
    items: list[Any], batch_size: int, longest: int, length_of: Any
) -> Iterator[tuple[int, list[Any]]]:
    """Items of about one length together, with the width to which they are padded."""

    def width_of(item: Any) -> int:
        wide = max(_SHORTEST, 1 << (length_of(item) - 1).bit_length())
        return min(wide, longest)

    classes: dict[int, list[Any]] = {}
    for item in items:
        classes.setdefault(width_of(item), []).append(item)
    for width, some in sorted(classes.items()):
        for start in range(0, len(some), batch_size):
            yield width, some[start : start + batch_size]


def _num_bytes(texts: Any, rows: list[np.ndarray], vocabulary: Any) -> Any:
    if vocabulary is None and not all(isinstance(text, str) for text in texts):
        return None
    sizes = []
    for text, row in zip(texts, rows, strict=True):
        if isinstance(text, str):
            sizes.append(len(text.encode()))
        else:
            spelled = row[1:][row[1:] < vocabulary.size]
            sizes.append(len(vocabulary.decode_bytes(spelled)))
    return np.array(sizes, np.int64)


@functools.partial(jax.jit, static_argnames="chunk")
def _row_nats(
    model: Any,
    tokens: Int[Array, "batch row"] | Int[np.ndarray, "batch row"],
    scored: Bool[Array, "batch length"] | Bool[np.ndarray, "batch length"],
    chunk: int | None,
) -> Float[Array, " batch"]:
    tokens = constrain(jnp.asarray(tokens), "batch", None)
    hidden = model(tokens[:, :-1], logits="none").hidden
    weight, bias = model.unembedding()
    nats = cross_entropy(
        hidden, weight, tokens[:, 1:], mask=jnp.asarray(scored), bias=bias,
        softcap=getattr(model.config, "final_softcap", None), chunk=chunk,
    )  # fmt: skip
    return jnp.sum(nats, axis=1)


@functools.partial(jax.jit, static_argnames=("pool", "normalize"))
def _pooled(
    model: Any,
    tokens: Int[Array, "batch length"] | Int[np.ndarray, "batch length"],
    mask: Bool[Array, "batch length"] | Bool[np.ndarray, "batch length"],
    pool: str,
    normalize: bool,
) -> Array:
    tokens = constrain(jnp.asarray(tokens), "batch", None)
    mask = jnp.asarray(mask)
    hidden = model(tokens, mask=mask, logits="none").hidden.astype(jnp.float32)
    count = jnp.sum(mask, axis=1)
    if pool == "mean":
        kept = jnp.where(mask[..., None], hidden, 0.0)
        hidden = jnp.sum(kept, axis=1) / jnp.maximum(count, 1)[:, None]
    elif pool == "first":
        hidden = hidden[:, 0]
    elif pool == "last":
        at = jnp.maximum(count - 1, 0)[:, None, None]
        hidden = jnp.take_along_axis(hidden, at, axis=1)[:, 0]
    if normalize:
        norm = jnp.linalg.norm(hidden, axis=-1, keepdims=True)
        hidden = hidden / jnp.maximum(norm, 1e-12)
    return hidden
