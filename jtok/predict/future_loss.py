"""What trains a model to spell several future tokens from one state vector.

Source: Walker 2024, arXiv 2410.18160 (losses that weigh less with distance). Differs:
there is no official code; the two reductions, a random part of the positions, and a
horizon that grows over the training are choices here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.ops import cross_entropy
from jtok.predict.future import FutureModel
from jtok.predict.future_slots import decode_slots
from jtok.predict.masks import within_documents
from jtok.predict.targets import (
    IGNORE,
    distance_weights,
    future_labels,
    safe_mean,
    weigh_offsets,
)

__all__ = [
    "FutureLosses",
    "active_horizon",
    "distance_perplexity",
    "future_loss",
    "future_losses",
    "sample_positions",
]

_CHUNK = 2**24  # numbers of the decoder that are held at a time, about 64 MB

Batch = dict[str, Any]


class FutureLosses(NamedTuple):
    """Cross-entropy of every future token from every position.

    Attributes:
      losses: `[batch, positions, horizon]` float32 nats; 0 where `valid` is False.
      valid: `[batch, positions, horizon]` bool: the position and all tokens up to this
        one are real, and of one document.
    """

    losses: jax.Array
    valid: jax.Array


def future_losses(
    model: FutureModel,
    ids: Int[Array, "batch seq"],
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
    positions: Int[Array, "batch seq"] | None = None,
    states: Float[Array, "batch seq dim"] | None = None,
    at: Int[Array, "batch chosen"] | None = None,
    chunk: int | None = None,
) -> FutureLosses:
    """Cross-entropy of the next tokens at every position, each from one state vector.

    The expansion and the decoder run for some positions at a time, and again in the
    backward pass where there is more than one such part; logits are never written.

    Args:
      model: what predicts.
      ids: `[batch, seq]` int32.
      mask: `[batch, seq]` True for real tokens, None for all.
      segments: `[batch, seq]` int32 of packed documents, which do not see each other.
      positions: `[batch, seq]` int32, None counts from 0.
      states: `[batch, seq, dim]` in place of what the encoder gives, or None.
      at: `[batch, chosen]` int32 positions to predict from, None for all.
      chunk: positions of a row at a time (static); None holds about 64 MB.

    Returns:
      `FutureLosses` of the chosen positions.

    Raises:
      ArgumentError: `chunk` below 1, a wrong shape, or more tokens than positions.

    Source: Walker 2024, arXiv 2410.18160.

    Example:
      >>> from jtok.predict import FutureConfig, init_future
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"), horizon=4)
      >>> model = init_future(config, jax.random.key(0))
      >>> future_losses(model, jnp.array([[1, 2, 3]])).valid[0].sum(-1).tolist()
      [2, 1, 0]
    """
    check(chunk is None or chunk >= 1, "chunk", chunk, "None or at least 1")
    futures, valid = _futures(model, ids, mask, segments)
    if states is None:
        allow = within_documents(mask, segments)
        states = model.encode(ids, mask=allow, positions=positions)
    carrier = model.carry(states, ids)
    if at is not None:
        pick = lambda x: jnp.take_along_axis(x, at[..., None], axis=1)
        carrier, futures, valid = pick(carrier), pick(futures), pick(valid)
    losses = _in_chunks(model, carrier, futures, valid, chunk)
    return FutureLosses(losses, valid)


def _futures(
    model: FutureModel, ids: Array, mask: Array | None, segments: Array | None
) -> tuple[Array, Array]:
    """Tokens that follow each position, and which of them count."""
    good = mask is None or mask.shape == ids.shape
    check(good, "mask", f"shape {getattr(mask, 'shape', None)}", f"{ids.shape}")
    real = jnp.ones(ids.shape, bool) if mask is None else mask
    labels = jnp.where(real, ids, IGNORE)
    futures, valid = future_labels(
        labels, model.config.horizon, segments=segments, contiguous=True
    )
    return futures, valid & real[..., None]


def _in_chunks(
    model: FutureModel, carrier: Array, futures: Array, valid: Array, chunk: int | None
) -> Array:
    """`[batch, positions, horizon]` losses, some positions of every row at a time."""
    config, (batch, count) = model.config, carrier.shape[:2]
    if chunk is None:
        tokens = config.pseudo_tokens + 8 * config.horizon
        chunk = max(1, _CHUNK // (batch * tokens * config.encoder.width))
    weight, bias = model.unembedding()

    def one(part: tuple[Array, Array, Array]) -> Array:
        some, following, counts = part
        hidden = decode_slots(model.params, config, some, following[..., :-1])
        cap = config.encoder.final_softcap
        return cross_entropy(
            hidden, weight, following, mask=counts, bias=bias, softcap=cap
        )

    whole = (carrier, futures, valid)
    if chunk >= count:
        return one(whole)
    parts = -(-count // chunk)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, parts * chunk - count), (0, 0)))
        return jnp.moveaxis(x.reshape(batch, parts, chunk, -1), 1, 0)

    losses = jax.lax.map(jax.checkpoint(one), tuple(map(split, whole)))
    return jnp.moveaxis(losses, 0, 1).reshape(batch, parts * chunk, -1)[:, :count]


def sample_positions(
    valid: Bool[Array, "batch seq"], count: int, key: jax.Array
) -> tuple[Int[Array, "batch count"], Float[Array, " batch"]]:
    """Some positions of every row, drawn without replacement from those that count.

    Args:
      valid: `[batch, seq]` bool positions that count.
      count: positions a row (static), at most `seq`; rows with fewer that count get
        others besides.
      key: typed key, consumed.

    Returns:
      `[batch, count]` int32 ascending positions, and `[batch]` float32 by how much
      what is summed over them is to be multiplied: the sum over all is then its mean.

    Raises:
      ArgumentError: `count` out of range.

    Source: none; Walker 2024, arXiv 2410.18160, trains every position.

    Example:
      >>> some, times = sample_positions(jnp.ones((1, 6), bool), 3, jax.random.key(0))
      >>> some.shape, times.tolist()
      ((1, 3), [2.0])
    """
    seq = valid.shape[1]
    check(1 <= count <= seq, "decoder_positions", count, f"1 to {seq}")
    order = jax.random.uniform(key, valid.shape) + valid
    chosen = jnp.sort(jax.lax.top_k(order, count)[1], axis=1).astype(jnp.int32)
    among = jnp.sum(valid, axis=1, dtype=jnp.float32)
    return chosen, jnp.maximum(among / count, 1.0)


def active_horizon(
    curriculum: Sequence[tuple[int, int]], step: int | Int[Array, ""]
) -> Int[Array, ""]:
    """How many future tokens are trained at a step.

    Args:
      curriculum: `(step, horizon)` pairs: from that step on, so many; the first starts
        at 0, steps rise.
      step: updates made; may be traced.

    Returns:
      int32 scalar.

    Raises:
      ArgumentError: no pair, a first one that does not start at 0, steps that do not
        rise, or a horizon below 1.

    Source: none; a way to train small models, beside Walker 2024, arXiv 2410.18160.

    Example:
      >>> [int(active_horizon(((0, 1), (10, 4)), step)) for step in (0, 9, 10)]
      [1, 1, 4]
    """
    pairs = np.array(list(curriculum), np.int32).reshape(-1, 2)
    starts, horizons = pairs[:, 0], pairs[:, 1]
    good = starts.size > 0 and starts[0] == 0 and bool((np.diff(starts) > 0).all())
    expected = "(step, horizon) pairs, the first at step 0, steps rising"
    check(good, "curriculum", curriculum, expected)
    check(
        bool((horizons >= 1).all()), "curriculum", curriculum, "horizons of 1 or more"
    )
    index = jnp.sum(jnp.asarray(starts) <= step) - 1
    return jnp.asarray(horizons)[index]


def future_loss(
    model: FutureModel,
    *,
    gamma: float = 0.8,
    reduction: Literal["tokens", "offsets"] = "tokens",
    decoder_positions: int | None = None,
    curriculum: Sequence[tuple[int, int]] = (),
    chunk: int | None = None,
) -> Callable[..., Any]:
    """Makes the loss of `jtok.train.fit` for a model that predicts several tokens.

    Trainable is `model.params` (stacked or split); nothing else of `model` is kept. A
    batch is a dict with `tokens` `[batch, length]` int32 and maybe `mask`, `segments`
    and `positions` of the same shape, as `jtok.train.packed_batches` gives them.

    Args:
      model: what is trained.
      gamma: >= 0; the k-th future token weighs `gamma ** (k - 1)`, and 0 trains the
        next token alone.
      reduction: "tokens" divides by the weights of all that counts; "offsets" weighs
        the mean of each distance.
      decoder_positions: positions of each row that the decoder is trained on in a
        step, drawn anew each time; the gradient stays the same in the mean. None
        takes all.
      curriculum: `(update, horizon)` pairs, see `active_horizon`. The state of `fit` is
        then the count of updates: give `state=jnp.int32(0)`.
      chunk: see `future_losses`.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)`. Metrics are `tokens`, the number
      of next tokens, and `nats_1`, `nats_2`, ... the means of each distance.

    Raises:
      ArgumentError: an argument out of range; while tracing, a curriculum without a
        state.
      ArgumentTypeError: while tracing: a batch without `tokens`.

    Source: Walker 2024, arXiv 2410.18160. Differs: see the module.

    Example:
      >>> from jtok.predict import FutureConfig, init_future
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"), horizon=2)
      >>> model = init_future(config, jax.random.key(0))
      >>> batch = {"tokens": jnp.ones((2, 9), jnp.int32)}
      >>> loss, (metrics, _) = future_loss(model)(
      ...     model.params, None, None, batch, jax.random.key(0))
      >>> int(metrics["tokens"])
      16
    """
    horizon = model.config.horizon
    check(gamma >= 0, "gamma", gamma, "at least 0")
    weights = distance_weights(horizon, gamma)
    known = ("tokens", "offsets")
    check(reduction in known, "reduction", reduction, "'tokens' or 'offsets'")
    good = decoder_positions is None or decoder_positions >= 1
    check(good, "decoder_positions", decoder_positions, "None or at least 1")
    check(chunk is None or chunk >= 1, "chunk", chunk, "None or at least 1")
    plan = tuple((int(step), int(size)) for step, size in curriculum)
    if plan:
        active_horizon(plan, 0)
        most = max(size for _, size in plan)
        check(most <= horizon, "curriculum", curriculum, f"horizons up to {horizon}")
    shell: Any = model.replace(params=None)  # type: ignore[attr-defined]

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del frozen
        now = shell.replace(params=trainable)
        losses, valid = _of_batch(now, batch, decoder_positions, key, chunk)
        if plan:
            if state is None:
                raise ArgumentError(
                    "state: got None, expected the count of updates for the "
                    "curriculum: fit(..., state=jnp.int32(0))."
                )
            on = jnp.arange(horizon) < active_horizon(plan, state)
            valid = valid & jnp.broadcast_to(on, valid.shape)
            state = state + 1
        loss = weigh_offsets(losses, valid, weights, reduction=reduction)
        means = _means(losses, valid)
        metrics = {f"nats_{k + 1}": means[k] for k in range(horizon)}
        metrics["tokens"] = jnp.sum(valid[..., 0], dtype=jnp.int32)
        return loss, (metrics, state)

    return loss_fn


def _of_batch(
    model: FutureModel,
    batch: Batch,
    some: int | None,
    key: jax.Array,
    chunk: int | None,
) -> FutureLosses:
    """Losses of all positions; those that were not drawn are 0, the others larger."""
    if not isinstance(batch, dict) or "tokens" not in batch:
        found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ArgumentTypeError(f"data: got {found}, expected a dict with 'tokens'.")
    ids = jnp.asarray(batch["tokens"])
    names = ("mask", "segments", "positions")
    mask, segments, places = (
        jnp.asarray(batch[name]) if name in batch else None for name in names
    )
    futures, valid = _futures(model, ids, mask, segments)
    # Nothing follows the last token of a row, so nothing need be encoded there.
    seen = max(ids.shape[1] - 1, 1)
    cut = lambda x: None if x is None else x[:, :seen]
    ids, futures, valid = ids[:, :seen], futures[:, :seen], valid[:, :seen]
    mask = cut(mask)
    allow = within_documents(mask, cut(segments))
    states = model.encode(ids, mask=allow, positions=cut(places))
    carrier = model.carry(states, ids)
    if some is None or some >= seen:
        losses = _in_chunks(model, carrier, futures, valid, chunk)
        return FutureLosses(losses, valid)
    at, times = sample_positions(valid[..., 0], some, key)
    pick = lambda x: jnp.take_along_axis(x, at[..., None], axis=1)
    some_futures, some_valid = pick(futures), pick(valid)
    losses = _in_chunks(model, pick(carrier), some_futures, some_valid, chunk)
    losses = losses * times[:, None, None]
    rows = jnp.arange(ids.shape[0])[:, None]
    full = jnp.zeros(valid.shape, jnp.float32).at[rows, at].set(losses)
    return FutureLosses(full, valid)


def _means(losses: Array, valid: Array) -> Array:
    return safe_mean(losses, valid, axis=(0, 1))


def distance_perplexity(
    losses: Float[Array, "batch positions horizon"],
    valid: Bool[Array, "batch positions horizon"],
) -> Float[Array, " horizon"]:
    """Perplexity of the k-th future token, for every k.

    Args:
      losses: as `future_losses` gives them.
      valid: which count.

    Returns:
      `[horizon]` float32; 1 where nothing counts.

    Source: Walker 2024, arXiv 2410.18160 (prediction of far tokens).

    Example:
      >>> losses = jnp.full((1, 2, 2), jnp.log(3.0))
      >>> found = distance_perplexity(losses, jnp.ones((1, 2, 2), bool))
      >>> [round(float(x), 3) for x in found]
      [3.0, 3.0]
    """
    return jnp.exp(_means(losses, valid))
