"""What a `tokenizer.json` says about its tokens, beyond what the library exposes."""

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

from jtok.errors import (
    CheckpointError,
    JtokError,
    MissingFileError,
    UnsupportedCheckpointError,
    near,
)

JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ROLES = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
STANDARD_ROLES = frozenset({"bos", "eos", "unk", "pad", "cls", "sep", "mask"})
TEMPLATES = "additional_chat_templates/"  # a folder of named ones
ADDED = "added_tokens.json"
# `transformers` wants a class name to load a folder; this one fits any tokenizer.json.
CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
MOST_IDS = 1 << 22  # more ids than any tokenizer has; keeps tables of ids small

METASPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
)
# Split rules by name. Some have two: cl100k and llama3, o200k and llama4 are the same.
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+",
    "llama3": _WORD + r"\p{N}{1,3}" + _SYMBOLS,
    "cl100k": _WORD + r"\p{N}{1,3}" + _SYMBOLS,
    "qwen2": _WORD + r"\p{N}" + _SYMBOLS,
    "o200k": _CASED + r"\p{N}{1,3}" + _SYMBOLS.replace(r"[\r\n]*", r"[\r\n/]*"),
    "llama4": _CASED + r"\p{N}{1,3}" + _SYMBOLS.replace(r"[\r\n]*", r"[\r\n/]*"),
}
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The first name of each.
SPLIT_PATTERNS = {
    **{pattern: name for name, pattern in reversed(PATTERNS.items())},
    CLIP_PATTERN: "clip",
    r"<\|startoftext\|>|<\|endoftext\|>|" + CLIP_PATTERN: "clip",
}
# These drop the characters that they split at.
_LOSSY_SPLITS = {
    "BertPreTokenizer",
    "CharDelimiterSplit",
    "Whitespace",
    "WhitespaceSplit",
}
_KEEPING_NORMALIZERS = {"NFC", "Prepend"}
# Parts of a tokenizer.json that may be a Sequence, and the field with its members.
_STEPS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "decoder": "decoders",
    "post_processor": "processors",
}
_TYPES = {
    "model": "BPE Unigram WordLevel WordPiece",
    "normalizer": "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt "
    "Precompiled Prepend Replace Sequence Strip StripAccents",
    "pre_tokenizer": "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength "
    "Metaspace Punctuation Sequence Split UnicodeScripts Whitespace WhitespaceSplit",
    "decoder": "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Sequence "
    "Strip WordPiece",
    "post_processor": "BertProcessing ByteLevel RobertaProcessing Sequence "
    "TemplateProcessing",
}


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for every byte: character -> byte.

    Printable latin-1 stands for itself, the other bytes take U+0100 upwards in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + rank): byte for rank, byte in enumerate(hidden)})
    return alphabet


def parts(component: Mapping[str, Any] | None, field: str) -> Iterator[dict[str, Any]]:
    """The leaves of a normaliser, pre-tokeniser or decoder that may be a Sequence."""
    if component is None:
        return
    if component.get("type") == "Sequence":
        for child in component.get(field, ()):
            yield from parts(child, field)
    else:
        yield dict(component)


def kind_of(spec: Mapping[str, Any]) -> str:
    """`byte_bpe`, `sentencepiece_bpe`, `wordpiece`, `unigram` or `wordlevel`."""
    model = spec["model"].get("type") or _guess_model(spec["model"])
    if model != "BPE":
        return model.lower()  # the library has read it, so it is one of the three
    leaves = [
        *parts(spec.get("pre_tokenizer"), "pretokenizers"),
        *parts(spec.get("decoder"), "decoders"),
    ]
    byte_level = any(leaf.get("type") == "ByteLevel" for leaf in leaves)
    return "byte_bpe" if byte_level else "sentencepiece_bpe"


