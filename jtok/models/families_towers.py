"""Towers: ViT, DeiT, DINOv2 with and without registers, and those of SigLIP and CLIP.

What stands on a tower is told by `architectures`. A pooler that files of `...Model`
lack, or others have, is said by `add_pooling_layer`.
"""

import json
from typing import Any

from jtok.errors import ArgumentError, UnsupportedCheckpointError, near
from jtok.models.families_common import Family, Fields, refuse
from jtok.models.families_heads import ACTIVATIONS, encoder_act, head_dim
from jtok.models.families_tower_weights import (
    DINO_TABLE,
    tower_table,
    vit_table,
)
from jtok.models.fields import Fields as CheckedFields
from jtok.models.fields import check_types
from jtok.nn import TowerConfig

__all__ = [
    "TOWER_FAMILIES",
    "part_of",
    "tower_activation_name",
]

_STEMS = {
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    "siglip_vision_model": "SiglipVision",
    "clip_vision_model": "CLIPVision",
}
_LABELS, _TAUGHT = "ForImageClassification", "ForImageClassificationWithTeacher"
_HEADS = {
    "vit": ("Model", _LABELS),
    "deit": ("Model", _LABELS, _TAUGHT),
    "dinov2": ("Model", _LABELS),
    "dinov2_with_registers": ("Model", _LABELS),
}
_POOLED = ("vit", "deit")
# Sizes that files of SigLIP and CLIP leave out.
_USUAL: dict[str, Fields] = {
    "siglip_vision_model": {"patch_size": 16},
    "clip_vision_model": {"patch_size": 32},
}
_USUAL_SIZES: Fields = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
}


def tower_activation_name(name: str, tanh: str = "gelu_pytorch_tanh") -> str:
    """What files call an activation; of tanh they know several names."""
    return tanh if name == "gelu_tanh" else {**ACTIVATIONS}.get(name, name)


def part_of(family: Family, fields: CheckedFields, kind: str) -> Any:
    """A configuration that stands inside of another.

    Args:
      family: of the part.
      fields: what the file says of it.
      kind: its `model_type`.

    Returns:
      The part's configuration in float32.

    Raises:
      UnsupportedCheckpointError: sizes that contradict each other.
      CheckpointError: a field is missing, or of another type.
    """
    made = family.read(fields.checked())
    check_types(made, family.config, where=fields.where)
    try:
        return family.config(family=kind, **made)
    except ArgumentError as error:
        raise UnsupportedCheckpointError(f"{fields.where}: {error}") from None


# ---- configurations


def _sizes(fields: Fields) -> Fields:
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    head_dim(width, heads)
    return {
        "image_size": fields["image_size"],
        "patch_size": fields["patch_size"],
        "channels": fields.get("num_channels", 3),
        "width": width,
        "num_layers": fields["num_hidden_layers"],
        "num_heads": heads,
        "activation": encoder_act(fields.get("hidden_act", "gelu")),
    }


def _write_sizes(config: TowerConfig, tanh: str = "gelu_pytorch_tanh") -> Fields:
    return {
        "architectures": [_architecture(config)],
        "dtype": config.dtype,
        "hidden_act": tower_activation_name(config.activation, tanh),
        "hidden_size": config.width,
        "image_size": config.image_size,
        "layer_norm_eps": config.norm_eps,
        "model_type": config.family,
        "num_attention_heads": config.num_heads,
        "num_channels": config.channels,
        "num_hidden_layers": config.num_layers,
        "patch_size": config.patch_size,
    }


def _read_head(fields: Fields, family: str) -> Fields:
    """What `architectures` names; a folder without a name holds the bare tower."""
    stem = _STEMS[family]
    named = (fields.get("architectures") or [f"{stem}Model"])[0]
    known = [stem + end for end in _HEADS[family]]
    if named not in known:
        raise UnsupportedCheckpointError(f"architecture {named!r}{near(named, known)}.")
    bare = named == f"{stem}Model"
    found: Fields = {"pooling": "cls"}
    if family in _POOLED:
        given = fields.get("add_pooling_layer")
        if bare if given is None else given and bare:
            found["pooling"] = "pooler"
        found["distill_labels"] = named.endswith(_TAUGHT)
    elif not bare:
        found["pooling"] = "cls_mean"
    labels = fields.get("id2label")
    count = fields.get("num_labels")
    count = len(labels) if labels else 2 if count is None else count
    return {**found, "num_labels": 0 if bare else count}


def _architecture(config: TowerConfig) -> str:
    end = _LABELS if config.num_labels else "Model"
    return _STEMS[config.family] + (_TAUGHT if config.distill_labels else end)


def _write_head(config: TowerConfig) -> Fields:
    family, has_labels = config.family, config.num_labels > 0
    if family in _POOLED:
        poolings = ("cls",) if has_labels else ("pooler", "cls")
    else:
        poolings = ("cls_mean",) if has_labels else ("cls",)
    good = config.pooling in poolings and config.class_token and config.patch_bias
    good = good and config.distill_token == (family == "deit")
    _check_place(config, good and not (config.embed_norm or config.norm_pooled))
    fields: Fields = {}
    if family in _POOLED and not config.num_labels and config.pooling == "cls":
        fields["add_pooling_layer"] = False
    names = json.loads(config.source).get("id2label") or {}
    if config.num_labels and len(names) != config.num_labels:
        labels = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        fields["id2label"] = labels
        fields["label2id"] = {name: int(i) for i, name in labels.items()}
    return fields


def _read_vit(family: str) -> Any:
    def read(fields: Fields) -> Fields:
        refuse(fields, pooler_act="tanh", pooler_output_size=fields["hidden_size"])
        return {
            **_sizes(fields),
            "mlp_width": fields["intermediate_size"],
            "distill_token": family == "deit",
            "norm_eps": fields.get("layer_norm_eps", 1e-12),
            "query_bias": bool(fields.get("qkv_bias", True)),
            **_read_head(fields, family),
        }

    return read


