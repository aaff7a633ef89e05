"""The contract between drafters, the verifier and the loop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jtok.errors import ArgumentError
from jtok.models import StepInput
from jtok.ops import Draw, Readout, Tree, ancestor_mask

__all__ = [
    "Accepted",
    "Drafter",
    "Needs",
    "Proposal",
    "Rule",
    "Sampling",
    "Tokens",
    "Verdict",
]

PyTree = Any


@struct.dataclass
class Sampling:
    """How rows choose their tokens. A model that drafts draws the same way.

    Attributes:
      keys: `[batch, 2]` uint32 raw key of every row.
      temperature: `[batch]` float32 >= 0; 0 takes the arg-max.
      top_p: `[batch]` float32 in (0, 1], or None.
      min_p: `[batch]` float32 in [0, 1], or None.
      top_k: tokens to keep, or None (static).
    """

    keys: jax.Array
    temperature: jax.Array
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    top_k: int | None = struct.field(pytree_node=False, default=None)

    def draw(self, start: jax.Array, depth: jax.Array, max_depth: int) -> Draw:
        """How the nodes at positions `start + depth` draw their next token.

        Args:
          start: `[batch]` int32 absolute position of depth 0.
          depth: `[batch, nodes]` int32.
          max_depth: bound on `depth` (static).

        Returns:
          `Draw`. The noise is that of the verifier wherever positions agree.
        """
        return Draw(
            keys=self.keys,
            start=start,
            depth=depth,
            temperature=self.temperature,
            top_p=self.top_p,
            min_p=self.min_p,
            top_k=self.top_k,
            max_depth=max_depth,
        )


@struct.dataclass
class Tokens:
    """What is known of every row: prompt and emitted tokens.

    Attributes:
      ids: `[batch, capacity]` int32; entries at `count` and above mean nothing.
      count: `[batch]` int32, at least 1.
      sampling: how rows choose, None for the arg-max.
    """

    ids: jax.Array
    count: jax.Array
    sampling: Sampling | None = None

    @property
    def root(self) -> jax.Array:
        """`[batch]` int32 newest token, which the target has not seen yet."""
        return jnp.take_along_axis(self.ids, self.count[:, None] - 1, axis=1)[:, 0]


@struct.dataclass
class Proposal:
    """A tree of drafts, the same shape in every call. Node 0 is the root.

    Give `tree` where the shape is fixed, else `parent` and `depth` as data.

    Attributes:
      tokens: `[batch, nodes]` int32, the root first.
      valid: `[batch, nodes]` bool; an invalid node is never accepted.
      parent: `[batch, nodes]` int32 with -1 at the root, or None.
      depth: `[batch, nodes]` int32, or None.
      q: `[batch, nodes, vocab]` float32, the law that each token was really drawn
        from, after the drafter's own temperature and filters; None for a point mass.
        Siblings, in order of their nodes, are draws from the same law. The root's
        row is not read.
      extra: further slots to run (mask tokens): `extra.allow` is
        `[batch, extra, nodes + extra]`. They are never verified and never kept.
      tree: static tree, or None.
      max_depth: static bound on `depth` where there is no `tree`.
    """

    tokens: jax.Array
    valid: jax.Array
    parent: jax.Array | None = None
    depth: jax.Array | None = None
    q: jax.Array | None = None
    extra: StepInput | None = None
    tree: Tree | None = struct.field(pytree_node=False, default=None)
    max_depth: int = struct.field(pytree_node=False, default=0)

    @property
    def deepest(self) -> int:
        """Most drafts that one call can accept (static)."""
        return self.max_depth if self.tree is None else self.tree.max_depth

    def shape(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`parent`, `depth` `[batch, nodes]`; `ancestors` `[batch, nodes, nodes]`."""
        batch, nodes = self.tokens.shape
        if self.tree is None:
            if self.parent is None or self.depth is None:
                raise ArgumentError("parent, depth: got None, expected both or a tree.")
            mask = ancestor_mask(self.parent, max_depth=self.max_depth)
            return self.parent, self.depth, mask
        parent = jnp.asarray(np.array(self.tree.parent, np.int32))
        depth, mask = jnp.asarray(self.tree.depth), jnp.asarray(self.tree.ancestors)
        return (
            jnp.broadcast_to(parent, (batch, nodes)),
            jnp.broadcast_to(depth, (batch, nodes)),
            jnp.broadcast_to(mask, (batch, nodes, nodes)),
        )


