"""The small language model: made once, found again, and a model that has learned."""

import dataclasses
import json

import numpy as np
import pytest

import jtok
from experiments import pretrain
from jtok import train

pytestmark = pytest.mark.medium

TINY = dataclasses.replace(
    pretrain.PRESETS["smoke"],
    vocabulary=300,
    width=32,
    hidden=64,
    layers=1,
    heads=1,
    kv_heads=1,
    max_files=3,
    steps=12,
    length=32,
    learning_rate=4e-3,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv("JTOK_CACHE", str(root))
        yield root


@pytest.fixture(scope="module")
def folder(cache):
    return pretrain.small_lm(TINY)


def test_folder_is_a_whole_checkpoint(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    model = jtok.models.load(folder)
    assert model.vocabulary.size == 300
    assert model.config.num_layers == 1
    assert model.config.tied
    kept = {path.name for path in folder.parent.iterdir()}
    assert kept == {"cache_key.json", "metrics.jsonl", "model"}


def test_training_lowered_the_loss(folder):
    lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == TINY.steps
    assert losses[0] == pytest.approx(np.log(300), abs=0.3)
    assert losses[-1] < losses[0] - 0.2


def test_found_again_without_training(folder, monkeypatch):
    monkeypatch.setattr(train, "fit", None)
    assert pretrain.small_lm(TINY) == folder
    measured = dataclasses.replace(TINY, samples=9, held_out_characters=5)
    assert pretrain.small_lm(measured) == folder
    with pytest.raises(TypeError):
        pretrain.small_lm(dataclasses.replace(TINY, seed=1))


def test_killed_training_resumes_to_the_same_weights(folder, monkeypatch):
    real, calls = train.fit, []

    def killed(*args, steps, **options):
        calls.append(steps)
        if len(calls) == 1:
            real(*args, steps=steps // 2, **options)
            raise KeyboardInterrupt
        return real(*args, steps=steps, **options)

    config = dataclasses.replace(TINY, seed=2)
    whole = _weights(pretrain.small_lm(config))
    # The same training under another key, by a field that changes nothing else.
    again = dataclasses.replace(config, context=TINY.context * 2)
    monkeypatch.setattr(train, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.small_lm(again)
    resumed = _weights(pretrain.small_lm(again))
    assert len(calls) == 2
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def _weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_run_reports_both_claims(cache, folder, tmp_path):
    from experiments.report import Report

    report = Report(tmp_path / "run", "pretrain", "smoke", TINY, claims=pretrain.CLAIMS)
    pretrain.run(TINY, report)
    results = report.finish(1.0)
    measured = [claim["measured"] for claim in results["claims"]]
    assert all(1.0 < value < 8.0 for value in measured)
    assert results["artifacts"] == [{"name": "small_lm", "key": folder.parent.name}]
    assert "loss of the last 50" in (tmp_path / "run" / "report.md").read_text()
