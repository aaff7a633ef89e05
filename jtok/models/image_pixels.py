"""Pictures as arrays of pixels: what is taken for one, and how it is resized and cut.

Pixels are `[height, width, channels]`, uint8 or float32 from 0 to 1. Resizing is
Pillow's, so that its numbers are those that models were trained with.
"""

import os
import pathlib
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Float, UInt8

from jtok.errors import ArgumentError, ArgumentTypeError, check

__all__ = [
    "Size",
    "center_crop",
    "listed",
    "pad_to_square",
    "resize",
    "target_size",
    "to_pixels",
]

Size = tuple[tuple[str, int], ...]

# Height, width and channels are others in what comes out.
Pixels = UInt8[np.ndarray, "_ _ _"] | Float[np.ndarray, "_ _ _"]
_WHAT = "[height, width, 1, 3 or 4] pixels"


def listed(images: Any) -> list[Any]:
    """One picture, several in a list, or a batch of equal size, as a list."""
    if isinstance(images, list | tuple):
        found = list(images)
    elif isinstance(images, str | os.PathLike | PIL.Image.Image):
        found = [images]
    elif hasattr(images, "ndim") and images.ndim == 4:
        found = list(np.asarray(images))
    else:
        found = [images]
    check(bool(found), "images", "none", "at least one")
    return found


def to_pixels(image: Any, *, rgb: bool) -> Pixels:
    """One picture as pixels.

    Args:
      image: an array `[height, width]` or `[height, width, 1, 3 or 4]` of integers from
        0 to 255 or of floats from 0 to 1, a `PIL.Image`, or a file.
      rgb: make three channels of it: grey is repeated, and what is transparent lets
        white through.

    Returns:
      Pixels, uint8 or float32 as the array was.

    Raises:
      ArgumentError: another shape, values out of range, or a file that is none.
      ArgumentTypeError: something else.
    """
    if isinstance(image, str | os.PathLike):
        image = _opened(pathlib.Path(image))
    if isinstance(image, PIL.Image.Image):
        pixels = _from_pillow(image, rgb)
    elif hasattr(image, "__array__"):
        pixels = _from_array(np.asarray(image))
    else:
        raise ArgumentTypeError(
            f"images: got {type(image).__name__}, expected arrays {_WHAT}, pictures of "
            "Pillow, or files."
        )
    return _as_rgb(pixels) if rgb else pixels


def _opened(file: pathlib.Path) -> PIL.Image.Image:
    """A file's picture, turned as its camera says."""
    try:
        with PIL.Image.open(file) as found:
            return PIL.ImageOps.exif_transpose(found)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as why:
        raise ArgumentError(
            f"images: got the file {str(file)!r}, which cannot be read ({why})."
        ) from why


def _from_pillow(image: PIL.Image.Image, rgb: bool) -> Pixels:
    try:
        if rgb:
            clear = "A" in image.getbands() or "transparency" in image.info
            image = image.convert("RGBA" if clear else "RGB")
            if clear:
                white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = PIL.Image.alpha_composite(white, image).convert("RGB")
        return _from_array(np.array(image))
    except (OSError, ValueError, SyntaxError) as why:
        if isinstance(why, ArgumentError):
            raise
        raise ArgumentError(
            f"images: got a picture of mode {image.mode!r} that cannot be read ({why})."
        ) from why


def _from_array(array: np.ndarray) -> Pixels:
    pixels = array[..., None] if array.ndim == 2 else array
    good = pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4) and pixels.size > 0
    hint = "; channels come last" if array.ndim == 3 and len(array) in (1, 3, 4) else ""
    check(good, "images", f"shape {array.shape}", _WHAT + hint)
    if np.issubdtype(pixels.dtype, np.integer):
        first, last = int(pixels.min()), int(pixels.max())
        good = first >= 0 and last <= 255
        check(good, "images", f"integers from {first} to {last}", "0 to 255")
        return np.ascontiguousarray(pixels.astype(np.uint8))
    # Those of ml_dtypes are no floating type of numpy's.
    if pixels.dtype.kind not in "fV" or pixels.dtype.names:
        raise ArgumentTypeError(
            f"images: got dtype {pixels.dtype}, expected integers from 0 to 255 or "
            "floats from 0 to 1."
        )
    pixels = pixels.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    check(
        low >= 0 and high <= 1,  # False of NaN, too
        "images",
        f"floats from {low} to {high}",
        "0 to 1; divide by 255, or give integers",
    )
    return np.ascontiguousarray(pixels)


