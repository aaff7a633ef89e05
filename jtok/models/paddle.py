"""Encoders from the state dictionaries of ERNIE's released Paddle code.

Paddle keeps the kernels of linear maps as `[in, out]`, as jtok does.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok.errors import CheckpointError, check
from jtok.models.families_heads import head_options
from jtok.models.model import Model
from jtok.nn import EncoderConfig
from jtok.text import Vocabulary

__all__ = ["from_paddle"]

_TABLES = {
    "word_emb.weight": "embed/tokens",
    "pos_emb.weight": "embed/positions",
    "sent_emb.weight": "embed/types",
    "rel_pos_bias_emb.weight": "relative/table",
}
_LINEAR = {
    "attn.q": "query",
    "attn.k": "key",
    "attn.v": "value",
    "attn.o": "out",
    "ffn.i": "mlp/up",
    "ffn.o": "mlp/down",
}
_NORMS = {"ln1": "attn_norm", "ln2": "mlp_norm"}
_BLOCK = re.compile(r"encoder_stack\.block\.(\d+)\.(.+)\.(weight|bias)")


def from_paddle(
    tensors: Mapping[str, Float[np.ndarray, "..."]],
    *,
    num_heads: int,
    norm_eps: float = 1e-5,
    vocabulary: Vocabulary | None = None,
) -> Model:
    """Makes an encoder of a state dictionary of `ErnieModel`, ERNIE-Gram's included.

    With `rel_pos_bias_emb.weight`, which the English models have, attention is biased
    by relative positions; the code for plain BERT loads those wrongly.

    Args:
      tensors: name -> array as the Paddle code names them; linear kernels `[in, out]`.
      num_heads: of attention, which the arrays do not tell.
      norm_eps: of the layer norms; the released code has 1e-5.
      vocabulary: the tokenizer, or None.

    Returns:
      A `Model` of family "ernie" with a pooler where there is one; `jtok.models.save`
      writes it in the Hugging Face format.

    Raises:
      ArgumentError: heads that do not divide the width.
      CheckpointError: arrays that are missing, unknown, or of shapes that do not fit;
        all are named.

    Source: class ErnieModel of PaddlePaddle/ERNIE, branch develop at 26a1691.

    Example:
      >>> from_paddle({}, num_heads=2)
      Traceback (most recent call last):
      jtok.errors.CheckpointError: tensors: missing word_emb.weight, pos_emb.weight.
    """
    named = {name: _place(name) for name in tensors}
    unknown = sorted(name for name, place in named.items() if not place)
    if unknown:
        raise CheckpointError(f"tensors: unknown {', '.join(unknown)}.")
    missing = [n for n in ("word_emb.weight", "pos_emb.weight") if n not in tensors]
    if missing:
        raise CheckpointError(f"tensors: missing {', '.join(missing)}.")
    places = {place: jnp.asarray(tensors[name]) for name, place in named.items()}
    config = _config(places, num_heads, norm_eps)
    shapes = _shapes(config)
    wrong = [f"{place} missing" for place in shapes if place not in places]
    for place, array in places.items():
        wanted = shapes.get(place)
        if wanted != array.shape:
            wrong.append(f"{place} has shape {array.shape}, expected {wanted}")
    if wrong:
        raise CheckpointError(f"tensors: {'; '.join(wrong)}.")
    return Model(_tree(places, config.num_layers), config, vocabulary)


def _place(name: str) -> str:
    """Where an array belongs: a path, layers by number; "" for an unknown one."""
    if name in _TABLES:
        return _TABLES[name]
    kind = {"weight": "scale", "bias": "bias"}
    if name in ("ln.weight", "ln.bias"):
        return f"embed/norm/{kind[name[3:]]}"
    if name in ("pooler.weight", "pooler.bias"):
        return f"pooler/dense/{'kernel' if name.endswith('weight') else 'bias'}"
    found = _BLOCK.fullmatch(name)
    if found is None:
        return ""
    layer, part, which = found.groups()
    if part in _NORMS:
        return f"layers/{layer}/{_NORMS[part]}/{kind[which]}"
    if part in _LINEAR:
        leaf = "kernel" if which == "weight" else "bias"
        return f"layers/{layer}/{_LINEAR[part]}/{leaf}"
    return ""


def _config(
    places: Mapping[str, Array], num_heads: int, norm_eps: float
) -> EncoderConfig:
    tokens, positions = places["embed/tokens"], places["embed/positions"]
    width = tokens.shape[-1]
    good = num_heads >= 1 and width % num_heads == 0
    check(good, "num_heads", num_heads, f"a divisor of the width {width}")
    layers = {int(p.split("/")[1]) for p in places if p.startswith("layers/")}
    count = max(layers, default=-1) + 1
    if layers != set(range(count)) or not count:
        raise CheckpointError(f"tensors: layers {sorted(layers)}, expected 0, 1, ...")
    table = places.get("relative/table")
    up = places.get("layers/0/mlp/up/kernel")
    if up is None:
        raise CheckpointError("tensors: missing encoder_stack.block.0.ffn.i.weight.")
    types = places.get("embed/types")
    pooler = "pooler/dense/kernel" in places
    return EncoderConfig(
        family="ernie",
        vocab_size=tokens.shape[0],
        width=width,
        num_layers=count,
        num_heads=num_heads,
        head_dim=width // num_heads,
        mlp_width=up.shape[-1],
        max_positions=positions.shape[0],
        num_types=0 if types is None else types.shape[0],
        norm_eps=norm_eps,
        relative=None if table is None else "ernie",
        relative_buckets=32 if table is None else table.shape[0] - 1,
        dtype=tokens.dtype.name,
        **head_options("ernie", None, pooler=pooler),
    )


def _shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every path that a model of this configuration has, and its shape."""
    width, wide = config.width, config.mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        "embed/tokens": (config.vocab_size, width),
        "embed/positions": (config.max_positions, width),
    }

    def linear(place: str, shape: tuple[int, int]) -> None:
        shapes[f"{place}/kernel"], shapes[f"{place}/bias"] = shape, shape[1:]

    def norm(place: str) -> None:
        shapes[f"{place}/scale"] = shapes[f"{place}/bias"] = (width,)

    norm("embed/norm")
    if config.num_types:
        shapes["embed/types"] = (config.num_types, width)
    if config.relative:
        shapes["relative/table"] = (config.relative_buckets + 1, config.num_heads)
    if config.pooler:
        linear("pooler/dense", (width, width))
    for layer in range(config.num_layers):
        for part in ("query", "key", "value", "out"):
            linear(f"layers/{layer}/{part}", (width, width))
        linear(f"layers/{layer}/mlp/up", (width, wide))
        linear(f"layers/{layer}/mlp/down", (wide, width))
        norm(f"layers/{layer}/attn_norm")
        norm(f"layers/{layer}/mlp_norm")
    return shapes


def _tree(places: Mapping[str, Array], num_layers: int) -> dict:
    """Nested dictionaries of the paths, with the layers as a tuple."""
    tree: dict = {}
    for place, array in places.items():
        *folders, leaf = place.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[leaf] = array
    layers = tree["layers"]
    return {**tree, "layers": tuple(layers[str(i)] for i in range(num_layers))}
