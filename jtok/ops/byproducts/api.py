"""Attention that also says who was looked at, in memory linear in the tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.byproducts import reference
from jtok.ops.byproducts.reference import Found, Seen
from jtok.ops.implementation import choose, target_platform
from jtok.ops.sharding import AnyMesh, current_mesh

__all__ = ["Byproducts", "attention_byproducts", "attention_power"]


@struct.dataclass
class Byproducts:
    """Attention and what was asked for beside it; the rest is None.

    Attributes:
      mixed: `[batch, seq, heads, head_dim]` the attention itself.
      lse: `[batch, heads, seq]` float32 log of the sum of exponentials of the scores,
        -inf for a query that sees nothing.
      columns: `[batch, heads, keys]` float32 attention that each key received from all
        valid queries.
      rows: `[batch, heads, rows, keys]` float32 the softmax of the chosen queries.
      mass: `[batch, heads, seq]` float32 attention of each query to the key set.
    """

    mixed: jax.Array | None
    lse: jax.Array
    columns: jax.Array | None = None
    rows: jax.Array | None = None
    mass: jax.Array | None = None


def attention_byproducts(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch keys kv_heads head_dim"],
    value: Float[Array, "batch keys kv_heads value_dim"] | None = None,
    *,
    scale: float,
    valid: Bool[Array, "batch keys"] | None = None,
    valid_queries: Bool[Array, "batch seq"] | None = None,
    key_bias: Float[Array, "batch keys"] | None = None,
    causal: bool = False,
    columns: bool = False,
    rows: Int[Array, "batch rows"] | None = None,
    on: Bool[Array, "batch keys"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    block: int | None = None,
    implementation: str | None = None,
    platform: str | None = None,
    mesh: AnyMesh | None = None,
    interpret: Any = False,
) -> Byproducts:
    """Attention, and on request who received it, without a matrix of all pairs.

    The softmax runs over `scale / temperature * query . key + key_bias`, in float32.
    XLA holds the scores of `block` queries at a time, the TPU kernel those of a tile;
    gradients are XLA's, of which scores are computed again. A query that may see
    nothing gives zeros everywhere, and a log-sum-exp of -inf.

    Args:
      query: `[batch, seq, heads, head_dim]`.
      key: `[batch, keys, kv_heads, head_dim]`; `heads` is a multiple of `kv_heads`.
      value: `[batch, keys, kv_heads, value_dim]`, or None: no `mixed`.
      scale: factor on the scores.
      valid: `[batch, keys]` bool; other keys are not seen. None lets all be seen.
      valid_queries: `[batch, seq]` bool, whose attention `columns` counts; None takes
        `valid` where there are as many queries as keys, else all.
      key_bias: `[batch, keys]` added to the scores; the logarithm of how many tokens a
        key stands for makes it count as so many (proportional attention).
      causal: queries see no later keys; the last query is at the last key (static).
      columns: return the attention that each key received (static).
      rows: `[batch, rows]` int32 queries whose whole softmax is returned; numbers out
        of range give zeros.
      on: `[batch, keys]` bool, the key set of `mass`.
      temperature: divides the scores; smaller ones make the softmax sharper.
      block: queries at a time (static); None fits the platform.
      implementation: "pallas_tpu", "xla", or None: the first that can run (static).
      platform: see `cached_attention` (static).
      mesh: None means the mesh of `jax.set_mesh`; on one, the kernel runs on each
        device's own rows and heads.
      interpret: True, or `pltpu.InterpretParams`, interprets the named kernel (static).

    Returns:
      `Byproducts`; `mixed` in the dtype of `query`.

    Raises:
      ArgumentError: heads that do not share keys evenly, shapes that do not fit,
        `block` below 1, or an unknown name.
      UnsupportedImplementationError: the named implementation cannot run here.

    Source: Rabe and Staats 2021, arXiv 2112.05682 (some queries at a time); Bolya et
      al. 2023, arXiv 2210.09461, section 3 (proportional attention).

    Example:
      >>> x = jnp.ones((1, 2, 1, 4))
      >>> out = attention_byproducts(x, x, x, scale=0.5, causal=True, columns=True)
      >>> out.columns.tolist()
      [[[1.5, 0.5]]]
    """
    _check_heads(query, key)
    check(block is None or block >= 1, "block", block, "None or at least 1")
    batch, seq, heads, _ = query.shape
    keys = key.shape[1]
    of_keys = {"valid": valid, "key_bias": key_bias, "on": on}
    _check_shapes((batch, keys), **of_keys)
    _check_shapes((batch, seq), valid_queries=valid_queries)
    seen = Seen(valid, key_bias, causal)
    mesh = current_mesh(mesh)
    run_on = target_platform(platform, mesh)
    factor = scale / temperature
    weight = _hearing(valid, valid_queries, batch, seq, keys) if columns else None

    def xla() -> Found:
        some = block or reference.block_for(run_on, batch * heads, keys, seq)
        return reference.attend(
            query, key, value, seen, factor, weight=weight, on=on, block=some
        )

    def pallas_tpu() -> Found:
        from jtok.ops.byproducts import on_tpu

        return on_tpu.attend(
            query, key, value, seen, factor, weight=weight, on=on, block=block,
            mesh=mesh, interpret=interpret,
        )  # fmt: skip

    kernels = {"xla": xla, "pallas_tpu": pallas_tpu}
    found = choose(implementation, kernels, platform=run_on, interpret=interpret)
    chosen = None
    if rows is not None:
        chosen = reference.chosen_rows(query, key, rows, seen, factor)
    return Byproducts(found.mixed, found.lse, found.columns, chosen, found.mass)


def attention_power(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch seq kv_heads head_dim"],
    *,
    scale: float,
    temperature: float | Float[Array, ""] = 1.0,
    iterations: int = 5,
    damping: float | Float[Array, ""] = 0.0,
    valid: Bool[Array, "batch seq"] | None = None,
    causal: bool = False,
    start: Float[Array, "batch seq"] | None = None,
    block: int | None = None,
    implementation: str | None = None,
    platform: str | None = None,
    mesh: AnyMesh | None = None,
    interpret: Any = False,
) -> Float[Array, "batch heads seq"]:
    """Where attention flows: some turns of `p = (1 - damping) p M + damping start`.

    `M` is the softmax of the scores over `temperature`, row = query, which is never
    whole: each turn computes it anew, some queries at a time, in float32. Under a
    causal mask everything flows to earlier tokens, and of tokens that look alike the
    first win.

    Args:
      query: `[batch, seq, heads, head_dim]`.
      key: `[batch, seq, kv_heads, head_dim]`.
      scale: factor on the scores.
      temperature: divides the scores; .1 in the paper.
      iterations: turns (static); 0 gives `start`.
      damping: share that starts anew in every turn, 0 to 1.
      valid: `[batch, seq]` bool; other tokens are not seen. What they start with still
        flows away.
      causal: tokens see no later ones (static).
      start: `[batch, seq]` of every head; None is the same share for all valid tokens,
        1 together.
      block: queries at a time (static); None fits the platform.
      implementation: see `attention_byproducts` (static).
      platform: see `cached_attention` (static).
      mesh: see `attention_byproducts`.
      interpret: see `attention_byproducts` (static).

    Returns:
      `[batch, heads, seq]` float32; each sums to 1 where `start` does and every token
      sees something.

    Raises:
      ArgumentError: heads that do not share keys evenly, `iterations` below 0,
        `block` below 1, or an unknown name.
      UnsupportedImplementationError: the named implementation cannot run here.

    Source: Zhong et al. 2024, arXiv 2412.03248, section 3.2. Differs: padding, and a
      start of one's own.

    Example:
      >>> x = jnp.zeros((1, 2, 1, 4))
      >>> attention_power(x, x, scale=0.5, causal=True, iterations=1).tolist()
      [[[0.75, 0.25]]]
    """
    _check_heads(query, key)
    check(block is None or block >= 1, "block", block, "None or at least 1")
    check(iterations >= 0, "iterations", iterations, "0 or more")
    batch, seq, heads, _ = query.shape
    _check_shapes((batch, seq), valid=valid, start=start)
    begin = reference.start_over(valid, start, batch, seq)
    mesh = current_mesh(mesh)
    run_on = target_platform(platform, mesh)
    args = (query, key, begin, Seen(valid, None, causal), scale / temperature)
    options: Any = {"iterations": iterations, "damping": damping}

    def xla() -> Array:
        some = block or reference.block_for(run_on, batch * heads, seq, seq)
        return reference.power(*args, block=some, **options)

    def pallas_tpu() -> Array:
        from jtok.ops.byproducts import on_tpu

        options.update(block=block, mesh=mesh, interpret=interpret)
        return on_tpu.power(*args, **options)

    kernels = {"xla": xla, "pallas_tpu": pallas_tpu}
    return choose(implementation, kernels, platform=run_on, interpret=interpret)


def _check_heads(query: Array, key: Array) -> None:
    heads, kv_heads = query.shape[2], key.shape[2]
    got = f"{heads} query heads and {kv_heads} key heads"
    check(heads % kv_heads == 0, "query, key", got, "a multiple of the key heads")


def _check_shapes(expected: tuple[int, int], **arrays: Array | None) -> None:
    for name, array in arrays.items():
        if array is not None:
            check(array.shape == expected, name, f"shape {array.shape}", f"{expected}")


def _hearing(
    valid: Array | None, valid_queries: Array | None, batch: int, seq: int, keys: int
) -> Float[Array, "batch seq"]:
    """1 for queries whose attention counts."""
    if valid_queries is None and seq == keys:
        valid_queries = valid
    if valid_queries is None:
        return jnp.ones((batch, seq))
    return valid_queries.astype(jnp.float32)
