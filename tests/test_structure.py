"""Rules that no single module can keep: floors, import cost, what files may name."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib

import pytest

import jtok
from jtok.papers import PAPERS
from tests import source


@pytest.mark.parametrize(
    "package, imported, allowed",
    [
        ("ops", "jtok.errors.check", True),
        ("ops", "jtok.ops.tree", True),
        ("ops", "jtok.nn.attention", False),
        ("nn", "jtok.text.words", False),
        ("text", "jtok.ops.tree", True),
        ("models", "jtok.train.fit", False),
        ("decode", "jtok.predict.heads", True),
        ("predict", "jtok.decode.verify", False),
        ("decode", "jtok.testing.data", False),
        ("testing", "jtok.decode.generate", True),
        ("decode", "experiments.run", False),
        ("errors", "jtok.files", False),
        ("files", "jtok.errors.check", True),
        ("models", "jtok", False),
    ],
)
def test_the_floor_rule_says(package, imported, allowed):
    assert (source.faults(package, imported) is None) == allowed


def test_imports_resolves_relative_ones():
    tree = ast.parse("from . import a\nfrom ..ops import b\nimport jtok.nn")
    found = set(source.imports(tree, "jtok.text"))
    assert found == {"jtok.text.a", "jtok.ops.b", "jtok.nn"}


def test_no_import_runs_upwards():
    problems = []
    for path in source.library_files():
        package = source.package_of(path)
        module = ".".join(path.relative_to(source.ROOT).parent.parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for imported in source.imports(tree, module):
            fault = source.faults(package, imported)
            if fault:
                problems.append(f"{path.relative_to(source.ROOT)}: {fault}")
    assert not problems, "\n".join(problems)


def test_no_assert_in_library_code():
    found = [
        f"{path.relative_to(source.ROOT)}:{node.lineno}"
        for path in source.library_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not found


def test_no_module_reads_the_environment_at_import():
    """Functions may; what stands outside of them runs at import."""
    found = []
    for path in source.library_files():
        nodes = [ast.parse(path.read_text(encoding="utf-8"))]
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                found.append(f"{path.relative_to(source.ROOT)}:{node.lineno}")
            nodes.extend(ast.iter_child_nodes(node))
    assert not found


_IMPORT_ALL = """
import importlib, json, os, sys
import jax
from jax._src import xla_bridge
environ = dict(os.environ)
import jtok
assert "jtok.models" not in sys.modules, "import jtok loads its packages"
{preload}
before = {{k: repr(v) for k, v in jax.config.values.items()}}
level = __import__("logging").getLogger().level
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = {{k: repr(v) for k, v in jax.config.values.items()}}
changed = sorted(k for k in after if before.get(k) != after[k])
print(json.dumps({{
    "backends": sorted(xla_bridge._backends),
    "config": changed,
    "environ": dict(os.environ) != environ,
    "level": __import__("logging").getLogger().level != level,
}}))
"""


def test_importing_jtok_has_no_side_effects():
    # Third parties first, so that what they change at import is not held against jtok.
    preload = (
        "import flax.linen, optax, chex, jaxtyping, numpy, tokenizers, safetensors"
    )
    script = _IMPORT_ALL.format(preload=preload)
    names = json.dumps(source.module_names())
    done = subprocess.run(
        [sys.executable, "-c", script, names],
        cwd=source.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    assert seen == {"backends": [], "config": [], "environ": False, "level": False}


def test_jtok_offers_its_packages_by_name():
    assert set(jtok.__all__) <= set(dir(jtok))
    for name in jtok.__all__:
        assert getattr(jtok, name) is importlib.import_module(f"jtok.{name}")
    with pytest.raises(AttributeError, match="no attribute 'modells'"):
        _ = jtok.modells


def test_versions_agree():
    project = tomllib.loads((source.ROOT / "pyproject.toml").read_text())["project"]
    changes = (source.ROOT / "CHANGELOG.md").read_text()
    top = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert project["version"] == jtok.__version__ == top.group(1)


def test_constraints_are_names_and_versions():
    lines = (source.ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    wrong = [x for x in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[\w.!+]+", x)]
    assert not wrong


def test_at_most_five_warnings_are_allowed():
    project = tomllib.loads((source.ROOT / "pyproject.toml").read_text())
    entries = project["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert entries[0] == "error"
    assert len(entries) - 1 < 5


def test_no_file_names_a_machine_or_a_registry():
    # In pieces, so that this file does not name them either.
    words = [
        "/wo" + "rk/",
        "/tm" + "p/h/",
        "/ro" + "ot/",
        "py" + "pi.org",
        "/opt/py" + "pi",
    ]
    words += ["python" + "hosted", "registry.n" + "pmjs", ".lib" + "rary/"]
    problems = []
    for path in source.text_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        name = path.relative_to(source.ROOT)
        problems += [f"{name}: {word}" for word in words if word in text]
    assert not problems


# The table of papers ------------------------


def test_there_are_thirty_papers_each_once():
    assert len(PAPERS) == 30
    for field in ("slug", "title", "arxiv"):
        assert len({getattr(paper, field) for paper in PAPERS}) == 30
    assert [paper.slug for paper in PAPERS] == sorted(paper.slug for paper in PAPERS)
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv) for paper in PAPERS)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
def test_every_row_resolves(paper):
    assert paper.status in ("planned", "partial", "works")
    file = source.ROOT / "experiments" / f"{paper.slug}.py"
    if paper.status == "planned":
        assert not paper.symbols and paper.experiment is None
        assert not file.exists(), "the experiment is there: the row is out of date"
        return
    assert paper.symbols
    for symbol in paper.symbols:
        module, name = symbol.rsplit(".", 1)
        assert name in importlib.import_module(module).__all__, symbol
    assert paper.experiment == f"experiments.{paper.slug}"
    assert file.is_file()


def readme_rows() -> dict[str, list[str]]:
    """Cells of the README's table by slug."""
    text = (source.ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- papers:begin -->")[1].split("<!-- papers:end -->")[0]
    lines = [line.strip()[1:-1] for line in table.strip().splitlines()[2:]]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0].strip("`"): [row[0].strip("`"), *row[1:]] for row in rows}


def test_readme_lists_every_paper_with_its_status():
    rows = readme_rows()
    assert list(rows) == [paper.slug for paper in PAPERS]
    for paper in PAPERS:
        slug, title, status, claim, measured = rows[paper.slug]
        assert paper.title in title and f"abs/{paper.arxiv}" in title, slug
        assert status == paper.status, slug
        assert claim == paper.claim, slug
        assert (measured == "") == (paper.status == "planned"), slug


@pytest.mark.parametrize(
    "paper", [p for p in PAPERS if p.status == "works"], ids=lambda paper: paper.slug
)
def test_what_works_has_goldens_and_a_committed_result(paper):
    assert list((source.ROOT / "tests" / "goldens" / paper.slug).glob("*.npz"))
    assert list((source.ROOT / "experiments" / "results" / paper.slug).glob("*.json"))
