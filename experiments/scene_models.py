"""A small vision-language model of `experiments.scenes`, trained in the run.

The model has the parts of a vision-language model. A tower reads patches after a class
token and looks both ways; it learns to name shape, colour and place of the object in
each patch, and from its class token those of the scene (so that this one's attention
has a reason to look at objects). A connector of two linear maps turns its other vectors
into visual tokens. A decoder reads a start token, these, and a question of two tokens,
and says the answer. Most updates see small crops, the last ones whole pictures; the
question stands at a random distance, so that a shorter row of visual tokens is nothing
new to the decoder's positions.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cache import cached
from experiments.scenes import (
    COLOUR_ID,
    KIND_ID,
    NUM_IDS,
    PATCH,
    PLACE_ID,
    SHAPE_ID,
    START_ID,
    SceneConfig,
    make_scenes,
    questions_about,
)
from jtok import models, nn, train
from jtok.ops import cross_entropy
from jtok.train import Checkpoints

__all__ = [
    "SceneModel",
    "Seen",
    "accuracy",
    "answer_logits",
    "decoder_config",
    "encode",
    "prompt",
    "trained",
]


class Seen(NamedTuple):
    """What the tower saw.

    Attributes:
      tokens: `[scenes, patches, width]` visual tokens, as the decoder takes them.
      hidden: `[scenes, 1 + patches, tower_width]` after the tower, class token first.
      taps: what was asked for, see `jtok.models.Taps`.
    """

    tokens: jax.Array
    hidden: jax.Array
    taps: dict[Any, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SceneModel:
    """The parts of the vision-language model.

    Attributes:
      config: static.
      tower: a model that looks both ways and takes vectors.
      lm: a decoder.
      rest: `patches`, the class token `cls`, `connector`, and `names`, which says what
        the class token or a patch shows.
    """

    config: SceneConfig = dataclasses.field(metadata={"static": True})
    tower: models.Model
    lm: models.Model
    rest: Any


def _patches(images: jax.Array) -> jax.Array:
    """`[scenes, patches, pixels of one]`, row by row."""
    count, height, width = images.shape[:3]
    cut = images.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    cut = cut.transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(count, -1, PATCH * PATCH * 3) - 0.4


def encode(
    model: SceneModel,
    images: Any,
    *,
    taps: Any = None,
    corner: Any = None,
) -> Seen:
    """Runs the tower and the connector.

    Args:
      model: the model.
      images: `[scenes, height, width, 3]`.
      taps: what to read of the tower, see `jtok.models.Taps`; its layers are counted
        from 0 and position 0 is the class token.
      corner: `[scenes, 2]` row and column of a crop's first patch; None for 0.

    Returns:
      `Seen`.
    """
    grid, rest = model.config.grid, model.rest
    images = jnp.asarray(images)
    side = images.shape[1] // PATCH
    x = _patches(images) @ rest["patches"]["kernel"]
    first = jnp.broadcast_to(rest["cls"][None, None], (x.shape[0], 1, x.shape[2]))
    corner = jnp.zeros((x.shape[0], 2), jnp.int32) if corner is None else corner
    rows = corner[:, :1] + jnp.arange(side)[None]
    columns = corner[:, 1:] + jnp.arange(side)[None]
    at = 1 + rows[:, :, None] * grid + columns[:, None]
    at = jnp.concatenate([jnp.zeros_like(at[:, 0, :1]), at.reshape(len(x), -1)], 1)
    out = model.tower(
        jnp.concatenate([first, x], 1), positions=at, taps=taps, logits="none"
    )
    one, two = rest["connector"]
    tokens = jax.nn.gelu(out.hidden[:, 1:] @ one["kernel"]) @ two["kernel"]
    return Seen(tokens, out.hidden, out.taps)


def answer_logits(
    model: SceneModel,
    tokens: jax.Array,
    questions: jax.Array,
    *,
    valid: jax.Array | None = None,
    positions: jax.Array | None = None,
) -> jax.Array:
    """What the decoder says to one question a row.

    Args:
      model: the model.
      tokens: `[batch, kept, width]` visual tokens, as many as are left.
      questions: `[batch, 2]` ids.
      valid: `[batch, kept]` bool; None lets all be real.
      positions: `[batch, kept]` int32 of the visual tokens, the start token being 0;
        None counts from 1. The question follows the last of them.

    Returns:
      `[batch, NUM_IDS]` float32.
    """
    batch, kept = tokens.shape[:2]
    if valid is None:
        valid = jnp.ones((batch, kept), bool)
    if positions is None:
        positions = jnp.cumsum(valid, axis=1)
    x, positions, valid = prompt(model, tokens, questions, valid, positions)
    out = model.lm(x, positions=positions, mask=valid, logits="last")
    return out.logits[:, 0]


def prompt(
    model: SceneModel,
    tokens: jax.Array,
    questions: jax.Array,
    valid: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Vectors, positions and validity of start token, visual tokens and question."""
    batch, count = questions.shape
    rows = model.lm.params["embed"]["tokens"]
    start = jnp.broadcast_to(rows[START_ID][None, None], (batch, 1, rows.shape[1]))
    x = jnp.concatenate([start, tokens.astype(rows.dtype), rows[questions]], 1)
    after = jnp.max(jnp.where(valid, positions, 0), 1)[:, None]
    asked = after + 1 + jnp.arange(count)[None]
    where = jnp.concatenate([jnp.zeros_like(after), positions, asked], 1)
    real = jnp.ones((batch, 1), bool)
    whole = jnp.concatenate([real, valid, jnp.broadcast_to(real, asked.shape)], 1)
    return x, where.astype(jnp.int32), whole


