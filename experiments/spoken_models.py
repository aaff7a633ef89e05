"""Small encoders of spoken digits, and what makes their frames fewer.

A map from a frame and its neighbours, learned positions, and blocks of an encoder; the
mean over all frames says which digit was spoken. The first block reads all frames. Then
a method leaves fewer rows, and the other blocks read those. Methods with parameters are
trained there, as is the head behind them, while all blocks stay as they are.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.spoken_sound import BINS, Sound, varied
from jtok import models, nn
from jtok.compress import attention_scores, compress, mean_by_size

__all__ = [
    "ARMS",
    "Arm",
    "Front",
    "answers",
    "arguments",
    "choose",
    "connector",
    "encoder",
    "features",
    "fit_connector",
    "front",
    "new_model",
    "padded",
    "train",
    "with_head",
]

_DIGITS = 10
_BESIDE = 2  # frames to either side that a row of the encoder begins with


class Arm(NamedTuple):
    """One way to leave fewer rows.

    Attributes:
      label: its name in tables.
      method: of `jtok.compress.methods()`.
      family: for colours.
      trained: what it has of parameters, and the head, are trained for it.
    """

    label: str
    method: str
    family: str
    trained: bool = False

    @property
    def in_windows(self) -> bool:
        """Rows are those of windows: padding behind a recording changes nothing."""
        return self.trained or self.method == "frame_pooling"


ARMS = (
    Arm("average pooling", "frame_pooling", "transformation"),
    Arm("average pooling, head", "frame_pooling", "transformation", True),
    Arm("stacking, trained", "slam_asr", "transformation", True),
    Arm("adjacent merging", "adjacent", "similarity"),
    Arm("ToMe", "tome", "similarity"),
    Arm("DivPrune", "divprune", "similarity"),
    Arm("top attention", "fastv", "attention"),
    Arm("Perceiver, trained", "perceiver", "query", True),
    Arm("Q-Former on windows, trained", "windowed_qformer", "query", True),
    Arm("random", "random", "baseline"),
    Arm("uniform", "uniform", "baseline"),
    Arm("uniform, head", "uniform", "baseline", True),
)


# Model ------------------------


def encoder(width: int, layers: int, heads: int, longest: int) -> nn.EncoderConfig:
    """Blocks with norms first, of vectors with learned positions."""
    return nn.EncoderConfig(
        vocab_size=1, width=width, num_layers=layers, num_heads=heads,
        head_dim=width // heads, mlp_width=2 * width, num_types=0, num_prefix=0,
        max_positions=longest, norm_first=True, norm_eps=1e-6, embed_norm=False,
    )  # fmt: skip


def new_model(config: nn.EncoderConfig, key: Array) -> Any:
    """Parameters: `ear` (from frames to vectors), `encoder`, `head`."""
    first, second, third = jax.random.split(key, 3)
    params = models.init(config, first).params
    # Positions must be heard beside the sound from the first step on.
    embed = {**params["embed"], "positions": 10.0 * params["embed"]["positions"]}
    inputs = (1 + 2 * _BESIDE) * BINS
    return {
        "ear": jax.random.normal(second, (inputs, config.width)) * inputs**-0.5,
        "encoder": {**params, "embed": embed},
        "head": 0.02 * jax.random.normal(third, (config.width, _DIGITS)),
    }


def _heard(params: Any, frames: Array) -> Array:
    """Vectors of frames, each with its neighbours."""
    count = frames.shape[1]
    wide = jnp.pad(frames, ((0, 0), (_BESIDE, _BESIDE), (0, 0)))
    beside = [wide[:, at : at + count] for at in range(1 + 2 * _BESIDE)]
    return jnp.concatenate(beside, axis=-1) @ params["ear"]


def _read_off(params: Any, hidden: Array, size: Array, valid: Array) -> Array:
    return mean_by_size(hidden, size, valid=valid) @ params["head"]


def _logits(params: Any, config: nn.EncoderConfig, frames: Array, real: Array) -> Array:
    model = models.Model(params["encoder"], config)
    hidden = model(_heard(params, frames), mask=real, logits="none").hidden
    return _read_off(params, hidden, jnp.ones(real.shape), real)


class Front(NamedTuple):
    """What the first block leaves.

    Attributes:
      x: `[batch, frames, width]`.
      query: `[batch, frames, heads, head_dim]` of its attention.
      key: the same.
    """

    x: Array
    query: Array
    key: Array


@functools.partial(jax.jit, static_argnums=0)
def front(config: nn.EncoderConfig, params: Any, frames: Array, real: Array) -> Front:
    """The first block, on all frames."""
    tree = params["encoder"]
    first = models.Model(
        {**tree, "layers": tree["layers"][:1]}, _blocks(config, 1, "learned")
    )
    taps = (("resid_post", 0), ("query", 0), ("key", 0))
    out = first(_heard(params, frames), mask=real, taps=taps, logits="none")
    return Front(*(out.taps[tap] for tap in taps))


def _blocks(config: nn.EncoderConfig, layers: int, positions: Any) -> nn.EncoderConfig:
    return dataclasses.replace(config, num_layers=layers, positions=positions)


@functools.partial(jax.jit, static_argnums=(0, 5))
def answers(
    config: nn.EncoderConfig, params: Any, rows: Array, size: Array, valid: Array,
    proportional: bool = False,
) -> Array:  # fmt: skip
    """What the other blocks and the head make of the rows that are left.

    Args:
      config: of the whole encoder.
      params: of the model.
      rows: `[batch, rows, width]`; their positions are in them since the start.
      size: `[batch, rows]` frames that each one stands for in the mean.
      valid: `[batch, rows]` bool.
      proportional: attention counts a row as often as its size.

    Returns:
      `[batch, 10]` float32.
    """
    tree = params["encoder"]
    tree = {**tree, "layers": tree["layers"][1:]}
    others = models.Model(tree, _blocks(config, config.num_layers - 1, "none"))
    bias = None
    if proportional:
        batch, count = size.shape
        logs = jnp.log(jnp.maximum(size, 1e-6))[:, None, None]
        bias = jnp.broadcast_to(logs, (batch, 1, count, count))
    hidden = others(rows, mask=valid, bias=bias, logits="none").hidden
    return _read_off(params, hidden, size, valid)


# Training ------------------------


def _fit(loss: Any, trainable: Any, order: Array, key: Array, rate: float) -> Any:
    """AdamW over the rows of data that each step takes."""
    steps = order.shape[0]
    peak = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10 + 1, steps + 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(peak, weight_decay=0.05)
    )

    def step(carry: Any, item: Any) -> tuple[Any, Array]:
        value, grads = jax.value_and_grad(loss)(carry[0], *item)
        updates, state = optimizer.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), value

    start = (trainable, optimizer.init(trainable))
    keys = jax.random.split(key, steps)
    (trainable, _), losses = jax.lax.scan(step, start, (order, keys))
    return trainable, losses


def _order(count: int, steps: int, batch: int, seed: int) -> Array:
    """Rows of each step: every one as often as any other, but for the last round."""
    rng = np.random.default_rng(seed)
    rounds = -(-steps * batch // count)
    rows = np.concatenate([rng.permutation(count) for _ in range(rounds)])
    return jnp.asarray(rows[: steps * batch].reshape(steps, batch), jnp.int32)


def _nats(logits: Array, digits: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, digits).mean()


def train(
    config: nn.EncoderConfig, params: Any, sound: Sound, *, multiple: int, steps: int,
    batch: int, rate: float, seed: int,
) -> tuple[Any, float]:  # fmt: skip
    """Trains a model at full length; returns it and the loss of the last tenth."""
    data = (sound.frames, sound.length, sound.digits)
    order, key = _order(len(sound.digits), steps, batch, seed), jax.random.key(seed)
    params, losses = _train(config, multiple, params, data, order, key, rate)
    return params, float(losses[-(steps // 10 + 1) :].mean())


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def _train(
    config: nn.EncoderConfig, multiple: int, params: Any, data: Any, order: Array,
    key: Array, rate: float,
) -> Any:  # fmt: skip
    def loss(params: Any, rows: Array, key: Array) -> Array:
        frames, length, digits = (jnp.asarray(x)[rows] for x in data)
        keys = jax.random.split(key, len(rows))
        vary = jax.vmap(functools.partial(varied, multiple=multiple))
        frames, length = vary(keys, frames, length)
        real = jnp.arange(frames.shape[1])[None] < length[:, None]
        return _nats(_logits(params, config, frames, real), digits)

    return _fit(loss, params, order, key, rate)


def features(
    config: nn.EncoderConfig, params: Any, sound: Sound, *, multiple: int, rounds: int,
    seed: int,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """What the first block leaves of varied recordings, their lengths and digits."""
    vary = jax.jit(jax.vmap(functools.partial(varied, multiple=multiple)))
    made = []
    for index in range(rounds):
        key = jax.random.fold_in(jax.random.key(seed), index)
        keys = jax.random.split(key, len(sound.digits))
        frames, length = vary(keys, sound.frames, jnp.asarray(sound.length))
        real = jnp.arange(frames.shape[1])[None] < length[:, None]
        made.append((front(config, params, frames, real).x, length))
    x, length = (jnp.concatenate(parts) for parts in zip(*made, strict=True))
    return x, length, jnp.tile(jnp.asarray(sound.digits), rounds)


# Fewer rows ------------------------


def _modules(arm: Arm, share: float, width: int, heads: int, latents: int) -> Any:
    """Sizes and the module of what has parameters; None of what has none."""
    if arm.method == "slam_asr":
        return None, nn.FrameConnector(width, 2 * width, round(1 / share))
    if arm.method == "perceiver":
        made = nn.PerceiverConfig(
            width=width, layers=2, heads=heads, head_dim=width // heads,
            latents=latents, mlp_ratio=2,
        )  # fmt: skip
        return made, nn.PerceiverResampler(made)
    if arm.method == "windowed_qformer":
        sizes = nn.QFormerConfig(
            queries=1, width=width, layers=2, heads=heads, mlp_width=2 * width,
            image_width=width,
        )  # fmt: skip
        return sizes, None
    return None, None


def connector(
    config: nn.EncoderConfig, arm: Arm, share: float, latents: int, key: Array
) -> Any:
    """New parameters of an arm; empty where it has none."""
    width = config.width
    sizes, module = _modules(arm, share, width, config.num_heads, latents)
    if arm.method == "windowed_qformer":
        linear = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
        return {**nn.init_qformer(key, sizes), "projection": linear}
    if module is None:
        return {}
    shape = (1, 1, 1, 64, width) if arm.method == "perceiver" else (1, 64, width)
    return module.init(key, jnp.zeros(shape))["params"]


def arguments(
    config: nn.EncoderConfig, arm: Arm, share: float, latents: int, seq: int
) -> dict[str, Any]:
    """Static arguments of `jtok.compress.compress` for an arm."""
    sizes, _ = _modules(arm, share, config.width, config.num_heads, latents)
    window = round(1 / share)
    return {
        "frame_pooling": {"window": window},
        "slam_asr": {"count": window},
        "perceiver": {"config": sizes},
        "windowed_qformer": {"config": sizes, "window": window},
    }.get(arm.method, {"budget": round(share * seq)})


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def padded(
    config: nn.EncoderConfig, arm: Arm, share: float, latents: int, params: Any,
    x: Array, length: Array,
) -> Any:  # fmt: skip
    """Rows, sizes and validity of recordings of several lengths, padded to one.

    Only for arms `in_windows`, and for even spacing: with `n` frames a recording has
    `share * n` rows, where `1 / share` divides `n`; of a Perceiver, all latents.
    """
    real = jnp.arange(x.shape[1])[None] < length[:, None]
    options = arguments(config, arm, share, latents, x.shape[1])
    if arm.method == "uniform":
        found = compress(x, "uniform", **options)
        valid = found.keep < length[:, None]
    else:
        given = {"params": params} if params else {}
        found = compress(x, arm.method, valid=real, **given, **options)
        valid = found.valid
    return found.tokens, jnp.ones(valid.shape), valid


def fit_connector(
    config: nn.EncoderConfig, arm: Arm, share: float, latents: int, base: Any,
    data: tuple[Array, Array, Array], *, steps: int, batch: int, rate: float, seed: int,
) -> Any:  # fmt: skip
    """Trains what an arm has of parameters, the last norm and the head.

    Args:
      config: of the encoder.
      arm: a trained one.
      share: of frames that is left.
      latents: of a Perceiver.
      base: the model, whose blocks stay.
      data: as `features` gives it.
      steps: updates, of
      batch: recordings each.
      rate: the highest learning rate.
      seed: of everything drawn.

    Returns:
      `connector`, `final_norm`, `head`.
    """
    new = {
        "connector": connector(config, arm, share, latents, jax.random.key(seed)),
        "final_norm": base["encoder"]["final_norm"],
        "head": base["head"],
    }
    order = _order(len(data[2]), steps, batch, seed)
    args = (config, arm, share, latents, new, base, data, order, rate)
    return _fit_connector(*args)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 8))
def _fit_connector(
    config: nn.EncoderConfig, arm: Arm, share: float, latents: int, new: Any, base: Any,
    data: Any, order: Array, rate: float,
) -> Any:  # fmt: skip
    def loss(new: Any, rows: Array, key: Array) -> Array:
        del key
        x, length, digits = (each[rows] for each in data)
        left = padded(config, arm, share, latents, new["connector"], x, length)
        return _nats(answers(config, with_head(base, new), *left), digits)

    return _fit(loss, new, order, jax.random.key(0), rate)[0]


def with_head(base: Any, new: Any) -> Any:
    """The model with another last norm and head."""
    tree = {**base["encoder"], "final_norm": new["final_norm"]}
    return {**base, "encoder": tree, "head": new["head"]}


def choose(arm: Arm, seen: Front, budget: int, keys: Array) -> Any:
    """A method without parameters, on recordings of one length.

    Args:
      arm: not trained.
      seen: of these recordings.
      budget: rows that are left.
      keys: of the random generator, one a recording.

    Returns:
      `jtok.compress.Compressed`.
    """
    return _choose(arm.method, budget, seen, keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _choose(method: str, budget: int, seen: Front, keys: Array) -> Any:
    given: dict[str, Any] = {"key": keys} if method == "random" else {}
    if method == "fastv":
        given["attn"] = attention_scores(seen.query, seen.key, of="mean")
    means = jnp.mean(seen.key, axis=2)
    return compress(seen.x, method, budget=budget, keys=means, **given)
