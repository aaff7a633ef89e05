"""A run killed at any moment and started again ends with the same bits."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("resumable_run.py")
ROOT = SCRIPT.parents[2]


def start(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    log = (folder.parent / f"{folder.name}.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)], env=environment, stderr=log
        )


def wait_for(process, condition, *, seconds=120.0):
    """Polls until the condition holds; the process must live that long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before its kill"
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.0005)


def rows_in(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(folder):
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(
        name.endswith("-tmp") for name in os.listdir(checkpoints)
    )


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in lines
    ]


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert start(whole).wait() == 0

    rng = random.Random(5)
    kills, saves_hit = sorted(rng.randint(4, 80) for _ in range(4)), 0
    kills.insert(2, None)  # inside a save
    for target in kills:
        process = start(parts)
        if target is None:
            wait_for(process, lambda: is_saving(parts))
        else:
            wait_for(process, lambda rows=target: rows_in(parts) >= rows)
            time.sleep(rng.uniform(0, 0.3))
        kill(process)
        saves_hit += is_saving(parts)
    assert saves_hit >= 1, "no kill fell inside a save"
    assert start(parts).wait() == 0

    assert rows_of(parts) == rows_of(whole)
    assert [row["step"] for row in rows_of(parts)] == list(range(1, 91))
    expected, got = (np.load(folder / "final.npz") for folder in (whole, parts))
    assert expected.files == got.files
    for name in expected.files:
        np.testing.assert_array_equal(got[name], expected[name])
    assert not is_saving(parts)
