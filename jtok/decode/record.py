"""Keeping what a call emitted, and counting it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok.decode.state import Batch, Rules, State
from jtok.decode.types import Verdict

__all__ = ["empty_extras", "record"]


def record(
    state: State,
    batch: Batch,
    verdict: Verdict,
    *,
    stopped: Array,
    live: Array,
    rows: Array | None,
) -> State:
    """Appends what was emitted and counts it.

    `rows` are the logits of all nodes, where log-probabilities are recorded.
    """
    old, count = state.tokens, verdict.count
    kept = jnp.arange(verdict.path.shape[1])[None] < count[:, None]
    path = jnp.maximum(verdict.path, 0)

    def append(buffer: Array, new: Array) -> Array:
        wide = kept.reshape(kept.shape + (1,) * (new.ndim - 2))
        new = jnp.where(wide, new, 0).astype(buffer.dtype)
        origin = (0,) * (new.ndim - 2)
        write = lambda row, some, at: jax.lax.dynamic_update_slice(
            row, some, (at, *origin)
        )
        return jax.vmap(write)(buffer, new, old.count)

    tokens = dataclasses.replace(
        old, ids=append(old.ids, verdict.emitted), count=old.count + count
    )
    calls = jnp.broadcast_to(state.calls[:, None], kept.shape)
    gaps = state.gaps
    if verdict.readout.gap is not None:
        gaps = append(gaps, jnp.take_along_axis(verdict.readout.gap, path, axis=1))
    found = _extras(state.extras, verdict, path, rows)
    extras = {name: append(state.extras[name], new) for name, new in found.items()}
    spent = tokens.count - batch.tokens.count >= batch.budget
    nodes = verdict.tokens.shape[1]
    hits = jnp.where(kept, 1, 0)
    return dataclasses.replace(
        state,
        tokens=tokens,
        live=live & ~stopped & ~spent,
        stopped=state.stopped | stopped,
        calls=state.calls + live,
        slots=state.slots + live * nodes,
        call_of=append(state.call_of, calls),
        gaps=gaps,
        emitted_per_call=state.emitted_per_call.at[count].add(live.astype(jnp.int32)),
        node_hits=state.node_hits.at[path].add(hits),
        steps=state.steps + 1,
        extras=extras,
    )


def _extras(
    wanted: dict[str, Array], verdict: Verdict, path: Array, rows: Array | None
) -> dict[str, Array]:
    """What further buffers hold for the tokens of a call, `[batch, depth + 1, ...]`."""
    found: dict[str, Array] = {}
    if "node_of" in wanted:
        found["node_of"] = path
        found["slots_of"] = jnp.full_like(path, verdict.tokens.shape[1])
    if rows is None or not {"logprobs", "top_logprobs"} & set(wanted):
        return found
    # A token was chosen at the node above it: entry j of the path.
    along = jnp.take_along_axis(rows, path[..., None], axis=1)
    log_probs = jax.nn.log_softmax(along, axis=-1)
    if "logprobs" in wanted:
        picked = jnp.take_along_axis(log_probs, verdict.emitted[..., None], axis=-1)
        found["logprobs"] = picked[..., 0]
    if "top_logprobs" in wanted:
        count = wanted["top_logprobs"].shape[-1]
        found["top_logprobs"], found["top_ids"] = jax.lax.top_k(log_probs, count)
    return found


def empty_extras(rules: Rules, rows: int) -> dict[str, Array]:
    """The further buffers that a run with these rules keeps, all zero."""
    zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
    shape = (rows, rules.capacity)
    buffers: dict[str, Array] = {}
    if rules.trace:
        buffers |= {"node_of": zeros(shape), "slots_of": zeros(shape)}
    if rules.logprobs:
        buffers["logprobs"] = jnp.zeros(shape, jnp.float32)
    if rules.top_logprobs:
        wide = (*shape, rules.top_logprobs)
        buffers["top_ids"] = zeros(wide)
        buffers["top_logprobs"] = jnp.zeros(wide, jnp.float32)
    return buffers
