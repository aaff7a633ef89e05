"""From pictures to what a tower of images reads, as its checkpoint says."""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jtok.errors import ArgumentTypeError, check
from jtok.models.image_pixels import (
    Size,
    center_crop,
    listed,
    pad_to_square,
    resize,
    target_size,
    to_pixels,
)
from jtok.models.image_resize import resize_on_device
from jtok.models.processor_files import Origin

__all__ = ["FLAGS", "SIZES", "ImageProcessor", "fields_of"]

_HALF = (0.5, 0.5, 0.5)
_SQUARE = (("height", 224), ("width", 224))
_KINDS = (
    "BitImageProcessor",
    "CLIPImageProcessor",
    "ConvNextImageProcessor",
    "DeiTImageProcessor",
    "LlavaImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
)
# Which names a size may have, together.
SIZES = (
    ("height", "width"),
    ("shortest_edge",),
    ("longest_edge", "shortest_edge"),
    ("max_height", "max_width"),
)
FLAGS = (
    "do_convert_rgb",
    "do_pad",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
)
_WARPED = 384  # ConvNeXt cuts nothing off from here on


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Resizes, cuts, scales and normalises pictures; frozen and hashable.

    Steps come in the order of the attributes. `dataclasses.replace` makes another.

    Attributes:
      kind: what files call it; decides what a field that is missing stands for.
      do_convert_rgb: make three channels: grey is repeated, what is transparent lets
        white through.
      do_pad: make a square of it first, with the mean colour around (LLaVA).
      do_resize: to `size`.
      size: sorted (name, pixels): "height" and "width"; the "shortest_edge", where the
        other keeps the ratio, at most "longest_edge"; or "max_height" and "max_width",
        of which one is reached.
      resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear,
        3 bicubic, 4 box, 5 Hamming.
      crop_pct: the share of the resized shortest edge that is kept (ConvNeXt), or None.
      do_center_crop: cut the middle out; what is too small gets black around it.
      crop_size: height and width.
      do_rescale: multiply numbers from 0 to 255 by `rescale_factor`.
      rescale_factor: as a rule 1 / 255.
      do_normalize: subtract `image_mean`, then divide by `image_std`.
      image_mean: one number a channel, or one for all.
      image_std: as `image_mean`.
      compat: where an odd row or column of black goes: "pil" before the picture,
        "torchvision" after it, as these two backends of `transformers` do; and which
        axis is resized first: "torchvision" takes the width, "pil" what Pillow takes.
      origin: the files it was read from.

    Source: the image processors of `transformers` 5. Their two backends differ in some
    pixels by one step of 255, two where pictures are transparent; this is Pillow's.
    Differs: floats stand for 255 times themselves, and are neither rounded before
    resizing nor scaled down twice.

    Example:
      >>> processor = ImageProcessor(size=(("height", 8), ("width", 8)))
      >>> processor(np.zeros((20, 30, 3), np.uint8)).shape
      (1, 8, 8, 3)
    """

    kind: str = "ViTImageProcessor"
    do_convert_rgb: bool = False
    do_pad: bool = False
    do_resize: bool = True
    size: Size = _SQUARE
    resample: int = 2
    crop_pct: float | None = None
    do_center_crop: bool = False
    crop_size: tuple[int, int] = (224, 224)
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = _HALF
    image_std: tuple[float, ...] = _HALF
    compat: Literal["pil", "torchvision"] = "pil"
    origin: Origin = dataclasses.field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        check(self.kind in _KINDS, "kind", self.kind, f"one of {', '.join(_KINDS)}")
        names = tuple(name for name, _ in self.size)
        good = names in SIZES
        good = good and all(value >= 1 for _, value in self.size)
        check(good, "size", self.size, f"pixels under the names of one of {SIZES}")
        check(self.resample in range(6), "resample", self.resample, "0 to 5")
        good = len(self.crop_size) == 2 and min(self.crop_size) >= 1
        check(good, "crop_size", self.crop_size, "height and width, 1 and more")
        good = self.crop_pct is None or (
            0 < self.crop_pct <= 1 and names == ("shortest_edge",)
        )
        wanted = "None, or above 0 to 1 beside a shortest_edge"
        check(good, "crop_pct", self.crop_pct, wanted)
        for name in ("image_mean", "image_std"):
            good = len(getattr(self, name)) in (1, 3)
            check(good, name, getattr(self, name), "1 or 3 numbers")
        check(all(self.image_std), "image_std", self.image_std, "no zeros")

    def __call__(self, images: Any) -> Float[np.ndarray, "batch rows columns channels"]:
        """Prepares pictures, which may have different sizes.

        Args:
          images: one picture or a list: arrays `[height, width, 1, 3 or 4]` or
            `[height, width]` of integers from 0 to 255 or floats from 0 to 1, pictures
            of Pillow, files (turned as their cameras say); or a batch in one array.

        Returns:
          `[batch, height, width, channels]` float32.

        Raises:
          ArgumentError: what is no picture, or pictures that come out with different
            sizes or with other channels than the mean has.
          ArgumentTypeError: another type.

        Example:
          >>> grey = np.full((4, 6), 255, np.uint8)
          >>> ImageProcessor(do_convert_rgb=True, do_resize=False)([grey])[0, 0, 0]
          array([1., 1., 1.], dtype=float32)
        """
        made = [self._prepared(image) for image in listed(images)]
        shapes = sorted({image.shape for image in made})
        check(len(shapes) == 1, "images", f"results of shapes {shapes}", "one shape")
        return np.stack(made)

    def _prepared(self, image: Any) -> Float[np.ndarray, "height width channels"]:
        pixels = to_pixels(image, rgb=self.do_convert_rgb)
        self._check_channels(pixels.shape[-1])
        if self.do_pad:
            color = tuple(float(int(255 * part)) for part in self.image_mean)
            if pixels.dtype != np.uint8:
                color = tuple(part / 255 for part in color)
            pixels = pad_to_square(pixels, color)
        for step, size in self._steps(*pixels.shape[:2]):
            if step == "resize":
                pixels = resize(pixels, size, self.resample, self.compat)
            else:
                pixels = center_crop(pixels, size, self.compat)
        numbers = pixels.astype(np.float64)
        if pixels.dtype != np.uint8:
            numbers = numbers * 255
        if self.do_rescale:
            numbers = numbers * self.rescale_factor
        x: Any = numbers.astype(np.float32)
        if self.do_normalize:
            x = x - np.asarray(self.image_mean, np.float32)
            x = x / np.asarray(self.image_std, np.float32)
        return x

    def on_device(
        self, images: Shaped[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns channels"]:
        """Prepares a batch where it lies, under `jax.jit` too.

        Args:
          images: `[batch, height, width, channels]` uint8.

        Returns:
          `[batch, rows, columns, channels]` float32, as a call gives it. The width is
          resized first: where Pillow takes the height, some values differ by one step.

        Raises:
          ArgumentError: other channels than the mean has, or `do_pad`.
          ArgumentTypeError: another dtype.

        Example:
          >>> processor = ImageProcessor(size=(("height", 4), ("width", 4)))
          >>> processor.on_device(jnp.zeros((2, 9, 7, 3), jnp.uint8)).shape
          (2, 4, 4, 3)
        """
        if images.dtype != jnp.uint8:
            raise ArgumentTypeError(
                f"images: got dtype {images.dtype}, expected uint8 on the device."
            )
        check(images.ndim == 4, "images", f"shape {images.shape}", "a batch")
        check(not self.do_pad, "do_pad", True, "False on the device")
        self._check_channels(images.shape[-1])
        return _on_device(self, images)

    def _check_channels(self, channels: int) -> None:
        wanted = max(len(self.image_mean), len(self.image_std))
        good = not self.do_normalize or wanted in (1, channels)
        hint = "" if self.do_convert_rgb else "; do_convert_rgb=True makes three"
        check(good, "images", f"{channels} channels", f"{wanted}{hint}")

    def _steps(self, height: int, width: int) -> list[tuple[str, tuple[int, int]]]:
        """What to resize to and to cut, in order."""
        steps = []
        if self.do_resize and self.crop_pct is not None:
            short = dict(self.size)["shortest_edge"]
            if short >= _WARPED:
                steps.append(("resize", (short, short)))
            else:
                size = (("shortest_edge", int(short / self.crop_pct)),)
                steps.append(("resize", target_size(size, height, width)))
                steps.append(("crop", (short, short)))
        elif self.do_resize:
            steps.append(("resize", target_size(self.size, height, width)))
        if self.do_center_crop:
            steps.append(("crop", self.crop_size))
        return steps

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files it was read from, with what has changed since.

        Args:
          folder: where; it is there.

        Raises:
          WriteError: it cannot be written.

        Example:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> ImageProcessor().save(folder)
          >>> os.listdir(folder)
          ['preprocessor_config.json']
        """
        self.origin.save(pathlib.Path(folder), fields_of(self))


