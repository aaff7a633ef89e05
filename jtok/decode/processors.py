"""Constraints on what may be generated: pure functions that change logits per node."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from jtok.decode.types import Proposal, Tokens
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError, check
from jtok.models import Info
from jtok.text import Vocabulary

__all__ = ["Processor", "allow_tokens", "dfa", "spelling_dfa"]

PyTree = Any


class Processor(NamedTuple):
    """Changes the logits of every node, knowing the tokens that lead to it.

    `advance` and `process` are written for a single node, without batch axes, and run
    on the device; the loop maps them over rows and nodes. A state is one row's, after
    all tokens up to a node. As drafts and plain decoding walk through the same states,
    a processor changes what is emitted and never the guarantee. The functions select
    what is compiled: make them once. Arrays belong into `params`, which all three
    functions then take as their last argument.

    Attributes:
      init: `(Info, Tokens) -> state` of all rows, `[batch, ...]`, after the prompts.
      advance: `(state, token) -> state` of the same shapes and dtypes. Drafts may be
        tokens that `process` excludes; what it then returns does not matter.
      process: `(state, logits[vocab]) -> logits[vocab]` float32; -inf excludes a token.
        Where it leaves nothing, id 0 is emitted.
      params: arrays for the functions, or None.

    Example:
      >>> even = Processor(
      ...     init=lambda info, tokens: tokens.count % 2,
      ...     advance=lambda state, token: 1 - state,
      ...     process=lambda state, logits: jnp.where(state == 0, logits, -logits))
      >>> even.params is None
      True
    """

    init: Callable[..., PyTree]
    advance: Callable[..., PyTree]
    process: Callable[..., jax.Array]
    params: PyTree = None

    def bind(self, params: PyTree) -> "Processor":
        """The processor whose functions take no parameters any more.

        Args:
          params: as `self.params`; None gives the processor itself.

        Returns:
          `Processor` with `params` None.
        """
        if params is None:
            return self
        return Processor(
            lambda info, tokens: self.init(info, tokens, params),
            lambda state, token: self.advance(state, token, params),
            lambda state, logits: self.process(state, logits, params),
        )


def node_states(processor: Processor, state: PyTree, proposal: Proposal) -> PyTree:
    """States `[batch, nodes, ...]` after every node, from those after the roots."""
    parent, depth, _ = proposal.shape()
    batch, nodes = parent.shape
    above = jnp.maximum(parent, 0)
    advance = jax.vmap(jax.vmap(processor.advance))

    def spread(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf[:, None], (batch, nodes, *leaf.shape[1:]))

    def descend(level: Array, states: PyTree) -> PyTree:
        at_parent = jax.tree.map(lambda leaf: jax.vmap(_take)(leaf, above), states)
        return _where(depth == level + 1, advance(at_parent, proposal.tokens), states)

    states = jax.tree.map(spread, state)
    if proposal.deepest == 0:
        return states
    return jax.lax.fori_loop(0, proposal.deepest, descend, states)


def after_emitted(
    processor: Processor, state: PyTree, emitted: Array, count: Array
) -> PyTree:
    """States `[batch, ...]` after the first `count` of the emitted tokens."""
    advance = jax.vmap(processor.advance)

    def feed(index: Array, state: PyTree) -> PyTree:
        token = jax.lax.dynamic_index_in_dim(emitted, index, 1, keepdims=False)
        return _where(index < count, advance(state, token), state)

    return jax.lax.fori_loop(0, emitted.shape[1], feed, state)


def _take(row: Array, index: Array) -> Array:
    return row[index]


def _where(mask: Array, new: PyTree, old: PyTree) -> PyTree:
    def pick(a: Any, b: Array) -> Array:
        wide = mask.reshape(mask.shape + (1,) * (b.ndim - mask.ndim))
        return jnp.where(wide, jnp.asarray(a, b.dtype), b)

    return jax.tree.map(pick, new, old)


# Named token ids ------------------------


def allow_tokens(
    ids: Sequence[int] | Integer[np.ndarray, " ids"] | Bool[np.ndarray, " vocab"],
) -> Processor:
    """Nothing but the given tokens may be generated.

    A text then ends at its budget, unless a stop id is among them.

    Args:
      ids: `[ids]` token ids, or `[vocab]` bool, True for what is allowed.

    Returns:
      `Processor`.

    Raises:
      ArgumentError: no token is allowed; with `generate`: an id outside of the
        vocabulary.
      ArgumentTypeError: neither integer ids nor a mask.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1], logits_processor=allow_tokens([7, 9]))
      >>> set(out.tokens.tolist()) <= {7, 9}
      True
    """
    given = np.asarray(ids)
    if given.dtype == bool and given.ndim == 1:
        given = np.flatnonzero(given)
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise ArgumentTypeError(
            f"ids: got shape {given.shape} and dtype {given.dtype}, expected integer "
            "ids or a mask of the vocabulary."
        )
    check(given.size > 0, "ids", "no token", "at least one")
    check(given.min() >= 0, "ids", int(given.min()), "ids >= 0")
    return Processor(
        _allow_init(int(given.max())),
        _allow_advance,
        _allow_process,
        jnp.asarray(given, jnp.int32),
    )


@functools.lru_cache(maxsize=64)
def _allow_init(highest: int) -> Callable[..., PyTree]:
    """Cached, as the functions of a processor select what is compiled."""

    def init(info: Info, tokens: Tokens, ids: Array) -> PyTree:
        del tokens, ids
        size = info.vocab_size
        check(highest < size, "logits_processor", highest, f"ids in 0..{size - 1}")
        return ()

    return init


def _allow_advance(state: PyTree, token: Array, params: Array) -> PyTree:
    del token, params
    return state


def _allow_process(state: PyTree, logits: Array, ids: Array) -> Array:
    del state
    allowed = jnp.zeros(logits.shape, bool).at[ids].set(True)
    return jnp.where(allowed, logits, -jnp.inf)


# Automata ------------------------


def dfa(
    transitions: Integer[np.ndarray, "states vocab"], *, start: int = 0
) -> Processor:
    """What is generated stays a prefix of a word of a regular language over tokens.

    A text ends at a stop id or at its budget. Give the stop id a transition (to any
    state that goes on) from the states in which a word may end, so that a text that
    ends by it is a whole word.

    Args:
      transitions: `[states, vocab]` integers: the state after a token, -1 where the
        token is not allowed.
      start: state after the prompt.

    Returns:
      `Processor`. Its table is held on the device, 4 bytes an entry.

    Raises:
      ArgumentError: a state out of range, or one that can be reached and allows no
        token.
      ArgumentTypeError: `transitions` is no integer matrix.
      VocabMismatchError: with `generate`: a target of another vocabulary size.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> table = np.full((2, 96), -1)
      >>> table[0, 5], table[1, 8] = 1, 0
      >>> generate(tiny_model(), [1], max_new_tokens=3,
      ...          logits_processor=dfa(table)).tokens.tolist()
      [5, 8, 5]
    """
    table = np.asarray(transitions)
    if table.ndim != 2 or not np.issubdtype(table.dtype, np.integer):
        raise ArgumentTypeError(
            f"transitions: got shape {table.shape} and dtype {table.dtype}, expected "
            "integers [states, vocab]."
        )
    states = len(table)
    check(0 <= start < states, "start", start, f"a state in 0..{states - 1}")
    good = table.size > 0 and table.min() >= -1 and table.max() < states
    check(good, "transitions", "states out of range", f"-1 or 0..{states - 1}")
    for state in _reachable(table, start):
        if not (table[state] >= 0).any():
            raise ArgumentError(
                f"transitions: state {state} can be reached and allows no token; give "
                "it one, such as a stop id."
            )
    params = (jnp.int32(start), jnp.asarray(table, jnp.int32))
    return Processor(_dfa_init, _dfa_advance, _dfa_process, params)


def _reachable(table: np.ndarray, start: int) -> list[int]:
    found, todo = {start}, [start]
    while todo:
        following = set(np.unique(table[todo.pop()]).tolist()) - {-1} - found
        found |= following
        todo.extend(following)
    return sorted(found)


def _dfa_init(info: Info, tokens: Tokens, params: tuple[Array, Array]) -> Array:
    start, table = params
    if table.shape[1] != info.vocab_size:
        raise VocabMismatchError(
            f"logits_processor: got transitions of {table.shape[1]} tokens, expected "
            f"{info.vocab_size} as the target has."
        )
    return jnp.broadcast_to(start, tokens.count.shape)


def _dfa_advance(state: Array, token: Array, params: tuple[Array, Array]) -> Array:
    table = params[1]
    return jnp.maximum(table[state, jnp.clip(token, 0, table.shape[1] - 1)], 0)


def _dfa_process(state: Array, logits: Array, params: tuple[Array, Array]) -> Array:
    return jnp.where(params[1][state] >= 0, logits, -jnp.inf)


def spelling_dfa(
    bytes_: Integer[np.ndarray, "states 256"],
    vocabulary: Vocabulary,
    *,
    accepting: Sequence[int],
    stop_ids: Sequence[int],
    vocab_size: int | None = None,
) -> Integer[np.ndarray, "states vocab"]:
    """The automaton over tokens of an automaton over bytes, for `dfa`.

    A token is allowed where its bytes are, one after another. A stop id is allowed in
    accepting states, and stays there. Special tokens and ids without bytes are not.

    Args:
      bytes_: `[states, 256]` integers: the state after a byte, -1 where there is none.
      vocabulary: what tokens spell.
      accepting: states in which a text may end.
      stop_ids: ids that end it.
      vocab_size: columns of the result, None for `vocabulary.size`; a model may have
        more.

    Returns:
      `[states, vocab]` int32. A reachable state from which no token goes on is refused
      by `dfa`.

    Raises:
      ArgumentError: a state or an id out of range.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> digits = np.full((1, 256), -1)
      >>> digits[0, list(b"0123456789")] = 0
      >>> table = spelling_dfa(digits, tiny_vocabulary(), accepting=[0], stop_ids=[0])
      >>> int((table[0] >= 0).sum())
      11
    """
    given = np.asarray(bytes_)
    states = len(given)
    good = given.ndim == 2 and given.shape[1:] == (256,)
    check(good, "bytes_", f"shape {given.shape}", "[states, 256]")
    good = given.min() >= -1 and given.max() < states
    check(good, "bytes_", "states out of range", f"-1 or 0..{states - 1}")
    for state in accepting:
        check(0 <= state < states, "accepting", state, f"states in 0..{states - 1}")
    width = vocabulary.size if vocab_size is None else vocab_size
    check(width >= vocabulary.size, "vocab_size", width, f">= {vocabulary.size}")
    # A last row that leads nowhere: index -1 finds it.
    walk = np.vstack([given, np.full((1, 256), -1)])
    table = np.full((states, width), -1, np.int32)
    silent = vocabulary.special_ids | vocabulary.missing_ids
    for id_, spelled in enumerate(vocabulary.token_bytes):
        if id_ in silent or not spelled:
            continue
        at = np.arange(states)
        for byte in spelled:
            at = walk[at, byte]
        table[:, id_] = at
    for stop in stop_ids:
        check(0 <= stop < width, "stop_ids", stop, f"ids in 0..{width - 1}")
        table[:, stop] = -1
        table[list(accepting), stop] = list(accepting)
    return table
