"""From samples of sound to log-mel frames, on the device."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import wave
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    UnsupportedCheckpointError,
    check,
)
from jtok.models.fields import Fields
from jtok.models.processor_files import Origin, read_number, refuse_unknown, whole

__all__ = ["SoundFrames", "SoundProcessor", "mel_filters", "read_sound"]

_HIGHEST = 8000.0  # hertz, whatever the rate
_FLOOR, _RANGE = 1e-10, 8.0  # power; decades below the loudest
_KIND = "WhisperFeatureExtractor"


class SoundFrames(NamedTuple):
    """What `SoundProcessor` makes.

    Attributes:
      frames: `[batch, frames, mel bins]` float32.
      mask: `[batch, frames]` bool, True where a frame begins within the sound.
    """

    frames: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundProcessor:
    """Log-mel frames as Whisper reads them; frozen and hashable.

    Attributes:
      feature_size: mel bins.
      sampling_rate: samples a second.
      hop_length: samples from one frame to the next.
      n_fft: samples of a frame's window.
      chunk_length: seconds that a model reads at once.
      padding_value: of the samples after the end.
      origin: the files it was read from.

    Source: Radford et al. 2022, arXiv 2212.04356, section 2.2, and the feature
    extractor of `transformers` 5. Differs: frames come before bins in the result, and
    sound that is too long is refused, unless `cut` says otherwise.

    Example:
      >>> processor = SoundProcessor(chunk_length=1)
      >>> processor(np.zeros(8000, np.float32)).frames.shape
      (1, 100, 80)
    """

    feature_size: int = 80
    sampling_rate: int = 16000
    hop_length: int = 160
    n_fft: int = 400
    chunk_length: int = 30
    padding_value: float = 0.0
    origin: Origin = dataclasses.field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("feature_size", "sampling_rate", "hop_length", "chunk_length"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.n_fft >= 2, "n_fft", self.n_fft, "at least 2")

    def __call__(
        self,
        sound: Any,
        *,
        sampling_rate: int | None = None,
        length: Literal["chunk", "longest"] = "chunk",
        cut: bool = False,
    ) -> SoundFrames:
        """Frames of one sound or several.

        Args:
          sound: `[samples]` floats, as a rule from -1 to 1, of one channel; a list of
            such; `[batch, samples]`; or `.wav` files of whole numbers (PCM).
          sampling_rate: samples a second of `sound`, to be sure; None trusts that it is
            the processor's. Files say theirs.
          length: what sounds are padded to: `chunk_length`, as Whisper was trained, or
            the "longest" of them.
          cut: leave out what is behind `chunk_length`.

        Returns:
          `SoundFrames`.

        Raises:
          ArgumentError: another sampling rate, several channels, no samples, samples
            that are not finite, a sound that is too long, or a file that is none.
          ArgumentTypeError: samples that are no floats.

        Example:
          >>> sounds = [np.zeros(1600, np.float32), np.zeros(800, np.float32)]
          >>> SoundProcessor()(sounds, length="longest").mask.sum(axis=1).tolist()
          [10, 5]
        """
        good = length in ("chunk", "longest")
        check(good, "length", length, "'chunk' or 'longest'")
        if sampling_rate is not None:
            self._check_rate(sampling_rate)
        sounds = [self._samples(item, cut) for item in _listed(sound)]
        most = self.chunk_length * self.sampling_rate
        size = most if length == "chunk" else max(map(len, sounds))
        least = self.n_fft // 2 + 1
        check(size >= least, "sound", f"{size} samples", f"{least} and more")
        padded = np.full((len(sounds), size), self.padding_value, np.float32)
        for row, samples in zip(padded, sounds):
            row[: len(samples)] = samples
        starts = np.arange(size // self.hop_length) * self.hop_length
        mask = starts[None] < np.array([len(samples) for samples in sounds])[:, None]
        return SoundFrames(self.on_device(jnp.asarray(padded)), jnp.asarray(mask))

    def _check_rate(self, rate: int) -> None:
        check(
            rate == self.sampling_rate,
            "sampling_rate",
            rate,
            f"{self.sampling_rate}: resample the sound first",
        )

    def _samples(self, sound: Any, cut: bool) -> np.ndarray:
        if isinstance(sound, str | os.PathLike):
            samples, rate = _read_wave(pathlib.Path(sound))
            self._check_rate(rate)
        else:
            samples = np.asarray(sound)
        if samples.dtype.kind not in "fV" or samples.dtype.names:
            raise ArgumentTypeError(
                f"sound: got dtype {samples.dtype}, expected floats; divide int16 by "
                "32768."
            )
        good = samples.ndim == 1 and samples.size > 0
        check(good, "sound", f"shape {samples.shape}", "[samples] of one channel")
        most = self.chunk_length * self.sampling_rate
        samples = samples[:most] if cut else samples
        seconds = f"{len(samples) / self.sampling_rate:.2f} s"
        wanted = f"at most {self.chunk_length} s; cut=True keeps the start"
        check(len(samples) <= most, "sound", seconds, wanted)
        samples = samples.astype(np.float32)
        finite = bool(np.isfinite(samples).all())
        check(finite, "sound", "samples that are not finite", "finite ones")
        return samples

    def on_device(
        self, samples: Float[Array, "batch samples"]
    ) -> Float[Array, "batch frames bins"]:
        """Frames of sounds of one length, under `jax.jit` too.

        Args:
          samples: `[batch, samples]`, more than half a window.

        Returns:
          `[batch, samples // hop_length, mel bins]` float32. Each sound is clamped at
          8 decades below its own loudest bin.

        Example:
          >>> SoundProcessor().on_device(jnp.zeros((2, 400))).shape
          (2, 2, 80)
        """
        return _log_mel(self._plain(), jnp.asarray(samples, jnp.float32))

    def _plain(self) -> "SoundProcessor":
        """Without the files, so that equal processors share what is compiled."""
        return dataclasses.replace(self, origin=Origin())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files it was read from, with what has changed since.

        Args:
          folder: where; it is there.

        Raises:
          WriteError: it cannot be written.

        Example:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> SoundProcessor().save(folder)
          >>> os.listdir(folder)
          ['preprocessor_config.json']
        """
        self.origin.save(pathlib.Path(folder), _fields_of(self))


