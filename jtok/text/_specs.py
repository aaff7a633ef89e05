"""Building blocks of a `tokenizer.json` for files in other formats."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jtok.errors import ArgumentError, CheckpointError, check
from jtok.text import _tokenizer_json as tj

__all__ = [
    "LIMIT",
    "add_specials",
    "around",
    "byte_text",
    "pattern_of",
    "read_bytes",
    "specification",
    "split_by",
]

LIMIT = 256 << 20  # bytes of one tokenizer file


def specification(model: Mapping[str, Any], **steps: Any) -> dict[str, Any]:
    """A `tokenizer.json` as a dict.

    Args:
      model: its `model`.
      steps: `normalizer`, `pre_tokenizer`, `post_processor`, `decoder`.
    """
    empty = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        **{name: steps.get(name) for name in empty},
        "model": dict(model),
    }


def byte_text(token: bytes) -> str:
    """A token in GPT-2's printable characters."""
    return token.decode("latin-1").translate(_to_printable())


def _to_printable() -> dict[int, str]:
    if not _PRINTABLE:
        _PRINTABLE.update({b: char for char, b in tj.byte_alphabet().items()})
    return _PRINTABLE


_PRINTABLE: dict[int, str] = {}


def split_by(pattern: str) -> dict[str, Any]:
    """A pre-tokeniser that splits by a regex and then turns text to bytes."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if pattern == tj.PATTERNS["gpt2"]:
        return {**level, "use_regex": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    rest = {**level, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, rest]}


def pattern_of(pattern: str) -> str:
    """The regex of a named split rule; a regex stands for itself.

    Raises:
      ArgumentError: a misspelt name, or no regex.
    """
    import tokenizers

    from jtok.errors import near

    if pattern in tj.PATTERNS:
        return tj.PATTERNS[pattern]
    if pattern.replace("_", "").replace("-", "").isalnum():
        raise ArgumentError(
            f"pattern: got {pattern!r}, expected a regex or a name"
            f"{near(pattern, tj.PATTERNS)}."
        )
    try:
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    except Exception as error:  # the library raises bare Exception
        raise ArgumentError(
            f"pattern: got {pattern[:80]!r}, expected a regex or one of "
            f"{', '.join(tj.PATTERNS)} ({error})."
        ) from error
    return pattern


def add_specials(
    spec: dict[str, Any], specials: Mapping[str, int], *, control: bool = True
) -> None:
    """Puts tokens outside of the merges into a specification, in place.

    Args:
      spec: with `model.vocab` as a dict.
      specials: text -> id; ids may leave gaps, and an id of the model must be its own.
      control: they are control tokens, not text.

    Raises:
      ArgumentError: a text or an id is taken, or is none.
    """
    vocab = spec["model"]["vocab"]
    owners = {id_: token for token, id_ in vocab.items()}
    for text, id_ in sorted(specials.items(), key=lambda item: item[1]):
        check(isinstance(text, str) and text, "specials", text, "names that are text")
        plain = isinstance(id_, int) and not isinstance(id_, bool)
        check(
            plain and 0 <= id_ < tj.MOST_IDS,
            "specials",
            {text: id_},
            f"0 <= id < {tj.MOST_IDS}",
        )
        taken = owners.get(id_, text) != text or vocab.get(text, id_) != id_
        check(not taken, "specials", {text: id_}, "texts and ids that no token has")
        owners[id_] = text
        vocab[text] = id_
        spec["added_tokens"].append(added(text, id_, control=control))
    spec["added_tokens"].sort(key=lambda entry: entry["id"])


def added(text: str, id_: int, *, control: bool) -> dict[str, Any]:
    """One entry of `added_tokens`."""
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": text, **switches, "special": control}


def around(before: Sequence[str], after: Sequence[str], ids: Mapping[str, int]) -> Any:
    """A post-processor that puts control tokens before and after a text, or None."""
    if not before and not after:
        return None

    def piece(token: str, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    def whole(name: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": type_id}}
        start = [piece(token, type_id) for token in before]
        return [*start, text, *(piece(token, type_id) for token in after)]

    table = {
        token: {"id": token, "ids": [ids[token]], "tokens": [token]}
        for token in dict.fromkeys([*before, *after])
    }
    return {
        "type": "TemplateProcessing",
        "single": whole("A", 0),
        "pair": [*whole("A", 0), *whole("B", 1)],
        "special_tokens": table,
    }


def read_bytes(file: pathlib.Path) -> bytes:
    """The bytes of a tokenizer file of a sane size."""
    size = file.stat().st_size
    if size > LIMIT:
        raise CheckpointError(
            f"{file}: {size} bytes, expected a tokenizer of at most {LIMIT} bytes."
        )
    return file.read_bytes()
