"""Files and folders survive a kill at any line, a full disk and a second writer."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import jtok.files as files
from jtok.errors import ArgumentError, WriteError

# Forks once per line that the action executes in files.py or shutil.py and kills the
# child just before that line; prints what a later reader finds.
DRIVER = """
import json, os, pathlib, resource, shutil, signal, sys
import jtok.files as files

action, root = sys.argv[1], pathlib.Path(sys.argv[2])
traced = {files.__file__, shutil.__file__}

def write(path, text):
    with files.replace_folder(path) as staged:
        (staged / "a").write_text(text)
        (staged / "sub").mkdir()
        (staged / "sub" / "b").write_text(text)

def found(path):
    files.recover_folder(path)
    if not path.exists():
        return None
    return [(path / "a").read_text(), (path / "sub" / "b").read_text()]

def prepare(base):
    base.mkdir()
    if action in ("replace", "recover", "tidy", "tidy_then_delete"):
        write(base / "out", "old")
    if action == "recover":
        os.rename(base / "out", base / ".out.backup")
        shutil.copytree(base / ".out.backup", base / ".out.tmp-0")
    if action.startswith("tidy"):
        shutil.copytree(base / "out", base / ".out.backup")
    if action == "atomic":
        files.write_atomic(base / "out", "old")

def act(base):
    if action == "atomic":
        files.write_atomic(base / "out", "new" * 1000)
    elif action in ("recover", "tidy", "tidy_then_delete"):
        files.recover_folder(base / "out")
    else:
        write(base / "out", "new")

def run_killed(base, limit):
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename not in traced:
            return None
        if event == "line":
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    act(base)
    sys.settrace(None)

results, finished, limit = [], False, 0
while not finished:
    limit += 1
    base = root / str(limit)
    prepare(base)
    child = os.fork()
    if child == 0:
        run_killed(base, limit)
        os._exit(0)
    finished = os.waitpid(child, 0)[1] == 0
    if action == "atomic":
        seen = (base / "out").read_text()
        files.write_atomic(base / "out", "next")  # clears what the dead one left
    else:
        if action == "tidy_then_delete":
            shutil.rmtree(base / "out")  # half a backup must not take its place
        seen = found(base / "out")
        files.recover_folder(base / "out")
        again = found(base / "out")
        assert again == seen, (again, seen)
    left = sorted(os.listdir(base))
    shutil.rmtree(base)
    results.append([seen, left])
print(json.dumps(results))
"""


def run_driver(source, *arguments):
    """Runs in a process without JAX, so that forking is cheap and allowed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write(path, text):
    with files.replace_folder(path) as staged:
        (staged / "a").write_text(text)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("action", "allowed"),
    [
        ("replace", [["old", "old"], ["new", "new"]]),
        ("create", [None, ["new", "new"]]),
        ("recover", [["old", "old"]]),
        ("tidy", [["old", "old"]]),
        ("tidy_then_delete", [["old", "old"], None]),
        ("atomic", ["old", "new" * 1000]),
    ],
)
def test_kill_before_every_line_leaves_old_or_new(tmp_path, action, allowed):
    results = run_driver(DRIVER, action, tmp_path)
    assert len(results) > 15
    for index, (seen, left) in enumerate(results):
        assert seen in allowed, f"killed before line {index + 1}"
        litter = [name for name in left if ".tmp-" in name or "backup" in name]
        assert not litter, f"killed before line {index + 1}"
    seen = [result[0] for result in results]
    assert all(each in seen for each in allowed)
    assert results[-1][0] == allowed[-1]
    assert results[-1][1] == ([] if results[-1][0] is None else ["out"])


def test_replace_folder_leaves_only_the_new_content(tmp_path):
    path = tmp_path / "deep" / "out"
    write(path, "old")
    (path / "extra").write_text("x")
    write(path, "new")
    assert [child.name for child in path.iterdir()] == ["a"]
    assert (path / "a").read_text() == "new"
    assert [child.name for child in path.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, FileNotFoundError])
def test_exception_in_the_block_changes_nothing(tmp_path, error):
    write(tmp_path / "out", "old")
    with pytest.raises(error), files.replace_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("half")
        raise error("stop")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["out"]


