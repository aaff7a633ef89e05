"""Reading out over a vocabulary that the devices of a mesh share.

Every device reads its own part; what travels is the best few of each part, never the
weights and, unless all logits are asked for, never the logits.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jtok.ops.readouts import Draw, Readout, Want, readout_logits
from jtok.ops.sharding import constrain, current_mesh, partition_spec
from jtok.ops.unembed import choose_among, readout

__all__ = ["sharded_readout"]


def sharded_readout(
    hidden: Float[Array, "batch nodes dim"],
    weight: Float[Array, "vocab dim"],
    want: Want,
    *,
    bias: Float[Array, " vocab"] | None = None,
) -> Readout:
    """`jtok.ops.readout` on the mesh of `jax.set_mesh`; the same without one.

    Where the mesh axis of the rule `"vocab"` divides the vocabulary, each device reads
    out its part and the parts' best are compared. Ties go to the lower id, and noise
    belongs to an id, so the answer is that of one device up to rounding. Top-p, min-p
    and `want.rows` gather the logits of the call.

    Args:
      hidden: `[batch, nodes, dim]`, after the final norm.
      weight: `[vocab, dim]` unembedding.
      want: what to return.
      bias: `[vocab]` or None.

    Returns:
      `Readout`; fields that were not asked for are None.

    Example:
      >>> sharded_readout(jnp.eye(3)[None], jnp.eye(3), Want()).choice.tolist()
      [[0, 1, 2]]
    """
    mesh = current_mesh()
    rows, vocab = partition_spec(("batch", "vocab"), shape=(len(hidden), len(weight)))
    if mesh is None or vocab is None:
        return readout(hidden, weight, want, bias=bias)
    draw = want.draw
    if want.rows or (draw is not None and draw.dense):
        logits = jnp.einsum(
            "bnd,vd->bnv", hidden, weight, preferred_element_type=jnp.float32
        )
        if bias is not None:
            logits = logits + bias.astype(jnp.float32)[None, None]
        logits = constrain(logits, "batch", None, "vocab")
        return readout_logits(constrain(logits, "batch", None, None), want)
    by_row = lambda tree: jax.tree.map(lambda _: PartitionSpec(rows), tree)
    by_id = PartitionSpec(vocab)
    part = functools.partial(_part, vocab, len(weight))
    specs = (by_row(hidden), by_id, by_row(want), jax.tree.map(lambda _: by_id, bias))
    shape: Any = functools.partial(readout, hidden, weight, want, bias=bias)
    return jax.shard_map(
        part,
        in_specs=specs,
        out_specs=by_row(jax.eval_shape(shape)),
        # After the gather all devices of the axis hold the same, which is not seen.
        check_vma=False,
    )(hidden, weight, want, bias)


def _part(
    axis: str | tuple[str, ...],
    vocab: int,
    hidden: Array,
    weight: Array,
    want: Want,
    bias: Array | None,
) -> Readout:
    """One device's part of the vocabulary, then the best over all parts."""
    size, draw = weight.shape[0], want.draw
    first = (jax.lax.axis_index(axis) * size).astype(jnp.int32)
    filtered = draw is not None and draw.top_k is not None and draw.top_k < vocab
    among = (draw.top_k or 0) if filtered and draw is not None else 0
    keep = max(want.top_k, among)
    local = None if draw is None or filtered else dataclasses.replace(draw, first=first)
    asked = dataclasses.replace(want, draw=local, top_k=min(keep, size))
    mine = readout(hidden, weight, asked, bias=bias)
    gather = functools.partial(jax.lax.all_gather, axis_name=axis)
    score, choice = gather(mine.score), gather(mine.choice + first)
    winner = jnp.argmax(score, axis=0)[None]  # ties: the lower part has lower ids
    pick = lambda parts: jnp.take_along_axis(parts, winner, axis=0)[0]
    out = Readout(choice=pick(choice), score=pick(score))
    if want.gap:
        others = jnp.where(
            jnp.arange(len(score))[:, None, None] == winner, -jnp.inf, score
        )
        second = jnp.maximum(jnp.max(others, 0), jnp.max(score - gather(mine.gap), 0))
        out = dataclasses.replace(out, gap=out.score - second)
    if want.log_sum_exp:
        total = jax.nn.logsumexp(gather(mine.log_sum_exp), axis=0)
        out = dataclasses.replace(out, log_sum_exp=total)
    if keep:
        out = _with_top(out, want, draw if filtered else None, keep, mine, first, axis)
    return out


def _with_top(
    out: Readout,
    want: Want,
    draw: Draw | None,
    keep: int,
    mine: Readout,
    first: Array,
    axis: str | tuple[str, ...],
) -> Readout:
    """The `keep` best of all parts; with `draw`, the choice among its `top_k`."""
    ids: Any = mine.top_ids
    # Parts one after the other: equal logits stay in the order of their ids.
    gather = functools.partial(jax.lax.all_gather, axis_name=axis, axis=2, tiled=True)
    values, found = gather(mine.top_logits), gather(ids + first)
    top, order = jax.lax.top_k(values, keep)
    found = jnp.take_along_axis(found, order, axis=-1)
    if draw is not None:
        choice, score, gap = choose_among(draw, top, found)
        gap = gap if want.gap else None
        out = dataclasses.replace(out, choice=choice, score=score, gap=gap)
    if want.top_k:
        count = want.top_k
        out = dataclasses.replace(
            out, top_ids=found[..., :count], top_logits=top[..., :count]
        )
    return out
