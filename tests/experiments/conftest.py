"""A folder with a tiny experiment, in place of the repository's own."""

import textwrap

import pytest

from experiments import catalog

FAKE = '''
"""Doubling doubles.

More words.
"""

import dataclasses
import pathlib

CLAIMS = ("doubles", "small")
SOURCES = ("lib/*.py",)
MINUTES = {"small": 2, "full": 30.5}


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields."""

    seed: int = 3
    width: int = 4
    learning_rate: float = 0.1
    model: str | None = None
    mode: str = "ok"


PRESETS: dict[str, Config] = {
    "smoke": Config(width=2),
    "small": Config(),
    "full": Config(width=400),
}


def run(config, report):
    report.metric(step=1, loss=0.5)
    if config.mode == "crash":
        raise RuntimeError("boom")
    if config.mode == "interrupt":
        raise KeyboardInterrupt
    report.data("words", b"abc", kind="synthetic")
    doubled = 2 * config.width
    report.table("widths", [{"width": config.width, "doubled": doubled}])
    report.claim("doubles", "2x is 2x", paper="2", measured=doubled / config.width,
                 unit="x", op="==", bound=2)
    if config.mode != "forget":
        report.claim("small", "is small", paper="-", measured=config.width, unit="",
                     op="<", bound=100, reason="too wide")
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The folder; `fake/double.py` is the experiment, `lib/` its library."""
    folder = tmp_path / "experiments"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "core.py").write_text('"""Doc."""\n\n\nX = 1\n')
    folder.mkdir()
    (folder / "double.py").write_text(textwrap.dedent(FAKE))
    (folder / "helper.py").write_text('"""No experiment."""\n')
    monkeypatch.setattr(catalog, "folder", lambda: folder)
    monkeypatch.setattr(catalog, "root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return folder
