"""The paper's own kinds of model, from the Hugging Face format, off the shelf.

The `full` preset of `experiments.pitome`: a ViT on a folder of photographs by class,
and a BERT that was tuned to tell reviews apart.
"""

import collections
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.web_text import hub_lines
from jtok import models
from jtok.compress import flops, pitome_preset, random_merge, schedule, tome

__all__ = ["images", "texts"]

Files = list[tuple[Path, int]]
_ALL = "all tokens"


def images(config: Any, report: Any) -> None:
    """Accuracy against FLOPs of a ViT on a folder of folders, by class."""
    model = models.load(config.model)
    files = _files(Path(config.images), config.limit)
    layers, prefix = model.config.num_layers, model.config.prefix
    made: dict[str, Any] = {_ALL: None}
    for keep in (0.975, 0.95, 0.925, 0.9):
        ours = pitome_preset(config.preset, layers, keep=keep)
        made[f"PiToMe, {keep}"] = ours
        made[f"ToMe, {keep}"] = schedule(tome, keep=keep)
        made[f"random, {keep}"] = schedule(random_merge, keep=keep, drop=True)
    count = max(1, len(files) // config.batch)
    right, took = _seen(model, made, files, count, report)
    seq = prefix + (model.config.image_size // model.config.patch_size) ** 2
    rows = []
    for name, compress in made.items():
        counts = (seq,) * (layers + 1)
        if compress is not None:
            counts = compress.token_counts(seq, layers, prefix=prefix)
        rows.append({
            "method": name, "accuracy": right[name] / len(files),
            "GFLOPs": flops(model.config, counts).flops / 1e9,
            "images/s": 1.0 / min(took[name]),
        })  # fmt: skip
    report.table(f"{config.model}, off the shelf", rows)
    _claim_images(right, took, len(files), count, report)


def _files(folder: Path, limit: int) -> Files:
    """Pictures and their classes, in a drawn order."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    every = [
        (file, label)
        for label, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
    ]
    order = np.random.default_rng(0).permutation(len(every))[:limit]
    return [every[at] for at in order]


def _seen(
    model: Any, made: dict[str, Any], files: Files, count: int, report: Any
) -> tuple[dict[str, int], dict[str, list[float]]]:
    """Right answers under each compressor, and seconds an image of every batch."""
    step = jax.jit(
        lambda pixels, compress: jnp.argmax(
            model(pixels, compress=compress).logits, axis=-1
        ),
        static_argnums=1,
    )
    right: dict[str, int] = collections.Counter()
    took: dict[str, list[float]] = collections.defaultdict(list)
    batches = np.array_split(np.arange(len(files)), count)
    for some in report.progress(batches, "images"):
        pixels = jnp.asarray(model.processor([files[at][0] for at in some]))
        labels = np.array([files[at][1] for at in some])
        for name, compress in made.items():
            start = time.perf_counter()
            found = np.asarray(step(pixels, compress))
            took[name].append((time.perf_counter() - start) / len(labels))
            right[name] += int((found == labels).sum())
    return right, took


def _claim_images(
    right: dict[str, int], took: dict[str, list[float]], total: int, count: int,
    report: Any,
) -> None:  # fmt: skip
    points = lambda one, other: 100 * (right[one] - right[other]) / total
    lost, drop = points(_ALL, "PiToMe, 0.9"), points(_ALL, "random, 0.9")
    more = points("PiToMe, 0.9", "ToMe, 0.9")
    report.claim(
        "wall_clock", "time of the compiled model at keep 0.9, PiToMe",
        paper="faster by about the FLOPs saved", unit="of the time with all tokens",
        measured=min(took["PiToMe, 0.9"]) / min(took[_ALL]), op="<", bound=1.0,
        n=count, reason="finding what to merge costs more than it saves here",
    )  # fmt: skip
    for id_, claim, value, op, bound in (
        ("merging_is_nearly_free", "points lost at keep 0.9", lost, "<=", 1.0),
        ("random_dropping_is_not", "points lost by random dropping", drop, ">=", 3.0),
        ("pitome_above_tome", "points above ToMe at keep 0.9", more, ">", 0.0),
    ):
        report.claim(
            id_, claim, paper="0.5 points (ViT-H), ToMe 2.6", measured=value,
            unit="points", op=op, bound=bound, n=total, reason="see the table",
        )  # fmt: skip


def texts(config: Any, report: Any) -> None:
    """Accuracy of a fine-tuned BERT whose first layers merge."""
    model = models.load(config.text_model)
    lines = list(hub_lines(config.text_data, "test.jsonl"))
    order = np.random.default_rng(0).permutation(len(lines))[: config.limit]
    right = collections.Counter[str]()
    made = _text_methods(config, model.config.num_layers)
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


def _text_methods(config: Any, layers: int) -> dict[str, Any]:
    made: dict[str, Any] = {_ALL: None}
    for keep in config.keep:
        made[f"PiToMe, {keep}"] = pitome_preset("bert", layers, keep=keep)
        shared: dict[str, Any] = {"keep": keep, "layers": (0, 1, 2), "restart": True}
        made[f"ToMe, {keep}"] = schedule(tome, **shared)
        made[f"random, {keep}"] = schedule(random_merge, drop=True, **shared)
    return made
