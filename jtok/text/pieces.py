"""The tokens of one vocabulary cut into tokens of another."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jtok.errors import ArgumentTypeError, check
from jtok.text import _tokenizer_json as tj
from jtok.text.vocabulary import Vocabulary

__all__ = ["Pieces", "decompose"]


class Pieces(NamedTuple):
    """What each token is made of.

    Attributes:
      ids: `[tokens, most]` int32 ids of the pieces in order, then -1.
      lengths: `[tokens, most]` int32 bytes of each piece, then 0.
    """

    ids: np.ndarray
    lengths: np.ndarray


def decompose(
    tokens: Sequence[bytes],
    source: Vocabulary,
    *,
    whole: bool = False,
    most: int | None = None,
) -> Pieces:
    """Cuts the bytes of each token by another vocabulary's tokenizer.

    Nothing is put before a token that its bytes lack (no space, no BOS), and the text
    of a special token is text. Bytes that are no UTF-8 are cut by the model alone, as
    with `whole`. Bytes that the source cannot write are left out, and so is its unknown
    token.

    Args:
      tokens: bytes of each token, such as `jtok.text.overlap.spelled_bytes`: a leading
        space says that it begins a word.
      source: the vocabulary that cuts.
      whole: use the merges of the model alone, without its normaliser and its split
        into words; then any bytes can be cut where the source has all of them.
      most: columns of the result; pieces beyond are dropped. None takes what the
        longest token needs (at least 1).

    Returns:
      `Pieces`; a row of nothing but -1 where nothing of a token could be cut.

    Raises:
      ArgumentError: `most` below 1.
      ArgumentTypeError: `tokens` is one token.

    Example:
      >>> source = Vocabulary.train_bpe(["low low"], 258)
      >>> source.token_bytes[257], decompose([b"lo", b"ll"], source).ids.tolist()
      (b'lo', [[257, -1], [76, 76]])
    """
    if isinstance(tokens, str | bytes):
        raise ArgumentTypeError("tokens: got one token, expected several in a list.")
    check(most is None or most >= 1, "most", most, "None or at least 1")
    cut = _Cutter(source)
    texts = [None if whole else _as_text(token) for token in tokens]
    rows = cut.texts([text for text in texts if text is not None])
    split = [
        cut.whole(token) if text is None else next(rows)
        for token, text in zip(tokens, texts, strict=True)
    ]
    return _padded(split, source, most)


def _as_text(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _padded(split: list[list[int]], source: Vocabulary, most: int | None) -> Pieces:
    width = max(1, max(map(len, split), default=1)) if most is None else most
    ids = np.full((len(split), width), -1, np.int32)
    for row, pieces in zip(ids, split, strict=True):
        row[: len(pieces)] = pieces[:width]
    sizes = np.array([*map(len, source.token_bytes), 0], np.int32)
    return Pieces(ids, sizes[ids])  # -1 finds the last, which is 0


class _Cutter:
    """A tokenizer that adds nothing of its own."""

    def __init__(self, source: Vocabulary):
        self.source = source
        self.kind = source.kind
        self.ignored = {source.special.get("unk")}
        self.tokenizer = tokenizers.Tokenizer.from_str(_bare(source._spec))
        self.tokenizer.encode_special_tokens = True
        self.alphabet = {byte: char for char, byte in tj.byte_alphabet().items()}

    def texts(self, texts: list[str]) -> Iterator[list[int]]:
        if self.kind in ("wordpiece", "wordlevel"):
            yield from (self.whole(text.encode()) for text in texts)
            return
        for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False):
            yield self._known(encoding.ids)

    def whole(self, token: bytes) -> list[int]:
        if self.kind == "byte_bpe":
            return self._model("".join(self.alphabet[byte] for byte in token))
        if self.kind in ("wordpiece", "wordlevel"):
            return self._words(token)
        ids = []
        for part in _runs(token):
            if isinstance(part, str):
                ids += self._model(part.replace(" ", tj.METASPACE))
            else:
                fallback = self.tokenizer.token_to_id(f"<0x{part:02X}>")
                ids += [] if fallback is None else [fallback]
        return self._known(ids)

    def _words(self, token: bytes) -> list[int]:
        """Words as the tokenizer cuts them; the rest of one as what continues it."""
        text = token.decode(errors="ignore")
        if self.kind == "wordlevel" or text[:1].isspace():
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            return self._known(encoding.ids)
        prefix = self.source._spec["model"].get("continuing_subword_prefix") or ""
        ids: list[int] = []
        while text:
            ends = range(len(text), 0, -1)
            spelled = (self.tokenizer.token_to_id(prefix + text[:end]) for end in ends)
            found = ((end, id_) for end, id_ in zip(ends, spelled) if id_ is not None)
            end, id_ = next(found, (len(text), None))
            if id_ is None:
                return []
            ids.append(id_)
            text = text[end:]
        return ids

    def _model(self, text: str) -> list[int]:
        pieces = self.tokenizer.model.tokenize(text) if text else []
        return self._known([piece.id for piece in pieces])

    def _known(self, ids: Sequence[int]) -> list[int]:
        return [id_ for id_ in ids if id_ not in self.ignored]


def _bare(spec: dict[str, Any]) -> str:
    """The tokenizer without what puts a space before a text."""
    copy = json.loads(json.dumps(spec))
    steps = tj.parts(copy.get("normalizer"), "normalizers")
    kept = [step for step in steps if step["type"] not in ("Prepend", "Strip")]
    copy["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    splits = list(tj.parts(copy.get("pre_tokenizer"), "pretokenizers"))
    if any(split["type"] == "Metaspace" for split in splits):  # it marks the spaces
        splits = [split for split in splits if split["type"] != "WhitespaceSplit"]
    for split in splits:
        if split["type"] == "Metaspace":
            split["prepend_scheme"] = "never"
            split.pop("add_prefix_space", None)
        elif "add_prefix_space" in split:
            split["add_prefix_space"] = False
    copy["pre_tokenizer"] = (
        {"type": "Sequence", "pretokenizers": splits} if splits else None
    )
    return json.dumps(copy)


def _runs(token: bytes) -> Iterator[str | int]:
    """Stretches of UTF-8 as text, and the bytes between them."""
    while token:
        try:
            yield token.decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield token[: error.start].decode()
            yield from token[error.start : error.end]
            token = token[error.end :]
