"""How sure an exit is, for less than a look at the whole vocabulary.

The largest probability needs every row of the unembedding, which with a large
vocabulary costs more than the layers that an early exit saves. A part of the
vocabulary, or a trained probe of the hidden state, costs next to nothing; the whole
vocabulary is then read once, at the exit that is taken.

Source: Kavehzadeh et al. 2024, arXiv 2407.01955, section 3.2 (confidence of exits).
Differs: both ways to estimate it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.models import Model
from jtok.ops import vocab_statistics
from jtok.predict.targets import safe_mean

__all__ = [
    "Confidence",
    "init_probe",
    "part_confidence",
    "probe_confidence",
    "probe_loss",
]

PyTree = Any


class Confidence(NamedTuple):
    """A cheap estimate of how likely an exit's best token is.

    Attributes:
      score: `(params, hidden[batch, nodes, dim], exit) -> float32[batch, nodes]` in
        [0, 1]; `exit` (a Python int) counts from 0, `hidden` is after the final norm.
      params: what `score` reads.
      rows: rows as long as those of the unembedding that it reads at an exit.
    """

    score: Callable[[PyTree, Array, int], Array]
    params: PyTree
    rows: int = 0


def part_confidence(model: Model, ids: Sequence[int] | np.ndarray) -> Confidence:
    """The largest probability among some ids only, as if there were no others.

    Args:
      model: whose unembedding is read.
      ids: which of its ids, such as the most frequent ones.

    Returns:
      `Confidence`.

    Raises:
      ArgumentError: no id, or one outside the vocabulary.

    Example:
      >>> from jtok.testing import tiny_model
      >>> part_confidence(tiny_model(), range(8)).rows
      8
    """
    chosen = np.asarray(ids, np.int32).reshape(-1)
    weight, bias = model.unembedding()
    good = chosen.size > 0 and chosen.min() >= 0 and chosen.max() < weight.shape[0]
    got = f"{chosen.size} ids"
    check(good, "ids", got, f"at least one, all within 0..{weight.shape[0] - 1}")
    part = {
        "weight": weight[chosen],
        "bias": None if bias is None else bias[chosen],
    }
    return Confidence(_score_part(model.config.final_softcap), part, int(chosen.size))


@functools.lru_cache(maxsize=16)
def _score_part(softcap: float | None) -> Callable[[PyTree, Array, int], Array]:
    def score(params: PyTree, hidden: Array, exit: int) -> Array:
        del exit
        found = vocab_statistics(
            hidden, params["weight"], bias=params["bias"], softcap=softcap,
            entropy=False,
        )  # fmt: skip
        return jnp.exp(found.max_log_prob)

    return score


def init_probe(dim: int, num_exits: int) -> dict[str, jax.Array]:
    """A probe of every exit that says 1/2 of everything, to be trained.

    Args:
      dim: of the hidden states.
      num_exits: how many exits there are.

    Returns:
      `weight` `[exits, dim]` and `bias` `[exits]`, float32 zeros.

    Example:
      >>> init_probe(4, 2)["weight"].shape
      (2, 4)
    """
    return {"weight": jnp.zeros((num_exits, dim)), "bias": jnp.zeros(num_exits)}


def probe_confidence(probe: PyTree) -> Confidence:
    """A trained probe as the confidence.

    Args:
      probe: as `init_probe` makes it.

    Returns:
      `Confidence` that reads no row of the unembedding.

    Example:
      >>> sure = probe_confidence(init_probe(4, 2))
      >>> sure.score(sure.params, jnp.ones((1, 1, 4)), 0).tolist()
      [[0.5]]
    """
    return Confidence(_score_probe, probe)


def _score_probe(probe: PyTree, hidden: Array, exit: int) -> Array:
    return jax.nn.sigmoid(_probe_logits(probe, hidden, exit))


def _probe_logits(probe: PyTree, hidden: Array, exit: int) -> Array:
    wide = hidden.astype(jnp.float32)
    return jnp.einsum("bnd,d->bn", wide, probe["weight"][exit]) + probe["bias"][exit]


def probe_loss(
    probe: PyTree,
    hidden: tuple[Float[Array, "batch seq dim"], ...],
    tokens: Int[Array, "exits batch seq"],
    targets: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, ""]:
    """What trains a probe to say how likely an exit's token is right.

    Args:
      probe: as `init_probe` makes it.
      hidden: of every exit, from `exit_hidden`; they get no gradient.
      tokens: `[exits, batch, seq]` int32 what the exits say, from `read_exits`.
      targets: `[batch, seq]` int32 what a target model says there, or what follows.
      mask: `[batch, seq]` bool, which tokens count; None counts all.

    Returns:
      float32 mean binary cross-entropy over exits and tokens, in nats.

    Example:
      >>> ids = jnp.zeros((1, 1, 3), jnp.int32)
      >>> float(probe_loss(init_probe(4, 1), (jnp.ones((1, 3, 4)),), ids, ids[0]))
      0.6931...
    """
    counts = jnp.ones(targets.shape, bool) if mask is None else mask
    losses = []
    for exit, states in enumerate(hidden):
        logits = _probe_logits(probe, jax.lax.stop_gradient(states), exit)
        right = (tokens[exit] == targets).astype(jnp.float32)
        nats = jax.nn.softplus(logits) - right * logits
        losses.append(safe_mean(nats, counts))
    return jnp.mean(jnp.stack(losses))
