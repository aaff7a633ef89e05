"""Every public name is documented, shown by an example, and the example runs."""

import dataclasses
import doctest
import importlib
import inspect
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtok
from tests import source

# Names of a package's `__all__` that need no example, each with its reason.
NO_EXAMPLE: dict[str, str] = {
    "jtok.errors.check": "one line, shown by every function that calls it",
    "jtok.errors.near": "part of a message; its return value is in the docstring",
}


def public_names() -> list[tuple[str, object]]:
    """`(dotted name, object)` of every name in the `__all__` of a public package."""
    return [
        (f"{package.__name__}.{name}", getattr(package, name))
        for package in source.packages()
        for name in package.__all__
    ]


NAMES = public_names()
BY_NAME = pytest.mark.parametrize("name, value", NAMES, ids=[n for n, _ in NAMES])


def is_documentable(value: object) -> bool:
    return isinstance(value, types.ModuleType | type) or inspect.isroutine(value)


def needs_example(value: object) -> bool:
    """Functions and classes, but not errors, nor records, which functions return."""
    if inspect.isclass(value):
        record = dataclasses.is_dataclass(value) or hasattr(value, "_fields")
        return not record and not issubclass(value, BaseException | tuple)
    return inspect.isroutine(value)


def test_every_package_lists_its_names():
    for package in source.packages():
        # The linter keeps them in order.
        assert len(set(package.__all__)) == len(package.__all__), package.__name__
        assert (package.__doc__ or "").strip(), package.__name__
        missing = [n for n in package.__all__ if not hasattr(package, n)]
        assert not missing, package.__name__


@BY_NAME
def test_docstring(name, value):
    if not is_documentable(value):
        return
    text = value.__doc__ or ""
    # A NamedTuple or dataclass without a docstring gets its signature for one.
    made = inspect.isclass(value) and text.startswith(f"{value.__name__}(")
    assert text.strip() and not made, f"{name} has no docstring"
    first = text.strip().splitlines()[0]
    assert first.endswith((".", "?", ":")), f"{name}: the first line is no sentence"


@BY_NAME
def test_example(name, value):
    if not is_documentable(value) or isinstance(value, types.ModuleType):
        return
    text = inspect.getdoc(value) or ""
    # An example sees what its package exports, and the usual short names.
    package = importlib.import_module(name.rpartition(".")[0])
    names = {key: getattr(package, key) for key in package.__all__}
    names |= {"jtok": jtok, "jax": jax, "jnp": jnp, "np": np}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    if not example.examples:
        assert not needs_example(value) or name in NO_EXAMPLE, (
            f"{name} has no example (`>>> ...`), nor a reason in NO_EXAMPLE"
        )
        return
    out: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(example, out=out.append)
    assert result.failed == 0, "".join(out)


def test_exemptions_name_what_is_there():
    # A package that is not there yet has no names to compare with.
    known = {name for name, _ in NAMES}
    stale = [name for name in NO_EXAMPLE if name not in known]
    assert not stale
    assert all(reason.strip() for reason in NO_EXAMPLE.values())


@pytest.mark.parametrize("module_name", source.module_names())
def test_who_follows_a_paper_says_where(module_name):
    module = importlib.import_module(module_name)
    text = module.__doc__ or ""
    if "Source:" in text or not re.search(r"arXiv", text, re.IGNORECASE):
        return
    missing = [
        name
        for name in getattr(module, "__all__", [])
        if inspect.isroutine(getattr(module, name))
        and "Source:" not in (getattr(module, name).__doc__ or "")
    ]
    assert not missing, f"{module_name} names a paper; these have no Source: {missing}"
