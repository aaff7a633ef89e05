"""A small network that reads a class out of frozen states.

Source: Huang et al. 2023, arXiv 2305.16349 (the probe that deciphers).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from jtok.errors import check

__all__ = ["StateProbe", "fit_state_probe"]


@struct.dataclass
class StateProbe:
    """A two-layer network from states to classes.

    Attributes:
      params: its weights.
      mean: `[dim]` float32 of the states that it was fitted to.
      spread: `[dim]` float32 of the same.
    """

    params: Any
    mean: jax.Array
    spread: jax.Array

    def log_probs(
        self, states: Float[Array, "*batch dim"]
    ) -> Float[Array, "*batch classes"]:
        """Log-probabilities of the classes.

        Args:
          states: `[..., dim]`.

        Returns:
          `[..., classes]` float32 nats.
        """
        flat = states.reshape(-1, states.shape[-1]).astype(jnp.float32)
        flat = (flat - self.mean[None]) / self.spread[None]
        scores = jax.nn.log_softmax(_scores(self.params, flat), axis=-1)
        return scores.reshape(*states.shape[:-1], -1)


def _scores(params: Any, x: Array) -> Array:
    inner = jax.nn.gelu(x @ params["up"] + params["up_bias"][None])
    return inner @ params["down"] + params["down_bias"][None]


def fit_state_probe(
    states: Float[Array, "rows dim"],
    labels: Int[Array, " rows"],
    *,
    num_classes: int,
    key: jax.Array,
    width: int = 256,
    steps: int = 500,
    batch: int = 1024,
    learning_rate: float = 2e-3,
) -> StateProbe:
    """Fits a two-layer network from states to classes; the states stay as they are.

    Args:
      states: `[rows, dim]`; standardised by their own mean and spread.
      labels: `[rows]` int32 in `0..num_classes - 1`.
      num_classes: at least 2 (static).
      key: typed key, consumed.
      width: of the inner layer (static).
      steps: updates of Adam (static).
      batch: rows an update, drawn with replacement (static).
      learning_rate: its peak; it falls to 0 along a cosine.

    Returns:
      `StateProbe`.

    Raises:
      ArgumentError: a number out of range.

    Source: arXiv 2305.16349, section 5. Differs: sizes are not given there.

    Example:
      >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
      >>> probe = fit_state_probe(x, jnp.array([0, 0, 1, 1]), num_classes=2,
      ...     key=jax.random.key(0), width=8, steps=50,
      ...     learning_rate=0.05)
      >>> jnp.argmax(probe.log_probs(x), -1).tolist()
      [0, 0, 1, 1]
    """
    for name, value in (("width", width), ("steps", steps), ("batch", batch)):
        check(value >= 1, name, value, "at least 1")
    check(num_classes >= 2, "num_classes", num_classes, "at least 2")
    check(learning_rate > 0, "learning_rate", learning_rate, "above 0")
    x = states.astype(jnp.float32)
    mean, spread = jnp.mean(x, axis=0), jnp.maximum(jnp.std(x, axis=0), 1e-6)
    x = (x - mean[None]) / spread[None]
    first, second, third = jax.random.split(key, 3)
    dim = x.shape[1]
    params = {
        "up": jax.random.normal(first, (dim, width)) * dim**-0.5,
        "up_bias": jnp.zeros(width),
        "down": jax.random.normal(second, (width, num_classes)) * width**-0.5,
        "down_bias": jnp.zeros(num_classes),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss(params: Any, some: Array) -> Array:
        nats = optax.softmax_cross_entropy_with_integer_labels(
            _scores(params, x[some]), labels[some]
        )
        return jnp.mean(nats)

    def update(carry: Any, key: Array) -> tuple[Any, None]:
        params, state = carry
        some = jax.random.randint(key, (batch,), 0, x.shape[0])
        change, state = optimizer.update(jax.grad(loss)(params, some), state, params)
        return (optax.apply_updates(params, change), state), None

    carry = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(update, carry, jax.random.split(third, steps))
    return StateProbe(params, mean, spread)
