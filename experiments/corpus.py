"""Text that every Python installation has: its library's code, its English help."""

import dataclasses
import functools
import hashlib
import random
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from jtok.errors import ArgumentError, DataNotFoundError, check

__all__ = ["Corpus", "held_out_prompts", "standard_library"]

# Tests repeat themselves, tables are no prose, and the last three are other
# people's packages or describe the machine that built Python.
_SKIPPED = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
_GENERATED = ("_sysconfigdata", "entities.py", "python-config.py")
_HELD_OUT_EVERY = {"code": 20, "english": 5}
# A passage this long that stands in a held-out text is no coincidence.
_SHARED_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Named texts for training and, by kind, held out; `sha256` covers all of them."""

    train_code: tuple[str, ...]
    train_english: tuple[str, ...]
    held_out_code: tuple[str, ...]
    held_out_english: tuple[str, ...]
    sha256: str

    def held_out(self, kind: str) -> tuple[str, ...]:
        """Returns the held-out texts of a kind, `"code"` or `"english"`."""
        kinds = {"code": self.held_out_code, "english": self.held_out_english}
        check(kind in kinds, "kind", kind, "'code' or 'english'")
        return kinds[kind]


@functools.lru_cache(maxsize=4)
def standard_library(max_files: int | None = None) -> Corpus:
    """Reads the standard library's sources and its help topics.

    Tests, generated tables and installed packages are left out. A file is held out
    by the hash of its name; passages of the training texts that also stand in a
    held-out text are removed.

    Args:
      max_files: train on only that many code files; on all by default.

    Returns:
      The `Corpus`, the same on every machine with the same Python.

    Raises:
      DataNotFoundError: this Python has no library sources.
    """
    code, english = _code_files(), _topics()
    train_code, held_code = _split(code, _HELD_OUT_EVERY["code"])
    train_english, held_english = _split(english, _HELD_OUT_EVERY["english"])
    held = {
        passage for text in (*held_code, *held_english) for passage in _passages(text)
    }
    digest = hashlib.sha256()
    for name, text in (*code, *english):
        digest.update(f"{name}\0{len(text)}\0{text}".encode())
    digest.update(f"{max_files}".encode())
    return Corpus(
        tuple(_without(text, held) for text in train_code[:max_files]),
        tuple(_without(text, held) for text in train_english),
        tuple(held_code),
        tuple(held_english),
        digest.hexdigest(),
    )


def held_out_prompts(
    kind: Literal["code", "english"] = "code",
    *,
    count: int = 100,
    characters: int = 240,
    seed: int = 0,
) -> list[str]:
    """Cuts prompts out of held-out texts, each starting at a line of its own.

    Args:
      kind: `"code"` or `"english"`.
      count: how many.
      characters: longest prompt; each ends with a word, at most a line shorter.
      seed: which of the possible prompts.

    Returns:
      `count` prompts that do not overlap.

    Raises:
      ArgumentError: another kind, or more prompts than the texts have.
    """
    check(characters > 0, "characters", characters, "at least 1")
    found = [
        prompt
        for text in standard_library().held_out(kind)
        for prompt in _cut(text, characters)
    ]
    if not 0 < count <= len(found):
        raise ArgumentError(
            f"count: got {count}, expected 1 to {len(found)}, the {kind} prompts of "
            f"{characters} characters that the held-out texts have."
        )
    random.Random(seed).shuffle(found)
    return found[:count]


def _code_files() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    files = []
    for name in names:
        parts = name.split("/")
        if _SKIPPED & set(parts) or parts[-1].startswith(_GENERATED):
            continue
        try:
            files.append((name, (root / name).read_bytes().decode("utf-8")))
        except UnicodeDecodeError:
            continue  # a few old files declare another encoding
    if not files:
        raise DataNotFoundError(f"{root} holds no sources of the standard library.")
    # By hash, so that a part of the files is a fair sample of them.
    return sorted(files, key=lambda file: _hash(file[0]))


def _topics() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics

    return sorted(topics.items(), key=lambda topic: _hash(topic[0]))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _split(named: Sequence[tuple[str, str]], every: int) -> tuple[list[str], list[str]]:
    is_held: Callable[[str], bool] = lambda name: _hash(name) % every == 0
    train = [text for name, text in named if not is_held(name)]
    return train, [text for name, text in named if is_held(name)]


def _passages(text: str) -> list[str]:
    return [p for p in text.split("\n\n") if len(p) >= _SHARED_CHARACTERS]


def _without(text: str, held: set[str]) -> str:
    return "\n\n".join(p for p in text.split("\n\n") if p not in held)


def _cut(text: str, characters: int) -> list[str]:
    prompts, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= characters:
            prompt = "".join(lines)[:characters]
            # The last word may be cut in two.
            prompts.append(prompt[: _last_break(prompt)].rstrip().lstrip("\n"))
            lines, size = [], 0
    return [prompt for prompt in prompts if len(prompt) >= characters // 2]


def _last_break(prompt: str) -> int:
    return max(prompt.rfind(" "), prompt.rfind("\n"))
