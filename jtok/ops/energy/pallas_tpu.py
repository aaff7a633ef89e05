"""TPU kernel of energies: cosines of a tile of tokens with another, none stored.

Grid: rows of the batch, tiles of tokens, tiles of their neighbours. A tile of cosines
stands with the neighbours as its rows, so that their sum is a row of the result.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jtok.errors import UnsupportedImplementationError
from jtok.ops.energy.reference import Kernel, closeness

__all__ = ["NAME", "check_supported", "neighbour_mean"]

NAME = "jtok_energy"

_TILE = 512
_LANES = 128
_WIDEST = 2048  # two tiles of vectors that wide are 8 MB
_VMEM = 48 * 2**20


def check_supported(unit: Any) -> None:
    """Raises `UnsupportedImplementationError` for what the kernel does not take."""
    dim = unit.shape[2]
    if dim > _WIDEST:
        raise UnsupportedImplementationError(
            f"implementation: 'pallas_tpu' cannot run: got vectors of {dim}, expected "
            f"at most {_WIDEST}."
        )


def neighbour_mean(
    unit: Array, seen: Array, margin: Array, *, kernel: Kernel, alpha: float,
    interpret: Any = False,
) -> Array:  # fmt: skip
    """As `reference.neighbour_mean`."""
    batch, seq, dim = unit.shape
    tile = min(_TILE, pl.cdiv(seq, _LANES) * _LANES)
    padded = pl.cdiv(seq, tile) * tile
    wide = jnp.pad(unit, ((0, 0), (0, padded - seq), (0, 0)))
    real = jnp.pad(seen, ((0, 0), (0, padded - seq)))[..., None]
    count = jnp.maximum(jnp.sum(seen, axis=1), 1.0)
    total = pl.pallas_call(
        functools.partial(_kernel, kernel=kernel, alpha=alpha),
        name=NAME,
        grid=(batch, padded // tile, padded // tile),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, tile, dim), lambda b, i, j: (b, i, 0)),
            pl.BlockSpec((1, tile, dim), lambda b, i, j: (b, j, 0)),
            pl.BlockSpec((1, tile, 1), lambda b, i, j: (b, j, 0)),
        ],
        out_specs=pl.BlockSpec((1, 1, tile), lambda b, i, j: (b, 0, i)),
        out_shape=jax.ShapeDtypeStruct((batch, 1, padded), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_VMEM,
        ),
        interpret=interpret,
    )(margin.reshape(1, 1), wide, wide, real)
    return total[:, 0, :seq] / count[:, None]


def _kernel(
    margin: Any, some: Any, others: Any, real: Any, out: Any, *, kernel: Kernel,
    alpha: float,
) -> None:  # fmt: skip
    @pl.when(pl.program_id(2) == 0)
    def _start() -> None:
        out[...] = jnp.zeros(out.shape, jnp.float32)

    cosine = jax.lax.dot_general(
        others[0], some[0], (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip
    # Mosaic has no expm1.
    expm1 = lambda z: jnp.tanh(0.5 * z) * (jnp.exp(z) + 1.0)
    value = closeness(cosine, margin[0, 0], kernel, alpha, expm1)
    value = jnp.where(real[0] > 0, value, 0.0)
    out[0] += jnp.sum(value, axis=0, keepdims=True)