@jax.jit
def _right(
    model: SceneModel, tokens: Any, questions: Any, answers: Any, valid: Any, at: Any
) -> jax.Array:
    logits = answer_logits(model, tokens, questions, valid=valid, positions=at)
    return jnp.argmax(logits, -1) == answers


def accuracy(
    model: SceneModel,
    tokens: Any,
    questions: Any,
    answers: Any,
    *,
    valid: Any = None,
    positions: Any = None,
    rows: int = 128,
) -> np.ndarray:
    """Whether each question is answered right, one question a row.

    Args:
      model: the model.
      tokens: `[batch, kept, width]` visual tokens.
      questions: `[batch, 2]` ids.
      answers: `[batch]` ids.
      valid: as for `answer_logits`.
      positions: as for `answer_logits`.
      rows: of a call.

    Returns:
      `[batch]` bool.
    """
    found = []
    for start in range(0, len(tokens), rows):
        cut = slice(start, start + rows)
        some = [None if x is None else x[cut] for x in (valid, positions)]
        found.append(_right(model, tokens[cut], questions[cut], answers[cut], *some))
    return np.concatenate([np.asarray(x) for x in found])


# Training ------------------------


def decoder_config(config: SceneConfig) -> nn.DecoderConfig:
    """The decoder's description.

    Args:
      config: of the whole model.

    Returns:
      `DecoderConfig`.
    """
    return nn.DecoderConfig(
        vocab_size=NUM_IDS, width=config.width, num_layers=config.layers,
        mlp_width=2 * config.width, head_dim=config.width // config.heads,
        max_positions=1024, num_heads=config.heads, num_kv_heads=config.heads,
    )  # fmt: skip


def _new(config: SceneConfig) -> SceneModel:
    sizes: dict[str, Any] = {"num_heads": config.heads, "num_kv_heads": config.heads}
    wide, small = config.width, config.tower_width
    lm = decoder_config(config)
    tower = nn.DecoderConfig(
        vocab_size=1, width=small, num_layers=config.tower_layers, mlp_width=2 * small,
        head_dim=small // config.heads, max_positions=1 + config.tokens, tied=True,
        positions="learned", mlp="plain", activation="gelu", causal=False, **sizes,
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(config.seed), 7)
    kernel = lambda key, rows, columns: {
        "kernel": jax.random.normal(key, (rows, columns)) * rows**-0.5
    }
    rest = {
        "patches": kernel(keys[2], PATCH * PATCH * 3, small),
        "cls": 0.02 * jax.random.normal(keys[3], (small,)),
        "connector": (kernel(keys[4], small, wide), kernel(keys[5], wide, wide)),
        "names": kernel(keys[6], small, NUM_IDS - SHAPE_ID),
    }
    two = [models.init(c, k) for c, k in ((tower, keys[0]), (lm, keys[1]))]
    eyes, decoder = (m.replace(params=_scaled(m.params)) for m in two)
    return SceneModel(config, eyes, decoder, rest)


