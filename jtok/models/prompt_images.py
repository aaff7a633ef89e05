"""Pictures within a prompt: each image token becomes as many as the tower gives."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    VocabMismatchError,
    check,
)
from jtok.models.fields import Fields
from jtok.models.image_processor import ImageProcessor, fields_of
from jtok.models.processor_files import NAMES, Origin, refuse_unknown, whole
from jtok.text import Vocabulary

__all__ = ["ImagePrompts", "PromptProcessor", "read_prompts"]


class ImagePrompts(NamedTuple):
    """What `PromptProcessor` makes.

    Attributes:
      ids: one `[tokens]` int32 array a prompt, with an image token for every vector.
      images: `[images, height, width, channels]` float32 in the order of the prompts,
        or None where there are none.
      counts: vectors of each image.
      image_token_id: the id that stands for a vector.
    """

    ids: list[np.ndarray]
    images: np.ndarray | None
    counts: tuple[int, ...]
    image_token_id: int

    def numbered(self, first: int) -> list[Int[np.ndarray, " tokens"]]:
        """The ids with another one for every vector, as `with_vectors` names them.

        Args:
          first: id of the first vector, see `jtok.models.vector_ids`.

        Returns:
          One `[tokens]` int32 array a prompt: image tokens are `first`, `first + 1`
          and so on, through all prompts.

        Example:
          >>> prompts = ImagePrompts([np.array([1, 9, 9]), np.array([9])], None, (), 9)
          >>> [row.tolist() for row in prompts.numbered(10)]
          [[1, 10, 11], [12]]
        """
        rows, at = [], first
        for row in self.ids:
            places = row == self.image_token_id
            row = row.astype(np.int32)
            row[places] = at + np.arange(places.sum())
            rows.append(row)
            at += int(places.sum())
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptProcessor:
    """Prepares prompts with pictures for a language model with a tower; frozen.

    Attributes:
      images: prepares the pictures.
      vocabulary: the tokenizer.
      patch_size: pixels of a side of a patch.
      strategy: "default" leaves out the tower's first vector, "full" keeps all.
      num_additional_image_tokens: vectors of the tower that are no patch: 1 for CLIP.
      image_token: what stands for a picture in a text; one token.
      origin: the files it was read from.

    Source: Liu et al. 2023, arXiv 2304.08485, section 4.1, and the processor of
    `transformers` 5.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> size = (("height", 8), ("width", 8))
      >>> processor = PromptProcessor(
      ...     images=ImageProcessor(size=size), vocabulary=tiny_vocabulary(),
      ...     patch_size=4, image_token="!")
      >>> processor("a !", np.zeros((9, 9, 3), np.uint8)).counts
      (4,)
    """

    images: ImageProcessor
    vocabulary: Vocabulary
    patch_size: int
    strategy: Literal["default", "full"] = "full"
    num_additional_image_tokens: int = 0
    image_token: str = "<image>"
    origin: Origin = dataclasses.field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        check(self.patch_size >= 1, "patch_size", self.patch_size, "at least 1")
        good = self.strategy in ("default", "full")
        check(good, "strategy", self.strategy, "'default' or 'full'")
        more = self.num_additional_image_tokens
        check(more >= 0, "num_additional_image_tokens", more, "0 or more")
        ids = self.vocabulary.encode(self.image_token, specials=False)
        check(
            len(ids) == 1,
            "image_token",
            self.image_token,
            f"one token of the vocabulary; this is {len(ids)}",
            VocabMismatchError,
        )

    @property
    def image_token_id(self) -> int:
        """The id of the image token."""
        return int(self.vocabulary.encode(self.image_token, specials=False)[0])

    def num_image_tokens(self, height: int, width: int) -> int:
        """Vectors that the tower gives for a picture.

        Args:
          height: of the prepared picture, in pixels.
          width: as `height`.

        Returns:
          How many.

        Raises:
          ArgumentError: none is left.

        Example:
          >>> from jtok.testing import tiny_vocabulary
          >>> processor = PromptProcessor(
          ...     images=ImageProcessor(), vocabulary=tiny_vocabulary(), patch_size=14,
          ...     strategy="default", num_additional_image_tokens=1, image_token="!")
          >>> processor.num_image_tokens(336, 336)
          576
        """
        patches = (height // self.patch_size) * (width // self.patch_size)
        count = patches + self.num_additional_image_tokens
        count -= self.strategy == "default"
        check(count >= 1, "images", f"{height} x {width} pixels", "a patch and more")
        return count

    def __call__(
        self,
        texts: str | Sequence[Any],
        images: Any = None,
        *,
        tokens_per_image: int | Sequence[int] | None = None,
        specials: bool = True,
    ) -> ImagePrompts:
        """Prompts with as many image tokens as there are vectors.

        Args:
          texts: one or several, with an image token for every picture.
          images: as `ImageProcessor` takes them, in the order of the texts; None for
            none.
          tokens_per_image: vectors of a picture where they are merged or pruned before
            they enter the prompt: one number for all, or one for each; None takes what
            the tower gives.
          specials: add what the tokenizer adds around a text.

        Returns:
          `ImagePrompts`.

        Raises:
          ArgumentError: other image tokens than pictures, a count below 1 or above what
            the tower gives, or what is no picture.
          ArgumentTypeError: texts that are none.

        Example:
          >>> from jtok.testing import tiny_vocabulary
          >>> processor = PromptProcessor(
          ...     images=ImageProcessor(), vocabulary=tiny_vocabulary(),
          ...     patch_size=14, image_token="!")
          >>> picture = np.zeros((9, 9, 3), np.uint8)
          >>> [len(row) for row in processor("!", picture, tokens_per_image=36).ids]
          [36]
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise ArgumentTypeError(
                    f"texts: got {type(text).__name__}, expected strings."
                )
        pixels = None if images is None else self.images(images)
        rows, own = self.vocabulary.encode_batch(texts, specials=specials), []
        found = [int((row == self.image_token_id).sum()) for row in rows]
        number = 0 if pixels is None else len(pixels)
        check(
            sum(found) == number,
            "images",
            f"{number} pictures",
            f"as many as the texts have image tokens, {found}",
        )
        if pixels is not None:
            own = [self.num_image_tokens(*pixels.shape[1:3])] * number
        counts = _counts(tokens_per_image, own)
        ids, done = [], 0
        for row, pictures in zip(rows, found):
            places = row == self.image_token_id
            times = np.ones(len(row), int)
            times[places] = counts[done : done + pictures]
            ids.append(np.repeat(row, times))
            done += pictures
        return ImagePrompts(ids, pixels, counts, self.image_token_id)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files it was read from, with what has changed since.

        Args:
          folder: where; it is there. The tokenizer is the model's to save.

        Raises:
          WriteError: it cannot be written.

        Example:
          >>> import tempfile
          >>> from jtok.testing import tiny_vocabulary
          >>> folder = tempfile.mkdtemp()
          >>> PromptProcessor(images=ImageProcessor(), vocabulary=tiny_vocabulary(),
          ...                 patch_size=14, image_token="!").save(folder)
          >>> sorted(os.listdir(folder))
          ['preprocessor_config.json', 'processor_config.json']
        """
        own, was = _fields_of(self), json.loads(self.origin.was)
        new = {name: value for name, value in own.items() if was.get(name) != value}
        beside = (NAMES[1], new) if new else None
        self.images.origin.save(pathlib.Path(folder), fields_of(self.images), beside)


def _counts(given: int | Sequence[int] | None, own: list[int]) -> tuple[int, ...]:
    """Vectors of each picture."""
    if given is None:
        return tuple(own)
    counts = [given] * len(own) if isinstance(given, int) else list(given)
    name, many = "tokens_per_image", f"a number for each of {len(own)} pictures"
    check(len(counts) == len(own), name, f"{len(counts)} numbers", many)
    for count, most in zip(counts, own):
        check(1 <= count <= most, name, count, f"1 to {most}, which the tower gives")
    return tuple(int(count) for count in counts)


# ---- files

_OWN = (
    "image_token",
    "num_additional_image_tokens",
    "patch_size",
    "vision_feature_select_strategy",
)
_SILENT = ("processor_class", "image_processor", "auto_map", "chat_template")


def read_prompts(
    fields: Fields, model: Mapping[str, Any], images: ImageProcessor, words: Vocabulary
) -> PromptProcessor:
    """The processor of prompts that a folder describes.

    Args:
      fields: of `processor_config.json`, empty where there is none.
      model: fields of `config.json`, which say what the others leave out.
      images: prepares the pictures.
      words: the tokenizer.

    Returns:
      The `PromptProcessor`. A file that does not say how many vectors are no patch
      means one of CLIP's tower and none of others.

    Raises:
      CheckpointError: a field of another kind, or an image token that is no token.
      UnsupportedCheckpointError: an option that is not computed.
    """
    refuse_unknown(fields, (*_OWN, *_SILENT))
    tower = Fields(model.get("vision_config") or {}, "config.json: vision_config")
    patch = whole(tower, "patch_size", 14)
    more = 1 if tower.get("model_type") in (None, "clip_vision_model") else 0
    strategy = "vision_feature_select_strategy"
    made: dict[str, Any] = {
        "patch_size": whole(fields, "patch_size", patch),
        "num_additional_image_tokens": whole(
            fields, "num_additional_image_tokens", more, least=0
        ),
        "strategy": fields.get(strategy) or model.get(strategy) or "default",
        "image_token": fields.get("image_token") or _image_token(model, words),
    }
    for name in ("strategy", "image_token"):
        if not isinstance(made[name], str):
            said = strategy if name == "strategy" else name
            raise CheckpointError(
                f"{fields.where}: {said} is {str(made[name])[:60]}, expected a text."
            )
    try:
        prompts = PromptProcessor(images=images, vocabulary=words, **made)
    except ArgumentError as error:
        raise CheckpointError(f"{fields.where}: {error}") from error
    said, own = _image_id(model), prompts.image_token_id
    if said is not None and said != own:
        raise CheckpointError(
            f"{fields.where}: the image token {prompts.image_token!r} has id {own}, "
            f"but {said!r} in config.json."
        )
    was = Origin(name=NAMES[1]).of(_fields_of(prompts))
    return dataclasses.replace(prompts, origin=was)


def _image_id(model: Mapping[str, Any]) -> Any:
    """The id that the model's configuration names."""
    return model.get("image_token_index", model.get("image_token_id"))


def _image_token(model: Mapping[str, Any], words: Vocabulary) -> str:
    """The text of the id that the model's configuration names."""
    found = _image_id(model)
    known = isinstance(found, int) and 0 <= found < words.size
    token = words.token_bytes[found] if known else b""
    return token.decode(errors="replace") or "<image>"


def _fields_of(prompts: PromptProcessor) -> dict[str, Any]:
    return {
        "image_token": prompts.image_token,
        "num_additional_image_tokens": prompts.num_additional_image_tokens,
        "patch_size": prompts.patch_size,
        "vision_feature_select_strategy": prompts.strategy,
    }
