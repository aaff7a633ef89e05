"""One decoder, many depths: nested exits that share the final norm and the unembedding.

An exit after layer s reads the residual stream there through the model's own final
norm and unembedding. Sorted training makes all exits usable at once; then the first
exit that is sure of itself may speak for the model, token by token.

Source: Kavehzadeh et al. 2024, arXiv 2407.01955 (sorted drafts); Kavehzadeh et al.
2024, arXiv 2309.08968 (sorted fine-tuning). Differs: losses over the vocabulary are
chunked, and there may be a teacher.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentTypeError, check
from jtok.models import Model, embed_ids, final_norm, run_segment, segment_config
from jtok.ops import cross_entropy, kl_divergence, vocab_statistics
from jtok.ops.sharding import constrain
from jtok.predict.masks import within_documents
from jtok.predict.targets import safe_mean

__all__ = [
    "EarlyExit",
    "ExitReads",
    "check_exits",
    "check_thresholds",
    "choose_exit",
    "early_exit",
    "exit_hidden",
    "exit_nats",
    "read_exits",
    "sorted_loss",
]

PyTree = Any
Hidden = tuple[Float[Array, "batch seq dim"], ...]


class ExitReads(NamedTuple):
    """What every exit says of the next token.

    Attributes:
      tokens: `[exits, batch, seq]` int32 arg-max, ties to the lower id.
      confidence: `[exits, batch, seq]` float32 its probability.
    """

    tokens: jax.Array
    confidence: jax.Array


class EarlyExit(NamedTuple):
    """The exit that was chosen for every token.

    Attributes:
      exits: `[batch, seq]` int32 index of the exit, 0 for the first.
      tokens: `[batch, seq]` int32 what it says.
      reads: what all exits say.
    """

    exits: jax.Array
    tokens: jax.Array
    reads: ExitReads


def check_exits(exits: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Refuses exits that are not increasing numbers of layers.

    Args:
      exits: layers that each exit has run, such as (6, 9, 12).
      num_layers: of the model.

    Returns:
      The exits as a tuple.

    Raises:
      ArgumentError: none, not increasing, below 1 or beyond the model.

    Example:
      >>> check_exits([1, 2], 2)
      (1, 2)
    """
    found = tuple(int(e) for e in exits)
    rising = all(a < b for a, b in itertools.pairwise(found))
    good = bool(found) and rising and found[0] >= 1 and found[-1] <= num_layers
    check(good, "exits", found, f"increasing numbers within 1..{num_layers} layers")
    return found


def check_thresholds(
    thresholds: Sequence[float | int] | Float[np.ndarray, " exits"], num_exits: int
) -> tuple[float, ...]:
    """Refuses thresholds that do not belong to the exits.

    Args:
      thresholds: one for each exit; that of the last is not read. Above 1 an exit is
        never taken early, at 0 always.
      num_exits: how many exits there are.

    Returns:
      The thresholds as a tuple.

    Raises:
      ArgumentError: another number of them, or one that is negative or not a number.

    Example:
      >>> check_thresholds((0.5, 0), 2)
      (0.5, 0.0)
    """
    found = tuple(float(t) for t in thresholds)
    check(len(found) == num_exits, "thresholds", found, f"{num_exits}, one an exit")
    good = all(t >= 0 for t in found)
    check(good, "thresholds", found, "numbers of at least 0")
    return found


