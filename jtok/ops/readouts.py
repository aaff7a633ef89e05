"""What a model says about the next token: how it is asked, and what it answers."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jtok.ops import sampling

__all__ = ["Draw", "Readout", "Want", "readout_logits", "score_gap"]


@struct.dataclass
class Draw:
    """How the next token of each node is drawn; without one it is the arg-max.

    Attributes:
      keys: `[batch, 2]` uint32 raw key of every row.
      start: `[batch]` int32 absolute position of depth 0.
      depth: `[batch, nodes]` int32; node i stands at `start + depth[i]`.
      temperature: `[batch]` float32 >= 0; 0 gives the arg-max.
      top_p: `[batch]` float32 in (0, 1], or None.
      min_p: `[batch]` float32 in [0, 1], or None.
      top_k: tokens to keep, or None (static).
      max_depth: bound on `depth` (static).
    """

    keys: jax.Array
    start: jax.Array
    depth: jax.Array
    temperature: jax.Array
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    top_k: int | None = struct.field(pytree_node=False, default=None)
    max_depth: int = struct.field(pytree_node=False, default=0)

    @property
    def dense(self) -> bool:
        """Whether drawing needs all logits of a node at once."""
        return self.top_p is not None or self.min_p is not None

    def noise(self, ids: Int[Array, " choices"]) -> Float[Array, "batch nodes choices"]:
        """Noise of `ids` at every node; nodes of one depth share it."""
        batch = self.depth.shape[0]
        levels = jnp.arange(self.max_depth + 1)
        positions = self.start[:, None] + levels[None]
        every = jnp.broadcast_to(ids, (batch, self.max_depth + 1, ids.shape[0]))
        noise = sampling.gumbel_at(self.keys, positions, every)
        if self.max_depth == 0:
            return jnp.broadcast_to(noise, (*self.depth.shape, ids.shape[0]))
        return jnp.take_along_axis(noise, self.depth[..., None], axis=1)

    def scaled(self, logits: Float[Array, "batch nodes choices"]) -> Array:
        """Logits divided by the temperature; rows of temperature 0 stay as they are."""
        positive = self.temperature > 0
        divisor = jnp.where(positive, self.temperature, 1.0)
        return logits / divisor[:, None, None]

    def noised(self, scaled: Array, noise: Array) -> Array:
        """Scaled logits plus noise; rows of temperature 0 get none."""
        return jnp.where((self.temperature > 0)[:, None, None], scaled + noise, scaled)


@struct.dataclass
class Want:
    """What a readout is asked for; the chosen token is always given.

    Attributes:
      draw: how to choose, None for the arg-max.
      top_k: how many best ids and logits to return (static).
      log_sum_exp: return the normaliser (static).
      rows: return all logits (static).
      gap: return how far the chosen score is above the next one (static).
    """

    draw: Draw | None = None
    top_k: int = struct.field(pytree_node=False, default=0)
    log_sum_exp: bool = struct.field(pytree_node=False, default=False)
    rows: bool = struct.field(pytree_node=False, default=False)
    gap: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Readout:
    """What the model says at every node, without the full logits unless asked for.

    Attributes:
      choice: `[batch, nodes]` int32 next token: arg-max or Gumbel-max.
      gap: `[batch, nodes]` float32, best minus second best (noised) score, or None.
      top_ids: `[batch, nodes, k]` int32, best first, ties to the lower id, or None.
      top_logits: `[batch, nodes, k]` float32 or None.
      log_sum_exp: `[batch, nodes]` float32 nats or None.
      rows: `[batch, nodes, vocab]` float32 unprocessed logits or None.
    """

    choice: jax.Array
    gap: jax.Array | None = None
    top_ids: jax.Array | None = None
    top_logits: jax.Array | None = None
    log_sum_exp: jax.Array | None = None
    rows: jax.Array | None = None


def readout_logits(logits: Float[Array, "batch nodes vocab"], want: Want) -> Readout:
    """The same as `readout`, for a model that gives logits.

    Args:
      logits: `[batch, nodes, vocab]`, any float dtype; read in float32.
      want: what to return.

    Returns:
      `Readout`; fields that were not asked for are None.

    Example:
      >>> readout_logits(jnp.array([[[0.0, 2.0, 2.0]]]), Want()).choice.tolist()
      [[1]]
    """
    logits = logits.astype(jnp.float32)
    scores = logits
    if want.draw is not None:
        draw = want.draw
        scores = sampling.filter_logits(
            draw.scaled(logits),
            top_k=draw.top_k,
            top_p=None if draw.top_p is None else draw.top_p[:, None],
            min_p=None if draw.min_p is None else draw.min_p[:, None],
        )
        scores = draw.noised(scores, draw.noise(jnp.arange(logits.shape[-1])))
    choice = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    top_logits, top_ids = _top(logits, want.top_k)
    return Readout(
        choice=choice,
        gap=score_gap(scores, choice) if want.gap else None,
        top_ids=top_ids,
        top_logits=top_logits,
        log_sum_exp=jax.nn.logsumexp(logits, axis=-1) if want.log_sum_exp else None,
        rows=logits if want.rows else None,
    )


def _top(logits: Array, count: int) -> tuple[Array | None, Array | None]:
    if count == 0:
        return None, None
    values, ids = jax.lax.top_k(logits, count)
    return values, ids.astype(jnp.int32)


def score_gap(scores: Array, choice: Array) -> Array:
    """How far the chosen score `[batch, nodes, choices]` is above the next one."""
    ids = jnp.arange(scores.shape[-1])[None, None]
    best = jnp.take_along_axis(scores, choice[..., None], axis=-1)[..., 0]
    rest = jnp.where(ids == choice[..., None], -jnp.inf, scores)
    return best - jnp.max(rest, axis=-1)
