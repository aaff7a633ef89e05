"""Families of checkpoints: a translation of their configuration, and a weight table."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jtok.errors import CheckpointError, UnsupportedCheckpointError, near
from jtok.models import mamba
from jtok.models.weights import Weight
from jtok.nn import DecoderConfig, MambaConfig

__all__ = ["FAMILIES", "Family", "family_of"]

Fields = dict[str, Any]


class Family(NamedTuple):
    """One `model_type`.

    Attributes:
      read: fields of `config.json` -> fields of the configuration.
      write: the configuration -> fields of `config.json`.
      weights: the table, in the order in which tensors are written.
      ignored: patterns of tensors that hold nothing (buffers, tied copies).
      prefix: what some files put before every name, and others leave out.
      config: class of the configuration; its type names the `Backbone`.
    """

    read: Callable[[Fields], Fields]
    write: Callable[[Any], Fields]
    weights: tuple[Weight, ...]
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    config: type = DecoderConfig


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        hint = near(name, _ACTIVATIONS)
        raise UnsupportedCheckpointError(f"config.json: activation {name!r}{hint}.")
    return _ACTIVATIONS[name]


def _rope(fields: Fields) -> Fields:
    """Base and scaling, as `transformers` writes them now and wrote them before 5."""
    scaling = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", fields.get("rope_theta", 10000.0))
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    known = ("default", "linear", "llama3")
    if kind not in known:
        hint = near(kind, known)
        raise UnsupportedCheckpointError(f"config.json: rope_type {kind!r}{hint}.")
    items = {} if kind == "default" else {"rope_type": kind, **scaling}
    return {"rope_theta": float(theta), "rope_scaling": tuple(sorted(items.items()))}


def _read_llama(fields: Fields) -> Fields:
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
        "norm_eps": fields.get("rms_norm_eps", 1e-6),
        "activation": _activation(fields.get("hidden_act", "silu")),
        "query_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(fields.get("mlp_bias", False)),
        "tied": bool(fields.get("tie_word_embeddings", False)),
        **_rope(fields),
    }


def _read_qwen2(fields: Fields) -> Fields:
    kinds = set(fields.get("layer_types") or ())
    if fields.get("use_sliding_window") or "sliding_attention" in kinds:
        raise UnsupportedCheckpointError(
            "config.json: use_sliding_window is set; sliding windows are not there yet."
        )
    return {**_read_llama(fields), "query_bias": True, "out_bias": False}


def _read_gpt2(fields: Fields) -> Fields:
    unusual = [
        name
        for name, usual in (
            ("scale_attn_weights", True),
            ("scale_attn_by_inverse_layer_idx", False),
            ("add_cross_attention", False),
        )
        if bool(fields.get(name, usual)) != usual
    ]
    if unusual:
        raise UnsupportedCheckpointError(
            f"config.json: {unusual[0]}={fields[unusual[0]]} is not supported."
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
        "activation": _activation(fields.get("activation_function", "gelu_new")),
        "positions": "learned",
        "query_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied": bool(fields.get("tie_word_embeddings", True)),
    }


def _write_llama(config: DecoderConfig) -> Fields:
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied,
        "rope_parameters": {**rope, **config.rotary_scaling},
        "dtype": config.dtype,
    }


def _write_qwen2(config: DecoderConfig) -> Fields:
    fields = _write_llama(config)
    del fields["attention_bias"], fields["mlp_bias"], fields["head_dim"]
    named = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    return {**fields, **named, "use_sliding_window": False}


def _write_gpt2(config: DecoderConfig) -> Fields:
    names = {"gelu_tanh": "gelu_new"}
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
        "activation_function": names.get(config.activation, config.activation),
        "tie_word_embeddings": config.tied,
        "dtype": config.dtype,
    }


def _linear(name: str, path: str) -> tuple[Weight, ...]:
    return (
        Weight(f"{name}.weight", (f"{path}/kernel",), transpose=True),
        Weight(f"{name}.bias", (f"{path}/bias",)),
    )


_LLAMA = (
    Weight("model.embed_tokens.weight", ("embed/tokens",)),
    Weight("model.layers.{layer}.input_layernorm.weight", ("attn_norm/scale",)),
    *_linear("model.layers.{layer}.self_attn.q_proj", "query"),
    *_linear("model.layers.{layer}.self_attn.k_proj", "key"),
    *_linear("model.layers.{layer}.self_attn.v_proj", "value"),
    *_linear("model.layers.{layer}.self_attn.o_proj", "out"),
    Weight("model.layers.{layer}.post_attention_layernorm.weight", ("mlp_norm/scale",)),
    *_linear("model.layers.{layer}.mlp.gate_proj", "mlp/gate"),
    *_linear("model.layers.{layer}.mlp.up_proj", "mlp/up"),
    *_linear("model.layers.{layer}.mlp.down_proj", "mlp/down"),
    Weight("model.norm.weight", ("final_norm/scale",)),
    Weight("lm_head.weight", ("unembed/kernel",)),
)


def _norm(name: str, path: str) -> tuple[Weight, ...]:
    return (
        Weight(f"{name}.weight", (f"{path}/scale",)),
        Weight(f"{name}.bias", (f"{path}/bias",)),
    )


def _conv(name: str, *paths: str) -> tuple[Weight, ...]:
    """GPT-2's Conv1D keeps `[in, out]`, as the tree does."""
    return (
        Weight(f"{name}.weight", tuple(f"{path}/kernel" for path in paths)),
        Weight(f"{name}.bias", tuple(f"{path}/bias" for path in paths)),
    )


