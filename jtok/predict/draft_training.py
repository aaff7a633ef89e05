"""Training draft stacks on a frozen model of any family.

Source: Zeng et al. 2024, arXiv 2402.15758; Cai et al. 2024, arXiv 2401.10774.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentTypeError, check
from jtok.models import Model
from jtok.predict.fusing import Base, Fusing, base_of
from jtok.predict.fusing_states import check_tokens, fuse, head_hidden, head_weight
from jtok.predict.offset_losses import (
    Objective,
    OffsetLosses,
    offset_losses,
    state_distance,
)
from jtok.predict.state_heads import StateHeads, read_head

__all__ = ["draft_loss", "draft_losses"]

PyTree = Any


def draft_losses(
    draft: Fusing | StateHeads,
    hidden: Float[Array, "batch seq dim"],
    ids: Int[Array, "batch seq"],
    *,
    labels: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    objective: Objective | None = None,
) -> OffsetLosses:
    """Losses of a draft stack, given what the target computed of the same tokens.

    Args:
      draft: the draft stack.
      hidden: `[batch, seq, dim]` the target's states after its final norm.
      ids: `[batch, seq]` int32, at least 3 tokens.
      labels: `[batch, seq]` int32 tokens to learn, `IGNORE` for those that are not
        (of the user, say); None takes `ids`.
      mask: `[batch, seq]` True for real tokens, which come first; None: all are.
      objective: None takes `Objective()`: tokens of the text, and the first state.

    Returns:
      `OffsetLosses`; `.total(objective)` is what trains.

    Raises:
      ArgumentError: shapes that do not fit, or fewer than 3 tokens.
      ArgumentTypeError: a mask that is not of bools.

    Source: arXiv 2402.15758, released code. Differs: the target gets no gradient.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, ids = tiny_model(), jnp.array([[1, 2, 3, 4, 5, 6, 7]])
      >>> draft = init_fusing(model, jax.random.key(0))
      >>> draft_losses(draft, model(ids).hidden, ids).cross_entropy.shape
      (4,)
    """
    objective = Objective() if objective is None else objective
    labels = ids if labels is None else labels
    good = labels.shape == ids.shape
    check(good, "labels", f"shape {labels.shape}", f"{ids.shape}")
    check_tokens(draft.config.width, hidden, ids, mask)
    hidden = jax.lax.stop_gradient(hidden)
    if mask is None:
        mask = jnp.ones(ids.shape, bool)
    options: dict[str, Any] = {"labels": labels, "mask": mask, "objective": objective}
    if isinstance(draft, StateHeads):
        read = lambda head: read_head(draft, head, hidden)
        cap = draft.config.softcap
        return offset_losses(
            read, draft.params, draft.base, hidden, softcap=cap, **options
        )
    config = draft.config
    states = fuse(
        draft, hidden, ids, mask=mask, own_tokens=objective.own_tokens,
        compat="official" if objective.pads else None,
    )  # fmt: skip
    narrow = hidden.astype(config.layer.dtype)
    below = jax.lax.stop_gradient(states) if objective.heads_only else states

    def read_fused(item: Any) -> tuple[Array, Array, Array | None]:
        head, state = item
        made = head_hidden(config, head, narrow, state)
        return made, *head_weight(config, draft.base, head)

    losses = offset_losses(
        read_fused, (draft.params["heads"], below), draft.base, hidden,
        softcap=config.layer.final_softcap, **options,
    )  # fmt: skip
    if not objective.hidden:
        return losses
    real = jnp.ones_like(mask) if objective.pads else mask
    return losses._replace(hidden=state_distance(states[0], hidden, real))


def draft_loss(
    model: Model, draft: Fusing | StateHeads, *, objective: Objective | None = None
) -> Callable[..., tuple[Array, tuple[dict[str, Array], Any]]]:
    """The loss of a draft stack, for `jtok.train.fit`; the target is frozen.

    `fit` gets `draft.params` as trainable and `model.params` as frozen. A batch is a
    dict with `tokens` `[batch, seq]` int32, and maybe `mask` (bool, real tokens first),
    `labels` (`IGNORE` where nothing is learnt) and `hidden`, the target's states where
    they were computed before.

    Args:
      model: the target, of any family.
      draft: the stack whose parameters train.
      objective: None takes `Objective()`.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)` with the metrics `loss_1` (nats
      of head 1), `loss_2` and so on, `states`, and `tokens`.

    Raises:
      ArgumentTypeError: something else than a `Model` or a draft stack; while tracing,
        a batch without `tokens`.

    Source: arXiv 2402.15758.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, batch = tiny_model(), {"tokens": jnp.ones((2, 9), jnp.int32)}
      >>> draft = init_state_heads(model, steps=2)
      >>> loss, (metrics, _) = draft_loss(model, draft)(
      ...     draft.params, model.params, None, batch, jax.random.key(0))
      >>> sorted(metrics)
      ['loss_1', 'loss_2', 'states', 'tokens']
    """
    for name, value, kinds in (
        ("model", model, (Model,)),
        ("draft", draft, (Fusing, StateHeads)),
    ):
        if not isinstance(value, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            kind = type(value).__name__
            raise ArgumentTypeError(f"{name}: got {kind}, expected {wanted}.")
    goal = Objective() if objective is None else objective
    shell = model.replace(params=None)  # type: ignore[attr-defined]
    bare = draft.replace(params=None, base=None)  # type: ignore[union-attr]

    def loss_fn(
        trainable: PyTree, frozen: PyTree, state: Any, batch: Any, key: Array
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:
        del key
        if not isinstance(batch, dict) or "tokens" not in batch:
            found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ArgumentTypeError(f"data: got {found}, expected 'tokens' in a dict.")
        target = shell.replace(params=frozen)
        ids, mask = batch["tokens"], batch.get("mask")
        hidden = batch.get("hidden")
        if hidden is None:
            hidden = target(ids, mask=mask, logits="none").hidden
        base: Base = base_of(target)
        losses = draft_losses(
            bare.replace(params=trainable, base=base), hidden, ids,
            labels=batch.get("labels"), mask=mask, objective=goal,
        )  # fmt: skip
        each = {f"loss_{k + 1}": x for k, x in enumerate(losses.cross_entropy)}
        count = ids.size if mask is None else jnp.sum(mask, dtype=jnp.int32)
        metrics = {**each, "states": losses.hidden, "tokens": jnp.int32(count)}
        return losses.total(goal), (metrics, state)

    return loss_fn
