"""Training with auxiliary heads: the heads alone, then the model with them.

Source: Chen et al. 2025, arXiv 2506.07833, and its code. Differs: see
`jtok.predict.auxiliary`; dropout in adapters leaves out inputs of all tokens of a batch
at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtok import train
from jtok.errors import ArgumentError, check, near
from jtok.models import Model, split_layers, stack_layers
from jtok.predict.adapters import TARGETS, attach, lora_init, merge
from jtok.predict.auxiliary import AuxiliaryHeads, check_heads
from jtok.predict.auxiliary_loss import auxiliary_loss, combine_trees

__all__ = [
    "TUNING_MODES",
    "FineTuned",
    "Parts",
    "concept_tune",
    "head_adapters",
    "pretrain_heads",
    "tuning_parts",
]

PyTree = Any
Mode = Literal["heads", "base", "both", "base_adapters", "adapters"]

TUNING_MODES = ("heads", "base", "both", "base_adapters", "adapters")


class Parts(NamedTuple):
    """What trains, what does not, and how the two make parameters.

    Attributes:
      trainable: for `jtok.train.fit`.
      frozen: for `jtok.train.fit`.
      combine: `(trainable, frozen) -> {"base": params, "heads": params}`.
      finish: the same once training is over: adapters are merged into kernels.
    """

    trainable: PyTree
    frozen: PyTree
    combine: Callable[[PyTree, PyTree], PyTree]
    finish: Callable[[PyTree, PyTree], PyTree]


class FineTuned(NamedTuple):
    """What fine-tuning gives.

    Attributes:
      model: the model, adapters merged.
      heads: the heads, or None where there were none; their configuration's
        `head_input` is what they were last trained to read.
      adapters: `{"base", "heads"}` as they were trained, or None.
      fit: the result of `jtok.train.fit`.
    """

    model: Model
    heads: AuxiliaryHeads | None
    adapters: PyTree
    fit: train.FitResult


def head_adapters(heads: AuxiliaryHeads, rank: int, key: jax.Array) -> PyTree:
    """Adapters for the linear maps of decoder heads, which change nothing yet.

    Args:
      heads: with decoder blocks.
      rank: inner size, 1 to the smallest side of a kernel.
      key: typed PRNG key, consumed.

    Returns:
      `{"layers": ...}` in float32, for `jtok.predict.attach`.

    Raises:
      ArgumentError: linear heads, or a rank out of range.

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.

    Example:
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> made = head_adapters(init_heads(tiny_model()), 2, jax.random.key(0))
      >>> made["layers"][0]["query"]["lora_a"].shape
      (4, 32, 2)
    """
    check(heads.config.arch == "decoder", "heads", "linear ones", "decoder blocks")
    keys = iter(jax.random.split(key, len(TARGETS) * heads.config.depth))

    def walk(tree: PyTree, name: str) -> PyTree:
        if name in TARGETS and "kernel" in tree:
            *lead, rows, columns = tree["kernel"].shape
            check(
                1 <= rank <= min(rows, columns),
                "rank",
                rank,
                f"1 to {min(rows, columns)}",
            )
            noise = jax.random.normal(next(keys), (*lead, rows, rank))
            up = jnp.zeros((*lead, rank, columns))
            return {"lora_a": noise * rows**-0.5, "lora_b": up}
        if not isinstance(tree, Mapping):
            return None
        made = {n: walk(branch, n) for n, branch in tree.items()}
        return {n: x for n, x in made.items() if x} or None

    return {"layers": tuple(walk(layer, "") for layer in heads.params["layers"])}


def tuning_parts(
    model: Model,
    heads: AuxiliaryHeads | None,
    mode: Mode,
    *,
    rank: int = 8,
    scale: float = 2.0,
    key: jax.Array | None = None,
    freeze_unembedding: bool = True,
) -> Parts:
    """Splits a model and its heads into what a way of training changes and what not.

    Args:
      model: with split or stacked layers; where layers are of one kind they are
        stacked for training.
      heads: made for it, or None for plain fine-tuning.
      mode: "heads" (alone), "base" (heads frozen), "both", "base_adapters" (low-rank
        adapters of the model, heads frozen) or "adapters" (of both).
      rank: of adapters.
      scale: of adapters, alpha / rank.
      key: typed key for adapters, consumed.
      freeze_unembedding: of a model that trains whole: W does not, as gradients of all
        heads would meet there (of a tied model, nor does the embedding).

    Returns:
      `Parts`.

    Raises:
      ArgumentError: an unknown mode, no heads to train alone, a missing key, or heads
        for another model.

    Source: Chen et al. 2025, arXiv 2506.07833.

    Example:
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> parts = tuning_parts(tiny_model(), init_heads(tiny_model()), "heads")
      >>> sorted(parts.trainable), jax.tree.leaves(parts.trainable["base"])
      (['base', 'heads'], [])
    """
    if mode not in TUNING_MODES:
        raise ArgumentError(f"mode: got {mode!r}{near(str(mode), TUNING_MODES)}.")
    good = heads is not None or mode != "heads"
    check(good, "heads", None, "heads, for mode='heads'")
    if heads is not None:
        check_heads(heads, model)
    base = _one_tree(model.params)
    own = None if heads is None else heads.params
    if mode in ("base_adapters", "adapters"):
        check(key is not None, "key", key, "a key, for adapters")
        one, two = jax.random.split(key)  # type: ignore[arg-type]
        trainable = {"base": lora_init(model, rank, one), "heads": None}
        if mode == "adapters" and heads is not None:
            trainable["heads"] = head_adapters(heads, rank, two)
        frozen = {"base": base, "heads": own}
        return Parts(
            trainable, frozen,
            functools.partial(_with_adapters, attach, scale),
            functools.partial(_with_adapters, merge, scale),
        )  # fmt: skip
    whole = {"base": base, "heads": own}

    def trains(path: tuple[Any, ...]) -> bool:
        names = [str(getattr(p, "key", getattr(p, "idx", p))) for p in path]
        if names[0] == "heads":
            return mode != "base"
        tied = "unembed" not in base
        frozen = names[1] == "unembed" or (tied and names[1:] == ["embed", "tokens"])
        return mode != "heads" and not (freeze_unembedding and frozen)

    pick = lambda keep: jax.tree_util.tree_map_with_path(
        lambda path, x: x if trains(path) == keep else None, whole
    )
    return Parts(pick(True), pick(False), combine_trees, combine_trees)


def _one_tree(params: PyTree) -> PyTree:
    """Layers of one kind on a leading axis, for training."""
    params = dict(params)
    layers = params["layers"]
    if isinstance(layers, tuple):
        kinds = {jax.tree.structure(layer) for layer in layers}
        return stack_layers(params) if len(kinds) == 1 else params
    return params


def _with_adapters(
    put: Callable[..., PyTree], scale: float, trainable: PyTree, frozen: PyTree
) -> PyTree:
    made = {"base": put(frozen["base"], trainable["base"], scale)}
    own = trainable["heads"]
    made["heads"] = frozen["heads"]
    if own is not None:
        made["heads"] = put(frozen["heads"], own, scale)
    return made


def pretrain_heads(
    model: Model,
    heads: AuxiliaryHeads,
    data: Any,
    *,
    steps: int,
    key: jax.Array,
    decay: float = 0.8,
    learning_rate: float = 1e-4,
    warmup: int | None = None,
    accumulate: int = 1,
    **options: Any,
) -> tuple[AuxiliaryHeads, train.FitResult]:
    """Trains the heads of a frozen model: sum over heads of `decay ** i * L_i`.

    Args:
      model: the model.
      heads: made for it.
      data: batches as for `auxiliary_loss`, in any form that `jtok.train.fit` takes.
      steps: updates.
      key: typed key of the run, consumed.
      decay: of the weight from head to head.
      learning_rate: highest rate of AdamW, which falls as a cosine.
      warmup: updates of the rise; None takes 300, or a tenth of the steps.
      accumulate: micro-batches an update.
      **options: of `jtok.train.fit` (`folder`, `progress`, ...).

    Returns:
      The heads, and the result of `fit`.

    Raises:
      ArgumentError: a number out of range, or heads for another model.

    Source: Chen et al. 2025, arXiv 2506.07833; rates as in its code.
    Differs: AdamW in full precision.

    Example:
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> data = lambda step: {"tokens": np.ones((2, 8), np.int32)}
      >>> heads, fit = pretrain_heads(tiny_model(), init_heads(tiny_model()), data,
      ...     steps=2, key=jax.random.key(0), progress=False)
      >>> len(fit.metrics["loss_4"])
      2
    """
    parts = tuning_parts(model, heads, "heads")
    loss_fn = auxiliary_loss(
        model, heads, steps=steps, decay=decay, weight=1.0, schedule="constant",
        base=False, accumulate=accumulate, combine=parts.combine,
    )  # fmt: skip
    result = train.fit(
        loss_fn, parts.trainable, frozen=parts.frozen, data=data, steps=steps, key=key,
        state=_start(), optimizer=_optimizer(learning_rate, steps, warmup, 300),
        accumulate=accumulate, **options,
    )  # fmt: skip
    return dataclasses.replace(heads, params=result.trainable["heads"]), result


def concept_tune(
    model: Model,
    heads: AuxiliaryHeads | None,
    data: Any,
    *,
    steps: int,
    key: jax.Array,
    mode: Mode = "both",
    decay: float = 0.8,
    weight: float = 0.01,
    schedule: str = "rsine",
    ratio: float = 1.0,
    until: int | None = None,
    learning_rate: float | None = None,
    warmup: int | None = None,
    rank: int = 8,
    scale: float = 2.0,
    dropout: float = 0.0,
    freeze_unembedding: bool = True,
    accumulate: int = 1,
    **options: Any,
) -> FineTuned:
    """Fine-tunes a model with the losses of its heads beside its own.

    Args:
      model: the model.
      heads: made for it and trained by `pretrain_heads`; None is plain fine-tuning.
      data: batches as for `auxiliary_loss`, in any form that `jtok.train.fit` takes.
      steps: updates.
      key: typed key of the run, consumed.
      mode: as for `tuning_parts`; "heads" is `pretrain_heads`.
      decay: alpha, of the weight from head to head.
      weight: beta, of all heads.
      schedule: of the weight over the run, gamma; one of `SCHEDULES`.
      ratio: of "sine_r".
      until: updates after which to stop, None for all; schedules are those of `steps`.
        With a `folder` a later call goes on from there, so that a caller may look at
        the model after each epoch (see `out_of_patience`).
      learning_rate: highest rate of AdamW, which falls as a cosine; None takes 1e-5 for
        adapters and 5e-6 else.
      warmup: updates of the rise; None takes 50, or a tenth of the steps.
      rank: of adapters.
      scale: of adapters, alpha / rank.
      dropout: share of the inputs of each adapter that a batch leaves out, in [0, 1).
      freeze_unembedding: as for `tuning_parts`.
      accumulate: micro-batches an update.
      **options: of `jtok.train.fit` (`folder`, `progress`, ...).

    Returns:
      `FineTuned`.

    Raises:
      ArgumentError: a number out of range, an unknown mode or schedule, or heads for
        another model.

    Source: Chen et al. 2025, arXiv 2506.07833; rates as in its code.
    Differs: see the module.

    Example:
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> data = lambda step: {"tokens": np.ones((2, 8), np.int32)}
      >>> tuned = concept_tune(tiny_model(), init_heads(tiny_model()), data, steps=2,
      ...     key=jax.random.key(0), mode="base_adapters", progress=False)
      >>> tuned.fit.metrics["head_weight"].round(4).tolist()
      [0.01, 0.0071]
    """
    check(mode != "heads", "mode", mode, "another one: pretrain_heads trains heads")
    check(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
    last = steps if until is None else until
    check(1 <= last <= steps, "until", until, f"None or 1 to {steps}")
    key, own = jax.random.split(key)
    parts = tuning_parts(
        model, heads, mode, rank=rank, scale=scale, key=own,
        freeze_unembedding=freeze_unembedding,
    )  # fmt: skip
    adapted = mode in ("base_adapters", "adapters")
    input_ = None
    if heads is not None:
        input_ = heads.config.tuning_input or heads.config.head_input
    loss_fn = auxiliary_loss(
        model, heads, steps=steps, decay=decay, weight=weight, schedule=schedule,
        ratio=ratio, head_input=input_, accumulate=accumulate, combine=parts.combine,
    )  # fmt: skip
    if adapted and dropout > 0:
        loss_fn = functools.partial(_dropped, loss_fn, dropout)
    rate = learning_rate
    if rate is None:
        rate = 1e-5 if adapted else 5e-6
    result = train.fit(
        loss_fn, parts.trainable, frozen=parts.frozen, data=data, steps=last, key=key,
        state=_start(), optimizer=_optimizer(rate, steps, warmup, 50),
        accumulate=accumulate, **options,
    )  # fmt: skip
    made = parts.finish(result.trainable, parts.frozen)
    base = made["base"]
    if isinstance(model.params["layers"], tuple):
        base = split_layers(base)
    if heads is not None:
        read: Any = heads.config.head_input
        if mode in ("both", "adapters") and weight > 0:  # what they last learnt to read
            read = input_
        config = dataclasses.replace(heads.config, head_input=read)
        heads = dataclasses.replace(heads, params=made["heads"], config=config)
    return FineTuned(
        dataclasses.replace(model, params=base),
        heads,
        result.trainable if adapted else None,
        result,
    )


def _start() -> dict[str, jax.Array]:
    return {"seen": jnp.zeros((), jnp.int32)}


def _dropped(
    loss_fn: Callable[..., Any], dropout: float, trainable: PyTree, frozen: PyTree,
    state: Any, batch: Any, key: jax.Array,
) -> Any:  # fmt: skip
    """The loss with some inputs of every adapter left out."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(trainable)
    made = []
    for index, (path, leaf) in enumerate(leaves):
        if path[-1].key == "lora_a":
            kept = jax.random.bernoulli(
                jax.random.fold_in(key, index), 1 - dropout, leaf.shape[:-1]
            )
            leaf = jnp.where(kept[..., None], leaf / (1 - dropout), 0.0)
        made.append(leaf)
    return loss_fn(jax.tree.unflatten(tree, made), frozen, state, batch, key)


def _optimizer(
    rate: float, steps: int, warmup: int | None, usual: int
) -> optax.GradientTransformation:
    rise = min(usual, steps // 10) if warmup is None else warmup
    made = train.schedule("cosine", peak=rate, steps=steps, warmup=rise)
    return train.adamw(made, weight_decay=0.0, b2=0.999)
