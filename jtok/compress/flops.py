"""What layers cost: arithmetic and memory of keys and values, counted on the host."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jtok.errors import ArgumentTypeError, check

__all__ = ["Cost", "flops"]

Tokens = Literal["entering", "leaving", "exact"]
_TOKENS = ("entering", "leaving", "exact")
_FIELDS = ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "mlp_width")


class Cost(NamedTuple):
    """What a pass over one sequence costs.

    Attributes:
      flops: floating-point operations of all layers, two for a multiply-add.
      layers: those of each layer.
      kv_bytes: bytes of the keys and values of all layers.
    """

    flops: int
    layers: tuple[int, ...]
    kv_bytes: int

    @property
    def macs(self) -> int:
        """Multiply-adds, which many papers call FLOPs."""
        return self.flops // 2


def flops(
    config: Any,
    counts: Sequence[int],
    *,
    tokens: Tokens = "exact",
    where: Literal["attention", "layer"] = "attention",
    keys: Sequence[int] | None = None,
) -> Cost:
    """Counts the arithmetic of the layers of a model, for one sequence.

    Of each layer the products with weights (query, key, value, output, MLP) and the two
    products of attention are counted: with `n` tokens, width `h`, keys and values
    `k` wide and an MLP `i` wide `2 n (2 h^2 + 2 h k + 3 h i) + 4 n^2 h` for gated MLPs,
    2 in place of the 3 for plain ones. Embeddings, heads, norms and activations are not
    counted, nor what compressing costs; windows and causal masks spare nothing.

    Args:
      config: of a transformer: `DecoderConfig`, `EncoderConfig`, or any with their
        sizes.
      counts: tokens that enter each layer, and those that leave the last one
        (`Schedule.token_counts`); the last number may be missing for "entering".
      tokens: "exact": what happens: where tokens leave after attention, the MLP works
        on those that are left. "entering": all of a layer is charged for those that
        enter it (the counter of ToMe's and PiToMe's images). "leaving": for those that
        leave it (PiToMe's texts, AIM's table).
      where: tokens leave after the "attention" or after the "layer", for "exact".
      keys: tokens that each layer attends to, where a cache holds more; None for the
        tokens themselves.

    Returns:
      `Cost`; keys and values are those of the tokens that the layer's attention is
      charged for.

    Raises:
      ArgumentError: not one count a layer, or a count below 0.
      ArgumentTypeError: a configuration of no transformer.

    Source: section 4 of arXiv 2412.03248 (decoders), and the counter of the code of
      arXiv 2405.16148 (encoders), whose unit is the multiply-add.

    Example:
      >>> from jtok.testing import tiny_config
      >>> flops(tiny_config(), (9, 9, 9)).layers
      (176256, 176256)
    """
    check(tokens in _TOKENS, "tokens", tokens, f"one of {', '.join(_TOKENS)}")
    check(where in ("attention", "layer"), "where", where, "'attention' or 'layer'")
    missing = [name for name in _FIELDS if not hasattr(config, name)]
    if missing:
        raise ArgumentTypeError(
            f"config: got {type(config).__name__}, which has no {missing[0]}, expected "
            "that of a transformer."
        )
    num, seen = config.num_layers, [int(count) for count in counts]
    good = len(seen) == num + 1 or (len(seen) == num and tokens == "entering")
    expected = f"{num + 1} integers, what enters each layer and leaves the last"
    check(good and min(seen) >= 0, "counts", tuple(counts), expected)
    entering, leaving = seen[:num], seen[-num:]
    mixed = leaving if tokens == "leaving" else entering
    after = leaving if tokens == "exact" and where == "attention" else mixed
    attended = mixed if keys is None else [int(count) for count in keys]
    good = len(attended) == num and min(attended) >= 0
    check(good, "keys", keys, f"{num} integers, one a layer, or None")
    queries = config.num_heads * config.head_dim
    values = config.num_kv_heads * config.head_dim
    layers = tuple(
        2 * n * config.width * (2 * queries + 2 * values)
        + 4 * n * m * queries
        + 2 * rows * config.width * _mlp_width(config, layer)
        for layer, (n, m, rows) in enumerate(zip(mixed, attended, after, strict=True))
    )
    item = jnp.dtype(getattr(config, "dtype", "float32")).itemsize
    return Cost(sum(layers), layers, 2 * sum(attended) * values * item)


def _mlp_width(config: Any, layer: int) -> int:
    """Rows of all matrices of the MLP that a token goes through."""
    matrices = 3 if getattr(config, "mlp", "plain") == "gated" else 2
    experts = getattr(config, "num_experts", 0)
    if not experts or layer in config.dense_layers:
        return int(matrices * config.mlp_width)
    return int(matrices * config.experts_per_token * config.expert_width + experts)
