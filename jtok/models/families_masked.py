"""Masked-diffusion language models: Dream (shaped as Qwen2) and LLaDA (as llama).

They look both ways and fill in masks. Dream was made from a causal model and kept its
habit: the logits of a position say what stands at the next one (`logit_shift`).
"""

from typing import Any

from jtok.errors import CheckpointError
from jtok.models.families_common import (
    Family,
    Fields,
    activation,
    linear,
    norm,
    refuse,
    rope,
)
from jtok.models.families_llama import (
    ATTENTION,
    MLP,
    PRE_NORMS,
    ROTARY_BUFFER,
    llama_table,
    only_full,
    read_llama,
    without,
    write_llama,
)
from jtok.models.weights import Weight
from jtok.nn import DecoderConfig

__all__ = ["MASKED_FAMILIES"]

_LAYER = "model.transformer.blocks.{layer}"
_DREAM_MASK, _LLADA_MASK = 151666, 126336


def _mask_id(fields: Fields, default: int) -> int:
    value: Any = fields.get("mask_token_id", default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"mask_token_id is {value!r}, expected an id.")
    return value


def _read_dream(fields: Fields) -> Fields:
    refuse(fields, use_mrope=False, use_sliding_window=False)
    only_full(fields)
    masked = {
        "query_bias": True,
        "out_bias": False,
        "causal": False,
        "logit_shift": True,
        "mask_token_id": _mask_id(fields, _DREAM_MASK),
    }
    return {**read_llama(fields), **masked}


def _write_dream(config: DecoderConfig) -> Fields:
    fields = write_llama(config, "Dream", "DreamModel")
    masked = {
        "mask_token_id": config.mask_token_id,
        "use_mrope": False,
        "use_sliding_window": False,
    }
    return {**without(fields, "attention_bias", "head_dim"), **masked}


def _read_llada(fields: Fields) -> Fields:
    refuse(
        fields,
        alibi=False,
        attention_layer_norm=False,
        bias_for_layer_norm=False,
        block_group_size=1,
        block_type="llama",
        include_bias=False,
        input_emb_norm=False,
        layer_norm_type="rms",
        layer_norm_with_affine=True,
        multi_query_attention=False,
        rope=True,
        scale_logits=False,
    )
    width, heads = fields["d_model"], fields["n_heads"]
    rows = fields.get("embedding_size") or fields["vocab_size"]
    return {
        "vocab_size": rows,
        "width": width,
        "num_layers": fields["n_layers"],
        "num_heads": heads,
        "num_kv_heads": fields.get("n_kv_heads") or heads,
        "head_dim": width // heads,
        "mlp_width": fields["mlp_hidden_size"],
        "max_positions": fields.get("max_sequence_length", 4096),
        "norm_eps": fields.get("rms_norm_eps", 1e-5),
        "activation": activation(fields.get("activation_type", "silu")),
        "query_bias": bool(fields.get("include_qkv_bias", False)),
        "tied": bool(fields.get("weight_tying", False)),
        "causal": False,
        "mask_token_id": _mask_id(fields, _LLADA_MASK),
        **rope(fields),
    }


def _write_llada(config: DecoderConfig) -> Fields:
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": config.activation,
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": config.width,
        "dtype": config.dtype,
        "embedding_size": config.vocab_size,
        "include_bias": False,
        "include_qkv_bias": config.query_bias,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": config.mask_token_id,
        "max_sequence_length": config.max_positions,
        "mlp_hidden_size": config.mlp_width,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "rms_norm_eps": config.norm_eps,
        "rope": True,
        "rope_theta": config.rope_theta,
        "scale_logits": False,
        "vocab_size": config.vocab_size,
        "weight_tying": config.tied,
    }


_LLADA = (
    Weight("model.transformer.wte.weight", ("embed/tokens",)),
    *norm(f"{_LAYER}.attn_norm", "attn_norm"),
    *linear(f"{_LAYER}.q_proj", "query"),
    *linear(f"{_LAYER}.k_proj", "key"),
    *linear(f"{_LAYER}.v_proj", "value"),
    *linear(f"{_LAYER}.attn_out", "out"),
    *norm(f"{_LAYER}.ff_norm", "mlp_norm"),
    *linear(f"{_LAYER}.ff_proj", "mlp/gate"),
    *linear(f"{_LAYER}.up_proj", "mlp/up"),
    *linear(f"{_LAYER}.ff_out", "mlp/down"),
    *norm("model.transformer.ln_f", "final_norm"),
    Weight("model.transformer.ff_out.weight", ("unembed/kernel",)),
)

MASKED_FAMILIES: dict[str, Family] = {
    "Dream": Family(
        _read_dream,
        _write_dream,
        llama_table(PRE_NORMS, ATTENTION, MLP),
        (ROTARY_BUFFER,),
    ),
    "llada": Family(_read_llada, _write_llada, _LLADA, (ROTARY_BUFFER,)),
}
