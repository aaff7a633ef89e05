"""How well words are spelled: nats per word, and words that are right.

Source: Thawani et al. 2023, arXiv 2310.11628. Differs from its code unless
`compat="official"`: a word's end counts once, and nothing behind it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jtok.embed.unit_lm import unit_hidden
from jtok.embed.word_config import UnitConfig, WordPooledConfig
from jtok.embed.word_pooled import word_hidden
from jtok.errors import check
from jtok.ops import cross_entropy, vocab_statistics
from jtok.text.alphabets import END
from jtok.train import adamw, matrices_only

__all__ = [
    "UnitScores",
    "WordScores",
    "unit_loss",
    "unit_scores",
    "word_decay",
    "word_loss",
    "word_optimizer",
    "word_scores",
]

PyTree = Any
Loss = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


@flax.struct.dataclass(kw_only=True)
class UnitScores:
    """What a unit-level model says of the units of a text.

    Attributes:
      nats: `[batch, seq - 1]` float32 of every unit but the first.
      right: `[batch, seq - 1]` bool: no unit is more likely.
    """

    nats: jax.Array
    right: jax.Array


@flax.struct.dataclass(kw_only=True)
class WordScores:
    """What a model says of the words of a text.

    Attributes:
      unit_nats: `[batch, targets, units]` float32, 0 where nothing counts.
      counted: `[batch, targets, units]` bool: a word's units, and its end if there is
        room for one.
      right: `[batch, targets]` bool: no unit is more likely than a counted one, so
        greedy decoding from the true words before spells this word (without ties).
    """

    unit_nats: jax.Array
    counted: jax.Array
    right: jax.Array

    @property
    def word_nats(self) -> jax.Array:
        """`[batch, targets]` float32 nats of each word, its end included."""
        return jnp.sum(self.unit_nats, axis=-1)

    @property
    def words(self) -> jax.Array:
        """`[batch, targets]` bool: there is a word."""
        return self.counted[..., 0]


def counted_units(
    lengths: Int[Array, "batch targets"],
    size: int,
    mask: Bool[Array, "batch targets"] | None,
) -> Bool[Array, "batch targets size"]:
    """A word's units, and its end if there is room for one."""
    counted = jnp.arange(size)[None, None] <= lengths[..., None]
    return counted if mask is None else counted & mask[..., None]


def _with_room(config: WordPooledConfig, units: Array) -> Array:
    """Words cut to their longest still have an end, if the model's words do."""
    if units.shape[-1] >= config.units:
        return units
    return jnp.pad(units, [(0, 0), (0, 0), (0, 1)], constant_values=END)


def _targets(
    config: WordPooledConfig, units: Array, lengths: Array, mask: Array | None
) -> tuple[Array, Array]:
    """What is to be spelled, and which of it counts."""
    first = 0 if config.bos else 1
    units, lengths = units[:, first:], lengths[:, first:]
    counted = counted_units(
        lengths, units.shape[-1], None if mask is None else mask[:, first:]
    )
    # Behind a word's end stands what padding is; the end itself is unit 0.
    at = jnp.arange(units.shape[-1])[None, None]
    return jnp.where(at < lengths[..., None], units, END), counted


def word_scores(
    params: PyTree,
    config: WordPooledConfig,
    units: Int[Array, "batch words units"],
    lengths: Int[Array, "batch words"],
    *,
    mask: Bool[Array, "batch words"] | None = None,
) -> WordScores:
    """Nats of all words but the first (of all, with a word before it), and hits.

    Chunked over words and units: large alphabets never stand in memory for all words.

    Args:
      params: the parameters.
      config: the sizes.
      units: as for `word_hidden`.
      lengths: likewise.
      mask: likewise; words behind a row's end count nowhere.

    Returns:
      `WordScores`.

    Raises:
      ArgumentError: as for `word_hidden`.

    Source: Thawani et al. 2023, arXiv 2310.11628, section 4. Differs: nats, and greedy
    words.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_words(config, jax.random.key(0))
      >>> units, lengths = jnp.array([[[3, 4], [5, 0]]]), jnp.array([[2, 1]])
      >>> word_scores(params, config, units, lengths).counted.tolist()
      [[[True, True, False]]]
    """
    units = _with_room(config, units)
    hidden = word_hidden(params, config, units, lengths, mask=mask)
    targets, counted = _targets(config, units, lengths, mask)
    return scores_of(params["head"]["kernel"], hidden, targets, counted)


def scores_of(
    weight: Float[Array, "vocab dim"],
    hidden: Float[Array, "batch targets units dim"],
    targets: Int[Array, "batch targets units"],
    counted: Bool[Array, "batch targets units"],
) -> WordScores:
    """Scores of hidden states."""
    found = vocab_statistics(hidden, weight, targets, entropy=False)
    hit = found.target_logit >= found.max_logit
    right = jnp.all(hit | ~counted, axis=-1) & counted[..., 0]
    nats = jnp.where(counted, found.cross_entropy, 0.0)
    return WordScores(unit_nats=nats, counted=counted, right=right)


