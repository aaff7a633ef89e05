"""Exact next-byte probabilities beat token healing wherever the cursor stands.

Cursors are put anywhere into held-out text. Each method reads what stands before and
says how probable the true next byte is: the naive prompt (its own encoding, then any
token), token healing (without its last token, whose bytes must come again), and the
exact sum over all covers. Every method is mixed with a little of the uniform
distribution, as healing and the naive prompt give true bytes no mass at all. Then two
models of different vocabularies are averaged byte by byte.

```
python -m experiments.run byte_probabilities
python -m experiments.run byte_probabilities --preset full
```

The paper (arXiv 2410.09303) says: about 18 % better completions of code than the
token-level baseline where a prompt ends inside a token, better than healing, and up to
3.7 % over the best member of an ensemble. Here the measure is bits for the true next
byte. Cursors at a token boundary of the full text are chosen with knowledge of the
future, which is what the naive prompt smuggles in, so all cursors are the headline.
About 5 minutes on 2 free CPU cores (an estimate), with the small model cached.
"""

import dataclasses
import functools
import gzip
import json
import time
from typing import Any, NamedTuple

import numpy as np

import jtok
from experiments.intervals import ratio_interval, student_interval
from experiments.pretrain import held_out_prompts
from experiments.targets import load_target
from jtok import testing
from jtok.decode import byte_ensemble, byte_level, token_healing, token_prompt
from jtok.errors import DataNotFoundError

CLAIMS = (
    "exact_over_healing",
    "exact_over_naive",
    "inside_a_token",
    "small_exact_over_healing",
    "small_exact_over_naive",
    "ensemble_over_better",
    "calls_per_byte",
    "sums_to_one",
)
SOURCES = (
    "experiments/intervals.py",
    "experiments/targets.py",
    "jtok/decode/_byte_covers.py",
    "jtok/decode/_byte_models.py",
    "jtok/decode/byte_ensemble.py",
    "jtok/decode/byte_level.py",
    "jtok/decode/byte_model.py",
    "jtok/decode/heal.py",
    "jtok/models/model.py",
    "jtok/models/target.py",
    "jtok/text/_byte_grammar.py",
    "jtok/text/_piece_grammar.py",
    "jtok/text/_spines.py",
    "jtok/text/_splits.py",
    "jtok/text/byte_order.py",
    "jtok/text/validity.py",
)
MINUTES = {"smoke": 0.3, "small": 5, "full": 120}

