"""What prepares other inputs than text, as a checkpoint's folder says."""

import json
import pathlib
from typing import Any

from jtok.models.fields import Fields, read_object
from jtok.models.image_files import read_images
from jtok.models.processor_files import NAMES, origin_of
from jtok.models.prompt_images import read_prompts
from jtok.models.sound_processor import read_sound

__all__ = ["load_processor"]

_PICTURES = (
    "clip",
    "clip_vision_model",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "llava",
    "siglip",
    "siglip_vision_model",
    "vit",
)


def load_processor(folder: pathlib.Path, config: Any, vocabulary: Any) -> Any | None:
    """The processor of a checkpoint, None where it has none.

    Fields are those of `preprocessor_config.json`, or what newer folders have within
    `processor_config.json`. Of models of text no file is looked at.

    Args:
      folder: of the checkpoint.
      config: of its model.
      vocabulary: its tokenizer, or None.

    Returns:
      What `Model.processor` holds, with a method `save(folder)`: an `ImageProcessor`, a
      `SoundProcessor`, or of LLaVA, where there is a tokenizer, a `PromptProcessor`.

    Raises:
      CheckpointError: a file is damaged, or a field has another kind; it is named.
      UnsupportedCheckpointError: another kind of processor, or an option that is not
        computed.
    """
    if config.family == "whisper":
        found = origin_of(folder, "feature_extractor")
        return None if found is None else read_sound(found[1], found[0])
    found = origin_of(folder, "image_processor") if config.family in _PICTURES else None
    if found is None:
        return None
    images = read_images(found[1], found[0])
    if config.family != "llava" or vocabulary is None:
        return images
    place = folder / NAMES[1]
    fields = read_object(place) if place.exists() else Fields({}, str(place))
    return read_prompts(fields, json.loads(config.source), images, vocabulary)
