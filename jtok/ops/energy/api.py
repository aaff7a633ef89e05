"""How many close neighbours each token has, without a matrix of all pairs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float

from jtok.errors import check
from jtok.ops.energy import reference
from jtok.ops.energy.reference import BLOCK, Kernel, unit_rows
from jtok.ops.implementation import choose, target_platform
from jtok.ops.sharding import AnyMesh, current_mesh, partition_spec

__all__ = ["energy"]

_KERNELS = ("elu", "gaussian", "paper")


def energy(
    metric: Float[Array, "batch seq dim"],
    margin: float | Float[Array, ""],
    *,
    kernel: Kernel = "elu",
    alpha: float = 1.0,
    valid: Bool[Array, "batch seq"] | None = None,
    block: int = BLOCK,
    implementation: str | None = None,
    platform: str | None = None,
    mesh: AnyMesh | None = None,
    interpret: Any = False,
) -> Float[Array, "batch seq"]:
    """The mean over all tokens of a function of their cosine with each token.

    A token with many close neighbours has a high energy, an isolated one a low one.
    The token itself is among those that are averaged. Memory grows with `block`
    times the tokens, not with their square; the TPU kernel holds one tile of cosines.
    Gradients are XLA's.

    Args:
      metric: `[batch, seq, dim]`, any scale.
      margin: cosines above it count as close.
      kernel: "elu": `z = cosine - margin`, and below 0 `alpha (exp(z) - 1)`;
        "gaussian": a normal density of `1 - cosine` with deviation `1 - margin`;
        "paper": the cosine itself above the margin, below it as "elu" (a jump).
      alpha: of "elu" and "paper".
      valid: `[batch, seq]` bool; other tokens are nobody's neighbours and get -inf.
      block: tokens whose cosines XLA holds at once (static).
      implementation: "pallas_tpu", "xla", or None: the first that can run (static).
      platform: see `cached_attention` (static).
      mesh: None means the mesh of `jax.set_mesh`; on one, the kernel runs on each
        device's own rows.
      interpret: True, or `pltpu.InterpretParams`, interprets the named kernel (static).

    Returns:
      `[batch, seq]` float32; equivariant to the order of the tokens.

    Raises:
      ArgumentError: an unknown kernel or name, or `block` below 1.
      UnsupportedImplementationError: the named implementation cannot run here.

    Source: Tran et al. 2024, arXiv 2405.16148, equation 4, and its code, whose function
      is "elu" for vision and "gaussian" for text.

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
      >>> energy(x, 0.5).argmin().item()
      2
    """
    check(kernel in _KERNELS, "kernel", kernel, f"one of {', '.join(_KERNELS)}")
    check(block >= 1, "block", block, "at least 1")
    unit = unit_rows(metric)
    seen = jnp.ones(unit.shape[:2]) if valid is None else valid.astype(jnp.float32)
    mesh = current_mesh(mesh)
    args = (unit, seen, jnp.asarray(margin, jnp.float32))
    xla = functools.partial(
        reference.neighbour_mean, kernel=kernel, alpha=alpha, block=block
    )

    def pallas_tpu() -> Array:
        from jtok.ops.energy import pallas_tpu as tpu

        tpu.check_supported(unit)
        fast = functools.partial(
            tpu.neighbour_mean, kernel=kernel, alpha=alpha, interpret=interpret
        )
        run = jax.custom_vjp(fast)
        run.defvjp(
            lambda *args: (fast(*args), args), lambda args, g: jax.vjp(xla, *args)[1](g)
        )
        return _on_shards(run, mesh, unit.shape[0])(*args)

    found = choose(
        implementation,
        {"xla": lambda: xla(*args), "pallas_tpu": pallas_tpu},
        platform=target_platform(platform, mesh),
        interpret=interpret,
    )
    return found if valid is None else jnp.where(valid, found, -jnp.inf)


def _on_shards(run: Any, mesh: AnyMesh | None, batch: int) -> Any:
    """Every device's own rows."""
    # Inside a shard_map arrays are local already.
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return run
    rows = PartitionSpec(*partition_spec(("batch",), mesh, shape=(batch,)))
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=rows,
        check_vma=False,
    )
