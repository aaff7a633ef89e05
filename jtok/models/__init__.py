"""Whole backbones, their caches, and checkpoints in the Hugging Face format."""

from jtok.models.backbone import Backbone, backbone_of
from jtok.models.cache import Cache, commit, init_cache
from jtok.models.checkpoint import abstract, config_from, init, load, save
from jtok.models.classify import add_classifier, classify, pool
from jtok.models.clip import ClipOutput, image_embeddings, text_embeddings
from jtok.models.compression import CompressedOutput
from jtok.models.compressor import Compressor, LayerView
from jtok.models.encoder import Segments, relative_bias
from jtok.models.encoder_heads import masked_features, masked_rows
from jtok.models.families import FAMILIES, Family, family_of
from jtok.models.foreign import TextCache, logits_target
from jtok.models.generation_config import GenerationConfig
from jtok.models.image_processor import ImageProcessor
from jtok.models.image_text import ImageText
from jtok.models.layerwise import LayerOutput, embed_inputs, run_layer
from jtok.models.llava import (
    ImageFeatures,
    connect,
    image_features,
    vision_tower,
)
from jtok.models.llava_prompts import with_images
from jtok.models.mamba import MambaCache
from jtok.models.model import Model, Output, Taps, split_layers, stack_layers
from jtok.models.paddle import from_paddle
from jtok.models.prompt_images import ImagePrompts, PromptProcessor
from jtok.models.prompt_vectors import vector_ids, with_vectors
from jtok.models.pseudo import pseudo_score
from jtok.models.scoring import Scores, encode, score
from jtok.models.segments import (
    cut_layers,
    embed_ids,
    final_norm,
    run_segment,
    segment_config,
)
from jtok.models.sound_processor import SoundFrames, SoundProcessor, mel_filters
from jtok.models.target import Info, StepInput, StepOutput, Target, model_target
from jtok.models.tower_heads import CompressedTowerOutput, TowerOutput

__all__ = [
    "FAMILIES",
    "Backbone",
    "Cache",
    "ClipOutput",
    "CompressedOutput",
    "CompressedTowerOutput",
    "Compressor",
    "Family",
    "GenerationConfig",
    "ImageFeatures",
    "ImageProcessor",
    "ImagePrompts",
    "ImageText",
    "Info",
    "LayerOutput",
    "LayerView",
    "MambaCache",
    "Model",
    "Output",
    "PromptProcessor",
    "Scores",
    "Segments",
    "SoundFrames",
    "SoundProcessor",
    "StepInput",
    "StepOutput",
    "Taps",
    "Target",
    "TextCache",
    "TowerOutput",
    "abstract",
    "add_classifier",
    "backbone_of",
    "classify",
    "commit",
    "config_from",
    "connect",
    "cut_layers",
    "embed_ids",
    "embed_inputs",
    "encode",
    "family_of",
    "final_norm",
    "from_paddle",
    "image_embeddings",
    "image_features",
    "init",
    "init_cache",
    "load",
    "logits_target",
    "masked_features",
    "masked_rows",
    "mel_filters",
    "model_target",
    "pool",
    "pseudo_score",
    "relative_bias",
    "run_layer",
    "run_segment",
    "save",
    "score",
    "segment_config",
    "split_layers",
    "stack_layers",
    "text_embeddings",
    "vector_ids",
    "vision_tower",
    "with_images",
    "with_vectors",
]
