"""BERT and its kin: ERNIE, RoBERTa, XLM-RoBERTa, DistilBERT."""

from typing import Any

from jtok.errors import UnsupportedCheckpointError
from jtok.models.families_common import (
    Family,
    Fields,
    linear,
    norm,
    refuse,
)
from jtok.models.families_heads import (
    ACTIVATIONS,
    LABELS,
    encoder_act,
    head_dim,
    read_heads,
    write_heads,
)
from jtok.models.weights import Weight
from jtok.nn import EncoderConfig

__all__ = ["BERT_FAMILIES"]

_PADDING = {"roberta": 1, "xlm-roberta": 1}


# ---- BERT and its kin


def _read_bert(fields: Fields, family: str = "bert") -> Fields:
    refuse(
        fields,
        add_cross_attention=False,
        is_decoder=False,
        position_embedding_type="absolute",
    )
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    act = encoder_act(fields.get("hidden_act", "gelu"))
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "num_layers": fields["num_hidden_layers"],
        "num_heads": heads,
        "head_dim": head_dim(width, heads),
        "mlp_width": fields["intermediate_size"],
        "max_positions": fields["max_position_embeddings"],
        "num_types": fields.get("type_vocab_size", 2) or 0,
        "norm_eps": fields.get("layer_norm_eps", 1e-12),
        "activation": act,
        **read_heads(fields, family, **({} if family in _PADDING else _same(act))),
    }


def _same(act: str) -> Fields:
    """The masked-LM head's activation is that of the blocks; RoBERTa's is not."""
    return {"head_activation": act}


def _write_bert(config: EncoderConfig) -> Fields:
    return {
        **write_heads(config),
        "add_cross_attention": False,
        "hidden_act": ACTIVATIONS[config.activation],
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "is_decoder": False,
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions + config.position_offset,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "tie_word_embeddings": config.tied,
        "type_vocab_size": config.num_types,
    }


def _read_ernie(fields: Fields) -> Fields:
    rows = fields.get("rel_pos_size") or 0
    if rows and rows < 5:
        raise UnsupportedCheckpointError(f"rel_pos_size={rows}, expected 5 or more.")
    tasks = fields.get("task_type_vocab_size", 3) if fields.get("use_task_id") else 0
    relative = {"relative": "ernie", "relative_buckets": rows - 1} if rows else {}
    return {**_read_bert(fields, "ernie"), "num_tasks": tasks or 0, **relative}


def _write_ernie(config: EncoderConfig) -> Fields:
    fields = {**_write_bert(config), "use_task_id": config.num_tasks > 0}
    if config.num_tasks:
        fields["task_type_vocab_size"] = config.num_tasks
    if config.relative:
        fields["rel_pos_size"] = config.relative_buckets + 1
    return fields


def _read_roberta(family: str) -> Any:
    def read(fields: Fields) -> Fields:
        found = _read_bert(fields, family)
        padding = fields.get("pad_token_id", _PADDING[family])
        if padding is None or padding < 0:
            raise UnsupportedCheckpointError(
                f"pad_token_id={padding!r}: positions begin after it; expected an id."
            )
        usable = found["max_positions"] - padding - 1
        if usable < 1:
            raise UnsupportedCheckpointError(
                f"max_position_embeddings={found['max_positions']} leaves no position "
                f"after pad_token_id={padding}."
            )
        places = {"position_offset": padding + 1, "padding_id": padding}
        return {**found, "max_positions": usable, **places}

    return read


def _write_roberta(config: EncoderConfig) -> Fields:
    return {**_write_bert(config), "pad_token_id": config.padding_id}


def _bert_encoder(stem: str) -> tuple[Weight, ...]:
    embed, layer = f"{stem}.embeddings", f"{stem}.encoder.layer.{{layer}}"
    own = f"{layer}.attention"
    return (
        *norm(f"{embed}.LayerNorm", "embed/norm"),
        Weight(f"{embed}.position_embeddings.weight", ("embed/positions",)),
        Weight(f"{embed}.task_type_embeddings.weight", ("embed/tasks",)),
        Weight(f"{embed}.token_type_embeddings.weight", ("embed/types",)),
        Weight(f"{embed}.word_embeddings.weight", ("embed/tokens",)),
        Weight(f"{stem}.rel_pos_bias_emb.weight", ("relative/table",)),
        *linear(f"{own}.self.query", "query"),
        *linear(f"{own}.self.key", "key"),
        *linear(f"{own}.self.value", "value"),
        *linear(f"{own}.output.dense", "out"),
        *norm(f"{own}.output.LayerNorm", "attn_norm"),
        *linear(f"{layer}.intermediate.dense", "mlp/up"),
        *linear(f"{layer}.output.dense", "mlp/down"),
        *norm(f"{layer}.output.LayerNorm", "mlp_norm"),
        *linear(f"{stem}.pooler.dense", "pooler/dense"),
    )


