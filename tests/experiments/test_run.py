"""The command line: what it runs, what it refuses and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiments import catalog
from experiments.run import main

ROOT = catalog.folder().parent


def only_run(fake, slug="double"):
    folders = [p for p in (fake.parent / "runs" / slug).iterdir() if p.is_dir()]
    assert len(folders) == 1
    return folders[0]


def test_default_preset_runs_and_writes(fake, capsys):
    assert main(["double"]) == 0
    folder = only_run(fake)
    config = json.loads((folder / "config.json").read_text())
    assert config["preset"] == "small"
    assert config["config"]["width"] == 4
    assert json.loads((folder / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss": 0.5,
    }
    results = json.loads((folder / "results.json").read_text())
    assert results["seeds"] == [3]
    assert [c["holds"] for c in results["claims"]] == [True, True]
    assert "holds  doubles" in capsys.readouterr().out


def test_preset_and_fields_override(fake):
    words = ["--preset", "smoke", "--learning-rate", "0.5", "--model", "m"]
    assert main(["double", *words]) == 0
    config = json.loads((only_run(fake) / "config.json").read_text())["config"]
    assert config["width"] == 2
    assert config["learning_rate"] == 0.5
    assert config["model"] == "m"


def test_options_may_stand_before_the_name(fake):
    assert main(["--preset", "smoke", "double", "--width", "3"]) == 0
    assert json.loads((only_run(fake) / "config.json").read_text())["preset"] == "smoke"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["duoble"], "did you mean double?"),
        (["xtr"], "planned"),
        (["double", "--preset", "smal"], "did you mean small"),
        (["double", "--widht", "3"], "did you mean width"),
        (["double", "--mesh_", "data=1"], "--mesh"),
        (["double", "stray"], "stray"),
        (["double", "--width", "wide"], "--width"),
        (["double", "--learning-rate", "x"], "--learning-rate"),
        (["double", "--mesh", "data:8"], "data=4,model=2"),
        (["double", "--mesh", "data=4,data=2"], "once each"),
        (["double", "--mesh", "data=3"], "asks for 3 devices, and there are 8"),
        (["--width", "3", "double"], "before the name"),
        (["double", "--all"], "not two"),
        ([], "usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_exit_2_without_a_traceback(fake, capsys, words, said):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert not (fake.parent / "runs").exists()


def test_mesh_is_set_for_the_run(fake):
    (fake / "meshed.py").write_text(
        (fake / "double.py")
        .read_text()
        .replace(
            "    report.metric(step=1, loss=0.5)\n",
            "    import jax\n"
            "    mesh = jax.sharding.get_abstract_mesh()\n"
            "    report.metric(**dict(mesh.shape))\n",
        )
    )
    assert main(["meshed", "--mesh", "data=4,model=2"]) == 0
    row = json.loads((only_run(fake, "meshed") / "metrics.jsonl").read_text())
    assert row == {"data": 4, "model": 2}
    assert jax.sharding.get_abstract_mesh().empty


def test_list_shows_every_paper_and_imports_none(fake, capsys):
    (fake / "broken.py").write_text(
        (fake / "double.py").read_text() + "\nraise SystemExit('imported')\n"
    )
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    from jtok.papers import PAPERS

    assert {paper.slug for paper in PAPERS} <= {line.split()[0] for line in lines}
    assert any(line.startswith("xtr") and "planned" in line for line in lines)
    row = next(line for line in lines if line.startswith("double"))
    assert "smoke, small (2), full (30.5)" in row
    assert row.endswith("Doubling doubles.")
    assert not any(line.startswith("helper") for line in lines)


def test_all_runs_each_and_fails_if_one_fails(fake, capsys):
    source = (fake / "double.py").read_text()
    (fake / "crashes.py").write_text(
        source.replace('mode: str = "ok"', 'mode: str = "crash"')
    )
    assert main(["--all", "--preset", "smoke"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("FAIL crashes")
    assert "boom" in out[0]
    assert out[1].startswith("pass double")
    assert out[2] == "1 of 2 experiments passed"
    (fake / "crashes.py").unlink()
    earlier = jax.jit(lambda x: x + 1)
    earlier(1)
    assert main(["--all", "--preset", "smoke"]) == 0
    assert earlier._cache_size() == 0  # one process has room for so many, and no more


def test_all_fails_where_the_preset_is_missing(fake, capsys):
    source = (fake / "double.py").read_text()
    (fake / "double.py").write_text(source.replace('"smoke":', '"smoky":'))
    assert main(["--all", "--preset", "smoke"]) == 1
    assert "has no 'smoke'" in capsys.readouterr().out


def test_forgotten_claim_fails_and_names_it(fake, capsys):
    assert main(["double", "--mode", "forget"]) == 1
    assert "'small' was not reported" in capsys.readouterr().err
    folder = only_run(fake)
    assert not (folder / "results.json").exists()
    assert (folder / "rejected.json").exists()


def test_crash_and_interrupt_leave_no_results(fake, capsys):
    with pytest.raises(RuntimeError, match="boom"):
        main(["double", "--mode", "crash"])
    assert "boom" in (only_run(fake) / "traceback.txt").read_text()
    assert main(["double", "--mode", "interrupt"]) == 130
    assert not list((fake.parent / "runs").rglob("results.json"))


def test_killed_run_leaves_metrics_and_no_results(fake):
    code = (
        "import pathlib, os, signal, sys\n"
        "from experiments.report import Report\n"
        "report = Report(pathlib.Path(sys.argv[1]), 's', 'small', {'seed': 1})\n"
        "report.metric(step=1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = fake.parent / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert json.loads((folder / "metrics.jsonl").read_text()) == {"step": 1}
    assert not (folder / "results.json").exists()


def test_unwritable_out_is_a_clear_error(fake, capsys):
    (fake.parent / "file").write_text("")
    assert main(["double", "--out", "file"]) == 2
    assert "cannot make" in capsys.readouterr().err


def test_commit_copies_the_results(fake):
    assert main(["double", "--preset", "smoke", "--commit"]) == 0
    files = [p for p in (fake / "results").rglob("*") if p.is_file()]
    assert len(files) == 1
    assert files[0].parent.name == "double"
    assert files[0].name.startswith("smoke-cpu-")
    assert json.loads(files[0].read_text()) == json.loads(
        (only_run(fake) / "results.json").read_text()
    )


def test_help_runs_nothing(fake, capsys):
    assert main(["--all", "--help"]) == 0
    assert "--preset" in capsys.readouterr().out
    assert not (fake.parent / "runs").exists()


def test_help_shows_the_fields(fake, capsys):
    assert main(["double", "--help"]) == 0
    assert "--learning-rate" in capsys.readouterr().out


@pytest.mark.medium
def test_two_processes_and_only_the_first_writes(fake):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import pathlib, sys\n"
        "from experiments import catalog, run\n"
        f"catalog.folder = lambda: pathlib.Path({str(fake)!r})\n"
        f"catalog.root = lambda: pathlib.Path({str(fake.parent)!r})\n"
        "sys.exit(run.main(['double', '--distributed', '--mesh', 'data=2']))\n"
    )
    processes = []
    for index in range(2):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    deadline = time.monotonic() + 120
    outputs = []
    for process in processes:
        try:
            left = max(1, deadline - time.monotonic())
            outputs.append(process.communicate(timeout=left))
        finally:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "process 0 of 2" in outputs[0][0]
    assert "report:" in outputs[0][0]
    assert "process 1 of 2" in outputs[1][0]
    assert "report:" not in outputs[1][0]
    results = json.loads((only_run(fake) / "results.json").read_text())
    assert results["device"]["processes"] == 2


@pytest.mark.medium
def test_a_process_that_waits_in_vain_says_what_to_do(tmp_path):
    code = "import sys; from experiments import run; sys.exit(run.main(sys.argv[1:]))"
    words = ["pretrain", "--preset", "smoke", "--distributed", "--wait", "1"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "joining: process 1 of 2 at 127.0.0.1:1, waiting up to 1 s" in done.stdout
    assert "not all processes came within 1 s" in done.stderr
    assert "JAX_NUM_PROCESSES" in done.stderr
    assert not list(tmp_path.iterdir())
