"""The static description of a transformer decoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jtok.errors import check

__all__ = ["DecoderConfig"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and choices of one decoder, hashable, whatever its family calls them.

    Attributes:
      family: the `model_type` that named it; decides how weights are called on disk.
      vocab_size: rows of the embedding.
      width: size of the residual stream.
      num_layers: blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: size of a head.
      mlp_width: hidden size of the MLP.
      max_positions: longest sequence that the positions are made for.
      norm: "rms" or "layer".
      norm_eps: added to the variance.
      mlp: "gated" (act(gate) * up) or "plain".
      activation: "silu", "gelu", "gelu_tanh" or "relu".
      positions: "rotary" or "learned".
      rope_theta: base of the rotary frequencies.
      rope_scaling: items of the rotary scaling, see `rotary_frequencies`.
      query_bias: biases on query, key and value.
      out_bias: bias on the attention output.
      mlp_bias: biases in the MLP.
      tied: the unembedding is the embedding.
      dtype: dtype of the parameters and of the arithmetic between float32 islands.
      source: the JSON text of the checkpoint's configuration, kept for saving.
    """

    family: str = "llama"
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    mlp: Literal["gated", "plain"] = "gated"
    activation: str = "silu"
    positions: Literal["rotary", "learned"] = "rotary"
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] = ()
    query_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    dtype: str = "float32"
    source: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "mlp_width", "max_positions"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"a divisor of num_heads={self.num_heads}",
        )

    @property
    def rotary_scaling(self) -> Mapping[str, Any]:
        """`rope_scaling` as a mapping."""
        return dict(self.rope_scaling)
