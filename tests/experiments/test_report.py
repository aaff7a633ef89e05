"""The report: verdicts, what is refused, and the files that it writes."""

import hashlib
import json

import numpy as np
import pytest

from experiments import provenance
from experiments.report import CLAIM_FIELDS, RESULT_FIELDS, Report, ReportError, holds
from jtok.errors import ArgumentError, WriteError


def make(tmp_path, **options):
    preset = options.pop("preset", "small")
    return Report(tmp_path / "run", "slug", preset, {"seed": 1}, **options)


def claim(report, id="a", **changes):
    row = {"paper": "2.0", "measured": 1.0, "unit": "x", "op": ">=", "bound": 1.0}
    return report.claim(id, "claimed", **(row | changes))


@pytest.mark.parametrize(
    ("op", "verdicts"),
    [
        (">=", [False, True, True]),
        ("<=", [True, True, False]),
        (">", [False, False, True]),
        ("<", [True, False, False]),
        ("==", [False, True, False]),
    ],
)
def test_holds_compares_measured_with_bound(op, verdicts):
    assert [holds(value, op, 2) for value in (1, 2, 3)] == verdicts


def test_holds_refuses_what_it_cannot_compare():
    assert holds("token", "==", "token")
    with pytest.raises(ArgumentError, match="op"):
        holds("token", ">=", "none")
    with pytest.raises(ArgumentError, match="!="):
        holds(1, "!=", 2)


def test_results_have_the_whole_schema_in_order(tmp_path):
    report = make(tmp_path, claims=("a", "b"), source_hash="h")
    claim(report, "b", measured=np.float32(0.5), ci95=(0.4, 0.6), n=3, reason="small")
    claim(report, "a")
    report.artifact("lm", "key")
    report.table("t", [{"x": np.int64(1)}, {"x": 2, "y": float("nan")}])
    returned = report.finish(1.234567)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results == returned
    assert tuple(results) == RESULT_FIELDS
    assert tuple(results["claims"][0]) == CLAIM_FIELDS
    assert [c["id"] for c in results["claims"]] == ["a", "b"]
    assert [c["holds"] for c in results["claims"]] == [True, False]
    assert [c["reason"] for c in results["claims"]] == [None, "small"]
    assert results["claims"][1]["ci95"] == [0.4, 0.6]
    assert results["tables"] == {"t": [{"x": 1}, {"x": 2, "y": None}]}
    assert results["artifacts"] == [{"name": "lm", "key": "key"}]
    assert results["wall_s"] == 1.23
    assert set(results["versions"]) == {
        "jtok",
        "jax",
        "jaxlib",
        "flax",
        "numpy",
        "python",
    }
    assert results["device"]["platform"] == "cpu"


def test_a_failing_claim_needs_a_reason(tmp_path):
    report = make(tmp_path)
    assert claim(report, measured=0.5) is False
    with pytest.raises(ReportError, match=r"'a' fails \(0.5 >= 1.0\)"):
        report.finish(1)
    assert not (tmp_path / "run" / "results.json").exists()
    kept = json.loads((tmp_path / "run" / "rejected.json").read_text())
    assert kept["claims"][0]["measured"] == 0.5


def test_smoke_says_why_it_cannot_judge(tmp_path):
    report = make(tmp_path, preset="smoke")
    claim(report, measured=0.5)
    assert "smoke" in report.finish(1)["claims"][0]["reason"]


def test_a_missing_claim_is_named(tmp_path):
    report = make(tmp_path, claims=("a", "faster"))
    claim(report)
    with pytest.raises(ReportError, match="'faster' was not reported"):
        report.finish(1)


def test_claims_refuse_bad_values(tmp_path):
    report = make(tmp_path, claims=("a",))
    with pytest.raises(ArgumentError, match="CLAIMS"):
        claim(report, "other")
    with pytest.raises(ArgumentError, match="finite"):
        claim(report, measured=float("nan"))
    with pytest.raises(ArgumentError, match="op"):
        claim(report, op="~")
    claim(report)
    with pytest.raises(ArgumentError, match="once"):
        claim(report)


def test_data_is_hashed(tmp_path):
    report = make(tmp_path)
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert report.data("a", file) == report.data("b", b"abc", kind="synthetic")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_bytes(b"abc")
    before = report.data("d", tmp_path / "d")
    (tmp_path / "d" / "x").rename(tmp_path / "d" / "y")
    assert provenance.sha256(tmp_path / "d") != before
    assert report.data("known", sha256=expected) == expected
    with pytest.raises(ArgumentError, match="content"):
        report.data("e")
    rows = report.finish(1)["data"]
    assert rows[0] == {"name": "a", "kind": "real", "sha256": expected}
    assert rows[1]["kind"] == "synthetic"
    with pytest.raises(ArgumentError, match="kind"):
        report.data("c", b"", kind="fake")


def test_seeds_come_from_the_config(tmp_path):
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Config:
        seeds: tuple[int, ...] = (4, 5)

    report = Report(tmp_path / "run", "s", "small", Config())
    assert report.finish(0)["seeds"] == [4, 5]


