"""Poolings on the states of a frozen encoder, for the low-rank attention experiment."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.cache import cached
from experiments.labelled_texts import Labelled
from experiments.lama_encoder import Encoded, encoded, features
from experiments.lama_models import accuracy_rows, gap_of, optimizer
from experiments.lama_poolings import head_of
from jtok import classify, train

__all__ = ["report_frozen"]


def report_frozen(config: Any, data: Labelled, other: list[str], report: Any) -> None:
    """Trains every pooling on the states of an encoder that does not train.

    Args:
      config: of the experiment.
      data: texts with labels.
      other: texts that a small encoder reads beside them and Brown.
      report: where the figures go.
    """
    made = encoded(config, data, other, report)
    if made.nats:
        rows = [{"nats by": name, "nats": nats} for name, nats in made.nats.items()]
        report.table("masked words of unseen texts", rows)
    read = functools.partial(_frozen, config, data, made)
    found = read("pretrained", report.progress(config.head_poolings, "frozen states"))
    plain = read("untrained", ("mean", "lama"))
    rows = []
    for name, part in (("pretrained", found), ("untrained", plain)):
        for row in accuracy_rows(config, part, made.model.config.width):
            row.pop("seconds of training")
            rows.append({"encoder": name, **row})
    report.table("on a frozen encoder", rows)
    both = {"pretrained": found["mean"], "untrained": plain["mean"]}
    for id, claim, (gap, interval), op, bound in (
        (
            "pretraining_counts",
            "the mean of the states reads 10 points better than that of an untrained "
            "encoder",
            gap_of(both, "pretrained", "untrained"), ">=", 10.0,
        ),
        (
            "frozen_encoder",
            "on frozen states lama is at most a point behind structured",
            gap_of(found, "lama", "structured"), ">=", -1.0,
        ),
        (
            "frozen_encoder_above_mean",
            "on frozen states lama reads better than their mean",
            gap_of(found, "lama", "mean"), ">", 0.0,
        ),
    ):  # fmt: skip
        report.claim(
            id, claim, paper="not in the paper", measured=gap, op=op, bound=bound,
            unit="points of accuracy", ci95=interval, n=len(config.seeds),
            reason=f"The difference is {gap:+.2f} points.",
        )  # fmt: skip


def _frozen(
    config: Any, data: Labelled, made: Encoded, kind: str, names: Iterable[str]
) -> dict[str, Any]:
    """Test accuracies of heads on the states of one encoder, by pooling."""
    model = made.model if kind == "pretrained" else made.start
    hidden, labels = features(model, made.ids), data.labels[made.rows]
    mask, width, found = made.ids != 0, hidden.shape[-1], {}
    fields = (
        "head_train", "head_test", "head_epochs", "batch", "learning_rate", "dropout",
        "heads", "hidden", "seeds", "length",
    )  # fmt: skip
    key = {field: getattr(config, field) for field in fields}
    key |= {"encoder": made.key, "kind": kind, "sha256": data.sha256}
    for name in names:
        head = head_of(config, name, width, data.classes)
        build = functools.partial(_build, config, head, (hidden, mask, labels))
        folder = cached("lama_frozen", key | {"name": name}, build)
        values = json.loads((folder / "accuracies.json").read_text())
        found[name] = {"accuracy": values, "seconds": [0.0]}
    return found


def _build(config: Any, head: classify.HeadConfig, states: Any, folder: Path) -> None:
    values = [_head_accuracy(config, head, seed, *states) for seed in config.seeds]
    (folder / "accuracies.json").write_text(json.dumps(values))


_read = jax.jit(classify.read_hidden, static_argnums=1)


def _head_accuracy(
    config: Any,
    head: classify.HeadConfig,
    seed: int,
    hidden: np.ndarray,
    mask: np.ndarray,
    labels: np.ndarray,
) -> float:
    """Test accuracy of a head that was trained on states made before."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen, rest = order[: config.head_train], order[config.head_train :]
    take = lambda rows: {"hidden": hidden[rows], "mask": mask[rows]}
    arrays = take(chosen) | {"labels": labels[chosen]}
    first, second = jax.random.split(jax.random.key(seed))
    result = train.fit(
        classify.head_loss(head), classify.init_head(head, first),
        data=classify.shuffled_batches(arrays, batch=config.batch, seed=seed),
        steps=config.head_epochs * (len(chosen) // config.batch), key=second,
        optimizer=optimizer(config.learning_rate), log_every=1000, progress=False,
    )  # fmt: skip
    made = _read(result.trainable, head, *take(rest).values())
    return float((np.asarray(made.logits).argmax(1) == labels[rest]).mean())
