"""A model drafts for itself: mask tokens behind its tokens predict what comes next.

Each call verifies the drafts and, in the same pass, runs blocks of mask tokens whose
latents make the next drafts. Masks are further slots of the call: they are never
verified, and nothing of them is kept.

Source: arXiv 2507.11851, section 4. Differs: per-row lengths in a batch, trees,
drawing, a shortlist and a cut by confidence.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from jtok.decode.drafters import no_drafter
from jtok.decode.heads import draft_tree
from jtok.decode.types import Drafter, Proposal, Tokens, Verdict
from jtok.errors import ArgumentTypeError, VocabMismatchError, check
from jtok.models import Info, Model, StepInput
from jtok.ops import Tree
from jtok.predict.heads import DraftHead
from jtok.predict.sampler import draft_log_probs, mask_head

__all__ = ["MaskState", "mtp"]

PyTree = Any
_KINDS = ("quadratic", "linear")


@struct.dataclass
class MaskState:
    """What a model that drafts for itself remembers.

    Attributes:
      latents: `[batch, k, dim]` of the block behind the newest token but one.
      ready: `[batch]` bool, there are latents at all.
      anchor: `[batch]` int32 node whose block the last call ran, where it ran one.
    """

    latents: jax.Array
    ready: jax.Array
    anchor: jax.Array


def mtp(
    model: Model | DraftHead,
    sampler: PyTree = None,
    *,
    k: int | None = None,
    decoding: Literal["quadratic", "linear"] = "quadratic",
    tree: Tree | None = None,
    draw: Literal["shared", "own"] = "shared",
    shortlist: int | None = None,
    confidence: float | None = None,
    params: PyTree = None,
) -> Drafter:
    """Drafts with the model's own mask tokens.

    "quadratic" runs a block behind the root and behind every draft, so that whatever
    is accepted, the next call has drafts: 1 + k + k (k + 1) slots a call. "linear" runs
    one behind the last draft, 1 + 2 k slots; unless all drafts are accepted, the next
    call has none to verify.

    Args:
      model: what `jtok.predict.with_masks` made; or, of another target, a `DraftHead`
        as `jtok.predict.mask_head` makes it, with its `params`. The target then runs
        ids from the vocabulary's size on as mask tokens; a `Model` with fewer masks
        than the head has steps takes its last one for those that it lacks.
      sampler: of `jtok.predict.mask_init`, trained; None reads each draft out of its
        mask alone.
      k: drafts of a chain, at most the masks there are; None takes all, 0 is plain
        decoding. Fewer than were trained may be asked for.
      decoding: "quadratic" or "linear".
      tree: a static tree whose ranks count a node's candidates from the best, in place
        of a chain of `k`. "linear" has its block behind the tree's first path.
      draw: "shared" chooses as the target would, with the same noise; the output
        equals plain decoding token by token. "own" draws with noise of its own and
        says from which law (for `rejection()`).
      shortlist: draft among so many ids only; see `mask_head`.
      confidence: drop drafts, and their blocks, from where the probability of a path,
        in the head's own view, falls below this; None keeps all. Changes how many
        slots count, not the shape of a call. Takes a `Model`.
      params: of a `DraftHead`: `tokens`, `unembed`, `bias`, `sampler`.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: a number out of range, a tree deeper than the masks, `confidence`
        beside own draws or a shortlist, or a model without masks. When it is used:
        a target that takes chains only.
      ArgumentTypeError: `model` is neither.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: arXiv 2507.11851, section 4.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.predict import mask_init, with_masks
      >>> from jtok.testing import tiny_model
      >>> made = mask_init(tiny_model(), 2, 2, jax.random.key(0))
      >>> lm = with_masks(tiny_model(), made)
      >>> drafter = mtp(lm, made["sampler"], decoding="linear")
      >>> generate(lm, [1, 2], max_new_tokens=4, drafter=drafter).guarantee
      'token'
    """
    head: Any = model
    softcap, vocabulary = None, None
    if isinstance(model, Model):
        check(params is None, "params", "parameters", "None: the model has its own")
        softcap = model.config.final_softcap
        vocabulary = getattr(model.vocabulary, "hash", None)
        params = _params_of(model, sampler)
        head = mask_head(_num_masks(model), softcap=softcap, shortlist=shortlist)
    elif isinstance(model, DraftHead):
        got = "a sampler or a shortlist"
        good = sampler is None and shortlist is None
        check(good, "model", got, "a DraftHead that has them already")
        check(params is not None, "params", None, "parameters of the DraftHead")
    else:
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a Model or a DraftHead."
        )
    check(decoding in _KINDS, "decoding", decoding, "'quadratic' or 'linear'")
    check(draw in ("shared", "own"), "draw", draw, "'shared' or 'own'")
    if tree is None:
        depth = head.steps if k is None else k
        check(0 <= depth <= head.steps, "k", depth, f"0 to {head.steps}, the masks")
        if depth == 0:
            return no_drafter()
        tree = Tree.chain(depth)
    check(k in (None, tree.max_depth), "k", k, "None beside a tree")
    got, most = f"depth {tree.max_depth}", f"1 to {head.steps}, the masks"
    check(1 <= tree.max_depth <= head.steps, "tree", got, most)
    if confidence is not None:
        check(0 < confidence < 1, "confidence", confidence, "between 0 and 1")
        # A DraftHead does not tell of its shortlist and softcap.
        good = isinstance(model, Model)
        check(good, "confidence", confidence, "None beside a DraftHead")
        # What is proposed may depend on what was drawn only where that is no draw.
        good = draw == "shared" and shortlist is None
        check(good, "confidence", confidence, "None beside own draws or a shortlist")
    made = _drafter(head, tree, decoding, draw == "own", confidence, softcap)
    return made._replace(params=params, vocabulary=vocabulary)


def _num_masks(model: Model) -> int:
    masks = model.params["embed"].get("extra")
    expected = "one with mask tokens, as jtok.predict.with_masks makes it"
    check(masks is not None, "model", "a model without extra rows", expected)
    return masks.shape[0]


def _params_of(model: Model, sampler: PyTree) -> PyTree:
    weight, bias = model.unembedding()
    tokens = model.params["embed"]["tokens"]
    return {"tokens": tokens, "unembed": weight, "bias": bias, "sampler": sampler}


@functools.lru_cache(maxsize=64)
def _drafter(
    head: DraftHead,
    tree: Tree,
    decoding: str,
    own: bool,
    confidence: float | None,
    softcap: float | None,
) -> Drafter:
    k, linear = tree.max_depth, decoding == "linear"
    main = _first_path(tree)

    def init(info: Info, tokens: Tokens, params: PyTree) -> MaskState:
        vocab, dim = params["unembed"].shape
        expected = f"{info.vocab_size} ids, as the target has"
        good = vocab == info.vocab_size
        check(good, "model", f"{vocab} ids", expected, VocabMismatchError)
        check(
            info.trees, "target", "one that takes chains only", "one that takes trees"
        )
        wide = tree.num_candidates
        check(wide <= vocab, "tree", f"{wide} candidates", f"at most {vocab}")
        batch = tokens.count.shape[0]
        return MaskState(
            jnp.zeros((batch, k, dim), params["unembed"].dtype),
            jnp.zeros(batch, bool),
            jnp.zeros(batch, jnp.int32),
        )

    def propose(
        state: MaskState, tokens: Tokens, params: PyTree
    ) -> tuple[Proposal, MaskState]:
        vocab = params["unembed"].shape[0]
        proposal = draft_tree(
            head, params, state.latents, tokens, tree, vocab_size=vocab, own=own,
            valid=state.ready,
        )  # fmt: skip
        if confidence is not None:
            sure = _sure(head, params, state.latents, proposal, confidence, softcap)
            proposal = dataclasses.replace(proposal, valid=proposal.valid & sure)
        batch = tokens.count.shape[0]
        if linear:
            along = proposal.valid[:, main]
            anchor = jnp.asarray(main)[jnp.sum(along, axis=1) - 1]
            anchors = anchor[:, None]
        else:
            anchor = state.anchor
            nodes = jnp.arange(tree.num_nodes, dtype=jnp.int32)
            anchors = jnp.broadcast_to(nodes, (batch, tree.num_nodes))
        extra = _blocks(proposal, anchors, tokens, k, vocab)
        made = dataclasses.replace(proposal, extra=extra)
        return made, dataclasses.replace(state, anchor=anchor)

    def update(state: MaskState, verdict: Verdict, params: PyTree) -> MaskState:
        live = verdict.count > 0
        last = jnp.maximum(verdict.count - 1, 0)[:, None]
        end = jnp.take_along_axis(verdict.path, last, axis=1)[:, 0]
        hidden: Any = verdict.extra_hidden
        batch, slots, dim = hidden.shape
        groups = hidden.reshape(batch, slots // k, k, dim)
        chosen = jnp.zeros_like(end) if linear else jnp.maximum(end, 0)
        found = groups[jnp.arange(batch), chosen].astype(state.latents.dtype)
        ready = (end == state.anchor) if linear else jnp.ones_like(live)
        return dataclasses.replace(
            state,
            latents=jnp.where(live[:, None, None], found, state.latents),
            ready=jnp.where(live, ready, state.ready),
        )

    return Drafter(init, propose, update)


def _first_path(tree: Tree) -> np.ndarray:
    """The root, its best child, the best child of that, and so on."""
    path = [0]
    while (below := tree.children[path[-1]])[0] >= 0:
        path.append(int(below[0]))
    return np.array(path, np.int32)


def _sure(
    head: DraftHead,
    params: PyTree,
    latents: Array,
    proposal: Proposal,
    confidence: float,
    softcap: float | None,
) -> Array:
    """`[batch, nodes]` drafts whose whole path is probable enough."""
    tree: Any = proposal.tree
    parent = np.array(tree.parent)[1:]
    levels = tuple(int(depth) - 1 for depth in tree.depth[1:])
    before = proposal.tokens[:, parent]
    own = draft_log_probs(
        head, params, latents, before, proposal.tokens[:, 1:], levels, softcap=softcap
    )
    above = jnp.asarray(tree.ancestors[:, 1:], jnp.float32)
    whole = jnp.einsum("nj,bj->bn", above, own, precision="highest")
    return whole >= math.log(confidence)


def _blocks(
    proposal: Proposal, anchors: Array, tokens: Tokens, k: int, vocab: int
) -> StepInput:
    """A block of mask tokens behind each anchor `[batch, groups]`."""
    _, depth, ancestors = proposal.shape()
    batch, groups = anchors.shape
    slots = groups * k
    order = jnp.arange(k, dtype=jnp.int32)
    pick = jax.vmap(lambda x, at: x[at])
    start = (tokens.count - 1)[:, None] + pick(depth, anchors)
    spread = lambda x: jnp.repeat(x, k, axis=1)  # of every group, to its masks
    group, place = np.arange(slots) // k, np.arange(slots) % k
    own = (group[:, None] == group) & (place <= place[:, None])
    nodes = spread(pick(ancestors, anchors))
    allow = [nodes, jnp.broadcast_to(jnp.asarray(own), (batch, slots, slots))]
    return StepInput(
        ids=jnp.broadcast_to(jnp.tile(vocab + order, groups), (batch, slots)),
        positions=spread(start) + jnp.tile(order + 1, groups)[None],
        allow=jnp.concatenate(allow, axis=2),
        valid=spread(pick(proposal.valid, anchors)),
    )
