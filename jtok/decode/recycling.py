"""Token Recycling: drafts from what the model ranked highest after each token.

A table holds, for every token of the vocabulary, the candidates that the model last
put on top right after it. A draft tree of fixed shape is looked up in the table, one
level at a time, and every node that the model has seen refreshes its token's row.

Source: Luo et al. 2024, arXiv 2408.08696, section 3.
"""

import dataclasses
import functools
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import struct
from jaxtyping import Array, Bool, Int

from jtok import files
from jtok.decode.templates import recycling_template
from jtok.decode.types import Drafter, Needs, Proposal, Tokens, Verdict
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    TreeError,
    VocabMismatchError,
    check,
)
from jtok.models import Info
from jtok.ops import Tree
from jtok.ops.sharding import constrain
from jtok.text import Vocabulary

__all__ = [
    "RecyclingState",
    "draft_tokens",
    "load_table",
    "save_table",
    "token_recycling",
    "update_table",
]


@struct.dataclass
class RecyclingState:
    """What Token Recycling remembers.

    Attributes:
      table: `[vocab, width]` int32 shared by all rows, or `[batch, vocab, width]`;
        row v holds candidates after token v, best first; zeros where v is new.
      calls: `[batch]` int32 calls of this prompt.
      emitted: `[batch]` int32 tokens that they emitted.
    """

    table: jax.Array
    calls: jax.Array
    emitted: jax.Array


