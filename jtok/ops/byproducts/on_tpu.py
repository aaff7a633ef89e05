"""The TPU kernels with gradients, on the rows and heads of each device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from jtok.ops.byproducts import pallas_tpu as kernel
from jtok.ops.byproducts import reference
from jtok.ops.byproducts.reference import Found, Seen
from jtok.ops.sharding import AnyMesh, partition_spec

__all__ = ["attend", "power"]


def attend(
    query: Array, key: Array, value: Array | None, seen: Seen, factor: Any, *,
    weight: Array | None, on: Array | None, block: int | None, mesh: AnyMesh | None,
    interpret: Any,
) -> Found:  # fmt: skip
    """As `reference.attend`; the backward pass is that one's."""
    kernel.check_supported(query, key, value)
    causal = seen.causal

    def fast(
        query: Array, key: Array, value: Any, bias: Array, weight: Any, on: Any,
        factor: Array,
    ) -> Found:  # fmt: skip
        how: Any = {"causal": causal, "interpret": interpret}
        mixed, lse, mass = kernel.forward(query, key, value, bias, on, factor, **how)
        columns = None
        if weight is not None:
            hears = jnp.broadcast_to(weight[:, None], lse.shape)
            columns = kernel.column_sums(query, key, lse, hears, bias, factor, **how)
        return Found(mixed, lse, columns, mass)

    def plain(
        query: Array, key: Array, value: Any, bias: Array, weight: Any, on: Any,
        factor: Array,
    ) -> Found:  # fmt: skip
        return reference.attend(
            query, key, value, Seen(None, bias, causal), factor, weight=weight, on=on,
            block=block or _block(query, key),
        )  # fmt: skip

    mask = None if on is None else on.astype(jnp.float32)
    args = (query, key, value, _folded(seen, key), weight, mask, _scalar(factor))
    there = lambda x, spec: None if x is None else spec
    row, heads = _axes(query, key, mesh)
    by_head, by_row = PartitionSpec(row, None, heads), PartitionSpec(row)
    specs = (
        by_head, by_head, there(value, by_head), by_row, there(weight, by_row),
        there(mask, by_row), PartitionSpec(),
    )  # fmt: skip
    of_heads = PartitionSpec(row, heads)
    out = Found(
        there(value, by_head), of_heads, there(weight, of_heads), there(mask, of_heads)
    )
    return _on_shards(_with_gradient(fast, plain), mesh, specs, out)(*args)


def power(
    query: Array, key: Array, start: Array, seen: Seen, factor: Any, *,
    iterations: int, damping: Any, block: int | None, mesh: AnyMesh | None,
    interpret: Any,
) -> Array:  # fmt: skip
    """As `reference.power`; the backward pass is that one's."""
    kernel.check_supported(query, key, None)
    causal = seen.causal

    def fast(
        query: Array, key: Array, start: Array, bias: Array, factor: Array, damp: Array
    ) -> Array:
        how: Any = {"causal": causal, "interpret": interpret}
        _, lse, _ = kernel.forward(query, key, None, bias, None, factor, **how)
        begin = jnp.broadcast_to(start[:, None], lse.shape)

        def turn(_: Any, p: Array) -> Array:
            moved = kernel.column_sums(query, key, lse, p, bias, factor, **how)
            return moved * (1.0 - damp) + damp * begin

        return jax.lax.fori_loop(0, iterations, turn, begin)

    def plain(
        query: Array, key: Array, start: Array, bias: Array, factor: Array, damp: Array
    ) -> Array:
        return reference.power(
            query, key, start, Seen(None, bias, causal), factor, iterations=iterations,
            damping=damp, block=block or _block(query, key),
        )  # fmt: skip

    row, heads = _axes(query, key, mesh)
    by_head, by_row = PartitionSpec(row, None, heads), PartitionSpec(row)
    specs = (by_head, by_head, by_row, by_row, PartitionSpec(), PartitionSpec())
    run = _on_shards(
        _with_gradient(fast, plain), mesh, specs, PartitionSpec(row, heads)
    )
    bias = _folded(seen, key)
    return run(query, key, start, bias, _scalar(factor), _scalar(damping))


def _with_gradient(
    fast: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """`fast`, whose gradients are those of `plain`."""
    run = jax.custom_vjp(fast)

    def backward(args: Any, cotangents: Any) -> Any:
        return jax.vjp(plain, *args)[1](cotangents)

    run.defvjp(lambda *args: (fast(*args), args), backward)
    return run


def _folded(seen: Seen, key: Array) -> Array:
    """What is added to the scores of every key, -inf where it is not seen."""
    shape = (key.shape[0], key.shape[1])
    bias = jnp.zeros(shape) if seen.bias is None else seen.bias.astype(jnp.float32)
    return bias if seen.valid is None else jnp.where(seen.valid, bias, -jnp.inf)


def _scalar(x: Any) -> Array:
    return jnp.asarray(x, jnp.float32)


def _block(query: Array, key: Array) -> int:
    batch, seq, heads, _ = query.shape
    return reference.block_for("tpu", batch * heads, key.shape[1], seq)


def _axes(query: Array, key: Array, mesh: AnyMesh | None) -> tuple[Any, Any]:
    """Mesh axes of rows and heads: key heads stay with the queries that read them."""
    shape = (query.shape[0], key.shape[2])
    row, heads = partition_spec(("batch", "kv_heads"), mesh, shape=shape)
    return row, heads


def _on_shards(
    run: Callable[..., Any], mesh: AnyMesh | None, specs: Any, out: Any
) -> Callable[..., Any]:
    # Inside a shard_map arrays are local already.
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return run
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
