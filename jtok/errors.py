"""One error class per kind of user mistake, each a built-in error too."""

from typing import Any

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "DataNotFoundError",
    "JtokError",
    "MissingFileError",
    "NoCoverError",
    "TemplateError",
    "TreeError",
    "UnsupportedCheckpointError",
    "UnsupportedImplementationError",
    "UnsupportedPretokenizerError",
    "VocabMismatchError",
    "WriteError",
    "check",
    "near",
]


class JtokError(Exception):
    """Base of every error that jtok raises on purpose."""


class ArgumentError(JtokError, ValueError):
    """An argument has a value that the function does not take."""


class ArgumentTypeError(JtokError, TypeError):
    """An argument has a type that the function does not take."""


class TreeError(ArgumentError):
    """A draft tree is malformed: an orphan, a duplicate or a parent after its child."""


class TemplateError(ArgumentError):
    """A chat template refuses the messages, is damaged, or does too much."""


class VocabMismatchError(ArgumentError):
    """Two things that must share a vocabulary were made for different ones."""


class UnsupportedImplementationError(ArgumentError):
    """The named kernel implementation cannot run here or for these shapes."""


class CheckpointError(JtokError, ValueError):
    """A checkpoint, index or tokenizer is damaged, partial or contradicts itself."""


class UnsupportedCheckpointError(CheckpointError):
    """A checkpoint is in a format or of a family that jtok does not read."""


class UnsupportedPretokenizerError(UnsupportedCheckpointError, NotImplementedError):
    """A tokenizer splits or rewrites text in a way that jtok cannot follow."""


class NoCoverError(JtokError, RuntimeError):
    """No token sequence spells the bytes: another tokenizer made the text."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file that a checkpoint needs is not there."""


class DataNotFoundError(JtokError, FileNotFoundError):
    """Real data asked for by name is not on this machine."""


class WriteError(JtokError, OSError):
    """An output could not be written; what stood there before still stands."""


def near(name: str, known: Any) -> str:
    """Says which known names look like `name`, for the tail of an error message.

    Args:
      name: what the user typed.
      known: iterable of the names that exist.

    Returns:
      `"; did you mean a or b? Known: a, b, c"`, without the question where
      nothing is near.
    """
    import difflib

    names = sorted(str(item) for item in known)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    question = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"{question} Known: {', '.join(names)}"


def check(
    condition: Any,
    argument: str,
    got: Any,
    expected: str,
    error: type[JtokError] = ArgumentError,
) -> None:
    """Raises `error` naming the argument, what it got and what it takes.

    Args:
      condition: a static truth value; nothing happens when it is true.
      argument: name of the argument at fault.
      got: the offending value, shown with `repr`.
      expected: what the argument takes, in words.
      error: class to raise.

    Raises:
      error: `condition` is false.
    """
    if not condition:
        raise error(f"{argument}: got {got!r}, expected {expected}.")
