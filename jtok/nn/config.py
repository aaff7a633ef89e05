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
      norm_offset: norms multiply by 1 + scale, in float32, instead of by scale.
      pre_norms: norms before attention and before the MLP.
      post_norms: norms after attention and after the MLP, before they are added.
      parallel_residual: the MLP reads what attention reads, not its result.
      qk_norm: norm of queries and keys: None, over each "head", or over the "width" of
        all heads.
      mlp: "gated" (act(gate) * up) or "plain".
      activation: "silu", "gelu", "gelu_tanh" or "relu".
      positions: "rotary" or "learned".
      rope_theta: base of the rotary frequencies.
      rope_scaling: items of the rotary scaling, see `rotary_frequencies`.
      local_rope_theta: base in layers with a window; None takes that of the others,
        with its scaling.
      local_rope_scaling: items of the scaling beside `local_rope_theta`.
      rotary_fraction: share of each head that rotates, from its start.
      windows: per layer, how many positions a token sees, itself included; None sees
        all. An empty tuple: no layer has a window.
      query_scale: factor on the attention scores; None is `head_dim ** -0.5`.
      attn_softcap: attention scores s become cap * tanh(s / cap); None for no cap.
      final_softcap: the same for logits.
      embed_scale: factor on the embeddings, rounded to their dtype; None for none.
      query_bias: biases on query, key and value.
      out_bias: bias on the attention output.
      mlp_bias: biases in the MLP.
      num_experts: experts in place of one MLP; 0 for none.
      experts_per_token: how many of them a token goes through.
      expert_width: hidden size of an expert.
      experts_sum_to_one: weights of the chosen experts are scaled to sum to 1.
      dense_layers: layers that have the one MLP all the same, ascending.
      causal: a token sees only itself and what comes before it; False for models that
        look both ways.
      logit_shift: of a model that looks both ways, the logits of a position say what
        stands at the next one, as those of a causal model do.
      mask_token_id: id that stands for a token to be filled in, or None.
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
    norm_offset: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    parallel_residual: bool = False
    qk_norm: Literal["head", "width"] | None = None
    mlp: Literal["gated", "plain"] = "gated"
    activation: str = "silu"
    positions: Literal["rotary", "learned"] = "rotary"
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] = ()
    local_rope_theta: float | None = None
    local_rope_scaling: tuple[tuple[str, Any], ...] = ()
    rotary_fraction: float = 1.0
    windows: tuple[int | None, ...] = ()
    query_scale: float | None = None
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float | None = None
    query_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    experts_sum_to_one: bool = True
    dense_layers: tuple[int, ...] = ()
    causal: bool = True
    logit_shift: bool = False
    mask_token_id: int | None = None
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
        expected = "an even number of rotated dimensions, 2 or more, in a head"
        good = 2 <= self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0
        good = good or self.positions != "rotary"
        check(good, "rotary_fraction", self.rotary_fraction, expected)
        self._check_layers()
        mask = self.mask_token_id
        good = mask is None or 0 <= mask < self.vocab_size
        expected = f"None or an id in 0..{self.vocab_size - 1}"
        check(good, "mask_token_id", mask, expected)

    def _check_layers(self) -> None:
        good = len(self.windows) in (0, self.num_layers)
        good = good and all(w is None or w >= 1 for w in self.windows)
        expected = f"None or at least 1 for each of {self.num_layers} layers"
        check(good, "windows", self.windows, expected)
        if self.num_experts:
            among, name = self.experts_per_token, "experts_per_token"
            check(1 <= among <= self.num_experts, name, among, "1 to num_experts")
            check(
                self.expert_width >= 1, "expert_width", self.expert_width, "1 or more"
            )
        good = list(self.dense_layers) == sorted(set(self.dense_layers))
        good = good and all(0 <= i < self.num_layers for i in self.dense_layers)
        check(good, "dense_layers", self.dense_layers, "ascending indices of layers")

    @property
    def rotary_scaling(self) -> Mapping[str, Any]:
        """`rope_scaling` as a mapping."""
        return dict(self.rope_scaling)

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head rotate."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def score_scale(self) -> float:
        """The factor on the attention scores."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    def window(self, layer: int) -> int | None:
        """How many positions a token sees in that layer; None sees all."""
        return self.windows[layer] if self.windows else None

    def sparse(self, layer: int) -> bool:
        """Whether that layer has experts."""
        return self.num_experts > 0 and layer not in self.dense_layers
