"""CLIP's merges file: byte-level BPE over lower-cased words with marked ends."""

import zlib
from typing import Any

from jtok.errors import CheckpointError
from jtok.text import _specs
from jtok.text import _tokenizer_json as tj

__all__ = ["END", "read"]

END = "</w>"
SPECIALS = ("<|startoftext|>", "<|endoftext|>")
MERGES = 49152 - 256 - len(SPECIALS)  # the file has more; CLIP takes the first
_CAP = 64 << 20  # bytes of the unpacked file


def read(data: bytes, origin: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A `tokenizer.json` that encodes as CLIP does, and the roles.

    Of the original's cleaning, mojibake repair and HTML entities are left out, as
    `transformers` leaves them out by default.

    Args:
      data: `bpe_simple_vocab_16e6.txt`, packed by gzip or not.
      origin: its name, for messages.

    Raises:
      CheckpointError: damaged.
    """
    letters = list(tj.byte_alphabet())
    vocab = {letter: id_ for id_, letter in enumerate(letters)}
    vocab.update({letter + END: 256 + id_ for id_, letter in enumerate(letters)})
    merges = []
    lines = _unpack(data, origin).split("\n")
    for number, line in enumerate(lines[1 : MERGES + 1], 2):
        if not line and number > len(lines) - 1:
            break  # after the last newline
        sides = line.split(" ")
        if len(sides) != 2 or any(side not in vocab for side in sides):
            raise _damaged(origin, f"line {number} is {line[:40]!r}, no two tokens")
        joined = "".join(sides)
        if joined in vocab:
            raise _damaged(origin, f"line {number} makes {joined!r} again")
        vocab[joined] = len(vocab)
        merges.append(sides)
    if not merges:
        raise _damaged(origin, "it has no merges")
    return specification(vocab, merges)


def specification(
    vocab: dict[str, int], merges: list[list[str]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """CLIP's steps around a vocabulary, whose specials get ids here if they have none.

    Returns:
      The specification and the roles.
    """
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": SPECIALS[1],
        "continuing_subword_prefix": "",
        "end_of_word_suffix": END,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    cleaning = [{"type": "NFC"}, spaces, {"type": "Lowercase"}]
    split = {
        "type": "Split",
        "pattern": {"Regex": tj.CLIP_PATTERN},
        "behavior": "Removed",
        "invert": True,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    ends = {"type": "Replace", "pattern": {"String": END}, "content": " "}
    steps = [split, {**level, "use_regex": False}]
    back = [{**level, "use_regex": True}, ends]
    spec = _specs.specification(
        model,
        normalizer={"type": "Sequence", "normalizers": cleaning},
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoder={"type": "Sequence", "decoders": back},
    )
    start = max(vocab.values(), default=-1) + 1
    ids = {text: vocab.get(text, start + n) for n, text in enumerate(SPECIALS)}
    _specs.add_specials(spec, ids)
    spec["post_processor"] = _specs.around(SPECIALS[:1], SPECIALS[1:], ids)
    roles = dict(zip(("bos_token", "eos_token"), SPECIALS, strict=True))
    return spec, {**roles, "pad_token": SPECIALS[1], "unk_token": SPECIALS[1]}


def _unpack(data: bytes, origin: str) -> str:
    if data[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            data = unpacker.decompress(data, _CAP)
        except zlib.error as error:
            raise _damaged(origin, f"not a whole gzip file: {error}") from error
        if unpacker.unconsumed_tail:
            raise _damaged(origin, f"it unpacks to more than {_CAP} bytes")
        if not unpacker.eof:
            raise _damaged(origin, "the gzip file is cut short")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _damaged(origin, "it is no UTF-8 text") from error


def _damaged(origin: str, why: str) -> CheckpointError:
    return CheckpointError(f"{origin}: damaged, {why}.")
