"""What stands on an encoder, as files of its families name and choose it."""

import json
from typing import Any

from jtok.errors import UnsupportedCheckpointError, near
from jtok.models.families_common import Fields, activation, linear
from jtok.nn import EncoderConfig

__all__ = [
    "ACTIVATIONS",
    "LABELS",
    "architecture_of",
    "encoder_act",
    "head_dim",
    "head_options",
    "read_heads",
    "write_heads",
]

# What files call the activations that jtok names.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
# Rows of weight tables: one linear map to the labels.
LABELS = (
    *linear("classifier", "sequence/labels"),
    *linear("classifier", "token/labels"),
)
_STEMS = {
    "bert": "Bert",
    "ernie": "Ernie",
    "distilbert": "DistilBert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "modernbert": "ModernBert",
    "t5": "T5",
}
_ENDS = {
    None: "Model",
    "masked_lm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
}
_BOTH = ("bert", "ernie")
_POOLED = (*_BOTH, "roberta", "xlm-roberta")


def encoder_act(name: str | None) -> str:
    """As `activation`, and "quick_gelu", which encoders have, too."""
    return "quick_gelu" if name == "quick_gelu" else activation(name)


def architecture_of(family: str, head: str | None) -> str:
    """What files call a family's model with a head; T5's is only read without one.

    Args:
      family: the `model_type`.
      head: as `EncoderConfig.head`.

    Returns:
      The name, "" where there is none.
    """
    if family == "t5":
        return "" if head else "T5EncoderModel"
    return _STEMS[family] + _ENDS[head]


def head_options(family: str, head: str | None, **given: Any) -> Fields:
    """What a family's head is made of, as fields of `EncoderConfig`.

    Args:
      family: the `model_type`.
      head: as `EncoderConfig.head`.
      **given: what the family's files may choose, in place of what is usual.

    Returns:
      The fields.
    """
    dense = head == "masked_lm"
    found: Fields = {"head": head, "head_dense": dense, "head_norm": dense}
    found["architecture"] = architecture_of(family, head)
    if family in _BOTH:
        found["head_pooling"] = "pooler"
        found["pooler"] = head == "sequence"
    elif family in ("roberta", "xlm-roberta") and head == "sequence":
        found |= {"head_dense": True, "head_activation": "tanh"}
    elif family == "distilbert" and head == "sequence":
        found |= {"head_dense": True, "head_activation": "relu"}
    elif family == "modernbert" and head is not None:
        found |= {"head_dense": True, "head_norm": True}
    elif family == "t5":
        found["head_pooling"] = "mean"
    return found | given


def read_heads(fields: Fields, family: str, **given: Any) -> Fields:
    """The head that `architectures` names; a folder without a name has none."""
    named = (fields.get("architectures") or [f"{_STEMS[family]}Model"])[0]
    known = {f"{_STEMS[family]}{end}": head for head, end in _ENDS.items()}
    both = f"{_STEMS[family]}ForPreTraining"
    if family in _BOTH:
        known[both] = "masked_lm"
    if named not in known:
        raise UnsupportedCheckpointError(f"architecture {named!r}{near(named, known)}.")
    head = known[named]
    found = head_options(family, head, **given)
    if head == "masked_lm" and fields.get("tie_word_embeddings") is False:
        found["tied"] = False
    found |= {"num_labels": _num_labels(fields), "architecture": named}
    if family in _POOLED:
        usual = named == both or head is None or bool(found.get("pooler"))
        pooler = fields.get("add_pooling_layer")
        found["pooler"] = usual if pooler is None else pooler
        found["next_sentence"] = named == both
    return found


def _num_labels(fields: Fields) -> int:
    labels = fields.get("id2label")
    count = fields.get("num_labels")
    return len(labels) if labels else 2 if count is None else count


def write_heads(config: EncoderConfig) -> Fields:
    name = config.architecture
    if not name:
        raise UnsupportedCheckpointError(
            f"model: got the head {config.head!r} on {config.family!r}, for which its "
            "files have no place; save the encoder without it."
        )
    fields: Fields = {"architectures": [name], "model_type": config.family}
    usual = config.head is None or config.next_sentence
    usual = usual or (config.head == "sequence" and config.head_pooling == "pooler")
    if config.family in _POOLED and config.pooler != usual:
        fields["add_pooling_layer"] = config.pooler
    names = json.loads(config.source).get("id2label") or {}
    labelled = config.head in ("sequence", "token")
    if labelled and len(names) != config.num_labels:
        labels = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        fields["id2label"] = labels
        fields["label2id"] = {name: int(i) for i, name in labels.items()}
    return fields | {"dtype": config.dtype, "vocab_size": config.vocab_size}


def head_dim(width: int, heads: int) -> int:
    """The size of a head, of which all together are as wide as the stream."""
    if width % heads:
        raise UnsupportedCheckpointError(
            f"hidden_size={width} is no multiple of {heads} attention heads."
        )
    return width // heads
