"""SentencePiece files whose ids XLM-RoBERTa's tokenizer counts otherwise."""

from collections.abc import Mapping
from typing import Any

from jtok.errors import CheckpointError, UnsupportedCheckpointError
from jtok.text import _specs

__all__ = ["FILE", "reorder"]

FILE = "sentencepiece.bpe.model"
_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_ROLES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def reorder(
    spec: dict[str, Any], origin: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The specification with ids as fairseq counts them, and roles.

    Control tokens come first in fairseq's order, then the file's pieces after its own
    three, each one id later than in the file, then the mask.

    Args:
      spec: of the file as it is.
      origin: its name, for messages.
      config: `tokenizer_config.json`.

    Raises:
      CheckpointError: the file does not begin with its three control tokens.
      UnsupportedCheckpointError: another tokenizer's file of that name.
    """
    kind = str(config.get("tokenizer_class") or "XLMRobertaTokenizer")
    if kind.removesuffix("Fast") != "XLMRobertaTokenizer":
        raise UnsupportedCheckpointError(
            f"{origin}: its ids are shifted as {kind} does, expected "
            "XLMRobertaTokenizer, or a tokenizer.json beside it."
        )
    model = spec["model"]
    names = [*(p if isinstance(p, str) else p[0] for p in model["vocab"])][:3]
    if model["type"] != "Unigram" or names != ["<unk>", "<s>", "</s>"]:
        raise CheckpointError(
            f"{origin}: damaged, it begins with {names} ({model['type']}), expected a "
            "Unigram model of <unk>, <s> and </s>."
        )
    first = [[token, 0.0] for token in _FIRST]
    vocab = [*first, *model["vocab"][3:], ["<mask>", 0.0]]
    tokens = {
        **{token: id_ for id_, token in enumerate(_FIRST)},
        "<mask>": len(vocab) - 1,
    }
    added = [_specs.added(token, id_, control=True) for token, id_ in tokens.items()]
    added[-1]["lstrip"] = True
    processor = {
        "type": "RobertaProcessing",
        "sep": ["</s>", tokens["</s>"]],
        "cls": ["<s>", tokens["<s>"]],
        "trim_offsets": True,
        "add_prefix_space": True,
    }
    changed = {
        **spec,
        "model": {**model, "vocab": vocab, "unk_id": tokens["<unk>"]},
        "added_tokens": added,
        "post_processor": processor,
    }
    return changed, dict(_ROLES)