def _as_rgb(pixels: Pixels) -> Pixels:
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 3:
        return pixels
    white = 255 if pixels.dtype == np.uint8 else 1.0
    alpha = pixels[..., 3:] / white
    mixed = alpha * pixels[..., :3] + (1 - alpha) * white
    mixed = np.round(mixed) if white == 255 else mixed
    return mixed.astype(pixels.dtype)


def resize(
    pixels: Pixels,
    size: tuple[int, int],
    resample: int,
    compat: Literal["pil", "torchvision"] = "pil",
) -> Pixels:
    """Pixels of another size.

    Args:
      pixels: what to resize. uint8 is rounded as Pillow does; floats are not, and with
        filters that overshoot may leave 0 to 1.
      size: height and width.
      resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear,
        3 bicubic, 4 box, 5 Hamming. All but the first widen with the step when they
        shrink, against aliasing.
      compat: which axis is first, as numbers are rounded after it: "torchvision" takes
        the width, "pil" what Pillow takes (from version 13 on the height where it
        shrinks much more).

    Returns:
      Pixels of that size.
    """
    shape, filter_ = (size[1], size[0]), PIL.Image.Resampling(resample)
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        image = PIL.Image.fromarray(pixels)
        if compat == "torchvision":
            image = image.resize((shape[0], image.height), filter_)
        return np.array(image.resize(shape, filter_))
    # Channel by channel, as Pillow has floats of one only, and weighs by the fourth.
    planes = [
        np.array(PIL.Image.fromarray(plane).resize(shape, filter_))
        for plane in np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    ]
    return np.stack(planes, axis=-1)


def center_crop(
    pixels: Pixels, size: tuple[int, int], compat: Literal["pil", "torchvision"]
) -> Pixels:
    """The middle of a picture; what is too small gets black around it.

    Args:
      pixels: what to cut.
      size: height and width.
      compat: an odd row or column of black goes before the picture in "pil", after it
        in "torchvision".

    Returns:
      Pixels of that size.
    """
    for axis, wanted in enumerate(size):
        have = pixels.shape[axis]
        if have >= wanted:
            start = (have - wanted) // 2
            pixels = np.take(pixels, range(start, start + wanted), axis=axis)
            continue
        less, more = (wanted - have) // 2, -((have - wanted) // 2)
        around = [(0, 0)] * 3
        around[axis] = (more, less) if compat == "pil" else (less, more)
        pixels = np.pad(pixels, around)
    return pixels


def pad_to_square(pixels: Pixels, color: tuple[float, ...]) -> Pixels:
    """A square with the picture in its middle.

    Args:
      pixels: the picture.
      color: of what is around it, a number a channel, in units of `pixels`.

    Returns:
      Pixels as wide as high; an odd row or column is after the picture.
    """
    height, width, channels = pixels.shape
    side = max(height, width)
    square = np.empty((side, side, channels), pixels.dtype)
    square[...] = np.asarray(color).astype(pixels.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def target_size(size: Size, height: int, width: int) -> tuple[int, int]:
    """The size that a picture is resized to, rounded down as `transformers` does."""
    wanted = dict(size)
    if "height" in wanted:
        return wanted["height"], wanted["width"]
    if "max_height" in wanted:
        scale = min(wanted["max_height"] / height, wanted["max_width"] / width)
        found = int(height * scale), int(width * scale)
    else:
        found = _by_shortest(wanted, height, width)
    good = min(found) >= 1
    check(good, "images", f"{height} x {width} pixels", f"a ratio that fits {size}")
    return found


def _by_shortest(wanted: dict[str, int], height: int, width: int) -> tuple[int, int]:
    short, long, edge = min(height, width), max(height, width), wanted["shortest_edge"]
    ratio_of = float(edge)
    if "longest_edge" in wanted and long / short * edge > wanted["longest_edge"]:
        ratio_of = wanted["longest_edge"] * short / long
        edge = round(ratio_of)
    if "longest_edge" in wanted:
        other = long if edge == short else int(ratio_of * long / short)
    else:
        other = int(edge * long / short)
    return (edge, other) if height <= width else (other, edge)
