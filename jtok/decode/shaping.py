"""What changes logits before a token is chosen, node by node.

A node's logits are changed with exactly the tokens that plain decoding would have seen
there: the prompt, what was emitted, and the node's ancestors. So drafts stay what they
are, guesses that cannot change the result.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.decode.processors import Processor, PyTree, after_emitted, node_states
from jtok.decode.types import Proposal, Tokens
from jtok.models import Info
from jtok.ops.penalties import Penalties, count_tokens, node_counts, penalize

__all__ = ["Seen", "Shaping", "advance", "shape_logits", "start"]

# Not -inf: where a constraint leaves nothing but stop ids, one of them is emitted.
_SUPPRESSED = 1e9


@struct.dataclass
class Shaping:
    """What a run is given, per row; None where nothing of the kind was asked for.

    Attributes:
      penalties: on tokens that were seen.
      bias: `[batch or 1, vocab]` float32 added to the logits.
      min_new: `[batch]` int32 tokens before which no stop id is emitted.
      processor: parameters of the processor.
    """

    penalties: Penalties | None = None
    bias: jax.Array | None = None
    min_new: jax.Array | None = None
    processor: PyTree = None


@struct.dataclass
class Seen:
    """What must be remembered of the tokens of every row.

    Attributes:
      counts: `[batch, vocab]` int32 how often each token was seen, or None.
      processor: the processor's state, or None.
    """

    counts: jax.Array | None = None
    processor: PyTree = None


def start(
    info: Info, tokens: Tokens, shaping: Shaping, processor: Processor | None
) -> Seen:
    """What is known after the prompts."""
    counts = state = None
    if shaping.penalties is not None:
        counts = count_tokens(tokens.ids, tokens.count, info.vocab_size)
    if processor is not None:
        state = processor.bind(shaping.processor).init(info, tokens)
    return Seen(counts, state)


def shape_logits(
    logits: Array,
    proposal: Proposal,
    seen: Seen,
    shaping: Shaping,
    processor: Processor | None,
    *,
    produced: Array,
    stop_ids: Array,
) -> Array:
    """Logits `[batch, nodes, vocab]` as the verifier shall see them.

    In this order: bias, penalties, suppressed stop ids, processor.
    """
    _, depth, ancestors = proposal.shape()
    if shaping.bias is not None:
        logits = logits + shaping.bias[:, None]
    if seen.counts is not None and shaping.penalties is not None:
        counts = node_counts(seen.counts, proposal.tokens, ancestors)
        logits = penalize(logits, counts, shaping.penalties)
    if shaping.min_new is not None:
        ids = jnp.arange(logits.shape[-1])
        is_stop = jnp.any(ids[:, None] == stop_ids[None], axis=-1)
        early = produced[:, None] + depth < shaping.min_new[:, None]
        taken = jnp.where(early[..., None] & is_stop[None, None], _SUPPRESSED, 0.0)
        logits = logits - taken
    if processor is not None:
        bound = processor.bind(shaping.processor)
        states = node_states(bound, seen.processor, proposal)
        logits = jax.vmap(jax.vmap(bound.process))(states, logits)
    return logits


def advance(
    seen: Seen,
    shaping: Shaping,
    processor: Processor | None,
    *,
    emitted: Array,
    count: Array,
) -> Seen:
    """What is known after the first `count` of `emitted` `[batch, depth + 1]`."""
    counts, state = seen.counts, seen.processor
    if counts is not None:
        counts = counts + count_tokens(emitted, count, counts.shape[1])
    if processor is not None:
        bound = processor.bind(shaping.processor)
        state = after_emitted(bound, state, emitted, count)
    return Seen(counts, state)
