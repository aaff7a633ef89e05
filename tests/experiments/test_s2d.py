"""What the experiment on sorted drafts chooses, times and claims."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from experiments import s2d
from jtok.testing import tiny_model
from tests.predict.nested import EXITS, nested_model

CONFIG = dataclasses.replace(
    s2d.PRESETS["smoke"], exits=EXITS, official=(0.5, 0.5, 0.0), new_tokens=8
)


class FakeReport:
    """Keeps what is claimed."""

    def __init__(self):
        self.claims, self.tables = {}, {}

    def claim(self, id, claim, **how):
        self.claims[id] = how | {"claim": claim}

    def table(self, name, rows):
        self.tables[name] = rows

    def progress(self, items, name):
        return items


def test_a_setting_is_chosen_on_other_prompts_than_it_is_reported_on():
    """The setting that is best where it is chosen is the worst where it is reported."""
    speeds = {}
    for target in ("a", "b"):
        for name in s2d._settings(CONFIG):
            lure = name.endswith(("published", "exit 1"))
            value = s2d.Speeds(9.0, 2.0, 0.5) if lure else s2d.Speeds(9.0, 1.0, 3.0)
            speeds[0.0, target, 0, name] = value
    speeds[0.0, "a", 0, "SFT, exit 1"] = s2d.Speeds(9.0, 2.0, 0.25)
    speeds[0.0, "b", 0, "SoFT, exit 1"] = s2d.Speeds(9.0, 0.5, 0.25)
    report = FakeReport()
    s2d._claim_speeds(CONFIG, {"a": None, "b": None}, speeds, report)
    measured = {id: claim["measured"] for id, claim in report.claims.items()}
    assert measured["s2d_over_sft"] == round(0.5 / 0.375, 4)
    # At "b" another fixed exit is chosen, which is fast there.
    assert measured["s2d_near_best"] == round(0.5 / 3.0, 4)
    assert measured["s2d_robust"] == round(0.5 / 0.375, 4)


def test_speeds_are_those_of_the_prompts_that_are_asked_for():
    stats = SimpleNamespace(
        row_calls=np.array([2, 4, 2, 4]), row_emitted=np.array([8, 4, 8, 4])
    )
    left = np.array([[4, 0, 0], [0, 0, 8]] * 2)
    out = SimpleNamespace(stats=stats, drafter_state=SimpleNamespace(left=left))
    draft, target = nested_model(), tiny_model()
    costs = s2d.exit_costs(draft, EXITS, target)
    for rows, tokens, drafts, cost in (
        (s2d.CHOOSE, 4.0, 2.0, costs[0]),
        (s2d.REPORT, 1.0, 2.0, costs[2]),
        (s2d.ALL, 2.0, 2.0, (costs[0] + 2 * costs[2]) / 3),
    ):
        found = s2d._modelled(CONFIG, draft, target, out, None, rows)
        np.testing.assert_allclose(found, tokens / (1 + drafts * cost))


def test_a_fixed_exit_is_timed_without_the_tests_of_others():
    draft = nested_model()
    alone = s2d._timed_chain(CONFIG, draft, (2.0, 0.0, 0.0), 1)
    assert len(alone.params["model"]["layers"]) == EXITS[1]
    assert alone.params["thresholds"].shape == (1,)
    several = s2d._timed_chain(CONFIG, draft, (0.5, 0.5, 0.0), None)
    assert several.params["thresholds"].tolist() == [0.5, 0.5, 0.0]


def test_wall_clock_is_that_of_the_largest_target(monkeypatch):
    """Which is the second one here; a call of it takes as long as is told."""
    small, large = tiny_model(), nested_model()
    plain = {id(small): 1.0, id(large): 3.0}

    def fake(target, prompt, *, drafter, **options):
        seconds = plain[id(target)]
        if drafter is not None and drafter.params["thresholds"].shape == (3,):
            seconds = 0.5 if target is small else 2.0
        return SimpleNamespace(stats=SimpleNamespace(decode_seconds=seconds))

    monkeypatch.setattr(s2d, "generate", fake)
    drafts, report = {("SoFT", 0): nested_model()}, FakeReport()
    targets = {"small": small, "large": large}
    s2d._report_wall_clock(CONFIG, targets, drafts, [[1], [2]], report)
    assert report.claims["wall_clock"]["measured"] == 1.5
