"""Two local processes train as one does, checkpoint together and resume."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("distributed_run.py")


def run(folder, count, steps):
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment |= {"PYTHONPATH": str(SCRIPT.parents[2]), "XLA_FLAGS": ""}
    command = [sys.executable, str(SCRIPT), str(folder), str(port)]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(count), str(steps)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]
    try:
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error.decode()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path):
    alone = run(tmp_path / "one", 1, 6)
    run(tmp_path / "two", 2, 3)
    together = run(tmp_path / "two", 2, 6)
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(together["sum"], alone["sum"], rtol=1e-5)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # And a checkpoint of two processes serves one.
    moved = run(tmp_path / "two", 1, 7)
    np.testing.assert_allclose(moved["losses"][:6], alone["losses"], rtol=1e-5)
