"""PiToMe: merging that protects isolated tokens saves FLOPs for little accuracy.

A small ViT is trained on handwritten digits, upsampled to 49 patches, with the mean
over tokens as its vector; then its layers merge or drop tokens, untrained for it.
All methods keep equally many tokens in every layer, so one number of FLOPs serves a
column. Beside ToMe and each rule of PiToMe (all with proportional attention, and two
without) stand dropped tokens, random and at an even stride. A BERT-like encoder on
film reviews merges in its first layers by the rule for texts, off the shelf and after
further training. The distance of spectra is measured on clustered vectors.

```
python -m experiments.run pitome
python -m experiments.run pitome --preset full
```

The paper (arXiv 2405.16148) says: 40-60% of FLOPs saved on ViT-H for .5% of accuracy,
ToMe loses 2.6%. About 7 minutes on 2 free CPU cores (an estimate).
"""

import collections
import dataclasses
import gzip
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from experiments.cache import cached
from experiments.intervals import student_interval
from experiments.merged_models import Task, correct, encoder, init, seconds, train
from experiments.web_text import hub_lines
from jtok import models, testing
from jtok.compress import (
    flops,
    linear_margins,
    pitome,
    pitome_preset,
    random_merge,
    schedule,
    spectral_distance,
    token_counts,
    tome,
    uniform_merge,
)
from jtok.errors import check
from jtok.ops import Plan

CLAIMS = (
    "merging_is_nearly_free",
    "random_dropping_is_not",
    "pitome_above_tome",
    "text_above_random",
    "spectral_distance",
    "wall_clock",
)
SOURCES = (
    "experiments/cache.py",
    "experiments/merged_models.py",
    "experiments/web_text.py",
    "jtok/compress/flops.py",
    "jtok/compress/matching.py",
    "jtok/compress/pitome.py",
    "jtok/compress/presets.py",
    "jtok/compress/schedule.py",
    "jtok/compress/schedules.py",
    "jtok/compress/spectral.py",
    "jtok/compress/tome.py",
    "jtok/models/compression.py",
    "jtok/models/compressor.py",
    "jtok/models/encoder.py",
    "jtok/models/encoder_layers.py",
    "jtok/nn/encoder.py",
    "jtok/ops/energy/*.py",
    "jtok/ops/plan.py",
)
MINUTES = {"smoke": 0.4, "small": 7, "full": 600}

_AT = 0.4  # of the FLOPs saved, where the claims look


@dataclasses.dataclass(frozen=True)
class Config:
    """The models, their training, and how much they lose.

    `seeds` divisions of the digits into `folds`; of the compressors those whose names
    stand in `methods`, () for all; `side` patches to a side, `layers`,
    `width` and `heads` are of both models. FLOPs `saved` are shares. Of texts
    `text_seeds` models read `words` words at the shares `keep` in each of three layers.
    `images` is a folder of folders by class, "" for the small models; then `model` is a
    hub id of its family `preset`, `text_model` one that tells reviews of `text_data`
    apart, and `limit` items of each are read, `batch` at once.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    folds: int = 5
    side: int = 7
    layers: int = 3
    width: int = 32
    heads: int = 2
    epochs: int = 16
    rate: float = 6e-3
    batch: int = 48
    saved: tuple[float, ...] = (0.2, 0.4, 0.55)
    methods: tuple[str, ...] = ()
    text_seeds: int = 3
    words: int = 128
    text_epochs: int = 10
    keep: tuple[float, ...] = (0.85, 0.7, 0.55)
    spectral_seeds: int = 12
    limit: int = 0
    images: str = ""
    model: str = ""
    preset: str = "deit"
    text_model: str = ""
    text_data: str = ""


PRESETS = {
    "smoke": Config(
        seeds=(0,), folds=2, side=4, layers=2, width=8, epochs=1, saved=(0.2,),
        text_seeds=1, words=16, text_epochs=1, keep=(0.7,), spectral_seeds=2, limit=96,
        methods=("ToMe", "PiToMe, all", "random, dropped"),
    ),
    "small": Config(),
    "full": Config(
        images="imagenet/val", model="facebook/deit-small-patch16-224", limit=50_000,
        saved=(), keep=(0.85, 0.7, 0.55), batch=100, words=512,
        text_model="JiaqiLee/imdb-finetuned-bert-base-uncased",
        text_data="stanfordnlp/imdb",
    ),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Trains or finds the models, and lets them merge.

    Args:
      config: what to train and to measure.
      report: where the figures go.
    """
    if config.images:
        _full(config, report)
        return
    _digits(config, report)
    _reviews(config, report)
    _spectra(config, report)


