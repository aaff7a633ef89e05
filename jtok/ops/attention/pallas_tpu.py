"""TPU kernel of attention over a cache and a tree.

Grid: rows, key heads, tiles of nodes, blocks of the cache. The query heads of one key
head are the rows of one matrix product. The first step attends among the nodes, each
later one to a block of the cache; blocks past a row's length, or below every window,
are neither read nor computed: their index stays that of the last block in use, which
the pipeline does not fetch again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jtok.errors import UnsupportedImplementationError
from jtok.ops.attention.reference import MASKED

__all__ = ["NAME", "cached_attention", "check_supported"]

NAME = "jtok_cached_attention"

_ROWS = 512  # query rows (heads of a group times nodes) of a tile
_SCORES = 2**20  # of a tile over all nodes, in float32: 4 MB
_LANES = 128
_VMEM = 32 * 2**20  # bytes that the compiler may use; the default is half of that
_DTYPES = ("bfloat16", "float32")


def check_supported(query: Any, key: Any, cache_key: Any, block: int) -> None:
    """Raises `UnsupportedImplementationError` for what the kernel does not take."""
    nodes, group, dim = query.shape[1], query.shape[2] // key.shape[1], query.shape[3]
    dtypes = {x.dtype.name for x in (query, key, cache_key)}
    fits = group * _sublanes(query.dtype) * max(nodes, block) <= 2 * _SCORES
    reasons = {
        f"dtypes {sorted(dtypes)}, expected one of {_DTYPES} for all": (
            len(dtypes) > 1 or not dtypes <= set(_DTYPES)
        ),
        f"head_dim {dim}, expected at most 512": dim > 512,
        f"{nodes} nodes and {group} query heads a key head, whose scores do not fit": (
            not fits
        ),
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise UnsupportedImplementationError(
                f"implementation: 'pallas_tpu' cannot run: got {reason}."
            )


def cached_attention(
    query: Array, key: Array, value: Array, cache_key: Array, cache_value: Array,
    length: Array, allow: Array, first: Array, *, scale: float, softcap: float | None,
    block: int, interpret: Any = False,
) -> Array:  # fmt: skip
    """As `api.cached_attention`; `first` is the lowest slot that each node sees."""
    batch, nodes, heads, dim = query.shape
    kv_heads, capacity = cache_key.shape[1:3]
    group = heads // kv_heads
    tile = _tile(nodes, group, query.dtype)
    padded = pl.cdiv(nodes, tile) * tile
    block = min(block, capacity)
    if block < capacity:  # blocks lie on the tiles of memory
        block = min(pl.cdiv(block, _LANES) * _LANES, capacity)
    blocks = pl.cdiv(capacity, block)
    pad = lambda x, axis: jnp.pad(
        x, [(0, padded - nodes if i == axis else 0) for i in range(x.ndim)]
    )
    grouped = query.reshape(batch, nodes, kv_heads, group, dim)
    grouped = pad(grouped.transpose(0, 2, 3, 1, 4), 3)
    # 1 where a node may look, 0 where not, -1 where no node is.
    seen = jnp.pad(
        pad(allow.astype(jnp.int32), 1),
        ((0, 0), (0, 0), (0, padded - nodes)),
        constant_values=-1,
    )
    lowest = jnp.min(first, axis=1) // block
    in_use = pl.cdiv(length.astype(jnp.int32), block)

    def cache_index(b: Any, h: Any, t: Any, j: Any, low: Any, use: Any, _: Any) -> Any:
        del t
        return b, h, jnp.clip(low[b] + j, 0, jnp.maximum(use[b] - 1, 0)), 0

    head_tile = lambda b, h, t, j, *_: (b, h, 0, t, 0)
    whole = lambda b, h, t, j, *_: (b, h, 0, 0)
    kernel = functools.partial(
        _kernel, scale=scale, softcap=softcap, block=block, last=blocks - 1
    )
    mixed = pl.pallas_call(
        kernel,
        name=NAME,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, kv_heads, padded // tile, blocks),
            in_specs=[
                pl.BlockSpec((1, 1, group, tile, dim), head_tile),
                pl.BlockSpec((1, 1, padded, dim), whole),
                pl.BlockSpec((1, 1, padded, dim), whole),
                pl.BlockSpec((1, 1, block, dim), cache_index),
                pl.BlockSpec((1, 1, block, dim), cache_index),
                pl.BlockSpec((1, tile, padded), lambda b, h, t, j, *_: (b, t, 0)),
                pl.BlockSpec((1, tile, 1), lambda b, h, t, j, *_: (b, t, 0)),
            ],
            out_specs=pl.BlockSpec((1, 1, group, tile, dim), head_tile),
            scratch_shapes=[
                pltpu.VMEM((group * tile, _LANES), jnp.float32),
                pltpu.VMEM((group * tile, _LANES), jnp.float32),
                pltpu.VMEM((group * tile, dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(grouped.shape, query.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_VMEM,
        ),
        interpret=interpret,
    )(
        lowest, in_use, length.astype(jnp.int32), grouped, pad(key, 2), pad(value, 2),
        cache_key, cache_value, seen, pad(first, 1)[..., None],
    )  # fmt: skip
    mixed = mixed[:, :, :, :nodes].transpose(0, 3, 1, 2, 4)
    return mixed.reshape(query.shape)


def _sublanes(dtype: Any) -> int:
    return 32 // jnp.dtype(dtype).itemsize


def _tile(nodes: int, group: int, dtype: Any) -> int:
    """Nodes of a tile: few enough rows, and scores over all nodes that fit."""
    step = _sublanes(dtype)
    most = min(_ROWS // group, _SCORES // (group * nodes), nodes)
    return max(1, pl.cdiv(most, step)) * step


def _kernel(
    lowest: Any, in_use: Any, length: Any, query: Any, key: Any, value: Any,
    cache_key: Any, cache_value: Any, seen: Any, first: Any, out: Any, best: Any,
    total: Any, mixed: Any, *, scale: float, softcap: float | None, block: int,
    last: int,
) -> None:  # fmt: skip
    row, step = pl.program_id(0), pl.program_id(3)
    group, tile, dim = query.shape[2:]
    attend = functools.partial(
        _attend, query[0, 0].reshape(group * tile, dim), scale, softcap
    )

    @pl.when(step == 0)
    def _among_nodes() -> None:
        best[...] = jnp.full(best.shape, -jnp.inf, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        mixed[...] = jnp.zeros(mixed.shape, jnp.float32)
        may = seen[0][None]
        hide = lambda scores: jnp.where(
            may > 0, scores, jnp.where(may < 0, -jnp.inf, MASKED)
        )
        attend(key[0, 0], value[0, 0], hide, (group, tile), best, total, mixed)

    @pl.when(lowest[row] + step < in_use[row])
    def _over_cache() -> None:
        start = (lowest[row] + step) * block
        column = start + jax.lax.broadcasted_iota(jnp.int32, (1, tile, block), 2)
        used = (column < length[row]) & (column >= first[...])
        hide = lambda scores: jnp.where(used, scores, -jnp.inf)
        # What lies past the end of the cache may be anything, also NaN.
        slot = start + jax.lax.broadcasted_iota(jnp.int32, (block, dim), 0)
        values = jnp.where(slot < length[row], cache_value[0, 0], 0)
        attend(cache_key[0, 0], values, hide, (group, tile), best, total, mixed)

    @pl.when(step == last)
    def _finish() -> None:
        result = mixed[...] / total[:, :1]
        out[0, 0] = result.reshape(group, tile, dim).astype(out.dtype)


def _attend(
    query: Array, scale: float, softcap: float | None, key: Array, value: Array,
    hide: Callable[[Array], Array], split: tuple[int, int], best: Any, total: Any,
    mixed: Any,
) -> None:  # fmt: skip
    """One more part of the running softmax; `hide` masks `[group, tile, keys]`."""
    # A float32 product must not round to bfloat16 on the way.
    exact = query.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    scores = jax.lax.dot_general(
        query, key, (((1,), (1,)), ((), ())), precision=precision,
        preferred_element_type=jnp.float32,
    ) * scale  # fmt: skip
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    shape = scores.shape
    scores = hide(scores.reshape(*split, shape[1])).reshape(shape)
    old = best[:, :1]
    higher = jnp.maximum(old, jnp.max(scores, axis=1, keepdims=True))
    shrink, weights = jnp.exp(old - higher), jnp.exp(scores - higher)
    added = jax.lax.dot_general(
        weights.astype(value.dtype), value, (((1,), (0,)), ((), ())),
        precision=precision, preferred_element_type=jnp.float32,
    )  # fmt: skip
    best[...] = jnp.broadcast_to(higher, best.shape)
    summed = total[:, :1] * shrink + jnp.sum(weights, axis=1, keepdims=True)
    total[...] = jnp.broadcast_to(summed, total.shape)
    mixed[...] = mixed[...] * shrink + added
