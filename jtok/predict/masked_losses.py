"""Losses of masked diffusion: how the cross-entropies of masked tokens are weighed.

Source: LLaDA (Nie et al. 2025, arXiv 2502.09992); Dream (Ye et al. 2025, arXiv
2508.15487), as the trainer of Dream-Coder (arXiv 2509.01142) computes it.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, check, near
from jtok.models import Model
from jtok.ops import cross_entropy
from jtok.predict.denoiser import Denoiser, denoiser_of
from jtok.predict.masking import crop_length, mask_tokens, share_trailing

__all__ = [
    "WEIGHTINGS",
    "bound_loss",
    "context_matrix",
    "diffusion_loss",
    "masked_token_losses",
    "time_weights",
    "weighted_loss",
]

PyTree = Any

WEIGHTINGS = ("bound", "original", "linear", "none", "cart")


def masked_token_losses(
    model: Denoiser,
    params: PyTree,
    noisy: Int[Array, "batch seq"],
    labels: Int[Array, "batch seq"],
    masked: Bool[Array, "batch seq"],
    *,
    valid: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq"]:
    """Cross-entropy of every masked token, without the logits.

    Args:
      model: the `Denoiser`.
      params: its parameters.
      noisy: `[batch, seq]` int32 with MASK in it.
      labels: `[batch, seq]` int32 what stood there.
      masked: `[batch, seq]` bool, which count.
      valid: `[batch, seq]` bool, False for padding; None where there is none.

    Returns:
      `[batch, seq]` float32 nats, 0 where `masked` is False.

    Source: arXiv 2502.09992, equation 3; arXiv 2508.15487 for shifted models.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, params = denoiser_of(tiny_model(family="llada"))
      >>> ids, where = jnp.array([[5, 95, 7]]), jnp.array([[False, True, False]])
      >>> masked_token_losses(model, params, ids, ids * 0, where)[0, ::2].tolist()
      [0.0, 0.0]
    """
    weight, bias = model.unembed(params)
    hidden = model.hidden(params, noisy, valid)
    return cross_entropy(hidden, weight, labels, mask=masked, bias=bias)


def bound_loss(
    losses: Float[Array, "batch seq"],
    masked: Bool[Array, "batch seq"],
    rate: Float[Array, " batch"],
    *,
    lengths: Int[Array, " batch"] | Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """An upper bound of -log p, per token: every loss divided by its masking rate.

    Pre-training has `lengths=None`; supervised fine-tuning has those of the responses,
    with the EOS that fill them; `lengths` of 1 give nats of whole rows.

    Args:
      losses: `[batch, seq]` float32 of tokens.
      masked: `[batch, seq]` bool, which count.
      rate: `[batch]` float32 probability of a mask, above 0.
      lengths: `[batch]` what each row's sum is divided by; None takes `seq`.

    Returns:
      float32 scalar, the mean over rows.

    Source: arXiv 2502.09992, equations 3 and 5.

    Example:
      >>> one = jnp.ones((1, 4))
      >>> float(bound_loss(one, one > 0, jnp.ones(1)))
      1.0
    """
    batch, seq = losses.shape
    kept = jnp.where(masked, losses, 0.0) / rate[:, None]
    whole = jnp.full(batch, seq) if lengths is None else lengths
    return jnp.mean(jnp.sum(kept, axis=1) / whole)


def context_matrix(seq: int, p: float) -> Float[np.ndarray, "seq seq"]:
    """Half of a geometric law of the distance between two positions, 0 at distance 0.

    Args:
      seq: tokens.
      p: of the geometric law, in (0, 1].

    Returns:
      `[seq, seq]` float32.

    Raises:
      ArgumentError: `p` out of its range.

    Source: `context_adaptive_reweight` of Dream-Coder's trainer (arXiv 2509.01142).

    Example:
      >>> context_matrix(3, 0.5)[0].tolist()
      [0.0, 0.25, 0.125]
    """
    check(0 < p <= 1, "p", p, "a number in (0, 1]")
    distance = np.abs(np.arange(seq)[:, None] - np.arange(seq)[None])
    law = 0.5 * p * (1.0 - p) ** np.maximum(distance - 1, 0)
    return np.where(distance > 0, law, 0.0).astype(np.float32)


def time_weights(
    name: str,
    time: Float[Array, " batch"],
    masked: Bool[Array, "batch seq"],
    *,
    cart_p: float = 0.1,
    min_time: float = 1e-3,
) -> Float[Array, "batch seq"]:
    """Weights of masked tokens by the time of their row, or by their neighbours.

    "original" 1 / time; "linear" 1 - time; "none" 1; "cart" the share of each token's
    geometric neighbourhood that is not masked (a prompt is not).

    Args:
      name: one of `WEIGHTINGS` but "bound".
      time: `[batch]` float32 in [0, 1].
      masked: `[batch, seq]` bool.
      cart_p: of the geometric law of "cart".
      min_time: smaller times count as this one in "original".

    Returns:
      `[batch, seq]` float32, 0 where nothing is masked.

    Raises:
      ArgumentError: an unknown name.

    Source: arXiv 2508.15487, section 3, and the trainer of arXiv 2509.01142. Differs:
    `min_time`; there a time near 0 has no bound.

    Example:
      >>> row = jnp.array([[True, False]])
      >>> time_weights("linear", jnp.array([0.25]), row).tolist()
      [[0.75, 0.0]]
    """
    known = WEIGHTINGS[1:]
    if name not in known:
        raise ArgumentError(f"name: got {name!r}{near(name, known)}")
    if name == "cart":
        matrix = jnp.asarray(context_matrix(masked.shape[1], cart_p))
        weights = (~masked).astype(jnp.float32) @ matrix
        return jnp.where(masked, weights, 0.0)
    by_row = {
        "original": 1.0 / jnp.maximum(time, min_time),
        "linear": 1.0 - time,
        "none": jnp.ones_like(time),
    }[name]
    return jnp.where(masked, by_row[:, None], 0.0)


def weighted_loss(
    losses: Float[Array, "batch seq"],
    masked: Bool[Array, "batch seq"],
    weights: Float[Array, "batch seq"],
    *,
    focal: tuple[float, float] | None = None,
    per: Literal["masked", "token"] = "masked",
) -> Float[Array, ""]:
    """The sum of weighted losses over the masked tokens, or over all tokens.

    Divided by the masked tokens, weights of 1 / time are no bound of -log p any more;
    divided by all tokens they are.

    Args:
      losses: `[batch, seq]` float32 nats.
      masked: `[batch, seq]` bool, which count.
      weights: `[batch, seq]` float32.
      focal: (alpha, gamma): losses are also weighed by alpha (1 - exp(-loss))^gamma;
        the trainer's are (0.25, 2). None for none.
      per: what the sum is divided by.

    Returns:
      float32 scalar; 0 where nothing is masked.

    Raises:
      ArgumentError: another `per`.

    Source: the trainer of arXiv 2509.01142. Differs: `per="token"`.

    Example:
      >>> row = jnp.array([[True, False]])
      >>> float(weighted_loss(jnp.full((1, 2), 3.0), row, row * 2.0))
      6.0
    """
    check(per in ("masked", "token"), "per", per, "'masked' or 'token'")
    kept = jnp.where(masked, losses, 0.0)
    if focal is not None:
        alpha, gamma = focal
        kept = kept * alpha * (1.0 - jnp.exp(-kept)) ** gamma
    total = jnp.sum(kept * weights)
    count = jnp.sum(masked) if per == "masked" else masked.size
    return total / jnp.maximum(count, 1).astype(jnp.float32)


def diffusion_loss(
    model: Model | Denoiser,
    *,
    weighting: str = "bound",
    eps: float | None = None,
    cart_p: float = 0.1,
    focal: tuple[float, float] | None = None,
    per: Literal["masked", "token"] = "masked",
    crop: float = 0.0,
    eos_id: int | None = None,
) -> Callable[..., Any]:
    """Makes the loss of `jtok.train.fit` for a masked-diffusion language model.

    Trainable are the model's parameters. A batch is a dict with `tokens` `[batch, seq]`
    int32 and maybe `maskable` and `valid` of the same shape (False: never masked;
    padding) and, for "bound", `lengths` `[batch]`.

    Args:
      model: a `Model` or a `Denoiser`; its arrays are not kept.
      weighting: "bound" divides by the masking rate (LLaDA); for the others (Dream) see
        `time_weights`.
      eps: least masking rate; None takes 1e-3 for "bound", else 0.
      cart_p: of the geometric law of "cart".
      focal: see `weighted_loss`; not with "bound".
      per: see `weighted_loss`.
      crop: share of batches that are cut to a random length, see `crop_length`.
      eos_id: all EOS at a row's end are masked together or not at all; None: each for
        itself.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)` with the metric `tokens`, the
      number of masked tokens.

    Raises:
      ArgumentError: an unknown weighting, or a focal factor beside "bound".

    Source: arXiv 2502.09992, algorithms 1 and 2; the trainer of arXiv 2509.01142.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="llada")
      >>> loss, _ = diffusion_loss(model)(model.params, None, None,
      ...     {"tokens": jnp.ones((2, 8), int)}, jax.random.key(0))
      >>> bool(loss > 0)
      True
    """
    if weighting not in WEIGHTINGS:
        raise ArgumentError(
            f"weighting: got {weighting!r}{near(weighting, WEIGHTINGS)}"
        )
    is_bound = weighting == "bound"
    check(not (is_bound and focal), "focal", focal, "None beside the weighting 'bound'")
    least = (1e-3 if is_bound else 0.0) if eps is None else eps
    made, _ = denoiser_of(model)

    def loss_fn(trainable: Any, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
        del frozen
        tokens, valid = batch["tokens"], batch.get("valid")
        keys = jax.random.split(key, 3)
        if crop > 0:
            kept = crop_length(keys[2], *tokens.shape, share=crop)
            valid = kept if valid is None else kept & valid
        maskable = batch.get("maskable", jnp.ones(tokens.shape, bool))
        maskable = maskable if valid is None else maskable & valid
        if made.shift:  # nothing says what the first real token is
            first = jnp.zeros(tokens.shape[0], int) if valid is None else None
            first = jnp.argmax(valid, axis=1) if first is None else first
            maskable = maskable & (jnp.arange(tokens.shape[1])[None] != first[:, None])
        time = jax.random.uniform(keys[0], tokens.shape[:1])
        draws = jax.random.uniform(keys[1], tokens.shape)
        some = mask_tokens(
            tokens, maskable, time, draws, mask_id=made.mask_id, eps=least
        )
        masked, noisy = some.masked, some.tokens
        if eos_id is not None:
            masked = share_trailing(masked, tokens, eos_id=eos_id) & maskable
            noisy = jnp.where(masked, made.mask_id, tokens)
        losses = masked_token_losses(
            made, trainable, noisy, tokens, masked, valid=valid
        )
        metrics = {"tokens": jnp.sum(masked)}
        if is_bound:
            lengths = batch.get("lengths")
            if lengths is None and valid is not None:
                lengths = jnp.maximum(jnp.sum(valid, axis=1), 1)
            loss = bound_loss(losses, masked, some.rate, lengths=lengths)
            return loss, (metrics, state)
        weights = time_weights(weighting, time, masked, cart_p=cart_p)
        loss = weighted_loss(losses, masked, weights, focal=focal, per=per)
        return loss, (metrics, state)

    return loss_fn
