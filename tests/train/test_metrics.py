"""The metrics file after kills at any byte."""

import json
import math

import numpy as np
import pytest

from jtok.errors import WriteError
from jtok.train import MetricsLog

ROWS = [{"step": t, "loss": 1.0 / t} for t in range(1, 6)]


def write(path):
    log = MetricsLog(path, step=0)
    log.append(ROWS[:3])
    log.append(ROWS[3:])
    log.sync()
    return path.read_bytes()


def test_a_file_cut_at_any_byte_loses_only_what_is_repeated(tmp_path):
    path = tmp_path / "sub" / "m.jsonl"
    whole = write(path)
    for size in range(0, len(whole) + 1, 3):
        path.write_bytes(whole[:size])
        steps = whole[:size].count(b"\n")
        log = MetricsLog(path, step=steps)
        log.append(ROWS[steps:])
        assert path.read_bytes() == whole
        np.testing.assert_array_equal(log.columns()["step"], [1, 2, 3, 4, 5])


def test_later_steps_and_what_follows_them_go(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path)
    log = MetricsLog(path, step=3)
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS[:3]
    np.testing.assert_allclose(log.columns()["loss"], [1.0, 1 / 2, 1 / 3])


def test_values_that_are_missing_or_not_finite(tmp_path):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path, step=0)
    log.append([{"step": 1, "a": math.inf}, {"step": 2, "b": 4}])
    text = path.read_text()
    assert text == '{"step": 1, "a": null}\n{"step": 2, "b": 4}\n'
    again = MetricsLog(path, step=2).columns()
    np.testing.assert_array_equal(again["a"], [math.nan, math.nan])
    np.testing.assert_array_equal(again["b"], [math.nan, 4.0])


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        MetricsLog(tmp_path / "file" / "m.jsonl", step=0)
    with pytest.raises(WriteError, match="metrics_file"):
        MetricsLog(tmp_path, step=0)