def test_failed_second_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    real = os.rename

    def rename(source, target):
        if ".tmp-" in os.path.basename(source):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(files.os, "rename", rename)
    with pytest.raises(WriteError, match="out.*Input/output"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["out"]


def test_replace_folder_refuses_a_file_and_a_folder_without_the_marker(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="is a file"):
        write(tmp_path / "file", "new")
    (tmp_path / "home").mkdir()
    with files.replace_folder(tmp_path / "home", marker="config.json") as staged:
        (staged / "config.json").write_text("{}")
    with files.replace_folder(tmp_path / "home", marker="config.json") as staged:
        (staged / "thesis.tex").write_text("x")
    with (
        pytest.raises(WriteError, match="no 'config.json'"),
        files.replace_folder(tmp_path / "home", marker="config.json"),
    ):
        pass
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_replace_folder_follows_a_link(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"


def test_unwritable_output_names_the_path(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=r"file/out"):
        files.write_atomic(tmp_path / "file" / "out", b"x")
    with pytest.raises(WriteError, match=r"file/out"):
        write(tmp_path / "file" / "out", "x")
    with pytest.raises(OSError, match="path: cannot write"):
        files.write_atomic(tmp_path, b"x")
    with pytest.raises(ArgumentError, match="path"):
        files.write_atomic("/", b"x")


def test_recover_of_a_missing_path_makes_nothing(tmp_path):
    files.recover_folder(tmp_path / "no" / "such")
    assert not list(tmp_path.iterdir())


def test_recover_leaves_a_live_writer_alone(tmp_path):
    with files.replace_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("new")
        files.recover_folder(tmp_path / "out")
        assert (staged / "a").exists()
    assert (tmp_path / "out" / "a").read_text() == "new"


FULL_DISK = """
import json, os, pathlib, resource, sys
import jtok.files as files
from jtok.errors import WriteError

root = pathlib.Path(sys.argv[1])
files.write_atomic(root / "file", "old")
with files.replace_folder(root / "out") as staged:
    (staged / "a").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
errors = []
try:
    files.write_atomic(root / "file", b"x" * 5000)
except WriteError as error:
    errors.append(str(error))
try:
    with files.replace_folder(root / "out") as staged:
        (staged / "a").write_bytes(b"x" * 5000)
except WriteError as error:
    errors.append(str(error))
read = [(root / "file").read_text(), (root / "out" / "a").read_text()]
print(json.dumps([errors, read, sorted(os.listdir(root))]))
"""


def test_full_disk_is_a_write_error_and_the_old_content_stands(tmp_path):
    errors, read, left = run_driver(FULL_DISK, tmp_path)
    assert len(errors) == 2
    assert str(tmp_path / "file") in errors[0]
    assert str(tmp_path / "out") in errors[1]
    assert read == ["old", "old"]
    assert left == ["file", "out"]


TWO_WRITERS = """
import json, os, pathlib, sys
import jtok.files as files

root = pathlib.Path(sys.argv[1])

def write(text):
    with files.replace_folder(root / "out") as staged:
        for name in "abc":
            (staged / name).write_text(text)

write("start")
children = []
for writer in range(2):
    child = os.fork()
    if child == 0:
        for index in range(60):
            write(f"{writer}-{index}")
        os._exit(0)
    children.append(child)
seen = set()
mixed = 0
for _ in range(400):
    files.recover_folder(root / "out")
    with files.folder_lock(root / "out", shared=True):
        texts = {(root / "out" / name).read_text() for name in "abc"}
    mixed += len(texts) > 1
    seen |= texts
status = [os.waitpid(child, 0)[1] for child in children]
print(json.dumps([mixed, len(seen), status, os.listdir(root)]))
"""


def test_readers_under_the_shared_lock_see_one_version(tmp_path):
    mixed, versions, status, left = run_driver(TWO_WRITERS, tmp_path)
    assert mixed == 0
    assert versions > 1
    assert status == [0, 0]
    assert left == ["out"]


LOCKED_OUT = """
import fcntl, json, os, pathlib, sys
import jtok.files as files

path = pathlib.Path(sys.argv[1], "out")
def other(shared):
    child = os.fork()
    if child == 0:
        files._held.locks.clear()
        with files._locked(path, shared=shared, wait=False) as got:
            code = int(got)
        os._exit(code)
    return bool(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
result = []
with files.folder_lock(path):
    result.append(other(shared=False))
with files.folder_lock(path, shared=True), files.folder_lock(path, shared=True):
    result.append(other(shared=False))
result.append(other(shared=False))
print(json.dumps(result))
"""


def test_the_lock_keeps_another_process_out_until_released(tmp_path):
    assert run_driver(LOCKED_OUT, tmp_path) == [False, False, True]


def test_the_lock_can_be_taken_again_by_its_thread_but_not_upgraded(tmp_path):
    path = tmp_path / "out"
    with files.folder_lock(path), files.folder_lock(path):
        write(path, "new")
    with (
        files.folder_lock(path, shared=True),
        pytest.raises(ArgumentError, match="shared"),
        files.folder_lock(path),
    ):
        pass
    assert [child.name for child in tmp_path.iterdir()] == ["out"]
