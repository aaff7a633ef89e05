"""Seeds, clocks and answers of the experiment on joint sampling."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from experiments import diffusion_joint_sampling as joint
from experiments import masked_models
from jtok import predict
from tests.predict.masked_models import table_denoiser


def test_rows_of_different_counts_have_seeds_of_their_own():
    firsts = [masked_models.first_seed(k, s) for s in range(85) for k in range(50)]
    assert len(set(firsts)) == len(firsts)
    assert np.diff(sorted(firsts)).min() >= 10**6 and max(firsts) + 10**6 < 2**32


def test_draws_of_different_counts_are_independent(monkeypatch):
    """And the same with and without a layer, so that K = 1 can be compared."""
    seen = {}

    def fake(model, rows, *, pace, seed, layer=None, **how):
        seen[pace.tokens, layer is not None] = seed
        assert how["temperature"] == 1.0

    monkeypatch.setattr(predict, "sample_masked", fake)
    part = joint.Part(seq=4, samples=100)
    model = SimpleNamespace(config=SimpleNamespace(mask_token_id=3))
    made = joint.Made(model, "layer", None, None, 0.0)
    for count in joint.KS:
        for layer in (False, True):
            joint._samples(made, part, count, joint=layer, seed=2)
    assert all(seen[count, False] == seen[count, True] for count in joint.KS)
    assert len({seen[count, False] // 100 for count in joint.KS}) == len(joint.KS)


def test_compiling_is_not_on_the_clock(monkeypatch):
    """The first call takes a minute here, each of the others a second."""
    clock, shapes = [0.0], []
    fill = predict.sample_masked

    def slow(model, rows, **how):
        clock[0] += 1.0 if shapes else 60.0
        shapes.append(rows.shape)
        return fill(model, rows, **how)

    monkeypatch.setattr(masked_models.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(predict, "sample_masked", slow)
    rows = np.full((5, 3), 3, np.int32)
    rows[:, 0] = 1
    model, how = table_denoiser(), {"temperature": 1.0}
    tokens, rate = masked_models.timed_fill(model, rows, size=2, seed=7, **how)
    assert set(shapes) == {(2, 3)} and rate == 4.0  # two masks of two rows a second
    np.testing.assert_array_equal(tokens, fill(model, rows, seed=7, **how).tokens)


def test_rows_of_two_counts_are_resampled_apart():
    nats = {("layer", 4): np.array([1.0, 2.0]), ("layer", 1): np.array([5.0, 9.0])}
    assert joint._shift(nats, "layer") == 5.5
    assert joint._shift(nats, "layer", np.array([[0, 0], [1, 1]])) == 8.0


def test_answers_end_at_the_first_end():
    row = np.array([4, 5, 0, 6])
    assert masked_models._until(row, {0, 9}).tolist() == [4, 5]
    assert masked_models._until(row, {9}).tolist() == [4, 5, 0, 6]
    assert masked_models._last_number("so 3 and $1,200.") == "1200"
    assert masked_models._last_number("none") is None


def test_a_layer_for_instructions_is_taught_on_answers(monkeypatch, tmp_path):
    """As the paper's: cold, of few tokens, up to the end, which is not learnt."""
    path = tmp_path / "questions.json"
    path.write_text('[{"query": "ab"}, {"query": "much too long"}, {"query": "c"}]')
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(path))
    taught = {}

    def collect(base, rows, **how):
        taught.update(how, rows=rows)
        tokens = np.where(rows == 99, [[0, 0, 7, 7, 0, 0], [0, 0, 7, 7, 7, 7]], rows)
        return predict.Trajectories(tokens, tokens, np.array([2, 4]))

    monkeypatch.setattr(predict, "collect_trajectories", collect)
    base = SimpleNamespace(
        vocabulary=SimpleNamespace(
            encode_chat=lambda talk: [5] * len(talk[0]["content"])
        ),
        config=SimpleNamespace(mask_token_id=99),
        generation_config=SimpleNamespace(pad_token_id=0, eos_token_ids=(0,)),
    )
    config = dataclasses.replace(
        joint.PRESETS["instruct"], questions="a/b:c.json", new_tokens=4, characters=4
    )
    _, valid, learnt = masked_models._taught(base, config)
    assert taught["rows"].tolist() == [[5, 5, 99, 99, 99, 99], [0, 5, 99, 99, 99, 99]]
    assert taught["temperature"] == 0.1 and taught["top_p"] == 0.9
    assert taught["cut_id"] == 0 and "forbid" not in taught
    assert valid.sum(1).tolist() == [6, 5]
    assert learnt.astype(int).tolist() == [[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]]


def test_the_instruct_preset_is_the_papers():
    config = joint.PRESETS["instruct"]
    assert (config.new_tokens, config.trajectories, config.problems) == (
        256, 20_000, 250,
    )  # fmt: skip
    assert "MetaMathQA" in config.questions and config.answers == (1.0, 0.9)
