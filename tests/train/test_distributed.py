"""Two local processes do what one does: train, resume, decode, load and save."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jtok import models
from jtok.testing import tiny_model

SCRIPT = pathlib.Path(__file__).with_name("distributed_run.py")


def run(job, folder, count, steps, devices=1):
    """What every process found; all must end well within two minutes."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment |= {"PYTHONPATH": str(SCRIPT.parents[2])}
    environment |= {
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, str(SCRIPT), job, str(folder), str(port)]
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
            _, error = process.communicate(timeout=240)
            assert process.returncode == 0, error.decode()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [
        json.loads((folder / f"out-{index}.json").read_text()) for index in range(count)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path):
    (alone,) = run("train", tmp_path / "one", 1, 6)
    run("train", tmp_path / "two", 2, 3)
    for index, together in enumerate(run("train", tmp_path / "two", 2, 6)):
        # Only the first process keeps what was logged before.
        expected = alone["losses"][3 * index :]
        np.testing.assert_allclose(together["losses"], expected, rtol=1e-5)
        np.testing.assert_allclose(together["sum"], alone["sum"], rtol=1e-5)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # And a checkpoint of two processes serves one.
    (moved,) = run("train", tmp_path / "two", 1, 7)
    np.testing.assert_allclose(moved["losses"][:6], alone["losses"], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_decode_load_and_save_as_one(tmp_path):
    """Four devices, two in each process: no process holds the model."""
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        models.save(tiny_model(), folder / "model")
        found[count] = run("decode", folder, count, 4, devices=4 // count)
    (alone,), (first, second) = found[1], found[2]
    assert alone["whole"] and not first["whole"]
    assert first["shard"] == alone["shard"] == [48, 32]
    assert first["tokens"] == second["tokens"] == alone["tokens"]
    assert first["again"] == second["again"] == alone["again"]
    assert first["calls"] == second["calls"] == alone["calls"]
    assert alone["calls"][0] < 36  # drafts were kept
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(first["made"], alone["made"], rtol=1e-6)
    assert first["kept"] and second["kept"] and alone["kept"]
    # A folder that cannot be written is an error in every process, and no hang.
    assert "file" in alone["refused"] and "file" in first["refused"]
    assert "process 0 could not write" in second["refused"]
    # What two processes saved, one reads.
    saved = models.load(tmp_path / "2" / "trained").params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        saved,
        models.load(tmp_path / "1" / "trained").params,
    )
