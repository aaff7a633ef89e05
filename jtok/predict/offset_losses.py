"""What heads at several offsets learn from: tokens of the text, or the target itself.

Any heads that read a token out of the target's states can be trained so: chains of
estimated states, or one state that says several tokens.

Source: Zeng et al. 2024, arXiv 2402.15758, and its released code; Cai et al. 2024,
arXiv 2401.10774, section 2.2 (heads on a frozen model).
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops import cross_entropy, vocab_statistics
from jtok.predict.fusing import Base
from jtok.predict.targets import IGNORE, future_labels, safe_mean

__all__ = ["OBJECTIVES", "Objective", "OffsetLosses", "offset_losses", "state_distance"]

PyTree = Any
_LOGITS = 2**22  # of some tokens at a time: 16 MB in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a draft stack is trained for, hashable.

    Attributes:
      labels: "data" for the tokens that follow in the text, "teacher" for those that
        the target would choose.
      hidden: weight of the squared distance between the first estimated state and the
        target's; only chains of states have it.
      logits: weight of the squared distance of all heads' logits to the target's.
      heads_only: what concerns tokens and logits trains the heads and nothing below.
      own_tokens: later steps see what the heads before them say, and not the text.
      pads: positions that are padding count, too, and the next token stands behind
        them (`fuse` with `compat="official"`).
    """

    labels: Literal["data", "teacher"] = "data"
    hidden: float = 1.0
    logits: float = 0.0
    heads_only: bool = False
    own_tokens: bool = False
    pads: bool = False

    def __post_init__(self) -> None:
        known = ("data", "teacher")
        check(self.labels in known, "labels", self.labels, "'data' or 'teacher'")
        for name in ("hidden", "logits"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")


# The default; the released code as it first ran; the released code at its end.
OBJECTIVES: Mapping[str, Objective] = types.MappingProxyType(
    {
        "recommended": Objective(),
        "distill": Objective(labels="teacher", logits=1.0, heads_only=True, pads=True),
        "next_token": Objective(hidden=0.0, own_tokens=True),
    }
)


class OffsetLosses(NamedTuple):
    """Mean losses of every head.

    Attributes:
      cross_entropy: `[steps]` float32 nats.
      logits: `[steps]` float32 mean squared distance of the logits; 0 where it has no
        weight.
      hidden: float32 mean squared distance of the first estimated state; 0 where
        there is none.
    """

    cross_entropy: jax.Array
    logits: jax.Array
    hidden: jax.Array

    def total(self, objective: Objective) -> jax.Array:
        """The weighted sum: float32 scalar."""
        apart = objective.logits * jnp.sum(self.logits)
        return jnp.sum(self.cross_entropy) + apart + objective.hidden * self.hidden


def offset_losses(
    read: Callable[[PyTree], tuple[Array, Array, Array | None]],
    items: PyTree,
    base: Base,
    hidden: Float[Array, "batch seq dim"],
    *,
    labels: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    objective: Objective,
    softcap: float | None = None,
) -> OffsetLosses:
    """Losses of heads of which head k at position i predicts the token at i + k + 2.

    The first position says nothing about tokens, the first two nothing about logits,
    as in the released code. Logits of all heads never exist together: one head, and
    some tokens, at a time.

    Args:
      read: item of one head -> what it reads from `[batch, seq, wide]`, its rows
        `[vocab, wide]`, and their bias or None.
      items: arrays stacked on a leading axis, one entry for each head.
      base: of the target, which gets no gradient.
      hidden: `[batch, seq, dim]` the target's states.
      labels: `[batch, seq]` int32 tokens of the text, `IGNORE` where not trained on.
      mask: `[batch, seq]` True for real tokens.
      objective: what counts.
      softcap: of all logits, or None.

    Returns:
      `OffsetLosses` without a distance of states.

    Source: arXiv 2402.15758, released code: targets of the state at i + k + 1, labels
    of the token at i + k + 2.

    Example:
      >>> eye = jnp.eye(4)
      >>> found = offset_losses(lambda item: (item, eye, None), jnp.zeros((1, 1, 5, 4)),
      ...     Base(eye, eye), jnp.zeros((1, 5, 4)), labels=jnp.array([[0, 1, 2, 3, 0]]),
      ...     mask=jnp.ones((1, 5), bool), objective=Objective())
      >>> bool(jnp.allclose(found.cross_entropy, jnp.log(4)))
      True
    """
    steps = jax.tree.leaves(items)[0].shape[0]
    hidden, base = jax.lax.stop_gradient((hidden, base))
    real = jnp.ones_like(mask) if objective.pads else mask
    _, ahead = future_labels(jnp.where(real, 0, IGNORE), steps)
    ahead = ahead & real[..., None]
    if objective.labels == "teacher":
        best = vocab_statistics(
            hidden, base.unembed, bias=base.bias, softcap=softcap, entropy=False
        ).argmax
        targets, counts = future_labels(jnp.where(real, best, IGNORE), steps)
    else:
        offsets = range(2, steps + 2)
        targets, counts = future_labels(jnp.where(mask, labels, IGNORE), offsets)
    counts = counts & real[..., None]
    place = np.arange(hidden.shape[1])[None, :, None]

    def one(_: None, item: Any) -> tuple[None, tuple[Array, Array]]:
        index, head, wanted, counted, compared = item
        narrow, weight, bias = read(head)
        losses = cross_entropy(narrow, weight, wanted, bias=bias, softcap=softcap)
        apart = jnp.float32(0.0)
        if objective.logits:
            later = jnp.minimum(jnp.arange(hidden.shape[1]) + index + 1, len(place[0]))
            guide = jnp.take(hidden, later, axis=1, mode="clip")
            squares = _logit_squares(
                (narrow, weight, bias), (guide, base.unembed, base.bias), softcap
            )
            apart = safe_mean(squares, compared)
        return None, (safe_mean(losses, counted), apart)

    first = lambda x, start: jnp.moveaxis(x & jnp.asarray(place >= start), -1, 0)
    rows = (jnp.moveaxis(targets, -1, 0), first(counts, 1), first(ahead, 2))
    _, (losses, apart) = jax.lax.scan(one, None, (jnp.arange(steps), items, *rows))
    return OffsetLosses(losses, apart, jnp.float32(0.0))


def state_distance(
    states: Float[Array, "batch seq dim"],
    hidden: Float[Array, "batch seq dim"],
    mask: Bool[Array, "batch seq"],
) -> Float[Array, ""]:
    """Mean squared distance of states estimated one position ahead.

    Args:
      states: `[batch, seq, dim]`, entry i estimates the state at i + 1.
      hidden: `[batch, seq, dim]` the target's states, which get no gradient.
      mask: `[batch, seq]` which positions count; both of a pair must.

    Returns:
      float32 scalar, 0 where nothing counts.

    Source: arXiv 2402.15758, released code.

    Example:
      >>> hidden = jnp.arange(4.0).reshape(1, 4, 1)
      >>> float(state_distance(hidden, hidden, jnp.ones((1, 4), bool)))
      1.0
    """
    wide = lambda x: x.astype(jnp.float32)
    apart = wide(states[:, :-1]) - wide(jax.lax.stop_gradient(hidden[:, 1:]))
    return safe_mean(jnp.mean(jnp.square(apart), axis=-1), mask[:, :-1] & mask[:, 1:])


def _logit_squares(student: Any, teacher: Any, softcap: float | None) -> Array:
    """`[batch, seq]` mean squared distance of two readouts, some tokens at a time."""
    narrow, weight, bias = student
    guide, rows, guide_bias = teacher
    shape, vocab = narrow.shape[:2], weight.shape[0]

    def logits(x: Array, weight: Array, bias: Array | None) -> Array:
        made = jnp.einsum("d,vd->v", x, weight, preferred_element_type=jnp.float32)
        made = made if bias is None else made + bias.astype(jnp.float32)
        return made if softcap is None else softcap * jnp.tanh(made / softcap)

    @jax.checkpoint
    def one(pair: tuple[Array, Array]) -> Array:
        apart = logits(pair[0], weight, bias) - logits(pair[1], rows, guide_bias)
        return jnp.mean(jnp.square(apart))

    flat = lambda x: x.reshape(-1, x.shape[-1])
    chunk = min(max(64, _LOGITS // vocab), shape[0] * shape[1])
    return jax.lax.map(one, (flat(narrow), flat(guide)), batch_size=chunk).reshape(
        shape
    )
