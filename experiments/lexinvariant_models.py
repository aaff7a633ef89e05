"""Small decoders with learned, mixed or random tables, trained alike and cached."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cache import cached
from jtok import embed, models, nn, train

__all__ = ["fitting", "random_start", "small_decoder", "trained"]


def small_decoder(
    vocab: int, layers: int, width: int, heads: int, length: int
) -> nn.DecoderConfig:
    """The shape of a small decoder: layer norms, a plain MLP, learned positions."""
    return nn.DecoderConfig(
        vocab_size=vocab, width=width, num_layers=layers, num_heads=heads,
        num_kv_heads=heads, head_dim=width // heads, mlp_width=4 * width,
        max_positions=length, tied=True, norm="layer", mlp="plain", activation="gelu",
        positions="learned",
    )  # fmt: skip


def random_start(
    shape: nn.DecoderConfig, q: float, seed: int
) -> embed.LexinvariantModel:
    """All models alike but for q: one table in and out, rows of unit spread."""
    first, second = jax.random.split(jax.random.key(seed))
    model = models.init(shape, first)

    def scaled(path: Any, leaf: jax.Array) -> jax.Array:
        name = getattr(path[-1], "key", None)
        if name == "kernel":
            # The spread of a uniform draw within 1 / sqrt(inputs).
            return leaf * ((3 * leaf.shape[-2]) ** -0.5 / 0.02)
        return leaf / 0.02 if name == "tokens" else leaf

    params = jax.tree_util.tree_map_with_path(scaled, model.params)
    return embed.lexinvariant_from(
        model.replace(params=params), key=second, q=q, row_scale=1.0,
        previous_token=True,
    )  # fmt: skip


def trained(
    name: str, key: dict[str, Any], start: embed.LexinvariantModel, fit: Any
) -> tuple[embed.LexinvariantModel, str]:
    """A model from the cache, or trained by `fit(params) -> (params, losses)`."""

    def build(folder: Path) -> None:
        params, losses = fit(start.params)
        leaves = {f"p{i}": x for i, x in enumerate(jax.tree.leaves(params))}
        np.savez(folder / "params.npz", losses=losses, **leaves)

    folder = cached(f"lexinvariant_{name}", key, build)
    with np.load(folder / "params.npz") as file:
        leaves = [jnp.asarray(file[f"p{i}"]) for i in range(len(file.files) - 1)]
    params = jax.tree.unflatten(jax.tree.structure(start.params), leaves)
    return start.replace(params=params), folder.name


def fitting(config: Any, start: Any, data: Any, steps: int, seed: int) -> Any:
    """`fit(params)` for `trained`: the same schedule and batches for all models."""
    rate = train.schedule(
        "constant", peak=config.learning_rate, steps=steps,
        warmup=min(config.warmup, steps - 1),
    )  # fmt: skip

    def fit(params: Any) -> tuple[Any, np.ndarray]:
        result = train.fit(
            embed.lexinvariant_loss(start), params, optimizer=train.adamw(rate),
            data=data, steps=steps, key=jax.random.key(seed + 1),
            accumulate=config.accumulate,
        )  # fmt: skip
        return result.trainable, result.metrics["loss"]

    return fit
