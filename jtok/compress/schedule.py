"""When tokens leave: one object that says for every layer how many, and how."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jtok.compress.matching import removed
from jtok.compress.schedules import inflected, removal_schedule
from jtok.errors import check, near
from jtok.models.compressor import LayerView, check_compressor
from jtok.ops.plan import Plan, join_plan

__all__ = ["Schedule", "schedule"]

_METRICS = ("keys", "keys_sum", "x")
_GIVEN = ("keep", "remove", "budget", "protect", "valid", "order", "position", "size")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A `jtok.models.Compressor`: what `schedule` makes; hashable, static.

    Attributes:
      method: makes plans, one for all layers that act or one for each of them.
      keep: share of tokens that each layer keeps, or
      remove: tokens that leave each layer, or
      counts: tokens that each layer leaves, protected ones included.
      layers: the layers that act; None for all.
      metric: "keys", "keys_sum", "x", or a function of the `LayerView`.
      protect: first tokens that always stay; None takes the model's prefix.
      order: of rows, for methods that have a choice; None for theirs.
      whole: shares count protected tokens, too; a tuple has one for each acting layer.
      compat: "official": padding takes part like any token.
      seed: of methods that draw.
      options: of the method, names and values; a tuple has one for each acting layer.
      where: see `Compressor`, as for the following three.
      how: what becomes of the stream.
      proportional: sizes count in later attention.
      restart: sizes start anew in every layer.
    """

    method: Any
    keep: Any = None
    remove: Any = None
    counts: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    metric: Any = "keys"
    protect: int | None = None
    order: str | None = None
    whole: bool | tuple[bool, ...] = False
    compat: Literal["official"] | None = None
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    where: Literal["attention", "layer"] = "attention"
    how: Literal["weighted", "mean", "sum", "max", "prune"] = "weighted"
    proportional: bool = False
    restart: bool = False

    def __call__(self, view: LayerView, /) -> Plan | None:
        """Which tokens of a layer become one; None where all stay."""
        metric = lambda: _metric(self._at(self.metric, view), view)
        if self.compat is None:
            return self._plan(view, metric)
        blind = view.replace(valid=jnp.ones_like(view.valid))  # type: ignore[attr-defined]
        plan = self._plan(blind, metric)
        if plan is None:
            return None
        return dataclasses.replace(plan, valid=plan.any_of(view.valid))

    def token_counts(self, seq: int, num_layers: int, *, prefix: int = 0) -> Any:
        """Tokens that enter every layer, and those that leave the last one.

        Args:
          seq: tokens that enter the first layer, the prefix included.
          num_layers: layers of the model.
          prefix: first tokens that are no content, of models that have such.

        Returns:
          `num_layers + 1` integers.

        Example:
          >>> schedule(tome, remove=8).token_counts(197, 3, prefix=1)
          (197, 189, 181, 173)
        """
        counts = [seq]
        for layer in range(num_layers):
            shape = jax.eval_shape(
                functools.partial(self._blank, counts[-1], layer, num_layers, prefix)
            )
            counts.append(counts[-1] if shape is None else shape.num_rows)
        return tuple(counts)

    def _blank(self, seq: int, layer: int, num_layers: int, prefix: int) -> Any:
        """The plan of a layer whose content does not matter."""
        x = jnp.zeros((1, seq, 1))
        flags, heads = jnp.ones((1, seq), bool), x[..., None]
        view = LayerView(
            x, heads, heads, flags, jnp.ones((1, seq)), x, layer, num_layers, prefix
        )
        return self._plan(view, lambda: x)

    def _acting(self, num_layers: int) -> tuple[int, ...]:
        if self.layers is None:
            return tuple(range(num_layers))
        good = all(-num_layers <= layer < num_layers for layer in self.layers)
        check(good, "layers", self.layers, f"layers of the model's {num_layers}")
        return tuple(layer % num_layers for layer in self.layers)

    def _at(self, value: Any, view: LayerView) -> Any:
        """What a setting is in a layer that acts: tuples have one each."""
        if not isinstance(value, tuple):
            return value
        acting = self._acting(view.num_layers)
        expected = f"one value, or one for each of {len(acting)} layers that act"
        check(len(value) == len(acting), "schedule", value, expected)
        return value[acting.index(view.layer)]

    def _plan(self, view: LayerView, metric: Callable[[], Array]) -> Plan | None:
        acting = self._acting(view.num_layers)
        if view.layer not in acting:
            return None
        method, seq = self._at(self.method, view), view.x.shape[1]
        if method is None:
            return None
        protect = view.prefix if self.protect is None else self.protect
        expected = f"0 to {seq}, the tokens of layer {view.layer}"
        check(0 <= protect <= seq, "protect", protect, expected)
        takes = _parameters(method)
        budget = self._budget(seq, protect, view, takes)
        if budget is None:
            return None
        given = budget | self._described(view, takes)
        cut = protect if "protect" not in takes else 0
        if not cut:
            known = {"protect": protect} if "protect" in takes else {}
            made = method(metric(), **given, **known)
            return getattr(made, "plan", made)
        some = {
            name: value[:, cut:] if name in ("valid", "position", "size") else value
            for name, value in given.items()
        }
        made = method(metric()[:, cut:], **some)
        return _behind(cut, getattr(made, "plan", made), view)

    def _budget(
        self, seq: int, protect: int, view: LayerView, takes: frozenset[str]
    ) -> dict[str, Any] | None:
        """The count or share that the method is told, None where nothing leaves."""
        if not takes & {"keep", "remove", "budget"}:
            return {}
        free, keep, whole = seq - protect, None, self._at(self.whole, view)
        if self.keep is not None:
            keep = float(self._at(self.keep, view))
            gone = removed(seq if whole else free, keep)
        elif self.counts is not None:
            left = self._at(self.counts, view)
            expected = f"{protect} protected tokens to {seq} that enter"
            check(protect <= left <= seq, f"counts of {view.layer}", left, expected)
            gone = seq - left
        else:
            acting = self._acting(view.num_layers)
            each = removal_schedule(len(acting), _spelled(self.remove))
            gone = each[acting.index(view.layer)]
        if gone <= 0:
            return None
        if keep is not None and "keep" in takes and not whole:
            return {"keep": keep}
        if "remove" in takes:
            return {"remove": gone}
        return {"budget": free - min(gone, free)}

    def _described(self, view: LayerView, takes: frozenset[str]) -> dict[str, Any]:
        """What else the method takes, and no more than that."""
        made: dict[str, Any] = {
            "valid": view.valid, "position": view.position,
            "size": jnp.ones_like(view.size) if self.restart else view.size,
        }  # fmt: skip
        if self.order is not None:
            made["order"] = self.order
        if "key" in takes:
            made["key"] = jax.random.fold_in(jax.random.key(self.seed), view.layer)
        made |= {name: self._at(value, view) for name, value in self.options}
        return {name: value for name, value in made.items() if name in takes}


