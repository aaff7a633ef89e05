"""Networks that read the pieces of a token and write its embedding row.

Parameter names are those of the released checkpoints, so that a checkpoint's tree is
the tree of parameters.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check

__all__ = ["Hypernetwork", "HypernetworkConfig", "PieceMixer", "PieceMixerConfig"]

_INIT = nn.initializers.normal(0.02)
_ENCODER_EPS, _BLOCK_EPS, _MIXER_EPS = 1e-5, 1e-6, 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """Sizes of a network that predicts embedding rows from pieces.

    Attributes:
      row_width: width of one predicted row.
      source_size: rows of the source vocabulary; ids from here on are fallback rows.
      pad_id: the id that fills surface forms up.
      hidden: width of the encoder.
      intermediate: width inside its MLPs.
      heads: attention heads; they divide `hidden`.
      layers: of the encoder.
      maxlen: pieces of a surface form that are read.
      extra: fallback rows, for bytes that the source vocabulary lacks.
      tied: one row a token; else an input and an output row are read and predicted.
      languages: number of language embeddings; 0 for no language token.
      predict_bias: there is a head for the bias of the unembedding.
      rescale: there are frozen rescalers before and behind the network.
      max_positions: rows of the position table.
      dtype: of the computation behind the input projection, "float32" or "bfloat16".

    Raises:
      ArgumentError: a size that is not positive, heads that do not divide `hidden`, or
        a padding id that is no whole number.

    Example:
      >>> HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2).input_width
      8
    """

    row_width: int
    source_size: int
    pad_id: int
    hidden: int
    intermediate: int
    heads: int
    layers: int = 3
    maxlen: int = 7
    extra: int = 0
    tied: bool = True
    languages: int = 0
    predict_bias: bool = False
    rescale: bool = True
    max_positions: int = 514
    dtype: str = "float32"

    def __post_init__(self) -> None:
        shape = ("row_width", "source_size", "hidden", "intermediate")
        for name in (*shape, "heads", "layers", "maxlen", "max_positions"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "at least 1")
        for name in ("extra", "languages"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 0, name, value, "at least 0")
        pad = self.pad_id
        good = isinstance(pad, int) and 0 <= pad < self.source_size + self.extra
        check(good, "pad_id", pad, f"an id in 0..{self.source_size + self.extra - 1}")
        check(self.hidden % self.heads == 0, "heads", self.heads, "a divisor of hidden")
        fits = self.maxlen <= self.max_positions
        check(fits, "maxlen", self.maxlen, f"at most {self.max_positions} positions")
        known = ("float32", "bfloat16")
        check(self.dtype in known, "dtype", self.dtype, "'float32' or 'bfloat16'")

    @property
    def input_width(self) -> int:
        """Width of a source row: one row, or input and output row side by side."""
        return self.row_width if self.tied else 2 * self.row_width


class Rescaler(nn.Module):
    """`w x + b` for every dimension; the identity until it is fitted.

    Attributes:
      shape: of `w` and `b`; it broadcasts against the last axes of `x`.
    """

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        w = self.param("w", nn.initializers.ones, self.shape)
        b = self.param("b", nn.initializers.zeros, self.shape)
        lead = (1,) * (x.ndim - len(self.shape))
        return x * w.reshape(*lead, *w.shape) + b.reshape(*lead, *b.shape)


def _norm(name: str, eps: float, dtype: str) -> nn.LayerNorm:
    """Statistics are taken in float32, whatever `dtype` is."""
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


class Residual(nn.Module):
    """`LN(x + gelu(dense2(gelu(dense1 x))))`, with the tanh form of the gelu."""

    intermediate: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        h = nn.Dense(self.intermediate, dtype=self.dtype, name="dense1")(x)
        h = nn.Dense(x.shape[-1], dtype=self.dtype, name="dense2")(jax.nn.gelu(h))
        return _norm("ln", _BLOCK_EPS, self.dtype)(x + jax.nn.gelu(h))


class Projection(nn.Module):
    """A residual block and a linear map, in the order that `inward` says."""

    features: int
    intermediate: int
    inward: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... features"]:
        block, dense = (
            ("layers_1", "layers_0") if self.inward else ("layers_0", "layers_1")
        )
        dtype = self.dtype if self.inward else "float32"
        linear = nn.Dense(self.features, dtype=dtype, name=dense)
        residual = Residual(self.intermediate, self.dtype, name=block)
        return residual(linear(x)) if self.inward else linear(residual(x))


class SelfAttention(nn.Module):
    """Attention of the pieces of one token to each other; softmax in float32.

    A row without any real piece attends uniformly.
    """

    heads: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch seq dim"], mask: Bool[Array, "batch seq"]
    ) -> Float[Array, "batch seq dim"]:
        batch, seq, dim = x.shape
        split = lambda name: nn.Dense(
            dim, kernel_init=_INIT, dtype=self.dtype, name=name
        )(x).reshape(batch, seq, self.heads, dim // self.heads)
        query, key, value = (split(name) for name in ("query", "key", "value"))
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
        ) / jnp.sqrt(jnp.float32(dim // self.heads))
        low = jnp.finfo(jnp.float32).min
        # Added, so that a row of nothing but padding is uniform and finite.
        scores = scores + jnp.where(mask, 0.0, low)[:, None, None]
        weights = jax.nn.softmax(jnp.maximum(scores, low), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        return mixed.reshape(batch, seq, dim)


class _Output(nn.Module):
    """`LN(residual + dense x)`."""

    dtype: str

    @nn.compact
    def __call__(self, x: Array, residual: Array) -> Array:
        features = residual.shape[-1]
        dense = nn.Dense(features, kernel_init=_INIT, dtype=self.dtype, name="dense")
        return _norm("LayerNorm", _ENCODER_EPS, self.dtype)(dense(x) + residual)


class _Attention(nn.Module):
    heads: int
    dtype: str

    def setup(self) -> None:
        self.attend = SelfAttention(self.heads, self.dtype, name="self")
        self.output = _Output(self.dtype)

    def __call__(self, x: Array, mask: Array) -> Array:
        return self.output(self.attend(x, mask), x)


class _Intermediate(nn.Module):
    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = nn.Dense(
            self.features, kernel_init=_INIT, dtype=self.dtype, name="dense"
        )
        return jax.nn.gelu(dense(x), approximate=False)


class EncoderLayer(nn.Module):
    """A layer that normalises behind each sum, with the exact gelu."""

    config: HypernetworkConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch seq dim"], mask: Bool[Array, "batch seq"]
    ) -> Float[Array, "batch seq dim"]:
        config, dtype = self.config, self.config.dtype
        x = _Attention(config.heads, dtype, name="attention")(x, mask)
        h = _Intermediate(config.intermediate, dtype, name="intermediate")(x)
        return _Output(dtype, name="output")(h, x)


class _Layers(nn.Module):
    config: HypernetworkConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        for index in range(self.config.layers):
            x = EncoderLayer(self.config, name=str(index))(x, mask)
        return x


class _Encoder(nn.Module):
    config: HypernetworkConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        return _Layers(self.config, name="layer")(x, mask)


class _Embeddings(nn.Module):
    """Adds types and positions, and appends the language; then a norm."""

    config: HypernetworkConfig

    @nn.compact
    def __call__(self, x: Array, language: Array | None) -> Array:
        config = self.config
        table = lambda rows, name: nn.Embed(
            rows, config.hidden, embedding_init=_INIT, name=name
        )
        kind = table(1, "token_type_embeddings")(jnp.zeros((1, 1), jnp.int32))
        places = jnp.arange(x.shape[1])[None]
        x = x + kind + table(config.max_positions, "position_embeddings")(places)
        if config.languages:
            row = table(config.languages, "lang_embedding")(language)
            row = jnp.broadcast_to(row[None, None], (x.shape[0], 1, config.hidden))
            x = jnp.concatenate([x, row], axis=1)
        return _norm("LayerNorm", _ENCODER_EPS, config.dtype)(x)


class _Model(nn.Module):
    config: HypernetworkConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array, language: Array | None) -> Array:
        x = _Embeddings(self.config, name="embeddings")(x, language)
        if self.config.languages:
            mask = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)
        return _Encoder(self.config, name="encoder")(x, mask)


class Hypernetwork(nn.Module):
    """Rows of tokens from the source rows of their pieces.

    Attributes:
      config: the sizes.
    """

    config: HypernetworkConfig

    @nn.compact
    def __call__(
        self,
        forms: Int[Array, "tokens pieces"],
        source: Float[Array, "source width"],
        language: Int[Array, ""] | None = None,
    ) -> tuple[Array, Array | None, Array]:
        config = self.config
        x = source[jnp.clip(forms, 0, config.source_size - 1)].astype(jnp.float32)
        if config.rescale:
            x = Rescaler((1, config.input_width), name="in_scaler")(x)
        if config.extra:
            fallback = nn.Embed(
                config.extra, config.input_width, embedding_init=_INIT,
                name="fallback_embeddings",
            )  # fmt: skip
            more = forms - config.source_size
            other = fallback(jnp.clip(more, 0, config.extra - 1))
            x = jnp.where((more >= 0)[..., None], other, x)
        project = Projection(
            config.hidden, config.intermediate, True, config.dtype,
            name="input_projection",
        )  # fmt: skip
        mask = forms != config.pad_id
        h = _Model(config, name="model")(project(x), mask, language)[:, 0]
        given = self._head("output_projection", "scaler", h)
        out = None
        if not config.tied:
            out = self._head("output_projection_out", "out_scaler", h)
        bias = jnp.zeros(forms.shape[0], jnp.float32)
        if config.predict_bias:
            bias = nn.Dense(1, dtype="float32", name="bias_projection")(h)[:, 0]
        return given, out, bias

    def _head(self, name: str, scaler: str, h: Array) -> Array:
        config = self.config
        rows = Projection(
            config.row_width, config.intermediate, False, config.dtype, name=name
        )(h)
        if config.rescale:
            rows = Rescaler((1, config.row_width), name=scaler)(rows)
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceMixerConfig:
    """Sizes of a network that corrects the pooled rows of a token's pieces.

    Attributes:
      row_width: width of a row.
      kinds: 1 for tied rows, 2 for input and output rows.
      hidden: width inside.
      intermediate: width inside the MLPs.
      layers: number of blocks.
      max_pieces: rows of the position table.
      alpha: size of the correction, over the root of `row_width`.
      pooling: of the pieces' states, "first" or "mean".
      row_pooling: of their rows; None as the states.
      widen: a linear map goes before; None where `hidden` is not `kinds * row_width`.
      attention_heads: let the pieces see each other; 0 for MLPs alone.

    Raises:
      ArgumentError: a size out of range, or another pooling.

    Example:
      >>> PieceMixerConfig(row_width=8, kinds=2, hidden=16, intermediate=32).layers
      2
    """

    row_width: int
    kinds: int = 1
    hidden: int
    intermediate: int
    layers: int = 2
    max_pieces: int = 16
    alpha: float = 1.0
    pooling: Literal["first", "mean"] = "first"
    row_pooling: Literal["first", "mean"] | None = None
    widen: bool | None = None
    attention_heads: int = 0

    def __post_init__(self) -> None:
        for name in ("row_width", "hidden", "intermediate", "layers", "max_pieces"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "at least 1")
        check(self.kinds in (1, 2), "kinds", self.kinds, "1 (tied) or 2 (untied)")
        known = ("first", "mean")
        check(self.pooling in known, "pooling", self.pooling, "'first' or 'mean'")
        rows = self.row_pooling
        good = rows is None or rows in known
        check(good, "row_pooling", rows, "None, 'first' or 'mean'")
        good = self.widen is not False or self.hidden == self.kinds * self.row_width
        check(good, "widen", self.widen, f"None or True for {self.hidden} inside")
        heads = self.attention_heads
        good = heads == 0 or (heads > 0 and self.hidden % heads == 0)
        check(good, "attention_heads", heads, f"0 or a divisor of {self.hidden}")


class _MixerLayer(nn.Module):
    config: PieceMixerConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        config = self.config
        if config.attention_heads:
            mixed = SelfAttention(config.attention_heads, "float32", name="attention")
            norm = _norm("post_attention_layernorm", _MIXER_EPS, "float32")
            x = norm(x + mixed(x, mask))
        mlp = _Mlp(config.intermediate, name="mlp")
        return _norm("post_mlp_layernorm", _MIXER_EPS, "float32")(x + mlp(x))


class _Mlp(nn.Module):
    intermediate: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.Dense(self.intermediate, kernel_init=_INIT, name="intermediate")(x)
        return nn.Dense(x.shape[-1], kernel_init=_INIT, name="output")(jax.nn.gelu(h))


class _Mixer(nn.Module):
    config: PieceMixerConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        config = self.config
        table = nn.Embed(
            config.max_pieces, config.hidden, embedding_init=_INIT,
            name="position_embeddings",
        )  # fmt: skip
        x = x + table(jnp.arange(x.shape[1])[None])
        for index in range(config.layers):
            x = _MixerLayer(config, name=f"layers_{index}")(x, mask)
        return x


class PieceMixer(nn.Module):
    """Pooled rows of the pieces plus a learnt correction, which starts at zero.

    Attributes:
      config: the sizes.
    """

    config: PieceMixerConfig

    @nn.compact
    def __call__(
        self,
        rows: Float[Array, "tokens pieces kinds width"],
        mask: Bool[Array, "tokens pieces"],
    ) -> Float[Array, "tokens kinds width"]:
        config = self.config
        count, pieces, kinds, width = rows.shape
        shape = (1, kinds, width)
        scaled = Rescaler(shape, name="in_rescaler")(rows.astype(jnp.float32))
        x = scaled.reshape(count, pieces, kinds * width)
        if config.widen or config.hidden != kinds * width:
            x = nn.Dense(config.hidden, kernel_init=_INIT, name="input_linear")(x)
        x = _Mixer(config, name="transformer")(x, mask)
        last = nn.Dense(
            kinds * width, kernel_init=nn.initializers.zeros, name="output_linear"
        )
        change = last(_pooled(x, mask, config.pooling)).reshape(count, kinds, width)
        step = config.alpha / jnp.sqrt(jnp.float32(config.row_width))
        own = _pooled(scaled, mask, config.row_pooling or config.pooling)
        return Rescaler((kinds, width), name="out_rescaler")(own + step * change)


def _pooled(x: Array, mask: Array, how: str) -> Array:
    """Of the second axis: its first entry, or the mean of those that count."""
    if how == "first":
        return x[:, 0]
    weight = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)).astype(x.dtype)
    return jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