def _masked_bias(tied: str, own: str) -> tuple[Weight, Weight]:
    """The biases of the masked-LM head, which rows of its own have beside them."""
    held, rows = ("masked_lm/bias",), "unembed/kernel"
    return Weight(tied, held, without=rows), Weight(own, held, beside=rows)


def _bert_table(stem: str) -> tuple[Weight, ...]:
    own = "cls.predictions"
    return (
        *_bert_encoder(stem),
        *_masked_bias(f"{own}.bias", f"{own}.decoder.bias"),
        *norm(f"{own}.transform.LayerNorm", "masked_lm/norm"),
        *linear(f"{own}.transform.dense", "masked_lm/dense"),
        Weight(f"{own}.decoder.weight", ("unembed/kernel",)),
        *linear("cls.seq_relationship", "next_sentence"),
        *LABELS,
    )


_ROBERTA = (
    *_bert_encoder("roberta"),
    *_masked_bias("lm_head.bias", "lm_head.decoder.bias"),
    *linear("lm_head.dense", "masked_lm/dense"),
    *norm("lm_head.layer_norm", "masked_lm/norm"),
    Weight("lm_head.decoder.weight", ("unembed/kernel",)),
    *linear("classifier.dense", "sequence/dense"),
    *linear("classifier.out_proj", "sequence/labels"),
    *linear("classifier", "token/labels"),
)


# ---- DistilBERT


def _read_distilbert(fields: Fields) -> Fields:
    width, heads = fields["dim"], fields["n_heads"]
    act = encoder_act(fields.get("activation", "gelu"))
    found = read_heads(fields, "distilbert")
    if found["head"] == "masked_lm":
        found["head_activation"] = act
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "num_layers": fields["n_layers"],
        "num_heads": heads,
        "head_dim": head_dim(width, heads),
        "mlp_width": fields["hidden_dim"],
        "max_positions": fields["max_position_embeddings"],
        "num_types": 0,
        "activation": act,
        **found,
    }


def _write_distilbert(config: EncoderConfig) -> Fields:
    return {
        **write_heads(config),
        "activation": ACTIVATIONS[config.activation],
        "dim": config.width,
        "hidden_dim": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "n_heads": config.num_heads,
        "n_layers": config.num_layers,
        "tie_word_embeddings": config.tied,
    }


_DISTIL = "distilbert.transformer.layer.{layer}"
_DISTILBERT = (
    *norm("distilbert.embeddings.LayerNorm", "embed/norm"),
    Weight("distilbert.embeddings.position_embeddings.weight", ("embed/positions",)),
    Weight("distilbert.embeddings.word_embeddings.weight", ("embed/tokens",)),
    *linear(f"{_DISTIL}.attention.q_lin", "query"),
    *linear(f"{_DISTIL}.attention.k_lin", "key"),
    *linear(f"{_DISTIL}.attention.v_lin", "value"),
    *linear(f"{_DISTIL}.attention.out_lin", "out"),
    *norm(f"{_DISTIL}.sa_layer_norm", "attn_norm"),
    *linear(f"{_DISTIL}.ffn.lin1", "mlp/up"),
    *linear(f"{_DISTIL}.ffn.lin2", "mlp/down"),
    *norm(f"{_DISTIL}.output_layer_norm", "mlp_norm"),
    *norm("vocab_layer_norm", "masked_lm/norm"),
    Weight("vocab_projector.bias", ("masked_lm/bias",)),
    Weight("vocab_projector.weight", ("unembed/kernel",)),
    *linear("vocab_transform", "masked_lm/dense"),
    *linear("pre_classifier", "sequence/dense"),
    *LABELS,
)


def _family(read: Any, write: Any, stem: str, table: Any, *more: str) -> Family:
    """Beside the table: buffers, tied copies, a pooler that is not in use."""
    ignored = (
        rf"({stem}\.)?embeddings\.position_ids",
        rf"({stem}\.)?pooler\.dense\.(weight|bias)",
        *more,
    )
    return Family(read, write, table, ignored, f"{stem}.", EncoderConfig)


_BERT_UNUSED = (
    r"cls\.predictions\.(decoder\.)?bias",
    r"cls\.seq_relationship\.(weight|bias)",
)
_ROBERTA_UNUSED = (r"lm_head\.(decoder\.)?bias",)

BERT_FAMILIES: dict[str, Family] = {
    "bert": _family(
        _read_bert, _write_bert, "bert", _bert_table("bert"), *_BERT_UNUSED
    ),
    "ernie": _family(
        _read_ernie, _write_ernie, "ernie", _bert_table("ernie"), *_BERT_UNUSED
    ),
    "roberta": _family(
        _read_roberta("roberta"), _write_roberta, "roberta", _ROBERTA, *_ROBERTA_UNUSED
    ),
    "xlm-roberta": _family(
        _read_roberta("xlm-roberta"),
        _write_roberta,
        "roberta",
        _ROBERTA,
        *_ROBERTA_UNUSED,
    ),
    "distilbert": _family(
        _read_distilbert, _write_distilbert, "distilbert", _DISTILBERT
    ),
}
