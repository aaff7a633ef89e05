"""Recordings of spoken digits as log-mel frames, and varied ones to train on."""

import functools
import io
import wave
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jtok import models, testing

__all__ = ["BINS", "DATA", "Sound", "recordings", "varied"]

DATA = "speech/free_spoken_digits.zip"
BINS = 64
_RATE, _HOP = 8000, 80


class Sound(NamedTuple):
    """Recordings as log-mel frames.

    Attributes:
      frames: `[recordings, longest, 64]` float32, the loudest bin of each being 1.
      length: `[recordings]` frames that count: those of the recording, and of silence
        up to a multiple.
      digits: `[recordings]` what was said.
      speakers: `[recordings]` numbers of those who said it.
      names: of the speakers, sorted.
    """

    frames: np.ndarray
    length: np.ndarray
    digits: np.ndarray
    speakers: np.ndarray
    names: tuple[str, ...]


def recordings(longest: int, multiple: int, shortest: int, limit: int) -> Sound:
    """Free spoken digits: 25 takes of ten digits by each of four speakers.

    Args:
      longest: frames (10 ms) of a recording; what is behind is cut off.
      multiple: of which lengths are, and
      shortest: the least of them.
      limit: takes of a digit by a speaker; 0 for all.

    Returns:
      `Sound`.
    """
    found = []
    with zipfile.ZipFile(testing.data(DATA)) as packed:
        for name in sorted(packed.namelist()):
            if not name.endswith(".wav"):
                continue
            digit, speaker, take = name.split("/")[-1][:-4].split("_")
            if limit and int(take) >= limit:
                continue
            with wave.open(io.BytesIO(packed.read(name))) as opened:
                data = opened.readframes(opened.getnframes())
            samples = np.frombuffer(data, np.int16).astype(np.float32) / 32768
            found.append((int(digit), speaker, samples[: longest * _HOP]))
    processor = models.SoundProcessor(
        feature_size=BINS, sampling_rate=_RATE, hop_length=_HOP, n_fft=200,
        chunk_length=1,
    )  # fmt: skip
    made = [
        processor([samples for _, _, samples in found[at : at + 100]]).frames
        for at in range(0, len(found), 100)
    ]
    frames = np.concatenate([np.asarray(some) for some in made])[:, :longest]
    frames = frames - frames.max((1, 2), keepdims=True) + 1.0
    heard = np.array([len(samples) / _HOP for _, _, samples in found])
    length = np.ceil(heard / multiple).astype(np.int32) * multiple
    names = tuple(sorted({speaker for _, speaker, _ in found}))
    return Sound(
        frames,
        np.clip(length, shortest, longest),
        np.array([digit for digit, _, _ in found], np.int32),
        np.array([names.index(speaker) for _, speaker, _ in found], np.int32),
        names,
    )


def varied(key: Array, frames: Array, length: Array, multiple: int) -> Any:
    """A recording said faster or slower, higher or lower, elsewhere, with noise.

    Args:
      key: of the random generator.
      frames: `[frames, 64]`.
      length: `[]` frames that count.
      multiple: of which the new length is one.

    Returns:
      Frames and their length.
    """
    keys = jax.random.split(key, 6)
    count, bins = frames.shape
    draw = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    rate = jnp.exp(0.3 * draw(keys[0]))
    at = jnp.arange(count) / rate
    low = jnp.floor(at).astype(jnp.int32)
    part = (at - low)[:, None]
    of = lambda index: frames[jnp.clip(index, 0, count - 1)]
    x = of(low) * (1 - part) + of(low + 1) * part
    shift = jnp.round(4 * draw(keys[1])).astype(jnp.int32)
    x = x[:, jnp.clip(jnp.arange(bins) + shift, 0, bins - 1)]
    x = x + 0.3 * draw(keys[2]) * jnp.linspace(-1.0, 1.0, bins)[None]
    x = x + 0.1 * jax.random.normal(keys[3], x.shape)
    first = jnp.round((bins - 8) * (draw(keys[4]) + 1) / 2)
    hidden = jnp.abs(jnp.arange(bins) - first) < 4 * (draw(keys[5]) + 1)
    x = jnp.where(hidden[None], 0.0, x)
    long = jnp.ceil(length * rate / multiple).astype(jnp.int32) * multiple
    return x, jnp.clip(long, multiple, count)
