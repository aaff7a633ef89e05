"""A model's auxiliary heads draft for it: all drafts of a step from one hidden state.

Head i says what stands i + 1 tokens after the newest token that the model has read. The
next one is the root already, so head 1 drafts the root's children, head 2 theirs, and
so on: candidates depend on their depth, not on their parent. Heads with decoder blocks
keep keys and values of the committed tokens, which they read when the model has.

Source: Chen et al. 2025, arXiv 2506.07833 (heads); Stern et al. 2018, arXiv 1811.03115
(drafting with them); Cai et al. 2024, arXiv 2401.10774, section 2.3 (trees of what
independent heads say). Differs: heads attend to the text, and the choice is made with
the verifier's noise.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from jtok import nn
from jtok.decode.candidates import chooser, inner_layout, point_masses
from jtok.decode.dynamic import Dynamic, grow_tree
from jtok.decode.types import Drafter, Needs, Proposal, Tokens, Verdict
from jtok.errors import ArgumentError, VocabMismatchError, check
from jtok.models import Info, Model
from jtok.ops import Readout, Tree, Want, cached_attention, readout, write_rows
from jtok.ops.sharding import constrain
from jtok.predict.auxiliary import (
    AuxiliaryHeads,
    HeadsConfig,
    check_heads,
    head_norm,
    head_unembedding,
    resolved_input,
    run_head,
    split_heads,
)

__all__ = ["HeadsState", "auxiliary_heads"]

PyTree = Any


@struct.dataclass
class HeadsState:
    """What heads remember of every row.

    Attributes:
      layers: for each head and block keys and values `[batch, kv_heads, capacity,
        head_dim]`; empty for linear heads.
      length: `[batch]` int32 tokens that the heads have read.
      ahead: `[batch, num_auxiliary, dim]` what the unembedding reads of each head at
        the newest of them.
    """

    layers: PyTree
    length: jax.Array
    ahead: jax.Array


class _Kind(NamedTuple):
    """What functions are compiled for."""

    config: HeadsConfig
    base: nn.DecoderConfig
    tree: Tree | Dynamic
    own: bool
    head_input: str

    @property
    def shell(self) -> AuxiliaryHeads:
        return AuxiliaryHeads(None, self.config, self.base)

    @property
    def site(self) -> tuple[str, int] | None:
        """The activation that heads read, None for what the unembedding reads."""
        last = ("resid_pre", self.base.num_layers - 1)
        return last if self.head_input == "pre_last" else None


def auxiliary_heads(
    heads: AuxiliaryHeads,
    model: Model | None = None,
    tree: Tree | Dynamic | None = None,
    *,
    draw: Literal["shared", "own"] = "shared",
    head_input: str | None = None,
) -> Drafter:
    """Drafts with a model's own auxiliary heads.

    A row drafts as soon as the model has read one of its tokens. Where the target's
    cache holds a text from an earlier turn, heads see the rest only.

    Args:
      heads: made for the target.
      model: the target; None where the heads have unembeddings of their own and no
        norm.
      tree: a static tree whose ranks count a node's candidates from the best, no deeper
        than there are heads, or `dynamic(...)`; None drafts a chain of all heads.
      draw: "shared" chooses as the target would, with the same noise; the output
        equals plain decoding token by token. "own" draws with noise of its own and
        says from which law (for `rejection()`, see there).
      head_input: what heads read; None takes `heads.config.head_input`.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: no heads, a tree that is too deep, heads for another model, an
        unembedding or a norm that is missing, or "own" draws for a dynamic tree.
      VocabMismatchError: when it is used, another vocabulary than the target's.

    Source: Chen et al. 2025, arXiv 2506.07833. Differs: see the module.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.predict import init_heads
      >>> from jtok.testing import tiny_model
      >>> drafter = auxiliary_heads(init_heads(tiny_model()), tiny_model())
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=4, drafter=drafter)
      >>> out.guarantee, len(out.tokens)
      ('token', 4)
    """
    config, count = heads.config, heads.config.num_auxiliary
    check(count >= 1, "heads", "none", "at least one head")
    check(draw in ("shared", "own"), "draw", draw, "'shared' or 'own'")
    tree = Tree.chain(count) if tree is None else tree
    deepest = tree.max_depth
    good = 1 <= deepest <= count
    check(good, "tree", f"depth {deepest}", f"1 to {count}, the number of heads")
    if isinstance(tree, Dynamic) and draw == "own":
        raise ArgumentError(
            "draw: got 'own', expected 'shared': a dynamic tree is chosen, not drawn."
        )
    own = config.separate_unembedding and not config.head_norm
    check(model is not None or own, "model", None, "the heads' model: they use parts")
    if model is not None:
        check_heads(heads, model)
    params = {
        "heads": split_heads(heads.params),
        "unembed": None if model is None else model.unembedding(),
        "norm": None if model is None else model.params["final_norm"],
    }
    kind = _Kind(
        config, heads.base, tree, draw == "own", resolved_input(heads, head_input)
    )
    vocabulary = None if model is None else getattr(model.vocabulary, "hash", None)
    return _drafter(kind)._replace(params=params, vocabulary=vocabulary)


@functools.lru_cache(maxsize=64)
def _drafter(kind: _Kind) -> Drafter:
    base = kind.base

    def init(info: Info, tokens: Tokens, params: PyTree = None) -> HeadsState:
        weight, _ = head_unembedding(params["heads"][0], params["unembed"])
        rows, expected = weight.shape[0], f"{info.vocab_size} ids, as the target has"
        good = rows == info.vocab_size
        check(good, "heads", f"{rows} ids", expected, VocabMismatchError)
        tree = kind.tree
        wide = tree.beam if isinstance(tree, Dynamic) else tree.num_candidates
        check(wide <= rows, "tree", f"{wide} candidates", f"at most {rows}")
        return _empty(kind, *tokens.ids.shape)

    def propose(
        state: HeadsState, tokens: Tokens, params: PyTree = None
    ) -> tuple[Proposal, HeadsState]:
        make = _dynamic if isinstance(kind.tree, Dynamic) else _static
        made = make(kind, params, state, tokens)
        is_root = np.arange(made.tokens.shape[1]) == 0
        valid = made.valid & ((state.length > 0)[:, None] | is_root[None])
        return made.replace(valid=valid), state  # type: ignore[attr-defined]

    def update(
        state: HeadsState, verdict: Verdict, params: PyTree = None
    ) -> HeadsState:
        x = verdict.hidden
        if kind.site is not None:
            there = kind.site in verdict.taps
            expected = "'final_norm': this target shows no other activations"
            check(there, "head_input", kind.head_input, expected)
            x = verdict.taps[kind.site]
        width = x.shape[-1]
        check(
            width == base.width, "heads", f"width {base.width}", f"{width}, as states"
        )
        at = jnp.maximum(verdict.path, 0)[..., None]
        kept = jnp.take_along_axis(x, at, axis=1).astype(base.dtype)
        return _read(kind, params, state, kept, verdict.count)

    taps = () if kind.site is None else (kind.site,)
    return Drafter(init, propose, update, Needs(taps=taps, prefill=True))


def _empty(kind: _Kind, batch: int, capacity: int) -> HeadsState:
    config, base = kind.config, kind.base
    depth = config.depth if config.arch == "decoder" else 0
    shape = (batch, base.num_kv_heads, capacity, base.head_dim)
    pair = lambda: (_laid_out(jnp.zeros(shape, base.dtype)),) * 2
    blocks = lambda: tuple(pair() for _ in range(depth))
    layers = tuple(blocks() for _ in range(config.num_auxiliary))
    ahead = jnp.zeros((batch, config.num_auxiliary, base.width), base.dtype)
    return HeadsState(layers, jnp.zeros(batch, jnp.int32), ahead)


def _laid_out(part: Array) -> Array:
    return constrain(part, "batch", "kv_heads", "seq", "head_dim")


def _read(
    kind: _Kind, params: PyTree, state: HeadsState, x: Array, count: Array
) -> HeadsState:
    """All heads read the first `count` of some tokens `[batch, width, dim]`."""
    heads, (batch, width) = kind.shell, x.shape[:2]
    order = jnp.arange(width, dtype=jnp.int32)[None]
    # Only distances between positions matter to a head, so its own count will do.
    positions = state.length[:, None] + order
    causal = jnp.asarray(np.tri(width, dtype=bool))
    allow = jnp.broadcast_to(causal, (batch, width, width))
    window = kind.base.window(heads.layer)
    newest = jnp.maximum(count - 1, 0)[:, None, None]
    layers, ahead = [], []
    for index, head in enumerate(params["heads"]):
        old = state.layers[index]
        attends = [
            _cached_attend(kind.base, pair, state.length, allow, positions, window)
            for pair in old
        ]
        made, pairs = run_head(head, heads, x, positions, attends)
        layers.append(
            tuple(
                _kept(some, more, state.length, made)
                for some, more in zip(old, pairs, strict=True)
            )
        )
        made = head_norm(heads, params["norm"], made, kind.head_input)
        ahead.append(jnp.take_along_axis(made, newest, axis=1))
    fresh = jnp.concatenate(ahead, axis=1)
    moved = (count > 0)[:, None, None]
    return HeadsState(
        tuple(layers), state.length + count, jnp.where(moved, fresh, state.ahead)
    )


def _cached_attend(
    base: nn.DecoderConfig, pair: Any, length: Array, allow: Array, positions: Array,
    window: int | None,
) -> Callable[[Array, Array, Array], tuple[Array, tuple[Array, Array]]]:  # fmt: skip
    keys, values = (_laid_out(part) for part in pair)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        mixed = cached_attention(
            query, key, value, keys, values, length, allow, scale=base.score_scale,
            positions=positions, window=window, softcap=base.attn_softcap,
        )  # fmt: skip
        return mixed, (key, value)

    return attend


def _kept(old: Any, new: Any, length: Array, after: Array) -> Any:
    """Writes keys and values, in a way that XLA must first have read the old ones."""
    broken = jnp.isnan(after[:, 0, 0])[:, None, None, None]
    put = lambda buffer, rows: _laid_out(
        write_rows(
            _laid_out(buffer), _laid_out(jnp.where(broken, jnp.nan, rows)), length
        )
    )
    return tuple(put(buffer, rows) for buffer, rows in zip(old, new, strict=True))


# ---- drafting


def _reader(kind: _Kind, params: PyTree, index: int) -> Callable[..., Readout]:
    weight, bias = head_unembedding(params["heads"][index], params["unembed"])
    cap = kind.base.final_softcap
    return lambda hidden, want: readout(hidden, weight, want, bias=bias, softcap=cap)


def _static(kind: _Kind, params: PyTree, state: HeadsState, tokens: Tokens) -> Proposal:
    """Every level has the candidates of its head, whoever their parents are."""
    tree: Any = kind.tree
    layout, depths = inner_layout(tree, own=kind.own), np.asarray(tree.depth)
    batch, start = tokens.count.shape[0], tokens.count - 1
    drafts = jnp.broadcast_to(tokens.root[:, None], (batch, tree.num_nodes))
    real = jnp.ones((batch, tree.num_nodes), bool)
    laws: list[Any] = []
    for level in range(tree.max_depth):
        below = np.flatnonzero(depths == level + 1)
        rank = layout.rank[below]
        choose = chooser(
            _reader(kind, params, level), tokens.sampling, own=kind.own,
            width=int(rank.max()) + 1,
        )  # fmt: skip
        depth = jnp.full((batch, 1), level, jnp.int32)
        hidden = state.ahead[:, level : level + 1]
        found = choose(hidden, start, depth, tree.max_depth)
        drafts = drafts.at[:, below].set(found.ids[:, 0, rank])
        real = real.at[:, below].set(found.found[:, 0, rank])
        laws.append(found.laws)
    q = None
    if kind.own:
        vocab = _vocab(params)
        if tokens.sampling is None:
            q = point_masses(drafts, vocab)
        else:
            every = jnp.concatenate(laws, axis=1)  # the root's entry is not read
            q = every[:, np.maximum(depths - 1, 0)]
    return Proposal(drafts, real, q=q, tree=tree)


def _dynamic(
    kind: _Kind, params: PyTree, state: HeadsState, tokens: Tokens
) -> Proposal:
    size: Any = kind.tree
    ids, gains = [], []
    for level in range(size.max_depth):
        want = Want(top_k=size.beam, log_sum_exp=True)
        hidden = state.ahead[:, level : level + 1]
        read: Any = _reader(kind, params, level)(hidden, want)
        ids.append(read.top_ids)
        gains.append(read.top_logits - read.log_sum_exp[..., None])
    every = [jnp.concatenate(parts, axis=1) for parts in (ids, gains)]

    def look(level: Array, ids: Array, parent: Array) -> tuple[Array, Array]:
        del ids, parent
        here = [jax.lax.dynamic_slice_in_dim(part, level, 1, 1) for part in every]
        shape = (tokens.count.shape[0], size.beam, size.beam)
        return jnp.broadcast_to(here[0], shape), jnp.broadcast_to(here[1], shape)

    return grow_tree(look, tokens.root, size)


def _vocab(params: PyTree) -> int:
    return head_unembedding(params["heads"][0], params["unembed"])[0].shape[0]
