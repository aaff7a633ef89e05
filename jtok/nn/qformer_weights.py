"""A Q-Former's weights under the names of its checkpoints.

Source: Li et al. 2023, arXiv 2301.12597, as `transformers` names the parts.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jtok.errors import CheckpointError, check
from jtok.nn.qformer import QFormerConfig

__all__ = ["qformer_from_tensors"]

_HEADS = {"vision_projection": "image", "text_projection": "text", "itm_head": "match"}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


class _Tensors:
    """Tensors that are taken once each."""

    def __init__(self, tensors: Mapping[str, Any]):
        self.left = {name.removeprefix("qformer."): t for name, t in tensors.items()}

    def take(self, name: str) -> Array:
        if name not in self.left:
            raise CheckpointError(f"tensors: a Q-Former's {name} is missing.")
        return jnp.asarray(self.left.pop(name))

    def norm(self, name: str) -> dict[str, Array]:
        return {"scale": self.take(f"{name}.weight"), "bias": self.take(f"{name}.bias")}

    def linear(self, name: str) -> dict[str, Array]:
        kernel = self.take(f"{name}.weight").T
        return {"kernel": kernel, "bias": self.take(f"{name}.bias")}

    def attention(self, name: str) -> dict[str, Any]:
        parts = ("query", "key", "value")
        made: dict[str, Any] = {
            part: self.linear(f"{name}.attention.{part}") for part in parts
        }
        made["out"] = self.linear(f"{name}.output.dense")
        made["norm"] = self.norm(f"{name}.output.LayerNorm")
        return made

    def mlp(self, root: str, kind: str) -> dict[str, Any]:
        return {
            "up": self.linear(f"{root}intermediate{kind}.dense"),
            "down": self.linear(f"{root}output{kind}.dense"),
            "norm": self.norm(f"{root}output{kind}.LayerNorm"),
        }

    def has(self, start: str) -> bool:
        return any(name.startswith(start) for name in self.left)


def qformer_from_tensors(
    tensors: Mapping[str, Any], *, heads: int = 12
) -> tuple[QFormerConfig, dict[str, Any], dict[str, Any]]:
    """Reads a Q-Former under the names of `Blip2QFormerModel`, and what stands beside.

    Args:
      tensors: arrays by name, with or without `qformer.` before them: `layernorm` and
        `encoder.layer.N...`; further `query_tokens`, the `embeddings` of text, and of
        the retrieval model `vision_projection`, `text_projection` and `itm_head`.
        Linear weights are `[out, in]`.
      heads: attention heads, which the weights do not tell.

    Returns:
      The configuration that the shapes say; the parameters of `QFormer` (without
      `query_tokens` they lack `queries`, which the call must then get); those of
      `QFormerHeads` that are there.

    Raises:
      CheckpointError: tensors that are missing or have no place.
      ArgumentError: `heads` that do not divide the width.

    Source: Li et al. 2023, arXiv 2301.12597, as `transformers` names the parts.

    Example:
      >>> qformer_from_tensors({})
      Traceback (most recent call last):
      jtok.errors.CheckpointError: tensors: a Q-Former's layernorm.weight is missing.
    """
    source = _Tensors(tensors)
    source.left.pop("embeddings.position_ids", None)
    params: dict[str, Any] = {"norm": source.norm("layernorm")}
    found = [_LAYER.match(name) for name in source.left]
    numbers = [int(match[1]) for match in found if match]
    reads = []
    for index in range(max(numbers, default=0) + 1):
        root = f"encoder.layer.{index}."
        layer: dict[str, Any] = {"attention": source.attention(f"{root}attention")}
        if source.has(f"{root}crossattention"):
            reads.append(index)
            layer["cross"] = source.attention(f"{root}crossattention")
        layer["query_mlp"] = source.mlp(root, "_query")
        if source.has(f"{root}intermediate."):
            layer["text_mlp"] = source.mlp(root, "")
        params[f"layer_{index}"] = layer
    if "query_tokens" in source.left:
        params["queries"] = source.take("query_tokens")[0]
    if source.has("embeddings.word_embeddings"):
        params["words"] = source.take("embeddings.word_embeddings.weight")
        params["places"] = source.take("embeddings.position_embeddings.weight")
    tops = {
        ours: source.linear(theirs)
        for theirs, ours in _HEADS.items()
        if source.has(theirs)
    }
    if source.left:
        named = ", ".join(sorted(source.left)[:8])
        raise CheckpointError(f"tensors: a Q-Former has no place for {named}.")
    return _config_of(params, heads, reads), params, tops


def _config_of(params: dict[str, Any], heads: int, reads: list[int]) -> QFormerConfig:
    layers = sum(name.startswith("layer_") for name in params)
    every = reads[1] if len(reads) > 1 else layers
    expected = list(range(0, layers, every))
    if reads != expected:
        raise CheckpointError(
            f"tensors: layers {reads} of a Q-Former read the image, expected 0 and "
            "every further one at the same distance."
        )
    first = params["layer_0"]
    width, inner = first["query_mlp"]["up"]["kernel"].shape
    check(heads >= 1 and width % heads == 0, "heads", heads, f"a divisor of {width}")
    words, places = params.get("words"), params.get("places")
    sizes: dict[str, int] = {}
    if "queries" in params:
        sizes["queries"] = params["queries"].shape[0]
    if words is not None and places is not None:
        sizes |= {"vocab_size": words.shape[0], "max_positions": places.shape[0]}
    return QFormerConfig(
        width=width, layers=layers, heads=heads, mlp_width=inner, cross_every=every,
        image_width=first["cross"]["key"]["kernel"].shape[0],
        param_dtype=str(params["norm"]["scale"].dtype), **sizes,
    )  # fmt: skip
