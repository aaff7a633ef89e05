"""Vectors of short texts, for methods that compare tokens by what they say.

An encoder is any `(list of texts) -> [texts, dim]` callable. Two are here: one that
needs no download, and one of any model.
"""

import hashlib
import io
import math
import os
import pathlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok import files
from jtok.errors import ArgumentError, CheckpointError, check
from jtok.models import Model

__all__ = ["Encoder", "TextVectors", "hashed_ngrams", "model_encoder"]

# A list of texts -> float [texts, dim].
Encoder = Callable[[list[str]], Any]


def hashed_ngrams(dim: int = 512, *, longest: int = 4) -> Encoder:
    """An encoder that counts the character n-grams of a text, without any model.

    Each n-gram of 1 to `longest` characters falls into one of `dim` cells by its
    CRC-32; a vector is `log(1 + count)`, scaled to length 1: alike spelling, alike
    vectors.

    Args:
      dim: cells.
      longest: characters of the longest n-gram.

    Returns:
      An encoder with a `name`; the vector of an empty text is zero.

    Raises:
      ArgumentError: `dim` or `longest` below 1.

    Example:
      >>> encode = hashed_ngrams(64)
      >>> round(float(encode(["the"])[0] @ encode(["then"])[0]), 2)
      0.79
    """
    check(dim >= 1, "dim", dim, "at least 1")
    check(longest >= 1, "longest", longest, "at least 1")

    def encode(texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            grams = (
                text[start : start + size]
                for size in range(1, longest + 1)
                for start in range(len(text) - size + 1)
            )
            cells = (zlib.crc32(gram.encode(errors="replace")) % dim for gram in grams)
            for cell, count in Counter(cells).items():
                row[cell] = math.log1p(count)
            row /= np.linalg.norm(row) or 1.0
        return vectors

    encode.name = f"hashed_ngrams/{dim}/{longest}"  # type: ignore[attr-defined]
    return encode


def model_encoder(
    model: Model, *, batch: int = 64, max_length: int | None = None
) -> Encoder:
    """An encoder of a model's last hidden states, averaged over the text's tokens.

    Of an encoder or a decoder; special tokens that its tokenizer adds are averaged,
    too, as sentence encoders do. No task prefix is put before a text.

    Args:
      model: with its vocabulary.
      batch: texts at a time.
      max_length: tokens of a text that are read; None for as many as the model takes.

    Returns:
      An encoder with a `name` that tells the model's weights; float32 vectors, zero
      for a text without tokens.

    Raises:
      ArgumentError: the model has no vocabulary, or an option below 1.

    Source: Sharthak et al. 2025, arXiv 2505.09738, auxiliary embeddings. Differs: in
    float32, and texts beyond the model's positions are cut.

    Example:
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> model = tiny_model(vocab_size=280).replace(vocabulary=tiny_vocabulary())
      >>> model_encoder(model)(["the cat", "the"]).shape
      (2, 32)
    """
    check(model.vocabulary is not None, "model", None, "one with a vocabulary")
    check(batch >= 1, "batch", batch, "at least 1")
    check(max_length is None or max_length >= 1, "max_length", max_length, "above 0")
    most = max_length or getattr(model.config, "max_positions", None) or 512

    def encode(texts: list[str]) -> np.ndarray:
        rows = [row[:most] for row in model.vocabulary.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        done: dict[int, np.ndarray] = {}
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            ids, mask = _padded([rows[place] for place in places], batch, most)
            vectors = np.asarray(_pooled(model, ids, mask))
            done.update(zip(places, vectors))
        width = next(iter(done.values())).shape[0] if done else 0
        return (
            np.stack([done[n] for n in range(len(rows))])
            if done
            else np.zeros((0, width))
        )

    encode.name = f"model/{_digest(model)}/{most}"  # type: ignore[attr-defined]
    return encode


def _padded(
    rows: Sequence[np.ndarray], batch: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of a few fixed shapes, so that few programs are compiled."""
    longest = max(1, max(map(len, rows)))
    length = min(most, 8 * 2 ** math.ceil(math.log2(max(1, longest / 8))))
    ids = np.zeros((batch, max(length, longest)), np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, given in enumerate(rows):
        ids[row, : len(given)], mask[row, : len(given)] = given, True
    return ids, mask


@jax.jit
def _pooled(
    model: Model, ids: Int[Array, "batch seq"], mask: Bool[Array, "batch seq"]
) -> Float[Array, "batch dim"]:
    # A row of nothing but padding would leave attention nothing to look at.
    seen = mask.at[:, 0].set(True)
    hidden = model(ids, mask=seen, logits="none").hidden.astype(jnp.float32)
    counted = mask.astype(jnp.float32)[..., None]
    return (hidden * counted).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1e-9)


def _digest(model: Model) -> str:
    """Tells models apart by their vocabulary and a sum over each weight."""
    sums = [
        float(jnp.abs(leaf.astype(jnp.float32)).sum())
        for leaf in jax.tree.leaves(model.params)
    ]
    text = f"{model.vocabulary.hash} {model.config} {sums}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class TextVectors:
    """The vectors of texts, each asked of its encoder once, and kept in a file.

    Args:
      encoder: `(list of texts) -> [texts, dim]`.
      path: an npz that is read if it is there, and written by `save`; None for none.
      name: tells encoders apart; None takes `encoder.name`. Needed with a path.

    Raises:
      ArgumentError: a path without a name, or the file is of another encoder.
      CheckpointError: the file is damaged.

    Source: Sharthak et al. 2025, arXiv 2505.09738: vectors cached by text. Differs: an
    npz of one encoder.

    Example:
      >>> vectors = TextVectors(hashed_ngrams(8))
      >>> vectors(["a", "b", "a"]).shape, len(vectors)
      ((3, 8), 2)
    """

    def __init__(
        self,
        encoder: Encoder,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
    ):
        self.encoder = encoder
        self.name = name or getattr(encoder, "name", None)
        self.path = None if path is None else pathlib.Path(path)
        self._known: dict[str, np.ndarray] = {}
        self._dim: int | None = None
        if self.path is not None:
            check(self.name, "name", self.name, "a name of the encoder to cache under")
            if self.path.exists():
                self._read(self.path)

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Vectors of texts.

        Args:
          texts: the texts.

        Returns:
          `[texts, dim]` float32.

        Raises:
          ArgumentError: the encoder gives another shape, or numbers that are not
            finite.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known.update(zip(missing, self._asked(missing)))
        width = self._dim or 0
        known = [self._known[text] for text in texts]
        return np.stack(known) if known else np.zeros((0, width), np.float32)

    def _asked(self, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(self.encoder(list(texts)), np.float32)
        good = vectors.ndim == 2 and len(vectors) == len(texts) and vectors.shape[1] > 0
        check(good, "encoder", f"shape {vectors.shape}", f"[{len(texts)}, dim]")
        dim = vectors.shape[1] if self._dim is None else self._dim
        got = f"{vectors.shape[1]} dimensions"
        check(dim == vectors.shape[1], "encoder", got, f"{dim}, as for other texts")
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise ArgumentError(
                f"encoder: got a vector of {texts[bad[0]]!r} that is not finite, "
                "expected finite numbers."
            )
        self._dim = dim
        return vectors

    def save(self) -> None:
        """Writes the file, if there is a path.

        Raises:
          WriteError: it cannot be written.
        """
        if self.path is None:
            return
        buffer = io.BytesIO()
        texts = [text.encode(errors="surrogatepass") for text in self._known]
        np.savez(
            buffer,
            encoder=np.frombuffer(str(self.name).encode(), np.uint8),
            texts=np.frombuffer(b"".join(texts), np.uint8),
            lengths=np.asarray([len(text) for text in texts], np.int64),
            vectors=self(list(self._known)),
        )
        files.write_atomic(self.path, buffer.getvalue())

    def _read(self, path: pathlib.Path) -> None:
        try:
            stored = io.BytesIO(path.read_bytes())
            with np.load(stored, allow_pickle=False) as file:
                name = file["encoder"].tobytes().decode()
                texts = list(_cut(file["texts"].tobytes(), file["lengths"]))
                vectors = file["vectors"]
            good = vectors.ndim == 2 and len(vectors) == len(texts)
        except Exception as error:
            raise CheckpointError(f"{path}: damaged ({error}).") from error
        if not good:
            raise CheckpointError(f"{path}: damaged, its arrays do not fit together.")
        check(name == self.name, "path", name, f"a file of the encoder {self.name!r}")
        self._known = dict(zip(texts, vectors))
        self._dim = vectors.shape[1] if texts else None


def _cut(text: bytes, lengths: np.ndarray) -> Iterable[str]:
    ends = np.cumsum(lengths).tolist()
    for start, end in zip([0, *ends], ends):
        yield text[start:end].decode(errors="surrogatepass")
