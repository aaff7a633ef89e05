"""Encoders of sound: the first half of Whisper."""

from jtok.errors import UnsupportedCheckpointError, near
from jtok.models.families_common import (
    Family,
    Fields,
    linear,
    norm,
)
from jtok.models.families_heads import ACTIVATIONS, encoder_act, head_dim
from jtok.models.weights import Weight
from jtok.nn import SoundConfig

__all__ = ["SOUND_FAMILIES"]

_ALONE = "WhisperEncoder"
_WHOLE = ("WhisperForConditionalGeneration", "WhisperModel")


def _read_whisper(fields: Fields) -> Fields:
    named = (fields.get("architectures") or [_WHOLE[0]])[0]
    if named not in (_ALONE, *_WHOLE):
        hint = near(named, (_ALONE, *_WHOLE))
        raise UnsupportedCheckpointError(f"architecture {named!r}{hint}.")
    width, heads = fields["d_model"], fields["encoder_attention_heads"]
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "num_layers": fields["encoder_layers"],
        "num_heads": heads,
        "head_dim": head_dim(width, heads),
        "mlp_width": fields["encoder_ffn_dim"],
        "max_positions": fields["max_source_positions"],
        "num_mel_bins": fields["num_mel_bins"],
        "num_types": 0,
        "embed_norm": False,
        "norm_eps": 1e-5,
        "norm_first": True,
        "activation": encoder_act(fields.get("activation_function", "gelu")),
        "key_bias": False,
        "head_pooling": "mean",
        "architecture": named,
    }


def _write_whisper(config: SoundConfig) -> Fields:
    return {
        "activation_function": ACTIVATIONS[config.activation],
        "architectures": [config.architecture or _ALONE],
        "d_model": config.width,
        "dtype": config.dtype,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.mlp_width,
        "encoder_layers": config.num_layers,
        "is_encoder_decoder": True,
        "max_source_positions": config.max_positions,
        "model_type": "whisper",
        "num_hidden_layers": config.num_layers,
        "num_mel_bins": config.num_mel_bins,
        "vocab_size": config.vocab_size,
    }


def _table(stem: str, *classes: str) -> tuple[Weight, ...]:
    """Tensors of the encoder, in files of these classes of model."""
    layer = f"{stem}layers.{{layer}}"
    own = f"{layer}.self_attn"
    rows = (
        *linear(f"{stem}conv1", "embed/conv1"),
        *linear(f"{stem}conv2", "embed/conv2"),
        Weight(f"{stem}embed_positions.weight", ("embed/positions",)),
        *norm(f"{stem}layer_norm", "final_norm"),
        *linear(f"{layer}.fc1", "mlp/up"),
        *linear(f"{layer}.fc2", "mlp/down"),
        *norm(f"{layer}.final_layer_norm", "mlp_norm"),
        *linear(f"{own}.k_proj", "key"),
        *linear(f"{own}.out_proj", "out"),
        *linear(f"{own}.q_proj", "query"),
        *linear(f"{own}.v_proj", "value"),
        *norm(f"{own}_layer_norm", "attn_norm"),
    )
    return tuple(row._replace(classes=classes) for row in rows)


# Of a whole model the decoder is neither read nor written: what is saved names the
# same class, and transformers makes that a new decoder.
SOUND_FAMILIES: dict[str, Family] = {
    "whisper": Family(
        _read_whisper,
        _write_whisper,
        (*_table("", _ALONE), *_table("model.encoder.", *_WHOLE)),
        (r"(model\.)?decoder\..*", r"proj_out\.weight"),
        prefix="model.",
        config=SoundConfig,
    ),
}
