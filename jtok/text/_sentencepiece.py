"""SentencePiece `.model` files: BPE and Unigram, as a `tokenizer.json`."""

import base64
import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from jtok.errors import CheckpointError, UnsupportedCheckpointError
from jtok.text import _merges, _protobuf, _specs
from jtok.text import _tokenizer_json as tj

__all__ = ["read"]

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
_MODELS = {1: "Unigram", 2: "BPE", 3: "WORD", 4: "CHAR"}
_SPACE = tj.METASPACE
_RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")


@dataclasses.dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: int


@dataclasses.dataclass
class _Model:
    pieces: list[_Piece] = dataclasses.field(default_factory=list)
    trainer: dict[int, Any] = dataclasses.field(default_factory=dict)
    normalizer: dict[int, Any] = dataclasses.field(default_factory=dict)
    denormalizer: dict[int, Any] = dataclasses.field(default_factory=dict)


def read(
    data: bytes, origin: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A `tokenizer.json` that encodes as SentencePiece does, and the roles.

    Differs: normaliser tables (`nfkc` and the like) are read by the library, which
    looks a letter and its combining marks up together where they are short and one by
    one where they are long, so that rare decomposed text differs, as it does in
    `transformers`; Unigram with byte fallback takes the literal text `<0x41>` for a
    byte.

    Args:
      data: the file.
      origin: its name, for messages.
      config: `tokenizer_config.json`, which says what goes around a text.

    Returns:
      The specification, and `{"bos_token": "<s>", ...}` from the file.

    Raises:
      CheckpointError: damaged.
      UnsupportedCheckpointError: an option that jtok does not follow; it is named.
    """
    model = _parse(data, origin)
    kind = _check(model, origin)
    symbols = [piece.text for piece in model.pieces if piece.kind == USER]
    build = _bpe if kind == "BPE" else _unigram
    prefix = bool(model.normalizer.get(3, 1))
    spec = _specs.specification(
        build(model, origin),
        normalizer=_normalizer(model, prefix, origin),
        pre_tokenizer=_isolate(symbols),
        decoder=_decoder(prefix),
    )
    ids = {piece.text: id_ for id_, piece in enumerate(model.pieces)}
    spec["added_tokens"] = [
        _specs.added(piece.text, id_, control=True)
        for id_, piece in enumerate(model.pieces)
        if piece.kind in (CONTROL, UNKNOWN)
    ]
    roles = _roles(model, origin)
    spec["post_processor"] = _around({**roles, **config}, ids)
    return spec, roles


# ---- the file


def _parse(data: bytes, origin: str) -> _Model:
    model = _Model()
    parts = {2: model.trainer, 3: model.normalizer, 5: model.denormalizer}
    for field, value in _protobuf.fields(data, origin):
        if field != 1 and field not in parts:
            continue
        if not isinstance(value, bytes):
            raise CheckpointError(f"{origin}: damaged, field {field} is a number.")
        if field == 1:
            model.pieces.append(_piece(value, origin))
            if len(model.pieces) > tj.MOST_IDS:
                raise CheckpointError(f"{origin}: more than {tj.MOST_IDS} pieces.")
        else:
            parts[field].update(_protobuf.fields(value, origin))
    if not model.pieces:
        raise CheckpointError(f"{origin}: damaged, it has no pieces.")
    return model


def _piece(data: bytes, origin: str) -> _Piece:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _protobuf.fields(data, origin):
        if field == 1:
            text = _protobuf.text(value, origin)
        elif field == 2:
            score = _protobuf.number(value, origin)
        elif field == 3:
            kind = _protobuf.flag(value, origin)
    if not text or not math.isfinite(score) or not NORMAL <= kind <= BYTE:
        raise CheckpointError(
            f"{origin}: damaged, the piece {text!r} has score {score} and type {kind}."
        )
    if kind == BYTE and not tj.is_byte_token(text):
        raise CheckpointError(f"{origin}: damaged, {text!r} is marked as a byte.")
    return _Piece(text, score, kind)


def _check(model: _Model, origin: str) -> str:
    """The name of the model's type; refuses what cannot be followed."""
    number = model.trainer.get(3, 1)
    name = _MODELS.get(number) if isinstance(number, int) else None
    if name not in ("BPE", "Unigram"):
        raise UnsupportedCheckpointError(
            f"{origin}: a SentencePiece model of type {name or number}; expected BPE "
            "or Unigram."
        )
    seen: set[str] = set()
    for piece in model.pieces:
        if piece.text in seen:
            raise CheckpointError(f"{origin}: damaged, {piece.text!r} stands twice.")
        seen.add(piece.text)
    unknown = [piece.text for piece in model.pieces if piece.kind == UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError(
            f"{origin}: damaged, {len(unknown)} unknown pieces, expected one."
        )
    fallback = bool(model.trainer.get(35, 0))
    bytes_ = sum(piece.kind == BYTE for piece in model.pieces)
    if bytes_ != 256 * fallback:
        raise CheckpointError(
            f"{origin}: damaged, {bytes_} byte pieces, expected {256 * fallback}."
        )
    refused = {
        "pieces marked as unused": any(p.kind == UNUSED for p in model.pieces),
        "treat_whitespace_as_suffix": bool(model.trainer.get(24, 0)),
        "escape_whitespaces=False": not model.normalizer.get(5, 1),
        "a denormalizer": bool(model.denormalizer.get(2, b"")),
    }
    for what, there in refused.items():
        if there:
            raise UnsupportedCheckpointError(
                f"{origin}: a SentencePiece model with {what} cannot be followed."
            )
    return name


def _roles(model: _Model, origin: str) -> dict[str, str]:
    kinds = {piece.text: piece.kind for piece in model.pieces}
    roles = {}
    for field, role, usual in (
        (46, "bos", "<s>"),
        (47, "eos", "</s>"),
        (48, "pad", "<pad>"),
    ):
        text = model.trainer.get(field)
        name = usual if text is None else _protobuf.text(text, origin)
        if kinds.get(name) == CONTROL:
            roles[f"{role}_token"] = name
    unknown = next(piece.text for piece in model.pieces if piece.kind == UNKNOWN)
    return {**roles, "unk_token": unknown}


# ---- the steps


def _normalizer(model: _Model, prefix: bool, origin: str) -> dict[str, Any]:
    symbols = [piece.text for piece in model.pieces if piece.kind == USER]
    steps: list[dict[str, Any]] = []
    charsmap = model.normalizer.get(2, b"")
    if charsmap:
        name = model.normalizer.get(1, b"")
        rule = _protobuf.text(name, origin)
        if rule not in _RULES:
            raise UnsupportedCheckpointError(
                f"{origin}: the normaliser {rule!r} cannot be followed; expected one "
                f"of {', '.join(_RULES)}."
            )
        steps.append(_precompiled(charsmap, symbols, origin))
    if model.normalizer.get(4, 1):
        steps += [_replace(r"\A +| +\z", ""), _replace(" {2,}", " ")]
    if prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _replace(regex: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def _precompiled(charsmap: Any, symbols: list[str], origin: str) -> dict[str, Any]:
    """The rule as the library reads it; symbols must come out of it as they are."""
    if not isinstance(charsmap, bytes):
        raise CheckpointError(f"{origin}: damaged, the charsmap is a number.")
    coded = base64.b64encode(charsmap).decode()
    step = {"type": "Precompiled", "precompiled_charsmap": coded}
    trie = int.from_bytes(charsmap[:4], "little")
    if trie % 4 or 4 + trie > len(charsmap):
        raise CheckpointError(f"{origin}: damaged, its charsmap is cut short.")
    probe = tj.normalizer(step, origin)
    for symbol in symbols:
        if probe.normalize_str(symbol) != symbol:
            raise UnsupportedCheckpointError(
                f"{origin}: the normaliser would change the user-defined symbol "
                f"{symbol!r}, which cannot be followed."
            )
    return step


def _isolate(symbols: list[str]) -> dict[str, Any] | None:
    """User-defined symbols are cut out first, the longest before its parts."""
    if not symbols:
        return None
    choices = [re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True)]
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(choices)},
        "behavior": "Isolated",
        "invert": False,
    }


