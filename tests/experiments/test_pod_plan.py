"""The plan for a pod: what it reads from programs, and what it makes of that."""

import dataclasses
import json
import os
import signal

import jax
import pytest

from experiments import pod_plan
from experiments.report import Report
from jtok import models
from jtok.errors import UnsupportedImplementationError


def run(tmp_path, config):
    report = Report(tmp_path / "run", "pod_plan", "smoke", config,
                    claims=pod_plan.CLAIMS)  # fmt: skip
    pod_plan.run(config, report)
    return report.finish(0.0)


TINY = dataclasses.replace(
    pod_plan.PRESETS["smoke"], topologies=("cpu",), steps=("plain", "train")
)


@pytest.mark.medium
def test_on_simulated_devices(tmp_path):
    results = run(tmp_path, TINY)
    plain, training = results["tables"]["Steps"]
    assert (plain["mesh"], training["mesh"]) == ("data=2,model=4", "data=8,model=1")
    assert (plain["rows"], training["rows"]) == (4, 8)
    assert plain["fits"] and training["fits"]
    size = sum(x.size for x in jax.tree.leaves(models.abstract(
        pod_plan.SHAPES["tiny"]).params))  # fmt: skip
    assert plain["weights_mib"] == round(2 * size / 2**20, 3)
    # A quarter of the weights and two rows of the cache; three copies for training.
    cache = 2 * 2 * 2 * 4 * 256 * 32 * 2 / 4
    held = (2 * size / 4 + cache) / 2**20
    assert held < plain["arguments_mib"] < 1.1 * held
    assert 3 < training["arguments_mib"] / (2 * size / 2**20) < 3.1
    assert plain["largest_gather_mib"] < plain["weights_mib"] / 100
    assert plain["copies_in_loops"] == training["copies_in_loops"] == 0
    kinds = {row["kind"] for row in results["tables"]["Exchanges"]}
    assert "all-reduce" in kinds
    assert [c["id"] for c in results["claims"]] == list(pod_plan.CLAIMS)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == ["plain", "train"]


def test_shapes_are_those_of_the_published_models():
    """Parameters as their model cards count them, in billions."""
    assert pod_plan._num_params("llama_1b") == 1_235_814_400
    assert pod_plan._num_params("llama_8b") == 8_030_261_248


def test_the_model_axis_is_as_the_heads_allow():
    assert pod_plan._model_parts("llama_8b", 256, "plain") == [8, 4, 2, 1]
    assert pod_plan._model_parts("llama_8b", 4, "plain") == [4, 2, 1]
    # 64 GiB of parameters, gradients and moments at 8 GiB a chip.
    assert pod_plan._model_parts("llama_8b", 256, "train") == [8, 4, 2, 1]
    assert pod_plan._model_parts("llama_1b", 256, "train") == [2, 4, 8, 1]


def test_the_best_mesh_is_the_fastest_that_fits():
    group = {"model": "m", "topology": "t", "step": "plain"}
    plans = [
        group | {"mesh": "a", "fits": False, "total_mib": 1, "estimated_ms": 1.0},
        group | {"mesh": "b", "fits": True, "total_mib": 9, "estimated_ms": 2.0},
        group | {"mesh": "c", "fits": True, "total_mib": 8, "estimated_ms": 3.0},
        group | {"step": "train", "mesh": "a", "fits": False, "total_mib": 1},
    ]
    plain, training = pod_plan._best(plans)
    assert (plain["mesh"], plain["tried"]) == ("b", 3)
    assert training["mesh"] == "none of those tried fits"


def test_without_libtpu_only_smoke_runs(tmp_path, monkeypatch):
    def missing(topology):
        raise UnsupportedImplementationError("libtpu is not installed.")

    monkeypatch.setattr(pod_plan, "tpu_devices", missing)
    with pytest.raises(UnsupportedImplementationError, match="not installed"):
        run(tmp_path, pod_plan.PRESETS["small"])
    report = Report(tmp_path / "smoke", "pod_plan", "smoke", TINY)
    found = pod_plan._available(pod_plan.PRESETS["smoke"], report)
    assert found == {"cpu": jax.devices()}


def test_a_program_that_does_not_fit_is_told_apart(monkeypatch):
    class Lowered:
        def __init__(self, says):
            self.says = says

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.says)

    says = "RESOURCE_EXHAUSTED: 19 GiB\nmore"
    monkeypatch.setattr(pod_plan, "_lower", lambda *_: Lowered(says))
    plan = pod_plan._plan(TINY, "tiny", "cpu", (8, 1), "train")
    assert plan["fits"] is False and plan["says"] == "RESOURCE_EXHAUSTED: 19 GiB"
    monkeypatch.setattr(pod_plan, "_lower", lambda *_: Lowered("INTERNAL: oh"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        pod_plan._plan(TINY, "tiny", "cpu", (8, 1), "train")


def _crash(*_):
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.medium
def test_a_compiler_that_crashes_takes_nothing_along(monkeypatch):
    monkeypatch.setattr(pod_plan, "_plan", _crash)
    config = pod_plan.PRESETS["smoke"]
    plan = pod_plan._plan_apart(config, "tiny", "v5e:2x2", (1, 4), "plain")
    assert (plan["fits"], plan["says"]) == (False, "the compiler crashed")
    assert (plan["mesh"], plan["rows"]) == ("data=1,model=4", 2)
