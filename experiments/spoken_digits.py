"""Spoken digits with fewer frames: averages and neighbours are free, chance is not.

A small encoder learns which digit was spoken, from recordings of people (log-mel
frames, 10 ms). Its first block reads all frames; then a half, a quarter or an eighth of
them is left to the other blocks, by methods of `jtok.compress.methods()`: averages,
neighbours that are alike, ToMe, DivPrune, the attention that frames receive, random
and evenly spaced ones. Others are trained, with the head behind them, while all blocks
stay: stacked frames (SLAM-ASR), a Perceiver, a Q-Former on windows, and averages and
even spacing with a head of their own.

There are four speakers. Each seed holds out another one (`jackson`, `nicolas`, `theo`)
and trains on the three that are left, so accuracy is that for a voice never heard, and
intervals are over voices. All methods of a seed share a model and its recordings, so
differences are paired. A recording ends with up to 70 ms of silence that count, for
shares to be whole numbers of frames; nothing else is padded.

```
python -m experiments.run spoken_digits
python -m experiments.run spoken_digits --preset full
```

The survey (arXiv 2507.20198) has no such figures. About 8 minutes on 2 free CPU cores
(an estimate), models included. `full` asks a Whisper encoder to spell LibriSpeech.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from experiments import (
    spoken_claims,
    spoken_librispeech,
    spoken_models,
    spoken_pictures,
    spoken_sound,
)
from experiments.cache import cached
from experiments.spoken_models import ARMS, Arm, Front
from experiments.spoken_sound import DATA, Sound
from jtok import testing
from jtok.compress import flops

CLAIMS = (
    "informative",
    "budgets",
    "averages",
    "neighbours",
    "random",
    "attention",
    "head",
    "stacking",
    "windows",
    "cheaper",
    "faster",
)
SOURCES = (
    "experiments/cache.py",
    "experiments/spoken_claims.py",
    "experiments/spoken_models.py",
    "experiments/spoken_sound.py",
    "jtok/compress/adjacent.py",
    "jtok/compress/attention_scores.py",
    "jtok/compress/baselines.py",
    "jtok/compress/connected.py",
    "jtok/compress/divprune.py",
    "jtok/compress/fastv.py",
    "jtok/compress/flops.py",
    "jtok/compress/frames.py",
    "jtok/compress/queries.py",
    "jtok/compress/rounds.py",
    "jtok/compress/tome.py",
    "jtok/nn/encoder.py",
    "jtok/ops/plan.py",
)
MINUTES = {"smoke": 0.3, "small": 8, "full": 600}

_DRAWN = 7  # seed of the generators of random frames, folded with that of the model


@dataclasses.dataclass(frozen=True)
class Config:
    """The model, its training, and how many frames are left.

    Each seed holds out the speaker of that number and trains `steps` updates of `batch`
    recordings (of at most `longest` frames, lengths being multiples of `multiple`, of
    `limit` takes a digit, 0 for all). What has parameters is trained `connector_steps`
    at each of the shares `keep`, on `rounds` variations of each recording. Of the arms
    those named in `arms` are compared, () for all. Times are those of recordings of
    `clock` frames, the least of `repeats`. With `model`, a hub id or folder of a
    Whisper, that one spells `limit` recordings of LibriSpeech in the folder `sound`,
    with a head trained on `head_steps` batches.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 64
    layers: int = 3
    heads: int = 4
    longest: int = 64
    shortest: int = 24
    multiple: int = 8
    limit: int = 0
    steps: int = 800
    batch: int = 32
    rate: float = 2e-3
    connector_steps: int = 200
    connector_rate: float = 2e-3
    rounds: int = 3
    keep: tuple[float, ...] = (1 / 2, 1 / 4, 1 / 8)
    arms: tuple[str, ...] = ()
    clock: int = 48
    repeats: int = 10
    model: str = ""
    sound: str = ""
    head_steps: int = 0