# Digits ------------------------


def _digit_task(config: Config, report: Any) -> Task:
    """Handwritten digits, upsampled so that a patch of 4 by 4 is a token."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    report.data("scikit-learn, handwritten digits", digits.data.tobytes())
    count, side = config.limit or len(digits.target), config.side
    images = jnp.asarray(digits.images[:count], jnp.float32) / 16.0
    large = jax.image.resize(images, (count, 4 * side, 4 * side), "bilinear")
    cut = large.reshape(count, side, 4, side, 4).transpose(0, 1, 3, 2, 4)
    patches = 2.0 * cut.reshape(count, side * side, 16) - 0.6
    labels = jnp.asarray(digits.target[:count], jnp.int32)
    return Task(patches, jnp.ones(patches.shape[:2], bool), labels, 10)


def _methods(config: Config, counts: tuple[int, ...]) -> dict[str, Any]:
    """Compressors by name, all of which leave `counts` tokens."""
    fall = linear_margins(config.layers, 0.75)
    text = linear_margins(config.layers, 0.9, 0.25)
    shared: dict[str, Any] = {"counts": counts[1:], "protect": 0}
    merged = {**shared, "proportional": True}
    make = {
        f"PiToMe, {rule}": schedule(
            pitome, rule=rule, margin=text if rule == "text" else fall, **merged
        )
        for rule in ("all", "bsm", "text")
    }
    make |= {
        "ToMe": schedule(tome, **merged),
        "PiToMe, bsm, plain attention": schedule(
            pitome, rule="bsm", margin=fall, **shared
        ),
        "ToMe, plain attention": schedule(tome, **shared),
        "random, merged": schedule(random_merge, **merged),
        "uniform, dropped": schedule(uniform_merge, drop=True, **shared),
        "random, dropped": schedule(random_merge, drop=True, **shared),
    }
    return {name: make[name] for name in config.methods or make}


def _counts(config: Config, made: Any, seq: int, saved: float) -> tuple[int, ...]:
    """Tokens of each layer at the largest share that saves so much."""
    whole = flops(made, (seq,) * (config.layers + 1)).flops
    for keep in np.arange(0.99, 0.495, -0.005):
        counts = token_counts(seq, keep=round(float(keep), 3), num_layers=config.layers)
        if flops(made, counts).flops <= (1 - saved) * whole:
            return counts
    check(False, "saved", saved, "less: a layer can leave half of its tokens at most")
    return ()


def _folds(config: Config, task: Task) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows that each model is trained on, and `[models, rows]` it is tried on."""
    count = len(task.labels)
    parts = [
        part
        for seed in config.seeds
        for part in np.array_split(
            np.random.default_rng(seed).permutation(count), config.folds
        )
    ]
    most = max(map(len, parts))
    tried = np.stack([np.pad(p, (0, most - len(p)), constant_values=-1) for p in parts])
    fewest = min(count - len(part) for part in parts)  # alike, so that one compiles
    every = np.arange(count)
    return [np.setdiff1d(every, part)[:fewest] for part in parts], tried


def _trained(config: Config, made: Any, task: Task, rows: Any, report: Any) -> Any:
    """Parameters of all models of the digits, stacked."""
    names = ("seeds", "folds", "side", "layers", "width", "heads", "epochs", "rate")
    key = {name: getattr(config, name) for name in (*names, "batch", "limit")}
    start = lambda seed: init(made, task, jax.random.key(seed))

    def build(folder: Path) -> None:
        for index, some in enumerate(report.progress(rows, "models")):
            params, loss = train(
                start(index), made, task, some, epochs=config.epochs,
                batch=config.batch, rate=config.rate, seed=index,
            )  # fmt: skip
            report.metric(model=index, loss=loss)
            data = serialization.to_bytes(params)
            (folder / f"{index}.msgpack").write_bytes(data)

    folder = cached("pitome_digits", key, build)
    report.artifact("digits", folder.name)
    read = lambda index: serialization.from_bytes(
        start(index), (folder / f"{index}.msgpack").read_bytes()
    )
    every = [read(index) for index in range(len(rows))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)


