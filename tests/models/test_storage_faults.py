"""A save that is killed or refused by the disk leaves the old or the new, whole."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("saving_under_faults.py")
KILLED, SAVED, REFUSED = -9, (0, 1), 2
OLD = {"model": 1, "new_model": 0, "table": 1}  # 0: nothing is there
NEW = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("faults"))],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": str(SCRIPT.parents[2]),
            "JAX_PLATFORMS": "cpu",
        },
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "printed": done.stderr}


def standing(kind):
    return ["out"] if OLD[kind] else []


@pytest.mark.medium
@pytest.mark.parametrize("kind", OLD)
def test_a_kill_at_any_call_leaves_old_or_new(results, kind):
    cases = results[f"{kind} kill"]
    assert len(cases) >= (9 if kind == "table" else 50)
    assert [case[0] for case in cases] == [KILLED] * (len(cases) - 1) + [0]
    found = [case[1] for case in cases]
    at = found.index(NEW)
    # Old up to a call and new from it on: there is one moment of the change.
    assert found == [OLD[kind]] * at + [NEW] * (len(found) - at)
    assert 1 < at < len(found) - 1


@pytest.mark.medium
@pytest.mark.parametrize("kind", OLD)
def test_a_disk_that_fills_at_any_call_is_named_and_changes_nothing(results, kind):
    cases = results[f"{kind} full"]
    refused = [case for case in cases if case[0] == REFUSED]
    assert len(refused) >= (5 if kind == "table" else 40)
    for outcome, found, left, _ in cases:
        assert outcome in (*SAVED, REFUSED), results["printed"]
        assert found == (OLD[kind] if outcome == REFUSED else NEW)
        if outcome == REFUSED:  # under its name without a recovery, and no litter
            assert left == standing(kind)


@pytest.mark.medium
@pytest.mark.parametrize("kind", OLD)
def test_files_over_the_limit_of_the_system_are_named(results, kind):
    cases = results[f"{kind} limit"]
    assert cases[0][0] == REFUSED, results["printed"]
    assert cases[-1][0] in SAVED, results["printed"]
    for outcome, found, left, _ in cases:
        assert outcome in (*SAVED, REFUSED), results["printed"]
        assert found == (OLD[kind] if outcome == REFUSED else NEW)
        assert left == (standing(kind) if outcome == REFUSED else ["out"])


@pytest.mark.medium
@pytest.mark.parametrize("kind", OLD)
@pytest.mark.parametrize("fault", ["kill", "full", "limit"])
def test_the_next_save_works_and_leaves_nothing_else(results, kind, fault):
    for case in results[f"{kind} {fault}"]:
        assert case[3] == [["out"], 3]
