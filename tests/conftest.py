"""The suite: strict JAX, no network, skips and goldens accounted for."""

import fnmatch
import gc
import hashlib
import itertools
import os
import pathlib
import socket

# Set before JAX is imported: eight CPU devices, programs that compile in half the time
# (tests run each of them once or twice), and nothing asked of a hub.
for _flag in (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):  # a given one stays
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jax
import jaxtyping
import pytest

import tests.typecheck  # noqa: F401  (the hook below finds it by name)

# Before anything imports jtok, so that every function of it is checked.
jaxtyping.install_import_hook("jtok", "tests.typecheck.check")

import jtok.testing
from jtok.errors import DataNotFoundError
from jtok.testing import goldens

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "goldens"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

hypothesis.settings.register_profile(
    "jtok",
    derandomize=True,
    deadline=None,
    max_examples=20,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jtok")


def _compile_cache() -> str:
    """A folder for compiled programs, of this kind of machine only.

    Compilations of 0.2 s and more are kept between runs. The folder's name
    hashes what the CPU can do, as code for another one may not run here.
    """
    given = os.environ.get("JTOK_TEST_COMPILE_CACHE")
    if given:
        return given
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kind = "".join(sorted({x for x in lines if x.startswith(("model name", "flags"))}))
    name = hashlib.sha256(kind.encode()).hexdigest()[:12]
    return str(ROOT / ".pytest_cache" / "jax" / name)


# What was traced stays in memory: looking through it often finds nothing to free.
gc.set_threshold(200_000, 20, 100)

jax.config.update("jax_compilation_cache_dir", _compile_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# Options, markers ------------------------


def pytest_addoption(parser):
    group = parser.getgroup("jtok")
    group.addoption(
        "--strict-skips",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail on a skip whose reason is not in tests/allowed_skips.txt",
    )
    group.addoption("--network", action="store_true", help="run the network tests")


def pytest_runtest_setup(item):
    for marker, backend in (("tpu", "TPU"), ("gpu", "GPU")):
        if item.get_closest_marker(marker) and jax.default_backend() != marker:
            pytest.skip(f"needs a {backend}")
    if item.get_closest_marker("network") and not item.config.getoption("--network"):
        pytest.skip("needs the network (run with --network)")


# No network ------------------------


def _is_local(family: int, address) -> bool:
    if family == getattr(socket, "AF_UNIX", None):
        return True
    host = address[0] if isinstance(address, tuple) else address
    return str(host) in ("localhost", "::1", "") or str(host).startswith("127.")


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    """Refuses every connection that leaves this machine."""
    if request.node.get_closest_marker("network"):
        return
    real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}

    def guarded(name):
        def connect(self, address, *rest):
            if not _is_local(self.family, address):
                raise RuntimeError(f"a test tried to reach the network at {address}")
            return real[name](self, address, *rest)

        return connect

    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host is not None and not _is_local(socket.AF_INET, (host,)):
            raise RuntimeError(f"a test tried to resolve {host}")
        return resolve(host, *args, **kwargs)

    for name in real:
        monkeypatch.setattr(socket.socket, name, guarded(name))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


# Compiled programs of one process ------------------------

# Each takes memory maps, of which a process may have 65,530 on Linux; the compiler
# crashes at the limit.
_MOST_MAPS = 25_000
_tests = itertools.count(1)


def _memory_maps() -> int:
    try:
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # another system, with another limit
        return 0


@pytest.fixture(autouse=True)
def _few_memory_maps():
    """Forgets compiled programs before there are too many of them."""
    yield
    if next(_tests) % 8 == 0 and _memory_maps() > _MOST_MAPS:  # counting takes a while
        jax.clear_caches()
        gc.collect()


# Fixtures ------------------------


@pytest.fixture(scope="session")
def golden():
    """`golden("slug/file.npz")`: the arrays, whose reading is accounted for."""
    return jtok.testing.load_golden


@pytest.fixture(scope="session")
def data():
    """`data("text/brown.txt.gz")`: path of real data, or the test is skipped."""

    def find(name: str) -> pathlib.Path:
        try:
            return jtok.testing.data(name)
        except DataNotFoundError:
            pytest.skip(f"real data {name} is not on this machine")

    return find


# Goldens: every array read or listed with a reason ------------------------


def unread_arrays(folder: pathlib.Path, accounts: dict[str, list[str]]) -> list[str]:
    """Arrays of the golden files below `folder` that no test accounted for.

    Args:
      folder: the goldens.
      accounts: unread names of each loaded file, by path; a file missing here was
        never loaded. JSON beside weights is a checkpoint's, read by the model loader.
    """
    problems = []
    for path in sorted(folder.rglob("*")):
        checkpoint = any(path.parent.glob("*.safetensors"))
        if path.suffix != ".npz" and (path.suffix != ".json" or checkpoint):
            continue
        name = path.relative_to(folder).as_posix()
        if str(path) not in accounts:
            problems.append(f"{name}: never loaded")
        problems.extend(f"{name}: {array}" for array in accounts.get(str(path), []))
    return problems


def _accounts() -> dict[str, list[str]]:
    return {str(path): file.unread() for path, file in goldens._LOADED.items()}


def _is_full_run(config) -> bool:
    """True where every test of the fast suite was selected.

    Goldens are read by tests that are not slow, so the slow run, a file named on the
    command line, -k, --lf, --deselect and the like decide nothing.
    """
    options = config.option
    default = {str(ROOT), str(ROOT / "tests")}
    named = {str(pathlib.Path(arg).resolve()) for arg in config.args}
    partial = (
        options.keyword
        or getattr(options, "lf", False)
        or getattr(options, "stepwise", False)
        or options.collectonly
        or options.deselect
        or getattr(options, "ignore", None)
        or options.maxfail
    )
    everything = options.markexpr in (
        "",
        "not slow",
        "not slow and not notebook",
        "not slow and not mutation and not notebook",
    )
    return everything and named <= default and not partial


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Under xdist: an array is unread where no worker read it."""
    merged = node.config.stash.setdefault(_WORKERS, {})
    for path, unread in getattr(node, "workeroutput", {}).get("goldens", {}).items():
        before = merged.get(path, unread)
        merged[path] = [name for name in unread if name in before]


_WORKERS = pytest.StashKey[dict]()
_PROBLEMS = pytest.StashKey[list]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["goldens"] = _accounts()
        return
    problems = config.stash.setdefault(_PROBLEMS, [])
    # A failed test stops before it has read its arrays: say nothing more then.
    if exitstatus == pytest.ExitCode.OK and GOLDENS.is_dir() and _is_full_run(config):
        accounts = config.stash.get(_WORKERS, None) or _accounts()
        unread = unread_arrays(GOLDENS, accounts)
        if unread:
            problems.append("golden arrays neither read nor listed with a reason")
            problems.extend(f"  {line}" for line in unread)
    if config.getoption("--strict-skips"):
        allowed = allowed_reasons()
        for reason in sorted(_skips(config)):
            if not any(fnmatch.fnmatchcase(reason, pattern) for pattern in allowed):
                problems.append(f"skip for a reason that is not listed: {reason}")
    if problems and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# Skips: counted by reason, refused in CI unless listed ------------------------


def allowed_reasons() -> list[str]:
    """The patterns of tests/allowed_skips.txt."""
    lines = (ROOT / "tests" / "allowed_skips.txt").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _skips(config) -> dict[str, int]:
    """Number of skipped tests by reason; expected failures are not skips."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    counts: dict[str, int] = {}
    for report in reporter.stats.get("skipped", []) if reporter else []:
        if isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        else:
            reason = str(report.longrepr)
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    terminalreporter.section("skips by reason")
    skips = _skips(config)
    for reason, count in sorted(skips.items()):
        terminalreporter.write_line(f"{count:4d}  {reason}")
    if not skips:
        terminalreporter.write_line("none")
    problems = config.stash.get(_PROBLEMS, [])
    if problems:
        terminalreporter.section("the session fails", red=True)
        for line in problems:
            terminalreporter.write_line(line)