def _digits(config: Config, report: Any) -> None:
    task = _digit_task(config, report)
    made = encoder(task, config.layers, config.width, config.heads, norm_first=True)
    rows, tried = _folds(config, task)
    params = _trained(config, made, task, rows, report)
    seq, total = task.inputs.shape[1], len(task.labels)
    # A model is tried on its fold only, so a seed's folds see every image once.
    rate = lambda compress: (
        correct(params, made, task, tried, compress)
        .reshape(len(config.seeds), -1).sum(axis=1) / total
    )  # fmt: skip
    dense, one = rate(None), jax.tree.map(lambda x: x[0], params)
    plain = seconds(one, made, task, 256, None)
    whole = flops(made, (seq,) * (config.layers + 1)).flops
    found: dict[float, dict[str, np.ndarray]] = {}
    table, clock = [], []
    for saved in report.progress(config.saved, "digits"):
        counts = _counts(config, made, seq, saved)
        share = flops(made, counts).flops / whole
        found[saved] = {}
        for name, compress in _methods(config, counts).items():
            values = found[saved][name] = rate(compress)
            low, high = student_interval(values - dense) or (np.nan, np.nan)
            table.append({
                "FLOPs": f"{share:.0%}", "tokens": str(counts), "method": name,
                "accuracy": round(float(values.mean()), 4),
                "points lost": round(100 * float((dense - values).mean()), 2),
                "95%": f"{-100 * high:.2f} to {-100 * low:.2f}",
            })  # fmt: skip
            if name in ("ToMe", "PiToMe, all"):
                took = seconds(one, made, task, 256, compress)
                clock.append({
                    "FLOPs": f"{share:.0%}", "method": name,
                    "time": round(took / plain, 3), "share": share,
                })  # fmt: skip
    dense_row = {"FLOPs": "100%", "tokens": str(seq), "method": "all tokens"}
    table.insert(0, dense_row | {"accuracy": round(float(dense.mean()), 4)})
    report.table("digits, merged off the shelf", table)
    report.table("time of the compiled ViT, 256 images; 1 is that of all tokens", clock)
    _report_digits(config, dense, found, clock, report)


def _report_digits(
    config: Config, dense: np.ndarray, found: Any, clock: Any, report: Any
) -> None:
    at = min(config.saved, key=lambda saved: abs(saved - _AT))
    merges = [n for n in found[at] if n.startswith(("ToMe", "PiToMe"))]
    lost = {name: 100 * (dense - values) for name, values in found[at].items()}
    best = min(merges, key=lambda name: lost[name].mean())
    dropped = lost["random, dropped"]
    easy = (
        "at this size of task even random dropping costs less than 3 points, so the "
        "task is uninformative: it does not tell merging from dropping"
    )
    report.claim(
        "merging_is_nearly_free",
        f"points that {best} loses at {at:.0%} fewer FLOPs, the best of {len(merges)} "
        "merges on these images",
        paper="0.5 points at 40-60% fewer FLOPs (ViT-H)",
        measured=round(float(lost[best].mean()), 3), unit="points", op="<=", bound=1.0,
        ci95=student_interval(lost[best]), n=len(config.seeds),
        reason=f"on a ViT of {config.layers} layers and width {config.width} merges "
        f"lose {min(lost[m].mean() for m in merges):.1f} points and more, random "
        f"dropping {dropped.mean():.1f}",
    )  # fmt: skip
    report.claim(
        "random_dropping_is_not",
        f"points that random dropping loses at {at:.0%} fewer FLOPs",
        paper="none: it says whether the task can tell", unit="points",
        measured=round(float(dropped.mean()), 3), op=">=", bound=3.0,
        ci95=student_interval(dropped), n=len(config.seeds), reason=easy,
    )  # fmt: skip
    ours = min(
        (n for n in merges if n.startswith("PiToMe")), key=lambda n: lost[n].mean()
    )
    other = min(
        (n for n in merges if n.startswith("ToMe")), key=lambda n: lost[n].mean()
    )
    more = lost[other] - lost[ours]
    report.claim(
        "pitome_above_tome",
        f"points by which the best PiToMe ({ours}) is above the best ToMe ({other}), "
        "each the best on these images",
        paper="ToMe loses 2.6 points where PiToMe loses 0.5",
        measured=round(float(more.mean()), 3), unit="points", op=">", bound=0.0,
        ci95=student_interval(more), n=len(config.seeds),
        reason="PiToMe does not beat ToMe here: it loses "
        f"{lost[ours].mean():.2f} points, ToMe {lost[other].mean():.2f}",
    )  # fmt: skip
    quick = [row for row in clock if row["method"] == "PiToMe, all"]
    share = f"{1 - at:.0%}"
    row = min(quick, key=lambda row: abs(row["share"] - (1 - at)))
    report.claim(
        "wall_clock", f"time of the compiled ViT at {share} of the FLOPs, PiToMe",
        paper="faster by about the FLOPs saved", measured=row["time"],
        unit="of the time with all tokens", op="<", bound=1.0, n=1,
        reason=f"in a ViT of width {config.width} merging takes what fewer tokens save",
    )  # fmt: skip