@struct.dataclass
class Verdict:
    """What the target made of a proposal, or of a chunk of the prompt.

    Attributes:
      tokens: `[batch, nodes]` int32 as proposed.
      valid: `[batch, nodes]` bool; False everywhere in finished rows.
      path: `[batch, depth + 1]` int32 accepted nodes, root first, -1 below.
      count: `[batch]` int32 nodes of the path that were kept; as many tokens were
        emitted. 0 in finished rows.
      emitted: `[batch, depth + 1]` int32, the first `count` are real.
      readout: what `Needs` asked for, at every node.
      hidden: `[batch, nodes, dim]`.
      extra_hidden: `[batch, extra, dim]` or None.
      taps: activations by (site, layer), as `Needs.taps` asked.
    """

    tokens: jax.Array
    valid: jax.Array
    path: jax.Array
    count: jax.Array
    emitted: jax.Array
    readout: Readout
    hidden: jax.Array
    extra_hidden: jax.Array | None = None
    taps: dict[Any, jax.Array] = struct.field(default_factory=dict)


class Accepted(NamedTuple):
    """The path of every row that a rule accepts.

    Attributes:
      path: `[batch, depth + 1]` int32 node ids, root first, -1 below.
      drafts: `[batch]` int32 drafts on it (0 where only the root is).
      emitted: `[batch, depth + 1]` int32; the first `drafts + 1` are the accepted
        drafts and the target's own next token.
    """

    path: jax.Array
    drafts: jax.Array
    emitted: jax.Array


class Rule(NamedTuple):
    """How drafts become emitted tokens.

    Attributes:
      accept: `(Proposal, Readout, Tokens) -> Accepted`.
      guarantee: "token", "distribution" or "none"; see `Generated.guarantee`.
      rows: whether `accept` reads all logits of every node (`Readout.rows`) where a
        row samples.
      needs_q: whether a drafter must say what law it drew from (`Proposal.q`).
    """

    accept: Callable[[Proposal, Readout, Tokens], Accepted]
    guarantee: str
    rows: bool = False
    needs_q: bool = False


class Needs(NamedTuple):
    """What a drafter wants from the target at every node.

    Attributes:
      top_k: how many best ids and logits.
      taps: (site, layer) activations.
      prefill: whether `update` is called for chunks of the prompt, too.
    """

    top_k: int = 0
    taps: tuple[tuple[str, int], ...] = ()
    prefill: bool = False


class Drafter(NamedTuple):
    """Proposes tokens; whatever it proposes, it cannot change what is emitted.

    A drafter with parameters (a draft model, heads) gives them as `params`; `init`,
    `propose` and `update` then take them as their last argument, so that they reach
    compiled code as arguments and not as constants.

    Attributes:
      init: `(Info, Tokens) -> state` for a batch of prompts.
      propose: `(state, Tokens) -> (Proposal, state)`.
      update: `(state, Verdict) -> state`.
      needs: what `update` reads.
      inherit: `(fresh state, state of an earlier call) -> state`; None where nothing
        outlives a prompt.
      gave_up: `state -> bool[batch]`; once every live row gave up, calls have one
        node. None means never.
      params: arrays that the functions take last, or None.
      calls: steps of a draft model that a call takes.
      vocabulary: hash of the vocabulary that the drafter speaks, or None.
      host: `(state, rows) -> state`, called by the host before every step with NumPy
        arrays: the state, and of every live row its ids (None for the others). The loop
        then stops after each step. None: everything happens on the device.

    Example:
      >>> from jtok.decode import prompt_lookup
      >>> prompt_lookup().needs.top_k
      0
    """

    init: Callable[..., PyTree]
    propose: Callable[..., tuple[Proposal, PyTree]]
    update: Callable[..., PyTree]
    needs: Needs = Needs()
    inherit: Callable[[PyTree, PyTree], PyTree] | None = None
    gave_up: Callable[[PyTree], jax.Array] | None = None
    params: PyTree = None
    calls: int = 0
    vocabulary: str | None = None
    host: Callable[[PyTree, Sequence[Any]], PyTree] | None = None

    def bind(self, params: PyTree) -> "Drafter":
        """The drafter whose functions take no parameters any more.

        Args:
          params: as `self.params`; None gives the drafter itself.

        Returns:
          `Drafter` with `params` None.
        """
        if params is None:
            return self
        return self._replace(
            init=lambda info, tokens: self.init(info, tokens, params),
            propose=lambda state, tokens: self.propose(state, tokens, params),
            update=lambda state, verdict: self.update(state, verdict, params),
            params=None,
        )
