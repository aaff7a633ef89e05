"""The command line of every experiment.

```
python -m experiments.run --list
python -m experiments.run token_recycling
python -m experiments.run token_recycling --preset full --model Qwen/Qwen2.5-7B-Instruct
python -m experiments.run --all --preset smoke
```
"""

import argparse
import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import catalog, provenance
from experiments.catalog import Entry
from experiments.report import Report, ReportError
from jtok.errors import ArgumentError, JtokError, WriteError, near
from jtok.files import write_atomic

__all__ = ["commit", "main", "run_experiment"]

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130
_OPTIONS = (
    "--list",
    "--all",
    "--preset",
    "--out",
    "--mesh",
    "--distributed",
    "--wait",
    "--commit",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: words after the program's name; those of this process by default.

    Returns:
      Exit status: 0, 1 when an experiment failed, 2 for a mistake of the caller.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILURE
    except JtokError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except SystemExit as leaving:  # argparse and tyro have printed their message
        return leaving.code if isinstance(leaving.code, int) else USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted: no results.json was written", file=sys.stderr)
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    options, rest = _frame_parser().parse_known_args(words)
    slug = rest.pop(0) if rest and not rest[0].startswith("-") else None
    wants_help = any(word in ("-h", "--help") for word in rest)
    entries = catalog.find()
    if slug is None:
        _refuse_rest(rest, wants_help)
        if options.list:
            print(_listing(entries))
            return 0
        if options.all and not wants_help:
            return _run_all(entries, options)
        print(
            _frame_parser().format_help(), file=sys.stdout if wants_help else sys.stderr
        )
        return 0 if wants_help else USAGE_ERROR
    if options.list or options.all:
        raise ArgumentError(f"{slug}: give an experiment, --list or --all, not two.")
    entry = _entry(slug, entries)
    preset = options.preset or "small"
    config = _configure(entry, preset, rest)
    if options.distributed:
        _start_distributed(options.wait)
    with _mesh(options.mesh):
        folder = run_experiment(entry, preset, config, options.out)
    if options.commit and _is_first_process():
        print(f"committed {commit(folder)}")
    return 0


def _refuse_rest(rest: Sequence[str], wants_help: bool) -> None:
    if rest and not wants_help:
        tail = near(rest[0].lstrip("-"), [name.lstrip("-") for name in _OPTIONS])
        raise ArgumentError(
            f"option: got {rest[0]!r} before the name of an experiment{tail}"
        )


def run_experiment(entry: Entry, preset: str, config: Any, out: Path) -> Path:
    """Runs one experiment and writes its report.

    Args:
      entry: the experiment.
      preset: the preset that `config` started from.
      config: its `Config`.
      out: folder under which `<slug>/<time>/` is made.

    Returns:
      The run's folder.

    Raises:
      ReportError: a declared claim is missing, or one fails without a reason.
      WriteError: `out` cannot be written.
    """
    module = _import(entry)
    digest = provenance.source_hash(entry.path, entry.sources, catalog.root())
    first = _is_first_process()
    folder = _new_folder(Path(out) / entry.slug)
    report = Report(
        folder,
        entry.slug,
        preset,
        config,
        claims=entry.claims,
        source_hash=digest,
        writes=first,
    )
    start = time.perf_counter()
    try:
        module.run(config, report)
    except Exception:
        if first:
            write_atomic(folder / "traceback.txt", traceback.format_exc())
            print(f"failed; see {folder / 'traceback.txt'}", file=sys.stderr)
        raise
    results = report.finish(time.perf_counter() - start)
    if first:
        _print_claims(results)
        print(f"report: {folder / 'report.md'}")
    return folder


def commit(folder: Path, into: Path | None = None) -> Path:
    """Copies a run's `results.json` to where the repository keeps its figures.

    Args:
      folder: a finished run.
      into: results folder; `experiments/results` by default.

    Returns:
      The file, `<into>/<slug>/<preset>-<device>.json`.

    Raises:
      ArgumentError: the run did not finish.
      WriteError: the file cannot be written.
    """
    source = folder / "results.json"
    if not source.exists():
        raise ArgumentError(f"folder: {folder} holds no results.json; did it finish?")
    results = json.loads(source.read_text(encoding="utf-8"))
    name = f"{results['preset']}-{provenance.device_slug(results['device'])}.json"
    target = (into or catalog.folder() / "results") / results["experiment"] / name
    write_atomic(target, json.dumps(results, indent=1) + "\n")
    return target


def _frame_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        usage="%(prog)s (--list | --all | EXPERIMENT) [options] [--FIELD VALUE ...]",
        description="Runs experiments. EXPERIMENT --help shows its own fields.",
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="every paper, with its experiment")
    add("--all", action="store_true", help="run every experiment, one line each")
    add("--preset", metavar="NAME", help="smoke, small (default) or full")
    add("--out", type=Path, default=Path("runs"), help="where reports go (runs)")
    add("--mesh", metavar="AXIS=N,...", help="devices by axis, e.g. data=4,model=2")
    add("--distributed", action="store_true", help="start jax.distributed first")
    add(
        "--wait",
        type=int,
        default=300,
        metavar="SECONDS",
        help="how long --distributed waits for the other processes (300)",
    )
    add("--commit", action="store_true", help="keep results.json in the repository")
    return parser


