"""The softmax over tables of generated rows, streamed in blocks of the vocabulary.

A table for a large vocabulary is never held, and neither are its logits: blocks of rows
are made, used and forgotten, and the gradient makes them once more.

Source: Huang et al. 2023, arXiv 2305.16349 (logits against a random table). Differs:
streamed.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jtok.errors import check
from jtok.ops.generated_rows import GeneratedTable, among, mixed_rows, table_rows
from jtok.ops.sharding import AnyMesh, current_mesh
from jtok.ops.unembed.walk import LOW, Layout, repeat, take

__all__ = [
    "RowStatistics",
    "generated_cross_entropy",
    "generated_log_sum_exp",
    "generated_statistics",
]

_HELD = 2**23  # float32 numbers of a block: its rows and its logits
_LEAST = 128


@struct.dataclass
class RowStatistics:
    """What the distribution over a generated table says at every token.

    Attributes:
      log_sum_exp: `[batch, seq]` float32 normaliser, in nats.
      top_ids: `[batch, seq, k]` int32, best first, ties to the lower id.
      top_logits: `[batch, seq, k]` float32.
    """

    log_sum_exp: jax.Array
    top_ids: jax.Array
    top_logits: jax.Array


class _Static(NamedTuple):
    shape: GeneratedTable  # without arrays
    layout: Layout
    block: int
    softcap: float | None
    keep: int


def generated_cross_entropy(
    hidden: Float[Array, "batch seq dim"],
    table: GeneratedTable,
    targets: Int[Array, "batch seq"],
    *,
    softcap: float | None = None,
    block: int | None = None,
    mesh: AnyMesh | None = None,
) -> Float[Array, "batch seq"]:
    """Cross-entropy of targets against each sequence's own table, in nats.

    Neither tables nor logits are written whole, in the gradient neither. Gradients
    reach `hidden`, the learned and the fixed rows and the scale.

    Args:
      hidden: `[batch, seq, dim]`, after the final norm.
      table: from `generated_table`.
      targets: `[batch, seq]` int32, clamped into the vocabulary. A target that is
        excluded counts 0.
      softcap: logits become `softcap * tanh(logits / softcap)`, None for no cap.
      block: vocabulary entries at a time (static); None holds about 32 MB.
      mesh: None means the mesh of `jax.set_mesh`; where its rules split the
        vocabulary, every device makes the rows of its own part.

    Returns:
      `[batch, seq]` float32.

    Raises:
      ArgumentError: `block` below 1, or hidden states of another size.

    Source: arXiv 2305.16349, section 3.

    Example:
      >>> table = generated_table(row_keys(jnp.array([7])), 8, 4)
      >>> loss = generated_cross_entropy(
      ...     jnp.zeros((1, 2, 4)), table, jnp.array([[0, 5]]))
      >>> bool(jnp.allclose(loss, jnp.log(8)))
      True
    """
    options: dict[str, Any] = {"softcap": softcap, "block": block, "mesh": mesh}
    normaliser = generated_log_sum_exp(hidden, table, **options)
    rows = table_rows(table, targets)
    logit = jnp.einsum("btd,btd->bt", hidden, rows, preferred_element_type=jnp.float32)
    if softcap is not None:
        logit = softcap * jnp.tanh(logit / softcap)
    return jnp.where(among(targets, table.excluded_ids), 0.0, normaliser - logit)


def generated_log_sum_exp(
    hidden: Float[Array, "batch seq dim"],
    table: GeneratedTable,
    *,
    softcap: float | None = None,
    block: int | None = None,
    mesh: AnyMesh | None = None,
) -> Float[Array, "batch seq"]:
    """Log-sum-exp of the logits against each sequence's own table.

    Args:
      hidden: `[batch, seq, dim]`, after the final norm.
      table: from `generated_table`.
      softcap: of the logits, None for no cap.
      block: vocabulary entries at a time (static); None holds about 32 MB.
      mesh: None means the mesh of `jax.set_mesh`.

    Returns:
      `[batch, seq]` float32 nats, with gradients as `generated_cross_entropy` has.

    Raises:
      ArgumentError: `block` below 1, or hidden states of another size.

    Source: arXiv 2305.16349, section 3. Differs: streamed over the vocabulary.

    Example:
      >>> table = generated_table(row_keys(jnp.array([7])), 8, 4, excluded_ids=(0,))
      >>> found = generated_log_sum_exp(jnp.zeros((1, 1, 4)), table)
      >>> bool(jnp.allclose(found, jnp.log(7)))
      True
    """
    static, arrays = _prepared(hidden, table, softcap, block, mesh, keep=0)
    return _log_sum_exp(static, hidden, table.keys, arrays)


def generated_statistics(
    hidden: Float[Array, "batch seq dim"],
    table: GeneratedTable,
    *,
    top_k: int = 1,
    softcap: float | None = None,
    block: int | None = None,
    mesh: AnyMesh | None = None,
) -> RowStatistics:
    """Normaliser and best ids against each sequence's own table; no gradients.

    Ties go to the lower id.

    Args:
      hidden: `[batch, seq, dim]`, after the final norm.
      table: from `generated_table`.
      top_k: how many of the best, 1 to the vocabulary's size (static).
      softcap: of the logits, None for no cap.
      block: vocabulary entries at a time (static); None holds about 32 MB.
      mesh: None means the mesh of `jax.set_mesh`.

    Returns:
      `RowStatistics`; `top_ids[..., 0]` is the arg-max.

    Raises:
      ArgumentError: a number out of range, or hidden states of another size.

    Source: arXiv 2305.16349, section 3. Differs: streamed over the vocabulary.

    Example:
      >>> table = generated_table(row_keys(jnp.array([7])), 8, 16)
      >>> hidden = table_rows(table, jnp.array([[5, 2]]))
      >>> generated_statistics(hidden, table).top_ids[..., 0].tolist()
      [[5, 2]]
    """
    most = table.vocab_size
    check(1 <= top_k <= most, "top_k", top_k, f"1 to {most}")
    static, arrays = _prepared(hidden, table, softcap, block, mesh, keep=top_k)
    hidden, arrays = jax.lax.stop_gradient((hidden, arrays))
    found = _on_shards(static, hidden, table.keys, arrays)
    return RowStatistics(found["lse"], found["ids"], found["top"])


Learned = dict[str, Array]


def _prepared(
    hidden: Array, table: GeneratedTable, softcap: float | None, block: int | None,
    mesh: AnyMesh | None, keep: int,
) -> tuple[_Static, Learned]:  # fmt: skip
    batch, seq, dim = hidden.shape
    check(block is None or block >= 1, "block", block, "None or at least 1")
    check(dim == table.dim, "hidden", hidden.shape, f"vectors of size {table.dim}")
    good = batch == table.keys.shape[0]
    check(good, "hidden", hidden.shape, f"{table.keys.shape[0]} sequences, as keys")
    layout = Layout.of(current_mesh(mesh), batch, table.vocab_size)
    local = table.vocab_size // layout.parts(layout.vocab)
    rows = batch // layout.parts(layout.tokens)
    block = min(block or max(_LEAST, _HELD // (rows * (seq + dim))), local)
    arrays = {"scale": table.scale}
    arrays |= {} if table.learned is None else {"learned": table.learned}
    arrays |= {} if table.fixed_rows is None else {"fixed_rows": table.fixed_rows}
    nothing: dict[str, Any] = dict.fromkeys(("keys", "scale", "learned", "fixed_rows"))
    shape = dataclasses.replace(table, **nothing)
    return _Static(shape, layout, block, softcap, keep), arrays


def _specs(static: _Static, arrays: Learned) -> dict[str, Any]:
    layout = static.layout
    whole, split = layout.spec(), layout.spec("vocab", None)
    return {name: split if name == "learned" else whole for name in arrays}


def _on_shards(
    static: _Static, hidden: Array, keys: Array, arrays: Learned
) -> dict[str, Array]:
    layout = static.layout
    rows = layout.spec("tokens")
    specs = (rows, rows, _specs(static, arrays))
    local = functools.partial(_local_statistics, static)
    return layout.run(local, specs, rows, hidden, keys, arrays)


def _block_logits(
    static: _Static, hidden: Array, keys: Array, arrays: Learned, first: Any
) -> Array:
    """Float32 logits over the ids from `first` on; `learned` holds this block's."""
    table = dataclasses.replace(
        static.shape,
        keys=keys,
        scale=arrays["scale"],
        fixed_rows=arrays.get("fixed_rows"),
    )
    ids = jnp.broadcast_to(
        (first + jnp.arange(static.block, dtype=jnp.int32))[None],
        (hidden.shape[0], static.block),
    )
    learned = arrays.get("learned")
    rows = mixed_rows(table, ids, None if learned is None else learned[None])
    logits = jnp.einsum(
        "btd,bvd->btv", hidden, rows, preferred_element_type=jnp.float32
    )
    cap = static.softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _of_block(static: _Static, arrays: Learned, start: Any) -> Learned:
    if "learned" not in arrays:
        return arrays
    return {**arrays, "learned": take(arrays["learned"], start, static.block)}


