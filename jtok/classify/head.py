"""A classifier on the vectors of any encoder: word MLP, pooler, output map.

Source: Mehta et al. 2019, arXiv 1912.00835, figure 1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from jtok.errors import ArgumentTypeError, check
from jtok.nn import Pooler, attention_penalty

__all__ = [
    "HeadConfig",
    "Reading",
    "head_loss",
    "init_head",
    "loss_of",
    "read_hidden",
]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What reads labels off a row of vectors.

    Attributes:
      pooler: as `jtok.nn.LamaPooler(width)`; its width is that of the vectors.
      classes: labels, at least 2.
      word_mlp: weigh `tanh(x W + b)` of each vector instead of the vector itself; what
        is mixed are always the vectors.
      hidden: width of a tanh layer before the labels; 0 has none.
      dropout: rate on the pooled vectors.
      penalty: weight of `jtok.nn.attention_penalty` in the loss.

    Raises:
      ArgumentError: fewer than 2 classes, a rate outside [0, 1), or a negative number.
      ArgumentTypeError: no pooler.

    Source: Mehta et al. 2019, arXiv 1912.00835, figure 1.

    Example:
      >>> from jtok.nn import MeanPooler
      >>> HeadConfig(pooler=MeanPooler(width=4), classes=2, word_mlp=False).width
      4
    """

    pooler: Pooler
    classes: int
    word_mlp: bool = True
    hidden: int = 0
    dropout: float = 0.0
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.pooler, Pooler):
            got = type(self.pooler).__name__
            raise ArgumentTypeError(
                f"pooler: got {got}, expected one as jtok.nn.LamaPooler."
            )
        check(self.classes >= 2, "classes", self.classes, "at least 2")
        check(self.hidden >= 0, "hidden", self.hidden, "a width, or 0 for none")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a rate in [0, 1)")
        check(self.penalty >= 0, "penalty", self.penalty, "a number of at least 0")

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.pooler.width


@struct.dataclass
class Reading:
    """What a classifier gives.

    Attributes:
      logits: float32 `[batch, classes]`.
      attention: float32 `[batch, heads, seq]`, None of poolers that weigh nothing.
    """

    logits: jax.Array
    attention: jax.Array | None = None


def init_head(config: HeadConfig, key: Array, dtype: str = "float32") -> PyTree:
    """Fresh parameters: LeCun normal matrices, biases 0.

    Args:
      config: the head.
      key: typed key, consumed.
      dtype: of all but the pooler's, which has its own.

    Returns:
      `pooler`, `labels`, and `words` and `hidden` where the head has them.

    Source: Mehta et al. 2019, arXiv 1912.00835.

    Example:
      >>> from jtok.nn import LamaPooler
      >>> config = HeadConfig(pooler=LamaPooler(width=4, heads=2), classes=3)
      >>> init_head(config, jax.random.key(0))["labels"]["kernel"].shape
      (8, 3)
    """
    words, pooler, hidden, labels = jax.random.split(key, 4)
    flat = config.pooler.heads * config.width
    made = {"pooler": config.pooler.init(pooler)}
    if config.word_mlp:
        made["words"] = _linear(words, config.width, config.width, dtype)
    if config.hidden:
        made["hidden"] = _linear(hidden, flat, config.hidden, dtype)
        flat = config.hidden
    return made | {"labels": _linear(labels, flat, config.classes, dtype)}


def _linear(key: Array, inputs: int, outputs: int, dtype: str) -> dict[str, Array]:
    kernel = jax.nn.initializers.lecun_normal()(key, (inputs, outputs))
    return {"kernel": kernel.astype(dtype), "bias": jnp.zeros(outputs, dtype)}


def _map(params: dict[str, Array], x: Array) -> Array:
    made = x.astype(jnp.float32) @ params["kernel"].astype(jnp.float32)
    return made + jnp.broadcast_to(params["bias"].astype(jnp.float32), made.shape)


