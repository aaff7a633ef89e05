"""Attention of new tokens over a cache and over each other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.attention import reference
from jtok.ops.attention.reference import write_rows
from jtok.ops.implementation import choose, target_platform
from jtok.ops.sharding import AnyMesh, current_mesh, partition_spec

__all__ = ["attention", "cached_attention", "write_rows"]

_BLOCKS = {"gpu": 8192}  # slots of the cache at a time; elsewhere 256


def attention(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch kv_heads keys head_dim"],
    value: Float[Array, "batch kv_heads keys head_dim"],
    allow: Bool[Array, "batch seq keys"],
    *,
    scale: float,
    bias: Float[Array, " #batch #heads #seq keys"] | None = None,
    softcap: float | None = None,
) -> Float[Array, "batch seq heads head_dim"]:
    """Attention among the tokens of one call, without a cache.

    Scores and softmax are float32; from 2048 tokens on, the scores of 256 queries
    exist at a time, in the backward pass too. A query that may see nothing gets the
    mean of all values, which is finite; callers mask it.

    Args:
      query: `[batch, seq, heads, head_dim]`.
      key: `[batch, kv_heads, keys, head_dim]`; `heads` is a multiple of `kv_heads`.
        Keys need not be those of the queries' tokens.
      value: as `key`.
      allow: `[batch, seq, keys]` bool, row = query, True = may attend.
      scale: factor on the scores.
      bias: `[batch, heads or 1, seq or 1, keys]` added to the scaled scores.
      softcap: scores become `softcap * tanh(scores / softcap)`, None for no cap.

    Returns:
      `[batch, seq, heads, head_dim]` in the dtype of `query`.

    Source: Rabe and Staats 2021, arXiv 2112.05682 (some queries at a time).

    Example:
      >>> x = jnp.ones((1, 3, 2, 4))
      >>> kv = jnp.ones((1, 1, 3, 4))
      >>> causal = jnp.tril(jnp.ones((1, 3, 3), bool))
      >>> attention(x, kv, kv, causal, scale=0.5).shape
      (1, 3, 2, 4)
    """
    return reference.attention(
        query, key, value, allow, scale=scale, bias=bias, softcap=softcap
    )


def cached_attention(
    query: Float[Array, "batch nodes heads head_dim"],
    key: Float[Array, "batch kv_heads nodes head_dim"],
    value: Float[Array, "batch kv_heads nodes head_dim"],
    cache_key: Float[Array, "batch kv_heads capacity head_dim"],
    cache_value: Float[Array, "batch kv_heads capacity head_dim"],
    length: Int[Array, " batch"],
    allow: Bool[Array, "batch nodes nodes"],
    *,
    scale: float,
    positions: Int[Array, "batch nodes"] | None = None,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    block: int | None = None,
    implementation: str | None = None,
    platform: str | None = None,
    mesh: AnyMesh | None = None,
    interpret: Any = False,
) -> Float[Array, "batch nodes heads head_dim"]:
    """Attention of a draft tree (or a prompt chunk) over the cache and itself.

    Every node sees all cached tokens of its row, and the nodes that `allow` names.
    The softmax runs over both parts at once, in float32. The cache is read block by
    block up to the longest row (the kernel: up to each row's own length), so unused
    capacity costs nothing. A node that sees nothing at all gets the mean of the nodes'
    values. No gradients.

    Args:
      query: `[batch, nodes, heads, head_dim]`, rotary positions applied.
      key: `[batch, kv_heads, nodes, head_dim]` of the nodes.
      value: as `key`.
      cache_key: `[batch, kv_heads, capacity, head_dim]`.
      cache_value: as `cache_key`.
      length: `[batch]` int32, cached tokens of every row.
      allow: `[batch, nodes, nodes]` bool, row = query; each row should allow itself.
      scale: factor on the scores.
      positions: `[batch, nodes]` int32 of the nodes; needed with a window. The token
        in slot s stands at position s.
      window: a node at position p sees the positions above `p - window`, of the cache
        and of the nodes; None sees all.
      softcap: scores become `softcap * tanh(scores / softcap)`, None for no cap.
      block: cache slots that are read at a time (static); None takes 512 in the kernel,
        256 on a CPU, and on a GPU, where each turn of a loop costs a look by the host,
        8192.
      implementation: "pallas_tpu", "xla", or None: the first that can run (static).
      platform: "cpu", "gpu" or "tpu" where code for another platform than that of the
        mesh, or of JAX's default backend, is compiled (static).
      mesh: None means the mesh of `jax.set_mesh`; on one, the kernel runs on each
        device's own rows and heads.
      interpret: True, or `pltpu.InterpretParams`, interprets the named kernel (static).

    Returns:
      `[batch, nodes, heads, head_dim]` in the dtype of `query`.

    Raises:
      ArgumentError: a window without positions, `block` below 1, or an unknown name.
      UnsupportedImplementationError: the named implementation cannot run here.

    Source: Dao et al. 2022, arXiv 2205.14135 (running softmax); Cai et al. 2024,
    arXiv 2401.10774, section 2.3 (tree mask).

    Example:
      >>> q, kv = jnp.ones((1, 2, 2, 4)), jnp.ones((1, 1, 2, 4))
      >>> cache, causal = jnp.ones((1, 1, 8, 4)), jnp.tril(jnp.ones((1, 2, 2), bool))
      >>> used = jnp.array([5])
      >>> cached_attention(q, kv, kv, cache, cache, used, causal, scale=0.5).shape
      (1, 2, 2, 4)
    """
    check(block is None or block >= 1, "block", block, "None or at least 1")
    if window is not None:
        check(positions is not None, "positions", None, "positions beside a window")
    mesh = current_mesh(mesh)
    run_on = target_platform(platform, mesh)
    args = (query, key, value, cache_key, cache_value, length, allow)
    options: Any = {"scale": scale, "softcap": softcap}

    def xla() -> Array:
        return reference.cached_attention(
            *args, positions=positions, window=window,
            block=block or _BLOCKS.get(run_on, 256), **options,
        )  # fmt: skip

    def pallas_tpu() -> Array:
        from jtok.ops.attention import pallas_tpu as kernel

        slots = block or 512
        kernel.check_supported(query, key, cache_key, slots)
        first, seen = reference.visible(query, allow, positions, window)
        run = functools.partial(
            kernel.cached_attention, block=slots, interpret=interpret, **options
        )
        return _on_shards(run, mesh, *args[:-1], seen, first)

    return choose(
        implementation,
        {"xla": xla, "pallas_tpu": pallas_tpu},
        platform=run_on,
        interpret=interpret,
    )


def _on_shards(
    run: Callable, mesh: AnyMesh | None, query: Array, *args: Array
) -> Array:
    """Every device's own rows and key heads, with the query heads that read them."""
    # Inside a shard_map arrays are local already.
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return run(query, *args)
    shape = (args[0].shape[0], args[0].shape[1])
    rows, heads = partition_spec(("batch", "kv_heads"), mesh, shape=shape)
    by_head = PartitionSpec(rows, heads, None, None)
    by_row = PartitionSpec(rows)
    mapped = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(
            PartitionSpec(rows, None, heads, None),
            *([by_head] * 4),
            *([by_row] * 3),
        ),
        out_specs=PartitionSpec(rows, None, heads, None),
        check_vma=False,
    )
    return mapped(query, *args)
