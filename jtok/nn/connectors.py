"""Between an encoder and a language model: fewer tokens, of another width.

Each takes a grid and which of its tokens are real, and gives back a smaller one. They
compute in the dtype of their input; norms' statistics are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import check
from jtok.ops.grids import pixel_unshuffle, pool_grid, stack_frames

__all__ = [
    "FrameConnector",
    "PoolingConnector",
    "SpaceTimeConnector",
    "UnshuffleConnector",
]

_CONV_EPS, _EPS = 1e-6, 1e-5


def _dense(features: int, like: Array, dtype: str, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=like.dtype, param_dtype=dtype, name=name)


def _norm(like: Array, eps: float, dtype: str, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        eps, use_fast_variance=False, dtype=like.dtype, param_dtype=dtype, name=name
    )


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _real_only(x: Array, valid: Array | None) -> Array:
    """Zeros where a token is not real, as behind the edge of the grid."""
    return x if valid is None else jnp.where(valid[..., None], x, 0)


class UnshuffleConnector(nn.Module):
    """Squares of an image's tokens in one each, then norm, linear, GELU, linear.

    Attributes:
      features: width that comes out.
      factor: side of a square.
      param_dtype: dtype of the parameters.

    Source: InternVL 1.5, arXiv 2404.16821, and its code.

    Example:
      >>> connector, x = UnshuffleConnector(6), jnp.ones((1, 4, 4, 3))
      >>> run, key = connector.init_with_output, jax.random.key(0)
      >>> (y, valid), _ = jax.eval_shape(run, key, x)
      >>> y.shape, valid.shape
      ((1, 2, 2, 6), (1, 2, 2))
    """

    features: int
    factor: int = 2
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width dim"],
        valid: Bool[Array, "batch height width"] | None = None,
    ) -> tuple[
        Float[Array, "batch rows columns features"], Bool[Array, "batch rows columns"]
    ]:
        dtype = self.param_dtype
        wide = pixel_unshuffle(_real_only(x, valid), self.factor)
        if valid is None:
            there = jnp.ones(wide.shape[:-1], bool)
        else:
            flags = pixel_unshuffle(valid[..., None].astype(jnp.float32), self.factor)
            there = jnp.any(flags > 0, axis=-1)
        wide = _norm(x, _EPS, dtype, "norm")(wide)
        wide = _gelu(_dense(self.features, x, dtype, "up")(wide))
        wide = _dense(self.features, x, dtype, "down")(wide)
        return _real_only(wide, there), there


class FrameConnector(nn.Module):
    """Neighbouring frames side by side, then linear, ReLU, linear.

    Attributes:
      features: width that comes out.
      hidden: width between the two linear maps.
      count: frames of a stack.
      param_dtype: dtype of the parameters.

    Source: SLAM-ASR, arXiv 2402.08846.

    Example:
      >>> connector, x = FrameConnector(6, hidden=8), jnp.ones((1, 12, 3))
      >>> run, key = connector.init_with_output, jax.random.key(0)
      >>> (y, _), _ = jax.eval_shape(run, key, x)
      >>> y.shape
      (1, 2, 6)
    """

    features: int
    hidden: int = 2048
    count: int = 5
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch frames dim"],
        valid: Bool[Array, "batch frames"] | None = None,
    ) -> tuple[Float[Array, "batch stacks features"], Bool[Array, "batch stacks"]]:
        dtype = self.param_dtype
        wide, there = stack_frames(x, self.count, valid=valid)
        wide = jax.nn.relu(_dense(self.hidden, x, dtype, "up")(wide))
        wide = _dense(self.features, x, dtype, "down")(wide)
        return _real_only(wide, there), there


class PoolingConnector(nn.Module):
    """Linear, GELU, linear; squares averaged; a depthwise convolution added.

    The convolution tells where in the image a token stands.

    Attributes:
      features: width that comes out.
      window: side of a square.
      param_dtype: dtype of the parameters.

    Source: the second lightweight projector of MobileVLM V2, arXiv 2402.03766, section
      3.3. Differs: a window in place of a fixed 12 x 12 grid.

    Example:
      >>> connector, x = PoolingConnector(6), jnp.ones((1, 4, 4, 3))
      >>> run, key = connector.init_with_output, jax.random.key(0)
      >>> (y, _), _ = jax.eval_shape(run, key, x)
      >>> y.shape
      (1, 2, 2, 6)
    """

    features: int
    window: int = 2
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width dim"],
        valid: Bool[Array, "batch height width"] | None = None,
    ) -> tuple[
        Float[Array, "batch rows columns features"], Bool[Array, "batch rows columns"]
    ]:
        dtype = self.param_dtype
        wide = _gelu(_dense(self.features, x, dtype, "up")(x))
        wide = _dense(self.features, x, dtype, "down")(wide)
        pooled, there = pool_grid(wide, (self.window, self.window), valid=valid)
        near = nn.Conv(
            self.features, (3, 3), feature_group_count=self.features,
            dtype=x.dtype, param_dtype=dtype, name="place",
        )  # fmt: skip
        return _real_only(pooled + near(pooled), there), there


class _Gate(nn.Module):
    """Every channel times a number in 0 to 1 that the frame's mean decides."""

    hidden: int
    param_dtype: str

    @nn.compact
    def __call__(self, x: Array, valid: Array) -> Array:
        weight = valid[..., None].astype(jnp.float32)
        total = jnp.sum(x.astype(jnp.float32) * weight, axis=(1, 2), keepdims=True)
        count = jnp.sum(weight, axis=(1, 2), keepdims=True)
        mean = (total / jnp.maximum(count, 1.0)).astype(x.dtype)
        inner = jax.nn.silu(_dense(self.hidden, x, self.param_dtype, "down")(mean))
        gate = _dense(x.shape[-1], x, self.param_dtype, "up")(inner)
        return x * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(x.dtype)


