"""Families with sparse experts: Mixtral and Qwen 3 MoE."""

from jtok.models.families_common import Family, Fields, linear, refuse, windows
from jtok.models.families_llama import (
    ATTENTION,
    MLP,
    PRE_NORMS,
    ROTARY_BUFFER,
    llama_table,
    one_window,
    read_llama,
    without,
    write_llama,
)
from jtok.models.weights import Weight
from jtok.nn import DecoderConfig

__all__ = ["EXPERT_FAMILIES"]


def _read_mixtral(fields: Fields) -> Fields:
    refuse(fields, attention_bias=False, mlp_bias=False)
    return {
        **read_llama(fields, eps=1e-5, theta=1e6),
        "windows": windows(fields, None, fields.get("sliding_window")),
        "num_experts": fields.get("num_local_experts", 8),
        "experts_per_token": fields.get("num_experts_per_tok", 2),
        "expert_width": fields["intermediate_size"],
    }


def _read_qwen3_moe(fields: Fields) -> Fields:
    # Here a window, where it is in use, is one of every layer.
    in_use = bool(fields.get("use_sliding_window", False))
    size = fields.get("sliding_window", 4096) if in_use else None
    count = fields.get("num_local_experts", fields.get("num_experts", 128))
    every = fields.get("decoder_sparse_step") or 1
    named = set(fields.get("mlp_only_layers") or ())
    layers = range(fields["num_hidden_layers"])
    dense = tuple(i for i in layers if i in named or (i + 1) % every)
    return {
        **read_llama(fields),
        "qk_norm": "head",
        "windows": windows(fields, None, size),
        "num_experts": count,
        "experts_per_token": fields.get("num_experts_per_tok", 8),
        "expert_width": fields.get("moe_intermediate_size", 768),
        "experts_sum_to_one": bool(fields.get("norm_topk_prob", False)),
        "dense_layers": dense,
    }


def _write_mixtral(config: DecoderConfig) -> Fields:
    fields = write_llama(config, "mixtral", "MixtralForCausalLM")
    return {
        **without(fields, "attention_bias"),
        **one_window(config),
        "intermediate_size": config.expert_width,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
    }


def _write_qwen3_moe(config: DecoderConfig) -> Fields:
    return {
        **write_llama(config, "qwen3_moe", "Qwen3MoeForCausalLM"),
        **one_window(config),
        "use_sliding_window": bool(config.windows),
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_width,
        "norm_topk_prob": config.experts_sum_to_one,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
    }


def _experts(name: str, **called: str) -> tuple[Weight, ...]:
    """A router, and one tensor for every kernel of every expert."""
    return (
        linear(f"{name}.gate", "mlp/router")[0],
        *(
            Weight(
                f"{name}.experts.{{expert}}.{file}.weight",
                (f"mlp/expert_{path}/kernel",),
                transpose=True,
            )
            for path, file in called.items()
        ),
    )


_MIXTRAL = llama_table(
    PRE_NORMS,
    ATTENTION,
    _experts("model.layers.{layer}.block_sparse_moe", gate="w1", up="w3", down="w2"),
)
_QWEN3_MOE = llama_table(
    PRE_NORMS,
    ATTENTION,
    MLP,  # of the layers without experts
    _experts(
        "model.layers.{layer}.mlp", gate="gate_proj", up="up_proj", down="down_proj"
    ),
)

EXPERT_FAMILIES: dict[str, Family] = {
    "mixtral": Family(_read_mixtral, _write_mixtral, _MIXTRAL, (ROTARY_BUFFER,)),
    "qwen3_moe": Family(
        _read_qwen3_moe, _write_qwen3_moe, _QWEN3_MOE, (ROTARY_BUFFER,)
    ),
}
