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

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jaxtyping import Array

from experiments import pitome_full, pitome_reviews
from experiments.cache import cached
from experiments.intervals import student_interval
from experiments.merged_models import Task, correct, encoder, init, seconds, train
from jtok.compress import (
    flops,
    linear_margins,
    pitome,
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
    "experiments/pitome_full.py",
    "experiments/pitome_reviews.py",
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
    apart, and `limit` items of each are read, `batch` at once. With `few` what no
    claim needs is left out.
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
    few: bool = False
    images: str = ""
    model: str = ""
    preset: str = "deit"
    text_model: str = ""
    text_data: str = ""


PRESETS = {
    "smoke": Config(
        seeds=(0,), folds=2, side=4, layers=2, width=8, epochs=1, saved=(0.2,),
        text_seeds=1, words=16, text_epochs=1, keep=(0.7,), spectral_seeds=2, limit=96,
        methods=("ToMe", "PiToMe, all", "random, dropped"), few=True,
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
        pitome_full.images(config, report)
        pitome_full.texts(config, report)
    else:
        _digits(config, report)
        pitome_reviews.measure(config, report)
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
    row = {"FLOPs": "100%", "tokens": str(seq), "method": "all tokens"}
    table, clock = [row | {"accuracy": round(float(dense.mean()), 4)}], []
    for saved in report.progress(config.saved, "digits"):
        counts = _counts(config, made, seq, saved)
        share = flops(made, counts).flops / whole
        found[saved] = {}
        for name, compress in _methods(config, counts).items():
            values = found[saved][name] = rate(compress)
            table.append(_digit_row(share, counts, name, values, dense))
            if name in ("PiToMe, all", *([] if config.few else ["ToMe"])):
                took = seconds(one, made, task, 256, compress)
                clock.append({
                    "FLOPs": f"{share:.0%}", "method": name,
                    "time": round(took / plain, 3), "share": share,
                })  # fmt: skip
    report.table("digits, merged off the shelf", table)
    report.table("time of the compiled ViT, 256 images; 1 is that of all tokens", clock)
    _report_digits(config, dense, found, clock, report)


def _digit_row(
    share: float, counts: tuple[int, ...], name: str, values: Any, dense: Any
) -> dict[str, Any]:
    low, high = student_interval(values - dense) or (np.nan, np.nan)
    return {
        "FLOPs": f"{share:.0%}", "tokens": str(counts), "method": name,
        "accuracy": round(float(values.mean()), 4),
        "points lost": round(100 * float((dense - values).mean()), 2),
        "95%": f"{-100 * high:.2f} to {-100 * low:.2f}",
    }  # fmt: skip


def _report_digits(
    config: Config, dense: np.ndarray, found: Any, clock: Any, report: Any
) -> None:
    at = min(config.saved, key=lambda saved: abs(saved - _AT))
    lost = {name: 100 * (dense - values) for name, values in found[at].items()}
    _claim_free(config, at, lost, report)
    _claim_above(config, lost, report)
    quick = [row for row in clock if row["method"] == "PiToMe, all"]
    row = min(quick, key=lambda row: abs(row["share"] - (1 - at)))
    report.claim(
        "wall_clock", f"time of the compiled ViT at {1 - at:.0%} of the FLOPs, PiToMe",
        paper="faster by about the FLOPs saved", measured=row["time"],
        unit="of the time with all tokens", op="<", bound=1.0, n=1,
        reason=f"in a ViT of width {config.width} merging takes what fewer tokens save",
    )  # fmt: skip


def _claim_free(config: Config, at: float, lost: Any, report: Any) -> None:
    """What the best merge loses, and whether the task can tell."""
    merges = [n for n in lost if n.startswith(("ToMe", "PiToMe"))]
    best = min(merges, key=lambda name: lost[name].mean())
    dropped = lost["random, dropped"]
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
        ci95=student_interval(dropped), n=len(config.seeds),
        reason="at this size of task even random dropping costs less than 3 points, so "
        "the task is uninformative: it does not tell merging from dropping",
    )  # fmt: skip


def _claim_above(config: Config, lost: Any, report: Any) -> None:
    """The best PiToMe beside the best ToMe."""
    ours, other = (
        min((n for n in lost if n.startswith(who)), key=lambda n: lost[n].mean())
        for who in ("PiToMe", "ToMe")
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


_STEPS: dict[str, Callable[..., Plan]] = {
    "ToMe": lambda x, key: tome(x, keep=0.6),
    "PiToMe, all": lambda x, key: pitome(x, keep=0.6, margin=0.75),
    "PiToMe, bsm": lambda x, key: pitome(x, keep=0.6, margin=0.75, rule="bsm"),
    "random, merged": lambda x, key: random_merge(x, key, keep=0.6),
}


@functools.partial(jax.jit, static_argnames="name")
def _thrice(x: Array, key: Array, name: str) -> Array:
    """`[batch, tokens]`: the group of each token after three steps."""
    whole: Plan | None = None
    size = None
    for turn in jax.random.split(key, 3):
        plan = _STEPS[name](x, turn)
        x, size = plan.merge(x, size)
        whole = plan if whole is None else whole.then(plan)
    return plan.assign if whole is None else whole.assign


def _spectra(config: Config, report: Any) -> None:
    names = ("ToMe", "PiToMe, bsm") if config.few else tuple(_STEPS)
    found: dict[str, list[float]] = {name: [] for name in names}
    for name, seed in itertools.product(names, range(config.spectral_seeds)):
        x = _clusters(seed)
        groups = np.asarray(_thrice(x[None], jax.random.key(seed), name)[0])
        found[name].append(spectral_distance(x, groups).distance)
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
