"""Texts as they come: events between chunks of steps."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtok.decode.course import Course
from jtok.decode.generate import Prompt
from jtok.decode.options import options_from, prepare, prompts_from
from jtok.decode.stops import Cut, spelled
from jtok.models import Model, Target
from jtok.ops.sharding import to_host
from jtok.text import Detokenizer

__all__ = ["Event", "stream"]


class Event(NamedTuple):
    """What a row has gained since its last event.

    Attributes:
      row: index of the prompt.
      text: new characters, never a part of one; "" without a vocabulary.
      tokens: `[new]` int32 new ids. Characters may come later than their tokens.
      finish_reason: "stop" or "length" in a row's last event, None before.

    Example:
      >>> Event(0, "and", np.array([5])).finish_reason is None
      True
    """

    row: int
    text: str
    tokens: np.ndarray
    finish_reason: str | None = None


def stream(
    model: Model | Target,
    prompts: Prompt | Sequence[Prompt] | None = None,
    *,
    messages: Sequence[Any] | None = None,
    sync_every: int = 8,
    **options: Any,
) -> Iterator[Event]:
    """Generates as `generate` does, and tells of it meanwhile.

    The texts and tokens of a row's events, joined, are those that `generate` returns.
    The run starts when the first event is asked for; the iterator may be dropped at any
    time.

    Args:
      model: as for `generate`.
      prompts: as for `generate`.
      messages: as for `generate`.
      sync_every: steps between events; less is smoother, more is faster.
      **options: other options of `generate`, by the same names.

    Returns:
      An iterator of `Event`, each with something new. Every row ends with one that has
      a `finish_reason`.

    Raises:
      ArgumentError: as `generate`, when called and not when iterated.
      ArgumentTypeError: an option that does not exist.

    Example:
      >>> from jtok.testing import tiny_model
      >>> events = list(stream(tiny_model(), [1, 2], max_new_tokens=9, sync_every=4))
      >>> [len(event.tokens) for event in events], events[-1].finish_reason
      ([4, 4, 1], 'length')
    """
    given = options_from({**options, "sync_every": sync_every})
    prompts = prompts_from(model, prompts, messages, given.vocabulary)
    return _events(prepare(model, prompts, given))


def _events(prepared: Any) -> Iterator[Event]:
    course = Course(prepared)
    rows = [
        _Row(index, len(prompt), prepared)
        for index, prompt in enumerate(prepared.prompts)
    ]
    while rows:
        course.advance()
        state = course.state
        ids, counts, live, stopped = to_host(
            (state.tokens.ids, state.tokens.count, state.live, state.stopped)
        )
        for row in rows:
            at = row.index
            reason = None
            if not live[at]:
                reason = "stop" if stopped[at] else "length"
            event = row.event(ids[at, : counts[at]], reason, course.cuts.get(at))
            if event.text or event.tokens.size or reason:
                yield event
        rows = [row for row in rows if live[row.index]]


class _Row:
    """How much of a row was told."""

    def __init__(self, index: int, start: int, prepared: Any) -> None:
        self.index = index
        self._told = start
        self._vocabulary, self._stops = prepared.vocabulary, prepared.stops
        self._text, self._told_text = "", 0
        if self._vocabulary is not None:
            self._pieces = Detokenizer(self._vocabulary)

    def event(self, ids: np.ndarray, reason: str | None, cut: Cut | None) -> Event:
        """What is new in `ids`, the row's tokens with its prompt."""
        new = np.array(ids[self._told :])
        self._told = len(ids)
        if self._vocabulary is None:
            return Event(self.index, "", new, reason)
        self._text += self._pieces.push(spelled(new, self._vocabulary))
        end = len(self._text)
        if cut is not None:
            self._text, end = cut.text, len(cut.text)
        elif reason is not None:
            self._text += self._pieces.finish()
            end = len(self._text)
        elif self._stops is not None:
            end -= self._stops.held_back(self._text)
        fresh = self._text[self._told_text : end]
        self._told_text = max(self._told_text, end)
        return Event(self.index, fresh, new, reason)
