"""The scripts of `tpu/`: what they would run, and what reaches the workers."""

import os
import shutil
import subprocess

import pytest

from experiments import catalog

FOLDER = catalog.folder().parent / "tpu"
NAMES = ("create", "run", "collect", "delete")
TARGET = ("--project", "p", "--zone", "z", "--name", "pod")
WORDS = {
    "create": ("--type", "v5litepod-256", "--spot"),
    "run": ("--", "pretrain", "--mesh", "data=2,model=4"),
    "collect": ("--into", "here"),
    "delete": ("--yes",),
}
EXPECTED = {
    "create": ["queued-resources create pod", "--accelerator-type=v5litepod-256"],
    "run": ["tpu-vm ssh pod", "--worker=all", "experiments.run", "--distributed"],
    "collect": ["mkdir -p here", "--worker=0", "pod:jtok/runs here"],
    "delete": ["queued-resources delete pod --force", "--quiet"],
}


def script(name, *words, **environment):
    """Runs a script without any TPU_ variable of the caller's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}
    return subprocess.run(
        [FOLDER / f"{name}.sh", *words],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", (*NAMES, "common"))
def test_syntax(name):
    path = FOLDER / f"{name}.sh"
    subprocess.run(["bash", "-n", path], check=True)
    if name != "common":
        assert "set -euo pipefail" in path.read_text()
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "--external-sources", path], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_prints_the_commands_and_runs_none(name, tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    fake.chmod(0o755)
    words = (*TARGET, "--dry-run", *WORDS[name])
    done = script(name, *words, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    for part in EXPECTED[name]:
        assert part in done.stdout
    assert "--project=p" in done.stdout and "--zone=z" in done.stdout
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_assumed(name):
    assert "usage: tpu/" in script(name, "--help").stdout
    for missing in ("--project", "--zone", "--name"):
        at = TARGET.index(missing)
        rest = TARGET[:at] + TARGET[at + 2 :]
        done = script(name, *rest, "--dry-run", *WORDS[name])
        assert done.returncode == 2 and f"give {missing}" in done.stderr
        assert "gcloud compute" not in done.stdout


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("create", (), "give --type"),
        ("create", ("--type", "t", "--wait", "soon"), "expected seconds"),
        ("run", (), "experiment after --"),
        ("run", ("pretrain",), "stands after --"),
        ("run", ("--limit", "0", "--", "pretrain"), "expected seconds"),
        ("collect", ("--form", "x"), "unknown option --form"),
        ("delete", ("all",), "unknown option all"),
    ],
)
def test_mistakes_are_refused(name, words, said):
    done = script(name, *TARGET, "--dry-run", *words)
    assert done.returncode == 2 and said in done.stderr


def test_without_gcloud_it_says_so(tmp_path):
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = script("delete", *TARGET, PATH=str(tmp_path))
    assert done.returncode == 2 and "gcloud is not installed" in done.stderr


def test_the_words_of_an_experiment_reach_the_workers_whole(tmp_path):
    """A stand-in for gcloud runs the command here, in a shell, as ssh would."""
    python = tmp_path / "jtok" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    fake = tmp_path / "gcloud"
    fake.write_text(
        "#!/usr/bin/env bash\n"
        'for word; do [[ "$word" != --command=* ]] || command="${word#*=}"; done\n'
        f'cd {tmp_path} && exec bash -c "$command"\n'
    )
    for file in (python, fake):
        file.chmod(0o755)
    words = ["pretrain", "--name", "it's $HOME", "--mesh", "data=2,model=4"]
    done = script(
        "run", *TARGET, "--wait", "7", "--", *words,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = [line[1:-1] for line in done.stdout.splitlines() if line.startswith("<")]
    started = ["-u", "-m", "experiments.run"]
    assert got == [*started, *words, "--distributed", "--wait", "7"]
