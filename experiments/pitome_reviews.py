"""A BERT-like encoder on film reviews whose first layers merge by the rule for texts.

Part of `experiments.pitome`.
"""

import collections
import gzip
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.intervals import student_interval
from experiments.merged_models import Task, correct, encoder, init, train
from jtok import testing
from jtok.compress import flops, linear_margins, pitome, random_merge, schedule, tome

__all__ = ["measure"]


def measure(config: Any, report: Any) -> None:
    """What encoders of reviews lose, off the shelf and trained through."""
    task, vocab_size = _review_task(config, report)
    made = encoder(
        task, config.layers, config.width, config.heads, vocab_size=vocab_size,
        norm_first=False,
    )  # fmt: skip
    lost: dict[tuple[float, str], list[float]] = collections.defaultdict(list)
    dense = []
    for seed in report.progress(range(config.text_seeds), "reviews"):
        order = np.random.default_rng(seed).permutation(len(task.labels))
        tried, rows = np.split(order, [len(order) // 4])
        start = init(made, task, jax.random.key(seed))
        shared: dict[str, Any] = {"batch": 24, "rate": config.rate / 3}
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
        middle = config.keep[len(config.keep) // 2]
        compress = _text_methods(config, middle)["PiToMe, text"]
        more = {"epochs": max(1, config.text_epochs // 5), "seed": seed + 100} | shared
        for name, through in (("PiToMe, text, trained through", compress),
                              ("all tokens, trained as long", None)):  # fmt: skip
            tuned, _ = train(params, made, task, rows, compress=through, **more)
            lost[middle, name].append(dense[-1] - rate(tuned, through))
    _report_reviews(config, made, dense, lost, report)


def _review_task(config: Any, report: Any) -> tuple[Task, int]:
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


def _text_methods(config: Any, keep: float) -> dict[str, Any]:
    shared: dict[str, Any] = {"keep": keep, "restart": True, "metric": "keys_sum"}
    acting = range(min(config.layers, 3))
    margins = linear_margins(config.layers, 0.9, 0.25)[: len(acting)]
    shared["layers"] = tuple(acting)
    made = {
        "PiToMe, text": schedule(pitome, rule="text", margin=margins, **shared),
        "ToMe": schedule(tome, **shared),
        "random, dropped": schedule(random_merge, drop=True, **shared),
    }
    if config.few:
        del made["ToMe"]
    return made


def _report_reviews(
    config: Any, made: Any, dense: list[float], lost: Any, report: Any
) -> None:
    whole = flops(made, (config.words,) * (config.layers + 1)).flops
    rows = [{"keep": 1.0, "method": "all tokens", "accuracy": float(np.mean(dense))}]
    for (keep, name), values in lost.items():
        counts = _text_methods(config, keep)["PiToMe, text"].token_counts(
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
    _claim_texts(config, lost, report)


def _claim_texts(config: Any, lost: Any, report: Any) -> None:
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
