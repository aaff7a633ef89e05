"""What auxiliary heads are trained on, and what they are judged by.

Source: Chen et al. 2025, arXiv 2506.07833, and its code. Differs: a head
without a target counts 0 and not NaN, the losses come from a chunked cross-entropy one
head after the other, and sums over tokens may replace means over micro-batches.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, ArgumentTypeError, check, near
from jtok.models import Model
from jtok.ops import cross_entropy
from jtok.predict.auxiliary import (
    AuxiliaryHeads,
    base_states,
    check_heads,
    head_norm,
    head_places,
    head_unembedding,
    resolved_input,
    run_head,
    whole_attend,
)
from jtok.predict.masks import within_documents
from jtok.predict.targets import (
    IGNORE,
    SCHEDULES,
    distance_weights,
    future_labels,
    schedule_weight,
)

__all__ = [
    "AuxiliaryLosses",
    "auxiliary_loss",
    "auxiliary_losses",
    "combine_losses",
    "count_targets",
    "eval_losses",
    "out_of_patience",
    "real_eval_loss",
]

PyTree = Any
LossFn = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


@struct.dataclass
class AuxiliaryLosses:
    """Losses at every distance: entry 0 of the model, entry i of head i.

    Attributes:
      sums: `[predictions]` float32 nats over all targets.
      counts: `[predictions]` int32 targets.
    """

    sums: jax.Array
    counts: jax.Array

    @property
    def means(self) -> jax.Array:
        """`[predictions]` float32 nats per target; 0 where there is none."""
        return self.sums / jnp.maximum(self.counts, 1).astype(jnp.float32)


def auxiliary_losses(
    model: Model,
    heads: AuxiliaryHeads | None,
    ids: Int[Array, "batch seq"],
    labels: Int[Array, "batch seq"],
    *,
    positions: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
    head_input: Literal["pre_last", "final_norm"] | None = None,
    chunk: int | None = None,
) -> AuxiliaryLosses:
    """Cross-entropy of the model and of every head, each against its own targets.

    Head i is asked at position t for the label at t + 1 + i. Heads run one after the
    other, and again in the backward pass: the memory is that of one. Logits are never
    written whole.

    Args:
      model: the model.
      heads: made for it, or None for the model alone.
      ids: `[batch, seq]` int32.
      labels: `[batch, seq]` int32, `IGNORE` where a token is no target.
      positions: `[batch, seq]` int32; None counts from 0.
      mask: as the model takes it; heads see what it sees, and nothing is asked at
        tokens that a `[batch, seq]` one says are not real.
      segments: `[batch, seq]` int32 of packed documents: no label of another one
        counts, and documents do not see one another.
      head_input: what heads read; None takes `heads.config.head_input`.
      chunk: tokens a piece of the cross-entropy; None leaves that to the operation.

    Returns:
      `AuxiliaryLosses` of `1 + num_auxiliary` entries.

    Raises:
      ArgumentError: labels of another shape, heads for another model, an unknown
        `head_input`.

    Source: Chen et al. 2025, arXiv 2506.07833. Differs: see the module.

    Example:
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> ids = jnp.array([[1, 2, 3, 4, 5, 6]])
      >>> found = auxiliary_losses(tiny_model(), init_heads(tiny_model()), ids, ids)
      >>> found.counts.tolist()
      [5, 4, 3, 2, 1]
    """
    good = labels.shape == ids.shape
    check(good, "labels", f"shape {labels.shape}", f"{ids.shape}, as the ids")
    extra = 0
    if heads is not None:
        check_heads(heads, model)
        extra = heads.config.num_auxiliary
        head_input = resolved_input(heads, head_input)  # type: ignore[assignment]
    real = mask.astype(bool) if mask is not None and mask.ndim == 2 else None
    mask = within_documents(mask, segments)
    wanted = str(head_input if extra else "final_norm")
    hidden, x = base_states(model, ids, wanted, positions, mask)
    targets, valid = future_labels(labels, extra + 1, segments=segments)
    if real is not None:
        valid = valid & real[..., None]
    shared = model.unembedding()
    cap = model.config.final_softcap
    options: dict[str, Any] = {"softcap": cap, "chunk": chunk}
    nats = cross_entropy(
        hidden, shared[0], targets[..., 0], mask=valid[..., 0], bias=shared[1],
        **options,
    )  # fmt: skip
    sums = jnp.sum(nats)[None]
    if heads is not None and extra:
        of_heads = _head_sums(
            model, heads, x, targets, valid,
            places=head_places(heads, ids, positions, mask), head_input=wanted,
            options=options,
        )  # fmt: skip
        sums = jnp.concatenate([sums, of_heads])
    return AuxiliaryLosses(sums, jnp.sum(valid, axis=(0, 1), dtype=jnp.int32))


def _head_sums(
    model: Model,
    heads: AuxiliaryHeads,
    x: Array,
    targets: Array,
    valid: Array,
    *,
    places: tuple[Array, Any],
    head_input: str,
    options: dict[str, Any],
) -> Array:
    """`[num_auxiliary]` sums of nats; the backward pass computes a head again."""
    positions, mask = places
    attends = (whole_attend(heads, positions, mask),) * heads.config.depth
    shared = model.unembedding()
    norm = model.params["final_norm"]

    def one(_: None, item: tuple[PyTree, Array, Array]) -> tuple[None, Array]:
        head, wanted, counts = item
        made = run_head(head, heads, x, positions, attends)[0]
        weight, bias = head_unembedding(head, shared)
        nats = cross_entropy(
            head_norm(heads, norm, made, head_input), weight, wanted, mask=counts,
            bias=bias, **options,
        )  # fmt: skip
        return None, jnp.sum(nats)

    own = lambda y: jnp.moveaxis(y[..., 1:], -1, 0)
    items = (heads.params, own(targets), own(valid))
    return jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, items)[1]


def combine_losses(
    losses: Float[Array, " predictions"],
    *,
    decay: float = 0.8,
    weight: float | Float[Array, ""] = 0.01,
    base: bool = True,
) -> Float[Array, ""]:
    """`L_0 + weight * sum over i >= 1 of decay ** i * L_i`.

    Args:
      losses: `[predictions]` float32, the model's first.
      decay: >= 0, the paper's alpha.
      weight: of all heads, the paper's beta times gamma.
      base: False leaves the model's own loss out.

    Returns:
      float32 scalar.

    Raises:
      ArgumentError: a negative decay.

    Source: Chen et al. 2025, arXiv 2506.07833.

    Example:
      >>> float(combine_losses(jnp.array([2.0, 1.0]), decay=0.5, weight=1.0))
      2.5
    """
    weights = distance_weights(losses.shape[0], decay)
    first = losses[0] if base else jnp.float32(0.0)
    if losses.shape[0] == 1:
        return first
    return first + weight * jnp.sum(weights[1:] * losses[1:])


def count_targets(
    labels: Any,
    predictions: int,
    *,
    accumulate: int = 1,
    segments: Any = None,
    mask: Any = None,
) -> tuple[np.ndarray, ...]:
    """What makes micro-batches weigh by their tokens: for `batch["targets"]`.

    Args:
      labels: `[batch, seq]` of the whole batch.
      predictions: 1 + the number of heads.
      accumulate: micro-batches that `fit` will make of the batch.
      segments: as for `auxiliary_losses`.
      mask: `[batch, seq]`, False for tokens that are neither asked nor a target.

    Returns:
      A float32 scalar for each distance: targets of the whole batch, a micro-batch.

    Example:
      >>> [float(x) for x in count_targets(np.array([[1, 2, 3]]), 2)]
      [2.0, 1.0]
    """
    labels = np.asarray(labels)
    real = np.ones(labels.shape, bool) if mask is None else np.asarray(mask, bool)
    labels = np.where(real, labels, IGNORE)
    check(predictions >= 1, "predictions", predictions, "at least 1")
    check(accumulate >= 1, "accumulate", accumulate, "at least 1")
    found = []
    for distance in range(1, predictions + 1):
        counts = (labels[:, distance:] >= 0) & real[:, :-distance]
        if segments is not None:
            part = np.asarray(segments)
            counts = counts & (part[:, distance:] == part[:, :-distance])
        found.append(np.float32(counts.sum() / accumulate))
    return tuple(np.asarray(x) for x in found)


def auxiliary_loss(
    model: Model,
    heads: AuxiliaryHeads | None,
    *,
    steps: int,
    decay: float = 0.8,
    weight: float = 0.01,
    schedule: str = "rsine",
    ratio: float = 1.0,
    base: bool = True,
    head_input: Literal["pre_last", "final_norm"] | None = None,
    accumulate: int = 1,
    combine: Callable[[PyTree, PyTree], PyTree] | None = None,
    chunk: int | None = None,
) -> LossFn:
    """The loss of fine-tuning with heads, or of the heads alone, for `jtok.train.fit`.

    A batch has `tokens` `[batch, seq]` int32 and maybe `labels` of the same shape
    (`IGNORE` where a token is no target), `mask` (True = a real token), `segments`,
    `positions`, and `targets` from `count_targets`: then sums are divided by those
    numbers, and micro-batches weigh by their tokens. Trees of parameters have the
    entries `base` and `heads`. The state is `{"seen": int32}`, the batches so far.

    Args:
      model: shell of the model; its parameters are not read.
      heads: shell of the heads, or None for plain fine-tuning.
      steps: updates of the whole run.
      decay: of the weight from head to head, >= 0.
      weight: of all heads, >= 0; at 0 the heads do not run.
      schedule: one of `SCHEDULES`, a factor on `weight`.
      ratio: of "sine_r".
      base: False leaves the model's own loss out: the heads learn alone.
      head_input: what heads read; None takes `heads.config.head_input`.
      accumulate: micro-batches an update.
      combine: `(trainable, frozen) -> params`; None takes the trainable tree, and from
        the frozen one what it lacks.
      chunk: tokens a piece of the cross-entropy.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)`, with the metrics `tokens`,
      `head_weight` and `loss_0`, `loss_1`, ... of every distance.

    Raises:
      ArgumentError: an unknown schedule or input, or a number out of range.
      ArgumentTypeError: while tracing: a batch without `tokens`.

    Source: Chen et al. 2025, arXiv 2506.07833, and its code's schedules.
    Differs: see the module.

    Example:
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> model, heads = tiny_model(), init_heads(tiny_model())
      >>> loss_fn = auxiliary_loss(model, heads, steps=10)
      >>> params = {"base": model.params, "heads": heads.params}
      >>> state, batch = {"seen": jnp.int32(0)}, {"tokens": jnp.ones((2, 9), int)}
      >>> _, (metrics, _) = loss_fn(params, None, state, batch, None)
      >>> float(metrics["head_weight"])
      0.009999999776482582
    """
    if schedule not in SCHEDULES:
        raise ArgumentError(f"schedule: got {schedule!r}{near(schedule, SCHEDULES)}.")
    check(steps >= 1, "steps", steps, "at least 1")
    check(decay >= 0, "decay", decay, "at least 0")
    check(weight >= 0, "weight", weight, "at least 0")
    check(0 < ratio <= 1, "ratio", ratio, "above 0 and at most 1")
    check(accumulate >= 1, "accumulate", accumulate, "at least 1")
    alone = heads is None or heads.config.num_auxiliary == 0
    check(base or not alone, "base", base, "True where there are no heads")
    shell = dataclasses.replace(model, params=None)
    head_shell = None
    if heads is not None and not alone and (weight > 0 or not base):
        head_input = resolved_input(heads, head_input)  # type: ignore[assignment]
        head_shell = dataclasses.replace(heads, params=None)
    joined = combine or combine_trees

    def loss_fn(
        trainable: PyTree, frozen: PyTree, state: Any, batch: Any, key: Any
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del key
        params = joined(trainable, frozen)
        given = None
        if head_shell is not None:
            given = dataclasses.replace(head_shell, params=params["heads"])
        ids, labels, options = _read_batch(batch)
        found = auxiliary_losses(
            dataclasses.replace(shell, params=params["base"]), given, ids, labels,
            head_input=head_input, chunk=chunk, **options,
        )  # fmt: skip
        means = found.means
        if "targets" in batch:
            per = jnp.stack([jnp.asarray(x) for x in batch["targets"]])
            per = per[: means.shape[0]].astype(jnp.float32)
            means = found.sums / jnp.where(per > 0, per, 1.0)
        part = schedule_weight(
            schedule, state["seen"] // accumulate, steps, ratio=ratio
        )
        loss = combine_losses(means, decay=decay, weight=weight * part, base=base)
        metrics = {f"loss_{i}": x for i, x in enumerate(means)}
        metrics |= {"tokens": found.counts[0], "head_weight": weight * part}
        return loss, (metrics, {"seen": state["seen"] + 1})

    return loss_fn


def combine_trees(trainable: PyTree, frozen: PyTree) -> PyTree:
    """Two trees of one structure as one: where the first has None, the second."""
    if trainable is None or frozen is None:
        return frozen if trainable is None else trainable
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, frozen,
        is_leaf=lambda x: x is None,
    )  # fmt: skip


def _read_batch(batch: Any) -> tuple[Array, Array, dict[str, Any]]:
    if not isinstance(batch, Mapping) or "tokens" not in batch:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ArgumentTypeError(f"data: got {found}, expected a dict with 'tokens'.")
    ids = jnp.asarray(batch["tokens"]).astype(jnp.int32)
    labels = jnp.asarray(batch.get("labels", ids)).astype(jnp.int32)
    options = {
        n: jnp.asarray(batch[n]) for n in ("positions", "segments") if n in batch
    }
    if "mask" in batch:
        real = jnp.asarray(batch["mask"]).astype(bool)
        good = real.shape == ids.shape == labels.shape
        check(good, "mask", f"shape {real.shape}", f"{ids.shape}, as the tokens")
        labels = jnp.where(real, labels, IGNORE)
        options["mask"] = real
    return ids, labels, options


# ---- what heads are judged by


def eval_losses(
    batches: Sequence[AuxiliaryLosses], *, compat: Literal["official"] | None = None
) -> np.ndarray:
    """The loss at every distance over an evaluation set.

    Args:
      batches: the losses of its batches.
      compat: None weighs by tokens; "official" takes the plain mean over the batches
        that have a target.

    Returns:
      `[predictions]` float64; NaN where no batch has a target.

    Raises:
      ArgumentError: no batch, or another `compat`.

    Source: the evaluation of arXiv 2506.07833's code (per-head means, then nan-mean).
    Differs: tokens weigh equally by default.

    Example:
      >>> some = AuxiliaryLosses(jnp.array([2.0, 0.0]), jnp.array([2, 0]))
      >>> more = AuxiliaryLosses(jnp.array([8.0, 3.0]), jnp.array([4, 1]))
      >>> eval_losses([some, more], compat="official").tolist()
      [1.5, 3.0]
    """
    check(len(batches) > 0, "batches", 0, "at least one batch")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    sums = np.stack([np.asarray(b.sums, np.float64) for b in batches])
    counts = np.stack([np.asarray(b.counts, np.float64) for b in batches])
    with np.errstate(invalid="ignore", divide="ignore"):
        if compat is None:
            return sums.sum(0) / counts.sum(0)
        means = np.where(counts > 0, sums / counts, 0.0)
        return means.sum(0) / (counts > 0).sum(0)


def real_eval_loss(losses: Any, *, decay: float = 0.8) -> float:
    """What the official code selects checkpoints by: all distances, without beta.

    The model's own loss, `losses[0]`, is the better measure of a model whose heads are
    dropped.

    Args:
      losses: `[predictions]` from `eval_losses`; NaN counts 0.
      decay: weight of head i is `decay ** i`.

    Returns:
      The weighted sum.

    Raises:
      ArgumentError: a negative decay.

    Source: the metric `real_eval_loss` of arXiv 2506.07833's code, whose decay is
    fixed.

    Example:
      >>> real_eval_loss([1.0, 2.0], decay=0.5)
      2.0
    """
    check(decay >= 0, "decay", decay, "at least 0")
    values = np.nan_to_num(np.asarray(losses, np.float64))
    return float(np.sum(decay ** np.arange(len(values)) * values))


def out_of_patience(history: Sequence[float], patience: int = 2) -> bool:
    """Whether so many evaluations in a row brought nothing better.

    Args:
      history: what was measured after every epoch; lower is better.
      patience: at least 1.

    Returns:
      True where training shall stop.

    Raises:
      ArgumentError: a patience below 1.

    Source: the early stopping of arXiv 2506.07833's code.

    Example:
      >>> out_of_patience([3.0, 2.0, 2.5]), out_of_patience([3.0, 2.0, 2.5, 2.1])
      (False, True)
    """
    check(patience >= 1, "patience", patience, "at least 1")
    values = [math.inf if math.isnan(x) else x for x in history]
    best = values.index(min(values)) if values else 0
    return len(values) - 1 - best >= patience
