"""Work over the vocabulary, without a `[tokens, vocab]` float32 array.

Arg-max, Gumbel-max, top-k and log-sum-exp walk over blocks of the vocabulary;
the cross-entropy walks over blocks of tokens, forward and backward.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.ops import sampling
from jtok.ops.readouts import Draw, Readout, Want, readout_logits, score_gap
from jtok.ops.sharding import constrain

__all__ = ["cross_entropy", "readout"]

_BLOCK = 16384


def readout(
    hidden: Float[Array, "batch nodes dim"],
    weight: Float[Array, "vocab dim"],
    want: Want,
    *,
    bias: Float[Array, " vocab"] | None = None,
    block: int = _BLOCK,
) -> Readout:
    """Reads hidden states out over the vocabulary, block by block.

    Ties go to the lower id. Top-p, min-p and `want.rows` need all logits of a call
    at once; everything else holds one block.

    Args:
      hidden: `[batch, nodes, dim]`, after the final norm.
      weight: `[vocab, dim]` unembedding.
      want: what to return.
      bias: `[vocab]` or None.
      block: vocabulary entries at a time (static).

    Returns:
      `Readout`; fields that were not asked for are None.

    Example:
      >>> out = readout(jnp.eye(3)[None], jnp.eye(3), Want(top_k=1))
      >>> out.choice.tolist(), out.top_ids[0, :, 0].tolist()
      ([[0, 1, 2]], [0, 1, 2])
    """
    vocab = weight.shape[0]
    dense = want.rows or (want.draw is not None and want.draw.dense)

    def logits_of(start: Array | int, width: int) -> Array:
        rows = jax.lax.dynamic_slice_in_dim(weight, start, width, axis=0)
        logits = jnp.einsum(
            "bnd,vd->bnv", hidden, rows, preferred_element_type=jnp.float32
        )
        if bias is not None:
            part = jax.lax.dynamic_slice_in_dim(bias, start, width, axis=0)
            logits = logits + part.astype(jnp.float32)[None, None]
        return logits

    if dense or vocab <= block:
        return readout_logits(logits_of(0, vocab), want)
    return _blocked(logits_of, hidden.shape[:2], vocab, want, block)


def _blocked(
    logits_of: Callable[[Array, int], Array],
    shape: tuple[int, ...],
    vocab: int,
    want: Want,
    block: int,
) -> Readout:
    """Running best, second best, top-k and log-sum-exp over blocks."""
    draw = want.draw
    among = 0 if draw is None or draw.top_k is None else draw.top_k
    filtered = 0 < among < vocab
    keep = max(want.top_k, among if filtered else 0)
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

    def step(index: Array, carry: dict[str, Array]) -> dict[str, Array]:
        start = jnp.minimum(index * block, vocab - block)
        ids = (start + jnp.arange(block)).astype(jnp.int32)
        # The last block is moved back inside the vocabulary; what it repeats is masked.
        fresh = (ids >= index * block)[None, None]
        logits = jnp.where(fresh, logits_of(start, block), -jnp.inf)
        out = dict(carry)
        if want.log_sum_exp:
            out["lse"] = jnp.logaddexp(carry["lse"], jax.nn.logsumexp(logits, axis=-1))
        if keep:
            values, found = jax.lax.top_k(logits, min(keep, block))
            values = jnp.concatenate([carry["top"], values], axis=-1)
            found = jnp.concatenate([carry["ids"], ids[found]], axis=-1)
            out["top"], order = jax.lax.top_k(values, keep)
            out["ids"] = jnp.take_along_axis(found, order, axis=-1)
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

    carry = jax.lax.fori_loop(0, -(-vocab // block), step, carry)
    choice, best = carry["choice"], carry["best"]
    gap = best - carry["second"]
    if filtered and draw is not None:
        choice, best, gap = choose_among(draw, carry["top"], carry["ids"])
    top = want.top_k
    return Readout(
        choice=choice,
        gap=gap if want.gap else None,
        top_ids=carry["ids"][..., :top] if top else None,
        top_logits=carry["top"][..., :top] if top else None,
        log_sum_exp=carry["lse"] if want.log_sum_exp else None,
        score=best,
    )


def choose_among(draw: Draw, logits: Array, ids: Array) -> tuple[Array, Array, Array]:
    """Gumbel-max among the `draw.top_k` best tokens of every node: id, score, gap."""
    logits, ids = logits[..., : draw.top_k], ids[..., : draw.top_k]
    positions = draw.start[:, None] + draw.depth
    noise = sampling.gumbel_at(draw.keys, positions, ids)
    scores = draw.noised(draw.scaled(logits), noise)
    # Candidates are sorted by logit; equal scores must still go to the lower id.
    best = jnp.max(scores, axis=-1, keepdims=True)
    choice = jnp.min(jnp.where(scores == best, ids, jnp.iinfo(jnp.int32).max), axis=-1)
    rest = jnp.where(ids == choice[..., None], -jnp.inf, scores)
    return choice, best[..., 0], best[..., 0] - jnp.max(rest, axis=-1)


def cross_entropy(
    hidden: Float[Array, "*tokens dim"],
    weight: Float[Array, "vocab dim"],
    targets: Int[Array, "*tokens"],
    *,
    mask: Bool[Array, "*tokens"] | None = None,
    bias: Float[Array, " vocab"] | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """Cross-entropy of targets, in nats, over chunks of tokens.

    Logits of one chunk exist at a time, in the backward pass too (they are computed
    again).

    Args:
      hidden: `[..., dim]`, after the final norm.
      weight: `[vocab, dim]` unembedding.
      targets: `[...]` int32 in `[0, vocab)`; out-of-range ids are clamped.
      mask: `[...]` bool, False gives 0; None counts every token.
      bias: `[vocab]` or None.
      softcap: logits become `softcap * tanh(logits / softcap)`, None for no cap.
      chunk: tokens at a time (static); None chooses about 16 MB of logits.

    Returns:
      `[...]` float32 nats per token.

    Example:
      >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.ones((8, 4)), jnp.array([0, 5]))
      >>> bool(jnp.allclose(loss, jnp.log(8)))
      True
    """
    vocab, dim = weight.shape
    count = targets.size
    chunk = min(chunk or max(64, 2**22 // vocab), count)
    padding = -count % chunk
    flat = jnp.pad(hidden.reshape(count, dim), ((0, padding), (0, 0)))
    wanted = jnp.pad(targets.reshape(count), (0, padding))

    @jax.checkpoint
    def loss_of(some: Array, targets: Array) -> Array:
        logits = jnp.einsum(
            "td,vd->tv", some, weight, preferred_element_type=jnp.float32
        )
        if bias is not None:
            logits = logits + bias.astype(jnp.float32)[None]
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        picked = jnp.take_along_axis(logits, targets[:, None], axis=-1, mode="clip")
        return jax.nn.logsumexp(logits, axis=-1) - picked[:, 0]

    if count + padding == chunk:
        losses = loss_of(flat, wanted)
    else:
        # Piece i is tokens i::pieces, so that each device of a sharded batch keeps its
        # own; a run of tokens would be one device's, and all others would compute it.
        by_piece = lambda x: jnp.swapaxes(x.reshape(chunk, -1, *x.shape[1:]), 0, 1)
        pieces = (
            constrain(by_piece(flat), None, "batch", None),
            constrain(by_piece(wanted), None, "batch"),
        )
        losses = jax.lax.map(lambda piece: loss_of(*piece), pieces).T.reshape(-1)
    losses = losses[:count].reshape(targets.shape)
    return losses if mask is None else jnp.where(mask, losses, 0.0)
