"""The static description of a tower: an encoder of images."""

import functools
from dataclasses import dataclass, field
from typing import Literal

from jtok.errors import check
from jtok.nn.encoder_config import EncoderConfig

__all__ = ["TowerConfig"]

Pooling = Literal["cls", "pooler", "mean", "cls_mean", "attention"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes and choices of one encoder of images, hashable.

    Its blocks are those of an encoder that has norms first: `blocks` describes them.
    Tokens are the class token, the distillation token, registers (each where there is
    one), then the patches row by row.

    Attributes:
      family: the `model_type` that named it; decides how weights are called on disk.
      image_size: pixels to a side that the positions are made for.
      patch_size: pixels to a side of a patch; pixels beyond the last whole patch of
        an image of `image_size` are not looked at.
      channels: of a pixel.
      width: size of the residual stream.
      num_layers: blocks.
      num_heads: heads, which together are as wide as the stream.
      mlp_width: hidden size of the MLP.
      class_token: there is one.
      distill_token: beside it one that a teacher taught (DeiT).
      num_registers: learned tokens without a position.
      mask_token: a vector for patches that are hidden in training is kept.
      patch_bias: the map of patches has a bias.
      embed_norm: a norm after the embeddings (CLIP).
      norm_eps: added to the variance.
      norm_pooled: the last norm is of the pooled vector only (CLIP).
      mlp: "plain" or "gated" (act(gate) * up).
      activation: "silu", "gelu", "gelu_tanh", "relu" or "quick_gelu".
      query_bias: biases on query, key and value.
      layer_scale: what attention and MLP add is scaled by a learned vector each.
      interpolate: images of other sizes get positions between those of the table,
        "cubic" or "smooth" (see `jtok.models.tower_positions`); None refuses them.
      pooling: what one vector of the image is: the class token ("cls"), a linear map
        and tanh of it ("pooler"), the "mean" of the patches, both beside each other
        ("cls_mean"), a learned query's "attention" (SigLIP), or None.
      num_labels: of a linear map of that vector; 0 for none.
      distill_labels: also one of the distillation token; logits are the mean of both.
      dtype: dtype of the parameters and of the arithmetic between float32 islands.
      source: the JSON text of the checkpoint's configuration, kept for saving.

    Example:
      >>> sizes = dict(image_size=32, patch_size=8, width=16, num_layers=2)
      >>> config = TowerConfig(**sizes, num_heads=2, mlp_width=32)
      >>> config.num_patches, config.prefix, config.blocks.head_dim
      (16, 1, 8)
    """

    family: str = "vit"
    image_size: int
    patch_size: int
    channels: int = 3
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    class_token: bool = True
    distill_token: bool = False
    num_registers: int = 0
    mask_token: bool = False
    patch_bias: bool = True
    embed_norm: bool = False
    norm_eps: float = 1e-12
    norm_pooled: bool = False
    mlp: Literal["plain", "gated"] = "plain"
    activation: str = "gelu"
    query_bias: bool = True
    layer_scale: bool = False
    interpolate: Literal["cubic", "smooth"] | None = None
    pooling: Pooling | None = "cls"
    num_labels: int = 0
    distill_labels: bool = False
    dtype: str = "float32"
    source: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        sizes = ("patch_size", "channels", "width", "num_layers", "num_heads")
        for name in (*sizes, "mlp_width"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("num_registers", "num_labels"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        wanted = f"{self.patch_size} or more, a patch"
        good = self.image_size >= self.patch_size
        check(good, "image_size", self.image_size, wanted)
        good = self.width % self.num_heads == 0
        check(good, "width", self.width, f"a multiple of {self.num_heads} heads")
        needs_class = self.pooling in ("cls", "pooler", "cls_mean")
        good = self.class_token or not needs_class
        check(
            good, "pooling", self.pooling, "'mean' or 'attention' with no class token"
        )
        good = self.pooling is not None or not self.num_labels
        check(good, "pooling", None, "how the vector comes about that labels read")
        good = self.distill_token or not self.distill_labels
        check(good, "distill_token", False, "True, for the labels that read it")

    @functools.cached_property
    def blocks(self) -> EncoderConfig:
        """The blocks, as `EncoderBlock` and `run_layers` take them."""
        return EncoderConfig(
            family=self.family, vocab_size=1, width=self.width,
            num_layers=self.num_layers, num_heads=self.num_heads,
            head_dim=self.head_dim, mlp_width=self.mlp_width, max_positions=1,
            positions="none", num_types=0, embed_norm=self.embed_norm,
            norm_eps=self.norm_eps, norm_first=True, mlp=self.mlp,
            activation=self.activation, query_bias=self.query_bias,
            layer_scale=self.layer_scale, num_prefix=self.prefix, dtype=self.dtype,
        )  # fmt: skip

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.width // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """As many as heads."""
        return self.num_heads

    @property
    def causal(self) -> bool:
        """Patches see all others."""
        return False

    @property
    def tied(self) -> bool:
        """There is no unembedding."""
        return True

    @property
    def positions(self) -> str:
        """Positions are rows of a table."""
        return "learned"

    @property
    def max_positions(self) -> int:
        """Rows of that table."""
        return self.num_placed + self.num_patches

    @property
    def grid(self) -> int:
        """Patches to a side of an image of `image_size`."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return self.grid**2

    @property
    def num_placed(self) -> int:
        """Tokens before the patches that have a row in the table of positions."""
        return int(self.class_token) + int(self.distill_token)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return self.num_placed + self.num_registers

    @property
    def stem(self) -> str:
        """What stands before names of the tower's tensors beside those of a head."""
        return f"{self.family}." if self.num_labels else ""
