"""What an experiment writes: metrics, claims with their verdicts, and pictures."""

import dataclasses
import html
import json
import math
import operator
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from experiments import provenance
from jtok.errors import ArgumentError, JtokError, WriteError, check
from jtok.files import write_atomic

__all__ = [
    "CLAIM_FIELDS",
    "DATA_KINDS",
    "OPERATORS",
    "RESULT_FIELDS",
    "Report",
    "ReportError",
    "holds",
]

T = TypeVar("T")
Number = bool | int | float | str

OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
DATA_KINDS = ("real", "synthetic")
CLAIM_FIELDS = (
    "id",
    "claim",
    "paper",
    "measured",
    "unit",
    "op",
    "bound",
    "ci95",
    "n",
    "holds",
    "reason",
)
RESULT_FIELDS = (
    "experiment",
    "preset",
    "seeds",
    "versions",
    "device",
    "source_hash",
    "data",
    "artifacts",
    "wall_s",
    "claims",
    "tables",
)


class ReportError(JtokError, ValueError):
    """An experiment finished without saying everything it promised."""


def holds(measured: Number, op: str, bound: Number) -> bool:
    """Decides a claim: `measured op bound`.

    Args:
      measured: what the run found.
      op: one of `OPERATORS`.
      bound: what the claim asks for.

    Returns:
      Whether the comparison is true.

    Raises:
      ArgumentError: unknown `op`, or an order asked of texts.
    """
    check(op in OPERATORS, "op", op, f"one of {', '.join(OPERATORS)}")
    texts = isinstance(measured, str) or isinstance(bound, str)
    check(not texts or op == "==", "op", op, "'==' where a text is compared")
    return bool(OPERATORS[op](measured, bound))