PRESETS = {
    "smoke": Config(
        seeds=(0,), width=16, layers=2, heads=2, multiple=32, shortest=32, limit=1,
        steps=3, batch=4, connector_steps=2, rounds=1, keep=(1 / 8,), clock=32,
        repeats=1,
        arms=(
            "average pooling", "average pooling, head", "adjacent merging", "random",
            "uniform", "top attention",
        ),
    ),
    "small": Config(),
    "full": Config(
        seeds=(0,), model="openai/whisper-base", sound="LibriSpeech", limit=1000,
        head_steps=4000, batch=16, rate=1e-3,
    ),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Trains or finds the models, and lets them read fewer and fewer frames.

    Args:
      config: what to train and to measure.
      report: where the figures go.
    """
    if config.model:
        results = spoken_librispeech.spell(config, _arms(config), report)
    else:
        results = _digits(config, report)
    rows = spoken_claims.table(results)
    report.table("All methods", rows)
    report.figure("Accuracy against FLOPs", spoken_pictures.pareto(rows))
    spoken_claims.claim_all(results, report)


def _arms(config: Config) -> list[Arm]:
    return [arm for arm in ARMS if not config.arms or arm.label in config.arms]


# Digits ------------------------


def _digits(config: Config, report: Any) -> spoken_claims.Results:
    sizes = (config.longest, config.multiple, config.shortest, config.limit)
    sound = spoken_sound.recordings(*sizes)
    report.data(DATA, testing.data(DATA))
    whole: list[dict[str, float]] = []
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    for number, seed in enumerate(report.progress(config.seeds, "speakers")):
        trial = _trial(config, sound, seed, report, timed=number == 0)
        whole.append(trial.whole())
        for arm in _arms(config):
            for share in config.keep:
                row = trial.measure(arm, share)
                found.setdefault((arm.label, share), []).append(row)
                report.metric(seed=seed, arm=arm.label, share=share, **row)
        if number == 0:
            trial.draw(_arms(config), report)
    names = tuple(sound.names[seed] for seed in config.seeds)
    return spoken_claims.Results(_arms(config), config.keep, whole, found, names)


def _some(sound: Sound, rows: np.ndarray) -> Sound:
    parts = (sound.frames, sound.length, sound.digits, sound.speakers)
    return Sound(*(part[rows] for part in parts), names=sound.names)


def _latents(sound: Sound, share: float) -> int:
    """A Perceiver has as many rows for all as the others have on average."""
    return max(round(share * float(sound.length.mean())), 1)


def _trial(
    config: Config, sound: Sound, seed: int, report: Any, *, timed: bool
) -> "Trial":
    """A model of three speakers, its connectors, and the fourth speaker."""
    made = spoken_models.encoder(
        config.width, config.layers, config.heads, config.longest
    )
    heard = _some(sound, np.flatnonzero(sound.speakers != seed))
    names = (
        "width", "layers", "heads", "longest", "shortest", "multiple", "limit", "steps",
        "batch", "rate",
    )  # fmt: skip
    key = {name: getattr(config, name) for name in names} | {"seed": seed, "version": 1}
    new = spoken_models.new_model(made, jax.random.key(seed))

    def build(folder: Path) -> None:
        start = time.perf_counter()
        params, loss = spoken_models.train(
            made, new, heard, multiple=config.multiple, steps=config.steps,
            batch=config.batch, rate=config.rate, seed=seed,
        )  # fmt: skip
        report.metric(seed=seed, loss=loss, seconds=time.perf_counter() - start)
        (folder / "model.msgpack").write_bytes(serialization.to_bytes(params))

    folder = cached("spoken_digits", key, build)
    report.artifact(f"encoder without {sound.names[seed]}", folder.name)
    data = (folder / "model.msgpack").read_bytes()
    params = serialization.from_bytes(new, data)
    fitted = _fitted(config, made, params, sound, heard, key, report)
    held_out = _some(sound, np.flatnonzero(sound.speakers == seed))
    return Trial(config, made, params, fitted, sound, held_out, seed, timed)


def _fitted(
    config: Config, made: Any, params: Any, sound: Sound, heard: Sound,
    base: dict[str, Any], report: Any,
) -> dict[tuple[str, float], Any]:  # fmt: skip
    """What is trained behind the first block, by label and share."""
    seed = base["seed"]
    wanted = [(arm, share) for arm in _arms(config) for share in config.keep]
    wanted = [(arm, share) for arm, share in wanted if arm.trained]
    names = ("connector_steps", "connector_rate", "rounds", "keep", "arms")
    key = {"base": base} | {name: getattr(config, name) for name in names}

    def build(folder: Path) -> None:
        data = spoken_models.features(
            made, params, heard, multiple=config.multiple, rounds=config.rounds,
            seed=seed + 1,
        )  # fmt: skip
        for index, (arm, share) in enumerate(wanted):
            start = time.perf_counter()
            new = spoken_models.fit_connector(
                made, arm, share, _latents(sound, share), params, data,
                steps=config.connector_steps, batch=config.batch,
                rate=config.connector_rate, seed=seed,
            )  # fmt: skip
            path = folder / f"{index}.msgpack"
            path.write_bytes(serialization.to_bytes(new))
            seconds = time.perf_counter() - start
            report.metric(seed=seed, arm=arm.label, share=share, seconds=seconds)

    folder = cached("spoken_connectors", key, build)
    report.artifact(f"connectors without {sound.names[seed]}", folder.name)
    fitted = {}
    for index, (arm, share) in enumerate(wanted):
        new = spoken_models.connector(
            made, arm, share, _latents(sound, share), jax.random.key(0)
        )
        like = {
            "connector": new,
            "final_norm": params["encoder"]["final_norm"],
            "head": params["head"],
        }
        data = (folder / f"{index}.msgpack").read_bytes()
        fitted[arm.label, share] = serialization.from_bytes(like, data)
    return fitted


@dataclasses.dataclass
class Trial:
    """A trained model, and the recordings of the speaker that it never heard."""

    config: Config
    encoder: Any
    params: Any
    fitted: dict[tuple[str, float], Any]
    sound: Sound
    held_out: Sound
    seed: int
    timed: bool

    def __post_init__(self) -> None:
        frames, length = self.held_out.frames, self.held_out.length
        self.real = jnp.arange(frames.shape[1])[None] < length[:, None]
        self.seen = spoken_models.front(self.encoder, self.params, frames, self.real)
        key = jax.random.fold_in(jax.random.key(_DRAWN), self.seed)
        self.keys = jax.random.split(key, len(length))

    def right(self, logits: Any) -> float:
        """Per cent of recordings that are named right."""
        said = np.asarray(jnp.argmax(logits, axis=-1))
        return float(100 * np.mean(said == self.held_out.digits))

    def whole(self) -> dict[str, float]:
        """With all frames."""
        left = (self.seen.x, jnp.ones(self.real.shape), self.real)
        logits = spoken_models.answers(self.encoder, self.params, *left)
        length = self.held_out.length
        row = {"accuracy": self.right(logits), "rows": float(length.mean())}
        row |= {"odd": 0.0, "MFLOPs": self._mflops(length), "choosing": 0.0}
        if self.timed:
            seen, _, real = self._at_clock()
            rest = (seen.x, jnp.ones(real.shape), real)
            row["ms"] = self._clock_front() + self._clock(
                lambda *left: spoken_models.answers(self.encoder, self.params, *left),
                *rest,
            )
        return row

    def _mflops(self, left: np.ndarray) -> float:
        """Of all blocks, a recording; the first one reads all frames."""
        blocks = self.encoder.num_layers
        cost = lambda n, k: (
            flops(self.encoder, (n, *([k] * blocks)), where="layer").flops
        )
        pairs = zip(self.held_out.length.tolist(), left.tolist(), strict=True)
        return float(np.mean([cost(n, k) for n, k in pairs])) / 1e6

    def measure(self, arm: Arm, share: float) -> dict[str, float]:
        """Accuracy, rows, arithmetic and time of an arm at a share of frames."""
        rows, size, valid = self._left(arm, share)
        params, merges = self._head(arm, share), self._merges(arm)
        logits = spoken_models.answers(self.encoder, params, rows, size, valid, merges)
        left = np.asarray(jnp.sum(valid, axis=1))
        wanted = np.round(share * self.held_out.length)
        if arm.method == "perceiver":
            wanted = np.full(len(left), _latents(self.sound, share))
        row = {
            "accuracy": self.right(logits),
            "rows": float(left.mean()),
            "odd": float(np.abs(left - wanted).max()),
            "MFLOPs": self._mflops(left),
        }
        if self.timed:
            row |= self._times(arm, share, params, merges)
        return row

    def _head(self, arm: Arm, share: float) -> Any:
        if not arm.trained:
            return self.params
        return spoken_models.with_head(self.params, self.fitted[arm.label, share])

    @staticmethod
    def _merges(arm: Arm) -> bool:
        """Rows stand for different numbers of frames, which attention counts."""
        return arm.method in ("adjacent", "tome")

    def _left(self, arm: Arm, share: float) -> tuple[Any, Any, Any]:
        """Rows, sizes, validity of all recordings."""
        length = jnp.asarray(self.held_out.length)
        if arm.in_windows:
            return self._padded(arm, share, self.seen.x, length)
        most = round(share * self.config.longest)
        count, width = self.seen.x.shape[0], self.seen.x.shape[-1]
        rows = np.zeros((count, most, width), np.float32)
        size, valid = np.zeros((count, most)), np.zeros((count, most), bool)
        for n in np.unique(self.sound.length).tolist():
            here, filled = self._of_length(n)
            if len(here) == 0:
                continue
            cut = self._cut(filled, n)
            out = spoken_models.choose(arm, cut, round(share * n), self.keys[filled])
            k = out.tokens.shape[1]
            rows[here, :k] = np.asarray(out.tokens)[: len(here)]
            size[here, :k] = np.asarray(out.size)[: len(here)]
            valid[here, :k] = np.asarray(out.valid)[: len(here)]
        return jnp.asarray(rows), jnp.asarray(size, jnp.float32), jnp.asarray(valid)

    def _cut(self, rows: np.ndarray, n: int) -> Front:
        return Front(*(part[rows, :n] for part in self.seen))

    def _of_length(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Recordings of that many frames; the same, as many for every speaker."""
        here = np.flatnonzero(self.held_out.length == n)
        same = self.sound.length == n
        most = int(np.bincount(self.sound.speakers[same]).max())
        return here, np.resize(here, most) if len(here) else here

    def _padded(self, arm: Arm, share: float, x: Any, length: Any) -> Any:
        trained = self.fitted.get((arm.label, share), {"connector": {}})
        return spoken_models.padded(
            self.encoder, arm, share, _latents(self.sound, share), trained["connector"],
            x, length,
        )  # fmt: skip

    # Time ------------------------

    def _at_clock(self) -> tuple[Front, Any, Any]:
        """As many frames as a timing has: the first block's, generators, all real."""
        n = self.config.clock
        long = np.flatnonzero(self.held_out.length >= n)
        rows = np.resize(long if len(long) else np.arange(1), self.config.batch)
        return self._cut(rows, n), self.keys[rows], jnp.ones((len(rows), n), bool)

    def _clock(self, function: Callable[..., Any], *arrays: Any) -> float:
        """Milliseconds a recording, the least of several calls."""
        jax.block_until_ready(function(*arrays))
        best = np.inf
        for _ in range(self.config.repeats):
            start = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            best = min(best, time.perf_counter() - start)
        return 1000 * best / self.config.batch

    def _clock_front(self) -> float:
        _, _, real = self._at_clock()
        frames = jnp.zeros((*real.shape, self.held_out.frames.shape[-1]))
        read = lambda frames: spoken_models.front(
            self.encoder, self.params, frames, real
        )
        return self._clock(read, frames)

    def _times(
        self, arm: Arm, share: float, params: Any, merges: bool
    ) -> dict[str, float]:
        """Time of all parts, compiled, and what choosing computes."""
        seen, keys, real = self._at_clock()
        length = jnp.sum(real, axis=1)

        def act(seen: Front) -> Any:
            if arm.in_windows:
                return self._padded(arm, share, seen.x, length)
            budget = round(share * self.config.clock)
            out = spoken_models.choose(arm, seen, budget, keys)
            return out.tokens, out.size, out.valid

        rest = lambda *left: spoken_models.answers(self.encoder, params, *left, merges)
        choosing = self._clock(act, seen)
        counted: Any = jax.jit(act).lower(seen).cost_analysis()
        operations = float((counted or {}).get("flops", 0.0)) / self.config.batch
        return {
            "choosing": operations / 1e6,
            "ms": self._clock_front() + choosing + self._clock(rest, *act(seen)),
        }

    # Pictures ------------------------

    def draw(self, arms: list[Arm], report: Any) -> None:
        """What is left of one recording, on its spectrogram."""
        middle = np.median(self.held_out.length)
        n = int(min(self.held_out.length, key=lambda length: abs(length - middle)))
        row = int(np.flatnonzero(self.held_out.length == n)[0])
        seen = self._cut(np.array([row]), n)
        plans = {}
        for arm in arms:
            for share in self.config.keep[-2:]:
                if arm.trained:
                    continue
                if arm.in_windows:
                    plans[arm.label, share] = spoken_pictures.windows(n, share)
                else:
                    keys = self.keys[row : row + 1]
                    out = spoken_models.choose(arm, seen, round(share * n), keys)
                    plans[arm.label, share] = jax.tree.map(
                        lambda leaf: np.asarray(leaf[0]), out.plan
                    )
        said = f"{self.held_out.digits[row]}, {self.sound.names[self.seed]}"
        picture = spoken_pictures.kept(self.held_out.frames[row, :n], plans, said)
        report.figure("What is kept (white), or merged (one colour)", picture)