def test_pictures_stand_in_the_report(tmp_path):
    from matplotlib.figure import Figure

    report = make(tmp_path)
    fig = Figure(figsize=(2, 1))
    fig.add_subplot().plot([1, 2])
    report.figure("Loss curve", fig)
    report.text("Some *words*.")
    report.tokens("By call", [("def f", 0), ("(x):\n    ", 1), ("<b>$1$ \t" * 30, 12)])
    report.finish(1)
    folder = tmp_path / "run"
    markdown = (folder / "report.md").read_text()
    for name in ("loss_curve.png", "by_call.png"):
        assert f"({name})" in markdown
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    page = (folder / "by_call.html").read_text()
    assert "&lt;b&gt;" in page
    assert page.count("<span") == 3
    assert markdown.index("loss_curve") < markdown.index("Some *words*")
    report.tokens("Any text", [("\x00\r\u4e2d\ufffd", 0)])
    with pytest.raises(ArgumentError, match="picture name"):
        report.tokens("By call", [])


def test_tokens_are_laid_out_without_losing_text():
    from experiments import pictures

    tokens = [("x" * 100, 0), ("\n", 1), ("end", 2)]
    pieces = list(pictures._layout(tokens))
    assert (
        "".join(text for *_, text, group in pieces if group != 1) == "x" * 100 + "end"
    )
    assert [(line, column) for line, column, *_ in pieces] == [
        (0, 0),
        (1, 0),
        (1, 4),
        (2, 0),
    ]


def test_table_cells_cannot_break_the_table(tmp_path):
    report = make(tmp_path)
    report.table("t", [{"a": "x|y\nz"}])
    report.finish(1)
    assert r"| x\|y z |" in (tmp_path / "run" / "report.md").read_text()


def test_a_process_that_does_not_write_writes_nothing(tmp_path):
    from matplotlib.figure import Figure

    report = make(tmp_path, writes=False)
    report.metric(step=1)
    report.figure("f", Figure())
    report.tokens("t", [("a", 0)])
    claim(report)
    assert report.finish(1)["claims"][0]["holds"]
    assert not (tmp_path / "run").exists()


def test_progress_passes_items_through(tmp_path, capsys):
    assert list(make(tmp_path).progress([1, 2], "walking")) == [1, 2]
    assert "walking" in capsys.readouterr().err


def test_unwritable_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(WriteError, match="run"):
        make(tmp_path)


CODE = '''"""Doc."""
# comment
class A:
    """Doc."""
    x = 1
    """Attribute doc."""

    def f(self, a, b="text"):
        """Doc."""
        return f"{a}-{b}" + "text"
'''


def hash_of(tmp_path, code):
    path = tmp_path / "code.py"
    path.write_text(code)
    return provenance.source_hash(path, (), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""Doc."""', '"""Other words."""', True),
        ("# comment\n", "", True),
        ('    """Attribute doc."""\n', "", True),
        ('        """Doc."""\n', "", True),
        ("a, b=", "a,\n          b=", True),
        ("x = 1", "x = 2", False),
        ("x = 1", "x = 1.0", False),
        ('+ "text"', '+ "Text"', False),
        ("{a}-{b}", "{b}-{a}", False),
        ("{a}-{b}", "{a}+{b}", False),
        ('b="text"', "b=None", False),
    ],
)
def test_source_hash_follows_code_and_not_words(tmp_path, old, new, same):
    assert old in CODE
    changed = hash_of(tmp_path, CODE.replace(old, new))
    assert (changed == hash_of(tmp_path, CODE)) is same


def test_source_hash_covers_the_named_files(tmp_path):
    path = tmp_path / "e.py"
    path.write_text("x = 1\n")
    (tmp_path / "lib.py").write_text("y = 1\n")
    before = provenance.source_hash(path, ("lib*.py",), tmp_path)
    (tmp_path / "lib.py").write_text("y = 2\n")
    assert provenance.source_hash(path, ("lib*.py",), tmp_path) != before
    with pytest.raises(ArgumentError, match="matches no file"):
        provenance.source_hash(path, ("missing/*.py",), tmp_path)


def test_source_hash_is_pinned():
    # The same on every Python version: a change here invalidates all results.
    import ast

    pieces = provenance._canonical(ast.parse('x = f"a{b!r:>3}"'))
    assert "".join(pieces) == (
        "(Module body=[(Assign targets=[(Name id=str:'x'),] value=(JoinedStr values=["
        "(Constant value=str:'a'),(FormattedValue value=(Name id=str:'b') "
        "conversion=int:114 format_spec=(JoinedStr values=[(Constant value=str:'>3'),]"
        ")),])),])"
    )


@pytest.mark.parametrize(
    ("platform", "kind", "count", "expected"),
    [
        ("cpu", "cpu", 1, "cpu-2core"),
        ("cpu", "cpu", 8, "cpu-2core-x8"),
        ("gpu", "NVIDIA H200", 1, "nvidia-h200"),
        ("tpu", "TPU v5 lite", 4, "tpu-v5-lite-x4"),
    ],
)
def test_device_slug(platform, kind, count, expected):
    described = {"platform": platform, "kind": kind, "count": count, "cpus": 2}
    assert provenance.device_slug(described) == expected