def schedule(
    method: Any,
    *,
    keep: float | Sequence[float] | None = None,
    remove: int | Sequence[int] | tuple[int, float] | None = None,
    counts: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    metric: Any = "keys",
    where: Literal["attention", "layer"] = "attention",
    how: Literal["weighted", "mean", "sum", "max", "prune"] = "weighted",
    proportional: bool = False,
    restart: bool = False,
    protect: int | None = None,
    order: Literal["official", "source"] | None = None,
    whole: bool | Sequence[bool] = False,
    compat: Literal["official"] | None = None,
    seed: int = 0,
    **options: Any,
) -> Schedule:
    """Says for every layer of a model which tokens become one there.

    Counts are resolved on the host, from the tokens that enter a layer, so shapes are
    static. Where a setting is a sequence it has one value for each layer that acts.
    A layer that loses nothing is left as it is.

    Args:
      method: makes plans: `tome`, `pitome`, `random_merge`, `uniform_merge`, `grouped`,
        or any function of `[batch, seq, dim]` and some of `keep`, `remove`, `budget`
        (unprotected tokens that stay), `protect`, `valid`, `order`, `position`,
        `size`, `key` and options of its own that returns a `Plan`, or what has one as
        `plan`. Or a sequence of such, None for a layer that does nothing.
      keep: share of the unprotected tokens that each layer keeps, or
      remove: tokens that leave in each layer, as `removal_schedule` says, or
      counts: tokens that each layer leaves, protected ones included.
      layers: the layers that act, from 0 or, negative, from the end; None for all.
      metric: what similarity is computed on: the mean of the "keys" over heads, their
        sum "keys_sum", the stream "x" where tokens merge, or a function of the
        `jtok.models.LayerView` that gives `[batch, seq, dim]`.
      where: tokens merge after "attention" (before the MLP) or after the "layer".
      how: rows are means "weighted" by size, the plain "mean", "sum" or "max" of their
        tokens, or "prune": the token that a row stands for.
      proportional: in later layers a token counts in attention as often as its size.
      restart: sizes are 1 again in every layer.
      protect: first tokens that always stay; None takes those of the model that are no
        content (class token, registers).
      order: of the rows, "official" or "source", for methods that have the choice.
      whole: shares count protected tokens, too, `floor(seq - seq * keep)`; rows with
        padding then lose as many tokens as others.
      compat: "official" lets padding take part like any token, as the code for texts
        does; a row is real where any of its tokens is.
      seed: of methods that draw; every layer draws anew.
      **options: of the method, such as `margin` and `rule` of `pitome`.

    Returns:
      `Schedule`, which models take as `compress=`.

    Raises:
      ArgumentError: not exactly one of `keep`, `remove` and `counts` (none for methods
        that need none), a share outside of 0 to 1 or NaN, negative counts, an unknown
        metric, or an option that no method takes. When it is called: sequences of
        another length than the layers, and what the method refuses.

    Source: Bolya et al. 2023, arXiv 2210.09461, section 3; Tran et al. 2024,
      arXiv 2405.16148, section 3, and the code of both.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="bert")
      >>> merging = schedule(pitome, keep=0.9)
      >>> run = jax.jit(lambda ids: model(ids, compress=merging).hidden)
      >>> run(jnp.ones((1, 21), int)).shape
      (1, 18, 32)
    """
    methods = tuple(method) if isinstance(method, Sequence) else method
    made = Schedule(
        methods, _frozen(keep), _removal(remove), _frozen(counts), _frozen(layers),
        _frozen(metric), protect, order, _frozen(whole), compat, seed,
        tuple(sorted((name, _frozen(value)) for name, value in options.items())),
        where, how, proportional, restart,
    )  # fmt: skip
    check_compressor(made)
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    _check_budget(made)
    known = frozenset[str]().union(*map(_parameters, _methods(made)))
    for name, _ in made.options:
        # Those of the schedule itself never get here.
        mine = sorted(known - set(_GIVEN) - {"key"})
        expected = f"an option of the method{near(name, mine)}"
        check(name in mine, "options", name, expected)
    for item in made.metric if isinstance(made.metric, tuple) else (made.metric,):
        good = callable(item) or item in _METRICS
        check(good, "metric", item, f"one of {_METRICS} or a function of a LayerView")
    return made


