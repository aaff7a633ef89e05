"""The static description of a transformer encoder of sound."""

from dataclasses import dataclass

from jtok.errors import check
from jtok.nn.encoder_config import EncoderConfig

__all__ = ["SoundConfig"]


@dataclass(frozen=True, kw_only=True)
class SoundConfig(EncoderConfig):
    """An `EncoderConfig` of an encoder that reads log-mel frames (Whisper).

    Two convolutions of three frames, the second of which takes every other one, make
    the tokens. `max_positions` counts tokens: twice as many frames. `vocab_size` is
    that of the decoder beside it, which is not read.

    Attributes:
      num_mel_bins: numbers of a frame.
    """

    num_mel_bins: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.num_mel_bins >= 1, "num_mel_bins", self.num_mel_bins, "at least 1")
        good = self.positions == "learned" and self.position_offset == 0
        check(good, "positions", self.positions, "'learned', without an offset")
        check(self.head is None, "head", self.head, "None: sound has no such head")

    @property
    def prefix(self) -> int:
        """All tokens are sound."""
        return 0
