"""A smaller model of the same vocabulary drafts for a larger one.

The draft model's cache holds the committed tokens and nothing else: drafts are looked
at above it and never kept. What the verdict kept is fed once more, which costs one
call a step and works for every kind of target, recurrent ones included.

Source: Leviathan et al. 2023, arXiv 2211.17192; Li et al. 2024, arXiv 2406.16858
(dynamic trees). Differs: by default it draws with the verifier's own noise.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from jtok.decode.candidates import chooser, inner_layout, point_masses
from jtok.decode.dynamic import Dynamic, grow_tree
from jtok.decode.types import Drafter, Proposal, Tokens, Verdict
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError, check
from jtok.models import Info, Model, StepInput, Target, split_layers
from jtok.ops import Tree, Want, ancestor_mask

__all__ = ["DraftState", "draft_model"]

PyTree = Any


@struct.dataclass
class DraftState:
    """What a draft model remembers.

    Attributes:
      cache: of the draft model, holding all tokens of a row but the newest.
      length: `[batch]` int32 tokens in it.
    """

    cache: PyTree
    length: jax.Array


def draft_model(
    model: Model | Target,
    depth: int = 4,
    tree: Tree | Dynamic | None = None,
    *,
    draw: Literal["shared", "own"] = "shared",
    params: PyTree = None,
) -> Drafter:
    """Drafts with another model of the same vocabulary.

    Args:
      model: what drafts, a `Model`, or a `Target` together with `params`; targets that
        take chains only draft chains.
      depth: tokens of the drafted chain, where there is no `tree`.
      tree: a static tree whose ranks count a node's candidates from the best, or
        `dynamic(...)`; None drafts a chain.
      draw: "shared" chooses as the target would, with the same noise; the output
        equals plain decoding token by token. "own" draws with noise of its own and
        says from which law (for `rejection()`, see there).
      params: parameters of a `Target`.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: a number out of range, or "own" draws for a dynamic tree, whose
        nodes are chosen and not drawn.
      ArgumentTypeError: `model` is neither a `Model` nor a `Target`.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: Leviathan et al. 2023, arXiv 2211.17192. Differs: see the module.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> small = draft_model(tiny_model(), depth=3)
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=8, drafter=small)
      >>> out.stats.calls, out.guarantee
      (2, 'token')
    """
    if isinstance(model, Model):
        check(params is None, "params", "parameters", "None: the model has its own")
        target, params = model.target(), split_layers(model.params)
        vocabulary = getattr(model.vocabulary, "hash", None)
    elif isinstance(model, Target):
        target, vocabulary = model, None
    else:
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a Model or a Target."
        )
    check(draw in ("shared", "own"), "draw", draw, "'shared' or 'own'")
    if tree is None:
        check(depth >= 1, "depth", depth, "at least 1")
        tree = Tree.chain(depth)
    if isinstance(tree, Tree):
        check(tree.num_nodes > 1, "tree", "the root alone", "at least one draft")
    elif draw == "own":
        raise ArgumentError(
            "draw: got 'own', expected 'shared': a dynamic tree is chosen, not drawn."
        )
    if tree != Tree.chain(tree.max_depth) and not target.info.trees:
        raise ArgumentError("tree: this model takes chains only, expected None.")
    made = _drafter(target, tree, draw == "own")
    return made._replace(params=params, vocabulary=vocabulary)


@functools.lru_cache(maxsize=64)
def _drafter(target: Target, tree: Tree | Dynamic, own: bool) -> Drafter:
    vocab = target.info.vocab_size

    def init(info: Info, tokens: Tokens, params: PyTree = None) -> DraftState:
        expected = f"{info.vocab_size} ids, as the target has"
        good = vocab == info.vocab_size
        check(good, "model", f"{vocab} ids", expected, VocabMismatchError)
        wide = tree.beam if isinstance(tree, Dynamic) else tree.num_candidates
        check(wide <= vocab, "tree", f"{wide} candidates", f"at most {vocab}")
        return _read_prompts(target, params, tokens)

    def propose(
        state: DraftState, tokens: Tokens, params: PyTree = None
    ) -> tuple[Proposal, DraftState]:
        if isinstance(tree, Dynamic):
            return _propose_dynamic(target, tree, params, state, tokens), state
        return _propose_static(target, tree, own, params, state, tokens), state

    def update(
        state: DraftState, verdict: Verdict, params: PyTree = None
    ) -> DraftState:
        at = jnp.maximum(verdict.path, 0)
        ids = jnp.take_along_axis(verdict.tokens, at, axis=1)
        return _feed(target, params, state, ids, verdict.count)

    calls = tree.max_depth + 1
    return Drafter(init, propose, update, calls=calls)


def _feed(
    target: Target, params: PyTree, state: DraftState, ids: Array, count: Array
) -> DraftState:
    """Commits the first `count` of `ids` `[batch, width]`."""
    batch, width = ids.shape
    order = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    causal = jnp.asarray(np.tri(width, dtype=bool))
    nodes = StepInput(
        ids,
        state.length[:, None] + order,
        jnp.broadcast_to(causal, (batch, width, width)),
        order < count[:, None],
    )
    _, cache = target.step(params, state.cache, nodes)
    return DraftState(target.commit(cache, order, count), state.length + count)


def _read_prompts(target: Target, params: PyTree, tokens: Tokens) -> DraftState:
    """All tokens but the newest, a chunk at a time.

    Not in step with the target's prefill, which leaves out what its cache has kept
    from an earlier turn.
    """
    batch, capacity = tokens.ids.shape
    # No chunk may reach beyond the buffers, where a write would be moved down.
    width = next((size for size in (256, 64, 16) if 2 * size <= capacity), 1)
    while capacity % width:
        width //= 2
    todo = tokens.count - 1

    def feed(index: Array, state: DraftState) -> DraftState:
        first = index * width
        ids = jax.lax.dynamic_slice_in_dim(tokens.ids, first, width, axis=1)
        return _feed(target, params, state, ids, jnp.clip(todo - first, 0, width))

    cache = target.init_cache(params, batch, capacity)
    state = DraftState(cache, jnp.zeros(batch, jnp.int32))
    return jax.lax.fori_loop(0, -(-jnp.max(todo) // width), feed, state)


def _propose_static(
    target: Target, tree: Tree, own: bool, params: PyTree, state: DraftState,
    tokens: Tokens,
) -> Proposal:  # fmt: skip
    """Looks at all inner nodes at once, once for each level.

    A look makes the tokens of one more level right; nodes see their ancestors only, so
    what still is wrong below does no harm.
    """
    layout = inner_layout(tree, own=own)
    batch, root = tokens.count.shape[0], tokens.root
    inner, nodes = len(layout.inner), tree.num_nodes
    depth = jnp.broadcast_to(jnp.asarray(tree.depth[layout.inner]), (batch, inner))
    start = tokens.count - 1
    seen = jnp.asarray(tree.ancestors[np.ix_(layout.inner, layout.inner)])
    allow = jnp.broadcast_to(seen, (batch, inner, inner))
    read = functools.partial(target.readout, params)
    choose = chooser(read, tokens.sampling, own=own, width=int(layout.rank.max()) + 1)
    sampled = own and tokens.sampling is not None
    laws = jnp.zeros((batch, inner, target.info.vocab_size if sampled else 0))
    carry = (
        jnp.broadcast_to(root[:, None], (batch, nodes)),
        jnp.ones((batch, nodes), bool),
        laws,
    )

    def look(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ids = carry[0][:, layout.inner]
        step = StepInput(ids, start[:, None] + depth, allow, jnp.ones_like(allow[:, 0]))
        out, _ = target.step(params, state.cache, step)
        best, found, laws = choose(out.hidden, start, depth, tree.max_depth)
        drafts = best[:, layout.above, layout.rank].at[:, 0].set(root)
        real = found[:, layout.above, layout.rank].at[:, 0].set(True)
        return drafts, real, carry[2] if laws is None else laws

    drafts, real, laws = jax.lax.fori_loop(0, tree.max_depth, look, carry)
    q = None
    if sampled:
        q = laws[:, layout.above]
    elif own:
        q = point_masses(drafts, target.info.vocab_size)
    return Proposal(drafts, real, q=q, tree=tree)


def _propose_dynamic(
    target: Target, size: Dynamic, params: PyTree, state: DraftState, tokens: Tokens
) -> Proposal:
    start = tokens.count - 1
    levels = jnp.asarray(np.arange(size.num_slots) // size.beam)[None]
    is_root = jnp.asarray(np.arange(size.num_slots) == 0)[None]

    def look(level: Array, ids: Array, parent: Array) -> tuple[Array, Array]:
        step = StepInput(
            ids,
            start[:, None] + levels,
            ancestor_mask(parent, max_depth=size.max_depth),
            is_root | (parent >= 0),
        )
        out, _ = target.step(params, state.cache, step)
        first = level * size.beam
        hidden = jax.lax.dynamic_slice_in_dim(out.hidden, first, size.beam, 1)
        read = target.readout(params, hidden, Want(top_k=size.beam, log_sum_exp=True))
        values: Any = read.top_logits
        total: Any = read.log_sum_exp
        ids_: Any = read.top_ids
        return ids_, values - total[..., None]

    return grow_tree(look, tokens.root, size)