def _counted(static: _Static, first: Any, start: Any, fresh_from: Any) -> Array:
    """`[1, 1, block]` entries that have probability and were not in a block before."""
    index = jnp.arange(static.block, dtype=jnp.int32)
    fresh = start + index >= fresh_from
    return (fresh & ~among(first + index, static.shape.excluded_ids))[None, None]


def _shard(static: _Static) -> tuple[int, Any]:
    """Entries of this shard, and its first id."""
    size = static.shape.vocab_size // static.layout.parts(static.layout.vocab)
    return size, static.layout.offset(size)


def _local_statistics(
    static: _Static, hidden: Array, keys: Array, arrays: Learned
) -> dict[str, Array]:
    shape, keep = hidden.shape[:2], static.keep
    size, offset = _shard(static)
    state = {
        "max": jnp.full(shape, LOW, jnp.float32),
        "sum": jnp.zeros(shape, jnp.float32),
        "top": jnp.full((*shape, keep), -jnp.inf, jnp.float32),
        "ids": jnp.zeros((*shape, keep), jnp.int32),
    }

    def step(start: Any, fresh_from: Any, state: dict[str, Array]) -> dict[str, Array]:
        first = offset + start
        own = _of_block(static, arrays, start)
        logits = _block_logits(static, hidden, keys, own, first)
        counted = _counted(static, first, start, fresh_from)
        logits = jnp.where(counted, logits, -jnp.inf)
        highest = jnp.maximum(state["max"], jnp.max(logits, axis=-1))
        new = dict(state)
        new["sum"] = state["sum"] * jnp.exp(state["max"] - highest) + jnp.sum(
            jnp.exp(logits - highest[..., None]), axis=-1
        )
        new["max"] = highest
        if keep:
            values, at = jax.lax.top_k(logits, min(keep, static.block))
            found = (first + at).astype(jnp.int32)
            new["top"], new["ids"] = _best(
                keep, (state["top"], values), (state["ids"], found)
            )
        return new

    return _joined(static, repeat(size, static.block, step, state))