METHODS = ("naive", "healing", "exact")
_PLACES = ("inside a token", "at a boundary", "all")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which models read which texts, and how much is measured.

    `target` is measured on held-out programs, and `small` (the model of `pretrain`) on
    held-out code and English of the standard library; both as `load_target` takes
    them. `members` are averaged. `texts` texts of `characters` characters have `cuts`
    cursors each; `mixed` is the share of the uniform distribution. The ensemble reads
    `spans` texts, the last `span` bytes of each byte by byte.
    """

    seed: int = 0
    target: str = "data:checkpoints/target-7m"
    small: str = ""
    members: tuple[str, ...] = (
        "data:checkpoints/target-7m",
        "data:checkpoints/draft-3m",
    )
    smoke: bool = False
    texts: int = 160
    small_texts: int = 120
    characters: int = 220
    cuts: int = 3
    mixed: float = 1e-3
    batch: int = 12
    spans: int = 24
    span: int = 40


PRESETS = {
    "smoke": Config(
        target="", members=("", ""), smoke=True, texts=4, small_texts=4, characters=60,
        cuts=2, batch=8, spans=2, span=4,
    ),
    "small": Config(),
    "full": Config(
        target="Qwen/Qwen2.5-Coder-1.5B", small="meta-llama/Llama-3.2-1B",
        members=("Qwen/Qwen2.5-Coder-1.5B", "meta-llama/Llama-3.2-1B"), texts=1000,
        small_texts=1000, characters=1000, cuts=4, spans=200, span=200,
    ),
}  # fmt: skip


class Cut(NamedTuple):
    """A cursor: what stands before it, the byte behind it, and where it stands."""

    text: int
    before: bytes
    byte: int
    inside: bool


def run(config: Config, report: Any) -> None:
    """Measures every method at every cursor, and an ensemble byte by byte.

    Args:
      config: what to measure.
      report: where the figures go.
    """
    load = functools.lru_cache(maxsize=4)(
        lambda name: load_target(name, report, small=not config.smoke)
    )
    programs = _programs(config, report)
    plain = _plain_texts(config, report)
    found = {
        "programs": _measure(config, load(config.target), programs, report),
        "library": _measure(config, load(config.small), plain, report),
    }
    for name, (cuts, bits, facts) in found.items():
        report.table(f"bits for the next byte, {name}", _rows(cuts, bits))
        report.table(f"cost, {name}", facts)
    report.figure("bits for the next byte", _figure(found["programs"]))
    mixed = _ensemble(config, load, programs, report)
    _claims(found, mixed, report)


# ---- texts


def _programs(config: Config, report: Any) -> list[str]:
    """Human-written programs that no checkpoint of the data was trained on."""
    count, size = max(config.texts, config.spans), config.characters
    try:
        path = testing.data("tasks/HumanEval.jsonl.gz")
    except DataNotFoundError:
        report.text("HumanEval is not on this machine: held-out code stands in.")
        texts = held_out_prompts("code", count=count, characters=size, seed=config.seed)
        report.data("standard library, held-out code", "\n".join(texts).encode())
        return texts
    report.data("tasks/HumanEval.jsonl.gz", path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        tasks = [json.loads(line) for line in file]
    whole = [task["prompt"] + task["canonical_solution"] for task in tasks]
    rng = np.random.default_rng(config.seed)
    texts = []
    for turn in range(count):
        text = whole[turn % len(whole)].strip()
        start = int(rng.integers(0, max(1, len(text) - size)))
        texts.append(text[start : start + size])
    return texts


def _plain_texts(config: Config, report: Any) -> list[str]:
    """Code and English of the standard library that the small model has not seen."""
    texts = []
    for kind in ("code", "english"):
        some = held_out_prompts(
            kind, count=config.small_texts // 2, characters=config.characters,
            seed=config.seed,
        )  # fmt: skip
        report.data(f"standard library, held-out {kind}", "\n".join(some).encode())
        texts += some
    return texts


def _cuts(config: Config, texts: list[str], vocabulary: Any) -> list[Cut]:
    """Cursors drawn evenly over the bytes of each text, whole letters before them."""
    rng = np.random.default_rng([config.seed, 1])
    cuts = []
    for index, text in enumerate(texts):
        ids = vocabulary.encode(text, specials=False)
        lengths = [len(vocabulary.token_bytes[id_]) for id_ in ids.tolist()]
        ends = set(np.cumsum(lengths).tolist())
        data = text.encode()
        good = [i for i in range(8, len(data)) if data[i] & 0xC0 != 0x80]
        count = min(config.cuts, len(good))
        for place in sorted(rng.choice(good, count, replace=False).tolist()):
            cuts.append(Cut(index, data[:place], data[place], place not in ends))
    return cuts


# ---- all cursors


def _measure(
    config: Config, model: jtok.models.Model, texts: list[str], report: Any
) -> tuple[list[Cut], dict[str, np.ndarray], list[dict[str, Any]]]:
    """Bits of every method at every cursor, and what they cost."""
    cuts = _cuts(config, texts, model.vocabulary)
    makers = {"naive": token_prompt, "healing": token_healing, "exact": byte_level}
    bits, facts = {}, []
    for method in report.progress(METHODS, "methods"):
        # The baselines are the model as it is: masking would take away what little
        # mass it gives to the true tokens.
        options = {} if method == "exact" else {"masking": "fast"}
        by_byte = makers[method](model, **options)
        values, sums, calls = [], [], 0
        by_byte.next_byte_logprobs(cuts[0].before)  # tables and programs are made
        started = time.perf_counter()
        for first in range(0, len(cuts), config.batch):
            part = cuts[first : first + config.batch]
            state = by_byte.start([cut.before for cut in part])
            probs = np.exp(by_byte.distribution(state).astype(np.float64))
            calls += state.calls
            sums.append(np.abs(probs.sum(-1) - 1).max())
            for row, cut in zip(probs, part, strict=True):
                share = (1 - config.mixed) * row[cut.byte] + config.mixed / 257
                values.append(-np.log2(share))
        taken = time.perf_counter() - started
        bits[method] = np.asarray(values)
        facts.append(
            {
                "method": method, "cursors": len(cuts),
                "calls a batch": calls / -(-len(cuts) // config.batch),
                "ms a cursor": 1e3 * taken / len(cuts),
                "largest error of the sum": float(max(sums)),
            }
        )  # fmt: skip
    return cuts, bits, facts


def _by_text(cuts: list[Cut], values: np.ndarray) -> np.ndarray:
    """Mean of each text: cursors of one text are no independent samples."""
    texts = np.asarray([cut.text for cut in cuts])
    return np.asarray([values[texts == text].mean() for text in np.unique(texts)])


def _chosen(cuts: list[Cut], place: str) -> np.ndarray:
    inside = np.asarray([cut.inside for cut in cuts])
    every = np.ones(len(cuts), bool)
    return {"inside a token": inside, "at a boundary": ~inside, "all": every}[place]


def _rows(cuts: list[Cut], bits: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    rows = []
    for place in _PLACES:
        chosen = _chosen(cuts, place)
        row: dict[str, Any] = {"cursors": place, "n": int(chosen.sum())}
        for method in METHODS:
            some = bits[method][chosen]
            row[method] = float(some.mean()) if len(some) else None
        rows.append(row)
    return rows


class Ratio(NamedTuple):
    """Mean bits of one method over those of another, with an interval over texts."""

    value: float
    interval: tuple[float, float] | None
    count: int


def _ratio(
    cuts: list[Cut], over: np.ndarray, under: np.ndarray, place: str = "all"
) -> Ratio:
    chosen = _chosen(cuts, place)
    if not chosen.any():
        chosen[:] = True
    kept = [cut for cut, some in zip(cuts, chosen, strict=True) if some]
    one, other = _by_text(kept, over[chosen]), _by_text(kept, under[chosen])
    value = float(one.mean() / other.mean())
    return Ratio(value, ratio_interval(one, other), len(one))


def _figure(found: Any) -> Any:
    import matplotlib.pyplot as plt

    cuts, bits, _ = found
    fig, axis = plt.subplots(figsize=(6, 3))
    rows = _rows(cuts, bits)
    for index, method in enumerate(METHODS):
        heights = [row[method] or 0.0 for row in rows]
        places = np.arange(len(rows)) + 0.27 * (index - 1)
        axis.bar(places, heights, width=0.25, label=method)
    axis.set_xticks(range(len(rows)), [row["cursors"] for row in rows])
    axis.set_ylabel("bits for the true next byte")
    axis.legend(frameon=False)
    return fig


# ---- models of different vocabularies


class Mixed(NamedTuple):
    """Bits per byte of every text, and calls a byte."""

    bits: dict[str, np.ndarray]
    calls: float


def _ensemble(config: Config, load: Any, texts: list[str], report: Any) -> Mixed:
    members = [byte_level(load(name)) for name in config.members]
    names = [f"member {i + 1}" for i in range(len(members))]
    data = [text.encode() for text in texts[: config.spans]]
    data = [text for text in data if len(text) > config.span + 8]
    bits, rows, calls = {}, [], 0.0
    models: dict[str, Any] = dict(zip(names, members, strict=True))
    models["arithmetic"] = byte_ensemble(members)
    models["geometric"] = byte_ensemble(members, mean="geometric")
    for name, model in report.progress(models.items(), "ensemble", total=len(models)):
        state = model.start([_whole(text, config.span) for text in data])
        before = getattr(state, "calls", 0)
        total = np.zeros(len(data))
        started = time.perf_counter()
        for place in range(config.span):
            step = [text[len(text) - config.span + place] for text in data]
            logs = model.distribution(state).astype(np.float64)
            total -= np.log2(
                (1 - config.mixed) * np.exp(logs[np.arange(len(data)), step])
                + config.mixed / 257
            )
            state = model.push(state, step)
        taken = (time.perf_counter() - started) / (config.span * len(data))
        bits[name] = total / config.span
        row = {"model": name, "bits per byte": float(bits[name].mean())}
        row |= {"ms a byte": 1e3 * taken, "rows": len(data)}
        if name in names:
            row["calls a byte"] = (state.calls - before) / config.span
            row["tokens of its vocabulary"] = model.vocabulary.size
            calls = max(calls, row["calls a byte"])
        rows.append(row)
    report.table("models of two vocabularies, byte by byte", rows)
    return Mixed(bits, calls)


def _whole(text: bytes, span: int) -> bytes:
    """What stands before the last bytes of a text; it may end inside a letter."""
    return text[: len(text) - span]


# ---- claims


def _claims(found: Any, mixed: Mixed, report: Any) -> None:
    small = "the paper: exact bytes are better than healing and than whole tokens"
    for prefix, name in (("", "programs"), ("small_", "library")):
        cuts, bits, _ = found[name]
        for other, op, bound in (("healing", "<=", 0.8), ("naive", "<", 1.0)):
            ratio = _ratio(cuts, bits["exact"], bits[other])
            report.claim(
                f"{prefix}exact_over_{other}",
                f"All cursors in {name}: bits of exact bytes over those of {other}.",
                paper=small, measured=ratio.value, unit="of its bits", op=op,
                bound=bound, ci95=ratio.interval, n=ratio.count,
                reason=_why(cuts, bits, other),
            )  # fmt: skip
    cuts, bits, facts = found["programs"]
    ratio = _ratio(cuts, bits["exact"], bits["naive"], "inside a token")
    report.claim(
        "inside_a_token",
        "Cursors inside a token of the full text: bits of exact bytes over the naive.",
        paper="about 18% better completions of code after such a cut",
        measured=ratio.value, unit="of its bits", op="<=", bound=0.82,
        ci95=ratio.interval, n=ratio.count, reason=_why(cuts, bits, "naive"),
    )  # fmt: skip
    members = [name for name in mixed.bits if name.startswith("member")]
    better = min(members, key=lambda name: mixed.bits[name].mean())
    mean, best = mixed.bits["arithmetic"], mixed.bits[better]
    gap = student_interval(mean - best)
    report.claim(
        "ensemble_over_better",
        "Two models of different vocabularies, averaged: bits per byte over those of "
        "the better one.",
        paper="up to 3.7% over the best member",
        measured=float(mean.mean() / best.mean()), unit="of its bits", op="<",
        bound=1.0, ci95=ratio_interval(mean, best), n=len(mean),
        reason=f"The members are unequal; the mean difference is {gap} bits a byte.",
    )  # fmt: skip
    report.claim(
        "calls_per_byte", "Calls of the model for every further byte.",
        paper="one step a byte, as all contexts are kept", measured=mixed.calls,
        unit="calls", op="<=", bound=1.0, reason="Some byte needed several calls.",
    )  # fmt: skip
    worst = max(row["largest error of the sum"] for row in facts)
    report.claim(
        "sums_to_one", "Largest error of the sum over 256 bytes and the end.",
        paper="exact", measured=worst, unit="probability", op="<=", bound=1e-5,
        reason="Rounding in float32.",
    )  # fmt: skip


def _why(cuts: list[Cut], bits: dict[str, np.ndarray], other: str) -> str:
    """What was seen, by where the cursors stand."""
    parts = [
        f"{row['cursors']} (n={row['n']}): exact {row['exact'] or 0:.2f}, {other} "
        f"{row[other] or 0:.2f}"
        for row in _rows(cuts, bits)
    ]
    return f"Bits by cursor: {'; '.join(parts)}."