class Report:
    """Collects one run's figures and writes them under its folder.

    The folder gets `config.json` and `metrics.jsonl` from the start, and
    `results.json`, `report.md` and pictures at `finish`; a run that is interrupted
    leaves no `results.json`. With `writes=False` (every process but the first) the
    same calls are made and nothing is written.

    Args:
      folder: this run's own folder, made here.
      slug: the experiment's name.
      preset: the preset it started from.
      config: the experiment's frozen `Config`; `seed` or `seeds` is read from it.
      claims: claim ids that must be reported before `finish`.
      source_hash: hash of the code behind the figures.
      writes: whether this process writes.

    Raises:
      WriteError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        slug: str,
        preset: str,
        config: Any,
        *,
        claims: Sequence[str] = (),
        source_hash: str = "",
        writes: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.slug = slug
        self.preset = preset
        self.config = config
        self.writes = writes
        self.declared = tuple(claims)
        self.claims: list[dict[str, Any]] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self._source_hash = source_hash
        self._data: list[dict[str, str]] = []
        self._artifacts: list[dict[str, str]] = []
        self._sections: list[str] = []
        self._names: set[str] = set()
        if writes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteError(f"cannot make {self.folder}: {error}") from error
            self._write("config.json", _json(self._describe_config()))

    def metric(self, **row: Any) -> None:
        """Appends one row to `metrics.jsonl`, flushed at once.

        Args:
          **row: JSON-able values, e.g. `step=10, loss=3.2`; NaN becomes null.
        """
        if self.writes:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(row)) + "\n")

    def data(
        self,
        name: str,
        content: bytes | str | os.PathLike[str] | Sequence[Path] | None = None,
        *,
        kind: Literal["real", "synthetic"] = "real",
        sha256: str | None = None,
    ) -> str:
        """Records what data the run read.

        Args:
          name: how readers know it, e.g. `"text/brown.txt.gz"`.
          content: its bytes, its path, or several paths.
          kind: `"real"` or `"synthetic"`.
          sha256: instead of `content`, the hash of what was read.

        Returns:
          Its SHA-256, also written in the results.

        Raises:
          ArgumentError: another kind, or not exactly one of content and hash.
        """
        check(kind in DATA_KINDS, "kind", kind, f"one of {', '.join(DATA_KINDS)}")
        one = (content is None) != (sha256 is None)
        check(one, "content", content, "either content or sha256")
        digest = provenance.sha256(content) if content is not None else str(sha256)
        row = {"name": name, "kind": kind, "sha256": digest}
        if row not in self._data:
            self._data.append(row)
        return digest

    def artifact(self, name: str, key: str) -> None:
        """Records a cached or loaded thing that the run used.

        Args:
          name: what it is, e.g. `"small_lm"`.
          key: its cache key, or its public name and revision.
        """
        row = {"name": name, "key": str(key)}
        if row not in self._artifacts:
            self._artifacts.append(row)

    def claim(
        self,
        id: str,
        claim: str,
        *,
        paper: str,
        measured: Number,
        unit: str,
        op: str,
        bound: Number,
        ci95: tuple[float, float] | None = None,
        n: int | None = None,
        reason: str | None = None,
    ) -> bool:
        """Records a claim, what was measured, and whether it holds.

        Args:
          id: one of the experiment's `CLAIMS`.
          claim: what is claimed, in one sentence.
          paper: the paper's own figure or statement, in words.
          measured: the figure of this run.
          unit: of `measured` and `bound`, e.g. `"tokens/call"`.
          op: `>=`, `<=`, `>`, `<` or `==`.
          bound: what `measured` is compared with.
          ci95: 95% interval of `measured`, if it was estimated.
          n: number of samples behind `measured`.
          reason: why it fails at this scale; kept only where it fails.

        Returns:
          Whether it holds.

        Raises:
          ArgumentError: an id that was not declared or was already reported, a
            value that is not finite, or an `op` that does not exist.
        """
        allowed = not self.declared or id in self.declared
        check(allowed, "id", id, f"one of CLAIMS ({', '.join(self.declared)})")
        check(id not in {c["id"] for c in self.claims}, "id", id, "each id once")
        measured, bound = _plain(measured), _plain(bound)
        for argument, value in (("measured", measured), ("bound", bound)):
            check(value is not None, argument, value, f"a finite value (claim {id})")
        verdict = holds(measured, op, bound)
        row = {
            "id": id,
            "claim": claim,
            "paper": paper,
            "measured": measured,
            "unit": unit,
            "op": op,
            "bound": bound,
            "ci95": None if ci95 is None else _plain(list(ci95)),
            "n": _plain(n),
            "holds": verdict,
            "reason": None if verdict else self._reason(reason),
        }
        self.claims.append(row)
        return verdict

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Records a table; it stands in `results.json` and in `report.md`.

        Args:
          name: its title, once per run.
          rows: one mapping a row; columns in order of first appearance.

        Raises:
          ArgumentError: a table of that name exists.
        """
        check(name not in self.tables, "name", name, "a table name not used yet")
        self.tables[name] = [_plain(dict(row)) for row in rows]
        self._sections.append(f"### {name}\n\n{_markdown_table(self.tables[name])}")

    def text(self, markdown: str) -> None:
        """Adds a paragraph to `report.md`, in the order of the calls.

        Args:
          markdown: the paragraph.
        """
        self._sections.append(markdown.strip())

    def figure(self, name: str, fig: Any) -> None:
        """Saves a Matplotlib figure as a PNG, shows it in `report.md`, closes it.

        Args:
          name: its title; the file is named after it.
          fig: a `matplotlib.figure.Figure`.

        Raises:
          ArgumentError: a figure of that name exists.
        """
        file = self._file(name, "png")
        if self.writes:
            fig.savefig(self.folder / file, dpi=120, bbox_inches="tight")
        _close(fig)
        self._sections.append(f"### {name}\n\n![{name}]({file})")

    def tokens(self, name: str, tokens: Sequence[tuple[str, int]]) -> None:
        """Shows text with each token coloured by its group.

        Writes an HTML page, to read, and a PNG picture, shown in `report.md`.

        Args:
          name: title of the picture.
          tokens: text pieces in order and the group of each, e.g. the number of
            the model call that emitted it; colours repeat every ten groups.

        Raises:
          ArgumentError: a picture of that name exists.
        """
        from experiments import pictures

        page, picture = self._file(name, "html"), self._file(name, "png")
        if self.writes:
            self._write(page, pictures.tokens_page(name, tokens))
            fig = pictures.tokens_figure(tokens)
            with warnings.catch_warnings():
                # A model's text may hold letters that no font here has.
                warnings.filterwarnings("ignore", message="Glyph .* missing")
                fig.savefig(self.folder / picture, dpi=120)
        self._sections.append(
            f"### {name}\n\n![{name}]({picture})\n\n[the same as a page]({page})"
        )

    def progress(
        self, iterable: Iterable[T], label: str, *, total: int | None = None
    ) -> Iterable[T]:
        """Wraps an iterable in a progress bar on stderr.

        Args:
          iterable: what to walk through.
          label: text before the bar.
          total: its length, where it has none itself.

        Returns:
          The same items.
        """
        from tqdm import tqdm

        return tqdm(iterable, desc=label, total=total, disable=not self.writes)

    def finish(self, wall_s: float) -> dict[str, Any]:
        """Writes `report.md` and then `results.json`, the mark of a complete run.

        Args:
          wall_s: seconds that the run took.

        Returns:
          The content of `results.json`.

        Raises:
          ReportError: a declared claim was not reported, or one that fails has
            no reason. What was found is then in `rejected.json`.
        """
        results = self._results(wall_s)
        faults = self._faults()
        if self.writes:
            self._write("report.md", self._markdown(results))
            self._write("rejected.json" if faults else "results.json", _json(results))
        if faults:
            raise ReportError(f"{self.slug}: {'; '.join(faults)}.")
        return results

    def _results(self, wall_s: float) -> dict[str, Any]:
        seeds = getattr(self.config, "seeds", None)
        if seeds is None:
            seeds = [getattr(self.config, "seed", 0)]
        values = {
            "experiment": self.slug,
            "preset": self.preset,
            "seeds": [int(seed) for seed in seeds],
            "versions": provenance.versions(),
            "device": provenance.device(),
            "source_hash": self._source_hash,
            "data": self._data,
            "artifacts": self._artifacts,
            "wall_s": round(float(wall_s), 2),
            "claims": sorted(self.claims, key=self._order),
            "tables": self.tables,
        }
        return {field: values[field] for field in RESULT_FIELDS}

    def _order(self, claim: Mapping[str, Any]) -> int:
        return self.declared.index(claim["id"]) if self.declared else 0

    def _reason(self, reason: str | None) -> str | None:
        if reason is None and self.preset == "smoke":
            return (
                "The smoke preset shows that the code runs; it is too small to judge."
            )
        return reason

    def _faults(self) -> list[str]:
        reported = {claim["id"] for claim in self.claims}
        faults = [
            f"the declared claim {id!r} was not reported"
            for id in self.declared
            if id not in reported
        ]
        for claim in self.claims:
            if not claim["holds"] and not claim["reason"]:
                shown = f"{claim['measured']} {claim['op']} {claim['bound']}"
                faults.append(
                    f"claim {claim['id']!r} fails ({shown}) and gives no reason"
                )
        return faults

    def _describe_config(self) -> dict[str, Any]:
        from experiments import catalog

        config = self.config
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            config = dataclasses.asdict(config)
        return {
            "experiment": self.slug,
            "preset": self.preset,
            "config": config,
            "git": provenance.git_state(catalog.root()),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _file(self, name: str, suffix: str) -> str:
        file = "".join(c if c.isalnum() else "_" for c in name.lower()) + f".{suffix}"
        check(file not in self._names, "name", name, "a picture name not used yet")
        self._names.add(file)
        return file

    def _markdown(self, results: Mapping[str, Any]) -> str:
        device = results["device"]
        head = [
            f"# {self.slug} ({self.preset})",
            f"{device['count']} x {device['kind']} ({device['platform']}), "
            f"{device['cpus']} CPU cores ({device['cpu']}); {results['wall_s']} s; "
            f"seeds {', '.join(map(str, results['seeds']))}; jax "
            f"{results['versions']['jax']}, jtok {results['versions']['jtok']}.",
        ]
        claims = [_claim_row(claim) for claim in results["claims"]]
        if claims:
            head.append(f"## Claims\n\n{_markdown_table(claims)}")
        tail = []
        for title, rows in (("Data", self._data), ("Artifacts", self._artifacts)):
            if rows:
                tail.append(f"## {title}\n\n{_markdown_table(rows)}")
        sections = ["## Report", *self._sections] if self._sections else []
        return "\n\n".join([*head, *sections, *tail]) + "\n"

    def _write(self, name: str, content: str) -> None:
        write_atomic(self.folder / name, content)


def _close(fig: Any) -> None:
    import sys

    # Only figures made through pyplot are held open; importing it here would
    # choose a backend for callers that never did.
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)


def _plain(value: Any) -> Any:
    """Turns NumPy and JAX scalars and arrays into JSON values, non-finite to null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise ArgumentError(
        f"report: {type(value).__name__} {value!r} is not a JSON value."
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str, allow_nan=False) + "\n"


def _claim_row(claim: Mapping[str, Any]) -> dict[str, Any]:
    measured = _cell(claim["measured"])
    if claim["ci95"] is not None:
        low, high = claim["ci95"]
        measured += f" [{_cell(low)}, {_cell(high)}]"
    return {
        "claim": claim["claim"],
        "paper": claim["paper"],
        "measured": f"{measured} {claim['unit']}".strip(),
        "asked": f"{claim['op']} {_cell(claim['bound'])}",
        "n": "" if claim["n"] is None else claim["n"],
        "holds": "yes" if claim["holds"] else f"**no**: {claim['reason'] or '?'}",
    }


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return "(no rows)"
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    # A pipe or a newline would break the row.
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
