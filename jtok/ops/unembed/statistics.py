"""Cross-entropy, and what else a distribution over the vocabulary says.

Logits exist for a chunk of tokens and a block of the vocabulary at a time, in the
backward pass too, which computes them again. On a mesh whose rules split the
vocabulary every device keeps to its own part of the unembedding.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.ops.sharding import AnyMesh, current_mesh
from jtok.ops.unembed import walk
from jtok.ops.unembed.walk import LOW, Layout, Sizes

__all__ = ["VocabStatistics", "cross_entropy", "vocab_statistics"]

_NO_ID = 2**31 - 1


@struct.dataclass
class VocabStatistics:
    """What the distribution over the vocabulary says at every token, in nats.

    Attributes:
      log_sum_exp: `[...]` float32 normaliser.
      target_logit: `[...]` float32 logit of the target.
      max_logit: `[...]` float32 largest logit.
      argmax: `[...]` int32 its id, ties to the lower one.
      entropy: `[...]` float32, or None where it was not asked for.
    """

    log_sum_exp: jax.Array
    target_logit: jax.Array
    max_logit: jax.Array
    argmax: jax.Array
    entropy: jax.Array | None = None

    @property
    def cross_entropy(self) -> jax.Array:
        """`[...]` float32 loss of the target."""
        return self.log_sum_exp - self.target_logit

    @property
    def max_log_prob(self) -> jax.Array:
        """`[...]` float32 log-probability of the most likely id."""
        return self.max_logit - self.log_sum_exp


class _Static(NamedTuple):
    sizes: Sizes
    layout: Layout
    softcap: float | None
    entropy: bool


def cross_entropy(
    hidden: Float[Array, "*tokens dim"],
    weight: Float[Array, "vocab dim"],
    targets: Int[Array, "*tokens"],
    *,
    mask: Bool[Array, "*tokens"] | None = None,
    bias: Float[Array, " vocab"] | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    block: int | None = None,
    mesh: AnyMesh | None = None,
) -> Float[Array, "*tokens"]:
    """Cross-entropy of targets, in nats, over chunks of tokens and vocabulary.

    Reverse-mode gradients reach `hidden`, `weight` and `bias`; they are summed in
    float32, and those that nobody asks for are not computed. No second derivatives.

    Args:
      hidden: `[..., dim]`, after the final norm.
      weight: `[vocab, dim]` unembedding.
      targets: `[...]` int32 in `[0, vocab)`; out-of-range ids are clamped.
      mask: `[...]` bool, False gives 0; None counts every token.
      bias: `[vocab]` or None.
      softcap: logits become `softcap * tanh(logits / softcap)`, None for no cap.
      chunk: tokens at a time (static); None chooses about 16 MB of logits.
      block: vocabulary entries at a time (static); None chooses up to 16384.
      mesh: None means the mesh of `jax.set_mesh`.

    Returns:
      `[...]` float32 nats per token.

    Example:
      >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.ones((8, 4)), jnp.array([0, 5]))
      >>> bool(jnp.allclose(loss, jnp.log(8)))
      True
    """
    found = vocab_statistics(
        hidden, weight, targets, bias=bias, softcap=softcap, entropy=False,
        chunk=chunk, block=block, mesh=mesh,
    )  # fmt: skip
    losses = found.cross_entropy
    return losses if mask is None else jnp.where(mask, losses, 0.0)


def vocab_statistics(
    hidden: Float[Array, "*tokens dim"],
    weight: Float[Array, "vocab dim"],
    targets: Int[Array, "*tokens"] | None = None,
    *,
    bias: Float[Array, " vocab"] | None = None,
    softcap: float | None = None,
    entropy: bool = True,
    chunk: int | None = None,
    block: int | None = None,
    mesh: AnyMesh | None = None,
) -> VocabStatistics:
    """Normaliser, target logit, maximum and entropy of every token's distribution.

    All float results have reverse-mode gradients, as `cross_entropy` has.

    Args:
      hidden: `[..., dim]`, after the final norm.
      weight: `[vocab, dim]` unembedding.
      targets: `[...]` int32, clamped into the vocabulary; None takes id 0.
      bias: `[vocab]` or None.
      softcap: logits become `softcap * tanh(logits / softcap)`, None for no cap.
      entropy: compute the entropy too (static).
      chunk: tokens at a time (static); None chooses about 16 MB of logits.
      block: vocabulary entries at a time (static); None chooses up to 16384.
      mesh: None means the mesh of `jax.set_mesh`.

    Returns:
      `VocabStatistics`.

    Raises:
      ArgumentError: `chunk` or `block` below 1.

    Example:
      >>> found = vocab_statistics(jnp.zeros((2, 4)), jnp.ones((8, 4)))
      >>> bool(jnp.allclose(found.entropy, jnp.log(8)))
      True
    """
    shape, vocab = hidden.shape[:-1], weight.shape[0]
    flat = hidden.reshape(-1, hidden.shape[-1])
    wanted = jnp.zeros(shape, jnp.int32) if targets is None else targets
    wanted = jnp.clip(wanted.reshape(-1), 0, vocab - 1).astype(jnp.int32)
    layout = Layout.of(current_mesh(mesh), flat.shape[0], vocab)
    parts = layout.sizes(flat.shape[0], vocab, chunk, block)
    static = _Static(parts, layout, softcap, entropy)
    found = _statistics(static, flat, weight, bias, wanted)
    return jax.tree.map(lambda x: x.reshape(shape), found)


# ---- statistics and their gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(
    static: _Static, hidden: Array, weight: Array, bias: Any, targets: Array
) -> VocabStatistics:
    layout = static.layout
    return layout.run(
        functools.partial(_local_statistics, static),
        (*layout.model_specs(bias), layout.spec("tokens")),
        layout.spec("tokens"),
        hidden,
        weight,
        bias,
        targets,
    )


def _local_statistics(
    static: _Static, hidden: Array, weight: Array, bias: Any, targets: Array
) -> VocabStatistics:
    vocab, block = weight.shape[0], static.sizes.block
    offset = static.layout.offset(vocab)

    def init(count: int) -> dict[str, Array]:
        zeros = jnp.zeros(count, jnp.float32)
        state = {"max": zeros + LOW, "sum": zeros, "target": zeros}
        state["argmax"] = jnp.zeros(count, jnp.int32)
        return {**state, "mean": zeros} if static.entropy else state

    def step(state: Any, tokens: Any, start: Any, fresh: Array) -> dict[str, Array]:
        some, wanted = tokens
        logits = walk.block_logits(some, weight, bias, static.softcap, start, block)
        logits = jnp.where(fresh, logits, -jnp.inf)
        ids = (offset + start + jnp.arange(block, dtype=jnp.int32))[None]
        best = jnp.max(logits, axis=-1)
        highest = jnp.maximum(state["max"], best)
        shrink = jnp.exp(state["max"] - highest)
        weights = jnp.exp(logits - highest[:, None])
        picked = jnp.where((ids == wanted[:, None]) & fresh, logits, 0.0)
        at = jnp.min(jnp.where(logits == best[:, None], ids, _NO_ID), axis=-1)
        new = {
            "max": highest,
            "sum": state["sum"] * shrink + jnp.sum(weights, axis=-1),
            "target": state["target"] + jnp.sum(picked, axis=-1),
            "argmax": jnp.where(best > state["max"], at, state["argmax"]),
        }
        if static.entropy:
            mean = jnp.sum(walk.product(weights, logits), axis=-1)
            new["mean"] = state["mean"] * shrink + mean
        return new

    state = walk.walk((hidden, targets), vocab, static.sizes, init, step)
    state = _over_shards(static.layout, state)
    lse = state["max"] + jnp.log(state["sum"])
    entropy = lse - state["mean"] / state["sum"] if static.entropy else None
    return VocabStatistics(lse, state["target"], state["max"], state["argmax"], entropy)


def _over_shards(layout: Layout, state: dict[str, Array]) -> dict[str, Array]:
    """Joins the running values of the vocabulary's shards."""
    axes = layout.vocab
    if not axes:
        return state
    highest = jax.lax.pmax(state["max"], axes)
    shrink = jnp.exp(state["max"] - highest)
    at = jnp.where(state["max"] == highest, state["argmax"], _NO_ID)
    sums = {"target": state["target"], "sum": state["sum"] * shrink}
    if "mean" in state:
        sums["mean"] = state["mean"] * shrink
    joined = jax.lax.psum(sums, axes)
    return {"max": highest, "argmax": jax.lax.pmin(at, axes), **joined}


