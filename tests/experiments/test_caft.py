"""The tasks of the experiment on auxiliary heads, and when its tuning stops."""

import numpy as np
import pytest

from experiments import caft
from jtok import predict
from jtok.testing import tiny_model


def test_a_star_has_one_path_to_its_goal():
    config = caft.Config(graphs=20, arms=3, arm=3)
    made = caft._stars(config, 0)
    assert [len(made[name]["tokens"]) for name in ("train", "asked", "unseen")] == [
        20, 2, 2,
    ]  # fmt: skip
    for row, labels in zip(made["unseen"]["tokens"], made["unseen"]["labels"]):
        text = bytes(row.tolist()).decode().rstrip("\0")
        edges, _, rest = text.partition("|")
        (start, goal), path = rest[:2], rest[3:].strip()
        next_of = {}
        for one, two in edges.split(","):
            next_of.setdefault(one, []).append(two)
        assert len(next_of.pop(start)) == 3
        found = [path[0]]
        while found[-1] in next_of:
            found += next_of[found[-1]]
        assert "".join(found) == path and path[-1] == goal
        assert bytes(labels[labels >= 0].tolist()).decode() == path
    fresh = caft._stars(config, 1)["train"]["tokens"]
    assert (fresh != made["train"]["tokens"]).any()


@pytest.mark.medium
def test_tuning_stops_and_keeps_its_best_epoch(tmp_path, monkeypatch):
    """Of five epochs the second is the worse one, and patience is one."""
    monkeypatch.setenv("JTOK_CACHE", str(tmp_path))
    losses, seen = iter([2.0, 2.5]), []

    def judged(model, *_):
        seen.append(model)
        return [next(losses)]

    monkeypatch.setattr(caft, "_judged", judged)
    model = tiny_model()
    rows = np.tile(np.arange(8, dtype=np.int32), 2)[None].repeat(8, 0)
    config = caft.Config(epochs=5, patience=1, learning_rate=1e-2)
    report = type(
        "Report", (), {"artifact": lambda *_: None, "metric": lambda *_, **__: None}
    )()
    folder, loss = caft._full_tuned(
        model, None, lambda step: {"tokens": rows}, [], 2, (0.0, 0), {}, config, report
    )
    assert loss == 2.0 and len(seen) == 2
    adapters, scale = predict.load_adapters(folder, model)
    best = predict.merge(model.params, adapters, scale)
    kernel = lambda params: np.asarray(params["layers"][0]["mlp"]["up"]["kernel"])
    np.testing.assert_allclose(kernel(best), kernel(seen[0].params), atol=1e-6)
    assert np.abs(kernel(best) - kernel(seen[1].params)).max() > 1e-4
