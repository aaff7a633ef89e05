"""Which tokens become one, which leave: a plan, and what it does to vectors.

A plan says for every token of a row of a batch which of fewer output rows it joins.
Merging by attention, by similarity or by importance, pruning, pooling of words: they
differ in how a plan is made and share what is done with it.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.eager import one_program
from jtok.ops.segments import pool_segments

__all__ = ["Plan", "cell_plan", "identity_plan", "join_plan", "keep_plan"]

How = Literal["weighted", "mean", "sum", "max"]
_HOW = ("weighted", "mean", "sum", "max")


@struct.dataclass
class Plan:
    """What becomes of `seq` tokens: `rows` rows, fewer or as many.

    Attributes:
      assign: `[batch, seq]` int32 the row that a token joins, -1 where it is dropped.
      keep: `[batch, rows]` int32 the token that a row stands for, -1 where it stands
        for none (synthetic or empty rows).
      size: `[batch, rows]` float32 tokens in each row.
      position: `[batch, rows, axes]` float32: the position of the token of a row that
        merged nothing, else the mean of its members'.
      valid: `[batch, rows]` bool; other rows are empty.
    """

    assign: jax.Array
    keep: jax.Array
    size: jax.Array
    position: jax.Array
    valid: jax.Array

    @property
    def num_rows(self) -> int:
        """Rows that come out (static)."""
        return self.keep.shape[1]

    @one_program
    def merge(
        self,
        x: Float[Array, "batch seq dim"],
        size: Float[Array, "batch seq"] | None = None,
        *,
        how: How = "weighted",
    ) -> tuple[Float[Array, "batch rows dim"], Float[Array, "batch rows"]]:
        """Makes one row of the tokens that belong together.

        Gradients reach `x`; the plan has none. Sums are float32.

        Args:
          x: `[batch, seq, dim]`.
          size: `[batch, seq]` original tokens that each one stands for; None for 1.
          how: "weighted" means by size, plain "mean", "sum", or "max".

        Returns:
          `[batch, rows, dim]` in the dtype of `x` (empty rows are zeros) and the
          sizes of the rows, `[batch, rows]` float32.

        Raises:
          ArgumentError: other shapes, or an unknown `how`.

        Example:
          >>> plan = join_plan(jnp.array([[0, 0, 2]]), jnp.array([[0, 1, 2]]), 2)
          >>> x, size = plan.merge(jnp.array([[[1.0], [3.0], [5.0]]]))
          >>> x[0, :, 0].tolist(), size[0].tolist()
          ([2.0, 5.0], [2.0, 1.0])
        """
        check(how in _HOW, "how", how, f"one of {', '.join(_HOW)}")
        self._check_tokens("x", x, "dim")
        if size is None:
            size = jnp.ones(self.assign.shape, jnp.float32)
        self._check_tokens("size", size)
        weight = size.astype(jnp.float32)
        total = self._sum(weight[..., None])[..., 0]
        if how == "max":
            return pool_segments(x, self.assign, self.num_rows, reduce="max"), total
        if how == "weighted":
            wide = self._sum(x.astype(jnp.float32) * weight[..., None])
            wide = wide / jnp.where(total > 0, total, 1.0)[..., None]
        else:
            wide = self._sum(x.astype(jnp.float32))
        if how == "mean":
            wide = wide / jnp.maximum(self.size, 1.0)[..., None]
        return wide.astype(x.dtype), total

    def _sum(self, values: Array) -> Array:
        return pool_segments(values, self.assign, self.num_rows, reduce="sum")

    def _check_tokens(self, name: str, values: Array, *axes: str) -> None:
        """Refuses what is not `[batch, seq, *axes]` of the tokens of the plan."""
        good = values.shape[:2] == self.assign.shape
        good = good and values.ndim == 2 + len(axes)
        shape = ", ".join([*map(str, self.assign.shape), *axes])
        expected = f"[{shape}], the tokens of the plan"
        check(good, name, f"shape {values.shape}", expected)

    @one_program
    def unmerge(
        self, rows: Float[Array, "batch rows dim"]
    ) -> Float[Array, "batch seq dim"]:
        """Gives every token the row that it joined; dropped ones get zeros.

        Args:
          rows: `[batch, rows, dim]`, such as `merge` makes.

        Returns:
          `[batch, seq, dim]`.

        Raises:
          ArgumentError: another number of rows.

        Example:
          >>> plan = join_plan(jnp.array([[0, 0, 2]]), jnp.array([[0, 1, 2]]), 2)
          >>> plan.unmerge(jnp.array([[[2.0], [5.0]]]))[0, :, 0].tolist()
          [2.0, 2.0, 5.0]
        """
        good = rows.ndim == 3 and rows.shape[:2] == self.keep.shape
        batch, count = self.keep.shape
        expected = f"[{batch}, {count}, dim], the rows of the plan"
        check(good, "rows", f"shape {rows.shape}", expected)
        at = jnp.maximum(self.assign, 0)[..., None]
        found = jnp.take_along_axis(rows, at, axis=1)
        return jnp.where(self.assign[..., None] >= 0, found, 0)

    @one_program
    def prune(self, x: Float[Array, "batch seq dim"]) -> Float[Array, "batch rows dim"]:
        """The tokens that rows stand for, without what would be merged into them.

        Args:
          x: `[batch, seq, dim]`.

        Returns:
          `[batch, rows, dim]`; rows that stand for no token are zeros.

        Raises:
          ArgumentError: another number of tokens.

        Example:
          >>> plan = join_plan(jnp.array([[0, 0, 2]]), jnp.array([[0, 1, 2]]), 2)
          >>> plan.prune(jnp.array([[[1.0], [3.0], [5.0]]]))[0, :, 0].tolist()
          [1.0, 5.0]
        """
        self._check_tokens("x", x, "dim")
        found = jnp.take_along_axis(x, jnp.maximum(self.keep, 0)[..., None], axis=1)
        return jnp.where(self.keep[..., None] >= 0, found, 0)

    @one_program
    def any_of(self, flags: Bool[Array, "batch seq"]) -> Bool[Array, "batch rows"]:
        """Whether any token of a row has a flag: the mask of merged tokens.

        Args:
          flags: `[batch, seq]` bool.

        Returns:
          `[batch, rows]` bool.

        Example:
          >>> plan = join_plan(jnp.array([[0, 0, 2]]), jnp.array([[0, 1, 2]]), 2)
          >>> plan.any_of(jnp.array([[False, True, False]])).tolist()
          [[True, False]]
        """
        self._check_tokens("flags", flags)
        return self._sum(flags.astype(jnp.float32)[..., None])[..., 0] > 0

    @one_program
    def then(self, later: "Plan") -> "Plan":
        """This plan and one for its rows, as one plan for its tokens.

        Follows tokens through layers: row `j` of the result holds all tokens that
        `assign` sends there.

        Args:
          later: a plan whose tokens are the rows of this one.

        Returns:
          `Plan`; its positions are those of `later`.

        Raises:
          ArgumentError: `later` has another number of tokens.

        Example:
          >>> one = join_plan(jnp.array([[0, 0, 2]]), jnp.array([[0, 1, 2]]), 2)
          >>> two = join_plan(jnp.array([[0, 0]]), jnp.array([[0, 1]]), 1)
          >>> one.then(two).assign.tolist(), one.then(two).size.tolist()
          ([[0, 0, 0]], [[3.0]])
        """
        good = later.assign.shape == self.keep.shape
        got = f"a plan for {later.assign.shape} tokens"
        check(good, "later", got, f"one for {self.keep.shape}, the rows of this one")
        on = jnp.take_along_axis(later.assign, jnp.maximum(self.assign, 0), axis=1)
        assign = jnp.where(self.assign >= 0, on, -1)
        kept = jnp.take_along_axis(self.keep, jnp.maximum(later.keep, 0), axis=1)
        keep = jnp.where(later.keep >= 0, kept, -1)
        ones = jnp.ones((*assign.shape, 1), jnp.float32)
        size = pool_segments(ones, assign, later.num_rows, reduce="sum")[..., 0]
        return dataclasses.replace(later, assign=assign, keep=keep, size=size)

    @one_program
    def source(self) -> Float[Array, "batch rows seq"]:
        """Which tokens each row holds, as a matrix of zeros and ones.

        For pictures and tests: it is as large as rows times tokens.

        Returns:
          `[batch, rows, seq]` float32.

        Example:
          >>> plan = join_plan(jnp.array([[0, 0, 2]]), jnp.array([[0, 1, 2]]), 2)
          >>> plan.source().tolist()
          [[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]
        """
        rows = jnp.arange(self.num_rows)[None, :, None]
        return (self.assign[:, None] == rows).astype(jnp.float32)


@one_program
def join_plan(
    joins: Int[Array, "batch seq"],
    order: Int[Array, "batch seq"] | Float[Array, "batch seq"],
    num_rows: int,
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    size: Float[Array, "batch seq"] | None = None,
) -> Plan:
    """A plan in which tokens join others.

    A token that joins itself stays and gets a row; the rows stand in ascending
    `order` of those tokens, ties by the lower index. Of more tokens that stay than
    `num_rows` the last in that order are dropped, with all that joins them.

    Args:
      joins: `[batch, seq]` int32 the token that each one joins, itself if it stays.
      order: `[batch, seq]` where the row of a token that stays stands.
      num_rows: rows that come out (static).
      valid: `[batch, seq]` bool; other tokens are dropped. None lets all be real.
      position: `[batch, seq, axes]` of each token; None counts from 0.
      size: `[batch, seq]` weights of the mean of positions; None for 1.

    Returns:
      `Plan`.

    Raises:
      ArgumentError: `num_rows` outside of 1 to `seq`.

    Example:
      >>> plan = join_plan(jnp.array([[0, 0, 2]]), jnp.array([[1, 9, 0]]), 2)
      >>> plan.assign.tolist(), plan.keep.tolist()
      ([[1, 1, 0]], [[2, 0]])
    """
    batch, seq = joins.shape
    check(1 <= num_rows <= seq, "num_rows", num_rows, f"1 to {seq}, the tokens")
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    stays = joins == index
    if valid is not None:
        stays = stays & valid
    last = jnp.where(stays, order.astype(jnp.float32), jnp.inf)
    sorted_ = jnp.argsort(last, axis=1, stable=True).astype(jnp.int32)
    rank = jnp.argsort(sorted_, axis=1).astype(jnp.int32)
    keep = sorted_[:, :num_rows]
    there = jnp.take_along_axis(stays, keep, axis=1)
    host = jnp.clip(joins, 0, seq - 1)
    row = jnp.take_along_axis(rank, host, axis=1)
    good = jnp.take_along_axis(stays, host, axis=1) & (row < num_rows)
    if valid is not None:
        good = good & valid
    assign = jnp.where(good, row, -1)
    return _described(assign, jnp.where(there, keep, -1), position, size)


def _described(
    assign: Array, keep: Array, position: Array | None, size: Array | None
) -> Plan:
    """A plan of its assignment: sizes and positions follow."""
    batch, seq = assign.shape
    rows = keep.shape[1]
    if position is None:
        count = jnp.arange(seq, dtype=jnp.float32)[None, :, None]
        position = jnp.broadcast_to(count, (batch, seq, 1))
    good = position.ndim == 3 and position.shape[:2] == assign.shape
    expected = f"[{batch}, {seq}, axes], one of each token"
    check(good, "position", f"shape {position.shape}", expected)
    weight = jnp.ones_like(assign, jnp.float32) if size is None else size
    expected = f"{assign.shape}, one of each token"
    check(weight.shape == assign.shape, "size", f"shape {weight.shape}", expected)
    weight = weight.astype(jnp.float32)[..., None]
    wide = position.astype(jnp.float32) * weight
    packed = jnp.concatenate([jnp.ones_like(weight), weight, wide], axis=-1)
    sums = pool_segments(packed, assign, rows, reduce="sum")
    members, total = sums[..., 0], sums[..., 1:2]
    mean = sums[..., 2:] / jnp.where(total > 0, total, 1.0)
    own = jnp.take_along_axis(
        position.astype(jnp.float32), jnp.maximum(keep, 0)[..., None], axis=1
    )
    alone = ((members <= 1) & (keep >= 0))[..., None]
    where = jnp.where(alone, own, mean)
    return Plan(assign, keep, members, where, members > 0)


@one_program
def keep_plan(
    keep: Int[Array, "batch rows"],
    seq: int,
    *,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Plan:
    """A plan that keeps some tokens and drops the others.

    Args:
      keep: `[batch, rows]` int32 tokens in the order of their rows, each at most once;
        -1 leaves a row empty.
      seq: tokens of a row of the batch (static).
      position: `[batch, seq, axes]` of each token; None counts from 0.

    Returns:
      `Plan`; its positions are those of the tokens, never counted anew.

    Raises:
      ArgumentError: more rows than tokens.

    Example:
      >>> keep_plan(jnp.array([[2, 0]]), 3).assign.tolist()
      [[1, -1, 0]]
    """
    batch, rows = keep.shape
    check(1 <= rows <= seq, "keep", f"{rows} rows", f"1 to {seq}, the tokens")
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), (batch, rows))
    at = jnp.where(keep >= 0, keep, seq)
    empty = jnp.full((batch, seq + 1), -1, jnp.int32)
    assign = jax.vmap(lambda a, k, r: a.at[k].set(r))(empty, at, row)[:, :seq]
    return _described(assign, keep.astype(jnp.int32), position, None)


@one_program
def cell_plan(
    assign: Int[Array, "batch seq"],
    num_rows: int,
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Plan:
    """A plan whose rows stand for no token of their own: cells that tokens lie in.

    Args:
      assign: `[batch, seq]` int32 the row of each token, -1 to drop it.
      num_rows: rows that come out (static).
      valid: `[batch, seq]` bool; other tokens are dropped. None lets all be real.
      position: `[batch, seq, axes]` of each token; None counts from 0.

    Returns:
      `Plan`; a row is valid where a token lies in it, and stands at their mean.

    Raises:
      ArgumentError: `num_rows` below 1.

    Example:
      >>> plan = cell_plan(jnp.array([[0, 0, 1, -1]]), 2)
      >>> plan.size.tolist(), plan.position[0, :, 0].tolist(), plan.keep.tolist()
      ([[2.0, 1.0]], [0.5, 2.0], [[-1, -1]])
    """
    check(num_rows >= 1, "num_rows", num_rows, "at least 1")
    assign = assign.astype(jnp.int32)
    if valid is not None:
        assign = jnp.where(valid, assign, -1)
    keep = jnp.full((assign.shape[0], num_rows), -1, jnp.int32)
    return _described(assign, keep, position, None)


@one_program
def identity_plan(
    batch: int,
    seq: int,
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Plan:
    """The plan that changes nothing.

    Args:
      batch: rows of the batch.
      seq: tokens of each.
      valid: `[batch, seq]` bool; None lets all be real.
      position: `[batch, seq, axes]` of each token; None counts from 0.

    Returns:
      `Plan`.

    Example:
      >>> identity_plan(1, 3).assign.tolist()
      [[0, 1, 2]]
    """
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    keep = index if valid is None else jnp.where(valid, index, -1)
    return _described(keep, keep, position, None)
