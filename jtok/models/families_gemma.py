"""Gemma, Gemma 2 and the text model of Gemma 3."""

from jtok.models.families_common import (
    FULL,
    SLIDING,
    Family,
    Fields,
    activation,
    kinds_of,
    refuse,
    rope,
    windows,
)
from jtok.models.families_llama import (
    ATTENTION,
    MLP,
    PRE_NORMS,
    ROTARY_BUFFER,
    layer_rows,
    llama_table,
    only_full,
    read_llama,
    without,
    write_llama,
)
from jtok.nn import DecoderConfig

__all__ = ["GEMMA_FAMILIES"]

_ACTIVATION_NAMES = {"gelu_tanh": "gelu_pytorch_tanh"}


def _read_common(fields: Fields, *, theta: float = 1e4) -> Fields:
    refuse(fields, use_bidirectional_attention=False)
    named = fields.get("hidden_activation") or fields.get("hidden_act")
    sized = {"head_dim": 256, "tie_word_embeddings": True, **fields}
    return {
        **read_llama({**sized, "hidden_act": "gelu"}, theta=theta),
        "activation": activation(named or "gelu_pytorch_tanh"),
        "norm_offset": True,
        "embed_scale": fields["hidden_size"] ** 0.5,
    }


def _cap(value: int | float | None) -> float | None:
    return None if value is None else float(value)


def _read_gemma(fields: Fields) -> Fields:
    only_full(fields)
    return _read_common(fields)


def _read_gemma2(fields: Fields) -> Fields:
    count = fields["num_hidden_layers"]
    kinds = [FULL if i % 2 else SLIDING for i in range(count)]
    return {
        **_read_common(fields),
        "post_norms": True,
        "query_scale": float(fields.get("query_pre_attn_scalar", 256)) ** -0.5,
        "attn_softcap": _cap(fields.get("attn_logit_softcapping", 50.0)),
        "final_softcap": _cap(fields.get("final_logit_softcapping", 30.0)),
        "windows": windows(fields, kinds, fields.get("sliding_window", 4096)),
    }


def _read_gemma3(fields: Fields) -> Fields:
    # The reference reads this option and does not apply it.
    refuse(fields, attn_logit_softcapping=None)
    count = fields["num_hidden_layers"]
    every = fields.get("sliding_window_pattern") or fields.get(
        "_sliding_window_pattern", 6
    )
    kinds = [SLIDING if (i + 1) % every else FULL for i in range(count)]
    scaling = fields.get("rope_parameters") or {}
    if not {FULL, SLIDING} & set(scaling):  # one for all layers, or as before 5
        local = {"rope_theta": fields.get("rope_local_base_freq", 1e4)}
        whole = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
        scaling = {FULL: whole, SLIDING: local}
    wide = {**fields, "rope_parameters": scaling.get(FULL) or {"rope_theta": None}}
    near = rope(without(fields, "rope_theta"), scaling=scaling.get(SLIDING) or {})
    return {
        **_read_common(wide, theta=1e6),
        "post_norms": True,
        "qk_norm": "head",
        "query_scale": float(fields.get("query_pre_attn_scalar", 256)) ** -0.5,
        "final_softcap": _cap(fields.get("final_logit_softcapping")),
        "windows": windows(fields, kinds, fields.get("sliding_window", 4096)),
        "local_rope_theta": near["rope_theta"],
        "local_rope_scaling": near["rope_scaling"],
    }


def _write_common(config: DecoderConfig, model_type: str, name: str) -> Fields:
    fields = write_llama(config, model_type, name)
    act = _ACTIVATION_NAMES.get(config.activation, config.activation)
    return {**without(fields, "hidden_act"), "hidden_activation": act}


def _write_gemma(config: DecoderConfig) -> Fields:
    fields = _write_common(config, "gemma", "GemmaForCausalLM")
    # Newer readers know only the first name, and older ones prefer the second.
    return {**fields, "hidden_act": fields["hidden_activation"]}


def _scores(config: DecoderConfig) -> Fields:
    sizes = [size for size in config.windows if size is not None]
    return {
        "query_pre_attn_scalar": _whole(config.score_scale**-2),
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": sizes[0] if sizes else None,
        "layer_types": kinds_of(config),
    }


def _whole(value: float) -> int | float:
    """Without what a square root and its undoing left behind."""
    near = round(value)
    return near if abs(value - near) < 1e-6 * value else value


def _write_gemma2(config: DecoderConfig) -> Fields:
    fields = _write_common(config, "gemma2", "Gemma2ForCausalLM")
    return {**fields, **_scores(config)}


def _write_gemma3(config: DecoderConfig) -> Fields:
    fields = _write_common(config, "gemma3_text", "Gemma3ForCausalLM")
    theta = config.local_rope_theta
    near = {
        "rope_theta": config.rope_theta if theta is None else theta,
        "rope_type": "default",
        **dict(config.local_rope_scaling),
    }
    scaling = {FULL: fields["rope_parameters"], SLIDING: near}
    return {**fields, **_scores(config), "rope_parameters": scaling}


_FOUR_NORMS = layer_rows(
    attn_norm="input_layernorm",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_GEMMA = llama_table(PRE_NORMS, ATTENTION, MLP)
_GEMMA2 = llama_table(_FOUR_NORMS, ATTENTION, MLP)

GEMMA_FAMILIES: dict[str, Family] = {
    "gemma": Family(_read_gemma, _write_gemma, _GEMMA, (ROTARY_BUFFER,)),
    "gemma2": Family(_read_gemma2, _write_gemma2, _GEMMA2, (ROTARY_BUFFER,)),
    "gemma3_text": Family(_read_gemma3, _write_gemma3, _GEMMA2, (ROTARY_BUFFER,)),
}
