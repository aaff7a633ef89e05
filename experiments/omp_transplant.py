"""A transplanted vocabulary by sparse combinations loses little, and less than pieces.

A small language model gets the vocabulary of another one that read other files; no
gradient step is taken. Tokens that both know keep their rows; the others get rows from
orthogonal matching pursuit in the donor's space, with 1 to 64 shared tokens each, or
from every baseline. What counts is bits per byte of held-out files, as token counts
differ.

```
python -m experiments.run omp_transplant
python -m experiments.run omp_transplant --preset full
```

The paper (arXiv 2506.06607) transplants Qwen 2.5's vocabulary into Llama 3.2 1B and
keeps 99% of MMLU; but so do rows of zeros, as most of the test's tokens are shared. So
the share of bytes that new tokens cover stands beside the figures, and lines of numbers
are measured apart. FOCUS gets co-occurrence vectors of the training files in place of
fastText's. The `full` preset takes the paper's first pair and measures bits per byte of
web text and GSM8K; MMLU and ARC are left out. About 7 minutes on 2 free CPU cores once
the models are in the cache; training them takes as long again.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import jtok
from experiments.corpus import standard_library
from experiments.intervals import ratio_interval, student_interval
from experiments.vocabulary_pair import (
    SMOKE,
    Pair,
    PairConfig,
    bits_per_byte,
    held_out_texts,
    vocabulary_pair,
)
from experiments.web_text import documents
from experiments.word_vectors import cooccurrence_vectors
from jtok import embed, testing
from jtok.models import Model
from jtok.text import Vocabulary, numeric_scheme, overlap

CLAIMS = (
    "closes_gap",
    "beats_subword",
    "best_of_all",
    "head_matters",
    "too_many_atoms",
    "shared_rows_same",
    "numbers_suffer",
)
SOURCES = (
    "experiments/cache.py",
    "experiments/corpus.py",
    "experiments/vocabulary_pair.py",
    "experiments/web_text.py",
    "experiments/word_vectors.py",
    "jtok/embed/_gram_pursuit.py",
    "jtok/embed/donors.py",
    "jtok/embed/init.py",
    "jtok/embed/linear_maps.py",
    "jtok/embed/neighbours.py",
    "jtok/embed/omp.py",
    "jtok/embed/pursuit.py",
    "jtok/embed/simple.py",
    "jtok/embed/subword.py",
    "jtok/embed/transplant.py",
    "jtok/embed/weighted.py",
    "jtok/models/model.py",
    "jtok/text/overlap.py",
    "jtok/text/pieces.py",
    "jtok/train/*.py",
)
MINUTES = {"smoke": 0.4, "small": 15, "full": 120}

_NUMBERS = re.compile(r"[\s\d.,:()\[\]{}xX+-]*\d[\s\d.,:()\[\]{}xX+-]*")
_LEAST_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """What is transplanted and how it is measured.

    Attributes:
      seeds: of the pairs of models.
      pair: both models and their training.
      base: hub id of a public model, "" for the trained pairs; `donor` likewise.
      donor: whose vocabulary it gets.
      ks: shared tokens in a combination.
      claimed: those that the claims are about; the worse of them counts.
      neighbours: of interpolation.
      texts: held-out files.
      characters: of each.
      length: tokens of a window.
      questions: of GSM8K, for public models.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    pair: PairConfig = dataclasses.field(default_factory=PairConfig)
    base: str = ""
    donor: str = ""
    ks: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    claimed: tuple[int, ...] = (8, 16)
    neighbours: tuple[int, ...] = (5, 20)
    texts: int = 16
    characters: int = 8000
    length: int = 256
    questions: int = 0


