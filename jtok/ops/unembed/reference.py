"""Arg-max, Gumbel-max, top-k and log-sum-exp over blocks, in plain JAX.

A vocabulary, or one shard of it, is read into running values: the best and the second
best score, the best id, the log-sum-exp, the top list. Values of shards are joined,
and finished into a `Readout`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok.ops import sampling
from jtok.ops.readouts import Draw, Readout, Want, readout_logits, score_gap

__all__ = ["finish", "join", "kept", "readout", "running"]

Running = dict[str, Array]


def readout(
    hidden: Array, weight: Array, want: Want, bias: Array | None,
    softcap: float | None, block: int,
) -> Readout:  # fmt: skip
    """As `api.readout`, on one device."""
    vocab = weight.shape[0]
    if want.rows or (want.draw is not None and want.draw.dense) or vocab <= block:
        logits = _logits(hidden, weight, bias, softcap, 0, vocab)
        return readout_logits(logits, want)
    state = running(hidden, weight, want, bias, softcap, block, vocab)
    return finish(state, want, vocab)


def kept(want: Want, vocab: int) -> tuple[int, bool]:
    """Length of the top list, and whether the choice is drawn from it.

    Args:
      want: what is asked for.
      vocab: size of the whole vocabulary.
    """
    among = 0 if want.draw is None or want.draw.top_k is None else want.draw.top_k
    filtered = 0 < among < vocab
    return max(want.top_k, among if filtered else 0), filtered


def _logits(
    hidden: Array, weight: Array, bias: Array | None, softcap: float | None,
    start: Array | int, width: int,
) -> Array:  # fmt: skip
    rows = jax.lax.dynamic_slice_in_dim(weight, start, width, axis=0)
    logits = jnp.einsum("bnd,vd->bnv", hidden, rows, preferred_element_type=jnp.float32)
    if bias is not None:
        part = jax.lax.dynamic_slice_in_dim(bias, start, width, axis=0)
        logits = logits + part.astype(jnp.float32)[None, None]
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def running(
    hidden: Array, weight: Array, want: Want, bias: Array | None,
    softcap: float | None, block: int, vocab: int, offset: Array | int = 0,
) -> Running:  # fmt: skip
    """Running best, second best, top-k and log-sum-exp of one shard.

    Args:
      hidden: `[batch, nodes, dim]`.
      weight: `[shard, dim]`, the ids from `offset` on.
      want: what is asked for; no rows, no top-p, no min-p.
      bias: `[shard]` or None.
      softcap: of the logits, or None.
      block: entries at a time.
      vocab: size of the whole vocabulary.
      offset: first id of the shard.
    """
    draw, shape, local = want.draw, hidden.shape[:2], weight.shape[0]
    keep, filtered = kept(want, vocab)
    block = min(block, local)
    low = jnp.full(shape, -jnp.inf, jnp.float32)
    none = jnp.zeros(shape, jnp.int32)
    carry = {
        "best": low,
        "second": low,
        "choice": none,
        "lse": low,
        "top": jnp.full((*shape, keep), -jnp.inf, jnp.float32),
        "ids": jnp.zeros((*shape, keep), jnp.int32),
    }

    def step(index: Array, carry: Running) -> Running:
        start = jnp.minimum(index * block, local - block)
        places = start + jnp.arange(block)
        ids = (offset + places).astype(jnp.int32)
        # The last block is moved back inside the vocabulary; what it repeats is masked.
        fresh = (places >= index * block)[None, None]
        logits = _logits(hidden, weight, bias, softcap, start, block)
        logits = jnp.where(fresh, logits, -jnp.inf)
        out = dict(carry)
        if want.log_sum_exp:
            out["lse"] = jnp.logaddexp(carry["lse"], jax.nn.logsumexp(logits, axis=-1))
        if keep:
            values, found = jax.lax.top_k(logits, min(keep, block))
            out["top"], out["ids"] = _merged(
                keep, (carry["top"], values), (carry["ids"], ids[found])
            )
        if not filtered:
            scores = logits
            if draw is not None:
                scores = draw.noised(draw.scaled(logits), draw.noise(ids))
            at = jnp.argmax(scores, axis=-1).astype(jnp.int32)
            best = jnp.take_along_axis(scores, at[..., None], axis=-1)[..., 0]
            if want.gap:
                runner_up = best - score_gap(scores, at)
                loser = jnp.minimum(carry["best"], best)
                second = jnp.maximum(carry["second"], runner_up)
                out["second"] = jnp.maximum(second, loser)
            better = best > carry["best"]
            out["choice"] = jnp.where(better, ids[at], carry["choice"])
            out["best"] = jnp.maximum(best, carry["best"])
        return out

    return jax.lax.fori_loop(0, -(-local // block), step, carry)


def _merged(
    keep: int, values: tuple[Array, ...], ids: tuple[Array, ...]
) -> tuple[Array, Array]:
    """The `keep` best of several lists; of equal ones those of the earlier list."""
    top, order = jax.lax.top_k(jnp.concatenate(values, axis=-1), keep)
    return top, jnp.take_along_axis(jnp.concatenate(ids, axis=-1), order, axis=-1)


def join(state: Running, axes: tuple[str, ...]) -> Running:
    """Joins the running values of all shards along mesh axes, with one collective."""
    if not axes:
        return state
    wide = {name: x if x.ndim == 3 else x[..., None] for name, x in state.items()}
    words = [jax.lax.bitcast_convert_type(x, jnp.int32) for x in wide.values()]
    widths = [x.shape[-1] for x in words]
    packed = jax.lax.all_gather(jnp.concatenate(words, axis=-1), axes)
    every: Running = {}
    for (name, x), width in zip(wide.items(), widths):
        part, packed = packed[..., :width], packed[..., width:]
        every[name] = jax.lax.bitcast_convert_type(part, x.dtype)
    shards, keep = every["best"].shape[0], state["top"].shape[-1]
    parts = [
        {name: x[i] if name in ("top", "ids") else x[i, ..., 0]
         for name, x in every.items()}
        for i in range(shards)
    ]  # fmt: skip
    joined = parts[0]
    for part in parts[1:]:
        better = part["best"] > joined["best"]
        loser = jnp.minimum(joined["best"], part["best"])
        second = jnp.maximum(joined["second"], part["second"])
        joined = {
            "best": jnp.maximum(joined["best"], part["best"]),
            "second": jnp.maximum(second, loser),
            "choice": jnp.where(better, part["choice"], joined["choice"]),
            "lse": jnp.logaddexp(joined["lse"], part["lse"]),
        }
    tops, ids = ([part[name] for part in parts] for name in ("top", "ids"))
    if keep:
        joined["top"], joined["ids"] = _merged(keep, tuple(tops), tuple(ids))
    return joined


def finish(state: Running, want: Want, vocab: int) -> Readout:
    """The answer from the running values of the whole vocabulary."""
    choice, gap = state["choice"], state["best"] - state["second"]
    if want.draw is not None and kept(want, vocab)[1]:
        choice, gap = _choose_among(want.draw, state["top"], state["ids"])
    top = want.top_k
    return Readout(
        choice=choice,
        gap=gap if want.gap else None,
        top_ids=state["ids"][..., :top] if top else None,
        top_logits=state["top"][..., :top] if top else None,
        log_sum_exp=state["lse"] if want.log_sum_exp else None,
    )


def _choose_among(draw: Draw, logits: Array, ids: Array) -> tuple[Array, Array]:
    """Gumbel-max among the `draw.top_k` best tokens of every node."""
    logits, ids = logits[..., : draw.top_k], ids[..., : draw.top_k]
    positions = draw.start[:, None] + draw.depth
    noise = sampling.gumbel_at(draw.keys, positions, ids)
    scores = draw.noised(draw.scaled(logits), noise)
    # Candidates are sorted by logit; equal scores must still go to the lower id.
    best = jnp.max(scores, axis=-1, keepdims=True)
    choice = jnp.min(jnp.where(scores == best, ids, jnp.iinfo(jnp.int32).max), axis=-1)
    rest = jnp.where(ids == choice[..., None], -jnp.inf, scores)
    return choice, best[..., 0] - jnp.max(rest, axis=-1)
