"""Which golden checkpoints are decoders, and which of them stand for the others."""

import pathlib

import pytest

GOLDENS = pathlib.Path(__file__).resolve().parents[1] / "goldens" / "hf_checkpoints"

DECODERS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "llama3_rope_tied",
    "mistral_sliding",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)


def every(*fast: str) -> list:
    """All decoders as parameters; those not named wait for the medium tests."""
    return [
        name if name in fast else pytest.param(name, marks=pytest.mark.medium)
        for name in DECODERS
    ]