def _frozen(value: Any) -> Any:
    """Sequences as tuples, which are hashable; numbers of arrays as Python's."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_frozen(item) for item in value)
    return value


def _removal(remove: Any) -> Any:
    """As `_frozen`; `(mean, inflection)` alone has a float at its end."""
    if inflected(remove):
        return remove[0], float(remove[1])
    made = _frozen(remove)
    return tuple(int(item) for item in made) if isinstance(made, tuple) else made


def _spelled(remove: Any) -> Any:
    """What `removal_schedule` takes, of what `_removal` made."""
    if not isinstance(remove, tuple) or any(isinstance(i, float) for i in remove):
        return remove
    return list(remove)


def _methods(made: Schedule) -> tuple[Callable[..., Any], ...]:
    each = made.method if isinstance(made.method, tuple) else (made.method,)
    each = tuple(item for item in each if item is not None)
    good = bool(each) and all(callable(item) for item in each)
    check(good, "method", made.method, "a function that makes plans, or one a layer")
    return each


def _check_budget(made: Schedule) -> None:
    given = [made.keep, made.remove, made.counts]
    count = sum(item is not None for item in given)
    needs = any(_parameters(m) & {"keep", "remove", "budget"} for m in _methods(made))
    expected = "exactly one of the three" if needs else "none for this method"
    check(count == int(needs), "keep, remove, counts", tuple(given), expected)
    for share in made.keep if isinstance(made.keep, tuple) else (made.keep,):
        good = share is None or 0.0 <= share <= 1.0  # NaN fails, too
        check(good, "keep", share, "0 to 1")
    if made.remove is not None:
        listed = isinstance(made.remove, tuple)
        count = max(len(made.remove), 1) if listed else 1
        removal_schedule(count, _spelled(made.remove))
    good = made.counts is None or min(made.counts, default=0) >= 1
    check(good, "counts", made.counts, "integers of at least 1, one a layer")


@functools.cache
def _parameters(method: Callable[..., Any]) -> frozenset[str]:
    """Names that a method takes behind its first argument."""
    names = list(inspect.signature(method).parameters)
    return frozenset(names[1:])


def _metric(metric: Any, view: LayerView) -> Array:
    if metric == "x":
        return view.x
    if metric == "keys":
        return jnp.mean(view.key.astype(jnp.float32), axis=2)
    if metric == "keys_sum":
        return jnp.sum(view.key.astype(jnp.float32), axis=2)
    found = metric(view)
    expected = f"[batch, seq, dim] for {view.x.shape[:2]} tokens"
    good = found.ndim == 3 and found.shape[:2] == view.x.shape[:2]
    check(good, "metric", f"shape {found.shape}", expected)
    return found


def _behind(prefix: int, plan: Plan, view: LayerView) -> Plan:
    """A plan of the tokens behind a prefix, as one of all: the prefix stays."""
    seq = view.x.shape[1]
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), view.valid.shape)
    first = join_plan(
        index[:, :prefix], index[:, :prefix], prefix,
        valid=view.valid[:, :prefix], position=view.position[:, :prefix],
    )  # fmt: skip
    moved = lambda at: jnp.where(at >= 0, at + prefix, -1)
    join = lambda a, b: jnp.concatenate([a, b], axis=1)
    return Plan(
        join(first.assign, moved(plan.assign)), join(first.keep, moved(plan.keep)),
        join(first.size, plan.size), join(first.position, plan.position),
        join(first.valid, plan.valid),
    )  # fmt: skip
