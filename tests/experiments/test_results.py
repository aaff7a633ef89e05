"""Committed figures: complete, decided by their own numbers, made by this code."""

import json

import pytest

from experiments import catalog, provenance
from experiments.report import CLAIM_FIELDS, DATA_KINDS, RESULT_FIELDS, holds

RESULTS = catalog.folder() / "results"
FILES = sorted(RESULTS.rglob("*.json")) if RESULTS.is_dir() else []
ENTRIES = catalog.find()


def problems(results, entry, where, root):
    """What is wrong with one committed file, as a list of sentences."""
    if tuple(results) != RESULT_FIELDS:
        return [f"fields are {list(results)}"]
    found = []
    for claim in results["claims"]:
        if tuple(claim) != CLAIM_FIELDS:
            return [f"claim fields are {list(claim)}"]
        verdict = holds(claim["measured"], claim["op"], claim["bound"])
        if verdict is not claim["holds"]:
            found.append(f"claim {claim['id']} says holds={claim['holds']}")
        if not verdict and not claim["reason"]:
            found.append(f"claim {claim['id']} fails without a reason")
    ids = [claim["id"] for claim in results["claims"]]
    if sorted(ids) != sorted(entry.claims):
        found.append(f"claims are {ids}, declared are {list(entry.claims)}")
    for row in results["data"]:
        if set(row) != {"name", "kind", "sha256"} or row["kind"] not in DATA_KINDS:
            found.append(f"data row {row}")
    name = f"{results['preset']}-{provenance.device_slug(results['device'])}.json"
    if (results["experiment"], name) != where:
        found.append(f"stands at {where}")
    if results["preset"] not in entry.presets:
        found.append(f"preset {results['preset']} does not exist")
    made_by = provenance.source_hash(entry.path, entry.sources, root)
    if results["source_hash"] != made_by:
        found.append("source_hash: the code changed; run it again with --commit")
    return found


def test_committed_results():
    # One test for all, because an empty list of parameters would be a skip.
    found = {}
    for path in FILES:
        results = json.loads(path.read_text(encoding="utf-8"))
        name = f"{path.parent.name}/{path.name}"
        entry = ENTRIES.get(path.parent.name)
        if entry is None:
            found[name] = ["no such experiment"]
        else:
            where = (path.parent.name, path.name)
            found[name] = problems(results, entry, where, catalog.root())
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize("slug", ENTRIES)
def test_every_experiment_declares_itself(slug):
    entry = ENTRIES[slug]
    assert {"smoke", "small", "full"} <= set(entry.presets)
    assert len(set(entry.claims)) == len(entry.claims) > 0
    assert set(entry.minutes) <= set(entry.presets)
    provenance.source_hash(entry.path, entry.sources, catalog.root())


@pytest.fixture
def committed(fake):
    from experiments.run import main

    assert main(["double", "--preset", "smoke", "--commit"]) == 0
    path = next((fake / "results").rglob("*.json"))
    return json.loads(path.read_text()), ("double", path.name), fake


def check(committed, results=None):
    original, where, fake = committed
    entry = catalog.find()["double"]
    return problems(results or original, entry, where, fake.parent)


def test_a_fresh_result_passes(committed):
    assert check(committed) == []


def changed_claim(results, **changes):
    first, *rest = results["claims"]
    return results | {"claims": [first | changes, *rest]}


def test_an_edited_verdict_is_found(committed):
    results = committed[0]
    assert "holds=False" in check(committed, changed_claim(results, holds=False))[0]
    edited = check(committed, changed_claim(results, measured=3.0))
    assert edited[0].endswith("holds=True")
    lost = results | {"claims": results["claims"][:1]}
    assert "declared are" in check(committed, lost)[0]
    failing = changed_claim(results, measured=3.0, holds=False)
    assert "without a reason" in check(committed, failing)[0]


def test_an_incomplete_schema_is_found(committed):
    results = {k: v for k, v in committed[0].items() if k != "device"}
    assert "fields are" in check(committed, results)[0]


def test_changed_code_is_found_and_changed_words_are_not(committed):
    core = committed[2].parent / "lib" / "core.py"
    core.write_text('"""Other words."""\n\nX = 1  # comment\n')
    assert check(committed) == []
    core.write_text("X = 2\n")
    assert "source_hash" in check(committed)[0]
    core.write_text("X = 1\n")
    script = committed[2] / "double.py"
    script.write_text(script.read_text().replace("2 * config", "3 * config"))
    assert "source_hash" in check(committed)[0]