def exit_hidden(
    model: Model,
    ids: Int[Array, "batch seq"],
    exits: Sequence[int],
    *,
    positions: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
) -> Hidden:
    """Hidden states of every exit, after the final norm that all exits share.

    The layers run once, a segment from exit to exit at a time; those beyond the last
    exit do not run.

    Args:
      model: a transformer decoder.
      ids: `[batch, seq]` int32.
      exits: layers of each exit, increasing (static).
      positions: `[batch, seq]` int32, None counts from 0.
      mask: as the model takes it.

    Returns:
      For each exit `[batch, seq, dim]`.

    Raises:
      ArgumentError: exits that are not increasing or beyond the model.
      ArgumentTypeError: another kind of model.

    Source: arXiv 2407.01955, section 3.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> first, last = exit_hidden(tiny_model(), jnp.array([[1, 2, 3]]), (1, 2))
      >>> last.shape
      (1, 3, 32)
    """
    exits = _checked(model, exits)
    params, config = model.params, model.config
    batch, seq = ids.shape
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    x = constrain(embed_ids(params, config, ids, positions), "batch", "seq", "embed")
    hidden = []
    for first, last in zip((0, *exits), exits):
        x, _ = run_segment(
            params, config, x, positions, first=first, last=last, mask=mask
        )
        hidden.append(final_norm(params, config, x))
    return tuple(hidden)


def exit_nats(
    model: Model,
    tokens: Int[Array, "batch row"],
    exits: Sequence[int],
    *,
    mask: Bool[Array, "batch row"] | None = None,
    chunk: int | None = None,
) -> Float[Array, " exits"]:
    """Cross-entropy of the next token at every exit: what sorted training minimises.

    Exits are read one after the other; for the gradient each is read again, so the
    memory is that of one chunk of logits, however many exits there are.

    Args:
      model: a transformer decoder.
      tokens: `[batch, seq + 1]` int32; each but the first is a target.
      exits: layers of each exit, increasing (static).
      mask: `[batch, seq + 1]` bool, False is no target; None counts all.
      chunk: tokens a piece of the cross-entropy; None leaves that to the operation.

    Returns:
      `[exits]` float32 mean nats a target; 0 where there is none.

    Raises:
      ArgumentError: exits that are not increasing or beyond the model.

    Example:
      >>> from jtok.testing import tiny_model
      >>> exit_nats(tiny_model(), jnp.array([[1, 2, 3]]), (1, 2)).shape
      (2,)
    """
    hidden = exit_hidden(model, tokens[:, :-1], exits)
    targets, counts = _targets(tokens, mask)
    weight, bias = model.unembedding()

    @jax.checkpoint
    def mean_nats(states: Array) -> Array:
        nats = cross_entropy(
            states, weight, targets, bias=bias, softcap=model.config.final_softcap,
            chunk=chunk,
        )  # fmt: skip
        return safe_mean(nats, counts)

    return jnp.stack([mean_nats(states) for states in hidden])


