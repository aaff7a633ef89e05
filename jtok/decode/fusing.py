"""Drafters that read the target's own states: a fusing stack, and heads on one state.

Both keep what the verdicts bring of the target's states, from the prompt on, and draft
a chain or a static tree level by level. A row of which they have seen no state yet
(a prompt of one token, before its first call) has no drafts.

Source: Zeng et al. 2024, arXiv 2402.15758; Cai et al. 2024, arXiv 2401.10774.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jtok.decode.heads import draft_tree
from jtok.decode.templates import chimera_template
from jtok.decode.types import Drafter, Needs, Proposal, Tokens, Verdict
from jtok.errors import ArgumentTypeError, VocabMismatchError, check
from jtok.models import Info
from jtok.ops import Tree
from jtok.predict.fusing import Fusing, FusingConfig
from jtok.predict.fusing_draft import (
    FusingContext,
    empty_context,
    extend_context,
    fusing_head,
)
from jtok.predict.state_heads import StateHeads, StateHeadsConfig, state_draft_head

__all__ = ["LastState", "chimera", "medusa"]

PyTree = Any
Draws = Literal["shared", "own"]


def chimera(
    draft: Fusing, tree: Tree | None = None, *, draw: Draws = "shared"
) -> Drafter:
    """Drafts with a stack that fuses the target's states with trigrams.

    The stack keeps two keys and values of every token, of its state and of its
    trigram; of a text that a kept cache continues it sees the new part only.

    Args:
      draft: the stack, as `init_fusing` and training make it, for this target.
      tree: whose ranks count a node's candidates from the best; None takes
        `chimera_template(steps)`. Targets that take chains only need a chain.
      draw: "shared" chooses as the target would, with the same noise; the output
        equals plain decoding token by token. "own" draws with noise of its own and
        says from which law (for `rejection()`).

    Returns:
      `Drafter`.

    Raises:
      ArgumentTypeError: `draft` is no fusing stack.
      ArgumentError: a tree without drafts, deeper than the stack has heads, or wider
        than the vocabulary; when it is used, a target of another width.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: arXiv 2402.15758. Differs: inference was never released; this is the form
    that agrees with the released training.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.predict import init_fusing
      >>> from jtok.testing import tiny_model
      >>> drafter = chimera(init_fusing(tiny_model(), jax.random.key(0)))
      >>> generate(tiny_model(), [1, 2], max_new_tokens=8, drafter=drafter).guarantee
      'token'
    """
    if not isinstance(draft, Fusing):
        raise ArgumentTypeError(f"draft: got {type(draft).__name__}, expected Fusing.")
    config = draft.config
    tree = _checked(tree, draw, config.steps, config.layer.vocab_size)
    heads = _split(draft.params["heads"])
    split = draft.replace(params={**draft.params, "heads": heads})  # type: ignore[attr-defined]
    made = _chimera(config, tree, draw == "own")
    return made._replace(params=split, vocabulary=draft.vocabulary)


@functools.lru_cache(maxsize=64)
def _chimera(config: FusingConfig, tree: Tree, own: bool) -> Drafter:
    head, vocab = fusing_head(config), config.layer.vocab_size

    def init(info: Info, tokens: Tokens, params: PyTree = None) -> FusingContext:
        _check_vocabulary(info, vocab)
        return empty_context(config, *tokens.ids.shape)

    def propose(
        state: FusingContext, tokens: Tokens, params: PyTree = None
    ) -> tuple[Proposal, FusingContext]:
        made = draft_tree(
            head, params, state, tokens, tree, vocab_size=vocab, own=own,
            valid=state.length > 0,
        )  # fmt: skip
        return made, state

    def update(
        state: FusingContext, verdict: Verdict, params: PyTree = None
    ) -> FusingContext:
        hidden, ids = _kept(verdict)
        return extend_context(params, state, hidden, ids, verdict.count)

    needs = Needs(prefill=True)
    return Drafter(init, propose, update, needs, calls=tree.max_depth)


@struct.dataclass
class LastState:
    """What heads on one state remember.

    Attributes:
      hidden: `[batch, dim]` the target's newest state.
      seen: `[batch]` bool whether there is one.
    """

    hidden: jax.Array
    seen: jax.Array


def medusa(
    draft: StateHeads, tree: Tree | None = None, *, draw: Draws = "shared"
) -> Drafter:
    """Drafts with heads that each read one token out of the target's last state.

    Args:
      draft: the heads, as `init_state_heads` and training make them.
      tree: as for `chimera`; all nodes of a level have the same candidates.
      draw: as for `chimera`.

    Returns:
      `Drafter`.

    Raises:
      ArgumentTypeError: `draft` are no such heads.
      ArgumentError: as for `chimera`.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: Cai et al. 2024, arXiv 2401.10774, section 2.1.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.predict import init_state_heads
      >>> from jtok.testing import tiny_model
      >>> drafter = medusa(init_state_heads(tiny_model()))
      >>> generate(tiny_model(), [1, 2], max_new_tokens=8, drafter=drafter).guarantee
      'token'
    """
    if not isinstance(draft, StateHeads):
        kind = type(draft).__name__
        raise ArgumentTypeError(f"draft: got {kind}, expected StateHeads.")
    config = draft.config
    tree = _checked(tree, draw, config.steps, config.vocab_size)
    made = _medusa(config, tree, draw == "own")
    split = {name: _split(part) for name, part in draft.params.items()}
    params = draft.replace(params=split)  # type: ignore[attr-defined]
    return made._replace(params=params, vocabulary=draft.vocabulary)


@functools.lru_cache(maxsize=64)
def _medusa(config: StateHeadsConfig, tree: Tree, own: bool) -> Drafter:
    head, vocab = state_draft_head(config), config.vocab_size

    def init(info: Info, tokens: Tokens, params: PyTree = None) -> LastState:
        _check_vocabulary(info, vocab)
        batch = tokens.ids.shape[0]
        hidden = jnp.zeros((batch, config.width), config.dtype)
        return LastState(hidden, jnp.zeros(batch, bool))

    def propose(
        state: LastState, tokens: Tokens, params: PyTree = None
    ) -> tuple[Proposal, LastState]:
        made = draft_tree(
            head, params, state.hidden, tokens, tree, vocab_size=vocab, own=own,
            valid=state.seen,
        )  # fmt: skip
        return made, state

    def update(state: LastState, verdict: Verdict, params: PyTree = None) -> LastState:
        hidden, _ = _kept(verdict)
        width = hidden.shape[-1]
        expected = f"{width}, as the target"
        check(width == config.width, "draft", f"a width of {config.width}", expected)
        last = jnp.maximum(verdict.count - 1, 0)[:, None, None]
        newest = jnp.take_along_axis(hidden, last, axis=1)[:, 0].astype(config.dtype)
        moved = verdict.count > 0
        kept = jnp.where(moved[:, None], newest, state.hidden)
        return LastState(kept, state.seen | moved)

    needs = Needs(prefill=True)
    return Drafter(init, propose, update, needs, calls=1)


def _kept(verdict: Verdict) -> tuple[Array, Array]:
    """States and ids along the path; entries beyond the count mean nothing."""
    at = jnp.maximum(verdict.path, 0)
    hidden = jnp.take_along_axis(verdict.hidden, at[..., None], axis=1)
    return hidden, jnp.take_along_axis(verdict.tokens, at, axis=1)


def _split(stacked: dict[str, Array]) -> dict[str, tuple[Array, ...]]:
    """Heads as a tuple each, so that a step copies none out of a stack."""
    return {name: tuple(value) for name, value in stacked.items()}


def _checked(tree: Tree | None, draw: str, steps: int, vocab: int) -> Tree:
    check(draw in ("shared", "own"), "draw", draw, "'shared' or 'own'")
    tree = chimera_template(steps) if tree is None else tree
    check(tree.num_nodes > 1, "tree", "the root alone", "at least one draft")
    depth, wide = tree.max_depth, tree.num_candidates
    check(depth <= steps, "tree", f"depth {depth}", f"at most the {steps} heads")
    check(wide <= vocab, "tree", f"{wide} candidates", f"at most {vocab}")
    return tree


def _check_vocabulary(info: Info, vocab: int) -> None:
    good = vocab == info.vocab_size
    expected = f"{info.vocab_size} ids, as the target has"
    check(good, "draft", f"{vocab} ids", expected, VocabMismatchError)
