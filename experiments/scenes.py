"""Honestly synthetic scenes with questions about them.

A scene is a picture of square patches. Most hold the same background, with a little
noise; some hold one object each, a glyph in a colour. No two objects of a scene have
the same shape or the same colour. A question names a shape or a colour and asks for
another fact about that object: its colour, its shape or its place, one of nine.

The model that answers is that of `experiments.scene_models`.

Nothing here is a real photograph: what such scenes show about a method is whether it
keeps the few tokens that carry facts, and what averaging does to them.
"""

import dataclasses
from typing import Any

import numpy as np

__all__ = [
    "COLOURS",
    "COLOUR_ID",
    "KINDS",
    "KIND_ID",
    "NUM_IDS",
    "PATCH",
    "PLACE_ID",
    "SHAPES",
    "SHAPE_ID",
    "START_ID",
    "SceneConfig",
    "Scenes",
    "make_scenes",
    "questions_about",
    "spelled",
]

PATCH = 6  # pixels a side
SHAPES = ("square", "frame", "cross", "plus", "bars", "stripes", "corner", "dots")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")
_RGB = np.array(
    [
        (0.9, 0.15, 0.15), (0.1, 0.75, 0.2), (0.2, 0.3, 0.95), (0.95, 0.9, 0.1),
        (0.65, 0.1, 0.8), (0.1, 0.85, 0.9), (1.0, 0.55, 0.1), (1.0, 1.0, 1.0),
    ],
    np.float32,
)  # fmt: skip
_PLACES = 9
KINDS = ("colour of", "place of", "shape of")
# Ids: start, the kinds of questions, then shapes, colours and places.
START_ID, KIND_ID = 0, 1
SHAPE_ID = KIND_ID + len(KINDS)
COLOUR_ID = SHAPE_ID + len(SHAPES)
PLACE_ID = COLOUR_ID + len(COLOURS)
NUM_IDS = PLACE_ID + _PLACES


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """Pictures, sizes of the model, and its training.

    A picture has `grid * grid` patches and `objects` of them hold an object. The tower
    has `tower_layers` and `tower_width`; the decoder `layers` and `width`. Of `steps`
    updates, the share `crops` sees crops of `crop * crop` patches; a batch is `batch`
    scenes with `asked` questions each.
    """

    grid: int = 12
    objects: int = 6
    noise: float = 0.04
    tower_layers: int = 2
    tower_width: int = 64
    layers: int = 6
    width: int = 96
    heads: int = 4
    crop: int = 6
    crops: float = 0.875
    steps: int = 1280
    batch: int = 16
    asked: int = 12
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture."""
        return self.grid * self.grid


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Pictures and questions about them, as NumPy arrays.

    Attributes:
      images: `[scenes, height, width, 3]` float32 in 0..1.
      cells: `[scenes, objects]` int32 patch of each object, row by row.
      shapes: `[scenes, objects]` int32 indices of `SHAPES`.
      colours: `[scenes, objects]` int32 indices of `COLOURS`.
      questions: `[scenes, asked, 2]` int32 ids.
      answers: `[scenes, asked]` int32 ids.
      about: `[scenes, asked]` int32 the object that is asked about.
    """

    images: np.ndarray
    cells: np.ndarray
    shapes: np.ndarray
    colours: np.ndarray
    questions: np.ndarray
    answers: np.ndarray
    about: np.ndarray


def _glyphs() -> np.ndarray:
    """`[shapes, PATCH, PATCH]` bool, one a shape."""
    rows, columns = np.mgrid[:PATCH, :PATCH]
    last = PATCH - 1
    edge = (rows % last == 0) | (columns % last == 0)
    middle = lambda x: (x == PATCH // 2) | (x == PATCH // 2 - 1)
    return np.stack(
        [
            np.ones((PATCH, PATCH), bool),
            edge,
            (rows == columns) | (rows + columns == last),
            middle(rows) | middle(columns),
            columns % 2 == 0,
            rows % 2 == 0,
            rows >= columns,
            (rows % 3 != 2) & (columns % 3 != 2) & (rows % 3 != 1),
        ]
    )


def make_scenes(
    config: SceneConfig, count: int, *, seed: int, asked: int = 1, side: int = 0
) -> Scenes:
    """Draws scenes and asks about them.

    Args:
      config: what is in a scene.
      count: scenes.
      seed: of the drawing; training takes even ones, so take odd ones elsewhere.
      asked: questions a scene.
      side: patches a side, where that is a crop; 0 for whole pictures.

    Returns:
      `Scenes`.
    """
    rng = np.random.default_rng((config.seed, seed))
    side = side or config.grid
    pick = lambda among, some: np.argsort(rng.random((count, among)), 1)[:, :some]
    cells = pick(side * side, config.objects)
    shapes = pick(len(SHAPES), config.objects)
    colours = pick(len(COLOURS), config.objects)
    pixels = side * PATCH
    rows, columns = np.mgrid[:pixels, :pixels]
    tile = 0.05 * (((rows // 3) + (columns // 3)) % 2)
    ground = rng.uniform(0.15, 0.4, (count, 1, 1, 3))
    images = (ground + tile[None, ..., None]).astype(np.float32)
    patches = images.reshape(count, side, PATCH, side, PATCH, 3)
    glyphs = _glyphs()[shapes]
    for item in range(config.objects):
        at = (np.arange(count), cells[:, item] // side, slice(None))
        at = (*at, cells[:, item] % side)
        ink = glyphs[:, item, ..., None]
        patches[at] = np.where(ink, _RGB[colours[:, item]][:, None, None], patches[at])
    images = patches.reshape(count, pixels, pixels, 3)
    images = images + rng.normal(0, config.noise, images.shape)
    about = rng.integers(0, config.objects, (count, asked))
    kind = rng.integers(0, len(KINDS), (count, asked))
    questions, answers = questions_about(cells, shapes, colours, about, kind, side)
    return Scenes(
        np.clip(images, 0, 1).astype(np.float32), cells.astype(np.int32),
        shapes.astype(np.int32), colours.astype(np.int32), questions, answers,
        about.astype(np.int32),
    )  # fmt: skip


def questions_about(
    cells: np.ndarray, shapes: np.ndarray, colours: np.ndarray, about: np.ndarray,
    kind: np.ndarray, side: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Questions about objects, and their answers.

    Args:
      cells: as in `Scenes`.
      shapes: as in `Scenes`.
      colours: as in `Scenes`.
      about: as in `Scenes`.
      kind: `[scenes, asked]` indices of `KINDS`.
      side: patches a side of the picture that `cells` counts.

    Returns:
      `[scenes, asked, 2]` and `[scenes, asked]` int32 ids.
    """
    of = lambda facts: np.take_along_axis(facts, about, 1)
    shape, colour = SHAPE_ID + of(shapes), COLOUR_ID + of(colours)
    row, column = np.divmod(of(cells), side)
    place = PLACE_ID + row * 3 // side * 3 + column * 3 // side
    named = np.where(kind == 2, colour, shape)
    answers = np.choose(kind, [colour, place, shape])
    return np.stack([KIND_ID + kind, named], -1).astype(np.int32), answers.astype(
        np.int32
    )


def spelled(ids: Any) -> str:
    """Ids of a question or an answer, as words."""
    places = [f"{row} {column}" for row in ("top", "middle", "bottom")
              for column in ("left", "centre", "right")]  # fmt: skip
    words = ("<start>", *KINDS, *SHAPES, *COLOURS, *places)
    return " ".join(words[int(i)] for i in np.ravel(ids))
