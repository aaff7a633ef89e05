"""Encoders of other shapes than BERT's: ModernBERT, and the first half of T5.

What a folder holds beside the encoder (a masked-LM head, a classifier, a pooler) is
told by `architectures`. A pooler that files of `...Model` lack, or others have, is
said by `add_pooling_layer`.
"""

from jtok.errors import UnsupportedCheckpointError, near
from jtok.models.families_bert import BERT_FAMILIES
from jtok.models.families_common import (
    FULL,
    SLIDING,
    Family,
    Fields,
    linear,
    norm,
    refuse,
    rope,
    windows,
)
from jtok.models.families_heads import (
    ACTIVATIONS,
    LABELS,
    encoder_act,
    head_dim,
    head_options,
    read_heads,
    write_heads,
)
from jtok.models.weights import Weight
from jtok.nn import EncoderConfig

__all__ = ["ENCODER_FAMILIES"]

# Models of which the encoder is read and the rest is not.
_T5 = ("T5EncoderModel", "T5ForConditionalGeneration", "T5Model")


# ---- ModernBERT


def _read_modernbert(fields: Fields) -> Fields:
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    every = fields.get("global_attn_every_n_layers") or 3
    count = fields["num_hidden_layers"]
    kinds = [SLIDING if index % every else FULL for index in range(count)]
    across = fields.get("local_attention")
    reach = (128 if across is None else across) // 2
    near = "norm_bias", "mlp_bias", "attention_bias", "classifier_bias"
    bias = {name: bool(fields.get(name, False)) for name in near}
    bases = _bases(fields)
    pooling = fields.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise UnsupportedCheckpointError(
            f"classifier_pooling={pooling!r}, expected 'cls' or 'mean'."
        )
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "num_layers": count,
        "num_heads": heads,
        "head_dim": head_dim(width, heads),
        "mlp_width": fields["intermediate_size"],
        "max_positions": fields.get("max_position_embeddings", 8192),
        "positions": "rotary",
        "num_types": 0,
        "norm_eps": fields.get("norm_eps", 1e-5),
        "norm_bias": bias["norm_bias"],
        "norm_first": True,
        "first_attn_norm": False,
        "mlp": "gated",
        "activation": encoder_act(fields.get("hidden_activation", "gelu")),
        "query_bias": bias["attention_bias"],
        "out_bias": bias["attention_bias"],
        "mlp_bias": bias["mlp_bias"],
        "windows": windows(fields, kinds, reach),
        **bases,
        **read_heads(
            fields,
            "modernbert",
            head_activation=encoder_act(fields.get("classifier_activation", "gelu")),
            head_bias=bool(fields.get("decoder_bias", True)),
            head_dense_bias=bias["classifier_bias"],
            head_pooling=pooling,
        ),
    }


def _bases(fields: Fields) -> Fields:
    """Bases of the rotary frequencies, as files have them now and had them before."""
    both = fields.get("rope_parameters") or {}
    refuse(fields, rope_scaling={})
    old = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
    usual = {FULL: 160000.0, SLIDING: 10000.0}
    found = {}
    for kind, name in old.items():
        base = fields.get(name, usual[kind])
        read = rope({}, theta=base, scaling=both.get(kind) or {"rope_type": "default"})
        if read["rope_scaling"]:
            raise UnsupportedCheckpointError(
                f"rope_parameters of {kind} scale, expected rope_type 'default'."
            )
        found[kind] = read["rope_theta"]
    return {"rope_theta": found[FULL], "local_rope_theta": found[SLIDING]}


def _write_modernbert(config: EncoderConfig) -> Fields:
    sizes = config.windows or (None,) * config.num_layers
    reach = next((size for size in sizes if size is not None), 64)
    bases = {FULL: config.rope_theta, SLIDING: config.local_rope_theta}
    return {
        **write_heads(config),
        "attention_bias": config.query_bias,
        "classifier_activation": ACTIVATIONS[config.head_activation],
        "classifier_bias": config.head_dense_bias,
        "classifier_pooling": config.head_pooling,
        "decoder_bias": config.head_bias,
        "hidden_activation": ACTIVATIONS[config.activation],
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_types": [FULL if size is None else SLIDING for size in sizes],
        "local_attention": 2 * reach,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": config.mlp_bias,
        "norm_bias": config.norm_bias,
        "norm_eps": config.norm_eps,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "rope_parameters": {
            kind: {"rope_theta": base, "rope_type": "default"}
            for kind, base in bases.items()
        },
        "tie_word_embeddings": config.tied,
    }


