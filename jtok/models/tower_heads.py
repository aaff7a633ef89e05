"""One vector of an image, and labels of it, whatever became of its tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok import nn
from jtok.models import model as core
from jtok.models.compression import CompressedOutput, Tokens, size_bias
from jtok.models.encoder_heads import init_norm, norm, normal

__all__ = ["CompressedTowerOutput", "TowerOutput", "init_tower_head", "tower_output"]

PyTree = Any


@struct.dataclass
class TowerOutput(core.Output):
    """What a tower returns.

    Attributes:
      pooled: `[batch, dim]` one vector of each image, as `TowerConfig.pooling` says;
        what the labels are read off. None where it says None.
    """

    pooled: jax.Array | None


@struct.dataclass
class CompressedTowerOutput(CompressedOutput):
    """What a tower returns with `compress=`: a plan, too.

    Attributes:
      pooled: as `TowerOutput.pooled`; means count a row as often as its size says.
    """

    pooled: jax.Array | None


def tower_output(
    params: PyTree, config: nn.TowerConfig, x: Array, tokens: Tokens,
    read: dict[Any, Array], sizes: Array | None, labels: bool,
) -> core.Output:  # fmt: skip
    """What follows the last block.

    Args:
      params: of the tower.
      config: the tower's.
      x: `[batch, rows, dim]` stream after the last block.
      tokens: what is known of the rows.
      read: taps.
      sizes: `[batch, rows]` how often attention counts a row, or None.
      labels: whether to compute logits.

    Returns:
      `TowerOutput`, with a plan `CompressedTowerOutput`.
    """
    hidden = x
    if not config.norm_pooled:
        hidden = norm(config.blocks, params["final_norm"], x)
    pooled = _pooled(params, config, hidden, tokens, sizes)
    if config.norm_pooled and pooled is not None:
        pooled = norm(config.blocks, params["final_norm"], pooled)
    logits = None
    if labels and config.num_labels and pooled is not None:
        logits = _labels(params["sequence"], pooled)
        if config.distill_labels:
            taught = _first_row(hidden, tokens, 1)
            logits = (logits + _labels(params["distill"], taught)) / 2
    if tokens.plan is None:
        return TowerOutput(logits, hidden, read, None, pooled)
    return CompressedTowerOutput(logits, hidden, read, None, tokens.plan, pooled)


def _pooled(
    params: PyTree, config: nn.TowerConfig, hidden: Array, tokens: Tokens, sizes: Any
) -> Array | None:
    if config.pooling is None:
        return None
    if config.pooling == "attention":
        return _attended(params["pooler"], config, hidden, tokens, sizes)
    if config.pooling == "mean":
        return _mean(config, hidden, tokens)
    first = _first_row(hidden, tokens, 0)
    if config.pooling == "pooler":
        return jnp.tanh(_linear(params["pooler"]["dense"], first))
    if config.pooling == "cls_mean":
        return jnp.concatenate([first, _mean(config, hidden, tokens)], axis=-1)
    return first


def _first_row(hidden: Array, tokens: Tokens, index: int) -> Array:
    """The row that one of the first tokens is in."""
    if tokens.plan is None:
        return hidden[:, index]
    at = jnp.maximum(tokens.plan.assign[:, index], 0)
    return jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]


def _mean(config: nn.TowerConfig, hidden: Array, tokens: Tokens) -> Array:
    """The mean of the patches: of rows of several, by how many they hold."""
    batch, rows = hidden.shape[:2]
    if tokens.plan is None:
        real = jnp.ones((batch, rows), bool) if tokens.mask is None else tokens.mask
        first = jnp.arange(rows)[None] < config.prefix
        weight = (real & ~first).astype(jnp.float32)
    else:
        own = jnp.zeros((batch, rows), bool)
        for index in range(config.prefix):
            at = tokens.plan.assign[:, index : index + 1]
            own = own | (at == jnp.arange(rows)[None])
        weight = jnp.where(tokens.plan.valid & ~own, tokens.plan.size, 0.0)
    total = jnp.maximum(weight.sum(axis=1, keepdims=True), 1.0)
    wide = jnp.einsum("bn,bnd->bd", weight / total, hidden.astype(jnp.float32))
    return wide.astype(hidden.dtype)


def _attended(
    pooler: PyTree, config: nn.TowerConfig, hidden: Array, tokens: Tokens, sizes: Any
) -> Array:
    """What a learned query attends to, and an MLP on top."""
    batch = hidden.shape[0]
    heads = lambda name, x: _linear(pooler[name], x).reshape(
        *x.shape[:-1], config.num_heads, config.head_dim
    )
    key, value = heads("key", hidden), heads("value", hidden)
    query = heads("query", pooler["probe"].astype(hidden.dtype))
    scores = jnp.einsum(
        "hd,bnhd->bhn", query, key, preferred_element_type=jnp.float32
    ) * (config.head_dim**-0.5)
    if sizes is not None:
        scores = scores + size_bias(sizes)[:, :, 0]
    if tokens.mask is not None:
        scores = jnp.where(tokens.mask[:, None], scores, -jnp.inf)
    weight = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhn,bnhd->bhd", weight, value).reshape(batch, config.width)
    x = _linear(pooler["out"], mixed)
    act = nn.encoder_activation(config.activation)
    inner = norm(config.blocks, pooler["norm"], x)
    return x + _linear(pooler["mlp"]["down"], act(_linear(pooler["mlp"]["up"], inner)))


def _linear(held: PyTree, x: Array) -> Array:
    y = x @ held["kernel"]
    return y + jnp.broadcast_to(held["bias"], y.shape)


def _labels(head: PyTree, pooled: Array) -> Array:
    kernel, bias = head["labels"]["kernel"], head["labels"]["bias"]
    made = jnp.einsum("bd,dl->bl", pooled, kernel, preferred_element_type=jnp.float32)
    return made + bias.astype(jnp.float32)[None]


# ---- new parameters


def init_tower_head(config: nn.TowerConfig, key: jax.Array) -> PyTree:
    """Random parameters of what stands on a tower: pooler and labels."""
    keys = jax.random.split(key, 9)
    width, blocks = config.width, config.blocks
    made: PyTree = {}

    def linear(key: jax.Array, rows: int, features: int) -> PyTree:
        kernel = normal(key, (rows, features), blocks)
        return {"kernel": kernel, "bias": jnp.zeros(features, config.dtype)}

    if config.pooling == "pooler":
        made["pooler"] = {"dense": linear(keys[0], width, width)}
    if config.pooling == "attention":
        names = ("query", "key", "value", "out")
        made["pooler"] = {n: linear(k, width, width) for n, k in zip(names, keys[:4])}
        made["pooler"] |= {
            "probe": normal(keys[4], (width,), blocks),
            "norm": init_norm(blocks),
            "mlp": {
                "up": linear(keys[5], width, config.mlp_width),
                "down": linear(keys[6], config.mlp_width, width),
            },
        }
    if config.num_labels:
        wide = 2 * width if config.pooling == "cls_mean" else width
        made["sequence"] = {"labels": linear(keys[7], wide, config.num_labels)}
    if config.distill_labels:
        made["distill"] = {"labels": linear(keys[8], width, config.num_labels)}
    return made
