"""Models that hold a tower beside a model of texts: CLIP, SigLIP and LLaVA."""

import dataclasses
import json
from typing import Any

from jtok.errors import UnsupportedCheckpointError, near
from jtok.models.families_common import Family, Fields, linear, norm
from jtok.models.families_heads import encoder_act, head_dim
from jtok.models.families_llama import LLAMA_FAMILIES
from jtok.models.families_tower_weights import tower_table
from jtok.models.families_towers import (
    TOWER_FAMILIES,
    part_of,
    tower_activation_name,
)
from jtok.models.fields import Fields as CheckedFields
from jtok.models.weights import Weight
from jtok.nn import ClipConfig, EncoderConfig, LlavaConfig

__all__ = ["JOINT_FAMILIES"]

_TOWERS = ("clip_vision_model", "siglip_vision_model")
# Sizes that files leave out, as their nested configurations are told by differences.
_USUAL_TEXT: Fields = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_USUAL_SIGLIP_TEXT: Fields = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_USUAL_LLAVA_TOWER: Fields = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_USUAL_LLAMA: Fields = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_FIRST_RULE = 2  # files with this end mean the highest id of a text
_UNSEEN = ("architectures", "dtype", "id2label", "label2id", "tie_word_embeddings")


def _nested(fields: Fields, name: str, usual: Fields) -> Any:
    """What a file says of a part, and the usual of what it does not say."""
    where = getattr(fields, "where", "config.json")
    given = fields.get(name) or {}
    more = fields.get(f"{name}_dict") or {}
    if not isinstance(more, dict):
        raise UnsupportedCheckpointError(f"{name}_dict={more!r}, expected an object.")
    return CheckedFields({**usual, **given, **more}, f"{where}: {name}")


def _written(config: Any, name: str, made: Fields) -> Fields:
    """A part's fields over those of the file, without what only a file of it has."""
    held = json.loads(config.source).get(name) or {}
    made = {key: made[key] for key in made if key not in _UNSEEN or key in held}
    return {**held, **made}


def _check_class(fields: Fields, known: str) -> None:
    named = (fields.get("architectures") or [known])[0]
    if named != known:
        raise UnsupportedCheckpointError(
            f"architecture {named!r}{near(named, [known])}."
        )


# ---- CLIP and SigLIP


def _read_text(fields: Fields) -> Fields:
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "num_layers": fields["num_hidden_layers"],
        "num_heads": heads,
        "head_dim": head_dim(width, heads),
        "mlp_width": fields["intermediate_size"],
        "max_positions": fields["max_position_embeddings"],
        "num_types": 0,
        "embed_norm": False,
        "norm_eps": fields.get("layer_norm_eps", 1e-5),
        "norm_first": True,
        "activation": encoder_act(fields.get("hidden_act", "quick_gelu")),
    }


_TEXT = Family(_read_text, dict, (), config=EncoderConfig)


def _read_clip(fields: Fields) -> Fields:
    text = _nested(fields, "text_config", _USUAL_TEXT)
    vision = _nested(fields, "vision_config", {})
    _check_class(fields, "CLIPModel")
    end = text.get("eos_token_id")
    if isinstance(end, list):
        raise UnsupportedCheckpointError(f"eos_token_id={end}, expected one id.")
    encoder = part_of(_TEXT, text, "clip_text_model")
    return {
        "text": dataclasses.replace(encoder, causal=True),
        "vision": part_of(TOWER_FAMILIES[_TOWERS[0]], vision, _TOWERS[0]),
        "projection": fields.get("projection_dim", 512),
        "eos_token_id": None if end == _FIRST_RULE else end,
    }


def _read_siglip(fields: Fields) -> Fields:
    text = _nested(fields, "text_config", _USUAL_SIGLIP_TEXT)
    vision = _nested(fields, "vision_config", {})
    _check_class(fields, "SiglipModel")
    return {
        "text": part_of(_TEXT, text, "siglip_text_model"),
        "vision": part_of(TOWER_FAMILIES[_TOWERS[1]], vision, _TOWERS[1]),
        "projection": text.get("projection_size") or text["hidden_size"],
        "text_last": True,
        "vision_map": False,
        "score_bias": True,
    }


def _write_text(text: EncoderConfig) -> Fields:
    return {
        "hidden_act": tower_activation_name(text.activation),
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width,
        "layer_norm_eps": text.norm_eps,
        "max_position_embeddings": text.max_positions,
        "model_type": text.family,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "vocab_size": text.vocab_size,
    }


def _write_pair(config: ClipConfig) -> Fields:
    made, end = _write_text(config.text), config.eos_token_id
    tower = TOWER_FAMILIES[config.vision.family].write(config.vision)
    top: Fields = {"architectures": ["SiglipModel"]}
    if config.family == "siglip":
        made["projection_size"] = config.projection
    else:
        made["eos_token_id"] = _FIRST_RULE if end is None else end
        top = {"architectures": ["CLIPModel"], "projection_dim": config.projection}
    older = {name: None for name in json.loads(config.source) if name.endswith("_dict")}
    return {
        **older,
        **top,
        "dtype": config.dtype,
        "model_type": config.family,
        "text_config": _written(config, "text_config", made),
        "vision_config": _written(config, "vision_config", tower),
    }


