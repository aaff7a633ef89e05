"""Pictures that several experiments draw: text with its tokens coloured."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["PALETTE", "tokens_figure", "tokens_page"]

PALETTE = (
    "#a6cee3",
    "#fdd49e",
    "#b2df8a",
    "#fbb4b9",
    "#cab2d6",
    "#ffff99",
    "#99d8c9",
    "#fccde5",
    "#d9d9d9",
    "#c6dbef",
)
_COLUMNS = 96
_FONT_POINTS = 8.0
# Advance of one DejaVu Sans Mono character and height of one line, in ems.
_ADVANCE, _LEADING = 0.602, 1.5


def colour(group: int) -> str:
    """Returns the colour of a group; groups ten apart share one."""
    return PALETTE[group % len(PALETTE)]


def tokens_page(title: str, tokens: Sequence[tuple[str, int]]) -> str:
    """Writes text as an HTML page, each token on the colour of its group.

    Args:
      title: of the page.
      tokens: text pieces in order and the group of each.

    Returns:
      A whole HTML document without outside references; hovering over a token
      shows its group.
    """
    spans = "".join(
        f'<span style="background:{colour(group)}" title="{group}">'
        f"{html.escape(text)}</span>"
        for text, group in tokens
    )
    name = html.escape(title)
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f'<h1>{name}</h1>\n<pre style="white-space:pre-wrap">{spans}</pre>\n'
    )


def tokens_figure(tokens: Sequence[tuple[str, int]]) -> Any:
    """Draws text in a fixed-width font, each token on the colour of its group.

    Args:
      tokens: text pieces in order and the group of each.

    Returns:
      A `matplotlib.figure.Figure` as high as the text needs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    pieces = list(_layout(tokens))
    lines = 1 + max((line for line, *_ in pieces), default=0)
    inch = _FONT_POINTS / 72
    size = (_COLUMNS * _ADVANCE * inch, lines * _LEADING * inch)
    fig = Figure(figsize=size)
    FigureCanvasAgg(fig)
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _COLUMNS), ylim=(lines, 0))
    axes.axis("off")
    for line, column, text, group in pieces:
        corner = (column, line + 0.05)
        patch = Rectangle(corner, len(text), 0.9, color=colour(group), lw=0)
        axes.add_patch(patch)
        axes.text(
            column,
            line + 0.5,
            "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$"),
            family="DejaVu Sans Mono",
            size=_FONT_POINTS,
            va="center",
        )
    return fig


def _layout(
    tokens: Sequence[tuple[str, int]],
) -> Iterator[tuple[int, int, str, int]]:
    """Yields (line, column, text, group) of pieces that fit the width."""
    line = column = 0
    for text, group in tokens:
        for index, part in enumerate(text.expandtabs(4).split("\n")):
            if index:
                # The break itself is a character of the token: show one cell.
                if column < _COLUMNS:
                    yield line, column, " ", group
                line, column = line + 1, 0
            while part:
                room = _COLUMNS - column
                if not room:
                    line, column, room = line + 1, 0, _COLUMNS
                yield line, column, part[:room], group
                column, part = column + len(part[:room]), part[room:]
