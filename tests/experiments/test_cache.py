"""The cache: found by key, built once, resumed after a kill."""

import os
import signal
import subprocess
import sys

import pytest

from experiments import catalog
from experiments.cache import cache_key, cache_root, cached
from jtok.errors import ArgumentError, WriteError

ROOT = catalog.folder().parent


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JTOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_root_is_read_at_call_time(monkeypatch, tmp_path):
    monkeypatch.setenv("JTOK_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("JTOK_CACHE")
    assert cache_root() == tmp_path / "xdg" / "jtok"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / "home" / ".cache" / "jtok"


def test_built_once_and_found_again(cache):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "weights").write_text("w")

    folder = cached("lm", {"a": 1, "b": [2]}, build)
    assert cached("lm", {"b": [2], "a": 1}, build) == folder
    assert len(calls) == 1
    assert (folder / "weights").read_text() == "w"
    assert cached("lm", {"a": 2, "b": [2]}, build) != folder
    assert [p.name for p in cache.iterdir() if "partial" in p.name] == []


def test_key_covers_the_version(monkeypatch):
    import jtok

    before = cache_key({"a": 1})
    monkeypatch.setattr(jtok, "__version__", "99")
    assert cache_key({"a": 1}) != before


def test_failed_build_is_not_found_and_resumes(cache):
    def fails(folder):
        (folder / "checkpoint").write_text("half")
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        cached("lm", {}, fails)
    seen = []
    folder = cached("lm", {}, lambda f: seen.append((f / "checkpoint").read_text()))
    assert seen == ["half"]
    assert folder.is_dir()


BUILD = """
import os, pathlib, signal, sys, time
from experiments.cache import cached

def build(folder):
    with (folder / "log").open("a") as file:
        file.write("built\\n")
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)

print(cached("lm", {"x": 1}, build))
"""


def start(mode):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, mode],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_build_once(cache):
    processes = [start("wait"), start("wait")]
    paths = {p.communicate(timeout=60)[0].strip() for p in processes}
    assert len(paths) == 1
    with open(os.path.join(paths.pop(), "log")) as file:
        assert file.read() == "built\n"


def test_killed_build_is_resumed_by_the_next(cache):
    killed = start("kill")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not [p for p in cache.iterdir() if "partial" not in p.name and p.is_dir()]
    finished = start("wait")
    path = finished.communicate(timeout=60)[0].strip()
    with open(os.path.join(path, "log")) as file:
        assert file.read() == "built\nbuilt\n"


def test_bad_name_and_unwritable_root(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="name"):
        cached("../lm", {}, print)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JTOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(WriteError, match="file"):
        cached("lm", {}, print)
