"""tiktoken's files: one token a line, its bytes in base64 and its rank."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from jtok.errors import ArgumentError, CheckpointError
from jtok.text import _merges, _specs
from jtok.text import _tokenizer_json as tj

__all__ = ["read"]


def read(
    data: bytes, origin: str, pattern: str | None, specials: Mapping[str, int] | None
) -> dict[str, Any]:
    """A `tokenizer.json` that encodes as tiktoken does.

    Args:
      data: the file.
      origin: its name, for messages.
      pattern: name of a split rule, or a regex.
      specials: control token -> id.

    Raises:
      ArgumentError: no `pattern`, or specials that clash.
      CheckpointError: damaged.
    """
    if pattern is None:
        raise ArgumentError(
            f"pattern: got None for {origin}, expected its split rule, which files of "
            f"tiktoken ranks do not have: {', '.join(tj.PATTERNS)}, or a regex."
        )
    regex = _specs.pattern_of(pattern)
    ranks = parse(data, origin)
    rules, unreachable = _merges.merge_rules(ranks, ranks)
    printed = {token: _specs.byte_text(token) for token in ranks}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        # tiktoken looks a whole piece up first, which matters where merges miss it.
        "ignore_merges": bool(unreachable),
        "vocab": {printed[token]: rank for token, rank in ranks.items()},
        "merges": [[printed[left], printed[right]] for left, right in rules],
    }
    level = _specs.split_by(tj.PATTERNS["gpt2"])
    spec = _specs.specification(
        model, pre_tokenizer=_specs.split_by(regex), decoder=level
    )
    _specs.add_specials(spec, specials or {})
    return spec


def parse(data: bytes, origin: str) -> dict[bytes, int]:
    """Token -> rank, in the order of ranks."""
    ranks: dict[bytes, int] = {}
    owners: dict[int, int] = {}
    for line, content in enumerate(data.split(b"\n"), 1):
        if not content.strip():
            continue
        parts = content.split()
        if len(parts) != 2 or not (parts[1].isdigit() and len(parts[1]) < 10):
            raise _damaged(origin, line, f"got {content[:40]!r}, expected base64, rank")
        token, rank = _unpack(parts[0], origin, line), int(parts[1])
        if rank in owners:
            raise _damaged(origin, line, f"rank {rank} stands in line {owners[rank]}")
        if token in ranks:
            raise _damaged(origin, line, f"{token!r} has the rank {ranks[token]} too")
        if rank >= tj.MOST_IDS or len(token) > _merges.LONGEST:
            limits = f"{tj.MOST_IDS} ranks and {_merges.LONGEST} bytes a token"
            raise _damaged(origin, line, f"more than {limits}")
        ranks[token] = rank
        owners[rank] = line
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(
            f"{origin}: damaged, {len(missing)} single bytes have no rank, "
            f"{bytes(missing[:1])!r} among them."
        )
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _unpack(coded: bytes, origin: str, line: int) -> bytes:
    if coded == b"=":  # whisper's file has an empty token, spelled so
        return b""
    try:
        return base64.b64decode(coded, validate=True)
    except binascii.Error as error:
        raise _damaged(origin, line, f"{coded[:40]!r} is no base64") from error


def _damaged(origin: str, line: int, why: str) -> CheckpointError:
    return CheckpointError(f"{origin}: damaged in line {line}: {why}.")