def word_loss(config: WordPooledConfig) -> Loss:
    """The training loss for `jtok.train.fit`: mean nats of a unit.

    Batches are mappings with `units` `[batch, words, units]`, `lengths`
    `[batch, words]` and, where rows differ, `mask` `[batch, words]`. With
    `compat="official"` all units of all words count, padding too.

    Args:
      config: the sizes.

    Returns:
      `loss_fn(params, frozen, state, batch, key)`, with the metrics `tokens` (units
      that count), `words` and `nats_per_word`.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code. Differs: padding does
    not count.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> params, key = init_words(config, jax.random.key(0)), jax.random.key(1)
      >>> units = jnp.array([[[3, 4], [5, 0]]])
      >>> batch = {"units": units, "lengths": jnp.array([[2, 1]])}
      >>> loss, _ = word_loss(config)(params, None, None, batch, key)
      >>> loss.shape
      ()
    """

    def loss_fn(
        trainable: PyTree, frozen: Any, state: Any, batch: Mapping[str, Array],
        key: Array,
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:  # fmt: skip
        units, mask = _with_room(config, batch["units"]), batch.get("mask")
        lengths = batch["lengths"]
        hidden = word_hidden(trainable, config, units, lengths, mask=mask, key=key)
        targets, counted = _targets(config, units, lengths, mask)
        if config.official:
            targets = units if config.bos else units[:, 1:]
            counted = jnp.ones_like(counted)
        weight = trainable["head"]["kernel"]
        nats = cross_entropy(hidden, weight, targets, mask=counted)
        return mean_loss(nats, counted, jnp.sum(counted[..., 0]), state)

    return loss_fn


def unit_loss(config: UnitConfig) -> Loss:
    """The training loss of the unit-level model: mean nats of a unit.

    Batches are mappings with `units` `[batch, seq]`, the input and, one later, the
    targets, and optionally `mask` `[batch, seq]` True for units that are real.

    Args:
      config: the sizes.

    Returns:
      `loss_fn(params, frozen, state, batch, key)`, with the metrics of `word_loss`; a
      word is what ends in unit 0.

    Source: Thawani et al. 2023, arXiv 2310.11628, baselines of the official code.

    Example:
      >>> config, key = UnitConfig(vocab_size=9, width=8, layers=1), jax.random.key(0)
      >>> params, batch = init_units(config, key), {"units": jnp.ones((1, 4), int)}
      >>> loss, _ = unit_loss(config)(params, None, None, batch, key)
      >>> loss.shape
      ()
    """

    def loss_fn(
        trainable: PyTree, frozen: Any, state: Any, batch: Mapping[str, Array],
        key: Array,
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:  # fmt: skip
        units = batch["units"]
        hidden = unit_hidden(trainable, config, units[:, :-1], key=key)
        targets = units[:, 1:]
        mask = batch.get("mask")
        counted = jnp.ones(targets.shape, bool) if mask is None else mask[:, 1:]
        weight = trainable["head"]["kernel"]
        nats = cross_entropy(hidden, weight, targets, mask=counted)
        return mean_loss(nats, counted, jnp.sum(counted & (targets == END)), state)

    return loss_fn


def unit_scores(
    params: PyTree, config: UnitConfig, units: Int[Array, "batch seq"]
) -> UnitScores:
    """Nats and hits of all units but the first, in chunks as `word_scores`.

    Args:
      params: the parameters.
      config: the sizes.
      units: `[batch, seq]` ids, one more than the model reads at once at most.

    Returns:
      `UnitScores`.

    Raises:
      ArgumentError: as for `unit_hidden`.

    Source: Thawani et al. 2023, arXiv 2310.11628, baselines of the official code.

    Example:
      >>> config = UnitConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_units(config, jax.random.key(0))
      >>> unit_scores(params, config, jnp.ones((1, 4), int)).nats.shape
      (1, 3)
    """
    hidden = unit_hidden(params, config, units[:, :-1])
    weight = params["head"]["kernel"]
    found = vocab_statistics(hidden, weight, units[:, 1:], entropy=False)
    right = found.target_logit >= found.max_logit
    return UnitScores(nats=found.cross_entropy, right=right)


def mean_loss(
    nats: Array, counted: Array, words: Array, state: Any
) -> tuple[Array, tuple[dict[str, Array], Any]]:
    total, count = jnp.sum(nats), jnp.sum(counted)
    per_word = total / jnp.maximum(words, 1)
    metrics = {"tokens": count, "words": words, "nats_per_word": per_word}
    return total / jnp.maximum(count, 1), (metrics, state)


def word_decay(params: PyTree, *, compat: Literal["official"] | None = None) -> PyTree:
    """Which leaves weight decay touches.

    Args:
      params: of a word-pooled or a unit-level model.
      compat: "official" decays all but biases: norms' scales, too.

    Returns:
      The tree with True where a leaf decays: matrices and tables.

    Raises:
      ArgumentError: an unknown `compat`.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code, whose pattern for
    norms matches none of their names.

    Example:
      >>> params = init_units(UnitConfig(vocab_size=9, width=8), jax.random.key(0))
      >>> word_decay(params)["main"]["final_norm"]
      {'bias': False, 'scale': False}
    """
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    if compat is None:
        return matrices_only(params)
    named = lambda path: str(getattr(path[-1], "key", path[-1]))
    return jax.tree_util.tree_map_with_path(lambda p, _: named(p) != "bias", params)


def word_optimizer(
    learning_rate: float | optax.Schedule = 1e-4,
    *,
    weight_decay: float = 0.1,
    compat: Literal["official"] | None = None,
) -> optax.GradientTransformation:
    """AdamW with betas (0.9, 0.95), gradients clipped to norm 1.

    Args:
      learning_rate: a rate, which the paper's code keeps constant, or a schedule.
      weight_decay: of the leaves that `word_decay` names.
      compat: as for `word_decay`.

    Returns:
      The Optax transformation.

    Raises:
      ArgumentError: an argument out of its range.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code.

    Example:
      >>> type(word_optimizer(1e-3).init({"w": jnp.ones((2, 2))})).__name__
      'tuple'
    """
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    mask = lambda params: word_decay(params, compat=compat)
    return adamw(learning_rate, weight_decay=weight_decay, decay_mask=mask)
