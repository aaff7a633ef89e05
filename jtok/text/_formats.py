"""Finds the files of a tokenizer and turns every format into a `tokenizer.json`."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jtok.errors import (
    ArgumentError,
    MissingFileError,
    UnsupportedCheckpointError,
    check,
)
from jtok.text import _clip, _fairseq, _pairs, _sentencepiece, _specs, _tiktoken
from jtok.text import _tokenizer_json as tj

__all__ = ["read"]


class _Request(NamedTuple):
    """What a reader may need beside its own file."""

    file: pathlib.Path
    pattern: str | None
    specials: Mapping[str, int] | None
    config: dict[str, Any]

    def refuse(self, **given: Any) -> None:
        for name, value in given.items():
            expected = f"None: {self.file.name} holds its own"
            check(value is None, name, value, expected)


# What stands in a folder, best first: shell pattern -> format.
_KNOWN = {
    tj.JSON: "json",
    "tokenizer.model": "sentencepiece",
    "*.tiktoken": "tiktoken",
    "*.model": "sentencepiece",
    "merges.txt": "merges",
    "vocab.json": "merges",
    "vocab.txt": "wordpiece",
    "*bpe_simple_vocab*.txt.gz": "clip",
    "*bpe_simple_vocab*.txt": "clip",
}
_NAMES = {
    "json": "a tokenizer.json",
    "sentencepiece": "a SentencePiece .model",
    "tiktoken": "tiktoken ranks (.tiktoken)",
    "merges": "vocab.json with merges.txt",
    "wordpiece": "a WordPiece vocab.txt",
    "clip": "CLIP's bpe_simple_vocab_16e6.txt.gz",
}


def read(
    place: pathlib.Path, pattern: str | None, specials: Mapping[str, int] | None
) -> tuple[dict[str, str], pathlib.Path]:
    """The texts that `Vocabulary` is made of, and the file they came from.

    Args:
      place: a folder or a file.
      pattern: split rule of formats whose file has none.
      specials: control tokens of such formats.

    Raises:
      ArgumentError: `pattern` or `specials` that the format does not take or lacks.
      CheckpointError: damaged, missing or of another format; see `Vocabulary.load`.
    """
    file, kind = _find(place)
    contents = {}
    for name in (tj.CONFIG, tj.ROLES, tj.TEMPLATE, tj.ADDED):
        if (neighbour := file.with_name(name)).is_file():
            contents[name] = tj.read_text(neighbour)
    for named in sorted(file.parent.joinpath(tj.TEMPLATES).glob("*.jinja")):
        contents[tj.TEMPLATES + named.name] = tj.read_text(named)
    added = contents.pop(tj.ADDED, "{}")
    if kind == "json":
        request = _Request(file, pattern, specials, {})
        request.refuse(pattern=pattern, specials=specials)
        return {tj.JSON: tj.read_text(file), **contents}, file
    config = {}
    for name in (tj.ROLES, tj.CONFIG):
        config.update(tj.parse_object(contents.get(name, "{}"), str(file), name))
    request = _Request(file, pattern, specials, config)
    spec, roles = _READERS[kind](request)
    extra = tj.parse_object(added, str(file), tj.ADDED)
    _add(spec, extra, config, str(file))
    if kind != "tiktoken" and specials:
        _specs.add_specials(spec, specials)
    contents[tj.JSON] = json.dumps(spec, ensure_ascii=False)
    own = tj.parse_object(contents.get(tj.CONFIG, "{}"), str(file), tj.CONFIG)
    contents[tj.CONFIG] = tj.dump({**tj.CLASS, **roles, **_kept(own)})
    return contents, file


def _find(place: pathlib.Path) -> tuple[pathlib.Path, str]:
    if place.is_file():
        for pattern, kind in _KNOWN.items():
            if place.match(pattern):
                return place, kind
        if place.suffix in (".json", ""):
            return place, "json"
        raise UnsupportedCheckpointError(
            f"{place}: no kind of tokenizer file that is known by its name; expected "
            f"{', '.join(_NAMES.values())}."
        )
    for pattern, kind in _KNOWN.items() if place.is_dir() else ():
        found = sorted(child for child in place.glob(pattern) if child.is_file())
        if len(found) > 1:
            raise ArgumentError(
                f"path: got {str(place)!r}, expected one of its files: "
                f"{', '.join(child.name for child in found)}."
            )
        if found:
            return found[0], kind
    raise MissingFileError(
        f"{place}: no tokenizer there. Looked for {', '.join(_KNOWN)}."
    )


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what names the format that is no longer there."""
    dropped = ("tokenizer_class", "auto_map")
    return {k: v for k, v in config.items() if k not in dropped and v is not None}


