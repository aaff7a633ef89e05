"""Transplants are fast: sparse combinations against mergekit's on this machine.

The shapes are those of a vocabulary of 32,000 tokens that becomes one of 128,256, at
width 2048: as many shared tokens as Llama 2's and Llama 3's vocabularies have, 64 of
them in each new row. A slice of the new rows is solved by mergekit's `batch_omp`, in an
environment of its own, and by ours, with as many threads. Ours counts the products of
all shared tokens with each other, which a whole vocabulary needs once; so the time of
all new rows, at the measured rate, stands beside the slice's. Rows are drawn: lengths
and spectrum fall as those of trained embeddings do.

```
python -m experiments.run bench_transplant --peer path/to/python
```

`--peer` is a Python with torch and mergekit; without one, the comparisons say so and
fail. About 6 minutes on 2 free CPU cores, nearly all of it mergekit's.
"""

import dataclasses
import os
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.peers.process import Peer, PeerError
from jtok import embed, testing
from jtok.embed._gram_pursuit import gram_matrix
from jtok.errors import ArgumentError, DataNotFoundError
from jtok.text import Vocabulary, overlap

CLAIMS = ("slice_speedup", "vocabulary_speedup", "same_supports")
SOURCES = (
    "experiments/peers/omp_with_mergekit.py",
    "experiments/peers/process.py",
    "jtok/embed/_gram_pursuit.py",
    "jtok/embed/pursuit.py",
)
MINUTES = {"smoke": 0.2, "small": 6, "full": 6}
ABSENT = "torch and mergekit were not asked for: nothing was compared"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is raced.

    Attributes:
      anchors: shared tokens; 0 takes those of Llama 2's and 3's vocabularies.
      vocabulary: ids of the new vocabulary.
      width: of both models.
      k: shared tokens in a row.
      rows: of the slice.
      batch: rows at a time, of both.
      rounds: timed runs of ours; the peer runs once.
      peer: a Python that has torch and mergekit; "" for none.
      threads: of the peer; JAX uses the machine's.
      seed: of the rows.
    """

    anchors: int = 0
    vocabulary: int = 128_256
    width: int = 2048
    k: int = 64
    rows: int = 2048
    batch: int = 512
    rounds: int = 2
    peer: str = ""
    threads: int = 2
    seed: int = 0


PRESETS = {
    "smoke": Config(
        anchors=600, vocabulary=2000, width=64, k=8, rows=64, batch=32, rounds=1
    ),
    "small": Config(),
    "full": Config(rows=8192),
}


def run(config: Config, report: Any) -> None:
    """Races both and writes the report.

    Args:
      config: what to race.
      report: where the figures go.
    """
    count = config.anchors or _shared_tokens(report)
    targets, atoms = _drawn(config, count)
    ours = _ours(config, targets, atoms)
    theirs = _theirs(config, targets, atoms, report)
    peak = _peak()
    _table(config, count, ours, theirs, peak, report)
    _claims(config, count, ours, theirs, report)


def _shared_tokens(report: Any) -> int:
    """How many tokens of Llama 3's vocabulary are in Llama 2's."""
    try:
        old = Vocabulary.load(testing.data("tokenizers/llama2.model"))
        new = Vocabulary.load(testing.data("tokenizers/llama3.tiktoken"), "llama3")
    except DataNotFoundError:
        report.text("The vocabularies are not here: 20,000 shared tokens are assumed.")
        return 20_000
    return len(overlap(old, new).source_ids)


def _drawn(config: Config, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of targets and atoms: a falling spectrum, unequal lengths."""
    drawn = np.random.default_rng(config.seed)
    scale = (1 + np.arange(config.width)) ** -0.25
    rows = drawn.standard_normal((count + config.rows, config.width), np.float32)
    rows = rows * scale[None, :].astype(np.float32)
    lengths = np.exp(0.3 * drawn.standard_normal((len(rows), 1))).astype(np.float32)
    turn = np.linalg.qr(drawn.standard_normal((config.width, config.width)))[0]
    rows = (rows * lengths) @ turn.astype(np.float32)
    return rows[count:], rows[:count]


@dataclasses.dataclass(frozen=True)
class Ours:
    """Seconds of the products of all atoms, of the slice, and what was chosen."""

    gram: float
    slice: float
    indices: np.ndarray