def read_hidden(
    params: PyTree,
    config: HeadConfig,
    hidden: Float[Array, "batch seq width"],
    mask: Any = None,
    *,
    context: Any = None,
    key: Array | None = None,
) -> Reading:
    """Labels of rows of vectors, as of an encoder's last layer.

    Args:
      params: as from `init_head`.
      config: the head.
      hidden: `[batch, seq, width]`.
      mask: `[batch, seq]` True for real tokens; None lets all be real.
      context: what the pooler takes.
      key: typed key of the dropout; None for none.

    Returns:
      `Reading`.

    Raises:
      ArgumentError: vectors, mask or context of another shape than the pooler takes.

    Source: Mehta et al. 2019, arXiv 1912.00835, figure 1.

    Example:
      >>> from jtok.nn import LamaPooler
      >>> config = HeadConfig(pooler=LamaPooler(width=4, heads=2), classes=3)
      >>> params = init_head(config, jax.random.key(0))
      >>> read_hidden(params, config, jnp.ones((2, 5, 4))).logits.shape
      (2, 3)
    """
    scored = None
    if config.word_mlp:
        scored = jnp.tanh(_map(params["words"], hidden)).astype(hidden.dtype)
    pooled = config.pooler(
        params["pooler"], hidden, mask, scored=scored, context=context
    )
    # Head-major: all features of head 0, then those of head 1.
    flat = config.pooler.heads * config.width
    x = pooled.vectors.reshape(hidden.shape[0], flat)
    x = dropped(x, config.dropout, key)
    if config.hidden:
        x = jnp.tanh(_map(params["hidden"], x))
    return Reading(_map(params["labels"], x), pooled.attention)


def dropped(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; none without a key."""
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def loss_of(
    config: HeadConfig, made: Reading, labels: Int[Array, " batch"]
) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy in nats, with the penalty, and the metrics."""
    losses = optax.softmax_cross_entropy_with_integer_labels(made.logits, labels)
    right = jnp.argmax(made.logits, axis=-1) == labels
    metrics = {"accuracy": jnp.mean(right.astype(jnp.float32))}
    loss = jnp.mean(losses)
    if config.penalty:
        good = made.attention is not None
        check(good, "penalty", config.penalty, "0 for a pooler that weighs nothing")
        penalty = attention_penalty(made.attention)  # type: ignore[arg-type]
        metrics["penalty"] = penalty
        loss = loss + config.penalty * penalty
    return loss, metrics


@functools.lru_cache(maxsize=64)
def head_loss(config: HeadConfig) -> Callable[..., Any]:
    """A loss for `jtok.train.fit` that trains a head on a frozen encoder.

    The batch has `labels`, `mask`, and either `hidden` (vectors made before) or `ids`;
    then `frozen` is the encoder, a `jtok.models.Model`, which gets no gradient.

    Args:
      config: the head; equal ones give the same function, which is compiled once.

    Returns:
      `loss_fn(params, frozen, state, batch, key)`; metrics are `accuracy`, and
      `penalty` where it counts.

    Source: Mehta et al. 2019, arXiv 1912.00835; frozen features are not the paper's.

    Example:
      >>> from jtok.nn import MeanPooler
      >>> config = HeadConfig(MeanPooler(4), classes=2, word_mlp=False)
      >>> params = init_head(config, jax.random.key(0))
      >>> batch = {"hidden": jnp.ones((2, 3, 4)), "labels": jnp.array([0, 1])}
      >>> head_loss(config)(params, None, None, batch, None)[0].shape
      ()
    """

    def loss_fn(params: PyTree, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
        mask = batch.get("mask")
        if "hidden" in batch:
            hidden = batch["hidden"]
        else:
            hidden = frozen(batch["ids"], mask=mask, logits="none").hidden
        hidden = jax.lax.stop_gradient(hidden)
        made = read_hidden(params, config, hidden, mask, key=key)
        loss, metrics = loss_of(config, made, batch["labels"])
        return loss, (metrics, state)

    return loss_fn
