"""Processors of pictures as files describe them."""

import dataclasses
from typing import Any, Literal

from jtok.errors import CheckpointError, UnsupportedCheckpointError, near
from jtok.models.fields import Fields
from jtok.models.image_pixels import Size
from jtok.models.image_processor import FLAGS, SIZES, ImageProcessor, fields_of
from jtok.models.processor_files import (
    Origin,
    numbers,
    read_number,
    refuse_unknown,
    whole,
)

__all__ = ["read_images"]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BASE: dict[str, Any] = {"resample": 3}
_CLIP = {
    **_BASE, "size": (("shortest_edge", 224),), "do_center_crop": True,
    "do_convert_rgb": True, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD,
}  # fmt: skip
# What a field that is missing stands for.
_KINDS: dict[str, dict[str, Any]] = {
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "ConvNextImageProcessor": {
        **_BASE, "size": (("shortest_edge", 384),), "crop_pct": 224 / 256,
    },
    "DeiTImageProcessor": {
        **_BASE, "size": (("height", 256), ("width", 256)), "do_center_crop": True,
    },
    "LlavaImageProcessor": _CLIP,
    "SiglipImageProcessor": {**_BASE, "do_convert_rgb": True},
    "ViTImageProcessor": {},
}  # fmt: skip
# What says nothing of the numbers.
_SILENT = (
    "image_processor_type", "feature_extractor_type", "processor_class",
    "_valid_processor_keys", "default_to_square", "disable_grouping", "auto_map",
    "model_input_names", "image_processor_class", "return_tensors", "device",
    "data_format",
)  # fmt: skip
_TYPES = ("image_processor_type", "feature_extractor_type")


def _kind(fields: Fields) -> tuple[str, Literal["pil", "torchvision"]]:
    """The kind that a file names, and the backend that its name tells."""
    found = next((fields[name] for name in _TYPES if fields.get(name)), None)
    if found is None:
        raise CheckpointError(f"{fields.where}: there is no field {_TYPES[0]!r}.")
    name = str(found).replace("FeatureExtractor", "ImageProcessor")
    kind = name.removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        what = f"{_TYPES[0]} {str(found)[:60]!r}{near(kind, _KINDS)}"
        raise UnsupportedCheckpointError(f"{fields.where}: {what}.")
    return kind, "torchvision" if name.endswith("Fast") else "pil"


def read_images(fields: Fields, origin: Origin) -> ImageProcessor:
    """The processor of pictures that a file describes.

    Args:
      fields: of the file.
      origin: where they stand.

    Returns:
      The `ImageProcessor`.

    Raises:
      CheckpointError: a field of another kind, or sizes that cannot be; it is named.
      UnsupportedCheckpointError: another kind of processor, or an option that is not
        computed.
    """
    kind, compat = _kind(fields)
    usual = ImageProcessor(kind=kind, **_KINDS[kind])
    silent = (*_SILENT, "input_data_format")
    own = [field.name for field in dataclasses.fields(usual)]
    unread = {"kind", "origin", "compat"}
    unread |= {"crop_pct"} if usual.crop_pct is None else set()
    unread |= {"do_pad"} if kind != "LlavaImageProcessor" else set()
    refuse_unknown(fields, (*silent, *(name for name in own if name not in unread)))
    made: dict[str, Any] = {
        name: getattr(usual, name) if fields.get(name) is None else fields.get(name)
        for name in FLAGS
    }
    made["size"] = _read_size(fields, usual)
    made["crop_size"] = _read_crop(fields, usual.crop_size)
    made["resample"] = whole(fields, "resample", usual.resample, least=0)
    made["rescale_factor"] = read_number(fields, "rescale_factor", usual.rescale_factor)
    for name in ("image_mean", "image_std"):
        made[name] = numbers(fields, name, getattr(usual, name))
    if usual.crop_pct is not None:
        made["crop_pct"] = read_number(fields, "crop_pct", usual.crop_pct)
    try:
        processor = ImageProcessor(kind=kind, compat=compat, **made)
    except ValueError as error:
        raise CheckpointError(f"{fields.where}: {error}") from error
    return dataclasses.replace(processor, origin=origin.of(fields_of(processor)))


def _read_size(fields: Fields, usual: ImageProcessor) -> Size:
    value = fields.get("size")
    if value is None:
        return usual.size
    square = "height" in dict(usual.size)
    if isinstance(value, int):
        value = (
            {"height": value, "width": value} if square else {"shortest_edge": value}
        )
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{fields.where}: size is {str(value)[:60]!r}, expected pixels, or an "
            f"object with the names of one of {SIZES}."
        )
    inner = Fields({k: v for k, v in value.items() if v is not None}, fields.where)
    if tuple(sorted(inner)) not in SIZES:
        raise CheckpointError(
            f"{fields.where}: size has the names {sorted(inner)}, expected those of "
            f"one of {SIZES}."
        )
    return tuple(sorted((name, whole(inner, name, 0)) for name in inner))


def _read_crop(fields: Fields, usual: tuple[int, int]) -> tuple[int, int]:
    value = fields.get("crop_size")
    if value is None:
        return usual
    if isinstance(value, dict):
        if set(value) != {"height", "width"}:
            raise CheckpointError(
                f"{fields.where}: crop_size has the names {sorted(value)}, expected "
                "height and width."
            )
        value = [value["height"], value["width"]]
    both = value if isinstance(value, list) and len(value) == 2 else [value, value]
    named = Fields({"crop_size": None}, fields.where)
    return (
        whole(Fields({**named, "crop_size": both[0]}, fields.where), "crop_size", 224),
        whole(Fields({**named, "crop_size": both[1]}, fields.where), "crop_size", 224),
    )
