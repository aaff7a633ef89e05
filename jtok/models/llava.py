"""LLaVA: a decoder in whose prompts vectors of images stand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jtok import nn
from jtok.errors import ArgumentTypeError, check
from jtok.models import cache as caches
from jtok.models import checkpoint, tower
from jtok.models import model as core
from jtok.models import target as targets
from jtok.models.compression import CompressedOutput, Tokens
from jtok.models.compressor import Compressor, check_compressor
from jtok.models.encoder_heads import normal
from jtok.models.encoder_layers import run_layers
from jtok.models.image_text import ImageText
from jtok.ops.plan import Plan
from jtok.ops.segments import pool_segments

__all__ = [
    "ImageFeatures",
    "connect",
    "features_of",
    "forward",
    "image_features",
    "init_cache",
    "init_params",
    "llava_config",
    "target",
    "vision_tower",
]

PyTree = Any


@struct.dataclass
class ImageFeatures:
    """Vectors of images, ready to stand in a prompt.

    Attributes:
      tokens: `[images, rows, dim]` in the space of the decoder's embeddings.
      plan: from the patches of an image, row by row, to the rows; None where none
        merged. A class token that is kept counts as the first.
    """

    tokens: jax.Array
    plan: Any = None


def forward(
    params: PyTree,
    config: nn.LlavaConfig,
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
    """`Model.__call__` of LLaVA on `ImageText`, or on ids without images.

    `compress` acts in the tower, and the ids hold as many of the image's as rows are
    left of it; all else is as the decoder takes it. Ids of images beyond the last
    vector get zeros.
    """
    options: dict[str, Any] = {
        "positions": positions, "mask": mask, "bias": bias, "cache": cache,
        "taps": taps, "gates": gates, "logits": logits,
    }  # fmt: skip
    if not isinstance(inputs, ImageText):
        return core.decoder_forward(params, config.text, inputs, **options)
    features = features_of(params, config, inputs.images, compress)
    vectors = _placed(params, config, inputs.ids, features.tokens)
    out = core.decoder_forward(params, config.text, vectors, **options)
    if features.plan is None:
        return out
    return CompressedOutput(out.logits, out.hidden, out.taps, out.cache, features.plan)


def _placed(
    params: PyTree, config: nn.LlavaConfig, ids: Any, tokens: Array
) -> Float[Array, "batch seq dim"]:
    """Embeddings of the ids, with vectors of images in the place of theirs."""
    ids = jnp.asarray(ids)
    good = ids.ndim == 2 and jnp.issubdtype(ids.dtype, jnp.integer)
    check(good, "ids", f"{ids.dtype} of shape {ids.shape}", "[batch, seq] integers")
    own = ids == config.image_token_id
    count = tokens.shape[0] * tokens.shape[1]
    if not isinstance(own, jax.core.Tracer):
        wanted = f"{count}: {tokens.shape[0]} images of {tokens.shape[1]} vectors"
        found = int(own.sum())
        check(found == count, "ids", f"{found} ids of images", wanted)
    rank = jnp.cumsum(own.reshape(-1)).reshape(own.shape) - 1
    flat = tokens.reshape(count, -1).astype(config.dtype)
    vectors = flat.at[rank].get(mode="fill", fill_value=0)
    held = params["embed"]["tokens"]
    x = held[jnp.clip(ids, 0, config.vocab_size - 1)].astype(config.dtype)
    return jnp.where(own[..., None], vectors, x)


# ---- vectors of images


def image_features(
    model: core.Model,
    images: Float[Array, "images height width channels"],
    *,
    compress: Any = None,
) -> ImageFeatures:
    """Vectors of images as they stand in a prompt: tower, selection, connector.

    The place for what shortens prompts: a `Compressor` acts between the tower's
    layers; a method between tower and decoder takes `tokens` of the result and hands
    fewer of them to `with_images` (`dataclasses.replace(features, tokens=..., plan=
    ...)`); one that needs the tower's keys or vectors before the connector runs
    `vision_tower(model)` with taps, and `connect` on what it keeps.

    Args:
      model: a LLaVA model.
      images: `[images, height, width, channels]` normalised pixels.
      compress: what the tower's layers do with tokens; None takes the model's own.

    Returns:
      `ImageFeatures`.

    Raises:
      ArgumentTypeError: another kind of model, or `compress` is no `Compressor`.
      ArgumentError: images of another size, or a compressor where vectors of several
        layers stand beside each other.

    Source: Liu et al. 2023, arXiv 2310.03744, section 3.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="llava")
      >>> image_features(model, jnp.ones((2, 32, 32, 3))).tokens.shape
      (2, 16, 32)
    """
    config = llava_config(model)
    compress = model.compress if compress is None else compress
    check_compressor(compress, config)
    return features_of(model.params, config, images, compress)


def connect(
    model: core.Model, hidden: Float[Array, "*tokens width"]
) -> Float[Array, "*tokens dim"]:
    """Maps vectors of the tower to the space of the decoder's embeddings.

    Args:
      model: a LLaVA model.
      hidden: `[..., width]` of the tower; of several layers beside each other.

    Returns:
      `[..., dim]` in the model's dtype.

    Raises:
      ArgumentTypeError: another kind of model.

    Source: Liu et al. 2023, arXiv 2310.03744, section 3.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> connect(tiny_model(family="llava"), jnp.ones((3, 32))).shape
      (3, 32)
    """
    return _connected(model.params["connector"], llava_config(model), hidden)


def vision_tower(model: core.Model) -> core.Model:
    """The tower of a joint model, as a model of its own that shares its arrays.

    Args:
      model: LLaVA or CLIP.

    Returns:
      `Model` on images, with the compressor of `model` and what prepares
      its images.

    Raises:
      ArgumentTypeError: another kind of model.

    Source: Radford et al. 2021, arXiv 2103.00020, section 2.4.

    Example:
      >>> from jtok.testing import tiny_model
      >>> vision_tower(tiny_model(family="clip"))(jnp.ones((1, 32, 32, 3))).pooled.shape
      (1, 32)
    """
    config = getattr(model, "config", None)
    if not isinstance(config, nn.LlavaConfig | nn.ClipConfig):
        kind = type(model if config is None else config).__name__
        raise ArgumentTypeError(f"model: got a {kind}, expected LLaVA or CLIP.")
    images = getattr(model.processor, "images", model.processor)
    return core.Model(
        model.params["vision"],
        config.vision,
        processor=images,
        compress=model.compress,
    )


def llava_config(model: Any) -> nn.LlavaConfig:
    """The configuration of a LLaVA model; another is refused."""
    config = getattr(model, "config", None)
    if not isinstance(config, nn.LlavaConfig):
        kind = type(model if config is None else config).__name__
        raise ArgumentTypeError(f"model: got a {kind}, expected a LLaVA model.")
    return config


def features_of(
    params: PyTree, config: nn.LlavaConfig, images: Any, compress: Any
) -> ImageFeatures:
    """`image_features` of parameters, of which it needs the tower and the connector."""
    images = jnp.asarray(images)
    wanted = "[images, height, width, channels] pixels"
    check(images.ndim == 4, "images", f"shape {images.shape}", wanted)
    many = len(config.feature_layers) > 1 and compress is not None
    got = "one with vectors of several layers, of different lengths"
    check(not many, "compress", got, "None")
    hidden, tokens = _seen(params["vision"], config, images, compress)
    plan = tokens.plan
    if config.select == "default":
        hidden, plan = _without_first(hidden, plan)
    return ImageFeatures(_connected(params["connector"], config, hidden), plan)


def _seen(
    params: PyTree, config: nn.LlavaConfig, images: Array, compress: Any
) -> tuple[Array, Tokens]:
    """The tower's vectors after the layers that the connector reads.

    Those of the last have no norm, whatever the tower puts after it.
    """
    vision, run = config.vision, config.num_run
    x, tokens = tower.embed(params, vision, images, None, None, None, None)
    found = {0: x}
    if run:
        blocks = dataclasses.replace(vision.blocks, num_layers=run)
        layers = core.split_layers(params)["layers"][:run]
        inner = sorted(set(config.depths) - {0, run})
        taps = core.Taps(tuple(("resid_post", depth - 1) for depth in inner))
        x, tokens, read = run_layers(layers, blocks, x, tokens, taps, compress)
        found |= {depth: read["resid_post", depth - 1] for depth in inner} | {run: x}
    return jnp.concatenate([found[depth] for depth in config.depths], -1), tokens


def _without_first(hidden: Array, plan: Any) -> tuple[Array, Any]:
    """The rows without that of the first token, in their order."""
    if plan is None:
        return hidden[:, 1:], None
    rows = jnp.arange(plan.num_rows)[None]
    gone = plan.assign[:, :1] == rows
    order = jnp.argsort(gone, axis=1, stable=True)[:, :-1]
    place = jnp.argsort(jnp.argsort(gone, axis=1, stable=True), axis=1)
    take = lambda x: jnp.take_along_axis(x, order, axis=1)
    at = jnp.take_along_axis(place, jnp.maximum(plan.assign, 0), axis=1)
    stays = (plan.assign >= 0) & (at < plan.num_rows - 1)
    assign = jnp.where(stays, at, -1)[:, 1:].astype(jnp.int32)
    keep = jnp.maximum(take(plan.keep) - 1, -1)
    ones = jnp.ones((*assign.shape, 1), jnp.float32)
    size = pool_segments(ones, assign, plan.num_rows - 1, reduce="sum")[..., 0]
    where = jnp.take_along_axis(plan.position, order[..., None], axis=1) - 1
    made = Plan(assign, keep, size, where, take(plan.valid))
    return jnp.take_along_axis(hidden, order[..., None], axis=1), made


def _connected(connector: PyTree, config: nn.LlavaConfig, x: Array) -> Array:
    act = nn.encoder_activation(config.activation)
    for name in ("first", "second"):
        x = act(x) if name == "second" else x
        x = x @ connector[name]["kernel"]
        if "bias" in connector[name]:
            x = x + jnp.broadcast_to(connector[name]["bias"], x.shape)
    return x


# ---- the backbone


def init_params(config: nn.LlavaConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    text, vision, one, other = jax.random.split(key, 4)
    width, dim = config.vision.width * len(config.feature_layers), config.text.width
    connector: PyTree = {}
    for name, key, rows in (("first", one, width), ("second", other, dim)):
        connector[name] = {"kernel": normal(key, (rows, dim), config.vision.blocks)}
        if config.connector_bias:
            connector[name]["bias"] = jnp.zeros(dim, config.dtype)
    return {
        **checkpoint.init_decoder(config.text, text),
        "vision": tower.init_params(config.vision, vision),
        "connector": connector,
    }


def init_cache(config: nn.LlavaConfig, batch: int, capacity: int) -> Any:
    """The decoder's."""
    return caches.init_decoder_cache(config.text, batch, capacity)


def target(config: nn.LlavaConfig, read: Any = ()) -> Any:
    """The decoder's, for prompts without images; `with_images` makes those with."""
    return targets.decoder_target(config.text, read)