def _entry(slug: str, entries: Mapping[str, Entry]) -> Entry:
    if slug in entries:
        return entries[slug]
    from jtok.papers import PAPERS

    if slug in {paper.slug for paper in PAPERS}:
        raise ArgumentError(
            f"experiment: {slug!r} is a planned paper and has no experiment yet. "
            f"Known: {', '.join(sorted(entries))}"
        )
    raise ArgumentError(f"experiment: no {slug!r}{near(slug, entries)}")


def _import(entry: Entry) -> Any:
    if entry.path.parent == Path(__file__).resolve().parent:
        return importlib.import_module(f"experiments.{entry.slug}")
    # A folder of the caller's own, as tests have.
    name = f"experiment_{provenance.sha256(str(entry.path).encode())[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, entry.path)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[name] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    return sys.modules[name]


def _configure(entry: Entry, preset: str, words: list[str]) -> Any:
    """Builds the config: the preset, overridden by the command line."""
    if preset not in entry.presets:
        tail = near(preset, entry.presets)
        raise ArgumentError(f"preset: {entry.slug} has no {preset!r}{tail}")
    import tyro

    module = _import(entry)
    config, unknown = tyro.cli(
        module.Config,
        prog=f"python -m experiments.run {entry.slug} --preset {preset}",
        description=module.__doc__,
        args=words,
        default=module.PRESETS[preset],
        return_unknown_args=True,
    )
    if unknown:
        known = [field.name.replace("_", "-") for field in dataclasses.fields(config)]
        known += [option.removeprefix("--") for option in _OPTIONS]
        typed = unknown[0].lstrip("-").replace("_", "-")
        raise ArgumentError(
            f"option: {entry.slug} has no {unknown[0]!r}{near(typed, known)}"
        )
    return config


def _run_all(entries: Mapping[str, Entry], options: argparse.Namespace) -> int:
    """Runs every experiment that has the preset; the small LM first."""
    preset = options.preset or "small"
    if options.distributed:
        _start_distributed(options.wait)
    failed = 0
    with _mesh(options.mesh):
        for slug in sorted(entries, key=lambda slug: (slug != "pretrain", slug)):
            failed += not _run_one(entries[slug], preset, options)
            _forget_compiled()
    print(f"{len(entries) - failed} of {len(entries)} experiments passed")
    return FAILURE if failed else 0


def _forget_compiled() -> None:
    """Lets go of what was compiled.

    Each such function holds mappings of memory, and Linux gives a process 65,530 of
    them: beyond those the compiler crashes.
    """
    import jax

    jax.clear_caches()
    gc.collect()


def _run_one(entry: Entry, preset: str, options: argparse.Namespace) -> bool:
    start = time.perf_counter()
    log = _log(Path(options.out), entry.slug)
    fault = ""
    with (
        log.open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            config = _configure(entry, preset, [])
            folder = run_experiment(entry, preset, config, options.out)
            if options.commit and _is_first_process():
                commit(folder)
        except (Exception, SystemExit) as error:
            # One broken experiment must not hide the state of the others.
            traceback.print_exc(file=file)
            fault = f"{type(error).__name__}: {error}".splitlines()[0]
    seconds = time.perf_counter() - start
    print(
        f"{'FAIL' if fault else 'pass'} {entry.slug:28} {seconds:7.1f} s"
        + (f"  {fault} (see {log})" if fault else ""),
        flush=True,
    )
    return not fault


def _log(out: Path, slug: str) -> Path:
    folder = out / slug
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write {folder}: {error}") from error
    return folder / ("last.log" if _is_first_process() else f"last-{os.getpid()}.log")


def _listing(entries: Mapping[str, Entry]) -> str:
    """Every paper with its experiment, then the experiments that are no paper."""
    from jtok.papers import PAPERS

    rows = [("experiment", "status", "presets (minutes)", "what it shows")]
    papers = {paper.slug for paper in PAPERS}
    for paper in PAPERS:
        entry = entries.get(paper.slug)
        shown = paper.claim if entry is None else entry.claim
        rows.append((paper.slug, paper.status, _presets(entry), shown))
    for slug, entry in entries.items():
        if slug not in papers:
            rows.append((slug, "-", _presets(entry), entry.claim))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(f"{row[i]:{widths[i]}}" for i in range(3)), row[3]])
        for row in rows
    )