def sorted_loss(
    model: Model,
    exits: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    teacher: Model | None = None,
    distill: float = 0.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Callable[..., Any]:
    """Makes the loss of `fit` that trains all exits at once (SoFT).

    The mean over the exits of their cross-entropies, every exit in every step, without
    a stopped gradient: low layers learn from all exits. With one exit, the last, it is
    plain fine-tuning (SFT). Nothing of a target model is in it, so one draft serves
    many; `distill` is for those who want a teacher all the same.

    Args:
      model: a transformer decoder; nothing but its description is kept.
      exits: layers of each exit, increasing (static).
      weights: of the exits' losses, at least 0 and not all 0; None weighs them alike.
      teacher: a model with the same vocabulary, whose parameters `fit` gets as
        `frozen`; None with `distill` > 0 lets the last exit teach those before it, and
        itself learn as ever.
      distill: share of the divergence from the teacher, 0 to 1.
      temperature: of that divergence, which is multiplied by its square.
      chunk: tokens a piece of the losses; None leaves that to the operations.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)`, see `jtok.train.fit`; a batch is
      as `jtok.train.lm_loss` takes it. Metrics: `tokens`, and `nats_N` of the exit
      after N layers.

    Raises:
      ArgumentError: exits, weights or a number out of range, or a teacher of another
        vocabulary.

    Source: arXiv 2309.08968, section 3; arXiv 2407.01955, section 3.1. Differs: the
    teacher.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, batch = tiny_model(), {"tokens": jnp.ones((2, 9), jnp.int32)}
      >>> loss, (metrics, _) = sorted_loss(model, (1, 2))(
      ...     model.params, None, None, batch, jax.random.key(0))
      >>> sorted(metrics)
      ['nats_1', 'nats_2', 'tokens']
    """
    exits = _checked(model, exits)
    shares = _shares(weights, len(exits))
    check(0 <= distill <= 1, "distill", distill, "0 to 1")
    check(temperature > 0, "temperature", temperature, "above 0")
    shell = dataclasses.replace(model, params=None)
    guide = None if teacher is None else dataclasses.replace(teacher, params=None)
    if guide is not None:
        same = guide.config.vocab_size == model.config.vocab_size
        expected = f"{model.config.vocab_size} ids, as the model has"
        check(same, "teacher", f"{guide.config.vocab_size} ids", expected)

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del key
        tokens, seen = _batch(batch)
        student = dataclasses.replace(shell, params=trainable)
        hidden = exit_hidden(student, tokens[:, :-1], exits, **seen)
        targets, counts = _targets(tokens, batch.get("mask"))
        weight, bias = student.unembedding()
        taught: Any = None
        if distill > 0:
            taught = _teacher(guide, frozen, tokens[:, :-1], seen, student, hidden[-1])
        cap = student.config.final_softcap

        @functools.partial(jax.checkpoint, static_argnums=1)
        def one(states: Array, learns: bool) -> tuple[Array, Array]:
            nats = cross_entropy(
                states, weight, targets, bias=bias, softcap=cap, chunk=chunk
            )
            nats = safe_mean(nats, counts)
            if not learns:
                return nats, nats
            far = kl_divergence(
                states, weight, taught[0], taught[1], bias=bias,
                teacher_bias=taught[2], temperature=temperature, softcap=cap,
                teacher_softcap=taught[3], chunk=chunk,
            )  # fmt: skip
            far = safe_mean(far, counts) * temperature**2
            return (1 - distill) * nats + distill * far, nats

        total, metrics = jnp.float32(0.0), {}
        for layers, share, states in zip(exits, shares, hidden):
            own = guide is None and layers == exits[-1]
            part, nats = one(states, distill > 0 and not own)
            total = total + share * part
            metrics[f"nats_{layers}"] = nats
        metrics["tokens"] = jnp.sum(counts, dtype=jnp.int32)
        return total, (metrics, state)

    return loss_fn


def read_exits(
    model: Model,
    ids: Int[Array, "batch seq"],
    exits: Sequence[int],
    *,
    positions: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
) -> ExitReads:
    """What every exit says after every token, and how sure it is.

    Args:
      model: a transformer decoder.
      ids: `[batch, seq]` int32.
      exits: layers of each exit, increasing (static).
      positions: `[batch, seq]` int32, None counts from 0.
      mask: as the model takes it.

    Returns:
      `ExitReads`; logits are never written whole.

    Raises:
      ArgumentError: exits that are not increasing or beyond the model.

    Example:
      >>> from jtok.testing import tiny_model
      >>> read_exits(tiny_model(), jnp.array([[1, 2, 3]]), (1, 2)).tokens.shape
      (2, 1, 3)
    """
    hidden = exit_hidden(model, ids, exits, positions=positions, mask=mask)
    weight, bias = model.unembedding()
    cap = model.config.final_softcap
    found = [
        vocab_statistics(states, weight, bias=bias, softcap=cap, entropy=False)
        for states in hidden
    ]
    tokens = jnp.stack([read.argmax for read in found])
    confidence = jnp.exp(jnp.stack([read.max_log_prob for read in found]))
    return ExitReads(tokens, confidence)


def choose_exit(
    confidence: Float[Array, "exits ..."],
    thresholds: Float[Array, " exits"],
) -> Int[Array, "..."]:
    """The first exit whose confidence is above its threshold, else the last.

    Args:
      confidence: `[exits, ...]` float32.
      thresholds: `[exits]` float32; that of the last exit is not read. An exit equal
        to its threshold is not taken.

    Returns:
      `[...]` int32 index of the exit.

    Source: arXiv 2407.01955, section 3.2.

    Example:
      >>> sure = jnp.array([[0.5, 0.6], [0.1, 0.1]])
      >>> choose_exit(sure, jnp.array([0.5, 0.5])).tolist()
      [1, 0]
    """
    bound = thresholds.reshape(-1, *(1,) * (confidence.ndim - 1))
    taken = confidence > bound
    taken = taken.at[-1].set(True)
    return jnp.argmax(taken, axis=0).astype(jnp.int32)


def early_exit(
    model: Model,
    ids: Int[Array, "batch seq"],
    exits: Sequence[int],
    thresholds: Sequence[float | int],
    *,
    positions: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
) -> EarlyExit:
    """Early exit without a cache: what any bookkeeping of caches has to equal.

    Each token leaves at its own exit; whatever depth that is, it sees all layers of the
    tokens before it that it needs.

    Args:
      model: a transformer decoder.
      ids: `[batch, seq]` int32.
      exits: layers of each exit, increasing (static).
      thresholds: one for each exit, see `check_thresholds`.
      positions: `[batch, seq]` int32, None counts from 0.
      mask: as the model takes it.

    Returns:
      `EarlyExit`.

    Raises:
      ArgumentError: exits or thresholds that do not fit.

    Source: arXiv 2407.01955, section 3.2.

    Example:
      >>> from jtok.testing import tiny_model
      >>> early_exit(tiny_model(), jnp.array([[1, 2]]), (1, 2), (0, 0)).exits.tolist()
      [[0, 0]]
    """
    exits = _checked(model, exits)
    bounds = jnp.asarray(check_thresholds(thresholds, len(exits)), jnp.float32)
    reads = read_exits(model, ids, exits, positions=positions, mask=mask)
    chosen = choose_exit(reads.confidence, bounds)
    tokens = jnp.take_along_axis(reads.tokens, chosen[None], axis=0)[0]
    return EarlyExit(chosen, tokens, reads)


def _checked(model: Model, exits: Sequence[int]) -> tuple[int, ...]:
    segment_config(model.config, 0, model.config.num_layers)
    return check_exits(exits, model.config.num_layers)


def _shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / count,) * count
    found = tuple(float(w) for w in weights)
    good = len(found) == count and all(w >= 0 for w in found) and sum(found) > 0
    check(good, "weights", found, f"{count} of at least 0, not all 0")
    return tuple(w / sum(found) for w in found)


