"""Readouts of hidden states over the vocabulary: which kernel, on which devices."""

import functools
from collections.abc import Callable
from typing import Any

from jax.sharding import AxisType
from jaxtyping import Array, Float

from jtok.errors import UnsupportedImplementationError, check
from jtok.ops.implementation import choose, target_platform
from jtok.ops.readouts import Readout, Want
from jtok.ops.sharding import AnyMesh, current_mesh, partition_spec
from jtok.ops.unembed import reference
from jtok.ops.unembed.walk import Layout

__all__ = ["readout"]

_BLOCK = 16384
_GPU_LOGITS = 2**24  # of one block; turns of a loop are dearer there than memory


def readout(
    hidden: Float[Array, "batch nodes dim"],
    weight: Float[Array, "vocab dim"],
    want: Want,
    *,
    bias: Float[Array, " vocab"] | None = None,
    softcap: float | None = None,
    block: int | None = None,
    implementation: str | None = None,
    platform: str | None = None,
    mesh: AnyMesh | None = None,
    interpret: Any = False,
) -> Readout:
    """Reads hidden states out over the vocabulary, block by block.

    Ties go to the lower id. Top-p, min-p and `want.rows` need all logits of a call
    at once; everything else holds one block. On a mesh whose rules split the
    vocabulary every device reads its own part; one small collective joins them.

    Args:
      hidden: `[batch, nodes, dim]`, after the final norm.
      weight: `[vocab, dim]` unembedding.
      want: what to return.
      bias: `[vocab]` or None.
      softcap: logits become `softcap * tanh(logits / softcap)`, None for no cap.
      block: vocabulary entries at a time (static); None takes 16384 (on a GPU more,
        where few nodes leave room), the kernel what fits.
      implementation: "pallas_tpu", "xla", or None: the first that can run (static).
        The kernel takes no top-p, min-p or rows, and top lists up to 32.
      platform: "cpu", "gpu" or "tpu" where code for another platform than that of the
        mesh, or of JAX's default backend, is compiled (static).
      mesh: None means the mesh of `jax.set_mesh`.
      interpret: True, or `pltpu.InterpretParams`, interprets the named kernel (static).

    Returns:
      `Readout`; fields that were not asked for are None.

    Raises:
      ArgumentError: `block` below 1, or an unknown name.
      UnsupportedImplementationError: the named implementation cannot run here.

    Example:
      >>> out = readout(jnp.eye(3)[None], jnp.eye(3), Want(top_k=1))
      >>> out.choice.tolist(), out.top_ids[0, :, 0].tolist()
      ([[0, 1, 2]], [0, 1, 2])
    """
    check(block is None or block >= 1, "block", block, "None or at least 1")
    mesh = current_mesh(mesh)
    vocab = weight.shape[0]
    dense = want.rows or (want.draw is not None and want.draw.dense)
    args = (hidden, weight, want, bias)
    run_on = target_platform(platform, mesh)
    width = block or _BLOCK
    if block is None and run_on == "gpu":
        tokens = hidden.shape[0] * hidden.shape[1]
        width = max(_BLOCK, _GPU_LOGITS // tokens)

    def xla() -> Readout:
        split = mesh is not None and partition_spec(("vocab",), mesh, shape=(vocab,))[0]
        if dense or not split or _is_manual(mesh):
            return reference.readout(*args, softcap, width)
        run = functools.partial(
            reference.running, softcap=softcap, block=width, vocab=vocab
        )
        return _on_shards(run, mesh, *args)

    def pallas_tpu() -> Readout:
        from jtok.ops.unembed import pallas_tpu as kernel

        if dense:
            raise UnsupportedImplementationError(
                "implementation: 'pallas_tpu' cannot run: got a readout that needs all "
                "logits at once (rows, top-p or min-p)."
            )
        kernel.check_supported(hidden, weight, reference.kept(want, vocab)[0])
        run = functools.partial(
            kernel.running, softcap=softcap, block=block, vocab=vocab,
            interpret=interpret,
        )  # fmt: skip
        return _on_shards(run, mesh, *args)

    return choose(
        implementation,
        {"xla": xla, "pallas_tpu": pallas_tpu},
        platform=run_on,
        interpret=interpret,
    )


def _is_manual(mesh: AnyMesh | None) -> bool:
    """Inside a shard_map, where arrays are local already."""
    return mesh is not None and AxisType.Manual in mesh.axis_types


def _on_shards(
    run: Callable, mesh: AnyMesh | None, hidden: Array, weight: Array, want: Want,
    bias: Array | None,
) -> Readout:  # fmt: skip
    """Every device's own rows and part of the vocabulary, joined."""
    layout = Layout.of(mesh, hidden.shape[0], weight.shape[0])
    vocab = weight.shape[0]

    def local(hidden: Array, weight: Array, want: Want, bias: Any) -> Readout:
        offset = layout.offset(weight.shape[0])
        state = run(hidden, weight, want, bias, offset=offset)
        return reference.finish(reference.join(state, layout.vocab), want, vocab)

    rows = layout.spec("tokens")
    by_id = layout.spec("vocab")
    specs = (rows, by_id, rows, None if bias is None else by_id)
    if mesh is not None and not _is_manual(mesh):
        # Without a split too: a kernel is never placed by the compiler.
        return layout.mapped(local, specs, rows)(hidden, weight, want, bias)
    return local(hidden, weight, want, bias)
