"""TPU kernels of attention and of the attention that keys receive.

Two passes over tiles of scores, none of which is stored. `forward` runs over the keys
of a tile of queries with a running softmax and gives the attention, the log-sum-exp and
the mass on a key set. `column_sums` runs over the queries of a tile of keys and adds up
`weight * exp(score - lse)`. Tiles that a causal mask hides are neither fetched nor
computed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jtok.errors import UnsupportedImplementationError

__all__ = ["COLUMNS", "FORWARD", "check_supported", "column_sums", "forward"]

FORWARD = "jtok_attention_forward"
COLUMNS = "jtok_attention_columns"

_TILE = 512  # queries, and keys, of a tile of scores
_LANES = 128
_VMEM = 32 * 2**20  # bytes that the compiler may use; the default is half of that
_DTYPES = ("bfloat16", "float32")


class Shape(NamedTuple):
    """What a kernel knows when it is compiled.

    Attributes:
      shift: a causal query sees the keys up to its own number plus this; None sees all.
      keys: of a tile.
      queries: of a tile.
      last: number of the last step over the inner tiles.
    """

    shift: int | None
    keys: int
    queries: int
    last: int


def check_supported(query: Any, key: Any, value: Any) -> None:
    """Raises `UnsupportedImplementationError` for what the kernels do not take."""
    arrays = [query, key] if value is None else [query, key, value]
    dtypes = {x.dtype.name for x in arrays}
    dim = max(x.shape[3] for x in arrays)
    reasons = {
        f"dtypes {sorted(dtypes)}, expected one of {_DTYPES} for all": (
            len(dtypes) > 1 or not dtypes <= set(_DTYPES)
        ),
        f"head_dim {dim}, expected at most 512": dim > 512,
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise UnsupportedImplementationError(
                f"implementation: 'pallas_tpu' cannot run: got {reason}."
            )


def forward(
    query: Array, key: Array, value: Array | None, bias: Array, on: Array | None,
    factor: Array, *, causal: bool, interpret: Any = False,
) -> tuple[Array | None, Array, Array | None]:  # fmt: skip
    """Attention `[b, seq, h, d]`, log-sum-exp and mass `[b, h, seq]`.

    `bias` is `[b, keys]` float32, -inf for keys that are not seen.
    """
    batch, seq, heads, _ = query.shape
    tiles = _tiles(query, key)
    rows, columns = tiles.rows // tiles.queries, tiles.columns // tiles.keys
    shape = Shape(tiles.shift if causal else None, tiles.keys, tiles.queries,
                  columns - 1)  # fmt: skip
    group = heads // key.shape[2]

    def of_keys(b: Any, h: Any, i: Any, j: Any) -> Any:
        return b, _over(h, group), jnp.minimum(j, _last_tile(shape, i, columns)), 0

    def flat_keys(b: Any, h: Any, i: Any, j: Any) -> Any:
        return b, 0, jnp.minimum(j, _last_tile(shape, i, columns))

    rows_of = lambda dim: pl.BlockSpec(
        (1, 1, tiles.queries, dim), lambda b, h, i, j: (b, h, i, 0)
    )
    keys_of = lambda x: pl.BlockSpec((1, 1, tiles.keys, x.shape[3]), of_keys)
    flat = pl.BlockSpec((1, 1, tiles.keys), flat_keys)
    made = lambda dim, dtype: jax.ShapeDtypeStruct(
        (batch, heads, tiles.rows, dim), dtype
    )
    scratch = lambda dim: pltpu.VMEM((tiles.queries, dim), jnp.float32)
    inputs = {
        "factor": (pl.BlockSpec(memory_space=pltpu.SMEM), _scalar(factor)),
        "query": (rows_of(query.shape[3]), _tall(query, tiles.rows)),
        "key": (keys_of(key), _tall(key, tiles.columns)),
        "bias": (flat, _flat(bias, tiles.columns, -jnp.inf)),
    }
    outputs = {"lse": (rows_of(1), made(1, jnp.float32))}
    scratches = {"best": scratch(_LANES), "total": scratch(_LANES)}
    if value is not None:
        dim = value.shape[3]
        inputs["value"] = (keys_of(value), _tall(value, tiles.columns))
        outputs["out"] = (rows_of(dim), made(dim, query.dtype))
        scratches["mixed"] = scratch(dim)
    if on is not None:
        inputs["on"] = (flat, _flat(on, tiles.columns, 0.0))
        outputs["mass"] = (rows_of(1), made(1, jnp.float32))
        scratches["among"] = scratch(_LANES)
    found = pl.pallas_call(
        functools.partial(
            _forward, names=(*inputs, *outputs, *scratches), shape=shape
        ),
        name=FORWARD,
        grid=(batch, heads, rows, columns),
        in_specs=[spec for spec, _ in inputs.values()],
        out_specs=[spec for spec, _ in outputs.values()],
        out_shape=[shape for _, shape in outputs.values()],
        scratch_shapes=[*scratches.values()],
        compiler_params=_params(), interpret=interpret,
    )(*(array for _, array in inputs.values()))  # fmt: skip
    by_name = {name: array[:, :, :seq] for name, array in zip(outputs, found)}
    return (
        by_name["out"].transpose(0, 2, 1, 3) if value is not None else None,
        by_name["lse"][..., 0],
        by_name["mass"][..., 0] if on is not None else None,
    )


def column_sums(
    query: Array, key: Array, lse: Array, weight: Array, bias: Array, factor: Array, *,
    causal: bool, interpret: Any = False,
) -> Array:  # fmt: skip
    """`[b, h, keys]` float32: sums of `weight * exp(score - lse)` over the queries.

    `lse` and `weight` are `[b, h, seq]`; a query whose `lse` is -inf sees nothing.
    """
    batch, seq, heads, _ = query.shape
    tiles = _tiles(query, key)
    rows, columns = tiles.rows // tiles.queries, tiles.columns // tiles.keys
    shape = Shape(tiles.shift if causal else None, tiles.keys, tiles.queries, rows - 1)
    group = heads // key.shape[2]

    def of_queries(b: Any, h: Any, j: Any, i: Any) -> Any:
        return b, h, jnp.maximum(i, _first_tile(shape, j, rows)), 0

    # exp(score + where it starts) is 0 where nobody looks.
    sees = (lse > -jnp.inf) & (weight != 0)
    shift = jnp.where(sees, -lse, -jnp.inf)
    column = pl.BlockSpec((1, 1, tiles.queries, 1), of_queries)
    upright = lambda x, fill: jnp.pad(
        x.astype(jnp.float32), ((0, 0), (0, 0), (0, tiles.rows - seq)),
        constant_values=fill,
    )[..., None]  # fmt: skip
    found = pl.pallas_call(
        functools.partial(_columns, shape=shape),
        name=COLUMNS,
        grid=(batch, heads, columns, rows),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, 1, tiles.queries, query.shape[3]), of_queries),
            pl.BlockSpec(
                (1, 1, tiles.keys, key.shape[3]),
                lambda b, h, j, i: (b, _over(h, group), j, 0),
            ),
            column, column,
            pl.BlockSpec((1, 1, tiles.keys), lambda b, h, j, i: (b, 0, j)),
        ],
        out_specs=pl.BlockSpec((1, 1, 1, tiles.keys), lambda b, h, j, i: (b, h, 0, j)),
        out_shape=jax.ShapeDtypeStruct((batch, heads, 1, tiles.columns), jnp.float32),
        compiler_params=_params(), interpret=interpret,
    )(
        _scalar(factor), _tall(query, tiles.rows), _tall(key, tiles.columns),
        upright(shift, -jnp.inf), upright(weight, 0.0),
        _flat(bias, tiles.columns, -jnp.inf),
    )  # fmt: skip
    return found[:, :, 0, : key.shape[1]]


# ---- in the kernels


def _forward(*refs: Any, names: tuple[str, ...], shape: Shape) -> None:
    at = dict(zip(names, refs))
    i, j = pl.program_id(2), pl.program_id(3)
    best, total = at["best"], at["total"]

    @pl.when(j == 0)
    def _start() -> None:
        best[...] = jnp.full(best.shape, -jnp.inf, jnp.float32)
        for name in {"total", "mixed", "among"} & {*names}:
            at[name][...] = jnp.zeros(at[name].shape, jnp.float32)

    @pl.when(j <= _last_tile(shape, i, shape.last + 1))
    def _tile() -> None:
        scores = _scores(at["factor"], at["query"], at["key"], at["bias"], shape, i, j)
        old = best[:, :1]
        higher = jnp.maximum(old, jnp.max(scores, axis=1, keepdims=True))
        base = jnp.where(higher > -jnp.inf, higher, 0.0)
        shrink, weights = jnp.exp(old - base), jnp.exp(scores - base)
        best[...] = jnp.broadcast_to(higher, best.shape)

        def add(sums: Any, some: Array) -> None:
            some = jnp.sum(some, axis=1, keepdims=True)
            sums[...] = jnp.broadcast_to(sums[:, :1] * shrink + some, sums.shape)

        add(total, weights)
        if "on" in at:
            add(at["among"], weights * at["on"][0])
        if "value" in at:
            value, mixed = at["value"], at["mixed"]
            added = _product(weights.astype(value.dtype), value[0, 0], (1, 0))
            mixed[...] = mixed[...] * shrink + added

    @pl.when(j == shape.last)
    def _finish() -> None:
        seen = total[:, :1] > 0
        divide = jnp.where(seen, total[:, :1], 1.0)
        at["lse"][0, 0] = jnp.where(seen, best[:, :1] + jnp.log(divide), -jnp.inf)
        if "value" in at:
            out = at["out"]
            out[0, 0] = (at["mixed"][...] / divide).astype(out.dtype)
        if "on" in at:
            at["mass"][0, 0] = at["among"][:, :1] / divide


def _columns(
    factor: Any, query: Any, key: Any, shift: Any, weight: Any, bias: Any, out: Any, *,
    shape: Shape,
) -> None:  # fmt: skip
    j, i = pl.program_id(2), pl.program_id(3)

    @pl.when(i == 0)
    def _start() -> None:
        out[...] = jnp.zeros(out.shape, jnp.float32)

    @pl.when(i >= _first_tile(shape, j, shape.last + 1))
    def _tile() -> None:
        scores = _scores(factor, query, key, bias, shape, i, j)
        share = jnp.exp(scores + shift[0, 0]) * weight[0, 0]
        out[0, 0] += jnp.sum(share, axis=0, keepdims=True)


def _scores(
    factor: Any, query: Any, key: Any, bias: Any, shape: Shape, i: Any, j: Any
) -> Array:
    """Float32 scores of tile `i` of the queries to tile `j` of the keys."""
    scores = _product(query[0, 0], key[0, 0], (1, 1)) * factor[0, 0] + bias[0]
    if shape.shift is None:
        return scores
    tile = (shape.queries, shape.keys)
    row = i * shape.queries + jax.lax.broadcasted_iota(jnp.int32, tile, 0)
    column = j * shape.keys + jax.lax.broadcasted_iota(jnp.int32, tile, 1)
    return jnp.where(column <= row + shape.shift, scores, -jnp.inf)


def _product(left: Array, right: Array, over: tuple[int, int]) -> Array:
    # A float32 product must not round to bfloat16 on the way.
    exact = left.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        left, right, (((over[0],), (over[1],)), ((), ())), precision=precision,
        preferred_element_type=jnp.float32,
    )  # fmt: skip


def _last_tile(shape: Shape, i: Any, columns: int) -> Any:
    """Number of the last tile of keys that tile `i` of the queries may see."""
    if shape.shift is None:
        return columns - 1
    last = (i + 1) * shape.queries - 1 + shape.shift
    return jnp.minimum(_over(jnp.maximum(last, 0), shape.keys), columns - 1)


def _first_tile(shape: Shape, j: Any, rows: int) -> Any:
    """Number of the first tile of queries that may see tile `j` of the keys."""
    if shape.shift is None:
        return 0
    first = jnp.maximum(j * shape.keys - shape.shift, 0)
    return jnp.minimum(_over(first, shape.queries), rows - 1)


def _over(x: Any, size: int) -> Any:
    """Which part of `size` holds `x`, which is not negative."""
    return jax.lax.div(x, jnp.int32(size))


# ---- around them


class _Tiles(NamedTuple):
    queries: int
    keys: int
    rows: int
    columns: int
    shift: int


def _tiles(query: Array, key: Array) -> _Tiles:
    """Sizes of tiles, and of the padded arrays that they cover."""
    seq, keys = query.shape[1], key.shape[1]
    step = 32 // jnp.dtype(query.dtype).itemsize
    some = min(_TILE, pl.cdiv(seq, step) * step)
    wide = min(_TILE, pl.cdiv(keys, _LANES) * _LANES)
    rows, columns = pl.cdiv(seq, some) * some, pl.cdiv(keys, wide) * wide
    return _Tiles(some, wide, rows, columns, keys - seq)


def _tall(x: Array, rows: int) -> Array:
    """[b, seq, h, d] -> [b, h, rows, d]."""
    pads = ((0, 0), (0, 0), (0, rows - x.shape[1]), (0, 0))
    return jnp.pad(x.transpose(0, 2, 1, 3), pads)


def _flat(x: Array, columns: int, fill: float) -> Array:
    """[b, keys] -> [b, 1, columns] float32."""
    pads = ((0, 0), (0, columns - x.shape[1]))
    return jnp.pad(x.astype(jnp.float32), pads, constant_values=fill)[:, None]


def _scalar(x: Array) -> Array:
    return jnp.asarray(x, jnp.float32).reshape(1, 1)


def _params() -> Any:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=_VMEM,
    )
