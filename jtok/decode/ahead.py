"""Lowering the decoding loop before there are arrays, or the devices, to run it on."""

from typing import Any

import jax
import jax.numpy as jnp

from jtok.decode import loop, verify
from jtok.decode.drafters import no_drafter
from jtok.decode.types import Drafter, Tokens
from jtok.errors import check
from jtok.models import Model, model_target, split_layers
from jtok.ops.sharding import partition_spec, sharding_for

__all__ = ["lower_decode"]


def lower_decode(
    model: Model, *, batch: int, capacity: int, drafter: Drafter | None = None
) -> Any:
    """Lowers the loop of greedy `generate`, from shapes alone.

    Compile what comes back to see what decoding needs on the mesh of `jax.set_mesh`,
    which may be of a described topology.

    Args:
      model: its `params` may be `jax.ShapeDtypeStruct`s, as `models.abstract` gives.
      batch: rows; the devices of the rule `"batch"` must divide it.
      capacity: slots a row.
      drafter: None decodes plainly.

    Returns:
      `jax.stages.Lowered` of the steps, without the prompt.

    Raises:
      ArgumentError: `batch` does not divide.

    Example:
      >>> from jtok.testing import tiny_model
      >>> lowered = lower_decode(tiny_model(), batch=2, capacity=128)
      >>> "while" in lowered.as_text()
      True
    """
    even = partition_spec(("batch",), shape=(batch,)) == partition_spec(("batch",))
    check(even, "batch", batch, "a number that the devices of the rows divide")
    drafter = no_drafter() if drafter is None else drafter
    target = model_target(model.config, drafter.needs.taps)
    rules = loop.Rules(rule=verify.EXACT, gaps=False, capacity=capacity, chunk=64)
    run = loop.runner(target, drafter, rules)
    params = split_layers(model.params)

    def shaped(shape: tuple[int, ...], dtype: Any, *names: str | None) -> Any:
        names = (names + (None,) * len(shape))[: len(shape)]
        sharding = sharding_for(names, shape=shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    given = loop.Batch(
        tokens=Tokens(
            shaped((batch, capacity), jnp.int32, "batch"),
            shaped((batch,), jnp.int32, "batch"),
        ),
        budget=shaped((batch,), jnp.int32, "batch"),
        stop_ids=shaped((1,), jnp.int32),
        drafter=drafter.params,
    )
    state = jax.eval_shape(run.start, params, given, None, None)

    def placed(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        by_row = leaf.shape[:1] == (batch,) and not name.startswith(".drafter")
        names: tuple[str | None, ...] = ("batch",) if by_row else ()
        if name.startswith(".cache.layers"):
            names = ("batch", "kv_heads", "seq", "head_dim")
        return shaped(leaf.shape, leaf.dtype, *names)

    state = jax.tree_util.tree_map_with_path(placed, state)
    advance: Any = run.advance
    return advance.lower(params, given, state, shaped((), jnp.int32))
