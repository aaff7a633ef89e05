"""The Q-Former: learnt queries read an image, a text may stand beside them.

Source: Li et al. 2023, arXiv 2301.12597, section 3, and its code.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.nn.looking import mix_and_look

__all__ = [
    "QFormer",
    "QFormerConfig",
    "QFormerHeads",
    "QFormerOutput",
    "init_qformer",
]

_INIT = nn.initializers.normal(0.02)
Sees = Literal["both", "causal"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    Attributes:
      queries: vectors that come out.
      width: of the queries and of text.
      layers: of the transformer.
      heads: attention heads; they divide `width`.
      mlp_width: width inside the feed-forward nets.
      image_width: width of what is read.
      cross_every: layers 0, `cross_every`, ... read the image.
      norm_eps: added to the variance.
      vocab_size: rows of the embedding of text; 0 for no text, then there are no
        feed-forward nets for it either.
      max_positions: longest text.
      dropout: rate on embeddings, attention weights and each half's output.
      param_dtype: dtype of the parameters.

    Raises:
      ArgumentError: a size out of range.

    Example:
      >>> QFormerConfig().queries
      32
    """

    queries: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    image_width: int = 1408
    cross_every: int = 2
    norm_eps: float = 1e-12
    vocab_size: int = 0
    max_positions: int = 512
    dropout: float = 0.0
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = ("queries", "width", "layers", "heads", "mlp_width", "image_width")
        for name in (*sizes, "cross_every", "max_positions"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "at least 1")
        good = self.width % self.heads == 0
        check(good, "heads", self.heads, f"a divisor of the width, {self.width}")
        check(self.vocab_size >= 0, "vocab_size", self.vocab_size, "at least 0")
        good = 0.0 <= self.dropout < 1.0
        check(good, "dropout", self.dropout, "0 up to less than 1")


@struct.dataclass
class QFormerOutput:
    """What comes out.

    Attributes:
      queries: `[batch, queries, width]`, or None where none were asked for.
      text: `[batch, words, width]`, or None without a text.
      seen: `[batch, queries, tokens]` float32: how much each query looked at each
        token in the last layer that reads the image, the mean of the heads; or None.
    """

    queries: jax.Array | None
    text: jax.Array | None
    seen: jax.Array | None


def _norm(config: QFormerConfig, x: Array, name: str) -> Array:
    layer = nn.LayerNorm(
        config.norm_eps, use_fast_variance=False, dtype=x.dtype,
        param_dtype=config.param_dtype, name=name,
    )  # fmt: skip
    return layer(x)


def _linear(config: QFormerConfig, x: Array, features: int, name: str) -> Array:
    layer = nn.Dense(
        features, kernel_init=_INIT, dtype=x.dtype,
        param_dtype=config.param_dtype, name=name,
    )  # fmt: skip
    return layer(x)


class _Attention(nn.Module):
    """Attention, added to what came in, then a norm."""

    config: QFormerConfig

    @nn.compact
    def __call__(
        self, x: Array, other: Array, allow: Array, deterministic: bool
    ) -> tuple[Array, Array]:
        config = self.config
        drop = lambda y: nn.Dropout(config.dropout)(y, deterministic=deterministic)
        linear = lambda y, name: _linear(config, y, config.width, name)
        cut = lambda y: y.reshape(*y.shape[:-1], config.heads, -1)
        query, key = cut(linear(x, "query")), cut(linear(other, "key"))
        value = cut(linear(other, "value"))
        mixed, seen = mix_and_look(query, key, value, allow, drop)
        mixed = drop(linear(mixed.reshape(x.shape), "out"))
        return _norm(config, x + mixed, "norm"), seen