def _scaled(params: Any) -> Any:
    """Starts kernels at 1 / sqrt(inputs): at small widths 0.02 loses many updates."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [getattr(entry, "key", None) for entry in path]
        if names[-1] in ("tokens", "positions"):
            return leaf * (leaf.shape[-1] ** -0.5 / 0.02) * 3
        return leaf * (leaf.shape[-2] ** -0.5 / 0.02) if names[-1] == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


def _loss(
    model: SceneModel, frozen: Any, state: Any, batch: Any, key: Any
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """Nats of the answers, all questions of a scene in one row, none sees another."""
    del frozen, key
    seen = encode(model, batch["images"], corner=batch["corner"])
    tokens, questions = seen.tokens, batch["questions"]
    rows, asked, length = questions.shape
    count = tokens.shape[1]
    real = jnp.ones((rows, count), bool)
    at = jnp.broadcast_to(1 + jnp.arange(count)[None], (rows, count))
    x, at, _ = prompt(model, tokens, questions.reshape(rows, -1), real, at)
    group = jnp.repeat(jnp.arange(asked), length)
    group = jnp.concatenate([jnp.full(1 + count, -1), group])
    same = (group[None] == group[:, None]) | (group[None] < 0)
    mask = jnp.tril(same)[None]
    later = jnp.tile(jnp.arange(length), asked)[None] + batch["distance"][:, None]
    at = jnp.concatenate([at[:, : 1 + count], later], 1)
    mask = jnp.broadcast_to(mask, (rows, *mask.shape[1:]))
    hidden = model.lm(x, positions=at, mask=mask, logits="none").hidden
    hidden = hidden[:, 1 + count :].reshape(rows, asked, length, -1)[:, :, -1]
    weight, _ = model.lm.unembedding()
    nats = jnp.mean(cross_entropy(hidden, weight, batch["answers"]))
    named = seen.hidden @ model.rest["names"]["kernel"]
    wrong = jnp.where(batch["named"], jax.nn.softplus(-named), jax.nn.softplus(named))
    naming = jnp.mean(wrong[:, 0]) + jnp.mean(jnp.sum(wrong[:, 1:], (1, 2))) / 16
    return nats + naming, ({"nats": nats, "naming": naming}, state)


def _batch(config: SceneConfig, side: int, offset: int, step: int) -> dict[str, Any]:
    number = 2 * (offset + step)
    scenes = make_scenes(
        config, config.batch, seed=number, asked=config.asked, side=side
    )
    rng = np.random.default_rng((config.seed, number, 1))
    corner = rng.integers(0, config.grid - side + 1, (config.batch, 2))
    grid = config.grid
    row, column = np.divmod(scenes.cells, side)
    row, column = row + corner[:, :1], column + corner[:, 1:]
    # Places are those in the whole picture, wherever the crop is.
    cells = row * grid + column
    kind = scenes.questions[..., 0] - KIND_ID
    args = (cells, scenes.shapes, scenes.colours, scenes.about, kind, grid)
    questions, answers = questions_about(*args)
    count = 1 + side * side
    named = np.zeros((config.batch, count, NUM_IDS - SHAPE_ID), bool)
    batch = np.arange(config.batch)[:, None]
    place = row * 3 // grid * 3 + column * 3 // grid
    facts = {SHAPE_ID: scenes.shapes, COLOUR_ID: scenes.colours, PLACE_ID: place}
    for first, fact in facts.items():
        named[batch, 0, first - SHAPE_ID + fact] = True
        named[batch, 1 + scenes.cells, first - SHAPE_ID + fact] = True
    return {
        "images": scenes.images,
        "corner": corner.astype(np.int32),
        "questions": questions,
        "answers": answers,
        "named": named,
        "distance": rng.integers(2, 1 + grid * grid, config.batch).astype(np.int32),
    }


def trained(config: SceneConfig) -> tuple[SceneModel, str]:
    """The trained model, made once per machine.

    Args:
      config: what to train.

    Returns:
      The model, and the name of its folder in the cache.
    """
    key = {"scenes": dataclasses.asdict(config), "version": 1}
    folder = cached("scenes", key, functools.partial(_train, config))
    like = jax.tree.map(jnp.zeros_like, _new(config))
    with Checkpoints(folder / "model") as saved:
        model, _ = saved.restore(1, like)
    return model, folder.name


def _train(config: SceneConfig, folder: Path) -> None:
    model = _new(config)
    small = round(config.crops * config.steps)
    for name, side, done, steps in (
        ("crops", config.crop, 0, small),
        ("whole", config.grid, small, config.steps - small),
    ):
        if steps == 0:
            continue
        rate = config.learning_rate
        if name == "crops":
            warm = min(20, steps - 1)
            shape = train.schedule("wsd", peak=rate, steps=steps, warmup=warm)
        else:
            shape = train.schedule("cosine", peak=rate / 2, steps=steps)
        result = train.fit(
            _loss, model, optimizer=train.adamw(shape),
            data=functools.partial(_batch, config, side, done), steps=steps,
            key=jax.random.key(config.seed), folder=folder / name,
            save_every=max(steps, 1000), keep=1, progress=False,
        )  # fmt: skip
        model = result.trainable
    with Checkpoints(folder / "model") as saved:
        saved.save(1, model, None)
