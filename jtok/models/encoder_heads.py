"""What stands on an encoder: the masked-LM head, poolers, and their parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok import nn
from jtok.errors import check
from jtok.models import model as core

__all__ = [
    "head_features",
    "init_head",
    "init_norm",
    "masked_features",
    "masked_logits",
    "masked_rows",
    "norm",
    "normal",
]

PyTree = Any


def norm(config: nn.EncoderConfig, params: PyTree, x: Array) -> Array:
    made: Any = nn.EncoderNorm(config).apply({"params": params}, x)
    return made


def masked_features(
    params: PyTree, config: nn.EncoderConfig, hidden: Float[Array, "*tokens dim"]
) -> Float[Array, "*tokens dim"]:
    """What the masked-LM head compares with its rows: map, activation, norm.

    With `masked_rows` this lets a loss or an arg-max go through the vocabulary in
    pieces (`jtok.ops.cross_entropy`, `jtok.ops.readout`) instead of writing logits.

    Args:
      params: of the model.
      config: the model's.
      hidden: `[..., dim]` hidden states of the tokens that are predicted.

    Returns:
      `[..., dim]` in the dtype of `hidden`.

    Raises:
      ArgumentError: the model has no masked-LM head.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="bert")
      >>> masked_features(model.params, model.config, jnp.ones((2, 32))).shape
      (2, 32)
    """
    _check_masked(config)
    return head_features(params["masked_lm"], config, hidden)


def masked_rows(
    params: PyTree, config: nn.EncoderConfig
) -> tuple[Float[Array, "vocab dim"], Float[Array, " vocab"] | None]:
    """The rows that `masked_features` are compared with, and their bias.

    Args:
      params: of the model.
      config: the model's.

    Returns:
      `[vocab, dim]` rows, those of the embedding where the head is tied to it, and
      `[vocab]` biases or None.

    Raises:
      ArgumentError: the model has no masked-LM head.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="bert")
      >>> masked_rows(model.params, model.config)[0].shape
      (96, 32)
    """
    _check_masked(config)
    held = params["embed"]["tokens"] if config.tied else params["unembed"]["kernel"]
    return held, params["masked_lm"].get("bias")


def _check_masked(config: nn.EncoderConfig) -> None:
    good = config.head == "masked_lm"
    check(good, "model", f"one with head={config.head!r}", "a masked-LM head")


def head_features(
    head: PyTree, config: nn.EncoderConfig, hidden: Array, act: str | None = None
) -> Array:
    """A head's map, activation and norm, each where the head has it."""
    if "dense" in head:
        dense = nn.Linear(config.width, config.head_dense_bias, config.dtype)
        made: Any = dense.apply({"params": head["dense"]}, hidden)
        hidden = _activated(act or config.head_activation, made)
    return norm(config, head["norm"], hidden) if "norm" in head else hidden


def _activated(name: str, x: Array) -> Array:
    return jnp.tanh(x) if name == "tanh" else nn.encoder_activation(name)(x)


def masked_logits(
    params: PyTree, config: nn.EncoderConfig, hidden: Array, which: Any
) -> Array | None:
    if config.head != "masked_lm":
        known = isinstance(which, str) and which in ("none", "last", "all")
        got = which if isinstance(which, str) else "rows"
        check(known, "logits", got, "'none': this encoder has no masked-LM head")
        return None
    if not isinstance(which, str):
        index = jnp.asarray(which)
        good = index.ndim == 2 and index.shape[0] == hidden.shape[0]
        check(good, "logits", f"shape {index.shape}", "[batch, rows] indices")
        hidden = jnp.take_along_axis(hidden, index[..., None], axis=1)
        which = "all"
    if which == "last":
        hidden, which = hidden[:, -1:], "all"
    if which == "all":
        hidden = masked_features(params, config, hidden)
    rows, bias = masked_rows(params, config)
    unembed = {"kernel": rows} if bias is None else {"kernel": rows, "bias": bias}
    return core.logits_of({"unembed": unembed}, hidden, which)


def normal(
    key: jax.Array, shape: tuple[int, ...], config: nn.EncoderConfig
) -> jax.Array:
    return (0.02 * jax.random.normal(key, shape)).astype(config.dtype)


def init_norm(config: nn.EncoderConfig) -> PyTree:
    x = jnp.zeros((1, config.width), config.dtype)
    return nn.EncoderNorm(config).init(jax.random.key(0), x)["params"]


def init_head(config: nn.EncoderConfig, key: jax.Array) -> PyTree:
    """Random parameters of what stands on an encoder: pooler, head, next sentence."""
    pooler, dense, labels, following = jax.random.split(key, 4)
    made: PyTree = {}
    if config.pooler:
        made["pooler"] = {"dense": _linear(config, pooler, config.width)}
    if config.next_sentence:
        made["next_sentence"] = _linear(config, following, 2)
    if config.head is None:
        return made
    head: PyTree = {}
    if config.head_dense:
        bias = config.head_dense_bias
        head["dense"] = _linear(config, dense, config.width, bias)
    if config.head_norm:
        head["norm"] = init_norm(config)
    if config.head != "masked_lm":
        head["labels"] = _linear(config, labels, config.num_labels)
    elif config.head_bias:
        head["bias"] = jnp.zeros(config.vocab_size, config.dtype)
    if config.head == "masked_lm" and not config.tied:
        rows = normal(labels, (config.vocab_size, config.width), config)
        made["unembed"] = {"kernel": rows}
    return made | {config.head: head}


def _linear(
    config: nn.EncoderConfig, key: jax.Array, features: int, bias: bool = True
) -> PyTree:
    kernel = {"kernel": normal(key, (config.width, features), config)}
    return kernel | ({"bias": jnp.zeros(features, config.dtype)} if bias else {})