class _FeedForward(nn.Module):
    """Linear, exact GELU, linear, added to what came in, then a norm."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        config = self.config
        inner = _linear(config, x, config.mlp_width, "up")
        inner = jax.nn.gelu(inner, approximate=False)
        inner = _linear(config, inner, config.width, "down")
        inner = nn.Dropout(config.dropout)(inner, deterministic=deterministic)
        return _norm(config, x + inner, "norm")


class _Layer(nn.Module):
    """Queries and text attend together; queries alone read the image.

    Both have feed-forward nets of their own.
    """

    config: QFormerConfig
    reads: bool

    @nn.compact
    def __call__(
        self,
        queries: Array,
        text: Array,
        allow: Array,
        image: Array | None,
        valid: Array | None,
        deterministic: bool,
    ) -> tuple[Array, Array, Array | None]:
        config, count, seen = self.config, queries.shape[1], None
        both = jnp.concatenate([queries, text], axis=1)
        both, _ = _Attention(config, name="attention")(both, both, allow, deterministic)
        queries, text = both[:, :count], both[:, count:]
        if count and self.reads and image is not None and valid is not None:
            cross = _Attention(config, name="cross")
            queries, seen = cross(queries, image, valid[:, None], deterministic)
        if count:
            mlp = _FeedForward(config, name="query_mlp")
            queries = mlp(queries, deterministic)
        if text.shape[1]:
            text = _FeedForward(config, name="text_mlp")(text, deterministic)
        return queries, text, seen


class QFormer(nn.Module):
    """A transformer of queries, in which every second layer reads an image.

    Parameters of text come into being where `init` gets a text beside the image.

    Attributes:
      config: the sizes.

    Source: Li et al. 2023, arXiv 2301.12597, section 3.1.

    Example:
      >>> config = QFormerConfig(
      ...     queries=3, width=8, layers=2, heads=2, mlp_width=16, image_width=5)
      >>> image, key = jnp.ones((1, 9, 5)), jax.random.key(0)
      >>> out, _ = jax.eval_shape(QFormer(config).init_with_output, key, image)
      >>> out.queries.shape, out.seen.shape
      ((1, 3, 8), (1, 3, 9))
    """

    config: QFormerConfig

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "batch tokens image_width"] | None = None,
        *,
        valid: Bool[Array, "batch tokens"] | None = None,
        ids: Int[Array, "batch words"] | None = None,
        text_valid: Bool[Array, "batch words"] | None = None,
        sees: Sees = "both",
        queries: Float[Array, "#batch queries width"] | None = None,
        deterministic: bool = True,
    ) -> QFormerOutput:
        """Runs queries on an image, a text alone, or both together.

        Args:
          image: `[batch, tokens, image_width]`; None runs the text without queries.
          valid: `[batch, tokens]` bool; None lets all be real. A query without any
            token gets zeros from them.
          ids: `[batch, words]` int32 of a text beside the queries, or None.
          text_valid: `[batch, words]` bool; None lets all be real.
          sees: "both": queries and words see each other; "causal": queries see queries,
            words see queries and the words up to themselves.
          queries: `[batch or 1, queries, width]` in place of the learnt ones.
          deterministic: no dropout (static).

        Returns:
          `QFormerOutput`, in the dtype of `image` (of the parameters without one).

        Raises:
          ArgumentError: neither image nor text, a text without a vocabulary, one that
            is too long, another width of the image, or an unknown `sees`.
        """
        config = self.config
        self._check(image, ids, sees)
        dtype: Any = config.param_dtype if image is None else image.dtype
        first = ids if image is None else image
        batch = 0 if first is None else first.shape[0]
        x = jnp.zeros((batch, 0, config.width), dtype)
        if image is not None:
            if queries is None:
                shape = (config.queries, config.width)
                queries = self.param("queries", _INIT, shape, config.param_dtype)[None]
            x = jnp.broadcast_to(queries, (batch, *queries.shape[1:])).astype(dtype)
            if valid is None:
                valid = jnp.ones(image.shape[:2], bool)
            image = jnp.where(valid[..., None], image, 0)
        count = x.shape[1]
        words = self._embedded(ids, dtype, batch)
        whole = _norm(config, jnp.concatenate([x, words], axis=1), "norm")
        whole = nn.Dropout(config.dropout)(whole, deterministic=deterministic)
        queries, text = whole[:, :count], whole[:, count:]
        real = jnp.ones(text.shape[:2], bool) if text_valid is None else text_valid
        allow = _allowed(count, real, sees)
        seen = None
        for index in range(config.layers):
            layer = _Layer(
                config, index % config.cross_every == 0, name=f"layer_{index}"
            )
            queries, text, looked = layer(
                queries, text, allow, image, valid, deterministic
            )
            seen = seen if looked is None else looked
        return QFormerOutput(
            queries if count else None, text if ids is not None else None, seen
        )

    def _check(self, image: Array | None, ids: Array | None, sees: str) -> None:
        config = self.config
        check(sees in ("both", "causal"), "sees", sees, "'both' or 'causal'")
        some = image is not None or ids is not None
        check(some, "image, ids", None, "an image, a text or both")
        if image is not None:
            good = image.ndim == 3 and image.shape[-1] == config.image_width
            expected = f"[batch, tokens, {config.image_width}]"
            check(good, "image", f"shape {image.shape}", expected)
        if ids is not None:
            good = config.vocab_size > 0
            check(good, "ids", f"shape {ids.shape}", "None: there is no vocabulary")
            most = config.max_positions
            check(ids.shape[1] <= most, "ids", f"{ids.shape[1]} words", f"up to {most}")

    def _embedded(self, ids: Array | None, dtype: Any, batch: int) -> Array:
        config = self.config
        if ids is None:
            return jnp.zeros((batch, 0, config.width), dtype)
        table = lambda name, rows: self.param(
            name, _INIT, (rows, config.width), config.param_dtype
        )
        words = table("words", config.vocab_size)[ids]
        places = table("places", config.max_positions)[: ids.shape[1]]
        return (words + places[None]).astype(dtype)


def _allowed(count: int, real: Array, sees: Sees) -> Array:
    """`[batch, queries + words, queries + words]` bool: row may see column."""
    words = real.shape[1]
    size = count + words
    keys = jnp.pad(real, ((0, 0), (count, 0)), constant_values=True)[:, None]
    keys = jnp.broadcast_to(keys, (real.shape[0], size, size))
    if sees == "both":
        return keys
    at = jnp.arange(size)
    earlier = at[:, None] >= at[None]
    return keys & (earlier | (at < count)[None])[None]


class QFormerHeads(nn.Module):
    """What the three objectives read off a Q-Former.

    Attributes:
      config: of the Q-Former.
      embed_width: width of the space in which images and texts are compared.

    Source: Li et al. 2023, arXiv 2301.12597, section 3.2.

    Example:
      >>> config = QFormerConfig(
      ...     queries=3, width=8, layers=2, heads=2, mlp_width=16, vocab_size=11)
      >>> init, x = QFormerHeads(config).init, jnp.ones((1, 3, 8))
      >>> sorted(jax.eval_shape(init, jax.random.key(0), x)["params"])
      ['bias', 'dense', 'image', 'match', 'norm', 'temperature', 'text']
    """

    config: QFormerConfig
    embed_width: int = 256

    def setup(self) -> None:
        config = self.config
        linear = lambda features: nn.Dense(
            features, kernel_init=_INIT, param_dtype=config.param_dtype
        )
        self.image, self.text = linear(self.embed_width), linear(self.embed_width)
        self.match, self.dense = linear(2), linear(config.width)
        self.norm = nn.LayerNorm(config.norm_eps, use_fast_variance=False)
        self.bias = self.param(
            "bias", nn.initializers.zeros, (config.vocab_size,), jnp.float32
        )
        self.temperature = self.param(
            "temperature", nn.initializers.constant(0.07), (), jnp.float32
        )

    def __call__(self, x: Float[Array, "batch seq width"]) -> None:
        """Makes all parameters; the heads are the methods."""
        self.compare(x, x[:, 0])
        self.matched(x)
        self.predict(x)

    def compare(
        self,
        queries: Float[Array, "images queries width"],
        text: Float[Array, "texts width"],
    ) -> Float[Array, "images texts"]:
        """The largest cosine of an image's queries and a text, over the temperature."""
        image = self.image(queries.astype(jnp.float32))
        words = self.text(text.astype(jnp.float32))
        unit = lambda y: (
            y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
        )
        each = jnp.einsum("iqd,td->itq", unit(image), unit(words))
        return jnp.max(each, axis=-1) / self.temperature

    def matched(
        self, queries: Float[Array, "batch queries width"]
    ) -> Float[Array, "batch 2"]:
        """Logits of "no match" and "match", the mean over queries."""
        return jnp.mean(self.match(queries.astype(jnp.float32)), axis=1)

    def predict(
        self, text: Float[Array, "batch words width"]
    ) -> tuple[Float[Array, "batch words width"], Float[Array, " vocab"]]:
        """What is compared with the rows of the embedding of words, and a bias."""
        inner = jax.nn.gelu(self.dense(text.astype(jnp.float32)), approximate=False)
        return self.norm(inner), self.bias


