"""Which tokens a language model looks at: scores by which some leave between layers.

A score is a frozen callable `ScoreView -> [batch, seq]`; more is more important. Any
hashable function of that kind will do in place of these.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jtok.errors import check
from jtok.ops.byproducts import attention_byproducts, attention_power
from jtok.ops.eager import one_program

__all__ = [
    "AimScore",
    "FirstTokensScore",
    "LastTokenScore",
    "RandomScore",
    "ReceivedScore",
    "ScoreView",
    "aim_importance",
]


@struct.dataclass
class ScoreView:
    """What a score may look at, after a layer.

    Attributes:
      x: `[batch, seq, dim]` the stream after the layer.
      query: `[batch, seq, heads, head_dim]` of the layer, positions applied.
      key: `[batch, kv_heads, seq, head_dim]` of the layer.
      valid: `[batch, seq]` bool, tokens that the layer saw.
      prunable: `[batch, seq]` bool, tokens that may leave.
      index: `[batch, seq]` int32 where each token stood in the prompt, -1 for none.
      last: `[batch]` int32 the place of the last valid token here.
      start: `[batch, seq]` float32 with how much every token starts a walk, or None:
        all valid ones alike.
      layer: 0-based (static).
      scale: factor on the attention's scores (static).
    """

    x: jax.Array
    query: jax.Array
    key: jax.Array
    valid: jax.Array
    prunable: jax.Array
    index: jax.Array
    last: jax.Array
    start: jax.Array | None
    layer: int = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)


Score = Callable[[ScoreView], Array]


@one_program
def aim_importance(
    query: Float[Array, "batch seq heads head_dim"],
    key: Float[Array, "batch seq kv_heads head_dim"],
    *,
    scale: float,
    temperature: float = 0.1,
    iterations: int = 5,
    damping: float = 0.0,
    valid: Bool[Array, "batch seq"] | None = None,
    causal: bool = True,
    start: Float[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq"]:
    """Importance of tokens: where a walk along the attention ends up.

    The walk starts at every valid token alike and goes from queries to the keys that
    they attend to, so backwards in time under a causal mask: of tokens that look alike
    the earliest win. Heads are joined by the root of their mean square. All of it is
    float32, in memory linear in the tokens.

    Args:
      query: `[batch, seq, heads, head_dim]`, positions applied.
      key: `[batch, seq, kv_heads, head_dim]`.
      scale: factor on the scores.
      temperature: tau, above 0, divides the scores.
      iterations: steps of the walk (static); after none all are alike.
      damping: d, share that starts anew at every step, 0 to 1.
      valid: `[batch, seq]` bool: only these keys are seen, and only these tokens start
        a walk. None lets all be real.
      causal: tokens see no later ones (static).
      start: `[batch, seq]` in place of the same share for all valid tokens; what
        tokens that are not valid start with flows away from them.

    Returns:
      `[batch, seq]` float32, 0 to 1; 0 where a row has no valid token at all.

    Raises:
      ArgumentError: `temperature` not above 0, `damping` outside of 0 to 1, or
        `iterations` below 0.

    Source: Zhong et al. 2024, arXiv 2412.03248, section 3.2, and its code. Differs:
      padding neither starts a walk nor ends one.

    Example:
      >>> x = jnp.zeros((1, 2, 1, 4))
      >>> aim_importance(x, x, scale=0.5, iterations=1).tolist()
      [[0.75, 0.25]]
    """
    check(temperature > 0, "temperature", temperature, "a number above 0")
    check(0 <= damping <= 1, "damping", damping, "a share of 0 to 1")
    flow = attention_power(
        query, key, scale=scale, temperature=temperature, iterations=iterations,
        damping=damping, valid=valid, causal=causal, start=start,
    )  # fmt: skip
    return jnp.sqrt(jnp.mean(flow * flow, axis=1))


@dataclasses.dataclass(frozen=True)
class AimScore:
    """`aim_importance` of the layer's own queries and keys.

    Attributes:
      temperature: tau, above 0.
      iterations: steps of the walk.
      damping: d, 0 to 1.

    Source: Zhong et al. 2024, arXiv 2412.03248.

    Example:
      >>> AimScore().iterations
      5
    """

    temperature: float = 0.1
    iterations: int = 5
    damping: float = 0.0

    def __post_init__(self) -> None:
        check(self.temperature > 0, "temperature", self.temperature, "above 0")
        check(self.iterations >= 0, "iterations", self.iterations, "0 or more")
        check(0 <= self.damping <= 1, "damping", self.damping, "a share of 0 to 1")

    def __call__(self, view: ScoreView) -> Array:
        """Returns `[batch, seq]` float32."""
        return aim_importance(
            view.query, view.key.swapaxes(1, 2), scale=view.scale,
            temperature=self.temperature, iterations=self.iterations,
            damping=self.damping, valid=view.valid, start=view.start,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LastTokenScore:
    """Attention of the last token of the prompt, mean over heads: FastV, PyramidDrop.

    FastV's paper writes of the attention that a token receives on average; that is
    `ReceivedScore`. Its code looks at the last token.

    Source: Chen et al. 2024, arXiv 2403.06764, as pkunlp-icler/FastV has it.

    Example:
      >>> LastTokenScore() == LastTokenScore()
      True
    """

    def __call__(self, view: ScoreView) -> Array:
        """Returns `[batch, seq]` float32."""
        # The last valid token sees all valid ones: no mask is needed but theirs.
        found = attention_byproducts(
            view.query, view.key.swapaxes(1, 2), scale=view.scale, valid=view.valid,
            rows=view.last[:, None],
        )  # fmt: skip
        rows: Any = found.rows
        return jnp.mean(rows[:, :, 0], axis=1)


@dataclasses.dataclass(frozen=True)
class ReceivedScore:
    """Attention that each token receives from all valid ones, mean over heads.

    Attributes:
      fair: divide by how many tokens can see it: under a causal mask early tokens
        are seen by more.

    Source: section 4.1 of Chen et al. 2024, arXiv 2403.06764; `fair` is an addition.

    Example:
      >>> ReceivedScore().fair
      False
    """

    fair: bool = False

    def __call__(self, view: ScoreView) -> Array:
        """Returns `[batch, seq]` float32."""
        found = attention_byproducts(
            view.query, view.key.swapaxes(1, 2), scale=view.scale, valid=view.valid,
            causal=True, columns=True,
        )  # fmt: skip
        score: Any = jnp.mean(jnp.asarray(found.columns), axis=1)
        if not self.fair:
            return score
        later = jnp.cumsum(view.valid[:, ::-1], axis=1)[:, ::-1]
        return score / jnp.maximum(later, 1).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class RandomScore:
    """A number that a token keeps through all layers: the baseline.

    Attributes:
      seed: another one drops other tokens.

    Example:
      >>> RandomScore(1) == RandomScore(1)
      True
    """

    seed: int = 0

    def __call__(self, view: ScoreView) -> Array:
        """Returns `[batch, seq]` float32; row, place and seed decide."""
        key, index = jax.random.key(self.seed), view.index.astype(jnp.uint32)
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(
            jnp.arange(index.shape[0])
        )
        draw = lambda key, at: jax.random.uniform(jax.random.fold_in(key, at))
        return jax.vmap(lambda key, places: jax.vmap(lambda at: draw(key, at))(places))(
            rows, index
        )


@dataclasses.dataclass(frozen=True)
class FirstTokensScore:
    """Earlier tokens are more important: what attention's position bias alone does.

    Example:
      >>> FirstTokensScore() == FirstTokensScore()
      True
    """

    def __call__(self, view: ScoreView) -> Array:
        """Returns `[batch, seq]` float32."""
        return -view.index.astype(jnp.float32)