# Reviews ------------------------


def _review_task(config: Config, report: Any) -> tuple[Task, int]:
    """The last words of film reviews behind a class token, by their frequency."""
    path = testing.data("tasks/movie_reviews.jsonl.gz")
    report.data("tasks/movie_reviews.jsonl.gz", path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    some = np.random.default_rng(0).permutation(len(records))
    records = [records[i] for i in some[: config.limit or len(records)]]
    texts = [row["text"].split()[1 - config.words :] for row in records]
    # Words of all texts name ids; labels are not looked at.
    seen = collections.Counter(word for text in texts for word in text)
    ids = {word: at + 2 for at, (word, _) in enumerate(seen.most_common(4000))}
    inputs = np.zeros((len(texts), config.words), np.int32)
    mask = np.zeros(inputs.shape, bool)
    for row, text in enumerate(texts):
        inputs[row, 1 : len(text) + 1] = [ids.get(word, 1) for word in text]
        mask[row, : len(text) + 1] = True
    labels = np.array([row["label"] for row in records], np.int32)
    return Task(*map(jnp.asarray, (inputs, mask, labels)), 2), len(ids) + 2


def _text_methods(config: Config, keep: float) -> dict[str, Any]:
    shared: dict[str, Any] = {"keep": keep, "restart": True, "metric": "keys_sum"}
    acting = range(min(config.layers, 3))
    margins = linear_margins(config.layers, 0.9, 0.25)[: len(acting)]
    shared["layers"] = tuple(acting)
    return {
        "PiToMe, text": schedule(pitome, rule="text", margin=margins, **shared),
        "ToMe": schedule(tome, **shared),
        "random, dropped": schedule(random_merge, drop=True, **shared),
    }


def _reviews(config: Config, report: Any) -> None:
    task, vocab_size = _review_task(config, report)
    made = encoder(
        task, config.layers, config.width, config.heads, vocab_size=vocab_size,
        norm_first=False,
    )  # fmt: skip
    lost: dict[tuple[float, str], list[float]] = collections.defaultdict(list)
    dense = []
    shared: dict[str, Any] = {"batch": 24, "rate": config.rate / 3}
    middle = config.keep[len(config.keep) // 2]
    for seed in report.progress(range(config.text_seeds), "reviews"):
        order = np.random.default_rng(seed).permutation(len(task.labels))
        tried, rows = np.split(order, [len(order) // 4])
        start = init(made, task, jax.random.key(seed))
        params, loss = train(
            start, made, task, rows, epochs=config.text_epochs, seed=seed, **shared
        )
        report.metric(text_model=seed, loss=loss)

        def rate(params: Any, compress: Any, tried: Any = tried) -> float:
            one = jax.tree.map(lambda x: x[None], params)
            return float(correct(one, made, task, tried[None], compress).mean())

        dense.append(rate(params, None))
        for keep in config.keep:
            for name, compress in _text_methods(config, keep).items():
                lost[keep, name].append(dense[-1] - rate(params, compress))
        compress = _text_methods(config, middle)["PiToMe, text"]
        more = {"epochs": max(1, config.text_epochs // 5), "seed": seed + 100}
        for name, through in (("PiToMe, text, trained through", compress),
                              ("all tokens, trained as long", None)):  # fmt: skip
            tuned, _ = train(
                params, made, task, rows, compress=through, **more, **shared
            )
            lost[middle, name].append(dense[-1] - rate(tuned, through))
    _report_reviews(config, made, dense, lost, report)


def _report_reviews(
    config: Config, made: Any, dense: list[float], lost: Any, report: Any
) -> None:
    whole = flops(made, (config.words,) * (config.layers + 1)).flops
    rows = [{"keep": 1.0, "method": "all tokens", "accuracy": float(np.mean(dense))}]
    for (keep, name), values in lost.items():
        counts = _text_methods(config, keep)["ToMe"].token_counts(
            config.words, config.layers, prefix=1
        )
        low, high = student_interval(values) or (np.nan, np.nan)
        rows.append({
            "keep": keep, "FLOPs": f"{flops(made, counts).flops / whole:.0%}",
            "method": name,
            "accuracy": round(float(np.mean(dense) - np.mean(values)), 4),
            "points lost": round(100 * float(np.mean(values)), 2),
            "95%": f"{100 * low:.1f} to {100 * high:.1f}",
        })  # fmt: skip
    report.table("film reviews", rows)
    keep = min(config.keep)
    more = 100 * (
        np.array(lost[keep, "random, dropped"]) - np.array(lost[keep, "PiToMe, text"])
    )
    report.claim(
        "text_above_random",
        f"points by which merged reviews are above randomly dropped words, keep {keep}",
        paper="merging texts loses little at high ratios", unit="points", op=">",
        measured=round(float(more.mean()), 3), bound=0.0, ci95=student_interval(more),
        n=config.text_seeds,
        reason="merging loses "
        f"{100 * np.mean(lost[keep, 'PiToMe, text']):.2f} points, dropping "
        f"{100 * np.mean(lost[keep, 'random, dropped']):.2f}",
    )  # fmt: skip


# Spectra ------------------------


def _clusters(seed: int) -> np.ndarray:
    """Three large clusters and eight pairs: 106 noisy unit vectors."""
    rng = np.random.default_rng(seed)
    sizes = [40, 30, 20, *[2] * 8]
    centres = rng.normal(size=(len(sizes), 32))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    found = np.repeat(centres, sizes, axis=0)
    found += 0.3 * rng.normal(size=found.shape) / 32**0.5
    return found[rng.permutation(len(found))].astype(np.float32)


def _spectra(config: Config, report: Any) -> None:
    steps = {
        "ToMe": lambda x, key: tome(x, keep=0.6),
        "PiToMe, all": lambda x, key: pitome(x, keep=0.6, margin=0.75),
        "PiToMe, bsm": lambda x, key: pitome(x, keep=0.6, margin=0.75, rule="bsm"),
        "random, merged": lambda x, key: random_merge(x, key, keep=0.6),
    }
    found = {}
    for name, step in steps.items():

        def merged(x: Any, key: Any, step: Any = step) -> Any:
            whole: Plan | None = None
            size = None
            for turn in jax.random.split(key, 3):
                plan = step(x, turn)
                x, size = plan.merge(x, size)
                whole = plan if whole is None else whole.then(plan)
            return whole.assign if whole is not None else None

        program = jax.jit(merged)
        found[name] = [
            spectral_distance(
                _clusters(seed),
                np.asarray(program(_clusters(seed)[None], jax.random.key(seed))[0]),
            ).distance
            for seed in range(config.spectral_seeds)
        ]
    report.table(
        "distance of spectra, three steps at keep 0.6",
        [
            {"method": name, "distance": round(float(np.mean(values)), 4)}
            for name, values in found.items()
        ],
    )
    less = np.array(found["ToMe"]) - np.array(found["PiToMe, bsm"])
    report.claim(
        "spectral_distance",
        "distance of spectra of ToMe less that of PiToMe (bsm), clusters of 40 to 2",
        paper="PiToMe's goes to 0, ToMe's does not (theory)", unit="distance",
        measured=round(float(less.mean()), 4), op=">", bound=0.0,
        ci95=student_interval(less), n=config.spectral_seeds,
        reason=f"ToMe leaves spectra {np.mean(found['ToMe']):.4f} off, PiToMe "
        f"{np.mean(found['PiToMe, bsm']):.4f}",
    )  # fmt: skip


# The paper's models ------------------------


def _full(config: Config, report: Any) -> None:
    _full_images(config, report)
    _full_texts(config, report)


def _full_images(config: Config, report: Any) -> None:
    """Accuracy against FLOPs of a ViT on a folder of folders, by class."""
    model = models.load(config.model)
    classes = sorted(path for path in Path(config.images).iterdir() if path.is_dir())
    every = [
        (file, label)
        for label, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
    ]
    order = np.random.default_rng(0).permutation(len(every))[: config.limit]
    layers, prefix = model.config.num_layers, model.config.prefix
    made: dict[str, Any] = {"all tokens": None}
    for keep in (0.975, 0.95, 0.925, 0.9):
        ours = pitome_preset(config.preset, layers, keep=keep)
        made[f"PiToMe, {keep}"] = ours
        made[f"ToMe, {keep}"] = schedule(tome, keep=keep)
        made[f"random, {keep}"] = schedule(random_merge, keep=keep, drop=True)
    step = jax.jit(
        lambda pixels, compress: jnp.argmax(
            model(pixels, compress=compress).logits, axis=-1
        ),
        static_argnums=1,
    )
    right: dict[str, int] = collections.Counter()
    took: dict[str, list[float]] = collections.defaultdict(list)
    batches = np.array_split(order, max(1, len(order) // config.batch))
    for some in report.progress(batches, "images"):
        pixels = jnp.asarray(model.processor([every[i][0] for i in some]))
        labels = np.array([every[i][1] for i in some])
        for name, compress in made.items():
            start = time.perf_counter()
            found = np.asarray(step(pixels, compress))
            took[name].append((time.perf_counter() - start) / len(labels))
            right[name] += int((found == labels).sum())
    seq = prefix + (model.config.image_size // model.config.patch_size) ** 2
    rows = []
    for name, compress in made.items():
        counts = (seq,) * (layers + 1)
        if compress is not None:
            counts = compress.token_counts(seq, layers, prefix=prefix)
        cost = flops(model.config, counts).flops
        rows.append({
            "method": name, "accuracy": right[name] / len(order), "GFLOPs": cost / 1e9,
            "images/s": 1.0 / min(took[name]),
        })  # fmt: skip
    report.table(f"{config.model}, off the shelf", rows)
    lost = 100 * (right["all tokens"] - right["PiToMe, 0.9"]) / len(order)
    drop = 100 * (right["all tokens"] - right["random, 0.9"]) / len(order)
    more = 100 * (right["PiToMe, 0.9"] - right["ToMe, 0.9"]) / len(order)
    report.claim(
        "wall_clock", "time of the compiled model at keep 0.9, PiToMe",
        paper="faster by about the FLOPs saved", unit="of the time with all tokens",
        measured=min(took["PiToMe, 0.9"]) / min(took["all tokens"]), op="<", bound=1.0,
        n=len(batches), reason="finding what to merge costs more than it saves here",
    )  # fmt: skip
    for id_, claim, value, op, bound in (
        ("merging_is_nearly_free", "points lost at keep 0.9", lost, "<=", 1.0),
        ("random_dropping_is_not", "points lost by random dropping", drop, ">=", 3.0),
        ("pitome_above_tome", "points above ToMe at keep 0.9", more, ">", 0.0),
    ):
        report.claim(
            id_, claim, paper="0.5 points (ViT-H), ToMe 2.6", measured=value,
            unit="points", op=op, bound=bound, n=len(order), reason="see the table",
        )  # fmt: skip


def _full_texts(config: Config, report: Any) -> None:
    """Accuracy of a fine-tuned BERT whose first layers merge."""
    model = models.load(config.text_model)
    lines = list(hub_lines(config.text_data, "test.jsonl"))
    order = np.random.default_rng(0).permutation(len(lines))[: config.limit]
    layers, right = model.config.num_layers, collections.Counter[str]()
    made: dict[str, Any] = {"all tokens": None}
    for keep in config.keep:
        made[f"PiToMe, {keep}"] = pitome_preset("bert", layers, keep=keep)
        shared: dict[str, Any] = {"keep": keep, "layers": (0, 1, 2), "restart": True}
        made[f"ToMe, {keep}"] = schedule(tome, **shared)
        made[f"random, {keep}"] = schedule(random_merge, drop=True, **shared)
    for some in report.progress(
        np.array_split(order, max(1, len(order) // config.batch)), "reviews"
    ):
        ids = np.zeros((len(some), config.words), np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, at in enumerate(some):
            tokens = model.vocabulary.encode(lines[at]["text"])[: config.words]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        labels = np.array([lines[at]["label"] for at in some])
        for name, compress in made.items():
            merging = model.replace(compress=compress)
            logits = models.classify(merging, jnp.asarray(ids), mask=jnp.asarray(mask))
            right[name] += int((np.argmax(logits, axis=-1) == labels).sum())
    rows = [{"method": n, "accuracy": c / len(order)} for n, c in right.items()]
    report.table(f"{config.text_model}, off the shelf", rows)
    keep = min(config.keep)
    more = 100 * (right[f"PiToMe, {keep}"] - right[f"random, {keep}"]) / len(order)
    report.claim(
        "text_above_random", f"points above random dropping at keep {keep}",
        paper="merging texts loses little at high ratios", measured=more,
        unit="points", op=">", bound=0.0, n=len(order), reason="see the table",
    )  # fmt: skip
    _spectra(config, report)
