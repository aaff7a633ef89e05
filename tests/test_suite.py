"""The suite's own rules: records pass the type checker, nothing reaches the network."""

import fnmatch
import pathlib
import socket
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from tests import conftest, count, typecheck

checked = jaxtyping.jaxtyped(typechecker=typecheck.check)


@checked
@flax.struct.dataclass(kw_only=True)
class State:
    x: jax.Array


def test_records_keep_working_under_the_hook():
    state = State(x=jnp.zeros(3))
    assert jax.tree.map(lambda x: x.shape, state).x == (3,)
    assert jax.eval_shape(lambda s: s, state).x.shape == (3,)


def test_functions_are_checked():
    @checked
    def double(x: jaxtyping.Float[jax.Array, " dim"]):
        return 2 * x

    with pytest.raises(jaxtyping.TypeCheckError):
        double(jnp.zeros((2, 2)))


def test_library_functions_are_checked():
    import jtok.errors

    with pytest.raises(jaxtyping.TypeCheckError):
        jtok.errors.near(3, ["three"])


def test_jax_is_strict():
    assert jax.device_count("cpu") == 8
    with pytest.raises(ValueError, match="rank"):
        jnp.zeros(3) + jnp.zeros((2, 3))
    assert jax.config.jax_default_matmul_precision == "highest"


def test_the_network_is_refused():
    with socket.socket() as client, pytest.raises(RuntimeError, match="reach"):
        client.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match=r"resolve example\.com"):
        socket.getaddrinfo("example.com", 80)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_listed_skip_reasons_are_exact():
    allowed = conftest.allowed_reasons()
    assert "needs a TPU" in allowed

    def listed(reason):
        return any(fnmatch.fnmatchcase(reason, pattern) for pattern in allowed)

    assert listed("needs the network (run with --network)")
    assert not listed("could not import 'tiktoken'")


def session(folder: pathlib.Path, body: str, *args: str) -> subprocess.CompletedProcess:
    """Runs a test file in a tree of its own that has this suite's conftest."""
    (folder / "tests" / "goldens" / "slug").mkdir(parents=True, exist_ok=True)
    for name in ("conftest.py", "typecheck.py", "allowed_skips.txt"):
        text = (conftest.ROOT / "tests" / name).read_text()
        (folder / "tests" / name).write_text(text)
    (folder / "tests" / "test_it.py").write_text(body)
    options = "[pytest]\npythonpath = .\ntestpaths = tests\n"
    (folder / "pytest.ini").write_text(options + "addopts = --import-mode=importlib\n")
    script = f"import sys, pytest; sys.path.append({str(conftest.ROOT)!r})\n"
    script += "sys.exit(pytest.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", script, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": "", "HOME": str(folder)},
    )


_SKIPS = """
import pytest
def test_a(): pass
def test_b(): pytest.skip("on a whim")
"""


@pytest.mark.slow
def test_an_unlisted_skip_fails_a_strict_session(tmp_path):
    relaxed = session(tmp_path, _SKIPS)
    assert relaxed.returncode == 0, relaxed.stdout + relaxed.stderr
    assert "1  on a whim" in relaxed.stdout
    strict = session(tmp_path, _SKIPS, "--strict-skips")
    assert strict.returncode == 1
    assert "not listed: on a whim" in strict.stdout


_GOLDENS = """
import pathlib
import jtok.testing.goldens as goldens
import numpy as np
here = pathlib.Path(__file__).parent / "goldens"
np.savez(here / "slug" / "a.npz", x=1, y=2)
def test_a(): goldens.load_golden("slug/a.npz", root=here)["x"]
def test_b(): pass
"""


@pytest.mark.slow
def test_an_unread_golden_fails_a_full_session_only(tmp_path):
    full = session(tmp_path, _GOLDENS)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "slug/a.npz: y" in full.stdout and "slug/a.npz: x" not in full.stdout
    part = session(tmp_path, _GOLDENS, "-k", "test_b")
    assert part.returncode == 0, part.stdout
    named = session(tmp_path, _GOLDENS, "tests/test_it.py::test_a")
    assert named.returncode == 0, named.stdout


def test_counts_add_up_and_a_missing_file_fails(tmp_path):
    suite = '<testsuites><testsuite tests="{}" failures="1" errors="0" skipped="2"/>'
    path = tmp_path / "a.xml"
    path.write_text(suite.format(10) + "</testsuites>")
    assert count.count(path) == (7, 1, 2)
    assert count.count(tmp_path / "none.xml") == (0, 1, 0)
