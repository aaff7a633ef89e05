"""A model that spells several tokens from one state vector drafts for itself.

Slot 0 of its decoder predicts the token that plain decoding emits; the other slots, of
the same state, draft what follows it. One encoder call then reads all of these, and
slot 0 at each of them verifies the next. Emitted without that, they are the model's own
blocks.

Source: Walker 2024, arXiv 2410.18160. Differs: verified drafts are an addition, which
equals plain decoding.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jtok.decode.heads import draft_tree
from jtok.decode.types import Accepted, Drafter, Proposal, Rule, Tokens, Verdict
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError, check
from jtok.models import Info
from jtok.ops import Readout, Tree, ancestor_path
from jtok.predict.future import FutureModel
from jtok.predict.future_slots import FutureConfig
from jtok.predict.future_target import future_context, future_head

__all__ = ["FutureState", "future_blocks", "future_drafter", "unverified"]

PyTree = Any


@struct.dataclass
class FutureState:
    """What the drafter remembers of every row.

    Attributes:
      carrier: `[batch, carrier_width]` of the newest token that the target has seen.
      ready: `[batch]` bool, whether it has seen one since the prompt.
    """

    carrier: jax.Array
    ready: jax.Array


def future_drafter(
    model: FutureModel,
    depth: int | None = None,
    tree: Tree | None = None,
    *,
    draw: Literal["shared", "own"] = "shared",
) -> Drafter:
    """Drafts with the decoder of the model that is decoded.

    The first call of a row has no drafts: it makes the state of the whole prompt.

    Args:
      model: whose `target()` is decoded; the encoder's layers are not read here.
      depth: tokens of the drafted chain, where there is no `tree`; None takes as many
        as the decoder has slots for, `horizon - 1`. 0 drafts nothing.
      tree: a static tree whose ranks count a node's candidates from the best.
      draw: "shared" chooses with the noise of the verifier, so that the output equals
        plain decoding; "own" draws with noise of its own and says from which law.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: more drafts than slots, a tree without a draft or with more
        candidates than ids.
      ArgumentTypeError: no `FutureModel`.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: Walker 2024, arXiv 2410.18160. Differs: see the module.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.predict import FutureConfig, init_future
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"), horizon=4)
      >>> model = init_future(config, jax.random.key(0))
      >>> out = generate(model.target(), [1, 2], params=model.params,
      ...     drafter=future_drafter(model), max_new_tokens=8)
      >>> out.guarantee
      'token'
    """
    if not isinstance(model, FutureModel):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a FutureModel."
        )
    check(draw in ("shared", "own"), "draw", draw, "'shared' or 'own'")
    config = model.config
    most = config.horizon - 1
    if tree is None:
        depth = most if depth is None else depth
        check(
            0 <= depth <= most, "depth", depth, f"0 to {most}, the slots after slot 0"
        )
        tree = Tree.chain(depth)
    else:
        check(tree.num_nodes > 1, "tree", "the root alone", "at least one draft")
        good = tree.max_depth <= most
        check(good, "tree", f"depth {tree.max_depth}", f"at most {most}")
        wide, vocab = tree.num_candidates, config.encoder.vocab_size
        check(wide <= vocab, "tree", f"{wide} candidates", f"at most {vocab}")
    encoder = model.params["encoder"]
    read = {name: encoder[name] for name in ("embed", "unembed") if name in encoder}
    params = {**model.params, "encoder": read}
    vocabulary = getattr(model.vocabulary, "hash", None)
    made = _drafter(config, tree, draw == "own")
    return made._replace(params=params, vocabulary=vocabulary)


@functools.lru_cache(maxsize=64)
def _drafter(config: FutureConfig, tree: Tree, own: bool) -> Drafter:
    vocab, kind = config.encoder.vocab_size, config.encoder.dtype

    def init(info: Info, tokens: Tokens, params: PyTree = None) -> FutureState:
        expected = f"{info.vocab_size} ids, as the target has"
        good = vocab == info.vocab_size
        check(good, "model", f"{vocab} ids", expected, VocabMismatchError)
        rows = tokens.count.shape[0]
        zeros = jnp.zeros((rows, config.carrier_width), kind)
        return FutureState(zeros, jnp.zeros(rows, bool))

    def propose(
        state: FutureState, tokens: Tokens, params: PyTree = None
    ) -> tuple[Proposal, FutureState]:
        if tree.max_depth == 0:
            root = tokens.root[:, None]
            return Proposal(root, jnp.ones_like(root, bool), tree=tree), state
        context = future_context(params, config, state.carrier)
        proposal = draft_tree(
            future_head(config), params, context, tokens, tree,
            vocab_size=vocab, own=own, valid=state.ready,
        )  # fmt: skip
        return proposal, state

    def update(
        state: FutureState, verdict: Verdict, params: PyTree = None
    ) -> FutureState:
        moved = verdict.count > 0
        last = jnp.maximum(verdict.count - 1, 0)[:, None]
        node = jnp.maximum(jnp.take_along_axis(verdict.path, last, axis=1), 0)
        newest = jnp.take_along_axis(verdict.hidden, node[..., None], axis=1)[:, 0]
        carrier = jnp.where(moved[:, None], newest.astype(kind), state.carrier)
        return FutureState(carrier, state.ready | moved)

    return Drafter(init, propose, update)


@functools.lru_cache(maxsize=1)
def unverified() -> Rule:
    """Emits all drafts as they are, and the target's choice after them.

    What comes out is what the drafter says, not what plain decoding would give. Of a
    tree the deepest path is taken, the first in level order.

    Returns:
      `Rule` of guarantee "none".

    Source: Walker 2024, arXiv 2410.18160 (blocks of tokens from one state).

    Example:
      >>> unverified().guarantee
      'none'
    """

    def accept(proposal: Proposal, read: Readout, tokens: Tokens) -> Accepted:
        del tokens
        parent, depth, ancestors = proposal.shape()
        real = proposal.valid | (parent < 0)
        whole = jnp.all(real[:, None, :] | ~ancestors, axis=-1)
        reach = jnp.where(whole, depth, -1)
        node = jnp.argmax(reach, axis=-1)
        path = ancestor_path(ancestors, depth, node, max_depth=proposal.deepest)
        drafts = jnp.take_along_axis(reach, node[:, None], axis=1)[:, 0]
        below = jnp.pad(path[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
        drafted = jnp.take_along_axis(proposal.tokens, jnp.maximum(below, 0), axis=1)
        after = jnp.take_along_axis(read.choice, node[:, None], axis=1)
        emitted = jnp.where(below >= 0, drafted, after).astype(jnp.int32)
        return Accepted(path, drafts.astype(jnp.int32), emitted)

    return Rule(accept, "none")


def future_blocks(model: FutureModel, size: int) -> dict[str, Any]:
    """Options of `generate` that emit blocks of tokens, each from one state vector.

    A block saves encoder calls and its text differs from plain decoding, except for
    blocks of one token. The last block may be cut by the budget or a stop id.

    Args:
      model: whose `target()` is decoded.
      size: tokens of a block, 1 to `horizon`.

    Returns:
      A dict with `drafter` and `rule`.

    Raises:
      ArgumentError: `size` out of range.

    Source: Walker 2024, arXiv 2410.18160.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.predict import FutureConfig, init_future
      >>> from jtok.testing import tiny_config
      >>> config = FutureConfig(encoder=tiny_config(family="gpt2"), horizon=4)
      >>> model = init_future(config, jax.random.key(0))
      >>> out = generate(model.target(), [1, 2], params=model.params,
      ...     **future_blocks(model, 4), max_new_tokens=9)
      >>> out.stats.calls, out.guarantee
      (3, 'none')
    """
    if not isinstance(model, FutureModel):
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a FutureModel."
        )
    most = model.config.horizon
    if not 1 <= size <= most:
        raise ArgumentError(
            f"size: got {size}, expected 1 to {most}, the slots of the decoder."
        )
    return {"drafter": future_drafter(model, size - 1), "rule": unverified()}
