"""Drafts that the host finds: a lookup in a data store, a suffix automaton, a service.

The loop stops after every step, the host looks at the texts and says what to try next,
and the next step verifies it. What is emitted is what any other drafter gives.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jtok.decode.state import State
from jtok.decode.types import Drafter, Proposal, Tokens, Verdict
from jtok.errors import ArgumentError, check
from jtok.models import Info
from jtok.ops.sharding import to_host

__all__ = ["HostTree", "ask_host", "drafter_of_rows", "host_drafter"]

PyTree = Any
Paths = Iterable[Sequence[int] | np.ndarray]


@struct.dataclass
class HostTree:
    """The trees that the host found for the next step.

    Attributes:
      tokens: `[batch, nodes]` int32; that of the root is not read.
      parent: `[batch, nodes]` int32, -1 at the root.
      depth: `[batch, nodes]` int32.
      valid: `[batch, nodes]` bool.
      vocab_size: int32 ids that a token may have.
    """

    tokens: jax.Array
    parent: jax.Array
    depth: jax.Array
    valid: jax.Array
    vocab_size: jax.Array


def host_drafter(
    find: Callable[[np.ndarray], Paths], *, nodes: int = 16, depth: int = 8
) -> Drafter:
    """Drafts with a Python function, at the price of a stop after every step.

    Args:
      find: `(ids) -> paths`: from the `[count]` int32 tokens of a row, prompt included,
        the continuations to try, the most promising first. Paths that begin alike share
        nodes; what is longer than `depth` or does not fit into `nodes` is left out. It
        is called for every live row before every step, and decides by `ids` alone
        where several processes run.
      nodes: nodes of a call, the root included.
      depth: longest path.

    Returns:
      `Drafter`; `Stats.host_syncs` counts the stops.

    Raises:
      ArgumentError: a number out of range; while decoding: a token outside the
        vocabulary.

    Source: the arrangement of He et al. 2023, arXiv 2311.08252 (drafts from a data
    store).

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> again = host_drafter(lambda ids: [ids[-3:]], nodes=4, depth=3)
      >>> out = generate(tiny_model(), [1, 2], max_new_tokens=4, drafter=again)
      >>> out.guarantee, out.stats.host_syncs == out.stats.calls
      ('token', True)
    """
    return drafter_of_rows(
        lambda rows: [[] if ids is None else find(ids) for ids in rows],
        nodes=nodes,
        depth=depth,
    )


def drafter_of_rows(
    find: Callable[[Sequence[np.ndarray | None]], Sequence[Paths]],
    *,
    nodes: int,
    depth: int,
) -> Drafter:
    """`host_drafter` whose function sees all rows at once.

    Args:
      find: `(ids of every row, None where it is done) -> paths of every row`.
      nodes: nodes of a call, the root included.
      depth: longest path.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: as for `host_drafter`.
    """
    check(nodes >= 2, "nodes", nodes, "at least 2: the root and a draft")
    check(depth >= 1, "depth", depth, "at least 1")

    def host(state: HostTree, rows: Sequence[np.ndarray | None]) -> HostTree:
        made: dict[str, Any] = {
            name: np.array(getattr(state, name))
            for name in ("tokens", "parent", "depth", "valid")
        }
        for row, paths in enumerate(find(rows)):
            found = _merged(paths, nodes, depth, int(state.vocab_size))
            for name, values in found.items():
                made[name][row] = values
        return dataclasses.replace(state, **made)

    return _device_side(nodes, depth)._replace(host=host)


@functools.lru_cache(maxsize=64)
def _device_side(nodes: int, depth: int) -> Drafter:
    """What is compiled, whatever the host finds."""

    def init(info: Info, tokens: Tokens) -> HostTree:
        shape = (tokens.count.shape[0], nodes)
        root = jnp.broadcast_to(jnp.arange(nodes)[None] == 0, shape)
        parent = jnp.where(root, -1, 0)
        vocab = jnp.int32(info.vocab_size)
        return HostTree(jnp.zeros(shape, jnp.int32), parent, 1 + parent, root, vocab)

    def propose(state: HostTree, tokens: Tokens) -> tuple[Proposal, HostTree]:
        drafts = state.tokens.at[:, 0].set(tokens.root)
        made = Proposal(drafts, state.valid, state.parent, state.depth, max_depth=depth)
        return made, state

    def update(state: HostTree, verdict: Verdict) -> HostTree:
        del verdict  # the host sees the texts
        return state

    return Drafter(init, propose, update)


def _merged(
    paths: Paths, nodes: int, depth: int, vocab_size: int
) -> dict[str, np.ndarray]:
    """Paths as one tree of so many nodes; those that are not there are invalid."""
    tokens, parent = np.zeros(nodes, np.int32), np.zeros(nodes, np.int32)
    level, valid = np.ones(nodes, np.int32), np.zeros(nodes, bool)
    parent[0], level[0], valid[0] = -1, 0, True
    child: dict[tuple[int, int], int] = {}
    for path in paths:
        at = 0
        for token in list(path)[:depth]:
            if not 0 <= token < vocab_size:
                raise ArgumentError(
                    f"find: got token {token}, expected ids in 0..{vocab_size - 1}."
                )
            key = (at, int(token))
            if key not in child:
                new = len(child) + 1
                if new == nodes:
                    break
                child[key] = new
                tokens[new], parent[new] = token, at
                level[new], valid[new] = level[at] + 1, True
            at = child[key]
    return {"tokens": tokens, "parent": parent, "depth": level, "valid": valid}


def ask_host(drafter: Drafter, state: State) -> State:
    """The state with what the host drafts for the next step, if it does.

    Args:
      drafter: any.
      state: between two steps.

    Returns:
      The state; as it was where the drafter needs no host.
    """
    if drafter.host is None:
        return state
    ids, counts, live, own = to_host(
        (state.tokens.ids, state.tokens.count, state.live, state.drafter)
    )
    rows = [
        row[:count].copy() if going else None
        for row, count, going in zip(ids, counts, live, strict=True)
    ]
    made = jax.tree.map(jnp.asarray, drafter.host(own, rows))
    return dataclasses.replace(state, drafter=made)