def _decoder(prefix: bool) -> dict[str, Any]:
    space = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    steps = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _around(config: Mapping[str, Any], ids: Mapping[str, int]) -> Any:
    """What `transformers` puts around a text: as the config says, else by class."""
    owner = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    starts = owner in ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")

    def side(role: str, usual: bool) -> list[str]:
        value = config.get(f"{role}_token")
        token = value.get("content") if isinstance(value, dict) else value
        wanted = config.get(f"add_{role}_token")
        wanted = usual if wanted is None else wanted
        return [token] if wanted and isinstance(token, str) and token in ids else []

    return _specs.around(side("bos", starts), side("eos", owner == "T5Tokenizer"), ids)


# ---- the models


def _bpe(model: _Model, origin: str) -> dict[str, Any]:
    mergeable = [piece for piece in model.pieces if piece.kind == NORMAL]
    longest = max((len(piece.text) for piece in mergeable), default=0)
    if longest > _merges.LONGEST:
        raise CheckpointError(f"{origin}: damaged, a piece has {longest} letters.")
    ordered = sorted(mergeable, key=lambda piece: -piece.score)
    ranks = {piece.text: rank for rank, piece in enumerate(ordered)}
    rules, unreachable = _merges.merge_rules(ranks, ranks)
    _check_ties([piece for piece in ordered if len(piece.text) > 1], rules, origin)
    for left, right in rules:
        letters = [side for side in (left, right) if len(side) == 1]
        if any(letter not in ranks for letter in letters):
            raise UnsupportedCheckpointError(
                f"{origin}: {left + right!r} has letters that are no pieces, which "
                "cannot be followed."
            )
    users = any(piece.kind == USER for piece in model.pieces)
    if users and unreachable:
        raise UnsupportedCheckpointError(
            f"{origin}: user-defined symbols beside pieces that merging never makes "
            f"({unreachable[0]!r}) cannot be followed."
        )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(p.text for p in model.pieces if p.kind == UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": bool(model.trainer.get(35, 0)),
        # A user-defined symbol stands alone by now and is looked up as it is.
        "ignore_merges": users,
        "vocab": {piece.text: id_ for id_, piece in enumerate(model.pieces)},
        "merges": [list(rule) for rule in rules],
    }