def _statistics_fwd(
    static: _Static, hidden: Any, weight: Any, bias: Any, targets: Any
) -> tuple[VocabStatistics, Any]:
    asked = walk.asked(hidden, weight, bias)
    args = walk.values((hidden, weight, bias, targets))
    found = _statistics(static, *args)
    return found, (args, found, asked)


def _statistics_bwd(static: _Static, saved: Any, cotangents: Any) -> Any:
    (hidden, weight, bias, targets), found, asked = saved
    slopes = {
        name: walk.dense(getattr(cotangents, name))
        for name in ("log_sum_exp", "target_logit", "max_logit", "entropy")
    }
    tokens = {"slopes": slopes, "found": found, "targets": targets}
    layout = static.layout
    grads = layout.run(
        functools.partial(_local_gradient, static, walk.needs_of(asked)),
        (*layout.model_specs(bias), layout.spec("tokens")),
        layout.gradient_specs(asked),
        hidden,
        weight,
        bias,
        tokens,
    )
    return (*grads, None)


def _local_gradient(
    static: _Static, needs: Any, hidden: Array, weight: Array, bias: Any, tokens: Any
) -> tuple[Any, Any, Any]:
    offset = static.layout.offset(weight.shape[0])

    def slope(logits: Array, some: Any, start: Any) -> Array:
        found, slopes = some["found"], some["slopes"]
        column = lambda x: x[:, None]
        ids = (offset + start + jnp.arange(logits.shape[1], dtype=jnp.int32))[None]
        log_probs = logits - column(found.log_sum_exp)
        probs = jnp.exp(log_probs)
        out = probs * column(slopes["log_sum_exp"])
        if static.entropy:
            # Of -sum p log p: -p (log p + entropy).
            excess = walk.product(probs, log_probs) + probs * column(found.entropy)
            out = out - excess * column(slopes["entropy"])
        is_target = ids == column(some["targets"])
        out = out + jnp.where(is_target, column(slopes["target_logit"]), 0.0)
        is_best = ids == column(found.argmax)
        return out + jnp.where(is_best, column(slopes["max_logit"]), 0.0)

    return walk.pull_back(
        hidden, weight, bias, tokens, static.sizes, static.softcap, needs,
        static.layout, slope,
    )  # fmt: skip


_statistics.defvjp(_statistics_fwd, _statistics_bwd, symbolic_zeros=True)