_MODERN = "model.layers.{layer}"
_MODERNBERT = (
    *norm("model.embeddings.norm", "embed/norm"),
    Weight("model.embeddings.tok_embeddings.weight", ("embed/tokens",)),
    *norm("model.final_norm", "final_norm"),
    *linear(f"{_MODERN}.attn.Wo", "out"),
    *linear(f"{_MODERN}.attn.Wqkv", "query", "key", "value"),
    *norm(f"{_MODERN}.attn_norm", "attn_norm"),
    *linear(f"{_MODERN}.mlp.Wi", "mlp/gate", "mlp/up"),
    *linear(f"{_MODERN}.mlp.Wo", "mlp/down"),
    *norm(f"{_MODERN}.mlp_norm", "mlp_norm"),
    *(
        row
        for head in ("masked_lm", "sequence", "token")
        for row in (
            *linear("head.dense", f"{head}/dense"),
            *norm("head.norm", f"{head}/norm"),
        )
    ),
    Weight("decoder.bias", ("masked_lm/bias",)),
    Weight("decoder.weight", ("unembed/kernel",)),
    *LABELS,
)


# ---- T5's encoder


def _read_t5(fields: Fields) -> Fields:
    named = (fields.get("architectures") or [_T5[0]])[0]
    if named not in _T5:
        raise UnsupportedCheckpointError(f"architecture {named!r}{near(named, _T5)}.")
    refuse(fields, is_decoder=False)
    parts = fields.get("feed_forward_proj", "relu").split("-")
    gated = len(parts) == 2 and parts[0] == "gated"
    if not gated and len(parts) != 1:
        raise UnsupportedCheckpointError(
            f"feed_forward_proj={'-'.join(parts)!r}, expected an activation, or one "
            "after 'gated-'."
        )
    act = "gelu_tanh" if parts == ["gated", "gelu"] else encoder_act(parts[-1])
    return {
        "vocab_size": fields["vocab_size"],
        "width": fields["d_model"],
        "num_layers": fields["num_layers"],
        "num_heads": fields["num_heads"],
        "head_dim": fields["d_kv"],
        "mlp_width": fields["d_ff"],
        "max_positions": fields.get("n_positions", 512) or 512,
        "positions": "none",
        "num_types": 0,
        "embed_norm": False,
        "norm": "rms",
        "norm_eps": fields.get("layer_norm_epsilon", 1e-6),
        "norm_bias": False,
        "norm_first": True,
        "mlp": "gated" if gated else "plain",
        "activation": act,
        "query_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "query_scale": 1.0,
        "relative": "t5",
        "relative_buckets": fields.get("relative_attention_num_buckets", 32),
        "relative_distance": fields.get("relative_attention_max_distance", 128),
        **head_options("t5", None),
    }


def _write_t5(config: EncoderConfig) -> Fields:
    act = ACTIVATIONS[config.activation]
    if config.mlp == "gated":
        act = "gated-gelu" if act == "gelu_new" else f"gated-{act}"
    return {
        **write_heads(config),
        "d_ff": config.mlp_width,
        "d_kv": config.head_dim,
        "d_model": config.width,
        "feed_forward_proj": act,
        "is_decoder": False,
        "is_encoder_decoder": False,
        "layer_norm_epsilon": config.norm_eps,
        "n_positions": config.max_positions,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "relative_attention_max_distance": config.relative_distance,
        "relative_attention_num_buckets": config.relative_buckets,
        "tie_word_embeddings": True,
    }


_BLOCK = "encoder.block.{layer}.layer"
_FF, _UP = f"{_BLOCK}.1.DenseReluDense", ("mlp/up/kernel",)
_GATE = "mlp/gate/kernel"
_T5_TABLE = (
    *linear(f"{_BLOCK}.0.SelfAttention.k", "key"),
    *linear(f"{_BLOCK}.0.SelfAttention.o", "out"),
    *linear(f"{_BLOCK}.0.SelfAttention.q", "query"),
    *linear(f"{_BLOCK}.0.SelfAttention.v", "value"),
    *norm(f"{_BLOCK}.0.layer_norm", "attn_norm"),
    Weight(f"{_FF}.wi_0.weight", (_GATE,), transpose=True),
    Weight(f"{_FF}.wi_1.weight", _UP, transpose=True, beside=_GATE),
    Weight(f"{_FF}.wi.weight", _UP, transpose=True, without=_GATE),
    *linear(f"{_FF}.wo", "mlp/down"),
    *norm(f"{_BLOCK}.1.layer_norm", "mlp_norm"),
    *norm("encoder.final_layer_norm", "final_norm"),
    Weight(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ("relative/table",),
    ),
    Weight("shared.weight", ("embed/tokens",)),
)

ENCODER_FAMILIES: dict[str, Family] = {
    **BERT_FAMILIES,
    "modernbert": Family(
        _read_modernbert,
        _write_modernbert,
        _MODERNBERT,
        prefix="model.",
        config=EncoderConfig,
    ),
    "t5": Family(
        _read_t5,
        _write_t5,
        _T5_TABLE,
        (r"encoder\.embed_tokens\.weight", r"decoder\..*", r"lm_head\.weight"),
        config=EncoderConfig,
    ),
}
