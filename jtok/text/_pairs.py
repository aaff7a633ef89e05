"""Vocabularies of two files or of plain lines: GPT-2's pair and BERT's list."""

from collections.abc import Mapping
from typing import Any

from jtok.errors import CheckpointError
from jtok.text import _clip, _specs
from jtok.text import _tokenizer_json as tj

__all__ = ["read_merges", "read_wordpiece"]


# Where a pair of files has all of these it is RoBERTa's, which puts a text between.
_ROBERTA = {
    "bos": "<s>",
    "cls": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "pad": "<pad>",
    "unk": "<unk>",
    "mask": "<mask>",
}


def read_merges(
    vocab: Mapping[str, Any], lines: str, origin: str, pattern: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """A `tokenizer.json` from GPT-2's `vocab.json` and `merges.txt`, and roles.

    RoBERTa's pair has control tokens among its ids, which are added around a text.

    Args:
      vocab: printed token -> id.
      lines: the text of `merges.txt`.
      origin: its name, for messages.
      pattern: split rule by name or regex; None for GPT-2's, or CLIP's where tokens
        end in `</w>`.

    Raises:
      CheckpointError: damaged, or the two contradict each other.
    """
    ids = check_ids(vocab, origin)
    merges = []
    for number, line in enumerate(lines.splitlines(), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        sides = line.split(" ")
        if len(sides) != 2 or any(x not in ids for x in (*sides, "".join(sides))):
            raise CheckpointError(
                f"{origin}: damaged, line {number} is {line[:40]!r}, expected two "
                "tokens of vocab.json that make a third."
            )
        merges.append(sides)
    if any(token.endswith(_clip.END) for token in ids):
        return _clip.specification(ids, merges)
    regex = _specs.pattern_of("gpt2" if pattern is None else pattern)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }
    level = _specs.split_by(tj.PATTERNS["gpt2"])
    split = _specs.split_by(regex)
    spec = _specs.specification(model, pre_tokenizer=split, decoder=level)
    if any(token not in ids for token in _ROBERTA.values()):
        return spec, {}
    names = dict.fromkeys(_ROBERTA.values())
    _specs.add_specials(spec, {token: ids[token] for token in names})
    for entry in spec["added_tokens"]:
        entry["lstrip"] = entry["content"] == _ROBERTA["mask"]
    spec["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": [_ROBERTA["sep"], ids[_ROBERTA["sep"]]],
        "cls": [_ROBERTA["cls"], ids[_ROBERTA["cls"]]],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    return spec, {f"{role}_token": token for role, token in _ROBERTA.items()}


def read_wordpiece(
    text: str, origin: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A `tokenizer.json` from BERT's `vocab.txt`, one token a line, and roles.

    Args:
      text: the file.
      origin: its name, for messages.
      config: `tokenizer_config.json`: `do_lower_case` and the like.

    Raises:
      CheckpointError: damaged, or without BERT's control tokens.
    """
    lines = text.split("\n")
    tokens = [line.rstrip("\r") for line in (lines[:-1] if not lines[-1] else lines)]
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for id_, token in enumerate(tokens) if vocab[token] != id_)
        raise CheckpointError(f"{origin}: damaged, {twice!r} stands twice.")
    usual = {r: f"[{r.upper()}]" for r in ("unk", "sep", "pad", "cls", "mask")}
    given = {role: config.get(f"{role}_token") for role in usual}
    named = {
        r: v.get("content") if isinstance(v, dict) else v for r, v in given.items()
    }
    roles = {r: named[r] or usual[r] for r in usual}
    missing = [roles[r] for r in ("unk", "sep", "cls") if roles[r] not in vocab]
    if missing:
        raise CheckpointError(f"{origin}: damaged, it has no {missing[0]!r}.")
    model = {
        "type": "WordPiece",
        "unk_token": roles["unk"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars") is not False,
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case") is not False,
    }
    spec = _specs.specification(
        model,
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_specs.around([roles["cls"]], [roles["sep"]], vocab),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
    present = {token: vocab[token] for token in roles.values() if token in vocab}
    _specs.add_specials(spec, present)
    return spec, {f"{r}_token": token for r, token in roles.items() if token in vocab}


def check_ids(vocab: Mapping[str, Any], origin: str) -> dict[str, int]:
    """The mapping, whose values are distinct ids."""
    for token, id_ in vocab.items():
        plain = isinstance(id_, int) and not isinstance(id_, bool)
        if not plain or not 0 <= id_ < tj.MOST_IDS:
            raise CheckpointError(
                f"{origin}: damaged, {token!r} has the id {id_!r} in vocab.json, "
                f"expected 0 <= id < {tj.MOST_IDS}."
            )
    if len(set(vocab.values())) < len(vocab):
        raise CheckpointError(f"{origin}: damaged, two tokens have the same id.")
    return dict(vocab)