def _check_ties(
    ordered: list[_Piece], rules: list[tuple[str, str]], origin: str
) -> None:
    """Among pieces of one score the leftmost pair is first, which ranks cannot say."""
    counts = collections.Counter(piece.score for piece in ordered)
    for score, count in counts.items():
        if count == 1:
            continue
        group = [piece.text for piece in ordered if piece.score == score]
        others = [piece.text for piece in ordered if piece.score != score]
        last = score == ordered[-1].score
        if not last or count > 64 or not _merges.tied_runs(group, others, rules):
            raise UnsupportedCheckpointError(
                f"{origin}: {group[0]!r} and {group[1]!r} have the same score; BPE "
                "pieces with ties cannot be followed."
            )


def _unigram(model: _Model, origin: str) -> dict[str, Any]:
    normal = [piece.score for piece in model.pieces if piece.kind == NORMAL]
    worst = min(normal, default=0.0)

    def score(piece: _Piece) -> float:
        if piece.kind == USER:  # cut out by now, and better than its parts
            return 0.0
        return piece.score if piece.kind == NORMAL else worst

    unknown = [id_ for id_, p in enumerate(model.pieces) if p.kind == UNKNOWN]
    return {
        "type": "Unigram",
        "unk_id": unknown[0],
        "vocab": [[piece.text, score(piece)] for piece in model.pieces],
        "byte_fallback": bool(model.trainer.get(35, 0)),
    }