def _guess_model(model: Mapping[str, Any]) -> str:
    """Files of old releases do not name the model's type."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    prefixed = "continuing_subword_prefix" in model
    return "WordPiece" if prefixed else "WordLevel"


def pretokenizer_of(spec: Mapping[str, Any]) -> str:
    """The name of the splitting rule; see `Vocabulary.pretokenizer`."""
    leaves = list(parts(spec.get("pre_tokenizer"), "pretokenizers"))
    names = []
    for leaf in leaves:
        kind = leaf["type"]
        if kind == "ByteLevel":
            names += ["gpt2"] if leaf.get("use_regex", True) else []
        elif kind == "Split":
            pattern = leaf.get("pattern", {}).get("Regex")
            isolated = leaf.get("behavior") == "Isolated"
            whole = isolated or (leaf.get("behavior"), leaf.get("invert")) == (
                "Removed",
                True,
            )
            names.append(SPLIT_PATTERNS.get(pattern, "other") if whole else "other")
        else:
            known = {"Metaspace": "metaspace", "BertPreTokenizer": "bert"}
            spaces = {"Whitespace": "whitespace", "WhitespaceSplit": "whitespace"}
            names.append({**known, **spaces}.get(kind, "other"))
    if names == ["whitespace", "metaspace"]:  # T5 and XLM-R
        return "metaspace"
    if names == ["clip", "gpt2"]:  # the second splits nothing further
        return "clip"
    if len(names) > 1:
        return "other"
    return names[0] if names else "none"


def split_rules(spec: Mapping[str, Any]) -> list[Any]:
    """What `pretokenizer_of` leaves open: the prefixed space, rules without a name."""
    if pretokenizer_of(spec) == "other":
        return [spec.get("pre_tokenizer")]
    leaves = parts(spec.get("pre_tokenizer"), "pretokenizers")
    return [
        [leaf["type"], leaf.get("add_prefix_space"), leaf.get("prepend_scheme")]
        for leaf in leaves
        if leaf["type"] in ("ByteLevel", "Metaspace")
    ]


def has_byte_fallback(spec: Mapping[str, Any]) -> bool:
    """Whether `<0xNN>` tokens stand for single bytes."""
    decoder = parts(spec.get("decoder"), "decoders")
    fallback = any(leaf.get("type") == "ByteFallback" for leaf in decoder)
    return bool(spec["model"].get("byte_fallback")) or fallback


def model_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Switches of a BPE or Unigram that change ids; without those that are off."""
    names = ("ignore_merges", "byte_fallback", "end_of_word_suffix", "fuse_unk")
    model = spec["model"]
    return {name: model[name] for name in names if model.get(name)}


def keeps_text(spec: Mapping[str, Any]) -> bool:
    """Whether neither normaliser nor pre-tokeniser loses a character."""
    if spec["model"].get("end_of_word_suffix"):
        return False
    for leaf in parts(spec.get("normalizer"), "normalizers"):
        to_metaspace = (leaf.get("pattern"), leaf.get("content")) == (
            {"String": " "},
            METASPACE,
        )
        if leaf["type"] not in _KEEPING_NORMALIZERS and not to_metaspace:
            return False
    for leaf in parts(spec.get("pre_tokenizer"), "pretokenizers"):
        removed = leaf.get("behavior") == "Removed" and not leaf.get("invert")
        if leaf["type"] in _LOSSY_SPLITS or removed:
            return False
    return True


def surface_bytes(
    token: str, kind: str, *, fallback: bool, prefix: str, suffix: str
) -> bytes:
    """The bytes that a token of the model (not an added one) stands for."""
    if kind == "byte_bpe":
        ended = bool(suffix) and token.endswith(suffix)
        return level_bytes(token.removesuffix(suffix)) + b" " * ended
    if kind == "wordpiece":
        return token.removeprefix(prefix).encode()
    if kind == "wordlevel":
        return token.encode()
    if fallback and (match := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(match[1], 16)])
    return token.replace(METASPACE, " ").encode()


def level_bytes(token: str) -> bytes:
    """Bytes of GPT-2's printable characters; other text literally, as decoders do."""
    alphabet = byte_alphabet()
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()


def is_byte_token(token: str) -> bool:
    """Whether the token is spelled `<0xNN>`."""
    return _BYTE_TOKEN.fullmatch(token) is not None


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def dump(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), indent=2, ensure_ascii=False) + "\n"