_LAYER = "text_model.encoder.layers.{layer}"
_ENCODER = (
    Weight("text_model.embeddings.position_embedding.weight", ("embed/positions",)),
    Weight("text_model.embeddings.token_embedding.weight", ("embed/tokens",)),
    *norm(f"{_LAYER}.layer_norm1", "attn_norm"),
    *norm(f"{_LAYER}.layer_norm2", "mlp_norm"),
    *linear(f"{_LAYER}.mlp.fc1", "mlp/up"),
    *linear(f"{_LAYER}.mlp.fc2", "mlp/down"),
    *linear(f"{_LAYER}.self_attn.k_proj", "key"),
    *linear(f"{_LAYER}.self_attn.out_proj", "out"),
    *linear(f"{_LAYER}.self_attn.q_proj", "query"),
    *linear(f"{_LAYER}.self_attn.v_proj", "value"),
    *norm("text_model.final_layer_norm", "final_norm"),
)
_CLIP = (
    Weight("logit_scale", ("logit_scale",), lead=-1),
    *_ENCODER,
    *linear("text_projection", "text_projection"),
    *tower_table(_TOWERS[0], "vision_model.", "vision"),
    *linear("visual_projection", "vision_projection"),
)
_SIGLIP = (
    Weight("logit_bias", ("logit_bias",)),
    Weight("logit_scale", ("logit_scale",)),
    *_ENCODER,
    *linear("text_model.head", "text_projection"),
    *tower_table(_TOWERS[1], "vision_model.", "vision"),
)


# ---- LLaVA


def _read_llava(fields: Fields) -> Fields:
    _check_class(fields, "LlavaForConditionalGeneration")
    given = fields.get("text_config") or {}
    kind = given.get("model_type") or "llama"
    if kind not in LLAMA_FAMILIES:
        hint = near(kind, LLAMA_FAMILIES)
        raise UnsupportedCheckpointError(f"text_config: model_type {kind!r}{hint}.")
    tower = (fields.get("vision_config") or {}).get("model_type") or _TOWERS[0]
    if tower not in _TOWERS:
        hint = near(tower, _TOWERS)
        raise UnsupportedCheckpointError(f"vision_config: model_type {tower!r}{hint}.")
    text = _nested(fields, "text_config", _USUAL_LLAMA if kind == "llama" else {})
    sizes = _USUAL_LLAVA_TOWER if tower == _TOWERS[0] else {}
    ties = (part.get("tie_word_embeddings", False) for part in (fields, text))
    decoder = {**text, "tie_word_embeddings": any(ties)}
    vision = _nested(fields, "vision_config", sizes)
    token = fields.get("image_token_index", fields.get("image_token_id"))
    select = fields.get("vision_feature_select_strategy", "default")
    if select not in ("default", "full"):
        raise UnsupportedCheckpointError(
            f"vision_feature_select_strategy={select!r}, expected 'default' or 'full'."
        )
    return {
        "text": part_of(LLAMA_FAMILIES[kind], CheckedFields(decoder, text.where), kind),
        "vision": part_of(TOWER_FAMILIES[tower], vision, tower),
        "image_token_id": 32000 if token is None else token,
        "feature_layers": _layers(fields.get("vision_feature_layer", -2)),
        "select": select,
        "activation": encoder_act(fields.get("projector_hidden_act", "gelu")),
        "connector_bias": bool(fields.get("multimodal_projector_bias", True)),
    }


def _layers(given: Any) -> tuple[int, ...]:
    listed = given if isinstance(given, list) else [given]
    whole = all(isinstance(at, int) and not isinstance(at, bool) for at in listed)
    if not whole or not listed or len(listed) > 100:
        raise UnsupportedCheckpointError(
            f"vision_feature_layer={str(given)[:60]}, expected an index or a list."
        )
    return tuple(listed)


def _write_llava(config: LlavaConfig) -> Fields:
    text = LLAMA_FAMILIES[config.text.family].write(config.text)
    text = {**text, "model_type": config.text.family}
    tower = TOWER_FAMILIES[config.vision.family].write(config.vision)
    layers = config.feature_layers
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": config.dtype,
        "image_seq_length": config.image_tokens,
        "image_token_index": config.image_token_id,
        "model_type": config.family,
        "multimodal_projector_bias": config.connector_bias,
        "projector_hidden_act": config.activation,
        "text_config": _written(config, "text_config", text),
        "tie_word_embeddings": config.text.tied,
        "vision_config": _written(config, "vision_config", tower),
        "vision_feature_layer": layers[0] if len(layers) == 1 else list(layers),
        "vision_feature_select_strategy": config.select,
    }


def _of_kind(kind: str, rows: tuple[Weight, ...], stem: str) -> tuple[Weight, ...]:
    named = (row._replace(name=stem + row.name) if stem else row for row in rows)
    return tuple(row._replace(kind=kind) for row in named)


_LLAVA = (
    *(
        row
        for kind, family in LLAMA_FAMILIES.items()
        for row in _of_kind(kind, family.weights, "language_model.")
    ),
    *linear("multi_modal_projector.linear_1", "connector/first"),
    *linear("multi_modal_projector.linear_2", "connector/second"),
    *(
        row
        for kind in _TOWERS
        for row in _of_kind(kind, tower_table(kind, "vision_tower.", "vision"), "")
    ),
)
_BUFFERS = r"(text_model|vision_model|vision_tower(\.vision_model)?)\.embeddings"

JOINT_FAMILIES: dict[str, Family] = {
    "clip": Family(
        _read_clip,
        _write_pair,
        _CLIP,
        (rf"{_BUFFERS}\.position_ids",),
        config=ClipConfig,
    ),
    "siglip": Family(
        _read_siglip,
        _write_pair,
        _SIGLIP,
        (rf"{_BUFFERS}\.position_ids",),
        config=ClipConfig,
    ),
    "llava": Family(
        _read_llava,
        _write_llava,
        _LLAVA,
        (
            rf"{_BUFFERS}\.position_ids",
            r"language_model\..*rotary_emb\.inv_freq",
        ),
        config=LlavaConfig,
        older="vision_model.",
    ),
}
