"""The one interface of heads that draft token after token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jtok.ops import Readout

__all__ = ["DraftHead"]

PyTree = Any


class DraftHead(NamedTuple):
    """What drafts from hidden states of the target, one token after another.

    A head sees a `context` of every row (what the target computed: hidden states, a
    cache) and a `state` of every node it has drafted. `step` reads the newest token of
    each node and gives the hidden state that the token after it is read out of. The
    same functions draft chains and trees, and train where a head is trained so.

    Attributes:
      init: `(params, context) -> state` of the root: arrays `[batch, 1, ...]`.
      step: `(params, context, state, tokens[batch, nodes], index) -> (hidden[batch,
        nodes, dim], state)`; `index` (a Python int) counts the steps from 0, and state
        arrays are `[batch, nodes, ...]`.
      readout: `(params, hidden, Want) -> Readout`, with `index` as a fourth argument
        where `each` says so.
      steps: most steps, so the most tokens of a chain.
      each: every step has a readout of its own.
    """

    init: Callable[[PyTree, PyTree], PyTree]
    step: Callable[[PyTree, PyTree, PyTree, jax.Array, int], tuple[jax.Array, PyTree]]
    readout: Callable[..., Readout]
    steps: int
    each: bool = False
