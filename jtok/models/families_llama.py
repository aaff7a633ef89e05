"""Llama and the families that differ from it in a few choices."""

from jtok.models.families_common import (
    FULL,
    SLIDING,
    Family,
    Fields,
    activation,
    kinds_of,
    linear,
    norm,
    refuse,
    rope,
    windows,
    write_rope,
)
from jtok.models.weights import Weight
from jtok.nn import DecoderConfig

__all__ = ["LLAMA_FAMILIES", "layer_rows", "llama_table", "read_llama", "write_llama"]

ROTARY_BUFFER = r".*\.rotary_emb\.inv_freq"
_LAYER = "model.layers.{layer}"


# ---- reading


def read_llama(
    fields: Fields, *, eps: float = 1e-6, theta: float = 1e4, partial: bool = False
) -> Fields:
    """What llama and its relatives have in common, without windows."""
    heads = fields["num_attention_heads"]
    bias = bool(fields.get("attention_bias", False))
    return {
        "vocab_size": fields["vocab_size"],
        "width": fields["hidden_size"],
        "num_layers": fields["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": fields.get("num_key_value_heads") or heads,
        "head_dim": fields.get("head_dim") or fields["hidden_size"] // heads,
        "mlp_width": fields["intermediate_size"],
        "max_positions": fields.get("max_position_embeddings", 2048),
        "norm_eps": fields.get("rms_norm_eps", eps),
        "activation": activation(fields.get("hidden_act", "silu")),
        "query_bias": bias,
        "out_bias": bias,
        "tied": bool(fields.get("tie_word_embeddings", False)),
        **rope(fields, theta=theta, partial=partial),
    }


def only_full(fields: Fields) -> None:
    """Refuses layer kinds where the family has none."""
    windows({**fields, "sliding_window": None}, None, None)


def _read_llama(fields: Fields) -> Fields:
    only_full(fields)
    return {**read_llama(fields), "mlp_bias": bool(fields.get("mlp_bias", False))}


def _read_mistral(fields: Fields) -> Fields:
    refuse(fields, attention_bias=False, mlp_bias=False)
    sizes = windows(fields, None, fields.get("sliding_window"))
    return {**read_llama(fields), "windows": sizes}


def _read_qwen2(fields: Fields) -> Fields:
    biases = {"query_bias": True, "out_bias": False}
    return {**read_llama(fields), **biases, "windows": qwen_windows(fields)}


def qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    """Windows from a layer on, where they are in use."""
    in_use = bool(fields.get("use_sliding_window", False))
    first = fields.get("max_window_layers", 28)
    count = fields["num_hidden_layers"]
    kinds = [SLIDING if in_use and i >= first else FULL for i in range(count)]
    return windows(
        fields, kinds, fields.get("sliding_window", 4096) if in_use else None
    )


def _read_qwen3(fields: Fields) -> Fields:
    sized = {"head_dim": 128, **fields}
    return {**read_llama(sized), "qk_norm": "head", "windows": qwen_windows(fields)}


def _read_olmo2(fields: Fields) -> Fields:
    only_full(fields)
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": "width"}
    return {**read_llama(fields, eps=1e-5), **norms}


def _read_phi3(fields: Fields) -> Fields:
    refuse(fields, attention_bias=False, mlp_bias=False)
    read = read_llama(fields, eps=1e-5, partial=True)
    if read["rope_scaling"]:  # the reference takes even "yarn" for longrope here
        kind = dict(read["rope_scaling"])["rope_type"]
        refuse({"rope_type": kind}, rope_type="default")
    return {**read, "windows": windows(fields, None, fields.get("sliding_window"))}


# ---- writing


def write_llama(config: DecoderConfig, model_type: str, architecture: str) -> Fields:
    """The fields that llama and its relatives have in common."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
        "attention_bias": config.out_bias,
        "tie_word_embeddings": config.tied,
        "dtype": config.dtype,
        **write_rope(config),
    }


def _write_llama(config: DecoderConfig) -> Fields:
    fields = write_llama(config, "llama", "LlamaForCausalLM")
    return {**fields, "mlp_bias": config.mlp_bias}


def without(fields: Fields, *names: str) -> Fields:
    """The fields but for these, which the family does not know."""
    return {name: value for name, value in fields.items() if name not in names}


def one_window(config: DecoderConfig) -> Fields:
    """The field `sliding_window` of families whose layers are all alike."""
    return {"sliding_window": config.windows[0] if config.windows else None}


def _write_mistral(config: DecoderConfig) -> Fields:
    fields = write_llama(config, "mistral", "MistralForCausalLM")
    return {**without(fields, "attention_bias"), **one_window(config)}


def qwen_window_fields(config: DecoderConfig) -> Fields:
    """How Qwen's configurations describe windows."""
    sizes = [size for size in config.windows if size is not None]
    fields: Fields = {
        "layer_types": kinds_of(config),
        "use_sliding_window": bool(sizes),
        "sliding_window": sizes[0] if sizes else None,
    }
    if sizes:
        fields["max_window_layers"] = fields["layer_types"].index(SLIDING)
    return fields


def _write_qwen2(config: DecoderConfig) -> Fields:
    fields = write_llama(config, "qwen2", "Qwen2ForCausalLM")
    bare = without(fields, "attention_bias", "head_dim")
    return {**bare, **qwen_window_fields(config)}


def _write_qwen3(config: DecoderConfig) -> Fields:
    fields = write_llama(config, "qwen3", "Qwen3ForCausalLM")
    return {**fields, **qwen_window_fields(config)}


def _write_olmo2(config: DecoderConfig) -> Fields:
    return without(write_llama(config, "olmo2", "Olmo2ForCausalLM"), "head_dim")


def _write_phi3(config: DecoderConfig) -> Fields:
    fields = write_llama(config, "phi3", "Phi3ForCausalLM")
    fields = without(fields, "attention_bias", "head_dim")
    fields["rope_parameters"]["partial_rotary_factor"] = config.rotary_fraction
    return {**fields, **one_window(config)}


# ---- weights


def llama_table(*layers: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """The table of a family that calls its ends as llama does."""
    return (
        Weight("model.embed_tokens.weight", ("embed/tokens",)),
        *(row for rows in layers for row in rows),
        *norm("model.norm", "final_norm"),
        Weight("lm_head.weight", ("unembed/kernel",)),
    )


ATTENTION = (
    *linear(f"{_LAYER}.self_attn.q_proj", "query"),
    *linear(f"{_LAYER}.self_attn.k_proj", "key"),
    *linear(f"{_LAYER}.self_attn.v_proj", "value"),
    *linear(f"{_LAYER}.self_attn.o_proj", "out"),
    *norm(f"{_LAYER}.self_attn.q_norm", "query_norm"),
    *norm(f"{_LAYER}.self_attn.k_norm", "key_norm"),
)
MLP = (
    *linear(f"{_LAYER}.mlp.gate_proj", "mlp/gate"),
    *linear(f"{_LAYER}.mlp.up_proj", "mlp/up"),
    *linear(f"{_LAYER}.mlp.down_proj", "mlp/down"),
)


def layer_rows(**norms: str) -> tuple[Weight, ...]:
    """Norms of a layer: what the file calls each, by its path in the tree."""
    return tuple(
        row for path, name in norms.items() for row in norm(f"{_LAYER}.{name}", path)
    )


PRE_NORMS = layer_rows(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm")
POST_NORMS = layer_rows(
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

_LLAMA = llama_table(PRE_NORMS, ATTENTION, MLP)
_PHI3 = llama_table(
    PRE_NORMS,
    linear(f"{_LAYER}.self_attn.qkv_proj", "query", "key", "value"),
    linear(f"{_LAYER}.self_attn.o_proj", "out"),
    linear(f"{_LAYER}.mlp.gate_up_proj", "mlp/gate", "mlp/up"),
    linear(f"{_LAYER}.mlp.down_proj", "mlp/down"),
)
_OLMO2 = llama_table(POST_NORMS, ATTENTION, MLP)

LLAMA_FAMILIES: dict[str, Family] = {
    "llama": Family(_read_llama, _write_llama, _LLAMA, (ROTARY_BUFFER,)),
    "mistral": Family(_read_mistral, _write_mistral, _LLAMA, (ROTARY_BUFFER,)),
    "qwen2": Family(_read_qwen2, _write_qwen2, _LLAMA, (ROTARY_BUFFER,)),
    "qwen3": Family(_read_qwen3, _write_qwen3, _LLAMA, (ROTARY_BUFFER,)),
    "olmo2": Family(_read_olmo2, _write_olmo2, _OLMO2, (ROTARY_BUFFER,)),
    "phi3": Family(_read_phi3, _write_phi3, _PHI3, (ROTARY_BUFFER,)),
}
