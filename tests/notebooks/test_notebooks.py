"""Every notebook runs top to bottom at smoke size, and is stored without outputs."""

import os
import pathlib
import subprocess
import sys

import jupytext
import nbformat
import pytest

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
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= MAX_LINES, cell.source


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
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), os.environ.get("PYTHONPATH", "")]
            ),
            "IPYTHONDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
