"""Forward processes of masked diffusion: which tokens of a batch become MASK.

Source: LLaDA (Nie et al. 2025, arXiv 2502.09992), its guidelines and likelihood; the
trainer of Dream-Coder (arXiv 2509.01142).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check

__all__ = [
    "Masked",
    "crop_length",
    "mask_exactly",
    "mask_tokens",
    "share_trailing",
    "stratified_counts",
]


@struct.dataclass
class Masked:
    """Tokens of which some were replaced.

    Attributes:
      tokens: `[batch, seq]` int32 with MASK in them.
      masked: `[batch, seq]` bool, where it stands.
      rate: `[batch]` float32 probability with which a token of the row was masked.
    """

    tokens: jax.Array
    masked: jax.Array
    rate: jax.Array


def mask_tokens(
    tokens: Int[Array, "batch seq"],
    maskable: Bool[Array, "batch seq"],
    time: Float[Array, " batch"],
    uniforms: Float[Array, "batch seq"],
    *,
    mask_id: int,
    eps: float = 1e-3,
) -> Masked:
    """Replaces each maskable token by MASK, independently, with one rate a row.

    Args:
      tokens: `[batch, seq]` int32 clean ids.
      maskable: `[batch, seq]` bool; False on prompts and on what is not learnt.
      time: `[batch]` float32 in [0, 1], uniform in training.
      uniforms: `[batch, seq]` float32 uniform in [0, 1).
      mask_id: the id of MASK.
      eps: least rate: it is `(1 - eps) time + eps`; Dream has 0.

    Returns:
      `Masked`.

    Raises:
      ArgumentError: `eps` outside [0, 1).

    Source: arXiv 2502.09992, algorithm 1.

    Example:
      >>> ids, row = jnp.array([[5, 6]]), jnp.ones((1, 2), bool)
      >>> mask_tokens(ids, row, jnp.ones(1), jnp.full((1, 2), 0.5),
      ...             mask_id=9).tokens.tolist()
      [[9, 9]]
    """
    check(0 <= eps < 1, "eps", eps, "a number in [0, 1)")
    rate = (1.0 - eps) * time + eps
    masked = (uniforms < rate[:, None]) & maskable
    return Masked(jnp.where(masked, mask_id, tokens), masked, rate)


def share_trailing(
    masked: Bool[Array, "batch seq"], tokens: Int[Array, "batch seq"], *, eos_id: int
) -> Bool[Array, "batch seq"]:
    """Lets all EOS at the end of a row be masked if, and only if, their first one is.

    Args:
      masked: `[batch, seq]` bool.
      tokens: `[batch, seq]` int32 clean ids.
      eos_id: the id of EOS.

    Returns:
      `[batch, seq]` bool.

    Source: option `treat_eos_as_one` of Dream-Coder's trainer (arXiv 2509.01142).

    Example:
      >>> row = jnp.array([[True, False, True]])
      >>> share_trailing(row, jnp.array([[5, 0, 0]]), eos_id=0).tolist()
      [[True, False, False]]
    """
    is_end = tokens == eos_id
    trailing = jnp.flip(jnp.cumprod(jnp.flip(is_end, 1), axis=1), 1).astype(bool)
    first = jnp.argmax(trailing, axis=1)[:, None]
    state = jnp.take_along_axis(masked, first, axis=1)
    return jnp.where(trailing, state, masked)


def crop_length(
    key: Array, batch: int, seq: int, *, share: float = 0.01
) -> Bool[Array, "batch seq"]:
    """What a batch keeps where a small share of batches is cut to a random length.

    Args:
      key: typed key, consumed.
      batch: rows.
      seq: tokens of a row.
      share: of the batches that are cut, to a length uniform in 1..seq.

    Returns:
      `[batch, seq]` bool, one length for all rows.

    Raises:
      ArgumentError: a share outside [0, 1].

    Source: arXiv 2502.09992, appendix B (1 % of the pre-training data).

    Example:
      >>> bool(crop_length(jax.random.key(0), 2, 4, share=0.0).all())
      True
    """
    check(0 <= share <= 1, "share", share, "a number in [0, 1]")
    one, two = jax.random.split(key)
    length = jax.random.randint(two, (), 1, seq + 1)
    length = jnp.where(jax.random.uniform(one) < share, length, seq)
    return jnp.broadcast_to(jnp.arange(seq)[None] < length, (batch, seq))


def stratified_counts(
    key: Array, batch: int, length: int | Int[Array, ""]
) -> Int[Array, " batch"]:
    """Numbers of masks, each uniform over 1..length, spread evenly over the batch.

    Args:
      key: typed key, consumed.
      batch: rows.
      length: tokens that may be masked, at least 1; may be traced.

    Returns:
      `[batch]` int32.

    Raises:
      ArgumentError: no row, or nothing to mask.

    Source: the likelihood of arXiv 2502.09992's code.

    Example:
      >>> sorted(stratified_counts(jax.random.key(0), 4, 4).tolist())
      [1, 2, 3, 4]
    """
    check(batch >= 1, "batch", batch, "at least 1")
    if isinstance(length, int):
        check(length >= 1, "length", length, "at least 1")
    first = jax.random.randint(key, (), 1, length + 1)
    steps = jnp.round(jnp.arange(batch) * (length / batch)).astype(jnp.int32)
    return (first + steps - 1) % length + 1


def mask_exactly(
    key: Array,
    tokens: Int[Array, "batch seq"],
    maskable: Bool[Array, "batch seq"],
    count: Int[Array, " batch"],
    *,
    mask_id: int,
) -> Masked:
    """Replaces exactly so many maskable tokens of each row, a uniformly random set.

    Args:
      key: typed key, consumed.
      tokens: `[batch, seq]` int32.
      maskable: `[batch, seq]` bool.
      count: `[batch]` int32; beyond the maskable tokens it masks them all.
      mask_id: the id of MASK.

    Returns:
      `Masked`, its rate the count over the maskable tokens of the row.

    Source: arXiv 2502.09992, equation 6 and its code.

    Example:
      >>> row = jnp.ones((1, 4), bool)
      >>> made = mask_exactly(jax.random.key(0), jnp.zeros((1, 4), int), row,
      ...                     jnp.array([3]), mask_id=9)
      >>> int(made.masked.sum()), made.rate.tolist()
      (3, [0.75])
    """
    draws = jnp.where(maskable, jax.random.uniform(key, tokens.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(draws, axis=1), axis=1)
    masked = (rank < count[:, None]) & maskable
    total = jnp.maximum(jnp.sum(maskable, axis=1), 1)
    rate = jnp.sum(masked, axis=1) / total
    return Masked(jnp.where(masked, mask_id, tokens), masked, rate)
