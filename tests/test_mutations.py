"""The list of faults applies, and every fault is killed by the test it names."""

import pathlib
import re

import pytest

from jtok.papers import PAPERS
from tests import mutations
from tests.mutations import MUTATIONS

ALL = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.id)


@ALL
def test_applies_and_names_a_test(mutation):
    assert "\n" not in mutation.before + mutation.after
    assert mutation.before != mutation.after
    assert mutations.occurrences(mutation) == 1
    file, _, name = mutation.killed_by.partition("::")
    text = (mutations.ROOT / file).read_text(encoding="utf-8")
    function = name.split("::")[-1].split("[")[0]
    assert re.search(rf"^\s*def {function}\(", text, re.MULTILINE), mutation.killed_by


def test_ids_are_unique():
    assert len({mutation.id for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize(
    "slug", [paper.slug for paper in PAPERS if paper.status == "works"]
)
def test_three_faults_a_paper(slug):
    assert sum(mutation.slug == slug for mutation in MUTATIONS) >= 3


@pytest.mark.parametrize(
    "outcomes, reason",
    [
        ([], "no test ran"),
        ([["t", "call", "passed", []]], "the test passed"),
        ([["t", "call", "skipped", ["Skipped"]]], "the test passed"),
        ([["t", "setup", "failed", ["AssertionError"]]], "did not get to run"),
        (
            [["t", "call", "failed", ["NameError", "Exception"]]],
            "not with an assertion",
        ),
        ([["t", "call", "failed", ["AssertionError", "Exception"]]], None),
        ([["a", "call", "passed", []], ["t", "call", "failed", ["Failed"]]], None),
    ],
)
def test_only_an_assertion_kills(outcomes, reason):
    copy = pathlib.Path("/copy")
    report = {"jtok": "/copy/jtok/__init__.py", "outcomes": outcomes}
    found = mutations.verdict(report, copy)
    assert (found is None) if reason is None else (reason in found)
    elsewhere = {**report, "jtok": "/installed/jtok/__init__.py"}
    assert "did not import the copy" in mutations.verdict(elsewhere, copy)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return mutations.copy_project(tmp_path_factory.mktemp("mutations").resolve())


@pytest.mark.mutation
def test_the_named_tests_pass_without_a_fault(copy):
    report, printed = mutations.run_tests(
        copy, sorted({m.killed_by for m in MUTATIONS})
    )
    assert report["code"] == 0, printed[-3000:]
    assert all(outcome == "passed" for _, _, outcome, _ in report["outcomes"]), report


@pytest.mark.mutation
def test_a_harmless_change_survives(copy):
    harmless = MUTATIONS[0]._replace(before='"""Finds real', after='"""Seeks real')
    assert "the test passed" in mutations.survives(harmless, copy)


@pytest.mark.mutation
@ALL
def test_killed(mutation, copy):
    assert mutations.survives(mutation, copy) is None
