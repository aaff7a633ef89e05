"""A small head that reads a latent and the token before: it makes drafts agree.

Mask tokens predict their tokens each for itself. The head corrects each by the token
that was just chosen, so that a run of drafts fits together; it costs two small matrix
products a token beside the unembedding.

Source: arXiv 2507.11851, section 3 (sampler head).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.errors import check
from jtok.ops import Readout, Want, readout_logits
from jtok.ops.unembed import readout, vocab_statistics
from jtok.predict.heads import DraftHead

__all__ = ["draft_log_probs", "mask_head", "sampler_hidden", "sampler_init"]

PyTree = Any
_EPS = 1e-5


def sampler_init(width: int, key: jax.Array) -> PyTree:
    """Random parameters of a sampler head, in float32.

    Args:
      width: of the model.
      key: typed PRNG key, consumed.

    Returns:
      `first` and `second`, each `kernel` `[in, width]` (variance 1 / in), `bias`, and
      `norm` with `scale` and `bias`.

    Raises:
      ArgumentError: a width below 1.

    Source: arXiv 2507.11851, section 3.

    Example:
      >>> sampler_init(4, jax.random.key(0))["first"]["kernel"].shape
      (8, 4)
    """
    check(width >= 1, "width", width, "at least 1")
    keys = jax.random.split(key)

    def block(key: jax.Array, rows: int) -> PyTree:
        return {
            "kernel": jax.random.normal(key, (rows, width)) * rows**-0.5,
            "bias": jnp.zeros(width),
            "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        }

    return {"first": block(keys[0], 2 * width), "second": block(keys[1], width)}


def sampler_hidden(
    params: PyTree,
    previous: Float[Array, "*tokens dim"],
    latents: Float[Array, "*tokens dim"],
) -> Float[Array, "*tokens dim"]:
    """What the unembedding reads in place of a latent, given the token before.

    Twice: a linear map, SiLU, layer norm; in float32.

    Args:
      params: as `sampler_init` makes them.
      previous: `[..., dim]` rows of the embedding, of the token right before.
      latents: `[..., dim]` what the model gives after its final norm.

    Returns:
      `[..., dim]` in the dtype of `latents`.

    Source: arXiv 2507.11851, section 3. Differs: width, biases and the norm's epsilon
    (1e-5) are not in the text.

    Example:
      >>> params = sampler_init(4, jax.random.key(0))
      >>> sampler_hidden(params, jnp.ones((2, 4)), jnp.ones((2, 4))).shape
      (2, 4)
    """
    wide = lambda x: x.astype(jnp.float32)
    x = jnp.concatenate([wide(previous), wide(latents)], axis=-1)
    for block in (params["first"], params["second"]):
        bias = wide(block["bias"])
        x = x @ wide(block["kernel"])
        x = _norm(jax.nn.silu(x + jnp.broadcast_to(bias, x.shape)), block["norm"])
    return x.astype(latents.dtype)


def _norm(x: Array, params: PyTree) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + _EPS)
    scale, bias = (params[name].astype(jnp.float32) for name in ("scale", "bias"))
    return x * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(bias, x.shape)


@functools.lru_cache(maxsize=64)
def mask_head(
    steps: int, *, softcap: float | None = None, shortlist: int | None = None
) -> DraftHead:
    """Drafts from the latents of a block of mask tokens, one token after another.

    The context is the latents, `[batch, steps, dim]`. Parameters are `tokens`
    `[vocab, dim]` (the embedding), `unembed` `[vocab, dim]`, `bias` `[vocab]` or None,
    and `sampler`, None for none: then each draft is read out of its latent alone.

    Args:
      steps: mask tokens of a block.
      softcap: of the logits, None for no cap.
      shortlist: look for a draft among so many ids only, the best of its latent by the
        model's own readout; one pass over the unembedding then serves all steps. None
        looks at all. Changes drafts, never what is emitted.

    Returns:
      `DraftHead`; equal arguments give the same one.

    Raises:
      ArgumentError: a number below 1.

    Source: arXiv 2507.11851, section 3; the shortlist is this library's.

    Example:
      >>> head = mask_head(2)
      >>> head.steps
      2
    """
    check(steps >= 1, "steps", steps, "at least 1")
    good = shortlist is None or shortlist >= 1
    check(good, "shortlist", shortlist, "None or at least 1")

    def init(params: PyTree, context: Array) -> PyTree:
        if shortlist is None:
            return ()
        count = min(shortlist, params["unembed"].shape[0])
        read = _read(params, context, Want(top_k=count), softcap)
        ids: Any = read.top_ids
        return ids[:, None]  # [batch, 1, steps, count]: of every node of a tree

    def step(
        params: PyTree, context: Array, state: PyTree, tokens: Array, index: int
    ) -> tuple[Array, PyTree]:
        latents = context[:, index][:, None]
        latents = jnp.broadcast_to(latents, (*tokens.shape, latents.shape[-1]))
        hidden = latents
        if params["sampler"] is not None:
            hidden = sampler_hidden(
                params["sampler"], params["tokens"][tokens], latents
            )
        if shortlist is None:
            return hidden, state
        return _among(params, hidden, state[:, :, index], softcap), state

    def read(params: PyTree, hidden: Array, want: Want) -> Readout:
        if shortlist is not None:
            return readout_logits(hidden, want)
        return _read(params, hidden, want, softcap)

    return DraftHead(init, step, read, steps)


def _read(params: PyTree, hidden: Array, want: Want, softcap: float | None) -> Readout:
    return readout(
        hidden, params["unembed"], want, bias=params["bias"], softcap=softcap
    )


def _among(
    params: PyTree,
    hidden: Array,
    ids: Int[Array, "batch nodes count"],
    softcap: float | None,
) -> Float[Array, "batch nodes vocab"]:
    """Logits of some ids; minus infinity elsewhere."""
    rows = params["unembed"][ids]
    logits = jnp.einsum(
        "bnd,bncd->bnc", hidden, rows, preferred_element_type=jnp.float32
    )
    if params["bias"] is not None:
        logits = logits + params["bias"][ids].astype(jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    batch, nodes, _ = ids.shape
    empty = jnp.full((batch, nodes, params["unembed"].shape[0]), -jnp.inf)
    at = (jnp.arange(batch)[:, None, None], jnp.arange(nodes)[None, :, None], ids)
    return empty.at[at].set(logits)


def draft_log_probs(
    head: DraftHead,
    params: PyTree,
    context: Array,
    before: Int[Array, "batch drafts"],
    tokens: Int[Array, "batch drafts"],
    levels: tuple[int, ...],
    *,
    softcap: float | None = None,
) -> Float[Array, "batch drafts"]:
    """What a head without a shortlist thought of drafts, in nats.

    Args:
      head: as `mask_head` makes it.
      params: of the head.
      context: latents, `[batch, steps, dim]`.
      before: `[batch, drafts]` int32 the token before each draft.
      tokens: `[batch, drafts]` int32 the drafts.
      levels: for each draft the step that made it (static).
      softcap: of the logits.

    Returns:
      `[batch, drafts]` float32 log-probabilities, at temperature 1.
    """
    hidden = [
        head.step(params, context, (), before[:, i : i + 1], level)[0]
        for i, level in enumerate(levels)
    ]
    found = vocab_statistics(
        jnp.concatenate(hidden, axis=1), params["unembed"], tokens,
        bias=params["bias"], softcap=softcap, entropy=False,
    )  # fmt: skip
    return -found.cross_entropy