def init_qformer(
    key: Array, config: QFormerConfig, *, embed_width: int = 256
) -> dict[str, dict[str, Array]]:
    """Fresh parameters of a Q-Former and, where it has a vocabulary, of its heads.

    Args:
      key: typed PRNG key.
      config: the sizes.
      embed_width: of the space in which images and texts are compared.

    Returns:
      `{"qformer": ..., "heads": ...}`; `heads` only with a vocabulary.

    Source: Li et al. 2023, arXiv 2301.12597, whose first stage starts from BERT.
      Differs: all weights are drawn.

    Example:
      >>> config = QFormerConfig(
      ...     queries=3, width=8, layers=2, heads=2, mlp_width=16, vocab_size=11)
      >>> sorted(jax.eval_shape(lambda k: init_qformer(k, config), jax.random.key(0)))
      ['heads', 'qformer']
    """
    first, second = jax.random.split(key)
    image = jnp.zeros((1, 1, config.image_width), config.param_dtype)
    ids = jnp.zeros((1, 1), jnp.int32) if config.vocab_size else None
    made = {"qformer": QFormer(config).init(first, image, ids=ids)["params"]}
    if config.vocab_size:
        x = jnp.zeros((1, 1, config.width))
        made["heads"] = QFormerHeads(config, embed_width).init(second, x)["params"]
    return made
