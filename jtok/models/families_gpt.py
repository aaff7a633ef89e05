"""GPT-2 and GPT-NeoX: layer norms, plain MLPs and fused projections."""

from jtok.models.families_common import (
    Family,
    Fields,
    activation,
    linear,
    norm,
    refuse,
    rope,
    write_rope,
)
from jtok.models.families_llama import only_full
from jtok.models.weights import Weight
from jtok.nn import DecoderConfig

__all__ = ["GPT_FAMILIES"]

_ACTIVATION_NAMES = {"gelu_tanh": "gelu_new"}


def _read_gpt2(fields: Fields) -> Fields:
    refuse(
        fields,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    return {
        "vocab_size": fields["vocab_size"],
        "width": fields["n_embd"],
        "num_layers": fields["n_layer"],
        "num_heads": fields["n_head"],
        "num_kv_heads": fields["n_head"],
        "head_dim": fields["n_embd"] // fields["n_head"],
        "mlp_width": fields.get("n_inner") or 4 * fields["n_embd"],
        "max_positions": fields["n_positions"],
        "norm": "layer",
        "norm_eps": fields.get("layer_norm_epsilon", 1e-5),
        "mlp": "plain",
        "activation": activation(fields.get("activation_function", "gelu_new")),
        "positions": "learned",
        "query_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied": bool(fields.get("tie_word_embeddings", True)),
    }


def _read_neox(fields: Fields) -> Fields:
    only_full(fields)
    heads, width = fields["num_attention_heads"], fields["hidden_size"]
    bias = bool(fields.get("attention_bias", True))
    # Names that only this family had before 5.
    old = {
        "rope_theta": fields.get("rotary_emb_base"),
        "partial_rotary_factor": fields.get("rotary_pct", 0.25),
    }
    named = {**old, **{k: v for k, v in fields.items() if v is not None}}
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "num_layers": fields["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "mlp_width": fields["intermediate_size"],
        "max_positions": fields.get("max_position_embeddings", 2048),
        "norm": "layer",
        "norm_eps": fields.get("layer_norm_eps", 1e-5),
        "parallel_residual": bool(fields.get("use_parallel_residual", True)),
        "mlp": "plain",
        "activation": activation(fields.get("hidden_act", "gelu")),
        "query_bias": bias,
        "out_bias": bias,
        "mlp_bias": True,
        "tied": bool(fields.get("tie_word_embeddings", False)),
        **rope(named, partial=True),
    }


def _write_gpt2(config: DecoderConfig) -> Fields:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": _ACTIVATION_NAMES.get(
            config.activation, config.activation
        ),
        "tie_word_embeddings": config.tied,
        "dtype": config.dtype,
    }


def _write_neox(config: DecoderConfig) -> Fields:
    scaling = write_rope(config)["rope_parameters"]
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": _ACTIVATION_NAMES.get(config.activation, config.activation),
        "attention_bias": config.out_bias,
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": config.tied,
        "dtype": config.dtype,
        "rope_parameters": {
            **scaling,
            "partial_rotary_factor": config.rotary_fraction,
        },
    }


def _conv(name: str, *paths: str) -> tuple[Weight, ...]:
    """GPT-2's Conv1D keeps `[in, out]`, as the tree does."""
    return (
        Weight(f"{name}.weight", tuple(f"{path}/kernel" for path in paths)),
        Weight(f"{name}.bias", tuple(f"{path}/bias" for path in paths)),
    )


_GPT2 = (
    Weight("transformer.wte.weight", ("embed/tokens",)),
    Weight("transformer.wpe.weight", ("embed/positions",)),
    *norm("transformer.h.{layer}.ln_1", "attn_norm"),
    *_conv("transformer.h.{layer}.attn.c_attn", "query", "key", "value"),
    *_conv("transformer.h.{layer}.attn.c_proj", "out"),
    *norm("transformer.h.{layer}.ln_2", "mlp_norm"),
    *_conv("transformer.h.{layer}.mlp.c_fc", "mlp/up"),
    *_conv("transformer.h.{layer}.mlp.c_proj", "mlp/down"),
    *norm("transformer.ln_f", "final_norm"),
    Weight("lm_head.weight", ("unembed/kernel",)),
)
_NEOX_LAYER = "gpt_neox.layers.{layer}"
_NEOX = (
    Weight("gpt_neox.embed_in.weight", ("embed/tokens",)),
    *norm(f"{_NEOX_LAYER}.input_layernorm", "attn_norm"),
    *linear(
        f"{_NEOX_LAYER}.attention.query_key_value",
        "query",
        "key",
        "value",
        by_head=True,
    ),
    *linear(f"{_NEOX_LAYER}.attention.dense", "out"),
    *norm(f"{_NEOX_LAYER}.post_attention_layernorm", "mlp_norm"),
    *linear(f"{_NEOX_LAYER}.mlp.dense_h_to_4h", "mlp/up"),
    *linear(f"{_NEOX_LAYER}.mlp.dense_4h_to_h", "mlp/down"),
    *norm("gpt_neox.final_layer_norm", "final_norm"),
    Weight("embed_out.weight", ("unembed/kernel",)),
)
_NEOX_BUFFERS = (
    r"gpt_neox\.layers\.\d+\.attention\.(masked_)?bias",
    r"gpt_neox\.layers\.\d+\.attention\.rotary_emb\.inv_freq",
)

GPT_FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        _read_gpt2,
        _write_gpt2,
        _GPT2,
        (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
        prefix="transformer.",
    ),
    "gpt_neox": Family(_read_neox, _write_neox, _NEOX, _NEOX_BUFFERS),
}