@functools.partial(jax.jit, static_argnums=0)
def _on_device(processor: ImageProcessor, images: Array) -> Array:
    x: Array = images
    for step, size in processor._steps(*images.shape[1:3]):
        if step == "resize":
            x = resize_on_device(x.astype(jnp.uint8), size, processor.resample)
        else:
            x = _cropped(x, size, processor.compat)
    x = x.astype(jnp.float32)
    if processor.do_rescale:
        x = x * processor.rescale_factor
    if processor.do_normalize:
        mean, std = (
            jnp.broadcast_to(jnp.asarray(value, jnp.float32), x.shape)
            for value in (processor.image_mean, processor.image_std)
        )
        x = (x - mean) / std
    return x


def _cropped(x: Array, size: tuple[int, int], compat: str) -> Array:
    for axis, wanted in enumerate(size, 1):
        have = x.shape[axis]
        start = max((have - wanted) // 2, 0)
        x = jax.lax.slice_in_dim(x, start, start + min(have, wanted), axis=axis)
        missing = max(wanted - have, 0)
        first = missing // 2 if compat == "torchvision" else missing - missing // 2
        around = [(0, 0)] * 4
        around[axis] = (first, missing - first)
        x = jnp.pad(x, around)
    return x


def fields_of(processor: ImageProcessor) -> dict[str, Any]:
    """All fields, as new files have them."""
    kind = processor.kind + ("Fast" if processor.compat == "torchvision" else "")
    found: dict[str, Any] = {name: getattr(processor, name) for name in FLAGS}
    if processor.kind != "LlavaImageProcessor":
        del found["do_pad"]
    if processor.crop_pct is not None:
        found["crop_pct"] = processor.crop_pct
    height, width = processor.crop_size
    found |= {
        "image_processor_type": kind,
        "size": dict(processor.size),
        "crop_size": {"height": height, "width": width},
        "resample": processor.resample,
        "rescale_factor": processor.rescale_factor,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain
