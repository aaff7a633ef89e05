"""The frozen encoder of the low-rank attention experiment, taught to fill gaps."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.cache import cached
from experiments.labelled_texts import Labelled
from jtok import models, testing, train
from jtok.classify import WordList, shuffled_batches

__all__ = ["Encoded", "encoded", "features"]

_UNKNOWN = 1  # also stands for a gap


class Encoded(NamedTuple):
    """Texts that an encoder never saw, as ids, and the encoder.

    `rows` are their places in the set, `start` is an encoder of the same shape that was
    never trained, and `nats` are what a masked word of these texts costs by the
    frequencies of words, before training and after it; empty for a public encoder.
    `key` tells encoders apart.
    """

    rows: np.ndarray
    ids: np.ndarray
    model: models.Model
    start: models.Model
    nats: dict[str, float]
    key: str


def encoded(config: Any, data: Labelled, other: list[str], report: Any) -> Encoded:
    """A public encoder, or a small one that is trained on some of the texts.

    Args:
      config: of the experiment; `head_train + head_test` texts are given back.
      data: the set; the small encoder reads `encoder_texts` others, and no labels.
      other: texts that it reads beside them, with Brown, in half of each batch.
      report: told what the encoder is.

    Returns:
      `Encoded`.
    """
    count = config.head_train + config.head_test
    order = np.random.default_rng(0).permutation(len(data.texts))
    if config.encoder:
        return _public(config, data, order[:count], report)
    other = [*other, _brown(report)]
    seen, rest = np.split(order[: config.encoder_texts + count], [config.encoder_texts])
    own = [data.texts[row] for row in seen]
    words = WordList.build(own, min_count=2, most=config.encoder_words)
    length = config.length
    ids, _ = words.encode([data.texts[row] for row in rest], length=length)
    shape = _shape(config, words)
    start = models.init(shape, jax.random.key(0))

    def build(folder: Path) -> None:
        near, _ = words.encode(own, length=length)
        far = np.concatenate([_windows(words.ids(text), length) for text in other])
        model = _pretrained(start, near, far, config.encoder_steps)
        nats = {
            "frequencies of words": _by_frequency(near, ids),
            "before training": _masked_nats(start, ids),
            "after training": _masked_nats(model, ids),
        }
        (folder / "nats.json").write_text(json.dumps(nats))
        models.save(model, folder / "model")

    key = {
        "sha256": data.sha256, "texts": len(own), "other": sum(map(len, other)),
        "length": length, "steps": config.encoder_steps, "version": 1,
        "shape": dataclasses.asdict(shape),
    }  # fmt: skip
    folder = cached("lama_encoder", key, build)
    report.artifact("encoder", folder.name)
    nats = json.loads((folder / "nats.json").read_text())
    return Encoded(rest, ids, models.load(folder / "model"), start, nats, folder.name)


def _shape(config: Any, words: WordList) -> Any:
    """ModernBERT's layers: norms before them, rotary positions, gated MLPs."""
    width = config.encoder_width
    return dataclasses.replace(
        testing.tiny_config(vocab_size=words.size, family="modernbert"), width=width,
        head_dim=width // 4, mlp_width=2 * width, max_positions=config.length,
    )  # fmt: skip


def _public(config: Any, data: Labelled, rows: np.ndarray, report: Any) -> Encoded:
    model = models.load(config.encoder)
    report.artifact("encoder", config.encoder)
    ids = np.zeros((len(rows), config.length), np.int32)
    for at, row in enumerate(rows):
        some = model.vocabulary.encode(data.texts[row])[: config.length]
        ids[at, : len(some)] = some
    start = models.init(model.config, jax.random.key(0))
    return Encoded(rows, ids, model, start, {}, config.encoder)


def _brown(report: Any) -> str:
    """The Brown corpus as one text."""
    path = testing.data("text/brown.txt.gz")
    report.data("text/brown.txt.gz", path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def _windows(ids: np.ndarray, length: int) -> np.ndarray:
    """Whole rows of a longer text, in order."""
    count = len(ids) // length
    return ids[: count * length].reshape(count, length)


# Filling gaps ------------------------


def _gaps(rows: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows of which a quarter is masked, where that is, and what stood there."""
    # Real words first, in a random order.
    noise = jax.random.uniform(key, rows.shape) + (rows == 0)
    at = jnp.argsort(noise, axis=1)[:, : max(1, rows.shape[1] // 4)]
    labels = jnp.take_along_axis(rows, at, axis=1)
    return jnp.put_along_axis(rows, at, _UNKNOWN, axis=1, inplace=False), at, labels


def _gap_loss(model: models.Model, rows: jax.Array, key: jax.Array) -> jax.Array:
    """Mean nats of masked words; unknown ones and padding do not count."""
    noisy, at, labels = _gaps(rows, key)
    logits = model(noisy, mask=rows != 0, logits=at).logits
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    known = labels > _UNKNOWN
    return jnp.sum(jnp.where(known, each, 0.0)) / jnp.maximum(jnp.sum(known), 1)


def _pretrained(
    start: models.Model, near: np.ndarray, far: np.ndarray, steps: int
) -> models.Model:
    half = min(32, len(near), len(far))
    own = shuffled_batches({"ids": near}, batch=half, seed=0)
    beside = shuffled_batches({"ids": far}, batch=half, seed=1)

    def data(step: int) -> dict[str, np.ndarray]:
        return {"ids": np.concatenate([own(step)["ids"], beside(step)["ids"]])}

    def loss_fn(params: Any, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
        model = dataclasses.replace(start, params=params)
        return _gap_loss(model, batch["ids"], key), ({}, state)

    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, steps // 10 + 1, steps + 1)
    result = train.fit(
        loss_fn, start.params, data=data, steps=steps, key=jax.random.key(1),
        optimizer=train.adamw(rate, weight_decay=0.01, b2=0.98), log_every=100,
        progress=False,
    )  # fmt: skip
    return dataclasses.replace(start, params=result.trainable)


def _masked_nats(model: models.Model, ids: np.ndarray) -> float:
    some = min(100, len(ids))
    read = jax.jit(_gap_loss)
    rows = [ids[i : i + some] for i in range(0, len(ids) - some + 1, some)]
    return float(
        np.mean([read(model, r, jax.random.key(i)) for i, r in enumerate(rows)])
    )


def _by_frequency(seen: np.ndarray, ids: np.ndarray) -> float:
    """Mean nats of known words by how often the encoder read them."""
    counts = np.bincount(seen[seen > _UNKNOWN], minlength=int(ids.max()) + 1) + 1.0
    counts[: _UNKNOWN + 1] = 0.0
    shares = counts / counts.sum()
    return float(-np.log(shares[ids[ids > _UNKNOWN]]).mean())


# States ------------------------


def features(model: models.Model, ids: np.ndarray, *, batch: int = 100) -> np.ndarray:
    """`[texts, length, width]` float32 states of an encoder's last layer."""
    parts = []
    for start in range(0, len(ids), batch):
        rows = ids[start : start + batch]
        short = batch - len(rows)
        made = _hidden(model, np.pad(rows, ((0, short), (0, 0))))
        parts.append(np.asarray(made)[: len(rows)])
    return np.concatenate(parts)


@jax.jit
def _hidden(model: models.Model, ids: jax.Array) -> jax.Array:
    return model(ids, mask=ids != 0, logits="none").hidden.astype(jnp.float32)