def _presets(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    return ", ".join(
        f"{name} ({entry.minutes[name]:g})" if name in entry.minutes else name
        for name in entry.presets
    )


def _print_claims(results: Mapping[str, Any]) -> None:
    for claim in results["claims"]:
        mark = "holds" if claim["holds"] else "FAILS"
        measured = claim["measured"]
        shown = f"{measured:.4g}" if isinstance(measured, float) else f"{measured}"
        print(
            f"{mark}  {claim['id']}: {claim['claim']} -- {shown} {claim['unit']} "
            f"(asked {claim['op']} {claim['bound']})"
        )


def _new_folder(parent: Path) -> Path:
    """A folder name of this run's own; all processes get the same."""
    stamp = int(time.time())
    if _is_distributed():
        import numpy as np
        from jax.experimental import multihost_utils

        stamp = int(multihost_utils.broadcast_one_to_all(np.int32(stamp)))
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(stamp))
    if _is_distributed():
        return parent / name
    folder, count = parent / name, 1
    while folder.exists():
        count += 1
        folder = parent / f"{name}-{count}"
    return folder


def _is_distributed() -> bool:
    import jax

    return jax.distributed.is_initialized()


def _is_first_process() -> bool:
    import jax

    return not _is_distributed() or jax.process_index() == 0


def _start_distributed(wait: int) -> None:
    """Joins the other processes; it must be the first thing that JAX does."""
    import jax

    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = (os.environ.get(name) for name in names)
    who = "the other processes" if count is None else f"process {index} of {count}"
    where = "" if address is None else f" at {address}"
    advice = (
        "Start the same command on every worker at the same time (see tpu/README.md); "
        f"outside a TPU pod or a known scheduler set {names[0]}=host:port, {names[1]} "
        f"and {names[2]}, in each its own."
    )
    print(f"joining: {who}{where}, waiting up to {wait} s", flush=True)

    def give_up() -> None:
        late = f"not all processes came within {wait} s"
        print(f"error: --distributed: {late}. {advice}", file=sys.stderr, flush=True)
        os._exit(USAGE_ERROR)

    # JAX's own timeout ends the process inside the C++ runtime, without advice.
    clock = threading.Timer(wait, give_up)
    clock.daemon = True
    clock.start()
    try:
        # On a TPU pod or under a scheduler all three are found by JAX itself.
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
            initialization_timeout=wait + 60,
        )
    except (ValueError, RuntimeError) as error:
        raise ArgumentError(f"--distributed: {error} {advice}") from error
    finally:
        clock.cancel()
    print(f"process {jax.process_index()} of {jax.process_count()}", flush=True)


@contextlib.contextmanager
def _mesh(text: str | None) -> Iterator[None]:
    """Sets the mesh that `--mesh` asks for, for the time of the run."""
    if text is None:
        yield
        return
    axes = _parse_mesh(text)
    import jax

    count = 1
    for size in axes.values():
        count *= size
    if count != jax.device_count():
        hint = (
            f" Simulate them: XLA_FLAGS=--xla_force_host_platform_device_count={count}."
            if jax.default_backend() == "cpu"
            else ""
        )
        raise ArgumentError(
            f"--mesh: {text} asks for {count} devices, and there are "
            f"{jax.device_count()} ({jax.devices()[0].device_kind}).{hint}"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(axes)
    with jax.set_mesh(jax.make_mesh(tuple(axes.values()), tuple(axes), kinds)):
        yield


def _parse_mesh(text: str) -> dict[str, int]:
    axes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"([a-z_]+)=([1-9][0-9]*)", part.strip())
        if found is None or found[1] in axes:
            raise ArgumentError(
                f"--mesh: got {text!r}, expected axes once each with their sizes, "
                "e.g. data=4,model=2."
            )
        axes[found[1]] = int(found[2])
    return axes


if __name__ == "__main__":
    sys.exit(main())
