"""Sparse experts: a router sends every token through a few of many MLPs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.nn.config import DecoderConfig
from jtok.nn.layers import Linear, activation

__all__ = ["Experts", "route"]


def route(
    logits: Float[Array, "tokens experts"], *, count: int, sum_to_one: bool
) -> tuple[Int[Array, "tokens count"], Float[Array, "tokens count"]]:
    """Chooses the experts of every token, and what each contributes.

    Ties go to the lower index.

    Args:
      logits: `[tokens, experts]` of the router.
      count: experts a token (static).
      sum_to_one: scale the chosen probabilities to sum to 1.

    Returns:
      Experts `[tokens, count]` int32, best first, and their weights, float32: the
      softmax over all experts at the chosen ones.

    Example:
      >>> experts, weights = route(jnp.array([[0.0, 5.0]]), count=1, sum_to_one=True)
      >>> experts.tolist(), weights.tolist()
      ([[1]], [[1.0]])
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, experts = jax.lax.top_k(probabilities, count)
    if sum_to_one:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return experts.astype(jnp.int32), weights


class Experts(nn.Module):
    """Gated MLPs, of which a router chooses some for each token.

    Nothing is dropped: an expert takes all tokens that chose it. Kernels are
    `[experts, in, out]`.

    Attributes:
      config: supplies sizes, the number of experts and the activation.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens dim"],
        gates: Float[Array, "*tokens"] | None = None,
    ) -> Float[Array, "*tokens dim"]:
        del gates  # experts and their router have no adapters
        config = self.config
        flat = x.reshape(-1, x.shape[-1])
        logits = Linear(config.num_experts, False, config.dtype, name="router")(flat)
        experts, weights = route(
            logits,
            count=config.experts_per_token,
            sum_to_one=config.experts_sum_to_one,
        )
        width, hidden = x.shape[-1], config.expert_width
        kernel = lambda name, *shape: _Kernel(config, shape, name=name)()
        kernels = (
            kernel("expert_gate", width, hidden),
            kernel("expert_up", width, hidden),
            kernel("expert_down", hidden, width),
        )
        # Few tokens read the kernels of their experts; many are sorted by expert, so
        # that no kernel is read twice.
        few = experts.size <= config.num_experts
        run = _gathered if few else _sorted
        out = run(flat, experts, kernels, config.activation)
        mixed = jnp.sum(out * weights[..., None].astype(out.dtype), axis=1)
        return mixed.reshape(x.shape).astype(x.dtype)


class _Kernel(nn.Module):
    """One kernel for every expert."""

    config: DecoderConfig
    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Float[Array, "experts dim hidden"]:
        init = nn.initializers.normal(0.02)
        shape = (self.config.num_experts, *self.shape)
        return self.param("kernel", init, shape, self.config.dtype)


_Kernels = tuple[Array, Array, Array]


def _gathered(
    x: Float[Array, "tokens dim"],
    experts: Int[Array, "tokens count"],
    kernels: _Kernels,
    name: str,
) -> Float[Array, "tokens count dim"]:
    """Every (token, expert) pair with kernels of its own."""
    gate, up, down = (kernel[experts] for kernel in kernels)
    hidden = activation(name)(jnp.einsum("td,tkdf->tkf", x, gate))
    hidden = hidden * jnp.einsum("td,tkdf->tkf", x, up)
    return jnp.einsum("tkf,tkfd->tkd", hidden, down)


def _sorted(
    x: Float[Array, "tokens dim"],
    experts: Int[Array, "tokens count"],
    kernels: _Kernels,
    name: str,
) -> Float[Array, "tokens count dim"]:
    """Pairs sorted by expert, each expert's run through its kernels at once."""
    gate, up, down = kernels
    tokens, count = experts.shape
    chosen = experts.reshape(-1)
    order = jnp.argsort(chosen)  # stable
    sizes = jnp.bincount(chosen, length=gate.shape[0]).astype(jnp.int32)
    rows = x[order // count]
    hidden = activation(name)(jax.lax.ragged_dot(rows, gate, sizes))
    hidden = hidden * jax.lax.ragged_dot(rows, up, sizes)
    out = jax.lax.ragged_dot(hidden, down, sizes)
    back = jnp.argsort(order)
    return out[back].reshape(tokens, count, x.shape[-1])
