"""A masked-diffusion language model as pure functions: what sampling and losses run.

Such a model looks both ways over tokens of which some are MASK, and says of every
masked position what stands there. `Denoiser` is all that the rest of this package
knows of it, so that any JAX model can be sampled from and trained.

Source: LLaDA (Nie et al. 2025, arXiv 2502.09992) and Dream (Ye et al. 2025, arXiv
2508.15487).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import Model
from jtok.models import model as core

__all__ = ["Denoiser", "align", "denoiser", "denoiser_of", "lay_out"]

PyTree = Any


class Denoiser(NamedTuple):
    """Any masked language model, as functions that sampling and losses compose.

    Attributes:
      hidden: `(params, tokens[batch, seq], valid[batch, seq] or None) -> [batch, seq,
        dim]`: what the unembedding reads the token at each position out of (already
        aligned, see `align`). Padding (`valid` False) changes no real token.
      embed: `(params, tokens) -> [batch, seq, dim]`, rows of the embedding.
      unembed: `params -> (weight[vocab, dim], bias[vocab] or None)`.
      vocab_size: number of ids.
      mask_id: the id of MASK.
      pad_id: the id of padding, or None.
      shift: the first real position cannot be filled: nothing stands before it that
        would say what it is.
    """

    hidden: Callable[[PyTree, Array, Any], Array]
    embed: Callable[[PyTree, Array], Array]
    unembed: Callable[[PyTree], tuple[Array, Any]]
    vocab_size: int
    mask_id: int
    pad_id: int | None = None
    shift: bool = False


def align(
    hidden: Float[Array, "batch seq *dims"], valid: Bool[Array, "batch seq"] | None
) -> Float[Array, "batch seq *dims"]:
    """Moves what each position says to the position that it speaks of, one later.

    The first real position keeps its own, and is to be treated as given.

    Args:
      hidden: `[batch, seq, ...]` hidden states or logits of a shifted model.
      valid: `[batch, seq]` bool, False for padding; None where there is none.

    Returns:
      The same shape.

    Source: Dream (arXiv 2508.15487), its sampler and trainer. Differs: the first real
    token of a left-padded row takes nothing from the padding.

    Example:
      >>> align(jnp.array([[1.0, 2.0, 3.0]]), None).tolist()
      [[1.0, 1.0, 2.0]]
    """
    moved = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
    if valid is None:
        return moved
    before = jnp.concatenate([valid[:, :1], valid[:, :-1]], axis=1)
    return jnp.where(before.reshape(*before.shape, *(1,) * (hidden.ndim - 2)), moved,
                     hidden)  # fmt: skip


def denoiser(
    config: Any, *, mask_id: int | None = None, pad_id: int | None = None
) -> Denoiser:
    """The `Denoiser` of a model; equal arguments give the same functions.

    Args:
      config: a `DecoderConfig` that looks both ways (`causal=False`).
      mask_id: the id of MASK; None takes the configuration's.
      pad_id: the id of padding, or None.

    Returns:
      `Denoiser` whose params are `Model.params`.

    Raises:
      ArgumentError: a causal model, capped logits, no MASK, one outside the
        vocabulary, or one that is also the padding.

    Source: arXiv 2502.09992 and 2508.15487, the models' forward passes.

    Example:
      >>> from jtok.testing import tiny_config
      >>> denoiser(tiny_config(family="Dream")).shift
      True
    """
    causal = getattr(config, "causal", True)
    check(not causal, "config", "a causal model", "one that looks both ways")
    cap = config.final_softcap
    check(cap is None, "config", f"logits capped at {cap}", "logits without a cap")
    mask_id = config.mask_token_id if mask_id is None else mask_id
    check_ids(config.vocab_size, mask_id, pad_id)
    return _denoiser(config, mask_id, pad_id)


def check_ids(vocab_size: int, mask_id: Any, pad_id: Any) -> None:
    """Refuses a MASK that is not an id of its own."""
    good = isinstance(mask_id, (int, np.integer)) and 0 <= mask_id < vocab_size
    check(good, "mask_id", mask_id, f"an id in 0..{vocab_size - 1}")
    check(mask_id != pad_id, "mask_id", mask_id, "an id other than that of padding")


@functools.lru_cache(maxsize=64)
def _denoiser(config: Any, mask_id: int, pad_id: int | None) -> Denoiser:
    def hidden(params: PyTree, tokens: Array, valid: Any) -> Array:
        where: dict[str, Any] = {}
        if valid is not None:
            positions = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
            where["positions"] = jnp.maximum(positions, 0)
            where["mask"] = valid[:, :, None] & valid[:, None, :]
        out = core.decoder_forward(params, config, tokens, logits="none", **where)
        return align(out.hidden, valid) if config.logit_shift else out.hidden

    def embed(params: PyTree, tokens: Array) -> Array:
        rows = params["embed"]["tokens"][tokens].astype(config.dtype)
        scale = config.embed_scale
        return rows if scale is None else rows * jnp.asarray(scale, rows.dtype)

    return Denoiser(
        hidden,
        embed,
        core.unembedding,
        config.vocab_size,
        mask_id,
        pad_id,
        config.logit_shift,
    )


def denoiser_of(
    model: Model | Denoiser, params: PyTree = None
) -> tuple[Denoiser, PyTree]:
    """The functions and the parameters of what a user gives.

    Args:
      model: a `Model`, or a `Denoiser` together with `params`.
      params: of a `Denoiser`; of a `Model`, in place of its own, or None.

    Returns:
      `Denoiser` and parameters.

    Raises:
      ArgumentError: as `denoiser`; a `Denoiser` whose MASK is no id of its own.
      ArgumentTypeError: neither.

    Source: the same models as `denoiser`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> denoiser_of(tiny_model(family="llada"))[0].mask_id
      95
    """
    if isinstance(model, Denoiser):
        check_ids(model.vocab_size, model.mask_id, model.pad_id)
        return model, params
    if not isinstance(model, Model):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a Model or a Denoiser."
        )
    generation = model.generation_config
    pad = None if generation is None else generation.pad_token_id
    made = denoiser(model.config, pad_id=pad)
    return made, model.params if params is None else params


def lay_out(
    prompts: Sequence[Sequence[int]],
    num_new: int,
    *,
    mask_id: int,
    pad_id: int,
    length: int | None = None,
) -> tuple[Int[np.ndarray, "batch seq"], Bool[np.ndarray, "batch seq"]]:
    """Rows to be filled: padding, a prompt, and MASK for every new token.

    Args:
      prompts: ids of every row, of any lengths, also none.
      num_new: tokens to fill in, at least 1.
      mask_id: the id of MASK.
      pad_id: the id that stands left of shorter prompts.
      length: tokens of a row; None takes the longest prompt and what is new.

    Returns:
      `[batch, seq]` int32 ids, and bool, False where there is padding. What is new
      stands in the last `num_new` columns.

    Raises:
      ArgumentError: no prompt, nothing new, a length that does not hold a prompt and
        what is new, a prompt with MASK in it, or MASK and padding of one id.

    Source: the prompts of arXiv 2502.09992. Differs: rows of several lengths.

    Example:
      >>> ids, valid = lay_out([[5], [6, 7]], 2, mask_id=9, pad_id=0)
      >>> ids.tolist()
      [[0, 5, 9, 9], [6, 7, 9, 9]]
    """
    check(len(prompts) > 0, "prompts", prompts, "at least one prompt")
    check(num_new >= 1, "num_new", num_new, "at least 1")
    check(mask_id != pad_id, "mask_id", mask_id, "an id other than that of padding")
    longest = max(len(prompt) for prompt in prompts)
    seq = longest + num_new if length is None else length
    if seq < longest + num_new:
        raise ArgumentError(
            f"length: got {length}, expected at least {longest + num_new}, a prompt of "
            f"{longest} tokens and {num_new} new ones."
        )
    ids = np.full((len(prompts), seq), pad_id, np.int32)
    valid = np.zeros(ids.shape, bool)
    ids[:, seq - num_new :] = mask_id
    for row, prompt in enumerate(prompts):
        given = np.asarray(prompt, np.int32)
        check(mask_id not in given, "prompts", prompt, f"ids other than MASK={mask_id}")
        start = seq - num_new - given.size
        ids[row, start : start + given.size] = given
        valid[row, start:] = True
    return ids, valid
