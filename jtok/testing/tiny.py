"""Models small enough for any test, and vocabularies to go with them."""

import dataclasses
import functools
from typing import Any

import jax

from jtok import models, nn
from jtok.models.families_heads import head_options
from jtok.text import Vocabulary

__all__ = ["tiny_config", "tiny_model", "tiny_vocabulary"]

_LOCAL_AND_WIDE = {"windows": (6, None), "query_scale": 0.25}
_EXPERTS = {"num_experts": 4, "experts_per_token": 2, "expert_width": 24}
# What differs from the shared shape; what makes the family comes with its translation.
_OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"num_kv_heads": 4},
    "gpt_neox": {
        "num_kv_heads": 4,
        "rotary_fraction": 0.5,
        "parallel_residual": True,
        "query_bias": True,
        "out_bias": True,
    },
    "mistral": {"windows": (6, 6)},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16, "num_kv_heads": 1},
    "gemma2": {**_LOCAL_AND_WIDE, "attn_softcap": 5.0, "final_softcap": 8.0},
    "gemma3_text": {**_LOCAL_AND_WIDE, "rope_theta": 1e5, "local_rope_theta": 1e3},
    "phi3": {"rotary_fraction": 0.75},
    "mixtral": {**_EXPERTS, "mlp_width": 24},
    "qwen3_moe": {**_EXPERTS, "experts_sum_to_one": False},
}
_MODERN = {
    "positions": "rotary",
    "max_positions": 128,
    "norm_first": True,
    "first_attn_norm": False,
    "norm_bias": False,
    "mlp": "gated",
    "query_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "windows": (None, 3),
    "rope_theta": 1e5,
    "local_rope_theta": 1e3,
    "head_dense_bias": False,
}
_PLACES = {"num_types": 1, "position_offset": 2, "padding_id": 1}
_ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"num_types": 0},
    "ernie": {"norm_eps": 1e-5, "num_tasks": 3, "relative": "ernie"},
    "modernbert": {"num_types": 0, "norm_eps": 1e-5, **_MODERN},
    "roberta": _PLACES,
    "xlm-roberta": _PLACES,
    "t5": {
        "positions": "none", "num_types": 0, "embed_norm": False, "norm": "rms",
        "norm_bias": False, "norm_first": True, "mlp": "gated",
        "activation": "gelu_tanh", "query_bias": False, "out_bias": False,
        "mlp_bias": False, "query_scale": 1.0, "relative": "t5",
    },
}  # fmt: skip
_CLIP = {
    "patch_bias": False, "embed_norm": True, "norm_pooled": True,
    "activation": "quick_gelu",
}  # fmt: skip
_DINO = {
    "norm_eps": 1e-6, "layer_scale": True, "mask_token": True, "interpolate": "cubic",
}  # fmt: skip
_TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"num_labels": 5},
    "deit": {"num_labels": 5, "distill_token": True, "distill_labels": True},
    "dinov2": {**_DINO, "num_labels": 5, "pooling": "cls_mean"},
    "dinov2_with_registers": {
        **_DINO, "interpolate": "smooth", "num_registers": 3, "mlp": "gated",
        "activation": "silu", "mlp_width": 48,
    },
    "siglip_vision_model": {
        "class_token": False, "pooling": "attention", "activation": "gelu_tanh",
        "norm_eps": 1e-6,
    },
    "clip_vision_model": _CLIP,
}  # fmt: skip
_TIED = {"qwen2", "gpt2", "gemma", "gemma2", "gemma3_text"}


def tiny_config(*, vocab_size: int = 96, family: str = "llama") -> Any:
    """A two-layer model of width 32: the shape that tests share.

    Args:
      vocab_size: rows of the embedding.
      family: a name in `jtok.models.FAMILIES`.

    Returns:
      `DecoderConfig`, `MambaConfig`, `SoundConfig` (of 16 mel bins), `EncoderConfig`
      with a masked-LM head where the family has one, `TowerConfig` for images of
      32 x 32 pixels, or `ClipConfig` or `LlavaConfig` with such a tower; the image
      token is the last id.

    Example:
      >>> tiny_config(vocab_size=10).vocab_size
      10
    """
    if family == "mamba":
        return _tiny_mamba(vocab_size)
    if family == "whisper":
        return _tiny_sound(vocab_size)
    if family in _ENCODERS:
        return _tiny_encoder(vocab_size, family)
    if family in _TOWERS:
        return _tiny_tower(family)
    if family in ("clip", "siglip", "llava"):
        return _tiny_joint(vocab_size, family)
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_width": 64,
        "max_positions": 512,
        "tied": family in _TIED,
    }
    options = _OPTIONS.get(family, {})
    if family in ("Dream", "llada"):
        options = {"mask_token_id": vocab_size - 1}
    config = nn.DecoderConfig(family=family, **{**sizes, **options})
    fields = {**models.FAMILIES[family].write(config), "model_type": family}
    translated = models.FAMILIES[family].read(fields)
    return nn.DecoderConfig(family=family, **translated)


