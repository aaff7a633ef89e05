"""Whole backbones, their caches, and checkpoints in the Hugging Face format."""

from jtok.models.backbone import Backbone, backbone_of
from jtok.models.checkpoint import config_from, init, load, save
from jtok.models.families import FAMILIES, Family, family_of
from jtok.models.foreign import TextCache, logits_target
from jtok.models.mamba import MambaCache
from jtok.models.model import (
    Cache,
    GenerationConfig,
    Model,
    Output,
    Taps,
    commit,
    init_cache,
    split_layers,
    stack_layers,
)
from jtok.models.target import Info, StepInput, StepOutput, Target, model_target

__all__ = [
    "FAMILIES",
    "Backbone",
    "Cache",
    "Family",
    "GenerationConfig",
    "Info",
    "MambaCache",
    "Model",
    "Output",
    "StepInput",
    "StepOutput",
    "Taps",
    "Target",
    "TextCache",
    "backbone_of",
    "commit",
    "config_from",
    "family_of",
    "init",
    "init_cache",
    "load",
    "logits_target",
    "model_target",
    "save",
    "split_layers",
    "stack_layers",
]
