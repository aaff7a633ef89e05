"""LibriSpeech, spelt by a Whisper encoder whose middle layer leaves fewer tokens.

The encoder stays as it is. A linear head on its 50 vectors a second is trained to spell
(CTC) at full length. Then one layer in the middle merges or drops tokens; at the end
every token gets the row that it joined (a dropped one that of the last kept token
before it), so that the head reads as many vectors as ever. Methods with parameters have
no place inside a frozen encoder and are left out.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.spoken_claims import Results
from experiments.spoken_models import Arm
from jtok import models
from jtok.compress import attention_scores, compress, flops, schedule

__all__ = ["compressor", "head_steps", "spell", "spread", "word_errors"]

_LETTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ'"  # ids from 1; 0 is the blank
_TOKEN = 320  # samples of 16 kHz
_CHUNK = 30 * 16_000


def spell(config: Any, arms: Sequence[Arm], report: Any) -> Results:
    """Trains the head and measures words at full length and at every share.

    Args:
      config: the experiment's: `sound` is the folder of LibriSpeech as it is unpacked,
        with `train-clean-100` and `test-clean`; reading its files needs `soundfile`.
      arms: what is compared.
      report: where the model and the data are named.

    Returns:
      `Results`, whose per cents are 100 minus the word error rate.
    """
    model = models.load(config.model)
    report.artifact("model", config.model)
    root = Path(config.sound)
    head = head_steps(
        model, _utterances(root / "train-clean-100", 0), steps=config.head_steps,
        batch=config.batch, rate=config.rate, report=report,
    )  # fmt: skip
    tested = list(_utterances(root / "test-clean", config.limit))
    report.data("LibriSpeech, test-clean", "\n".join(t for _, t in tested).encode())
    whole = [_asked(model, head, tested, None, 1.0)]
    found = {
        (arm.label, share): [_asked(model, head, tested, arm, share)]
        for arm in report.progress(arms, "methods")
        if not arm.trained
        for share in config.keep
    }
    return Results(arms, config.keep, whole, found, ("test-clean",))


def _utterances(folder: Path, limit: int) -> Iterator[tuple[np.ndarray, str]]:
    """Samples and words, in the order of the files; all of them for a limit of 0."""
    import soundfile

    count = 0
    for listed in sorted(folder.rglob("*.trans.txt")):
        for line in listed.read_text(encoding="utf-8").splitlines():
            if limit and count >= limit:
                return
            name, _, text = line.partition(" ")
            samples, _ = soundfile.read(listed.parent / f"{name}.flac", dtype="float32")
            count += 1
            yield samples[:_CHUNK], text


@jax.jit
def _hidden(model: models.Model, frames: Array) -> Array:
    out: Array = model(frames, logits="none").hidden
    return out


def head_steps(
    model: models.Model, utterances: Iterator[tuple[np.ndarray, str]], *, steps: int,
    batch: int, rate: float, report: Any,
) -> Array:  # fmt: skip
    """Trains the head by CTC, each utterance at most once.

    Args:
      model: an encoder of sound with its processor; it stays.
      utterances: samples and words.
      steps: updates at most.
      batch: utterances of each.
      rate: of Adam.
      report: gets the losses.

    Returns:
      `[width, letters and blank]`.
    """
    head = jnp.zeros((model.config.width, 1 + len(_LETTERS)))
    optimizer = optax.adam(rate)
    state = optimizer.init(head)

    @jax.jit
    def update(head: Array, state: Any, *given: Array) -> tuple[Array, Any, Array]:
        loss = lambda head: _ctc(head, *given)
        value, grads = jax.value_and_grad(loss)(head)
        updates, state = optimizer.update(grads, state, head)
        return optax.apply_updates(head, updates), state, value

    for step in report.progress(range(steps), "head"):
        some = [item for item, _ in zip(utterances, range(batch))]
        if len(some) < batch:
            break
        frames = model.processor([samples for samples, _ in some]).frames
        hidden = _hidden(model, frames)
        spelt = [_ids(text) for _, text in some]
        most = 512
        labels = np.zeros((batch, most), np.int32)
        for row, ids in zip(labels, spelt, strict=True):
            row[: len(ids)] = ids[:most]
        there = _there([samples for samples, _ in some], hidden.shape[1])
        head, state, loss = update(head, state, hidden, there, jnp.asarray(labels))
        report.metric(step=step, loss=float(loss))
    return head


def _ids(text: str) -> list[int]:
    return [1 + _LETTERS.index(c) for c in text.upper() if c in _LETTERS]


def _there(samples: Sequence[np.ndarray], tokens: int) -> Array:
    count = np.array([-(-len(one) // _TOKEN) for one in samples])
    return jnp.asarray(np.arange(tokens)[None] < count[:, None])


def _ctc(head: Array, hidden: Array, there: Array, labels: Array) -> Array:
    logits = hidden.astype(jnp.float32) @ head
    none = jnp.where(labels > 0, 0.0, 1.0)
    each = optax.ctc_loss(logits, jnp.where(there, 0.0, 1.0), labels, none)
    return jnp.sum(each) / jnp.maximum(jnp.sum(labels > 0), 1)


# Fewer tokens ------------------------


def compressor(arm: Arm, share: float, seq: int, layer: int) -> Any:
    """What one layer does for an arm: a `jtok.models.Compressor`.

    Args:
      arm: one without training.
      share: of tokens that is left.
      seq: tokens that there are.
      layer: the one after which they leave.

    Returns:
      The schedule.
    """
    merges = arm.method in ("adjacent", "tome", "frame_pooling")
    return schedule(
        _METHODS[arm.method], counts=(int(share * seq),), layers=(layer,),
        where="layer", how="weighted" if merges else "prune", proportional=merges,
        metric=_received if arm.method == "fastv" else "keys",
    )  # fmt: skip


def _received(view: models.LayerView) -> Array:
    """Attention that each token receives, `[batch, seq, heads]`."""
    scores = attention_scores(view.query, view.key, of="mean", valid=view.valid)
    return jnp.moveaxis(scores, 1, 2)


def _ranked(scores: Array, *, budget: int, valid: Array) -> Any:
    attn = jnp.moveaxis(scores, 2, 1)
    return compress(scores, "fastv", budget=budget, attn=attn, valid=valid)


def _drawn(metric: Array, *, budget: int, valid: Array, key: Array) -> Any:
    return compress(metric, "random", budget=budget, valid=valid, key=key)


def _plain(name: str) -> Any:
    def method(metric: Array, *, budget: int, valid: Array) -> Any:
        return compress(metric, name, budget=budget, valid=valid)

    return method


_METHODS: dict[str, Any] = {
    name: _plain(name)
    for name in ("adjacent", "divprune", "frame_pooling", "tome", "uniform")
} | {"fastv": _ranked, "random": _drawn}


def spread(plan: Any, rows: Array) -> Array:
    """Every token gets its row, dropped ones that of the last token before them."""
    index = jnp.arange(plan.assign.shape[1])[None]
    last = jax.lax.cummax(jnp.where(plan.assign >= 0, index, 0), axis=1)
    at = jnp.maximum(jnp.take_along_axis(plan.assign, last, axis=1), 0)
    return jnp.take_along_axis(rows, at[..., None], axis=1)


@functools.partial(jax.jit, static_argnums=2)
def _said(model: models.Model, head: Array, compress: Any, frames: Array) -> Array:
    """The likeliest letter of every token."""
    if compress is None:
        hidden = model(frames, logits="none").hidden
    else:
        seen: Any = model
        out = seen(frames, logits="none", compress=compress)
        hidden = spread(out.plan, out.hidden)
    return jnp.argmax(hidden.astype(jnp.float32) @ head, axis=-1)


def _asked(
    model: models.Model, head: Array, tested: Sequence[tuple[np.ndarray, str]],
    arm: Arm | None, share: float,
) -> dict[str, float]:  # fmt: skip
    config: Any = model.config
    middle, seq = config.num_layers // 2 - 1, config.max_positions
    act = None if arm is None else compressor(arm, share, seq, middle)
    wrong = words = 0
    seconds = []
    for samples, text in tested:
        frames = model.processor([samples]).frames
        start = time.perf_counter()
        letters = np.asarray(_said(model, head, act, frames)[0])
        seconds.append(time.perf_counter() - start)
        heard = letters[: -(-len(samples) // _TOKEN)]
        kept = heard[np.diff(heard, prepend=-1) != 0]
        said = "".join(_LETTERS[i - 1] for i in kept if i)
        wrong += word_errors(text.split(), said.split())
        words += len(text.split())
    left = seq if arm is None else int(share * seq)
    counts = [seq] * (middle + 1) + [left] * (config.num_layers - middle)
    return {
        "accuracy": 100 * (1 - wrong / max(words, 1)),
        "rows": float(left),
        "odd": 0.0,
        "MFLOPs": flops(config, counts, where="layer").flops / 1e6,
        "choosing": 0.0,
        "ms": 1000 * float(np.median(seconds)),
    }


def word_errors(wanted: Sequence[str], said: Sequence[str]) -> int:
    """Words put in, left out and changed: the least number.

    Args:
      wanted: the words of the reference.
      said: the words that were heard.

    Returns:
      The edit distance.
    """
    row = list(range(len(said) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, before + (word != other))
            before, row[j] = row[j], cost
    return row[-1]
