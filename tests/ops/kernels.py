"""What the tests of kernels share: interpretation, and compiling without a device."""

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

__all__ = ["compiled", "lowered", "race_checked"]


def race_checked(function):
    """Calls it with interpretation as a TPU: NaN in new memory, races looked for."""
    out = jax.block_until_ready(function(pltpu.InterpretParams(detect_races=True)))
    assert not interpret_pallas_call.races.races_found
    return out


def lowered(function, args, platform="tpu"):
    """The lowered program's text, for a platform that need not be here."""
    traced = jax.jit(function).trace(args)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def compiled(function, args, sharding):
    """Compiles for devices that need not be here; `sharding` of every argument."""
    place = lambda x, one: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, args)
    placed = jax.tree.map(place, args, sharding)
    low = jax.jit(function).trace(placed).lower(lowering_platforms=("tpu",))
    return low.as_text(), low.compile()