def _ours(config: Config, targets: np.ndarray, atoms: np.ndarray) -> Ours:
    dictionary, grams, slices = jnp.asarray(atoms), [], []
    parts = [
        jnp.asarray(targets[start : start + config.batch])
        for start in range(0, config.rows, config.batch)
    ]
    indices: list[np.ndarray] = []
    for turn in range(config.rounds + 1):  # the first compiles
        began = time.perf_counter()
        gram = jax.block_until_ready(gram_matrix(dictionary))
        middle = time.perf_counter()
        found = [
            embed.orthogonal_pursuit(
                part, dictionary, config.k, implementation="gram", gram=gram
            )
            for part in (parts if turn else parts[:1])
        ]
        indices = [np.asarray(some.indices) for some in found]
        if turn:
            grams.append(middle - began)
            slices.append(time.perf_counter() - middle)
        del gram
    together = np.concatenate(indices)
    return Ours(float(np.median(grams)), float(np.median(slices)), together)


def _theirs(
    config: Config, targets: np.ndarray, atoms: np.ndarray, report: Any
) -> tuple[float, np.ndarray] | None:
    if not config.peer:
        report.text(f"{ABSENT}.")
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/targets.npy", targets)
        np.save(f"{folder}/atoms.npy", atoms)
        try:
            peer = Peer(
                config.peer, "omp_with_mergekit.py", [folder], threads=config.threads
            )
        except PeerError as error:
            raise ArgumentError(f"peer: {error}.") from None
        with peer:
            for name, version in peer.versions.items():
                report.artifact(name, version)
            peer.run(k=2, batch=config.batch, rows=config.batch)  # warm
            answer = peer.run(k=config.k, batch=config.batch, rows=config.rows)
        return answer["seconds"], np.load(f"{folder}/indices.npy")


def _peak() -> float:
    """Float32 operations a second of a large product, as this machine does it."""
    rows = jnp.ones((2048, 2048))
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(rows))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(product(rows))
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


def _table(
    config: Config, count: int, ours: Ours, theirs: Any, peak: float, report: Any
) -> None:
    """Both rooflines: what is computed, and at what share of the machine's peak."""
    n, k, dim = config.rows, config.k, config.width
    streamed = 4.0 * n * count * k * k / 2  # bytes of directions read again
    operations = 1.125 * count**2 * dim + 2.0 * n * count * dim + n * count * k * k
    rows = [
        {
            "solver": "ours",
            "seconds": round(ours.gram + ours.slice, 2),
            "of them once": round(ours.gram, 2),
            "ms a row": round(1e3 * ours.slice / n, 3),
            "operations": operations,
            "share of peak": round(operations / (ours.gram + ours.slice) / peak, 3),
            "GB/s streamed": round(streamed / ours.slice / 1e9, 1),
        }
    ]
    if theirs is not None:
        operations = 2.0 * n * count * dim * k + 4.0 * n * dim * k * k
        rows.append(
            {
                "solver": "mergekit",
                "seconds": round(theirs[0], 2),
                "of them once": 0.0,
                "ms a row": round(1e3 * theirs[0] / n, 3),
                "operations": operations,
                "share of peak": round(operations / theirs[0] / peak, 3),
                "GB/s streamed": round(4.0 * n * dim * k * k * 2 / theirs[0] / 1e9, 1),
            }
        )
    report.table(
        f"{n} rows of {dim}, {count} shared tokens, k={k}; peak {peak / 1e9:.0f} "
        f"GFLOP/s, load {os.getloadavg()[0]:.1f}",
        rows,
    )


def _claims(config: Config, count: int, ours: Ours, theirs: Any, report: Any) -> None:
    new = config.vocabulary - count
    each, slice_, whole, same = ours.slice / config.rows, 0.0, 0.0, 0.0
    if theirs is not None:
        per_row = theirs[0] / config.rows
        slice_ = theirs[0] / (ours.gram + ours.slice)
        whole = per_row * new / (ours.gram + each * new)
        equal = np.sort(ours.indices, axis=1) == np.sort(theirs[1], axis=1)
        same = float(equal.all(axis=1).mean())
    absent = None if theirs is not None else ABSENT
    _claim(
        report, "slice_speedup", "x", slice_, 4.0, config.rows,
        f"mergekit's seconds over ours for {config.rows} rows, the products of all "
        "shared tokens included",
        absent or "a slice this short does not pay for the products of all tokens",
    )  # fmt: skip
    _claim(
        report, "vocabulary_speedup", "x", whole, 4.0, new,
        f"the same for all {new} new rows at the measured rates",
        absent or "streaming the directions from cache is as slow as a product here",
    )  # fmt: skip
    _claim(
        report, "same_supports", "of rows", same, 0.999, config.rows,
        "rows for which both choose the same shared tokens",
        absent or "more ties than rounding explains",
    )  # fmt: skip


def _claim(
    report: Any, id: str, unit: str, measured: float, bound: float, n: int, claim: str,
    reason: str,
) -> None:  # fmt: skip
    report.claim(
        id,
        claim,
        paper="mergekit's batch_omp, on the same machine",
        measured=round(measured, 4),
        unit=unit,
        op=">=",
        bound=bound,
        ci95=None,
        n=n,
        reason=reason,
    )