def _add(
    spec: dict[str, Any],
    extra: Mapping[str, Any],
    config: Mapping[str, Any],
    where: str,
) -> None:
    """Tokens beyond the file, which `transformers` keeps in two other places."""
    wanted: dict[str, tuple[int, bool]] = {}
    for text, id_ in _pairs.check_ids(extra, where).items():
        wanted[text] = (id_, False)
    decoder = config.get("added_tokens_decoder")
    for id_, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            control = bool(entry.get("special", False))
            number = int(id_) if id_.isdigit() and len(id_) < 10 else id_
            wanted[entry["content"]] = (number, control)
    present = {entry["content"] for entry in spec["added_tokens"]}
    new = {text: pair for text, pair in wanted.items() if text not in present}
    vocab = spec["model"]["vocab"]
    for control in (False, True):
        chosen = {text: i for text, (i, special) in new.items() if special == control}
        if isinstance(vocab, dict):
            _specs.add_specials(spec, chosen, control=control)
        else:
            _append(spec, chosen, control, where)


def _append(
    spec: dict[str, Any], chosen: Mapping[str, int], control: bool, where: str
) -> None:
    """Added tokens of a Unigram, whose ids go on after its pieces."""
    known = {token: id_ for id_, (token, _) in enumerate(spec["model"]["vocab"])}
    for text, id_ in chosen.items():
        own = known.get(text, id_) == id_ and (text in known or id_ >= len(known))
        check(own, "specials", {text: id_}, f"the tokens of {where}, or ids after them")
        spec["added_tokens"].append(_specs.added(text, id_, control=control))
    spec["added_tokens"].sort(key=lambda entry: entry["id"])


# ---- one function a format

Read = tuple[dict[str, Any], Mapping[str, Any]]


def _read_sentencepiece(request: _Request) -> Read:
    request.refuse(pattern=request.pattern, specials=request.specials)
    data = _specs.read_bytes(request.file)
    read = _sentencepiece.read(data, str(request.file), request.config)
    if request.file.name == _fairseq.FILE:
        return _fairseq.reorder(read[0], str(request.file), request.config)
    return read


def _read_tiktoken(request: _Request) -> Read:
    data = _specs.read_bytes(request.file)
    where = str(request.file)
    return _tiktoken.read(data, where, request.pattern, request.specials), {}


def _read_merges(request: _Request) -> Read:
    merges, vocab = (request.file.with_name(n) for n in ("merges.txt", "vocab.json"))
    for part in (merges, vocab):
        if not part.is_file():
            raise MissingFileError(f"{part}: missing, expected {_NAMES['merges']}.")
    table = tj.parse_object(tj.read_text(vocab), str(vocab), vocab.name)
    lines = tj.read_text(merges)
    return _pairs.read_merges(table, lines, str(merges), request.pattern)


def _read_wordpiece(request: _Request) -> Read:
    request.refuse(pattern=request.pattern, specials=request.specials)
    text = tj.read_text(request.file)
    return _pairs.read_wordpiece(text, str(request.file), request.config)


def _read_clip(request: _Request) -> Read:
    request.refuse(pattern=request.pattern, specials=request.specials)
    return _clip.read(_specs.read_bytes(request.file), str(request.file))


_READERS: dict[str, Callable[[_Request], Read]] = {
    "sentencepiece": _read_sentencepiece,
    "tiktoken": _read_tiktoken,
    "merges": _read_merges,
    "wordpiece": _read_wordpiece,
    "clip": _read_clip,
}
