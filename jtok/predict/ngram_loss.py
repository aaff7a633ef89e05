"""Losses over masked n-grams: contiguous, explicit, comprehensive, relation modelling.

Vocabulary-sized work is done at the chosen places only, and in chunks.

Source: Xiao et al. 2021, arXiv 2010.12148, section 3.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentTypeError, check, near
from jtok.ops import (
    Draw,
    VocabStatistics,
    Want,
    readout,
    row_keys,
    vocab_statistics,
)
from jtok.predict.ngram import (
    coarse_rows,
    encode_grams,
    fine_rows,
    generator_of,
    gram_features,
)
from jtok.predict.ngram_config import GramModel
from jtok.predict.ngram_encoder import GramStates
from jtok.predict.ngram_masking import GramBatch

__all__ = [
    "GRAM_OBJECTIVES",
    "GRAM_TERMS",
    "GramLosses",
    "GramReads",
    "fill_masks",
    "gram_loss",
    "gram_losses",
    "read_grams",
    "replaced_nats",
    "sample_grams",
    "unit_nats",
]

GRAM_OBJECTIVES = ("contiguous", "explicit", "comprehensive")
GRAM_TERMS = ("coarse", "fine", "generator", "replaced")

_LOGITS = 2**21  # of one block when drawing: 8 MB in float32, and its noise


class GramReads(NamedTuple):
    """What a model says at the masks.

    Attributes:
      coarse: of tokens and n-grams, `[batch, grams]` in each field, or None.
      fine: of tokens, `[batch, fine]` in each field, or None.
      states: hidden states.
    """

    coarse: VocabStatistics | None
    fine: VocabStatistics | None
    states: GramStates


@struct.dataclass
class GramLosses:
    """Summed losses and how many targets each has, by the names in `GRAM_TERMS`.

    Attributes:
      sums: name -> float32 nats, of the terms that there are.
      counts: name -> int32 targets.
      right: name -> int32 targets that are the most likely class; of the generator
        those that were drawn.
    """

    sums: dict[str, jax.Array]
    counts: dict[str, jax.Array]
    right: dict[str, jax.Array]

    @property
    def means(self) -> dict[str, jax.Array]:
        """Name -> float32 nats a target, 0 where there is none."""
        return {k: x / jnp.maximum(self.counts[k], 1) for k, x in self.sums.items()}


def read_grams(
    model: GramModel,
    batch: GramBatch,
    *,
    objective: str = "comprehensive",
    left_ids: Int[Array, "batch left"] | None = None,
    chunk: int | None = None,
) -> GramReads:
    """What the main model says of the targets of a batch.

    Args:
      model: the model.
      batch: examples; for "contiguous" made with `contiguous=True`.
      objective: "contiguous" reads tokens at their own masks, "explicit" units at
        theirs, "comprehensive" units, and their tokens at the fine queries (static).
      left_ids: what the generator filled in, or None.
      chunk: tokens a piece of the vocabulary-sized work; None leaves that to it.

    Returns:
      `GramReads`; what stands at padding means nothing.

    Raises:
      ArgumentError: an unknown objective.

    Source: arXiv 2010.12148, sections 3.1 and 3.2.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> jax.eval_shape(read_grams, model, batch).fine.argmax.shape
      (2, 8)
    """
    _check_objective(objective)
    states = encode_grams(
        model, batch, left_ids=left_ids, fine=objective == "comprehensive"
    )
    coarse = fine = None
    if objective != "contiguous":
        coarse = _coarse(model, states.left, batch, chunk)
    if objective != "explicit":
        hidden = states.fine
        if hidden is None:
            hidden = _gathered(states.left, batch.fine_places)
        features = gram_features(model.params["fine"], model.config.encoder, hidden)
        rows, bias = fine_rows(model)
        fine = vocab_statistics(
            features, rows, jnp.asarray(batch.fine_ids), bias=bias, entropy=False,
            chunk=chunk,
        )  # fmt: skip
    return GramReads(coarse, fine, states)


def _check_objective(objective: str) -> None:
    known = GRAM_OBJECTIVES
    check(objective in known, "objective", objective, f"one of {', '.join(known)}")


def _gathered(hidden: Array, places: Any) -> Array:
    return jnp.take_along_axis(hidden, jnp.asarray(places)[..., None], axis=1)


def _coarse(
    model: GramModel, left: Array, batch: GramBatch, chunk: int | None
) -> VocabStatistics:
    features = _coarse_features(model, left, batch)
    rows, bias = coarse_rows(model)
    targets = jnp.asarray(batch.gram_ids)
    return vocab_statistics(
        features, rows, targets, bias=bias, entropy=False, chunk=chunk
    )


def _coarse_features(model: GramModel, left: Array, batch: GramBatch) -> Array:
    hidden = _gathered(left, batch.gram_places)
    return gram_features(model.params["coarse"], model.config.encoder, hidden)


# ---- relation modelling


def sample_grams(
    features: Float[Array, "batch grams features"],
    rows: Float[Array, "classes features"],
    bias: Float[Array, " classes"],
    key: jax.Array,
) -> Int[Array, "batch grams"]:
    """Draws a class for every place from its softmax, by Gumbel arg-max in float32.

    Logits exist for one block of classes at a time. No gradient goes through.

    Args:
      features: `[batch, grams, features]` of the generator.
      rows: `[classes, features]`.
      bias: `[classes]`.
      key: typed key, consumed.

    Returns:
      `[batch, grams]` int32, ties to the lower class.

    Source: arXiv 2010.12148, section 3.3.

    Example:
      >>> x, rows = jnp.zeros((2, 3, 4)), jnp.ones((9, 4))
      >>> sample_grams(x, rows, jnp.zeros(9), jax.random.key(0)).shape
      (2, 3)
    """
    features, rows, bias = jax.lax.stop_gradient((features, rows, bias))
    batch, grams = features.shape[:2]
    draw = Draw(
        keys=row_keys(jax.random.bits(key, (batch,))),
        start=jnp.zeros(batch, jnp.int32),
        depth=jnp.broadcast_to(jnp.arange(grams)[None], (batch, grams)),
        temperature=jnp.ones(batch),
        max_depth=grams - 1,
    )
    block = min(max(_LOGITS // (batch * grams), 256), 16384)
    return readout(features, rows, Want(draw=draw), bias=bias, block=block).choice


def fill_masks(
    batch: GramBatch, drawn: Int[Array, "batch grams"]
) -> tuple[Int[Array, "batch left"], Bool[Array, "batch left"]]:
    """Puts drawn classes where the masks stand, and says where they are the truth.

    Args:
      batch: examples.
      drawn: `[batch, grams]` int32 classes; an n-gram is one id, too.

    Returns:
      `[batch, left]` int32 ids and `[batch, left]` bool: True is original, so
      everywhere but at masks that were filled wrongly.

    Source: arXiv 2010.12148, section 3.3. (ELECTRA's labels have the other sign.)

    Example:
      >>> layout = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=4, rate=1.0)
      >>> lexicon = jtok.text.Lexicon.of([], vocab_size=9)
      >>> one = gram_batches([np.array([5])], lexicon, layout, batch_size=1, seed=0)[0]
      >>> ids, original = fill_masks(one, jnp.full((1, 80), 7))
      >>> ids.tolist(), original.tolist()
      ([[0, 7, 1, 3]], [[True, False, True, True]])
    """
    ids = jnp.asarray(batch.left_ids)
    size = ids.shape[1]
    places = jnp.where(batch.gram_mask, batch.gram_places, size)
    rows = jnp.arange(ids.shape[0])[:, None]
    same = drawn == jnp.asarray(batch.gram_ids)
    original = jnp.ones(ids.shape, bool).at[rows, places].set(same, mode="drop")
    return ids.at[rows, places].set(drawn, mode="drop"), original


def replaced_nats(
    logits: Float[Array, "*tokens"], original: Bool[Array, "*tokens"]
) -> Float[Array, "*tokens"]:
    """Binary cross-entropy of whether tokens are original, in float32.

    Args:
      logits: `[...]`, high for original.
      original: `[...]` bool.

    Returns:
      `[...]` float32 nats.

    Source: arXiv 2010.12148, section 3.3.

    Example:
      >>> replaced_nats(jnp.zeros(1), jnp.array([True])).round(3).tolist()
      [0.6930000185966492]
    """
    wide = logits.astype(jnp.float32)
    return jax.nn.softplus(jnp.where(original, -wide, wide))


# ---- losses


def gram_losses(
    model: GramModel,
    batch: GramBatch,
    *,
    objective: str = "comprehensive",
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> GramLosses:
    """All terms of the loss of a batch, summed.

    With a generator, and another objective than "contiguous", the main model sees what
    the generator draws in place of the masks, predicts the true units and tokens all
    the same, and tells which tokens are original.

    Args:
      model: the model.
      batch: examples; for "contiguous" made with `contiguous=True`.
      objective: as for `read_grams` (static).
      key: typed key, consumed; needed with a generator.
      chunk: tokens a piece of the vocabulary-sized work; None leaves that to it.

    Returns:
      `GramLosses`.

    Raises:
      ArgumentError: an unknown objective, or a generator without a key.

    Source: arXiv 2010.12148, equations 4 to 9.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> sorted(jax.eval_shape(gram_losses, model, batch).sums)
      ['coarse', 'fine']
    """
    _check_objective(objective)
    sums: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    right: dict[str, Array] = {}

    def add(name: str, nats: Array, good: Array, mask: Any) -> None:
        sums[name] = jnp.sum(jnp.where(mask, nats, 0.0))
        counts[name] = jnp.sum(jnp.asarray(mask), dtype=jnp.int32)
        right[name] = jnp.sum(good & mask, dtype=jnp.int32)

    left_ids = original = None
    if model.config.generator is not None and objective != "contiguous":
        check(key is not None, "key", None, "a key beside a generator")
        guess, drawn = _generate(model, batch, key, chunk)
        add("generator", guess.cross_entropy, drawn == batch.gram_ids, batch.gram_mask)
        left_ids, original = fill_masks(batch, drawn)
    reads = read_grams(
        model, batch, objective=objective, left_ids=left_ids, chunk=chunk
    )
    for name, found, targets, mask in (
        ("coarse", reads.coarse, batch.gram_ids, batch.gram_mask),
        ("fine", reads.fine, batch.fine_ids, batch.fine_mask),
    ):
        if found is not None:
            add(name, found.cross_entropy, found.argmax == targets, mask)
    if original is not None:
        logits = _replaced_logits(model, reads.states.left)
        nats = replaced_nats(logits, original)
        add("replaced", nats, (logits > 0) == original, batch.left_mask)
    return GramLosses(sums, counts, right)


def _generate(
    model: GramModel, batch: GramBatch, key: Any, chunk: int | None
) -> tuple[VocabStatistics, Array]:
    """What the generator says of the truth, and what it draws."""
    small = generator_of(model)
    left = encode_grams(small, batch, fine=False).left
    features = _coarse_features(small, left, batch)
    rows, bias = coarse_rows(small)
    found = vocab_statistics(
        features, rows, jnp.asarray(batch.gram_ids), bias=bias, entropy=False,
        chunk=chunk,
    )  # fmt: skip
    return found, sample_grams(features, rows, bias, key)


def _replaced_logits(model: GramModel, left: Array) -> Array:
    head = model.params["replaced"]
    wide = left.astype(jnp.float32) @ head["kernel"].astype(jnp.float32)
    return wide + head["bias"].astype(jnp.float32)


def gram_loss(
    model: GramModel,
    objective: str = "comprehensive",
    *,
    weights: Mapping[str, float] | None = None,
    per: str = "grams",
    chunk: int | None = None,
) -> Callable[..., Any]:
    """Makes the loss of `jtok.train.fit` for pre-training on masked n-grams.

    Args:
      model: the model; nothing but its description is kept. `fit` trains its `params`.
      objective: as for `read_grams` (static).
      weights: of the terms, see `GRAM_TERMS`; those not named have 1.
      per: "grams" divides the paper's sums by the number of chosen n-grams, "own" each
        by its own number of targets.
      chunk: tokens a piece of the vocabulary-sized work; None leaves that to it.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)`, see `jtok.train.fit`; a batch is
      a `GramBatch`. Metrics: `tokens` of the left part, and for each term `TERM_nats`
      and `TERM_right`, shares of its targets.

    Raises:
      ArgumentError: an unknown objective or term, or a weight below 0.

    Source: arXiv 2010.12148, equations 4 to 9. Differs: `per` and `weights`.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> loss, (metrics, _) = jax.eval_shape(gram_loss(model, "explicit"),
      ...     model.params, None, None, batch, jax.random.key(0))
      >>> sorted(metrics)
      ['coarse_nats', 'coarse_right', 'tokens']
    """
    _check_objective(objective)
    check(per in ("grams", "own"), "per", per, "'grams' or 'own'")
    factors = dict.fromkeys(GRAM_TERMS, 1.0)
    for name, value in (weights or {}).items():
        hint = f"a term{near(name, GRAM_TERMS)}"
        check(name in factors, "weights", name, hint)
        check(value >= 0, "weights", value, "at least 0")
        factors[name] = value
    shell = dataclasses.replace(model, params=None)

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del frozen
        if not isinstance(batch, GramBatch):
            kind = type(batch).__name__
            raise ArgumentTypeError(f"data: got {kind}, expected a GramBatch.")
        found = gram_losses(
            dataclasses.replace(shell, params=trainable), batch, objective=objective,
            key=key, chunk=chunk,
        )  # fmt: skip
        units = jnp.sum(jnp.asarray(batch.gram_mask), dtype=jnp.int32)
        loss = jnp.float32(0.0)
        metrics = {"tokens": jnp.sum(jnp.asarray(batch.left_mask), dtype=jnp.int32)}
        for name, total in found.sums.items():
            own = jnp.maximum(found.counts[name], 1)
            divisor = own if per == "own" else jnp.maximum(units, 1)
            # A batch without a chosen n-gram has nothing to learn from.
            loss = loss + jnp.where(units > 0, factors[name] * total / divisor, 0.0)
            metrics[f"{name}_nats"] = total / own
            metrics[f"{name}_right"] = found.right[name] / own
        return loss, (metrics, state)

    return loss_fn


def unit_nats(
    nats: Float[Array, "batch fine"], batch: GramBatch
) -> Float[Array, "batch grams"]:
    """Sums over the tokens of each chosen n-gram: minus its log-probability as tokens.

    Of independent predictions the product; a model with one mask a token is thereby
    told the length.

    Args:
      nats: `[batch, fine]` float32 of the tokens.
      batch: the examples.

    Returns:
      `[batch, grams]` float32.

    Source: arXiv 2010.12148, section 3.1.

    Example:
      >>> layout = GramLayout(cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=5, rate=1.0)
      >>> lexicon = jtok.text.Lexicon.of([(5, 6)], vocab_size=9)
      >>> one = gram_batches([np.array([5, 6])], lexicon, layout, batch_size=1, seed=0)
      >>> unit_nats(jnp.ones((1, 128)), one[0])[0, :2].tolist()
      [2.0, 0.0]
    """
    size = jnp.asarray(batch.gram_ids).shape[-1]
    owns = jax.nn.one_hot(jnp.asarray(batch.fine_grams), size)
    counted = jnp.where(batch.fine_mask, nats, 0.0)
    return jnp.einsum("bf,bfk->bk", counted, owns)