def _tiny_encoder(vocab_size: int, family: str) -> nn.EncoderConfig:
    head = None if family == "t5" else "masked_lm"
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "head_dim": 8,
        "mlp_width": 64,
        "max_positions": 64,
        **head_options(family, head),
    }
    config = nn.EncoderConfig(family=family, **{**sizes, **_ENCODERS[family]})
    fields = models.FAMILIES[family].write(config)
    return nn.EncoderConfig(family=family, **models.FAMILIES[family].read(fields))


def _tiny_sound(vocab_size: int) -> nn.SoundConfig:
    family = models.FAMILIES["whisper"]
    fields = {
        "activation_function": "gelu", "architectures": ["WhisperEncoder"],
        "d_model": 32, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "encoder_layers": 2, "max_source_positions": 24, "num_mel_bins": 16,
        "vocab_size": vocab_size,
    }  # fmt: skip
    return nn.SoundConfig(family="whisper", **family.read(fields))


def _tiny_tower(family: str) -> nn.TowerConfig:
    sizes: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "mlp_width": 64,
    }
    config = nn.TowerConfig(family=family, **{**sizes, **_TOWERS[family]})
    fields = models.FAMILIES[family].write(config)
    return nn.TowerConfig(family=family, **models.FAMILIES[family].read(fields))


def _tiny_joint(vocab_size: int, family: str) -> Any:
    siglip = family == "siglip"
    vision = _tiny_tower("siglip_vision_model" if siglip else "clip_vision_model")
    if family == "llava":
        text = tiny_config(vocab_size=vocab_size)
        return nn.LlavaConfig(text=text, vision=vision, image_token_id=vocab_size - 1)
    text = nn.EncoderConfig(
        family=f"{family}_text_model", vocab_size=vocab_size, width=32, num_layers=2,
        num_heads=4, head_dim=8, mlp_width=64, max_positions=64, num_types=0,
        embed_norm=False, norm_eps=1e-5, norm_first=True, activation="quick_gelu",
        causal=not siglip,
    )  # fmt: skip
    if siglip:
        maps: dict[str, Any] = {
            "text_last": True,
            "vision_map": False,
            "score_bias": True,
        }
        return nn.ClipConfig(
            family=family, text=text, vision=vision, projection=32, **maps
        )
    end = vocab_size - 1
    return nn.ClipConfig(text=text, vision=vision, projection=16, eos_token_id=end)


def _tiny_mamba(vocab_size: int) -> nn.MambaConfig:
    return nn.MambaConfig(
        vocab_size=vocab_size,
        width=32,
        num_layers=2,
        inner_width=64,
        state_size=8,
        dt_rank=2,
        tied=False,
    )


@functools.lru_cache(maxsize=32)
def tiny_model(
    *, vocab_size: int = 96, family: str = "llama", seed: int = 0, scale: float = 4.0
) -> models.Model:
    """A random model whose next-token distribution is far from uniform.

    Args:
      vocab_size: rows of the embedding.
      family: a name in `jtok.models.FAMILIES`.
      seed: of the parameters.
      scale: factor on the initial weights of the blocks; larger is peakier.

    Returns:
      `Model` without a vocabulary.

    Example:
      >>> tiny_model().config.num_layers
      2
    """
    config = tiny_config(vocab_size=vocab_size, family=family)
    model = models.init(config, jax.random.key(seed))

    def grow(path: Any, leaf: jax.Array) -> jax.Array:
        # A_log is the logarithm of a rate: grown, a state would forget at once.
        weight = leaf.ndim > 1 and getattr(path[-1], "key", None) != "A_log"
        return leaf * scale if weight else leaf

    grown = jax.tree_util.tree_map_with_path(grow, model.params)
    return dataclasses.replace(model, params=grown)


@functools.lru_cache(maxsize=4)
def tiny_vocabulary(size: int = 280) -> Vocabulary:
    """A byte-level BPE over a few sentences, with `<|endoftext|>` as its end.

    Args:
      size: number of ids, 257 to 284 (then its text has no more pairs).

    Returns:
      `Vocabulary`.

    Example:
      >>> tiny_vocabulary().size
      280
    """
    text = "the cat sat on the mat. the dog sat on the log. that is all there is, so "
    return Vocabulary.train_bpe([text * 8], size)