def merge_pairs(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in spec["model"]["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def read_text(file: pathlib.Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeError as error:
        raise CheckpointError(f"{file}: damaged, it is no UTF-8 text.") from error
    except FileNotFoundError as error:
        raise MissingFileError(f"{file}: it is gone.") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from error


def parse_object(text: str, origin: str, name: str) -> dict[str, Any]:
    place = pathlib.Path(origin).with_name(name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place}: damaged, it is no JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{place}: damaged, expected a JSON object.")
    return value


def parse_tokenizer(
    text: str, origin: str
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    spec = parse_object(text, origin, pathlib.Path(origin).name)
    if not isinstance(spec.get("model"), dict) or "vocab" not in spec["model"]:
        raise CheckpointError(f"{origin}: damaged, it has no model with a vocab.")
    _check_ids(spec, origin)
    with guarded(lambda error: _refusal(spec, origin, error)):
        tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, spec


def normalizer(step: Mapping[str, Any], origin: str) -> Any:
    """A normaliser of the library from its JSON."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    text = json.dumps({"version": "1.0", "normalizer": dict(step), "model": empty})
    with guarded(lambda error: CheckpointError(f"{origin}: damaged ({error}).")):
        return tokenizers.Tokenizer.from_str(text).normalizer


@contextlib.contextmanager
def guarded(refusal: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Turns what the library raises into the error that `refusal` makes of it.

    It raises bare `Exception`, and where it panics a `BaseException` of its own.
    """
    try:
        yield
    except JtokError:
        raise
    except Exception as error:
        raise refusal(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise refusal(error) from error


def _check_ids(spec: Mapping[str, Any], origin: str) -> None:
    """Refuses ids that would make tables of ids huge."""
    vocab = spec["model"]["vocab"]
    ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab or ())]
    entries = spec.get("added_tokens")
    for entry in entries if isinstance(entries, list) else ():
        ids.append(entry.get("id") if isinstance(entry, dict) else None)
    for id_ in ids:
        if not isinstance(id_, int) or not 0 <= id_ <= MOST_IDS:
            raise CheckpointError(
                f"{origin}: damaged, a token has the id {id_!r}, expected at most "
                f"{MOST_IDS}."
            )


def _refusal(
    spec: Mapping[str, Any], origin: str, error: BaseException
) -> CheckpointError:
    """Names the part of unknown type where there is one."""
    found = [("model", spec["model"].get("type"))]
    for step, field in _STEPS.items():
        with contextlib.suppress(Exception):  # of whatever shape it is
            leaves = list(parts(spec.get(step), field))
            found += [(step, leaf.get("type")) for leaf in leaves]
    for step, name in found:
        if isinstance(name, str) and name not in _TYPES[step].split():
            return UnsupportedCheckpointError(
                f"{origin}: a {step} of type {name!r} is not known"
                f"{near(name, _TYPES[step].split())}."
            )
    return CheckpointError(f"{origin}: damaged ({str(error)[:200]}).")


def check_added(spec: Mapping[str, Any], vocab: Mapping[str, int], origin: str) -> None:
    # The library leaves out what it cannot use, such as an empty text.
    wrong = [
        f"{text!r} (id {entry['id']}, loads as {vocab.get(text)})"
        for entry in spec.get("added_tokens") or ()
        if vocab.get(text := entry["content"]) != entry["id"]
    ]
    if wrong:
        raise CheckpointError(
            f"{origin}: added tokens contradict the model's vocab: {', '.join(wrong)}."
        )


def find_roles(
    config: Mapping[str, Any], vocab: Mapping[str, int], origin: str
) -> dict[str, int]:
    """Role -> id, from the `*_token` entries of the config files."""
    found = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if not key.endswith("_token") or not isinstance(text, str):
            continue
        role = key.removesuffix("_token")
        if text in vocab:
            found[role] = vocab[text]
        elif role in STANDARD_ROLES:
            raise CheckpointError(
                f"{origin}: the {key} {text!r} of its {CONFIG} or {ROLES} is none of "
                "its tokens."
            )
    return found


def unknown_role(model: Mapping[str, Any], vocab: Mapping[str, int]) -> dict[str, int]:
    """The model's own unknown token as a role, where it has one."""
    token, index = model.get("unk_token"), model.get("unk_id")
    if isinstance(token, str) and token in vocab:
        return {"unk": vocab[token]}
    return {} if index is None else {"unk": index}
