"""Every notebook runs top to bottom at smoke size, and is stored without outputs."""

import ast
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import jupytext
import nbformat
import pytest

import jtok

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MAX_LINES = 15

_EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
"""


def sources(notebook) -> list[tuple[str, str]]:
    """Kind and text of every cell that says anything."""
    return [(c.cell_type, c.source.strip()) for c in notebook.cells if c.source.strip()]


def code_of(path: pathlib.Path) -> list[str]:
    """The code cells, in order."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def private_uses(code: str) -> list[str]:
    """Names of jtok in a cell that no `__all__` lists."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jtok"):
            listed = importlib.import_module(node.module).__all__
            names = [alias.name for alias in node.names if alias.name not in listed]
            found += [f"{node.module}.{name}" for name in names]
        if isinstance(node, ast.Attribute):
            *above, name = ast.unparse(node).split(".")
            if above[:1] != ["jtok"] or not all(map(str.isidentifier, above)):
                continue
            home = functools.reduce(getattr, above[1:], jtok)
            is_module = isinstance(home, types.ModuleType)
            listed = [*home.__all__, "__version__"] if is_module else dir(home)
            if name not in listed or (name.startswith("_") and name[:2] != "__"):
                found.append(ast.unparse(node))
    return found


def test_there_is_a_notebook():
    assert {path.stem for path in NOTEBOOKS} >= {"decode"}


@EACH
def test_stored_without_outputs_and_like_its_text_form(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    paired = path.with_suffix(".py")
    assert paired.is_file(), f"{paired.name}: the paired text form is missing"
    assert sources(jupytext.read(paired)) == sources(notebook)


@EACH
def test_cells_are_short(path):
    for code in code_of(path):
        assert len(code.splitlines()) <= MAX_LINES, code


@EACH
def test_cells_call_the_public_api_only(path):
    assert [name for code in code_of(path) for name in private_uses(code)] == []


@pytest.mark.parametrize(
    "code, private",
    [
        ("jtok.decode.generate(lm, jtok.__version__)", []),
        ("jtok.decode.loop.runner(1)", ["jtok.decode.loop"]),
        ("from jtok.decode.generate import _encode", ["jtok.decode.generate._encode"]),
        ("jtok.models.Model._replace", ["jtok.models.Model._replace"]),
        ("jtok.ops.Tree.from_paths([])", []),
    ],
)
def test_private_uses_are_found(code, private):
    assert set(private_uses(code)) >= set(private)
    assert bool(private_uses(code)) == bool(private)


@pytest.fixture
def pip_calls(monkeypatch):
    """Commands that a cell would run, each with what its constraints file holds."""
    calls = []

    def run(command, check):
        assert check
        constraints = pathlib.Path(command[command.index("-c") + 1]).read_text()
        calls.append((command, constraints.split()))

    monkeypatch.setattr(subprocess, "run", run)
    return calls


@EACH
def test_installs_nothing_where_jtok_is(path, pip_calls):
    exec(code_of(path)[0], {})
    assert pip_calls == []


@EACH
def test_installs_jtok_and_keeps_the_jax_that_is_there(path, pip_calls, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("JTOK_SOURCE", "somewhere")
    exec(code_of(path)[0], {})
    ((command, constraints),) = pip_calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert "somewhere" in command and "--upgrade" not in command
    for name in ("jax", "jaxlib"):
        assert f"{name}=={importlib.metadata.version(name)}" in constraints


@pytest.mark.notebook
@pytest.mark.slow
@EACH
def test_runs_top_to_bottom(path, tmp_path):
    # A process of its own: the suite's strict settings are not a notebook user's.
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", _EXECUTE, str(path)],
        cwd=path.parent,
        env={
            **kept,
            "JTOK_PRESET": "smoke",
            # At this size most of the time goes into compiling.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), os.environ.get("PYTHONPATH", "")]
            ),
            "IPYTHONDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
