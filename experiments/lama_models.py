"""A small frozen encoder for the low-rank attention experiment, and timing."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.cache import cached
from experiments.labelled_texts import Labelled
from jtok import classify, models, testing, train
from jtok.classify import WordList, shuffled_batches

__all__ = ["encoded", "features", "head_accuracy", "optimizer", "pooling_seconds"]


@functools.lru_cache
def optimizer(rate: float) -> optax.GradientTransformation:
    """Adam, the same object for the same rate, so that steps are compiled once."""
    return optax.adam(rate)


def _masked_encoder(
    words: WordList, ids: np.ndarray, *, width: int, steps: int, sha256: str
) -> tuple[models.Model, str]:
    """A two-layer BERT that was trained to fill gaps in texts, and saw no labels.

    Args:
      words: of the ids; the unknown word stands for a gap.
      ids: `[texts, length]` int32.
      width: of the encoder.
      steps: updates of 64 texts.
      sha256: of the texts.

    Returns:
      The model, and the name of its folder in the cache.
    """
    length = ids.shape[1]
    config = dataclasses.replace(
        testing.tiny_config(vocab_size=words.size, family="bert"), width=width,
        head_dim=width // 4, mlp_width=4 * width, max_positions=length,
    )  # fmt: skip
    gaps = max(1, length // 7)

    def build(folder: Path) -> None:
        start = models.init(config, jax.random.key(0))

        def loss_fn(params: Any, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
            rows = batch["ids"]
            # Real words first, in a random order.
            noise = jax.random.uniform(key, rows.shape) + (rows == 0)
            at = jnp.argsort(noise, axis=1)[:, :gaps]
            labels = jnp.take_along_axis(rows, at, axis=1)
            noisy = jnp.put_along_axis(rows, at, 1, axis=1, inplace=False)
            whole = dataclasses.replace(start, params=params)
            logits = whole(noisy, mask=rows != 0, logits=at).logits
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            count = jnp.maximum(jnp.sum(labels > 1), 1)
            return jnp.sum(jnp.where(labels > 1, each, 0.0)) / count, ({}, state)

        data = shuffled_batches({"ids": ids}, batch=min(64, len(ids)), seed=0)
        result = train.fit(
            loss_fn, start.params, optimizer=optax.adam(1e-3), data=data, steps=steps,
            key=jax.random.key(1), log_every=100, progress=False,
        )  # fmt: skip
        model = dataclasses.replace(start, params=result.trainable)
        models.save(model, folder / "bert")

    key = {"sha256": sha256, "words": words.size, "width": width, "steps": steps}
    folder = cached("lama_encoder", key | {"rows": list(ids.shape)}, build)
    return models.load(folder / "bert"), folder.name


def features(model: models.Model, ids: np.ndarray, *, batch: int = 100) -> np.ndarray:
    """`[texts, length, width]` float32 states of an encoder's last layer; 0 pads."""
    read = jax.jit(_hidden)
    parts = []
    for start in range(0, len(ids), batch):
        rows = ids[start : start + batch]
        short = batch - len(rows)
        made = read(model, np.pad(rows, ((0, short), (0, 0))))
        parts.append(np.asarray(made)[: len(rows)])
    return np.concatenate(parts)


def _hidden(model: models.Model, ids: jax.Array) -> jax.Array:
    return model(ids, mask=ids != 0, logits="none").hidden.astype(jnp.float32)


def pooling_seconds(params: Any, head: classify.HeadConfig, x: jax.Array) -> float:
    """The median of nine calls."""
    call = jax.jit(classify.read_hidden, static_argnums=1).lower(params, head, x)
    read = call.compile()
    jax.block_until_ready(read(params, x))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready(read(params, x))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def encoded(config: Any, data: Labelled, report: Any) -> tuple[np.ndarray, Any]:
    """Ids of the texts, 0 for padding, and the encoder that reads them."""
    if not config.encoder:
        words = classify.WordList.build(data.texts, min_count=2, most=config.most_words)
        ids, _ = words.encode(data.texts, length=config.length)
        model, key = _masked_encoder(
            words, ids, width=config.encoder_width, steps=config.encoder_steps,
            sha256=data.sha256,
        )  # fmt: skip
        report.artifact("encoder", key)
        return ids, model
    model = models.load(config.encoder)
    report.artifact("encoder", config.encoder)
    ids = np.zeros((len(data.texts), config.length), np.int32)
    for row, text in enumerate(data.texts):
        some = model.vocabulary.encode(text)[: config.length]
        ids[row, : len(some)] = some
    return ids, model


def head_accuracy(
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
        steps=config.epochs * (len(chosen) // config.batch), key=second, log_every=1000,
        optimizer=optimizer(config.learning_rate), progress=False,
    )  # fmt: skip
    read = jax.jit(classify.read_hidden, static_argnums=1)
    made = read(result.trainable, head, *take(rest).values())
    return float((np.asarray(made.logits).argmax(1) == labels[rest]).mean())