def _write_vit(config: TowerConfig) -> Fields:
    return {
        **_write_sizes(config),
        **_write_head(config),
        "intermediate_size": config.mlp_width,
        "pooler_act": "tanh",
        "pooler_output_size": config.width,
        "qkv_bias": config.query_bias,
    }


def _gated_width(hidden: int) -> int:
    """DINOv2's: two thirds, rounded up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _read_dino(family: str) -> Any:
    def read(fields: Fields) -> Fields:
        hidden = fields["hidden_size"] * (fields.get("mlp_ratio") or 4)
        gated = bool(fields.get("use_swiglu_ffn", False))
        registers = family == "dinov2_with_registers"
        count = fields.get("num_register_tokens", 4) if registers else 0
        found = {
            **_sizes(fields),
            "mlp_width": _gated_width(hidden) if gated else hidden,
            "num_registers": count,
            "mask_token": registers or bool(fields.get("use_mask_token", True)),
            "norm_eps": fields.get("layer_norm_eps", 1e-6),
            "mlp": "gated" if gated else "plain",
            "query_bias": bool(fields.get("qkv_bias", True)),
            "layer_scale": True,
            "interpolate": "smooth" if registers else "cubic",
            **_read_head(fields, family),
        }
        return found | ({"activation": "silu"} if gated else {})

    return read


def _write_dino(config: TowerConfig) -> Fields:
    gated, width = config.mlp == "gated", config.width
    wide = lambda ratio: _gated_width(ratio * width) if gated else ratio * width
    fits = (ratio for ratio in range(1, 65) if wide(ratio) == config.mlp_width)
    ratio = next(fits, None)
    _check_place(config, ratio is not None and config.layer_scale)
    fields = {
        **_write_sizes(config),
        **_write_head(config),
        "mlp_ratio": ratio,
        "qkv_bias": config.query_bias,
        "use_swiglu_ffn": gated,
    }
    if gated:
        fields["hidden_act"] = "gelu"
    if config.family == "dinov2_with_registers":
        return {**fields, "num_register_tokens": config.num_registers}
    return {**fields, "use_mask_token": config.mask_token}


def _with_usual(fields: Fields, family: str) -> Fields:
    """The fields, and the usual sizes of those that are not there."""
    usual = {**_USUAL_SIZES, **_USUAL[family]}
    where = getattr(fields, "where", "config.json")
    return CheckedFields({**usual, **fields}, where)


def _read_siglip(fields: Fields) -> Fields:
    fields = _with_usual(fields, "siglip_vision_model")
    act = fields.get("hidden_act", "gelu_pytorch_tanh")
    return {
        **_sizes(fields),
        "mlp_width": fields["intermediate_size"],
        "class_token": False,
        "activation": encoder_act(act),
        "norm_eps": fields.get("layer_norm_eps", 1e-6),
        "pooling": "attention" if fields.get("vision_use_head", True) else None,
    }


def _write_siglip(config: TowerConfig) -> Fields:
    good = not config.num_labels and config.pooling in ("attention", None)
    _check_place(config, good and not config.prefix and config.patch_bias)
    return {
        **_write_sizes(config),
        "intermediate_size": config.mlp_width,
        "vision_use_head": config.pooling == "attention",
    }


def _read_clip(fields: Fields) -> Fields:
    fields = _with_usual(fields, "clip_vision_model")
    return {
        **_sizes(fields),
        "mlp_width": fields["intermediate_size"],
        "activation": encoder_act(fields.get("hidden_act", "quick_gelu")),
        "patch_bias": False,
        "embed_norm": True,
        "norm_eps": fields.get("layer_norm_eps", 1e-5),
        "norm_pooled": True,
    }


def _write_clip(config: TowerConfig) -> Fields:
    good = not config.num_labels and config.pooling == "cls" and config.norm_pooled
    good = good and config.embed_norm and not config.patch_bias
    _check_place(config, good and config.prefix == 1)
    return {**_write_sizes(config), "intermediate_size": config.mlp_width}


def _check_place(config: TowerConfig, good: bool) -> None:
    if not good:
        raise UnsupportedCheckpointError(
            f"model: got a tower for which files of {config.family!r} have no place; "
            "save its parameters by jtok.train, or change its configuration."
        )


_UNUSED = (r"(\w+\.)?pooler\.dense\.(weight|bias)",)
_BUFFERS = (r"(vision_model\.)?embeddings\.position_ids",)


def _dino(family: str) -> Family:
    # Of no registers files hold an empty table.
    unused = (r"(dinov2_with_registers\.)?embeddings\.register_tokens",)
    table = DINO_TABLE
    return Family(_read_dino(family), _write_dino, table, unused, config=TowerConfig)


TOWER_FAMILIES: dict[str, Family] = {
    "vit": Family(
        _read_vit("vit"), _write_vit, vit_table("vit"), _UNUSED, config=TowerConfig
    ),
    "deit": Family(
        _read_vit("deit"), _write_vit, vit_table("deit"), _UNUSED, config=TowerConfig
    ),
    "dinov2": _dino("dinov2"),
    "dinov2_with_registers": _dino("dinov2_with_registers"),
    "siglip_vision_model": Family(
        _read_siglip,
        _write_siglip,
        tower_table("siglip_vision_model", ""),
        _BUFFERS,
        config=TowerConfig,
        older="vision_model.",
    ),
    "clip_vision_model": Family(
        _read_clip,
        _write_clip,
        tower_table("clip_vision_model", ""),
        _BUFFERS,
        config=TowerConfig,
        older="vision_model.",
    ),
}
