"""What `generation_config.json` says."""

import dataclasses
from typing import Any

from jtok.models.fields import Fields

__all__ = ["GenerationConfig"]


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """What `generation_config.json` (or the model's configuration) says of decoding.

    Attributes:
      eos_token_ids: every id that ends a text.
      bos_token_id: id that begins a text, or None.
      pad_token_id: id that fills, or None.
      source: the JSON text of `generation_config.json`, None where there is no file.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    source: str | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "GenerationConfig":
        """Reads the fields of `generation_config.json`; ids may be one or a list."""
        fields = fields if isinstance(fields, Fields) else Fields(fields)
        eos, bos, pad = (
            ()
            if value is None
            else tuple(value)
            if isinstance(value, list)
            else (value,)
            for value in map(
                fields.get, ("eos_token_id", "bos_token_id", "pad_token_id")
            )
        )
        return cls(eos, next(iter(bos), None), next(iter(pad), None))

    def to_json(self) -> str | None:
        """The text to save: the file as it was read, or None where there was none."""
        return self.source
