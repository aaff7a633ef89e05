"""Flax Linen blocks, configured by frozen dataclasses."""

from jtok.nn.block import SITES, Block
from jtok.nn.config import DecoderConfig
from jtok.nn.connectors import (
    FrameConnector,
    PoolingConnector,
    SpaceTimeConnector,
    UnshuffleConnector,
)
from jtok.nn.encoder import EncoderBlock, EncoderNorm, encoder_activation
from jtok.nn.encoder_config import EncoderConfig
from jtok.nn.experts import Experts, route
from jtok.nn.gru import bi_gru, bi_gru_from_tensors, init_bi_gru
from jtok.nn.hypernetwork import (
    Hypernetwork,
    HypernetworkConfig,
    PieceMixer,
    PieceMixerConfig,
)
from jtok.nn.joint_config import ClipConfig, LlavaConfig
from jtok.nn.lama import LamaPooler, fold_context
from jtok.nn.layers import Linear, Mlp, Norm, activation
from jtok.nn.mamba import (
    MAMBA_SITES,
    MambaBlock,
    MambaConfig,
    MambaSteps,
    advance_mamba,
    causal_conv,
    conv_history,
    rms_norm,
)
from jtok.nn.perceiver import (
    PerceiverConfig,
    PerceiverResampler,
    perceiver_from_tensors,
)
from jtok.nn.plain_poolers import LastPooler, MaxPooler, MeanPooler
from jtok.nn.poolers import (
    AdditivePooler,
    Pooled,
    Pooler,
    StructuredPooler,
    attention_penalty,
)
from jtok.nn.positions import rotary_frequencies, rotary_gain, rotate
from jtok.nn.qformer import (
    QFormer,
    QFormerConfig,
    QFormerHeads,
    QFormerOutput,
    init_qformer,
)
from jtok.nn.qformer_weights import qformer_from_tensors
from jtok.nn.relative import relative_buckets, reset_buckets
from jtok.nn.sound_config import SoundConfig
from jtok.nn.tower_config import TowerConfig
from jtok.nn.word_pooling import CausalBlock, PostNormLayer

__all__ = [
    "MAMBA_SITES",
    "SITES",
    "AdditivePooler",
    "Block",
    "CausalBlock",
    "ClipConfig",
    "DecoderConfig",
    "EncoderBlock",
    "EncoderConfig",
    "EncoderNorm",
    "Experts",
    "FrameConnector",
    "Hypernetwork",
    "HypernetworkConfig",
    "LamaPooler",
    "LastPooler",
    "Linear",
    "LlavaConfig",
    "MambaBlock",
    "MambaConfig",
    "MambaSteps",
    "MaxPooler",
    "MeanPooler",
    "Mlp",
    "Norm",
    "PerceiverConfig",
    "PerceiverResampler",
    "PieceMixer",
    "PieceMixerConfig",
    "Pooled",
    "Pooler",
    "PoolingConnector",
    "PostNormLayer",
    "QFormer",
    "QFormerConfig",
    "QFormerHeads",
    "QFormerOutput",
    "SoundConfig",
    "SpaceTimeConnector",
    "StructuredPooler",
    "TowerConfig",
    "UnshuffleConnector",
    "activation",
    "advance_mamba",
    "attention_penalty",
    "bi_gru",
    "bi_gru_from_tensors",
    "causal_conv",
    "conv_history",
    "encoder_activation",
    "fold_context",
    "init_bi_gru",
    "init_qformer",
    "perceiver_from_tensors",
    "qformer_from_tensors",
    "relative_buckets",
    "reset_buckets",
    "rms_norm",
    "rotary_frequencies",
    "rotary_gain",
    "rotate",
    "route",
]