class _RegBlock(nn.Module):
    """Linear, depthwise 3 x 3, gate, linear, each normed, on top of a shortcut."""

    features: int
    param_dtype: str

    @nn.compact
    def __call__(self, x: Array, valid: Array) -> Array:
        features, dtype = self.features, self.param_dtype

        def conv(x: Array, size: int, name: str, groups: int = 1) -> Array:
            layer = nn.Conv(
                features, (size, size), use_bias=False, feature_group_count=groups,
                dtype=x.dtype, param_dtype=dtype, name=name,
            )  # fmt: skip
            return _norm(x, _CONV_EPS, dtype, f"{name}_norm")(layer(x))

        inner = jax.nn.silu(conv(x, 1, "reduce"))
        inner = _real_only(inner, valid)
        inner = jax.nn.silu(conv(inner, 3, "spatial", features))
        hidden = max(round(x.shape[-1] / 4), 1)
        inner = conv(_Gate(hidden, dtype, name="gate")(inner, valid), 1, "expand")
        same = x.shape[-1] == features
        return jax.nn.silu(inner + (x if same else conv(x, 1, "shortcut")))


class SpaceTimeConnector(nn.Module):
    """Convolutions in every frame, one over space and time, again in every frame.

    Attributes:
      features: width that comes out.
      hidden: width of the convolutions; None takes `features`.
      depth: blocks before and behind the strided convolution.
      window: frames, rows and columns that become one token.
      param_dtype: dtype of the parameters.

    Source: the connector of VideoLLaMA 2, arXiv 2406.07476, section 2.1; blocks are
      those of RegNet, arXiv 2003.13678, with layer norms over channels. Differs: sides
      that the window does not divide are refused, so nothing is padded.

    Example:
      >>> connector, x = SpaceTimeConnector(6, depth=1), jnp.ones((1, 2, 4, 4, 3))
      >>> run, key = connector.init_with_output, jax.random.key(0)
      >>> (y, _), _ = jax.eval_shape(run, key, x)
      >>> y.shape
      (1, 1, 2, 2, 6)
    """

    features: int
    hidden: int | None = None
    depth: int = 4
    window: tuple[int, int, int] = (2, 2, 2)
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch frames height width dim"],
        valid: Bool[Array, "batch frames height width"] | None = None,
    ) -> tuple[
        Float[Array, "batch times rows columns features"],
        Bool[Array, "batch times rows columns"],
    ]:
        grid, dtype = x.shape[1:4], self.param_dtype
        hidden = self.hidden or self.features
        good = all(n % step == 0 for n, step in zip(grid, self.window, strict=True))
        check(good, "grid", grid, f"sides that the window {self.window} divides")
        real = jnp.ones(x.shape[:-1], bool) if valid is None else valid
        x = self._blocks(_real_only(x, real), real, hidden, "before")
        sampler = nn.Conv(
            hidden, self.window, self.window, "VALID",
            dtype=x.dtype, param_dtype=dtype, name="sampler",
        )  # fmt: skip
        x = jax.nn.silu(sampler(_real_only(x, real)))
        flags = real[..., None].astype(jnp.float32)
        there = pool_grid(flags, self.window, reduce="max")[0][..., 0] > 0
        x = self._blocks(_real_only(x, there), there, hidden, "behind")
        x = _gelu(_dense(self.features, x, dtype, "up")(x))
        x = _dense(self.features, x, dtype, "down")(x)
        return _real_only(x, there), there

    def _blocks(self, x: Array, valid: Array, hidden: int, name: str) -> Array:
        """The stage of blocks that see one frame each."""
        batch, frames = x.shape[:2]
        x = x.reshape(batch * frames, *x.shape[2:])
        valid = valid.reshape(batch * frames, *valid.shape[2:])
        for layer in range(self.depth):
            x = _RegBlock(hidden, self.param_dtype, name=f"{name}_{layer}")(x, valid)
        return x.reshape(batch, frames, *x.shape[1:])
