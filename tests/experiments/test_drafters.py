"""What the comparison of drafters claims, and what not where arms are missing."""

import types

import numpy as np
import pytest

from experiments import drafters

NAMES = [f"rows that differ, T={t}" for t in (0, 1)]


def claims(found):
    """Id -> all that is reported of it."""
    made = {}

    def claim(id_, text, **rest):
        made[id_] = {"claim": text, **rest}

    report = types.SimpleNamespace(claim=claim)
    drafters._claims(found, 10, drafters.Config(), report)
    assert set(made) == set(drafters.CLAIMS)
    return made


def row(tokens, ratios=(1.0, 1.2), differing=0):
    return {
        "tokens per call, T=1": tokens, "ratios": np.array(ratios),
        "wall clock over plain": float(np.mean(ratios)),
        **dict.fromkeys(NAMES, differing),
    }  # fmt: skip


def test_claims_are_means_with_their_intervals():
    made = claims({
        "prompt lookup": [row(1.25)],
        "medusa": [row(2.0), row(2.5), row(3.0)],
        "mask tokens": [row(1.5, (2.0, 2.2)), row(1.5), row(1.5)],
        "mask tokens, linear": [row(1.4, differing=1)],
    })  # fmt: skip
    over = made["trained_over_lookup_t1"]
    assert over["measured"] == 2.0 and over["n"] == 3 and "medusa" in over["claim"]
    assert over["ci95"][0] == pytest.approx(2 - 4.3027 * 0.4 / 3**0.5, abs=1e-3)
    least = made["drafts_help_each"]
    assert least["measured"] == 1.4 and least["ci95"] is None and least["n"] == 1
    assert made["lossless"]["measured"] == 2 and made["lossless"]["n"] == 80
    assert made["mtp_gate"]["measured"] == 2 and made["mtp_gate"]["n"] == 40
    fastest = made["wall_clock_best"]
    assert fastest["measured"] == 2.1 and "(mask tokens)" in fastest["claim"]
    half = 12.7062 * np.std([2.0, 2.2], ddof=1) / 2**0.5
    assert fastest["ci95"] == pytest.approx((2.1 - half, 2.1 + half), abs=1e-3)


def test_what_was_left_out_is_not_measured():
    made = claims({"token recycling": [row(1.5)]})
    for id_ in ("trained_over_lookup_t1", "drafts_help_each", "mtp_gate"):
        assert "not measured" in made[id_]["claim"] and made[id_]["n"] == 0
        assert made[id_]["reason"] == drafters._LEFT_OUT
    assert made["mtp_gate"]["measured"] != made["mtp_gate"]["bound"]