def token_recycling(
    width: int = 8,
    template: Tree | None = None,
    *,
    per_row: bool = False,
    update_from_prefill: bool = False,
    min_accept: float | None = None,
    patience: int = 8,
    compat: Literal["official"] | None = None,
) -> Drafter:
    """Training-free drafts from recycled candidates; a few MB of state, no model.

    Pass `Generated.drafter_state` to the next call and the table is inherited, which
    is how the paper measures; without it every call starts cold.

    Args:
      width: candidates kept for each token.
      template: tree of candidate ranks below `width`; None takes the paper's 80
        drafts, or those of its paths whose ranks lie below `width`.
      per_row: one table for each row of the batch; else rows share and teach one.
      update_from_prefill: also learn from the prompt's logits (not in the paper).
      min_accept: once a row has made `patience` calls and emitted fewer tokens a call
        than this, it stops drafting; None never stops.
      patience: calls before `min_accept` is looked at.
      compat: "official" drafts repeated siblings of rows that were never filled, too;
        by default they are marked invalid. Output is the same, only such nodes differ.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: a number out of range.
      TreeError: a rank of `template` that is not below `width`.

    Source: Luo et al. 2024, arXiv 2408.08696. Differs: any width, template and batch;
    sampling; where a token stands at several nodes, the last in (row, level) order
    gives its row on every backend.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> drafter = token_recycling()
      >>> first = generate(tiny_model(), [1, 2], drafter=drafter)
      >>> again = generate(tiny_model(), [1, 2], drafter=drafter,
      ...                  drafter_state=first.drafter_state)
      >>> again.stats.tokens_per_call > first.stats.tokens_per_call
      True
    """
    if not isinstance(width, int):
        raise ArgumentTypeError(f"width: got {width!r}, expected an int.")
    check(width >= 1, "width", width, "at least 1")
    check(patience >= 1, "patience", patience, "at least 1")
    good = min_accept is None or min_accept >= 0
    check(good, "min_accept", min_accept, "None or at least 0")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    if template is None:
        paths = recycling_template().paths
        template = Tree.from_paths([p for p in paths if max(p) < width])
    if template.num_candidates > width:
        raise TreeError(
            f"template: its ranks go up to {template.num_candidates - 1}, expected "
            f"ranks below width={width}."
        )
    return _drafter(
        width, template, per_row, update_from_prefill, min_accept, patience,
        compat == "official",
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _drafter(
    width: int, tree: Tree, per_row: bool, prefill: bool, min_accept: float | None,
    patience: int, official: bool,
) -> Drafter:  # fmt: skip
    def init(info: Info, tokens: Tokens) -> RecyclingState:
        check(width <= info.vocab_size, "width", width, f"at most {info.vocab_size}")
        batch = tokens.count.shape[0]
        shape = (batch,) * per_row + (info.vocab_size, width)
        zeros = jnp.zeros(batch, jnp.int32)
        return RecyclingState(jnp.zeros(shape, jnp.int32), zeros, zeros)

    def gave_up(state: RecyclingState) -> Array:
        slow = state.emitted < (min_accept or 0.0) * state.calls
        return slow & (state.calls >= patience)

    def propose(
        state: RecyclingState, tokens: Tokens
    ) -> tuple[Proposal, RecyclingState]:
        ids, fresh = draft_tokens(state.table, tokens.root, tree)
        valid = jnp.ones_like(fresh) if official else fresh
        if min_accept is not None:
            is_root = (jnp.arange(tree.num_nodes) == 0)[None]
            valid = valid & (is_root | ~gave_up(state)[:, None])
        return Proposal(ids, valid, tree=tree), state

    def update(state: RecyclingState, verdict: Verdict) -> RecyclingState:
        rows: Any = verdict.readout.top_ids
        table = update_table(state.table, verdict.tokens, rows, verdict.valid)
        return dataclasses.replace(
            state,
            table=table,
            calls=state.calls + (verdict.count > 0),
            emitted=state.emitted + verdict.count,
        )

    def inherit(fresh: RecyclingState, old: Any) -> RecyclingState:
        table: Any = old.table if isinstance(old, RecyclingState) else old
        if not hasattr(table, "shape") or not jnp.issubdtype(table.dtype, jnp.integer):
            raise ArgumentTypeError(
                f"drafter_state: got {type(old).__name__}, expected the state of an "
                "earlier run or an integer table."
            )
        if table.shape != fresh.table.shape:
            raise VocabMismatchError(
                f"drafter_state: got a table of shape {table.shape}, expected "
                f"{fresh.table.shape}."
            )
        # Candidates that a foreign table has beyond the vocabulary are never right.
        table = jnp.clip(jnp.asarray(table, jnp.int32), 0, table.shape[-2] - 1)
        return dataclasses.replace(fresh, table=table)

    return Drafter(
        init,
        propose,
        update,
        Needs(top_k=width, prefill=prefill),
        inherit,
        None if min_accept is None else gave_up,
    )


def draft_tokens(
    table: Int[Array, "*batch vocab width"], root: Int[Array, " batch"], tree: Tree
) -> tuple[Int[Array, "batch nodes"], Bool[Array, "batch nodes"]]:
    """Grows the template from the root: each node is a candidate of its parent.

    Args:
      table: `[vocab, width]`, or `[batch, vocab, width]`, int32.
      root: `[batch]` int32 newest token of every row.
      tree: template; ranks below `width`.

    Returns:
      `[batch, nodes]` int32 tokens, and which nodes can be right: a node that repeats
      the first candidate of its parent (a row that was never filled), or stands below
      such a node, cannot add anything.

    Example:
      >>> from jtok.ops import Tree
      >>> table = jnp.array([[1, 2], [0, 2], [0, 0]])
      >>> tokens, fresh = draft_tokens(table, jnp.array([0]), Tree.star(2))
      >>> tokens.tolist(), fresh.tolist()
      ([[0, 1, 2]], [[True, True, True]])
    """
    parent, rank = np.array(tree.parent), np.array(tree.rank)
    levels, fresh = [root[:, None]], [jnp.ones((root.shape[0], 1), bool)]
    first = 0
    for start, stop in zip(tree.level_start[1:-1], tree.level_start[2:], strict=True):
        above = parent[start:stop] - first
        tokens = levels[-1][:, above]
        if table.ndim == 2:
            candidates, best = table[tokens, rank[start:stop]], table[tokens, 0]
        else:
            row = jnp.arange(table.shape[0])[:, None]
            candidates = table[row, tokens, rank[start:stop]]
            best = table[row, tokens, 0]
        new = (rank[None, start:stop] == 0) | (candidates != best)
        fresh.append(fresh[-1][:, above] & new)
        levels.append(candidates)
        first = int(start)
    return jnp.concatenate(levels, axis=1), jnp.concatenate(fresh, axis=1)


def update_table(
    table: Int[Array, "*batch vocab width"],
    tokens: Int[Array, "batch nodes"],
    rows: Int[Array, "batch nodes width"],
    valid: Bool[Array, "batch nodes"],
) -> Int[Array, "*batch vocab width"]:
    """Replaces the row of every valid node's token by the candidates after that node.

    A token that stands at several nodes gets the row of the last one: in level order,
    and in a shared table of the last batch row. The result is the same on every
    backend.

    Args:
      table: `[vocab, width]` shared, or `[batch, vocab, width]`, int32.
      tokens: `[batch, nodes]` int32 below `vocab`.
      rows: `[batch, nodes, width]` int32 candidates, best first.
      valid: `[batch, nodes]` bool.

    Returns:
      The table.

    Example:
      >>> table = update_table(jnp.zeros((3, 1), int), jnp.array([[2, 2]]),
      ...     jnp.array([[[5], [6]]]), jnp.ones((1, 2), bool))
      >>> table.ravel().tolist()
      [0, 0, 6]
    """
    if table.ndim == 3:
        each = lambda t, i, r, v: update_table(t, i[None], r[None], v[None])
        return jax.vmap(each)(table, tokens, rows, valid)
    vocab, width = table.shape
    # Every device holds the table: it gets the few new rows of all others.
    flat = constrain(tokens.reshape(-1), None)
    flat_rows = constrain(rows.reshape(-1, width), None, None)
    valid = constrain(valid.reshape(-1), None)
    order = jnp.arange(flat.size, dtype=jnp.int32) + 1
    order = jnp.where(valid, order, 0)
    # A maximum does not depend on the order of a scatter, an assignment does.
    last = jnp.zeros(vocab, jnp.int32).at[flat].max(order)
    wins = (last[flat] == order) & (order > 0)
    places = jnp.where(wins, flat, vocab)
    return table.at[places].set(flat_rows, mode="drop", unique_indices=False)


def save_table(
    path: str | os.PathLike[str], state: Any, vocabulary: Vocabulary | None = None
) -> None:
    """Saves the table of a run, with the hash of the vocabulary it speaks of.

    Args:
      path: file to write, atomically.
      state: `Generated.drafter_state`, or the table itself.
      vocabulary: whose ids these are; None stores no hash.

    Raises:
      ArgumentTypeError: `state` holds no integer table.
      VocabMismatchError: the table has another number of rows than the vocabulary
        could have.
      WriteError: the file cannot be written.

    Example:
      >>> import os, tempfile
      >>> path = os.path.join(tempfile.mkdtemp(), "table.safetensors")
      >>> save_table(path, np.zeros((4, 2), np.int32))
      >>> load_table(path).shape
      (4, 2)
    """
    table = state.table if isinstance(state, RecyclingState) else state
    table = np.asarray(table)
    if table.ndim not in (2, 3) or not np.issubdtype(table.dtype, np.integer):
        raise ArgumentTypeError(
            f"state: got a table of shape {table.shape} and dtype {table.dtype}, "
            "expected integers [vocab, width] or [batch, vocab, width]."
        )
    table = np.ascontiguousarray(table, np.int32)
    if vocabulary is not None and vocabulary.size > table.shape[-2]:
        raise VocabMismatchError(
            f"state: its table has {table.shape[-2]} rows, the vocabulary "
            f"{vocabulary.size} ids."
        )
    meta = {"kind": "jtok.token_recycling"}
    if vocabulary is not None:
        meta["vocabulary"] = vocabulary.hash
    data = safetensors.numpy.save({"table": table}, metadata=meta)
    files.write_atomic(path, data)


def load_table(
    path: str | os.PathLike[str], vocabulary: Vocabulary | None = None
) -> np.ndarray:
    """Reads what `save_table` wrote, to be passed as `drafter_state`.

    Args:
      path: the file.
      vocabulary: the one in use; None does not compare.

    Returns:
      `[vocab, width]` or `[batch, vocab, width]` int32.

    Raises:
      MissingFileError: there is no such file.
      CheckpointError: the file is damaged, or something else.
      VocabMismatchError: the table was made for another vocabulary, or holds ids that
        it does not have.

    Example:
      >>> load_table("nowhere")
      Traceback (most recent call last):
      jtok.errors.MissingFileError: path: there is no file nowhere.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"path: there is no file {os.fspath(path)}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            table = file.get_tensor("table")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"path: {os.fspath(path)} is damaged: {error}.") from None
    good = table.dtype == np.int32 and table.ndim in (2, 3)
    if meta.get("kind") != "jtok.token_recycling" or not good:
        raise CheckpointError(f"path: {os.fspath(path)} holds no recycling table.")
    if table.min(initial=0) < 0 or table.max(initial=0) >= table.shape[-2]:
        raise ArgumentError(
            f"path: {os.fspath(path)} holds ids outside 0..{table.shape[-2] - 1}."
        )
    if vocabulary is not None and meta.get("vocabulary") != vocabulary.hash:
        raise VocabMismatchError(
            f"path: the table of {os.fspath(path)} was made for another vocabulary."
        )
    return table
