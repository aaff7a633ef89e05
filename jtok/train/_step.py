"""The compiled update of `fit`: gradients over micro-batches, then the optimizer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.ops.sharding import constrain

# Rows of the metrics file have these besides the loss's own metrics.
RESERVED = ("step", "loss", "grad_norm", "seconds")


class Carry(NamedTuple):
    """What one update turns into the next one's; donated."""

    trainable: Any
    opt_state: Any
    state: Any
    step: jax.Array


def opt_shardings(optimizer: Any, trainable: Any, mesh: Any) -> Any:
    """Moments lie as their parameters do, counters on every device; None: no mesh."""
    if mesh is None:
        return None
    whole = NamedSharding(mesh, PartitionSpec())
    lies: list[Any] = []

    def look() -> None:
        lies.append(
            optax.tree_utils.tree_map_params(
                optimizer,
                lambda _, parameter: parameter.sharding,
                jax.eval_shape(optimizer.init, trainable),
                trainable,
                transform_non_params=lambda _: whole,
            )
        )

    # Traced, as it makes arrays, and the mesh may be of devices that are not here.
    jax.eval_shape(look)
    return lies[0]


def compiled_step(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    accumulate: int,
    out_shardings: Any,
) -> Callable[..., Any]:
    """The jitted `(carry, frozen, batch, key) -> (carry, row)`, one for equals."""
    leaves, treedef = jax.tree.flatten(out_shardings)
    try:
        return _cached(loss_fn, optimizer, accumulate, tuple(leaves), treedef)
    except TypeError:  # a loss that cannot be hashed
        return _cached.__wrapped__(
            loss_fn, optimizer, accumulate, tuple(leaves), treedef
        )


@functools.lru_cache(maxsize=8)
def _cached(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    accumulate: int,
    leaves: tuple[Any, ...],
    treedef: Any,
) -> Callable[..., Any]:
    update = functools.partial(_update, loss_fn, optimizer, accumulate)
    shardings = jax.tree.unflatten(treedef, leaves)
    if shardings is None:
        return jax.jit(update, donate_argnums=0)
    return jax.jit(update, donate_argnums=0, out_shardings=shardings)


def _update(
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    accumulate: int,
    carry: Carry,
    frozen: Any,
    batch: Any,
    key: jax.Array,
) -> tuple[Carry, dict[str, jax.Array]]:
    key = jax.random.fold_in(key, carry.step)
    gradient = jax.value_and_grad(_checked(loss_fn), has_aux=True)
    if accumulate == 1:
        (loss, (metrics, state)), grads = gradient(
            carry.trainable, frozen, carry.state, batch, key
        )
    else:
        loss, metrics, state, grads = _accumulated(
            gradient, accumulate, carry, frozen, batch, key
        )
    updates, opt_state = optimizer.update(grads, carry.opt_state, carry.trainable)
    trainable = optax.apply_updates(carry.trainable, updates)
    row = {"loss": loss, **metrics, "grad_norm": optax.tree_utils.tree_norm(grads)}
    return Carry(trainable, opt_state, state, carry.step + 1), row


def _accumulated(
    gradient: Callable[..., Any],
    accumulate: int,
    carry: Carry,
    frozen: Any,
    batch: Any,
    key: jax.Array,
) -> tuple[Any, Any, Any, Any]:
    """Mean of loss, metrics and gradients; the state goes through the micro-batches."""
    arrays, treedef = jax.tree.flatten(batch)
    shared = [x if jnp.ndim(x) == 0 else None for x in arrays]
    split = [None if jnp.ndim(x) == 0 else _split(x, accumulate) for x in arrays]

    def body(sums: tuple[Any, Any], micro: tuple[Any, jax.Array]) -> Any:
        total, state = sums
        rows, index = micro
        part = [x if x is not None else y for x, y in zip(shared, rows)]
        (loss, (metrics, state)), grads = gradient(
            carry.trainable,
            frozen,
            state,
            jax.tree.unflatten(treedef, part),
            jax.random.fold_in(key, index),
        )
        total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
        return (total, state), (loss, metrics)

    # bfloat16 would lose small gradients in the sum.
    zeros = jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)),
        carry.trainable,
    )
    (total, state), (losses, metrics) = jax.lax.scan(
        body, (zeros, carry.state), (split, jnp.arange(accumulate))
    )
    grads = jax.tree.map(
        lambda t, p: (t / accumulate).astype(p.dtype), total, carry.trainable
    )
    metrics = {
        name: jnp.sum(value) if name == "tokens" else jnp.mean(value)
        for name, value in metrics.items()
    }
    return jnp.mean(losses), metrics, state, grads


def _split(x: jax.Array, accumulate: int) -> jax.Array:
    """[rows, ...] -> [accumulate, rows / accumulate, ...].

    Part i is rows i::accumulate, so that each device of a sharded batch keeps its own.
    """
    x = jnp.reshape(x, (x.shape[0] // accumulate, accumulate, *x.shape[1:]))
    x = jnp.swapaxes(x, 0, 1)
    return constrain(x, None, "batch", *(None,) * (x.ndim - 2))


def _checked(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """`loss_fn` with what it returns checked, while it is traced."""

    def checked(trainable: Any, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
        result = loss_fn(trainable, frozen, state, batch, key)
        try:
            loss, (metrics, new_state) = result
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(
                "loss_fn: it must return (loss, (metrics, state))."
            ) from error
        expected = "a real scalar as loss"
        real = jnp.issubdtype(jnp.result_type(loss), jnp.floating)
        check(jnp.ndim(loss) == 0 and real, "loss_fn", loss, expected)
        _check_metrics(metrics)
        _check_state(state, new_state)
        return loss, (metrics, new_state)

    return checked


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, dict):
        kind = type(metrics).__name__
        raise ArgumentTypeError(f"loss_fn: got metrics of {kind}, expected a dict.")
    for name, value in metrics.items():
        where = f"loss_fn: the metric {name!r}"
        if name in RESERVED:
            raise ArgumentError(f"{where} has a name that fit uses; one of {RESERVED}.")
        if jnp.ndim(value) != 0:
            raise ArgumentError(f"{where} has shape {jnp.shape(value)}, expected ().")


def _check_state(old: Any, new: Any) -> None:
    kinds = [
        (jax.tree.structure(tree), [jax.typeof(x).str_short() for x in leaves])
        for tree, leaves in ((old, jax.tree.leaves(old)), (new, jax.tree.leaves(new)))
    ]
    if kinds[0] != kinds[1]:
        raise ArgumentError(
            "loss_fn: the state it returns must have the structure, shapes and types "
            f"of the state it gets.\n  got      {kinds[0]}\n  returned {kinds[1]}"
        )
