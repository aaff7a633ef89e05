"""Lowering an update before there are arrays, or the devices, to run it on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jtok.ops.sharding import current_mesh, sharding_for
from jtok.train._step import Carry, compiled_step, opt_shardings

__all__ = ["lower_update"]


def lower_update(
    loss_fn: Callable[..., Any],
    trainable: Any,
    batch: Any,
    *,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
) -> Any:
    """Lowers the update that `fit` would run, from shapes alone.

    Compile what comes back to see what a step needs on the mesh of `jax.set_mesh`,
    which may be of a described topology. The loss's state and frozen tree are None.

    Args:
      loss_fn: as for `fit`.
      trainable: `jax.ShapeDtypeStruct`s, on a mesh with their shardings.
      batch: `jax.ShapeDtypeStruct`s; rows are split by the rule `"batch"`.
      optimizer: an Optax transformation.
      accumulate: micro-batches a step.

    Returns:
      `jax.stages.Lowered`.

    Example:
      >>> import optax
      >>> def loss_fn(trainable, frozen, state, batch, key):
      ...     return jnp.mean(trainable["w"] * batch), ({}, state)
      >>> w, optimizer = jax.ShapeDtypeStruct((4,), "float32"), optax.sgd(1.0)
      >>> lowered = lower_update(loss_fn, {"w": w}, w, optimizer=optimizer)
      >>> lowered.compile().memory_analysis().argument_size_in_bytes > 0
      True
    """
    mesh = current_mesh()
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def with_sharding(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    opt_state = jax.eval_shape(optimizer.init, trainable)
    lies = opt_shardings(optimizer, trainable, mesh)
    if lies is not None:
        opt_state = jax.tree.map(with_sharding, opt_state, lies)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    carry = Carry(trainable, opt_state, None, count)
    rows = jax.tree.map(
        lambda x: with_sharding(
            x, sharding_for(("batch",) + (None,) * (x.ndim - 1), shape=x.shape)
        ),
        batch,
    )
    key = with_sharding(jax.eval_shape(lambda: jax.random.key(0)), whole)
    shardings = None
    if mesh is not None:
        shardings = (jax.tree.map(lambda leaf: leaf.sharding, carry), whole)
    step: Any = compiled_step(loss_fn, optimizer, accumulate, shardings)
    return step.lower(carry, None, rows, key)
