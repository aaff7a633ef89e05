"""Static descriptions of models that hold a tower beside another model."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from jtok.errors import check
from jtok.nn.config import DecoderConfig
from jtok.nn.encoder_config import EncoderConfig
from jtok.nn.tower_config import TowerConfig

__all__ = ["ClipConfig", "LlavaConfig"]


@dataclass(frozen=True, kw_only=True)
class _Joint:
    """What both share: sizes of the two parts together, and one dtype for them."""

    text: Any
    vision: TowerConfig
    dtype: str = "float32"
    source: str = field(default="{}", repr=False)

    def _one_dtype(self) -> None:
        for name in ("text", "vision"):
            part = dataclasses.replace(getattr(self, name), dtype=self.dtype)
            object.__setattr__(self, name, part)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding of texts."""
        return int(self.text.vocab_size)

    @property
    def num_layers(self) -> int:
        """Blocks of both parts."""
        return int(self.text.num_layers) + self.vision.num_layers

    @property
    def num_heads(self) -> int:
        """Heads that devices can share in both parts."""
        return math.gcd(self.text.num_heads, self.vision.num_heads)

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads that devices can share in both parts."""
        return math.gcd(self.text.num_kv_heads, self.vision.num_heads)

    @property
    def positions(self) -> str:
        """How texts tell places apart."""
        return str(self.text.positions)

    @property
    def max_positions(self) -> int:
        """Longest text that the positions are made for."""
        return int(self.text.max_positions)

    @property
    def width(self) -> int:
        """Size of the residual stream of texts."""
        return int(self.text.width)

    @property
    def tied(self) -> bool:
        """The unembedding is the embedding, or there is none."""
        return bool(self.text.tied)


@dataclass(frozen=True, kw_only=True)
class ClipConfig(_Joint):
    """A tower of texts beside one of images, and a space that both map to.

    Attributes:
      family: the `model_type` that named it.
      text: of the texts' encoder, which is causal.
      vision: of the images' tower.
      projection: size of the space.
      eos_token_id: where a text is read off: at the first of these ids. None takes the
        highest id of the text (the first release's rule).
      text_last: texts are read off at their last token instead, padding or not; their
        map has a bias (SigLIP).
      vision_map: images' vectors are mapped, too; else the tower pools into the space.
      score_bias: a learned number is added to all scores (SigLIP).
      dtype: dtype of the parameters of both.
      source: the JSON text of the checkpoint's configuration, kept for saving.

    Example:
      >>> from jtok.testing import tiny_config
      >>> config = tiny_config(family="clip")
      >>> config.text.causal, config.vision.prefix, config.projection
      (True, 1, 16)
    """

    family: str = "clip"
    text: EncoderConfig
    projection: int
    eos_token_id: int | None = None
    text_last: bool = False
    vision_map: bool = True
    score_bias: bool = False

    def __post_init__(self) -> None:
        check(self.projection >= 1, "projection", self.projection, "at least 1")
        good = self.vision_map or self.vision.width == self.projection
        wanted = f"{self.vision.width}, the tower's width, without vision_map"
        check(good, "projection", self.projection, wanted)
        check(self.vision.pooling is not None, "vision", "pooling=None", "a pooler")
        self._one_dtype()

    @property
    def causal(self) -> bool:
        """It gives vectors and does not decode."""
        return False


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(_Joint):
    """A decoder of texts in whose prompts stand the patches of images.

    Attributes:
      family: the `model_type` that named it.
      text: of the decoder.
      vision: of the images' tower.
      image_token_id: the id in whose place vectors of images stand.
      feature_layers: of which layers of the tower, as indices into its input followed
        by its blocks' outputs; of several the vectors stand beside each other.
      select: "default" leaves the first token out, which is the class token where
        there is one; "full" keeps all.
      activation: between the two linear maps of the connector.
      connector_bias: these have biases.
      dtype: dtype of the parameters of both.
      source: the JSON text of the checkpoint's configuration, kept for saving.

    Example:
      >>> from jtok.testing import tiny_config
      >>> config = tiny_config(family="llava")
      >>> config.feature_layers, config.image_tokens, config.num_run
      ((-2,), 16, 1)
    """

    family: str = "llava"
    text: DecoderConfig
    image_token_id: int
    feature_layers: tuple[int, ...] = (-2,)
    select: Literal["default", "full"] = "default"
    activation: str = "gelu"
    connector_bias: bool = True

    def __post_init__(self) -> None:
        good = 0 <= self.image_token_id < self.text.vocab_size
        wanted = f"an id in 0..{self.text.vocab_size - 1}"
        check(good, "image_token_id", self.image_token_id, wanted)
        most, layers = self.vision.num_layers, self.feature_layers
        good = bool(layers) and all(-most - 1 <= at <= most for at in layers)
        check(good, "feature_layers", layers, f"indices in {-most - 1}..{most}")
        check(self.text.causal, "text", "causal=False", "a causal decoder")
        scale = self.text.embed_scale
        check(scale is None, "text", f"embed_scale={scale}", "no scaled embeddings")
        self._one_dtype()

    @property
    def kinds(self) -> frozenset[str]:
        """Families of both parts, which name their tensors."""
        return frozenset((self.text.family, self.vision.family))

    @property
    def causal(self) -> bool:
        """Texts are decoded."""
        return True

    @property
    def depths(self) -> tuple[int, ...]:
        """After how many blocks of the tower its vectors are taken."""
        most = self.vision.num_layers + 1
        return tuple(at % most for at in self.feature_layers)

    @property
    def num_run(self) -> int:
        """Blocks of the tower that run."""
        return max(self.depths)

    @property
    def image_tokens(self) -> int:
        """Vectors of an image where none merge."""
        dropped = int(self.select == "default")
        return self.vision.prefix + self.vision.num_patches - dropped