PRESETS = {
    "smoke": Config(
        seeds=(0,), pair=SMOKE, ks=(1, 4), claimed=(4,), neighbours=(5,), texts=2,
        characters=600, length=64,
    ),
    "small": Config(),
    "full": Config(
        seeds=(0,), base="meta-llama/Llama-3.2-1B", donor="Qwen/Qwen2.5-1.5B",
        ks=(8, 32, 64), claimed=(64,), texts=200, characters=20_000, length=2048,
        questions=500,
    ),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Transplants by every method, and measures.

    Args:
      config: what to transplant and to measure.
      report: where the figures go.
    """
    texts = _texts(config)
    measured: list[dict[str, dict[str, float]]] = []
    for seed in config.seeds:
        pair = _pair(config, seed, report)
        if seed == config.seeds[0]:
            _describe(pair, texts, report)
        measured.append(_measure(config, pair, texts, report, seed))
    names = list(measured[0])
    rows = []
    for name in names:
        values = {
            what: [seed[name][what] for seed in measured] for what in measured[0][name]
        }
        row: dict[str, Any] = {"method": name}
        for what, found in values.items():
            row[what] = round(float(np.mean(found)), 4)
        interval = student_interval(values["bits per byte"])
        row["half of interval"] = None if interval is None else round(
            (interval[1] - interval[0]) / 2, 4
        )  # fmt: skip
        rows.append(row)
    report.table("Held-out bits per byte", rows)
    _figure(config, rows, report)
    _claims(config, measured, report)


def _texts(config: Config) -> dict[str, list[str]]:
    """Held-out texts, and the lines of numbers among all of them."""
    if config.base:
        some = documents("openwebtext")
        found = [next(some)[: config.characters] for _ in range(config.texts)]
        lines = [line for text in found for line in text.splitlines()]
    else:
        found = held_out_texts(config.texts, config.characters)
        held = standard_library().held_out_code
        lines = [line for text in held for line in text.splitlines()]
    digits = lambda line: sum(char.isdigit() for char in line)
    numbers = [
        line for line in lines
        if digits(line) >= _LEAST_DIGITS and _NUMBERS.fullmatch(line)
    ]  # fmt: skip
    together = "\n".join(numbers)[: 4 * config.characters]
    return {"bits per byte": found, "numbers": [together] if together else found[:1]}


def _pair(config: Config, seed: int, report: Any) -> Pair:
    if config.base:
        base, donor = (
            jtok.models.load(name, dtype="bfloat16")
            for name in (config.base, config.donor)
        )
        report.artifact("base", config.base)
        report.artifact("donor", config.donor)
        return Pair(base, donor, None, None)  # type: ignore[arg-type]
    pair = vocabulary_pair(seed, config.pair)
    corpus = standard_library(config.pair.max_files)
    if seed == config.seeds[0]:
        report.data("standard library", sha256=corpus.sha256)
    for name, folder in (("base", pair.base_folder), ("donor", pair.donor_folder)):
        report.artifact(f"{name} {seed}", folder.parent.name)
    return pair


def _describe(pair: Pair, texts: dict[str, list[str]], report: Any) -> None:
    """What the vocabularies share, and how much of the text is new tokens."""
    base, donor = pair.base.vocabulary, pair.donor.vocabulary
    shared = overlap(base, donor)
    row = {"shared tokens": len(shared.source_ids), "new tokens": len(shared.new_ids)}
    for name, some in texts.items():
        row |= _covered(donor, shared.new_ids, some, name)
    report.table("Vocabularies", [row])
    schemes = {"base": numeric_scheme(base), "donor": numeric_scheme(donor)}
    report.table(
        "Digits in each token of a number",
        [{"model": name, **{n: " ".join(map(str, cut)) for n, cut in scheme.items()}}
         for name, scheme in schemes.items()],
    )  # fmt: skip


def _covered(
    vocabulary: Vocabulary, new: np.ndarray, texts: Sequence[str], name: str
) -> dict[str, float]:
    ids = np.concatenate([vocabulary.encode(text, specials=False) for text in texts])
    sizes = np.array([len(token) for token in vocabulary.token_bytes])[ids]
    is_new = np.isin(ids, new)
    share = float(sizes[is_new].sum() / sizes.sum())
    title = "text" if name == "bits per byte" else name
    return {
        f"new tokens in {title}": round(float(is_new.mean()), 4),
        f"bytes of new tokens in {title}": round(share, 4),
    }


def _methods(
    config: Config, pair: Pair
) -> dict[str, tuple[embed.EmbeddingInit, embed.EmbeddingInit]]:
    """Name -> what makes input rows, and what makes output rows."""
    giver = embed.rows_of(pair.donor)
    pieces = embed.subword()
    single: dict[str, embed.EmbeddingInit] = {
        "zero": embed.zero(),
        "mean": embed.mean(),
        "fitted normal": embed.fitted_normal(),
        "subword mean": pieces,
        "subword first/last": embed.subword("first_last"),
    }
    for k in config.neighbours:
        name = f"interpolation, {k} neighbours"
        single[name] = embed.common_interpolation(giver, k=k)
    if not config.base:
        vectors = cooccurrence_vectors(
            _read_by_donor(config, pair), pair.donor.vocabulary.size
        )
        single["FOCUS"] = embed.focus(vectors)
    single["Procrustes"] = embed.procrustes(giver)
    single["ridge"] = embed.linear_map(giver)
    single["least squares"] = embed.linear_map(giver, penalty=0.0)
    single["sparse basis"] = embed.sparse_basis(giver)
    for k in config.ks:
        single[f"OMP k={k}"] = embed.omp(giver, k=k)
        single[f"OMP k={k}, cosine"] = embed.omp(giver, k=k, normalize_atoms=True)
    both = {name: (method, method) for name, method in single.items()}
    best = single[f"OMP k={config.claimed[0]}"]
    both["OMP input only"] = (best, pieces)
    both["OMP head only"] = (pieces, best)
    return both


def _read_by_donor(config: Config, pair: Pair) -> list[np.ndarray]:
    """Training files as the donor's tokenizer cuts them."""
    texts, size = [], 0
    for text in standard_library(config.pair.max_files).train_code[1::2]:
        texts.append(text)
        size += len(text)
        if size > config.pair.characters:
            break
    return pair.donor.vocabulary.encode_batch(texts, specials=False)


def _joined(
    inputs: embed.EmbeddingInit, outputs: embed.EmbeddingInit
) -> embed.EmbeddingInit:
    """Input rows by one method, output rows by another."""
    if inputs is outputs:
        return inputs

    def run(target: Any, source: Any, key: Any) -> Any:
        made, _, report = inputs(target, source, key)
        _, head, _ = outputs(target, source, key)
        return made, head, report

    return run


def _measure(
    config: Config, pair: Pair, texts: dict[str, list[str]], report: Any, seed: int
) -> dict[str, dict[str, float]]:
    """Bits per byte by method, of the text and of numbers."""
    found = {
        "native base": _bits(config, pair.base, texts),
        "native donor": _bits(config, pair.donor, texts),
    }
    for name, (inputs, outputs) in report.progress(
        _methods(config, pair).items(), f"methods, seed {seed}"
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*cuts numbers.*")
            made = embed.transplant(
                pair.base,
                pair.donor,
                _joined(inputs, outputs),
                key=jax.random.key(seed),
            )
        found[name] = _bits(config, made, texts)
        found[name]["changed shared rows"] = float(_changed(pair.base, made))
    for row in found.values():
        row.setdefault("changed shared rows", 0.0)
    for name, row in found.items():
        report.metric(seed=seed, method=name, **row)
    return found


def _bits(
    config: Config, model: Model, texts: dict[str, list[str]]
) -> dict[str, float]:
    found = {
        name: bits_per_byte(model, some, length=config.length)
        for name, some in texts.items()
    }
    if config.questions:
        found["GSM8K"] = _solved(model, config.questions)
    return found


def _changed(base: Model, made: Model) -> int:
    """Shared rows that are not the base's, bit for bit, in either matrix."""
    shared = overlap(base.vocabulary, made.vocabulary)
    count = 0
    for old, new in (
        (base.params["embed"]["tokens"], made.params["embed"]["tokens"]),
        (base.unembedding()[0], made.unembedding()[0]),
    ):
        before = np.asarray(old[shared.source_ids]).view(np.uint8)
        after = np.asarray(new[shared.target_ids]).view(np.uint8)
        count += int((before != after).any(axis=1).sum())
    return count


def _solved(model: Model, count: int) -> float:
    """Share of GSM8K's questions that are answered right after four solved ones."""
    text = testing.data("tasks/gsm8k_train.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    shown = "".join(f"Q: {r['question']}\nA: {r['answer']}\n\n" for r in rows[:4])
    asked = rows[len(rows) - count :]
    prompts = [f"{shown}Q: {row['question']}\nA:" for row in asked]
    right = 0
    for start in range(0, count, 16):
        out = jtok.decode.generate(
            model, prompts[start : start + 16], max_new_tokens=256, stop=["\n\n"]
        )
        for answer, row in zip(out.text, asked[start : start + 16], strict=True):
            right += _number(answer) == _number(row["answer"])
    return right / count


def _number(answer: str) -> str:
    found = re.search(r"####\s*(-?[\d,.]+)", answer)
    return found[1].replace(",", "").rstrip(".") if found else ""


def _figure(config: Config, rows: list[dict[str, Any]], report: Any) -> None:
    from matplotlib.figure import Figure

    bits = {row["method"]: row["bits per byte"] for row in rows}
    fig = Figure(figsize=(7, 4))
    axes = fig.add_subplot()
    for suffix, label in (("", "OMP"), (", cosine", "OMP by cosine")):
        values = [bits[f"OMP k={k}{suffix}"] for k in config.ks]
        axes.plot(config.ks, values, marker="o", label=label)
    lines = ("native base", "zero", "subword mean", "Procrustes", "FOCUS")
    for place, name in enumerate(n for n in lines if n in bits):
        axes.axhline(bits[name], lw=0.8, ls="--", color=f"C{place + 2}", label=name)
    axes.set(xscale="log", xlabel="shared tokens in a row", ylabel="bits per byte")
    axes.legend(fontsize=8)
    report.figure("Bits per byte by the number of shared tokens", fig)


def _claims(
    config: Config, measured: list[dict[str, dict[str, float]]], report: Any
) -> None:
    what = "bits per byte"
    bits: Callable[[str], np.ndarray] = lambda name: np.array(
        [seed[name][what] for seed in measured]
    )
    names = [f"OMP k={k}" for k in config.claimed]
    omp = np.max([bits(name) for name in names], axis=0)  # the worse of them, each seed
    shown = " and ".join(str(k) for k in config.claimed)
    native, zero, pieces = bits("native base"), bits("zero"), bits("subword mean")
    report.claim(
        "closes_gap",
        f"OMP with k = {shown} closes most of the gap from zero rows to the model with "
        "its own vocabulary",
        paper="99.1% of MMLU kept at k=64, by zero rows as well",
        measured=round(float((zero - omp).mean() / (zero - native).mean()), 4),
        unit="of the gap",
        op=">=",
        bound=0.5,
        ci95=ratio_interval(zero - omp, zero - native),
        n=len(measured),
        reason=f"bits per byte: rows of zeros {zero.mean():.3f}, OMP {omp.mean():.3f}, "
        f"its own vocabulary {native.mean():.3f}",
    )
    _difference(
        report, "beats_subword", pieces - omp,
        "OMP needs fewer bits per byte than the mean of the pieces",
        bound=0.08, reason="the donor says too little of new tokens",
    )  # fmt: skip
    others = [
        name for name in measured[0]
        if not name.startswith(("OMP", "native"))
    ]  # fmt: skip
    best = min(others, key=lambda name: float(bits(name).mean()))
    ours = min(names, key=lambda name: float(bits(name).mean()))
    _difference(
        report, "best_of_all", bits(best) - bits(ours),
        f"OMP needs no more bits per byte than the best other method ({best})",
        bound=0.0,
        reason=f"{best} is better here, where the shared tokens outnumber the "
        "dimensions: one map for all is well determined, each sparse fit errs alone",
    )  # fmt: skip
    _difference(
        report, "head_matters", bits("OMP input only") - bits("OMP head only"),
        "OMP gains more in the output rows than in the input rows, beside pieces",
        bound=0.0, reason="input rows gain as much here",
    )  # fmt: skip
    most = f"OMP k={max(config.ks)}"
    _difference(
        report, "too_many_atoms", bits(most) - omp,
        f"combinations of {max(config.ks)} tokens, near the width, fit worse than "
        f"{shown}",
        bound=0.0, reason="more tokens still help here",
    )  # fmt: skip
    changed = sum(
        row["changed shared rows"] for seed in measured for row in seed.values()
    )
    report.claim(
        "shared_rows_same",
        "rows of shared tokens are the base's bit for bit, by every method",
        paper="shared rows are copied",
        measured=int(changed),
        unit="rows",
        op="==",
        bound=0,
        n=len(measured) * (len(measured[0]) - 2),
        reason="a row was changed",
    )
    numbers = lambda name: np.array([seed[name]["numbers"] for seed in measured])
    _difference(
        report, "numbers_suffer",
        (numbers(ours) - numbers("native base")) - (bits(ours) - native),
        "lines of numbers lose more bits per byte than other text",
        bound=0.0, reason="numbers lose no more than other text here",
    )  # fmt: skip


def _difference(
    report: Any, id: str, values: np.ndarray, claim: str, *, bound: float, reason: str
) -> None:
    report.claim(
        id,
        claim,
        paper="its direction only",
        measured=round(float(values.mean()), 4),
        unit="bits/byte",
        op=">=" if bound else ">",
        bound=bound,
        ci95=student_interval(values),
        n=len(values),
        reason=reason,
    )