_GPT2 = (
    Weight("transformer.wte.weight", ("embed/tokens",)),
    Weight("transformer.wpe.weight", ("embed/positions",)),
    *_norm("transformer.h.{layer}.ln_1", "attn_norm"),
    *_conv("transformer.h.{layer}.attn.c_attn", "query", "key", "value"),
    *_conv("transformer.h.{layer}.attn.c_proj", "out"),
    *_norm("transformer.h.{layer}.ln_2", "mlp_norm"),
    *_conv("transformer.h.{layer}.mlp.c_fc", "mlp/up"),
    *_conv("transformer.h.{layer}.mlp.c_proj", "mlp/down"),
    *_norm("transformer.ln_f", "final_norm"),
    Weight("lm_head.weight", ("unembed/kernel",)),
)

_ROTARY_BUFFER = r".*\.rotary_emb\.inv_freq"

FAMILIES: dict[str, Family] = {
    "llama": Family(_read_llama, _write_llama, _LLAMA, (_ROTARY_BUFFER,)),
    "qwen2": Family(_read_qwen2, _write_qwen2, _LLAMA, (_ROTARY_BUFFER,)),
    "gpt2": Family(
        _read_gpt2,
        _write_gpt2,
        _GPT2,
        (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
        prefix="transformer.",
    ),
    "mamba": Family(mamba.read, mamba.write, mamba.WEIGHTS, config=MambaConfig),
}


def family_of(fields: Fields, *, where: str = "config.json") -> Family:
    """The family that `model_type` names.

    Args:
      fields: of `config.json`.
      where: the file, for the error message.

    Returns:
      Its `Family`.

    Raises:
      UnsupportedCheckpointError: an unknown `model_type`; the known are listed.
      CheckpointError: there is none.

    Example:
      >>> family_of({"model_type": "gpt2"}).prefix
      'transformer.'
    """
    name = fields.get("model_type")
    if name is None:
        raise CheckpointError(f"{where}: there is no model_type.")
    if name not in FAMILIES:
        hint = near(name, FAMILIES)
        raise UnsupportedCheckpointError(f"{where}: model_type {name!r}{hint}.")
    return FAMILIES[name]
