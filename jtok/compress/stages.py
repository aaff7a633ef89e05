"""SparseVLM's stages as counts of layers, and the test that chooses VTW's layer."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok.errors import check

__all__ = ["sparsevlm_counts", "withdraw_layer"]

# Kept at each stage, by the published mean (LLaVA-1.5, 576 tokens).
_SPARSEVLM = {
    "1.0": {
        192: (300, 200, 110),
        128: (303, 110, 36),
        96: (238, 48, 26),
        64: (66, 30, 17),
    },
    "2.0": {
        192: (300, 200, 118),
        128: (238, 108, 60),
        96: (246, 54, 28),
        64: (66, 34, 20),
    },
}
_SPARSEVLM_LAYERS = (2, 6, 15)


def withdraw_layer(
    full: Float[Array, "samples vocab"],
    withdrawn: Float[Array, "layers samples vocab"],
    *,
    threshold: float,
    layers: Sequence[int] | None = None,
) -> int:
    """The first layer from which the image can be gone, by a few samples.

    Args:
      full: `[samples, vocab]` logits of the whole model.
      withdrawn: `[layers, samples, vocab]` logits where the image left before each
        candidate layer, in ascending order.
      threshold: in nats: the first candidate whose mean divergence from the whole model
        (KL of the outputs, whole model first) is below it is taken.
      layers: the candidates' numbers; None counts from 1.

    Returns:
      The layer; where no candidate is good enough one beyond the last.

    Raises:
      ArgumentError: a threshold that is not above 0, or shapes that do not fit.

    Source: Lin et al. 2024, arXiv 2405.05803, section 3.3.

    Example:
      >>> full = jnp.array([[2.0, 0.0]])
      >>> withdraw_layer(full, jnp.stack([full - full, full]), threshold=0.1)
      2
    """
    check(threshold > 0, "threshold", threshold, "a number of nats above 0")
    good = withdrawn.shape[1:] == full.shape
    check(good, "withdrawn", f"shape {withdrawn.shape}", f"[layers, *{full.shape}]")
    numbers = range(1, withdrawn.shape[0] + 1) if layers is None else layers
    expected = f"{withdrawn.shape[0]} numbers, ascending"
    fits = len(numbers) == withdrawn.shape[0] and list(numbers) == sorted(numbers)
    check(fits, "layers", layers, expected)
    truth = jax.nn.log_softmax(full.astype(jnp.float32), axis=-1)
    other = jax.nn.log_softmax(withdrawn.astype(jnp.float32), axis=-1)
    each = jnp.sum(jnp.exp(truth)[None] * (truth[None] - other), axis=-1)
    below: Any = np.asarray(jnp.mean(each, axis=1)) < threshold
    if not below.any():
        return int(numbers[-1]) + 1
    return int(numbers[int(np.argmax(below))])


def sparsevlm_counts(
    num_layers: int,
    image: int,
    *,
    mean: int = 192,
    kept: Sequence[int] | None = None,
    layers: Sequence[int] = _SPARSEVLM_LAYERS,
    recycle: bool = True,
    version: str = "1.0",
) -> tuple[int, ...]:
    """SparseVLM: three stages; what leaves comes back in part as clusters.

    Args:
      num_layers: of the language model.
      image: tokens of the image.
      mean: 192, 128, 96 or 64: the published setting; or
      kept: tokens that stay at each stage, at most all but one.
      layers: that rate; the next layer is the first with fewer tokens.
      recycle: False for no clusters, as version 2.0 has none.
      version: "1.0" or "2.0": whose published setting `mean` names.

    Returns:
      Tokens of the image that enter each layer. Published budgets are means of these
      over layers, without the clusters.

    Raises:
      ArgumentError: an unknown setting, or stages that do not fit.

    Source: Zhang et al. 2024, arXiv 2410.04417, and its code.

    Example:
      >>> sparsevlm_counts(8, 576, mean=64, layers=(1, 3, 5))
      (576, 576, 82, 82, 32, 32, 18, 18)
    """
    check(num_layers >= 1, "num_layers", num_layers, "at least 1")
    check(image >= 1, "image", image, "at least 1 token")
    if kept is None:
        known = sorted(_SPARSEVLM)
        check(version in known, "version", version, f"one of {known}")
        table = _SPARSEVLM[version]
        check(mean in table, "mean", mean, f"one of {sorted(table)}")
        kept = table[mean]
    check(len(kept) == len(layers), "kept", kept, f"{len(layers)} counts, one a stage")
    check(min(kept) >= 1, "kept", kept, "at least 1 token a stage")
    counts, left = [], image
    at = dict(zip(layers, kept, strict=True))
    for layer in range(num_layers):
        counts.append(left)
        if layer in at and left > 1:
            stay = min(at[layer], left - 1)
            again = int(0.3 * (left - stay)) + 1
            left = stay + (again // 10 + 1 if recycle else 0)
    return tuple(counts)
