"""CLIP and SigLIP: images and texts as unit vectors of one space, and their scores."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import encoder, tower
from jtok.models import model as core
from jtok.models.compression import CompressedOutput
from jtok.models.compressor import Compressor, check_compressor
from jtok.models.encoder_heads import normal
from jtok.models.image_text import ImageText

__all__ = [
    "ClipOutput",
    "forward",
    "image_embeddings",
    "init_params",
    "text_embeddings",
]

PyTree = Any
_FIRST_SCALE = 2.6592  # the logarithm of 1 / 0.07


@struct.dataclass
class ClipOutput(core.Output):
    """What CLIP returns for `ImageText`.

    `logits` are float32 `[images, texts]` scores, `hidden` those of the texts.

    Attributes:
      image_vectors: `[images, dim]` float32 of unit length.
      text_vectors: `[texts, dim]` float32 of unit length.
      image_hidden: `[images, rows, dim]` the tower's tokens.
      plan: of the tower's tokens, None without `compress`.
    """

    image_vectors: jax.Array
    text_vectors: jax.Array
    image_hidden: jax.Array
    plan: Any = None


def forward(
    params: PyTree,
    config: nn.ClipConfig,
    inputs: Any,
    *,
    positions: Any = None,
    mask: Any = None,
    bias: Any = None,
    cache: Any = None,
    taps: core.Taps | None = None,
    gates: Any = None,
    logits: Any = "all",
    compress: Compressor | None = None,
) -> core.Output:
    """`Model.__call__` of CLIP on `ImageText`.

    `mask` is of the texts; `taps` and `compress` are of the images' tower, and
    `text_embeddings` takes a compressor of texts. Logits are "all" or "none".
    """
    if not isinstance(inputs, ImageText):
        raise ArgumentTypeError(
            f"inputs: got {type(inputs).__name__}, expected ImageText; of one side "
            "alone there are image_embeddings and text_embeddings."
        )
    given = {"positions": positions, "bias": bias, "cache": cache, "gates": gates}
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(f"{name}: got an array, expected None of this model.")
    known = isinstance(logits, str) and logits in ("all", "none")
    got = logits if isinstance(logits, str) else "rows"
    check(known, "logits", got, "'all' or 'none': scores are of images and texts")
    images, seen = _image_side(params, config, inputs.images, taps, compress)
    texts, hidden = _text_side(params, config, inputs.ids, mask, None)
    scores = None
    if logits == "all":
        scale = jnp.exp(params["logit_scale"].astype(jnp.float32)[0])
        scores = scale * jnp.einsum("id,td->it", images, texts)
        if config.score_bias:
            scores = scores + params["logit_bias"].astype(jnp.float32)[0]
    plan = seen.plan if isinstance(seen, CompressedOutput) else None
    return ClipOutput(scores, hidden, seen.taps, None, images, texts, seen.hidden, plan)


def image_embeddings(
    model: core.Model,
    images: Float[Array, "images height width channels"],
    *,
    compress: Any = None,
) -> Float[Array, "images dim"]:
    """Unit vectors of images, in the space that they share with texts.

    Args:
      model: a CLIP model.
      images: `[images, height, width, channels]` normalised pixels.
      compress: what the tower's layers do with tokens; None takes the model's own.

    Returns:
      `[images, dim]` float32 of unit length.

    Raises:
      ArgumentTypeError: another kind of model, or `compress` is no `Compressor`.
      ArgumentError: images of another size.

    Source: Radford et al. 2021, arXiv 2103.00020, figure 3.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="clip")
      >>> image_embeddings(model, jnp.ones((2, 32, 32, 3))).shape
      (2, 16)
    """
    config = _clip_config(model)
    compress = model.compress if compress is None else compress
    check_compressor(compress, config)
    return _image_side(model.params, config, images, None, compress)[0]


def text_embeddings(
    model: core.Model,
    ids: Int[Array, "texts seq"],
    *,
    mask: Any = None,
    compress: Any = None,
) -> Float[Array, "texts dim"]:
    """Unit vectors of texts, in the space that they share with images.

    Args:
      model: a CLIP model.
      ids: `[texts, seq]` ids, each text with its end.
      mask: `[texts, seq]` True for real tokens; None lets all be real, which changes
        nothing where padding comes last.
      compress: what the layers of the texts' encoder do with tokens; None for nothing:
        the model's own compressor is of images.

    Returns:
      `[texts, dim]` float32 of unit length.

    Raises:
      ArgumentTypeError: another kind of model, or `compress` is no `Compressor`.
      ArgumentError: a mask of another shape.

    Source: Radford et al. 2021, arXiv 2103.00020, section 2.4.

    Example:
      >>> from jtok.testing import tiny_model
      >>> text_embeddings(tiny_model(family="clip"), jnp.array([[1, 2, 95]])).shape
      (1, 16)
    """
    config = _clip_config(model)
    check_compressor(compress, config.text)
    return _text_side(model.params, config, ids, mask, compress)[0]


def _clip_config(model: Any) -> nn.ClipConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, nn.ClipConfig):
        kind = type(model if config is None else config).__name__
        raise ArgumentTypeError(f"model: got a {kind}, expected a CLIP model.")
    return config


def _image_side(
    params: PyTree, config: nn.ClipConfig, images: Any, taps: Any, compress: Any
) -> tuple[Array, Any]:
    seen: Any = tower.forward(
        params["vision"], config.vision, images, taps=taps, compress=compress
    )
    return _unit(seen.pooled, params.get("vision_projection")), seen


def _text_side(
    params: PyTree, config: nn.ClipConfig, ids: Any, mask: Any, compress: Any
) -> tuple[Array, Array]:
    ids = jnp.asarray(ids)
    out = encoder.forward(
        params, config.text, ids, mask=mask, logits="none", compress=compress
    )
    good = jnp.issubdtype(ids.dtype, jnp.integer)
    check(good, "ids", f"dtype {ids.dtype}", "integer ids, whose end is looked for")
    if config.text_last:
        at = jnp.full(ids.shape[0], ids.shape[1] - 1)
    elif config.eos_token_id is None:
        at = jnp.argmax(ids, axis=1)
    else:
        at = jnp.argmax(ids == config.eos_token_id, axis=1)
    if isinstance(out, CompressedOutput):
        row = jnp.take_along_axis(out.plan.assign, at[:, None], axis=1)[:, 0]
        at = jnp.maximum(row, 0)
    end = jnp.take_along_axis(out.hidden, at[:, None, None], axis=1)[:, 0]
    return _unit(end, params["text_projection"]), out.hidden


def _unit(pooled: Array, projection: PyTree | None) -> Array:
    made = pooled.astype(jnp.float32)
    if projection is not None:
        kernel, wide = projection["kernel"], jnp.float32
        made = jnp.einsum("bd,de->be", pooled, kernel, preferred_element_type=wide)
        if "bias" in projection:
            made = made + projection["bias"].astype(jnp.float32)[None]
    length = jnp.linalg.norm(made, axis=-1, keepdims=True)
    return made / jnp.maximum(length, 1e-12)


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: nn.ClipConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    text, vision, one, other = jax.random.split(key, 4)
    size, dtype = config.projection, config.dtype
    kernel = lambda key, width: normal(key, (width, size), config.text)
    params: PyTree = {
        **encoder.init_params(config.text, text),
        "vision": tower.init_params(config.vision, vision),
        "text_projection": {"kernel": kernel(one, config.text.width)},
        "logit_scale": jnp.full(1, _FIRST_SCALE, dtype),
    }
    if config.text_last:
        params["text_projection"]["bias"] = jnp.zeros(size, dtype)
    if config.vision_map:
        params["vision_projection"] = {"kernel": kernel(other, config.vision.width)}
    if config.score_bias:
        params["logit_bias"] = jnp.zeros(1, dtype)
    return params
