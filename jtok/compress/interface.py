"""One call for every method that makes vectors fewer.

A method is a function `name(x, *, budget, ...) -> Compressed` of arrays; a `Method`
says what it is and what it needs. `compress` runs either, so that methods can be
swapped at an equal number of tokens.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jtok.errors import ArgumentTypeError, check, near
from jtok.ops.plan import Plan

__all__ = ["Budget", "Compressed", "Method", "check_tokens", "compress", "compressed"]

Order = Literal["source", "official"]
Rounding = Literal["floor", "half_even"]
_SHARED = ("valid", "grid", "keys", "attn", "text", "position", "params")
_POLICIES = ("gathered", "renumbered")


@struct.dataclass
class Compressed:
    """Fewer tokens, and where they come from.

    Attributes:
      plan: which token joins which row (`jtok.ops.Plan`).
      tokens: `[batch, rows, dim]` in the dtype of the input; empty rows are zeros.
      score: `[batch, seq]` float32 by which tokens were chosen, higher ones first;
        None where the method has no such number.
    """

    plan: Plan
    tokens: jax.Array
    score: jax.Array | None = None

    @property
    def valid(self) -> jax.Array:
        """`[batch, rows]` bool; other rows are empty."""
        return self.plan.valid

    @property
    def keep(self) -> jax.Array:
        """`[batch, rows]` int32 the token of each row, -1 for synthetic ones."""
        return self.plan.keep

    @property
    def assign(self) -> jax.Array:
        """`[batch, seq]` int32 the row of each token, -1 where it was dropped."""
        return self.plan.assign

    @property
    def size(self) -> jax.Array:
        """`[batch, rows]` float32 tokens in each row."""
        return self.plan.size

    @property
    def position(self) -> jax.Array:
        """`[batch, rows, axes]` float32: the kept token's, or the mean of members."""
        return self.plan.position

    def placed(self, policy: Literal["gathered", "renumbered"] = "gathered") -> Array:
        """Positions for the layers that follow.

        Args:
          policy: "gathered" leaves each row where its token stood (FastV, SparseVLM
            2.0); "renumbered" counts the valid rows from 0 (what shortens the
            embeddings before a language model; SparseVLM 1).

        Returns:
          `[batch, rows, axes]` float32; one axis where they are counted anew.

        Raises:
          ArgumentError: another policy.
        """
        check(policy in _POLICIES, "policy", policy, f"one of {_POLICIES}")
        if policy == "gathered":
            return self.position
        count = jnp.cumsum(self.valid, axis=1, dtype=jnp.float32) - 1
        return jnp.maximum(count, 0.0)[..., None]