def _listed(sound: Any) -> list[Any]:
    if isinstance(sound, list | tuple) and not all(map(np.isscalar, sound)):
        return list(sound)
    if isinstance(sound, list | tuple) and any(isinstance(s, str) for s in sound):
        return list(sound)
    if getattr(sound, "ndim", 1) == 2:
        return list(np.asarray(sound))
    return [sound]


def _read_wave(file: pathlib.Path) -> tuple[np.ndarray, int]:
    """Samples from -1 to 1 and their rate."""
    try:
        with wave.open(str(file), "rb") as opened:
            channels, width = opened.getnchannels(), opened.getsampwidth()
            rate, data = opened.getframerate(), opened.readframes(opened.getnframes())
    except (OSError, EOFError, wave.Error) as why:
        raise ArgumentError(
            f"sound: got the file {str(file)!r}, which cannot be read as PCM ({why})."
        ) from why
    check(channels == 1, "sound", f"{channels} channels in {str(file)!r}", "one")
    if width == 1:  # the only width without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128, rate
    data = data[: len(data) // width * width]
    parts = np.frombuffer(data, np.uint8).reshape(-1, width)
    wide = np.zeros((len(parts), 4), np.uint8)
    wide[:, 4 - width :] = parts
    return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32), rate


def mel_filters(
    num_bins: int, n_fft: int, sampling_rate: int
) -> Float[np.ndarray, "frequencies bins"]:
    """Triangles over the frequencies, equally wide in mel and of equal area.

    Args:
      num_bins: triangles, from 0 to 8000 hertz.
      n_fft: samples of a window.
      sampling_rate: samples a second.

    Returns:
      `[n_fft // 2 + 1, num_bins]` float32.

    Source: Slaney 1998, Auditory Toolbox: linear below 1000 hertz, logarithmic above.

    Example:
      >>> mel_filters(80, 400, 16000).shape
      (201, 80)
    """
    hertz_of_mel = 200.0 / 3
    knee, growth = 1000.0 / hertz_of_mel, math.log(6.4) / 27
    highest = knee + math.log(_HIGHEST / 1000) / growth
    mels = np.linspace(0.0, highest, num_bins + 2)
    above = 1000 * np.exp(growth * (mels - knee))
    edges = np.where(mels < knee, mels * hertz_of_mel, above)
    at = np.linspace(0, sampling_rate // 2, n_fft // 2 + 1)[:, None]
    low, mid, high = edges[:-2][None], edges[1:-1][None], edges[2:][None]
    rise, fall = (at - low) / (mid - low), (high - at) / (high - mid)
    triangles = np.maximum(0.0, np.minimum(rise, fall)) * 2 / (high - low)
    return triangles.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _log_mel(processor: SoundProcessor, samples: Array) -> Array:
    size, hop = processor.n_fft, processor.hop_length
    count = samples.shape[1] // hop
    padded = jnp.pad(samples, ((0, 0), (size // 2, size // 2)), mode="reflect")
    at = np.arange(count)[:, None] * hop + np.arange(size)[None]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    windows = padded[:, at] * jnp.asarray(hann, jnp.float32)[None, None]
    power = jnp.square(jnp.abs(jnp.fft.rfft(windows)))
    filters = mel_filters(processor.feature_size, size, processor.sampling_rate)
    mel = jnp.matmul(power, jnp.asarray(filters), precision=jax.lax.Precision.HIGHEST)
    logs = jnp.log10(jnp.maximum(mel, _FLOOR))
    loudest = jnp.max(logs, axis=(1, 2), keepdims=True)
    made: Array = (jnp.maximum(logs, loudest - _RANGE) + 4.0) / 4.0
    return made


# ---- files

_SIZES = ("feature_size", "sampling_rate", "hop_length", "n_fft", "chunk_length")
_SILENT = (
    "feature_extractor_type", "processor_class", "return_attention_mask",
    "padding_side", "n_samples", "nb_max_frames", "mel_filters", "auto_map",
    "model_input_names", "dither",
)  # fmt: skip


def read_sound(fields: Fields, origin: Origin) -> SoundProcessor:
    """The processor of sound that a file describes.

    Args:
      fields: of the file. Filters that it holds are not read: they are computed.
      origin: where they stand.

    Returns:
      The `SoundProcessor`.

    Raises:
      CheckpointError: a field of another kind; it is named.
      UnsupportedCheckpointError: another kind of processor, or an option that is not
        computed.
    """
    kind = fields.get("feature_extractor_type")
    if kind is None:
        raise CheckpointError(
            f"{fields.where}: there is no field 'feature_extractor_type'."
        )
    fixed = {"feature_extractor_type": _KIND, "padding_side": "right", "dither": 0.0}
    for name, only in fixed.items():
        found = fields.get(name)
        if found is not None and found != only:
            raise UnsupportedCheckpointError(
                f"{fields.where}: {name}={str(found)[:60]!r} is not supported, only "
                f"{only!r}."
            )
    padding = "padding_value"
    refuse_unknown(fields, (*_SIZES, *_SILENT, padding))
    usual = SoundProcessor()
    made: dict[str, Any] = {
        name: whole(fields, name, getattr(usual, name)) for name in _SIZES
    }
    try:
        processor = SoundProcessor(
            **made, padding_value=read_number(fields, padding, 0.0)
        )
    except ArgumentError as error:
        raise CheckpointError(f"{fields.where}: {error}") from error
    return dataclasses.replace(processor, origin=origin.of(_fields_of(processor)))


def _fields_of(processor: SoundProcessor) -> dict[str, Any]:
    """All fields, as new files have them."""
    samples = processor.chunk_length * processor.sampling_rate
    found: dict[str, Any] = {
        **{name: getattr(processor, name) for name in _SIZES},
        "feature_extractor_type": _KIND,
        "padding_value": processor.padding_value,
        "n_samples": samples,
        "nb_max_frames": samples // processor.hop_length,
    }
    return dict(json.loads(json.dumps(found)))
