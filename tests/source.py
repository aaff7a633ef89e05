"""What the structure tests know about the source: its files, imports and names."""

import ast
import importlib
import pathlib
import pkgutil
import subprocess
import types
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "jtok"

# Bottom up. A package imports from lower floors and from itself.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"__init__", "errors", "papers"}),
    frozenset({"files"}),
    frozenset({"ops"}),
    frozenset({"nn", "text"}),
    frozenset({"models", "train"}),
    frozenset(
        {
            "classify",
            "compress",
            "decode",
            "embed",
            "predict",
            "probe",
            "retrieve",
            "select",
            "speech",
            "vision",
        }
    ),
    frozenset({"testing"}),
)
# The one import between families.
SIDEWAYS = frozenset({("decode", "predict")})


def floor_of(package: str) -> int:
    """Index of the floor on which a top-level module or package stands."""
    for index, names in enumerate(FLOORS):
        if package in names:
            return index
    raise KeyError(f"jtok.{package} stands on no floor: add it to FLOORS")


def library_files() -> list[pathlib.Path]:
    """Every Python file of the library."""
    return sorted(LIBRARY.rglob("*.py"))


def package_of(path: pathlib.Path) -> str:
    """Top-level module or package of a library file: `ops` of `ops/attention.py`."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Absolute dotted names that a module imports, wherever in it.

    Args:
      tree: the parsed module.
      module: its dotted name, as the package that relative imports start from
        (`jtok.ops` for both `jtok/ops/__init__.py` and `jtok/ops/plan.py`).
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")[: len(module.split(".")) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def faults(package: str, imported: str) -> str | None:
    """Why `jtok.<package>` must not import a name, or None where it may."""
    parts = imported.split(".")
    if parts[0] in ("experiments", "tests"):
        return f"jtok imports {parts[0]}"
    if parts[0] in ("torch", "transformers"):
        return f"jtok imports {parts[0]}"
    if parts[0] != "jtok" or package == "__init__":
        return None
    if len(parts) == 1:
        return "imports jtok whole, which hides the floor"
    other = parts[1]
    if other in (package, "__version__") or (package, other) in SIDEWAYS:
        return None
    if floor_of(other) >= floor_of(package):
        return f"jtok.{package} (floor {floor_of(package)}) imports {imported}"
    return None


def module_names() -> list[str]:
    """Dotted names of jtok and every module below it, found without importing them."""
    names = ["jtok"]
    for path in library_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(set(names))


def packages() -> list[types.ModuleType]:
    """jtok's public modules and packages: what `jtok.__all__` lists and is there."""
    found = {info.name for info in pkgutil.iter_modules([str(LIBRARY)])}
    jtok = importlib.import_module("jtok")
    return [
        importlib.import_module(f"jtok.{name}")
        for name in jtok.__all__
        if name in found
    ]


def text_files() -> list[pathlib.Path]:
    """Files that git tracks or would track and that hold text."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        hidden = {".venv", ".git", "runs", "__pycache__", ".pytest_cache"}
        paths = [p for p in ROOT.rglob("*") if not hidden & set(p.parts)]
    kinds = {".npz", ".safetensors", ".png", ".gz", ".zip", ".pyc"}
    return sorted(p for p in paths if p.is_file() and p.suffix not in kinds)
