"""Small encoders trained in the run, whose layers are then told to merge tokens."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jtok import models, nn
from jtok.compress import mean_by_size

__all__ = ["Task", "correct", "encoder", "init", "seconds", "train"]


class Task(NamedTuple):
    """Inputs with a class each.

    Attributes:
      inputs: `[items, tokens]` int32 ids, or `[items, tokens, dim]` float32 patches.
      mask: `[items, tokens]` bool.
      labels: `[items]` int32.
      classes: how many there are.
    """

    inputs: Array
    mask: Array
    labels: Array
    classes: int


def encoder(
    task: Task, layers: int, width: int, heads: int, *, vocab_size: int = 1,
    norm_first: bool,
) -> nn.EncoderConfig:  # fmt: skip
    """An encoder with learned positions: a ViT's blocks, or BERT's."""
    return nn.EncoderConfig(
        vocab_size=vocab_size, width=width, num_layers=layers, num_heads=heads,
        head_dim=width // heads, mlp_width=2 * width, num_types=0,
        max_positions=task.inputs.shape[1], norm_first=norm_first, norm_eps=1e-6,
        embed_norm=not norm_first,
    )  # fmt: skip


def init(config: nn.EncoderConfig, task: Task, key: Array) -> Any:
    """New parameters, with a map from patches where there are such."""
    first, second, third = jax.random.split(key, 3)
    params = models.init(config, first).params
    # Positions must be heard beside the tokens from the first step on.
    embed = {name: 10.0 * x for name, x in params["embed"].items() if name != "norm"}
    made = {
        "encoder": {**params, "embed": {**params["embed"], **embed}},
        "head": jax.random.normal(second, (config.width, task.classes)) * 0.02,
    }
    if task.inputs.ndim == 3:
        shape = (task.inputs.shape[2], config.width)
        made["patch"] = jax.random.normal(third, shape) * shape[0] ** -0.5
    return made


def _logits(
    params: Any, config: nn.EncoderConfig, inputs: Array, mask: Array, compress: Any
) -> Array:
    """Classes read off the mean over all tokens, however many rows are left."""
    x = inputs @ params["patch"] if inputs.ndim == 3 else inputs
    model = models.Model(params["encoder"], config)
    out = model(x, mask=mask, compress=compress, logits="none")
    size, valid = jnp.ones(mask.shape), mask
    if isinstance(out, models.CompressedOutput):
        size, valid = out.plan.size, out.plan.valid
    return mean_by_size(out.hidden, size, valid=valid) @ params["head"]


@functools.partial(jax.jit, static_argnums=(1, 4, 5))
def _train(
    params: Any, config: nn.EncoderConfig, data: Any, order: Array, rate: float,
    compress: Any,
) -> tuple[Any, Array]:  # fmt: skip
    steps = order.shape[0]
    peak = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10 + 1, steps + 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(peak, weight_decay=0.01)
    )

    def step(carry: Any, rows: Array) -> tuple[Any, Array]:
        params, state = carry
        inputs, mask, labels = (x[rows] for x in data)

        def loss(params: Any) -> Array:
            made = _logits(params, config, inputs, mask, compress)
            return optax.softmax_cross_entropy_with_integer_labels(made, labels).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), order)
    return params, losses


def train(
    params: Any, config: nn.EncoderConfig, task: Task, rows: np.ndarray, *,
    epochs: int, batch: int, rate: float, seed: int, compress: Any = None,
) -> tuple[Any, float]:  # fmt: skip
    """Trains on some items; returns the parameters and the loss of the last tenth."""
    rng = np.random.default_rng(seed)
    whole = len(rows) // batch * batch
    order = [rng.permutation(rows)[:whole].reshape(-1, batch) for _ in range(epochs)]
    steps = jnp.asarray(np.concatenate(order), jnp.int32)
    data = (task.inputs, task.mask, task.labels)
    params, losses = _train(params, config, data, steps, rate, compress)
    return params, float(losses[-(len(losses) // 10 + 1) :].mean())


@functools.partial(jax.jit, static_argnums=(1, 4))
def _right(
    params: Any, config: nn.EncoderConfig, data: Any, rows: Array, compress: Any
) -> Array:
    """`[models, rows]` whether each model is right on its rows."""

    def one(item: Any) -> Array:
        params, rows = item
        inputs, mask, labels = (x[rows] for x in data)
        made = _logits(params, config, inputs, mask, compress)
        return jnp.argmax(made, axis=-1) == labels

    return jax.lax.map(one, (params, rows))


def correct(
    params: Any, config: nn.EncoderConfig, task: Task, rows: np.ndarray, compress: Any
) -> np.ndarray:
    """Whether each of many models is right on its own held-out items.

    Args:
      params: stacked on a leading axis.
      config: of all models.
      task: where the items are.
      rows: `[models, items]`; -1 where a model has fewer, which counts as nothing.
      compress: what the layers do; None for nothing.

    Returns:
      `[models, items]` bool, False where there is no item.
    """
    data = (task.inputs, task.mask, task.labels)
    at = jnp.asarray(np.maximum(rows, 0), jnp.int32)
    return np.asarray(_right(params, config, data, at, compress)) & (rows >= 0)


def seconds(
    params: Any, config: nn.EncoderConfig, task: Task, batch: int, compress: Any,
    repeats: int = 5,
) -> float:  # fmt: skip
    """Seconds of the compiled model for a batch: the best of several."""
    run = jax.jit(functools.partial(_logits, config=config, compress=compress))
    run = functools.partial(run, params, inputs=task.inputs[:batch])
    jax.block_until_ready(run(mask=task.mask[:batch]))
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(mask=task.mask[:batch]))
        best = min(best, time.perf_counter() - start)
    return float(best)
