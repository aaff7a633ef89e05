"""Choosing the next token: noise that is tied to a position, and logit processing.

Sampling is Gumbel-max: the token is `argmax(scores + noise)`, where the noise depends
on the row's seed and the absolute position only. A row therefore draws the same tokens
whatever its batch mates, the padding, the sharding or the number of drafted nodes.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend import random as jex_random
from jaxtyping import Array, Bool, Float, Int, UInt32

__all__ = ["filter_logits", "gumbel_at", "purpose_keys", "row_keys", "uniform_at"]

# Above every position, so that no purpose meets the noise of a position.
_PURPOSES = {"accept": 2**31, "draft": 2**31 + 1}
_TINY = jnp.finfo("float32").tiny


def row_keys(seeds: Int[Array, " batch"] | UInt32[Array, " batch"]) -> Array:
    """One threefry key a row, as raw words.

    Args:
      seeds: `[batch]` integers; equal seeds give equal draws.

    Returns:
      `[batch, 2]` uint32, `jax.random.key_data(jax.random.key(seed))` of every row.

    Example:
      >>> row_keys(jnp.array([7])).shape
      (1, 2)
    """
    make = lambda seed: jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return jax.vmap(make)(seeds)


def purpose_keys(
    keys: UInt32[Array, "batch 2"], purpose: Literal["accept", "draft"]
) -> UInt32[Array, "batch 2"]:
    """Keys whose noise is independent of that of `keys`, at every position.

    Args:
      keys: `[batch, 2]` uint32 raw threefry keys (see `row_keys`).
      purpose: "accept" (whether a drawn draft is accepted) or "draft" (what a drafter
        draws for itself).

    Returns:
      `[batch, 2]` uint32.

    Example:
      >>> keys = row_keys(jnp.array([7]))
      >>> bool(jnp.any(purpose_keys(keys, "draft") == keys))
      False
    """
    word = _PURPOSES[purpose]

    def one(key: Array) -> Array:
        folded = jax.random.fold_in(jax.random.wrap_key_data(key), jnp.uint32(word))
        return jax.random.key_data(folded)

    return jax.vmap(one)(keys)


def _bits_at(key: Array, ids: Array) -> Array:
    """Threefry bits at chosen counters: what a 1-D draw holds at these indices."""
    counters = ids.astype(jnp.uint32).reshape(-1)
    words = jex_random.threefry_2x32(
        key, jnp.concatenate([jnp.zeros_like(counters), counters])
    )
    high, low = jnp.split(words, 2)
    return (high ^ low).reshape(ids.shape)


def gumbel_at(
    keys: UInt32[Array, "batch 2"],
    positions: Int[Array, "batch seq"],
    ids: Int[Array, "batch seq choices"],
) -> Float[Array, "batch seq choices"]:
    """Gumbel noise of chosen token ids at absolute positions.

    Equals `jax.random.gumbel(jax.random.fold_in(key, position), (vocab,))[ids]` for
    any `vocab` above the ids (JAX's partitionable threefry), without drawing the rest.

    Args:
      keys: `[batch, 2]` uint32 raw threefry keys (see `row_keys`).
      positions: `[batch, seq]` int32 position of the token that is looked at.
      ids: `[batch, seq, choices]` int32 token ids, `>= 0`.

    Returns:
      `[batch, seq, choices]` float32.

    Example:
      >>> keys = row_keys(jnp.array([0]))
      >>> gumbel_at(keys, jnp.array([[3]]), jnp.arange(5).reshape(1, 1, 5)).shape
      (1, 1, 5)
    """

    return -jnp.log(-jnp.log(uniform_at(keys, positions, ids)))


def uniform_at(
    keys: UInt32[Array, "batch 2"],
    positions: Int[Array, "batch seq"],
    ids: Int[Array, "batch seq choices"],
) -> Float[Array, "batch seq choices"]:
    """Uniform noise in [0, 1) of chosen ids at absolute positions.

    Never 0: the smallest value is that of the smallest float32, as Gumbel noise needs.

    Args:
      keys: `[batch, 2]` uint32 raw threefry keys (see `row_keys`).
      positions: `[batch, seq]` int32.
      ids: `[batch, seq, choices]` int32, `>= 0`.

    Returns:
      `[batch, seq, choices]` float32.

    Example:
      >>> noise = uniform_at(row_keys(jnp.array([0])), jnp.array([[3]]),
      ...                    jnp.zeros((1, 1, 1), int))
      >>> bool((noise > 0).all() and (noise < 1).all())
      True
    """

    def one(key: Array, position: Array, some: Array) -> Array:
        folded = jax.random.fold_in(jax.random.wrap_key_data(key), position)
        bits = _bits_at(jax.random.key_data(folded), some)
        # The mantissa trick of jax.random.uniform, so that both give the same floats.
        one_bits = jnp.float32(1).view(jnp.uint32)
        floats = ((bits >> 9) | one_bits).view(jnp.float32) - 1.0
        return jnp.maximum(_TINY, floats * (1.0 - _TINY) + _TINY)

    rows = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, 0, 0))
    return rows(keys, positions, ids)


def filter_logits(
    logits: Float[Array, "*rows vocab"],
    *,
    top_k: int | None = None,
    top_p: Float[Array, "*#rows"] | None = None,
    min_p: Float[Array, "*#rows"] | None = None,
) -> Float[Array, "*rows vocab"]:
    """Sets the tokens that top-k, top-p and min-p exclude to -inf, in this order.

    Expects logits that temperature has already divided. Exactly `top_k` tokens
    survive top-k: ties at the border go to the lower id. Top-p keeps the smallest set
    of most likely tokens whose mass reaches `top_p` (ties to the lower id), always at
    least one; min-p keeps tokens at least `min_p` times as likely as the best one.

    Args:
      logits: `[..., vocab]` float32, any normalisation.
      top_k: number of tokens to keep (static), None for all.
      top_p: `[...]` float32 in (0, 1], None for 1.
      min_p: `[...]` float32 in [0, 1], None for 0.

    Returns:
      `[..., vocab]` float32, excluded tokens at -inf.

    Example:
      >>> filter_logits(jnp.array([0.0, 2.0, 1.0]), top_k=2).tolist()
      [-inf, 2.0, 1.0]
    """
    vocab = logits.shape[-1]
    if top_k is not None and top_k < vocab:
        _, kept_ids = jax.lax.top_k(logits, top_k)
        kept = _scatter_mask(kept_ids, vocab)
        logits = jnp.where(kept, logits, -jnp.inf)
    if top_p is not None:
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        bound = top_p[..., None]
        # The sum may round to 1 before the last tokens; a bound of 1 keeps them all.
        keep_sorted = ((before < bound) | (bound >= 1)).at[..., 0].set(True)
        rank = jnp.argsort(order, axis=-1)
        kept = jnp.take_along_axis(keep_sorted, rank, axis=-1)
        logits = jnp.where(kept, logits, -jnp.inf)
    if min_p is not None:
        best = jnp.max(logits, axis=-1, keepdims=True)
        floor = best + jnp.log(min_p)[..., None]
        logits = jnp.where(logits >= floor, logits, -jnp.inf)
    return logits


def _scatter_mask(
    ids: Int[Array, "*rows kept"], vocab: int
) -> Bool[Array, "*rows vocab"]:
    flat = ids.reshape(-1, ids.shape[-1])
    rows = jnp.arange(flat.shape[0])[:, None]
    mask = jnp.zeros((flat.shape[0], vocab), bool).at[rows, flat].set(True)
    return mask.reshape(*ids.shape[:-1], vocab)
