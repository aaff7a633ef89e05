"""The static description of a transformer encoder."""

import json
from dataclasses import dataclass, field
from typing import Literal

from jtok.errors import check

__all__ = ["EncoderConfig"]

_FARTHEST = 2**20  # a table on the host has an entry a distance


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes and choices of one encoder, hashable, whatever its family calls them.

    Attributes:
      family: the `model_type` that named it; decides how weights are called on disk.
      vocab_size: rows of the embedding.
      width: size of the residual stream.
      num_layers: blocks.
      num_heads: heads; keys and values have as many.
      head_dim: size of a head.
      mlp_width: hidden size of the MLP.
      max_positions: longest sequence that the positions are made for.
      positions: "learned", "rotary" or "none" (then `relative` tells places apart).
      position_offset: rows of the table of positions before that of position 0.
      padding_id: positions count only other ids than this; None counts all.
      num_types: segments that tokens can belong to, each with a vector; 0 for none.
      num_tasks: tasks with a vector each (ERNIE); 0 for none.
      embed_norm: a norm after the embeddings.
      norm: "layer" or "rms".
      norm_eps: added to the variance.
      norm_bias: layer norms have a bias.
      norm_first: norms before attention and before the MLP, and one at the end; else
        norms after each is added to the stream, and none at the end.
      first_attn_norm: the first layer has a norm of its attention, too.
      mlp: "plain" or "gated" (act(gate) * up).
      activation: "silu", "gelu", "gelu_tanh", "relu" or "quick_gelu".
      query_bias: biases on query, key and value.
      key_bias: a bias on the key; None is as `query_bias` says.
      out_bias: bias on the attention output.
      mlp_bias: biases in the MLP.
      layer_scale: what attention and MLP add is scaled by a learned vector each.
      causal: tokens see those whose position is not after their own.
      num_prefix: first tokens that are no content; None is 1, of T5 0.
      query_scale: factor on the attention scores; None is `head_dim ** -0.5`.
      rope_theta: base of the rotary frequencies.
      local_rope_theta: base in layers with a window; None takes that of the others.
      windows: per layer, how many positions a token sees to either side of itself;
        None sees all. An empty tuple: no layer has a window.
      relative: one table of biases by distance for all layers, counted as "t5" or
        "ernie" does (see `jtok.nn.relative_buckets`); None for none.
      relative_buckets: distances that are told apart, both directions together.
      relative_distance: from here on distances are one.
      pooler: a linear map and tanh on the first token.
      head: what is read off the tokens: "masked_lm", a label for the "sequence", one
        for each "token", or None.
      next_sentence: beside the head, two labels of the pooler's vector.
      head_dense: the head begins with a linear map and `head_activation`.
      head_dense_bias: that map has a bias.
      head_norm: then comes a norm.
      head_activation: as `activation`, or "tanh".
      head_bias: the masked-LM logits have a bias.
      tied: the masked-LM head compares with the rows of the embedding; else it has rows
        of its own.
      head_pooling: what the sequence's head reads: the "pooler"'s vector, the first
        token ("cls") or the "mean" of all.
      num_labels: of the head.
      architecture: how files call the class of model that this is, "" for unknown.
      dtype: dtype of the parameters and of the arithmetic between float32 islands.
      source: the JSON text of the checkpoint's configuration, kept for saving; it
        names `architecture` where the file named more than is held.
    """

    family: str = "bert"
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    positions: Literal["learned", "rotary", "none"] = "learned"
    position_offset: int = 0
    padding_id: int | None = None
    num_types: int = 2
    num_tasks: int = 0
    embed_norm: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    norm_first: bool = False
    first_attn_norm: bool = True
    mlp: Literal["plain", "gated"] = "plain"
    activation: str = "gelu"
    query_bias: bool = True
    key_bias: bool | None = None
    out_bias: bool = True
    mlp_bias: bool = True
    layer_scale: bool = False
    causal: bool = False
    num_prefix: int | None = None
    query_scale: float | None = None
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None
    windows: tuple[int | None, ...] = ()
    relative: Literal["t5", "ernie"] | None = None
    relative_buckets: int = 32
    relative_distance: int = 128
    pooler: bool = False
    head: Literal["masked_lm", "sequence", "token"] | None = None
    next_sentence: bool = False
    head_dense: bool = True
    head_dense_bias: bool = True
    head_norm: bool = True
    head_activation: str = "gelu"
    head_bias: bool = True
    tied: bool = True
    head_pooling: Literal["pooler", "cls", "mean"] = "cls"
    num_labels: int = 2
    architecture: str = ""
    dtype: str = "float32"
    source: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "head_dim")
        for name in (*sizes, "mlp_width", "max_positions", "num_labels"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("position_offset", "num_types", "num_tasks"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        good = len(self.windows) in (0, self.num_layers)
        good = good and all(reach is None or reach >= 0 for reach in self.windows)
        expected = f"None or 0 and more for each of {self.num_layers} layers"
        check(good, "windows", self.windows, expected)
        even = self.positions != "rotary" or self.head_dim % 2 == 0
        check(even, "head_dim", self.head_dim, "an even number, for rotary positions")
        self._check_relative()
        needed = self.next_sentence or (
            self.head == "sequence" and self.head_pooling == "pooler"
        )
        check(self.pooler or not needed, "pooler", False, "True for this head")
        self._name_what_is_held()

    def _check_relative(self) -> None:
        buckets, distance = self.relative_buckets, self.relative_distance
        good = buckets >= 4 and buckets % 2 == 0
        check(good, "relative_buckets", buckets, "an even number of at least 4")
        wanted = f"{buckets // 4 + 1} (a quarter of the buckets) to {_FARTHEST}"
        good = buckets // 4 < distance <= _FARTHEST
        check(good, "relative_distance", distance, wanted)

    def _name_what_is_held(self) -> None:
        """A file may have named a decoder too: what is saved shall not."""
        fields = json.loads(self.source)
        named = fields.get("architectures")
        if self.architecture and named and named != [self.architecture]:
            fields["architectures"] = [self.architecture]
            object.__setattr__(self, "source", json.dumps(fields))

    @property
    def num_kv_heads(self) -> int:
        """As many as heads."""
        return self.num_heads

    @property
    def prefix(self) -> int:
        """First tokens that are no content: the class token, where there is one."""
        if self.num_prefix is not None:
            return self.num_prefix
        return 0 if self.relative == "t5" else 1

    @property
    def score_scale(self) -> float:
        """The factor on the attention scores."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    def window(self, layer: int) -> int | None:
        """How far a token sees to either side in that layer; None sees all."""
        return self.windows[layer] if self.windows else None

    def attn_norm(self, layer: int) -> bool:
        """Whether that layer has a norm of its attention."""
        return layer > 0 or self.first_attn_norm