class Method(NamedTuple):
    """One way to make tokens fewer.

    Attributes:
      name: as `jtok.compress.methods()` lists it.
      family: "transformation", "similarity", "attention", "query" or "baseline".
      modalities: of "image", "video", "audio", "text": what it is meant for.
      trained: it has parameters that must be trained, or the layers behind it must.
      needs: arguments that must be given beside `x` and `budget`.
      run: `run(x, *, budget, ...) -> Compressed`; it takes what it looks at.
      summary: one line.
      source: paper and section.
      fixed: the number of rows follows from the grid and the options: `budget` may be
        None, else it must be that number.
      rounding: of `keep * seq` where a budget is a share.
    """

    name: str
    family: str
    modalities: tuple[str, ...]
    trained: bool
    needs: tuple[str, ...]
    run: Callable[..., Compressed]
    summary: str
    source: str
    fixed: bool = False
    rounding: Rounding = "floor"

    def takes(self) -> tuple[str, ...]:
        """Names of the arguments that `run` looks at, without `x`."""
        return tuple(inspect.signature(self.run).parameters)[1:]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many tokens stay: a count, or a share of those that are there.

    Attributes:
      count: tokens that stay, or
      keep: share of them, above 0 and at most 1.
    """

    count: int | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        one = (self.count is None) != (self.keep is None)
        check(one, "count, keep", (self.count, self.keep), "exactly one of the two")
        if self.keep is not None:
            good = 0.0 < self.keep <= 1.0  # NaN fails, too
            check(good, "keep", self.keep, "a share above 0 and at most 1")

    def of(self, seq: int, rounding: Rounding = "floor") -> int:
        """Tokens that stay of `seq`.

        Args:
          seq: tokens that are there.
          rounding: "floor", or "half_even" for the nearest integer, the even one of
            two that are as near (FastV, DivPrune). The product is float64.

        Returns:
          A count from 1 to `seq`.

        Raises:
          ArgumentError: no token would stay, or more than there are.
        """
        known = ("floor", "half_even")
        check(rounding in known, "rounding", rounding, f"one of {known}")
        if self.keep is None:
            count = self.count
        elif rounding == "floor":
            count = math.floor(self.keep * seq)
        else:
            count = round(self.keep * seq)
        return check_budget(count, seq)

    def ratio(self, seq: int, rounding: Rounding = "floor") -> float:
        """The share of `seq` tokens that stays, after rounding."""
        return self.of(seq, rounding) / seq


def check_budget(budget: Any, seq: int) -> int:
    """Refuses what is no number of tokens out of `seq`."""
    good = isinstance(budget, int) and not isinstance(budget, bool)
    check(good and 1 <= budget <= seq, "budget", budget, f"1 to {seq}, the tokens")
    return int(budget)


def check_tokens(
    x: Array,
    budget: Any,
    valid: Array | None,
    *,
    grid: tuple[int, ...] | None = None,
) -> Bool[Array, "batch seq"]:
    """Refuses what does not belong together; returns which tokens are real.

    Args:
      x: `[batch, seq, dim]`.
      budget: 1 to `seq`, or None where the method fixes the count.
      valid: `[batch, seq]` bool, or None.
      grid: `(frames, height, width)`, whose product is `seq`, or None.

    Raises:
      ArgumentError: one of them does not fit.
    """
    shape = x.shape
    check(x.ndim == 3 and shape[1] >= 1, "x", f"shape {shape}", "[batch, seq, dim]")
    seq = shape[1]
    if budget is not None:
        check_budget(budget, seq)
    if grid is not None:
        good = len(grid) == 3 and math.prod(grid) == seq and min(grid) >= 1
        expected = f"(frames, height, width) with {seq} places, the tokens"
        check(good, "grid", grid, expected)
    if valid is None:
        return jnp.ones(shape[:2], bool)
    expected = f"{shape[:2]}, the tokens of x"
    check(valid.shape == shape[:2], "valid", f"shape {valid.shape}", expected)
    return valid.astype(bool)


def compressed(
    x: Float[Array, "batch seq dim"],
    plan: Plan,
    score: Float[Array, "batch seq"] | None = None,
    *,
    how: Literal["prune", "mean", "sum", "max"] = "prune",
) -> Compressed:
    """What a plan makes of `x`.

    Args:
      x: `[batch, seq, dim]`.
      plan: for its tokens.
      score: see `Compressed`.
      how: "prune", or how members become one row (`Plan.merge`).

    Returns:
      `Compressed`.
    """
    tokens = plan.prune(x) if how == "prune" else plan.merge(x, how=how)[0]
    return Compressed(plan, tokens, score)


def compress(
    x: Float[Array, "batch seq dim"],
    method: Method | Callable[..., Compressed] | str,
    *,
    budget: int | Budget | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    grid: tuple[int, int, int] | None = None,
    keys: Float[Array, "batch seq key_dim"] | None = None,
    attn: Array | None = None,
    text: Float[Array, "batch words text_dim"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    params: Any = None,
    order: Order | None = None,
    compat: Literal["official"] | None = None,
    **options: Any,
) -> Compressed:
    """Makes tokens fewer by any method.

    All arguments may be given to all methods: each takes those that it looks at, so a
    loop over methods has one call. Padding changes nothing. Static for jit are
    `method`, `budget`, `grid`, `order`, `compat` and options that are no arrays.

    Args:
      x: `[batch, seq, dim]` any float dtype.
      method: a row of `jtok.compress.methods()`, its name, or its function.
      budget: rows that come out, or `Budget(keep=...)`; None for methods whose count
        follows from the grid. Rows with fewer real tokens keep them all.
      valid: `[batch, seq]` bool; None lets all tokens be real.
      grid: `(frames, height, width)` whose product is `seq`.
      keys: `[batch, seq, key_dim]` what similarity is computed on.
      attn: attention that ranks the tokens; its shape is in the method's docstring.
      text: `[batch, words, text_dim]` vectors of the question.
      position: `[batch, seq, axes]` of each token; None counts from 0.
      params: of trained methods.
      order: of the rows: "source" ascending, "official" as the method's code has it;
        None is "source", with `compat="official"` "official".
      compat: "official" reproduces what the method's code does, faults included.
      **options: of the method.

    Returns:
      `Compressed` with `budget` rows.

    Raises:
      ArgumentError: a budget outside of 1 to `seq`, shapes that do not fit, something
        that the method needs and does not get (named), an unknown method.
      ArgumentTypeError: an option that the method does not have.

    Source: Shao et al. 2025, arXiv 2507.20198; section 2 of its page.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 8, 1)
      >>> compress(x, "uniform", budget=4).tokens[0, :, 0].tolist()
      [0.0, 2.0, 4.0, 6.0]
    """
    found = _method(method)
    known = (None, "source", "official")
    check(order in known, "order", order, f"one of {known}")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    order = order or ("official" if compat else "source")
    if isinstance(budget, Budget):
        budget = budget.of(x.shape[1], found.rounding)
    check_tokens(x, budget, valid, grid=grid)
    if budget is None and not found.fixed:
        check(False, "budget", None, f"1 to {x.shape[1]}: {found.name} wants a count")
    values = (valid, grid, keys, attn, text, position, params)
    given = dict(zip(_SHARED, values, strict=True))
    takes = found.takes()
    for name in found.needs:
        there = {**given, **options}.get(name) is not None
        check(there, name, None, f"a value: method {found.name} needs it")
    _check_places(x, keys=keys, position=position)
    unknown = sorted(set(options) - set(takes))
    if unknown:
        raise ArgumentTypeError(
            f"{unknown[0]}: got it, but method {found.name} has no such option"
            f"{near(unknown[0], set(takes) - {*_SHARED, 'budget'})}"
        )
    given |= {"order": order, "compat": compat}
    used = {name: value for name, value in given.items() if name in takes}
    return found.run(x, budget=budget, **used, **options)


def _check_places(x: Array, **arrays: Array | None) -> None:
    """Refuses arrays that have other tokens than `x`."""
    for name, array in arrays.items():
        if array is not None:
            good = array.shape[:2] == x.shape[:2]
            expected = f"[{x.shape[0]}, {x.shape[1]}, ...], the tokens of x"
            check(good, name, f"shape {array.shape}", expected)


def _method(method: Any) -> Method:
    """The record of a method that was named or given."""
    if isinstance(method, Method):
        return method
    # The menu lists functions that build on this module.
    from jtok.compress.menu import methods

    table = methods()
    if isinstance(method, str):
        hint = "a method" + near(method, table)
        check(method in table, "method", method, hint)
        return table[method]
    found = [row for row in table.values() if row.run is method]
    if not found:
        raise ArgumentTypeError(
            f"method: got {method!r}, expected a Method, its function, or the name of "
            "a row of jtok.compress.methods()."
        )
    return found[0]
