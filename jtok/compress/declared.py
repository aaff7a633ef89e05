"""A method of the menu is declared where it is written: its row and its function."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from jtok.compress.interface import Compressed, Method, Rounding
from jtok.ops.eager import one_program

__all__ = ["declared", "row_of"]

P = ParamSpec("P")


def declared(
    family: str,
    modalities: tuple[str, ...],
    summary: str,
    source: str,
    *,
    name: str = "",
    trained: bool | None = None,
    fixed: bool = False,
    rounding: Rounding = "floor",
) -> Callable[[Callable[P, Compressed]], Callable[P, Compressed]]:
    """Makes a function a method: one program, with what its row of the menu says.

    What the method needs is what its signature has no default for, beside the tokens
    and the budget. See `Method` for the other arguments.

    Args:
      family: of the taxonomy.
      modalities: what it is meant for.
      summary: one line.
      source: paper and section.
      name: in the menu; "" for that of the function.
      trained: None for what takes parameters.
      fixed: the number of rows follows from the grid and the options.
      rounding: of a budget that is a share.

    Returns:
      What decorates the function.
    """

    def declare(function: Callable[P, Compressed]) -> Callable[P, Compressed]:
        run = one_program(function)
        _, *others = inspect.signature(function).parameters.values()
        needs = tuple(
            one.name
            for one in others
            if one.default is one.empty and one.name != "budget"
        )
        row = functools.partial(
            Method, name=name or function.__name__, family=family,
            modalities=modalities, needs=needs, summary=summary, source=source,
            trained="params" in needs if trained is None else trained,
            fixed=fixed, rounding=rounding,
        )  # fmt: skip
        vars(run)["row"] = row
        return run

    return declare


def row_of(method: Any) -> Method:
    """The row of a declared function."""
    row: Method = method.row(run=method)
    return row