def _best(
    keep: int, values: tuple[Array, ...], ids: tuple[Array, ...]
) -> tuple[Array, Array]:
    """The `keep` best of several lists; of equal ones those of the earlier list."""
    top, order = jax.lax.top_k(jnp.concatenate(values, axis=-1), keep)
    return top, jnp.take_along_axis(jnp.concatenate(ids, axis=-1), order, axis=-1)


def _joined(static: _Static, state: dict[str, Array]) -> dict[str, Array]:
    axes = static.layout.vocab
    if axes:
        highest = jax.lax.pmax(state["max"], axes)
        total = jax.lax.psum(state["sum"] * jnp.exp(state["max"] - highest), axes)
        state = {**state, "max": highest, "sum": total}
        if static.keep:
            gather = lambda x: tuple(jax.lax.all_gather(x, axes))
            tops, ids = gather(state["top"]), gather(state["ids"])
            state["top"], state["ids"] = _best(static.keep, tops, ids)
    lse = state["max"] + jnp.log(state["sum"])
    return {"lse": lse, "top": state["top"], "ids": state["ids"]}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_sum_exp(static: _Static, hidden: Array, keys: Array, arrays: Learned) -> Array:
    return _on_shards(static, hidden, keys, arrays)["lse"]


def _forward(
    static: _Static, hidden: Array, keys: Array, arrays: Learned
) -> tuple[Array, Any]:
    lse = _log_sum_exp(static, hidden, keys, arrays)
    return lse, (hidden, keys, arrays, lse)


def _backward(static: _Static, saved: Any, slope: Array) -> Any:
    hidden, keys, arrays, lse = saved
    layout = static.layout
    rows, specs = layout.spec("tokens"), _specs(static, arrays)
    local = functools.partial(_local_gradient, static)
    d_hidden, d_arrays = layout.run(
        local, (rows, rows, specs, rows, rows), (rows, specs),
        hidden, keys, arrays, lse, slope,
    )  # fmt: skip
    return d_hidden, None, d_arrays


def _local_gradient(
    static: _Static, hidden: Array, keys: Array, arrays: Learned, lse: Array,
    slope: Array,
) -> tuple[Array, Learned]:  # fmt: skip
    """Gradients of this shard: the softmax, pulled back through each block's rows."""
    size, offset = _shard(static)
    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)

    def step(start: Any, fresh_from: Any, carry: Any) -> Any:
        d_hidden, sums = carry
        first = offset + start
        logits, pull = jax.vjp(
            lambda hidden, own: _block_logits(static, hidden, keys, own, first),
            hidden, _of_block(static, arrays, start),
        )  # fmt: skip
        probs = jnp.exp(logits - lse[..., None])
        counted = _counted(static, first, start, fresh_from)
        more, grads = pull(jnp.where(counted, probs * slope[..., None], 0.0))
        new = dict(sums)
        for name, grad in grads.items():
            if name == "learned":
                grad = take(sums[name], start, static.block) + grad
                new[name] = jax.lax.dynamic_update_slice_in_dim(
                    sums[name], grad, start, 0
                )
            else:
                new[name] = sums[name] + grad
        return d_hidden + more, new

    carry = (zeros(hidden), jax.tree.map(zeros, arrays))
    d_hidden, sums = repeat(size, static.block, step, carry)
    layout = static.layout
    if layout.vocab:
        d_hidden = jax.lax.psum(d_hidden, layout.vocab)
    for name, grad in sums.items():
        axes = layout.tokens + (() if name == "learned" else layout.vocab)
        sums[name] = jax.lax.psum(grad, axes) if axes else grad
    cast = jax.tree.map(lambda grad, x: grad.astype(x.dtype), sums, arrays)
    return d_hidden.astype(hidden.dtype), cast


_log_sum_exp.defvjp(_forward, _backward)