def _batch(batch: Any) -> tuple[Array, dict[str, Any]]:
    """The tokens of a batch, and what keeps the documents of its rows apart."""
    if not isinstance(batch, dict) or "tokens" not in batch:
        found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ArgumentTypeError(f"data: got {found}, expected a dict with 'tokens'.")
    seen: dict[str, Any] = {}
    if "positions" in batch:
        seen["positions"] = jnp.asarray(batch["positions"])[:, :-1]
    if "segments" in batch:
        segments = jnp.asarray(batch["segments"])[:, :-1]
        seen["mask"] = within_documents(None, segments)
    return constrain(jnp.asarray(batch["tokens"]), "batch", None), seen


def _targets(tokens: Array, mask: Array | None) -> tuple[Array, Array]:
    counts = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    return tokens[:, 1:], counts[:, 1:]


def _teacher(
    guide: Model | None, frozen: Any, ids: Array, seen: Any, student: Model, last: Array
) -> tuple[Array, Array, Any, float | None]:
    """Hidden states that teach and what they are read out with, without gradients."""
    whole, hidden = student, last
    if guide is not None:
        whole = dataclasses.replace(guide, params=frozen)
        hidden = whole(ids, logits="none", **seen).hidden
    weight, bias = jax.lax.stop_gradient(whole.unembedding())
    cap = getattr(whole.config, "final_softcap", None)
    return jax.lax.stop_gradient(hidden), weight, bias, cap
