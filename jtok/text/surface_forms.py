"""What a network reads of a token: its pieces under the base tokenizer, padded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jtok.errors import ArgumentError, check
from jtok.text.byte_tokens import ByteTokenizer

__all__ = ["SurfaceForms", "bytes_of_spelled", "surface_forms"]


class SurfaceForms(NamedTuple):
    """Pieces of tokens.

    Attributes:
      ids: `[tokens, maxlen]` int32, filled up with the padding id.
      lengths: `[tokens]` int32 pieces before they are cut off.
      truncated: `[tokens]` bool: there were more than `maxlen`, so another token with
        the same first pieces gets the same row.
    """

    ids: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray


def surface_forms(
    tokenizer: ByteTokenizer,
    tokens: Sequence[bytes | int],
    *,
    maxlen: int = 7,
    pad_id: int,
) -> SurfaceForms:
    """Pieces of every token under the base model, without a pre-tokenizer.

    Args:
      tokenizer: of the base vocabulary.
      tokens: bytes, or ids of the base tokenizer. A special id is its own only piece;
        others are spelled first.
      maxlen: pieces to keep, from the first on.
      pad_id: fills forms up; where the base has no padding, its end of text.

    Returns:
      `SurfaceForms`.

    Raises:
      ArgumentError: `maxlen` below 1, no `pad_id`, an id out of range, or a token
        without bytes.

    Source: arXiv 2411.18553, section 3.2.

    Example:
      >>> from jtok.text import Vocabulary, byte_tokenizer
      >>> base = byte_tokenizer(Vocabulary.train_bpe(["a b"], 257))
      >>> surface_forms(base, [b"!!", 0], maxlen=3, pad_id=0).ids.tolist()
      [[1, 1, 0], [0, 0, 0]]
    """
    check(isinstance(maxlen, int) and maxlen >= 1, "maxlen", maxlen, "at least 1")
    whole = isinstance(pad_id, int | np.integer) and not isinstance(pad_id, bool)
    good = whole and 0 <= pad_id < tokenizer.size
    check(good, "pad_id", pad_id, f"an id in 0..{tokenizer.size - 1}; of a vocabulary "
          "without padding take that of its end of text")  # fmt: skip
    ids = np.full((len(tokens), maxlen), pad_id, np.int32)
    lengths = np.zeros(len(tokens), np.int32)
    for place, token in enumerate(tokens):
        pieces = _pieces(tokenizer, token)
        lengths[place] = len(pieces)
        ids[place, : len(pieces)] = pieces[:maxlen]
    return SurfaceForms(ids, lengths, lengths > maxlen)


def _pieces(tokenizer: ByteTokenizer, token: bytes | int) -> list[int]:
    if not isinstance(token, bytes):
        check(0 <= token < tokenizer.size, "tokens", token, f"below {tokenizer.size}")
        if token in tokenizer.special_ids:
            return [int(token)]
        own = tokenizer.token_bytes[token]
        return tokenizer.pieces(own) if own else [int(token)]
    check(bool(token), "tokens", token, "bytes, at least one")
    return tokenizer.pieces(token)


def bytes_of_spelled(token: str) -> bytes:
    """Bytes of a token in GPT-2's printable characters.

    Args:
      token: such as `Ġthe`.

    Returns:
      The bytes.

    Raises:
      ArgumentError: a character outside of that alphabet.

    Example:
      >>> bytes_of_spelled("Ġthe")
      b' the'
    """
    from jtok.text import _tokenizer_json as tj

    alphabet = tj.byte_alphabet()
    strange = [char for char in token if char not in alphabet]
    if strange:
        raise ArgumentError(
            f"token: got {token!r}, expected the 256 characters of the byte alphabet; "
            f"{strange[0]!r} is none."
        )
    return bytes(alphabet[char] for char in token)
