"""The files that processors are read from, and are written to as they were."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jtok import files
from jtok.errors import CheckpointError, UnsupportedCheckpointError
from jtok.models.fields import Fields, read_text

__all__ = [
    "Origin",
    "numbers",
    "origin_of",
    "read_number",
    "refuse_unknown",
    "whole",
]

NAMES = ("preprocessor_config.json", "processor_config.json")
_MOST = 1 << 20  # pixels of a side, samples of a window


class Origin(NamedTuple):
    """Where a processor was read from.

    Attributes:
      texts: (name, content) of the files.
      name: the file with the fields, "" for a processor that was made here.
      key: where in its object they stand, "" for the object itself.
      was: JSON text of what the processor that was read would write.
    """

    texts: tuple[tuple[str, str], ...] = ()
    name: str = ""
    key: str = ""
    was: str = "{}"

    def of(self, fields: Mapping[str, Any]) -> "Origin":
        """The origin of the processor that would write these fields."""
        return self._replace(was=json.dumps(fields))

    def fields(self) -> dict[str, Any]:
        """What was read."""
        found: dict[str, Any] = self.whole(self.name)
        return dict(found.get(self.key, {})) if self.key else found

    def whole(self, name: str) -> dict[str, Any]:
        """The object of a file, {} where it was none."""
        return dict(json.loads(dict(self.texts).get(name, "{}")))

    def save(
        self, folder: pathlib.Path, fields: Mapping[str, Any], beside: Any = None
    ) -> None:
        """Writes the files, as they were unless their fields are others.

        Args:
          folder: where.
          fields: what the processor would write: only what is not as it was is.
          beside: (name, fields) of another file that says more.
        """
        name = self.name or NAMES[0]
        objects = {known: self.whole(known) for known, _ in self.texts}
        was = json.loads(self.was)
        new = {key: value for key, value in fields.items() if was.get(key) != value}
        whole, held = self.whole(name), {**self.fields(), **new}
        objects[name] = {**whole, self.key: held} if self.key else held
        if beside is not None:
            objects[beside[0]] = {**objects.get(beside[0], {}), **beside[1]}
        for name, found in objects.items():
            text = dict(self.texts).get(name)
            if text is None or json.loads(text) != found:
                text = json.dumps(found, indent=2, sort_keys=True) + "\n"
            files.write_atomic(folder / name, text)


def origin_of(folder: pathlib.Path, key: str) -> tuple[Origin, Fields] | None:
    """The fields of a processor and where they stand; None where there is no file.

    Args:
      folder: of the checkpoint.
      key: what newer files put them under: "image_processor", "feature_extractor".

    Returns:
      Their place, and the fields with their file's name.
    """
    texts, found = {}, {}
    for name in NAMES:
        if (folder / name).exists():
            texts[name] = read_text(folder / name)
            found[name] = _object(folder / name, texts[name])
    both = tuple(texts.items())
    nested = found.get(NAMES[1], {})
    if NAMES[0] in found:
        where = str(folder / NAMES[0])
        return Origin(both, NAMES[0]), Fields(found[NAMES[0]], where)
    if key in nested:
        where = f"{folder / NAMES[1]}: {key}"
        if not isinstance(nested[key], dict):
            raise CheckpointError(f"{where} is {nested[key]!r}, expected an object.")
        return Origin(both, NAMES[1], key), Fields(nested[key], where)
    return None


def _object(file: pathlib.Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged or truncated ({error}).") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: damaged, expected a JSON object.")
    return found


# ---- values


def _fault(fields: Fields, name: str, value: Any, wanted: str) -> CheckpointError:
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    return CheckpointError(f"{fields.where}: {name} is {shown}, expected {wanted}.")


def whole(fields: Fields, name: str, default: int, least: int = 1) -> int:
    """An integer."""
    value = fields.get(name)
    value = default if value is None else value
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or not least <= value <= _MOST:
        raise _fault(fields, name, value, f"an integer from {least} to {_MOST}")
    return int(value)


def read_number(fields: Fields, name: str, default: float) -> float:
    """A finite number."""
    return numbers(fields, name, (default,), counts=(1,))[0]


def numbers(
    fields: Fields, name: str, default: Sequence[float], counts: Sequence[int] = (1, 3)
) -> tuple[float, ...]:
    """Finite numbers: a list, or one alone."""
    value = fields.get(name)
    value = list(default) if value is None else value
    found = value if isinstance(value, list) else [value]
    if len(found) not in counts or not all(map(_is_number, found)):
        many = " or ".join(map(str, counts))
        raise _fault(fields, name, value, f"{many} finite numbers")
    return tuple(map(float, found))


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < 1e30  # False of NaN


def refuse_unknown(fields: Fields, known: Sequence[str]) -> None:
    """Refuses options that nothing reads, unless they are off (null or false)."""
    for name, value in fields.items():
        if name not in known and value is not None and value is not False:
            raise UnsupportedCheckpointError(
                f"{fields.where}: {name}={str(value)[:60]} is not supported."
            )
