"""What a run is given, what it keeps, and the static choices that compile it."""

from typing import Any, NamedTuple

import jax
from flax import struct

from jtok.decode.processors import Processor
from jtok.decode.shaping import Seen, Shaping
from jtok.decode.types import Rule, Tokens

__all__ = ["Batch", "Rules", "State"]

PyTree = Any


class Rules(NamedTuple):
    """Static choices of a run; they select what is compiled.

    Attributes:
      rule: how drafts are accepted.
      gaps: record how close every choice was.
      capacity: slots a row.
      chunk: prompt tokens a prefill step.
      processor: constraint on what is generated (its parameters come with the
        `Batch`), or None.
      shapes: logits are changed before a token is chosen.
      logprobs: record log-probabilities.
      top_logprobs: how many alternatives to record at every token.
      trace: record how each token came about, for counts of a part of the run.
    """

    rule: Rule
    gaps: bool
    capacity: int
    chunk: int
    processor: Processor | None = None
    shapes: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    trace: bool = False

    @property
    def dense(self) -> bool:
        """Whether all logits of a call are looked at."""
        return self.shapes or self.logprobs or self.top_logprobs > 0


@struct.dataclass
class Batch:
    """What a run is given, per row.

    Attributes:
      tokens: the prompts, and how rows choose.
      budget: `[batch]` int32 most tokens to emit.
      stop_ids: `[stops]` int32, -1 for none.
      drafter: parameters of the drafter, or None.
      shaping: what changes the logits.
    """

    tokens: Tokens
    budget: jax.Array
    stop_ids: jax.Array
    drafter: PyTree = None
    shaping: Shaping = struct.field(default_factory=Shaping)


@struct.dataclass
class State:
    """Everything that changes while decoding.

    Attributes:
      tokens: prompts and what was emitted.
      cache: the target's, holding all tokens of a row but the newest.
      drafter: the drafter's.
      live: `[batch]` bool.
      stopped: `[batch]` bool, a stop id was emitted.
      calls: `[batch]` int32 decode steps while live.
      slots: `[batch]` int32 query slots of these steps.
      call_of: `[batch, capacity]` int32 the call that emitted each token.
      gaps: `[batch, capacity]` float32 score gap of each emitted token.
      emitted_per_call: `[depth + 2]` int32 histogram over calls.
      node_hits: `[nodes]` int32 how often each node was on the accepted path.
      steps: int32 steps of the loop so far.
      seen: what changes the logits of the next call.
      extras: further buffers, `[batch, capacity, ...]`, an entry for each emitted
        token: "logprobs" float32, "top_ids" int32 and "top_logprobs" float32
        `[batch, capacity, k]`, "node_of" and "slots_of" int32.
    """

    tokens: Tokens
    cache: PyTree
    drafter: PyTree
    live: jax.Array
    stopped: jax.Array
    calls: jax.Array
    slots: jax.Array
    call_of: jax.Array
    gaps: jax.Array
    emitted_per_call: jax.Array
    node_hits: jax.Array
    steps: jax.Array
    seen: Seen = struct.field(default_factory=Seen)
    extras: dict[str, jax.Array] = struct.field(default_factory=dict)
