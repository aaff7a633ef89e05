"""Mask tokens: a finished model learns to predict several tokens, and stays what it is.

Behind some token stand k mask tokens; what the model gives for the j-th predicts the
j-th token after the next one. Trained are k vectors, adapters that only mask tokens
use, and a sampler head. Tokens see neither masks nor adapters, so that their keys,
values and predictions are the base model's, bit for bit.

Training runs a row once as the base model does, without gradients, and then all blocks
over its keys and values (`block_attention`).

Source: arXiv 2507.11851. Differs: the text does not say which linear maps have
adapters (here all), how they and the masks start, nor that the row needs no gradients.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.errors import ArgumentTypeError, VocabMismatchError, check
from jtok.models import Model, Taps
from jtok.models.model import Mixer, decoder_forward, unembedding
from jtok.ops.unembed import cross_entropy
from jtok.predict.adapters import attach, decoder_config, lora_init
from jtok.predict.masks import (
    Packed,
    block_attention,
    choose_blocks,
    known_targets,
    pack_blocks,
    within_documents,
)
from jtok.predict.sampler import sampler_hidden, sampler_init
from jtok.predict.targets import safe_mean

__all__ = [
    "MaskLosses",
    "block_latents",
    "latent_consistency",
    "mask_init",
    "mask_loss",
    "mask_losses",
    "with_masks",
]

PyTree = Any


def mask_init(
    model: Any,
    k: int,
    rank: int,
    key: jax.Array,
    *,
    targets: Any = None,
) -> PyTree:
    """What is trained: adapters, mask vectors and a sampler head.

    Args:
      model: a decoder.
      k: mask tokens, at least 1.
      rank: of the adapters.
      key: typed PRNG key, consumed.
      targets: linear maps with adapters, None for all; see `lora_init`.

    Returns:
      `adapters`, `masks` `[k, dim]` (normal, with the deviation of the embedding's
      rows) and `sampler`, in float32.

    Raises:
      ArgumentError: `k` below 1, or as `lora_init`.
      ArgumentTypeError: `model` is no decoder.

    Source: arXiv 2507.11851, section 3.

    Example:
      >>> from jtok.testing import tiny_model
      >>> made = mask_init(tiny_model(), 3, 2, jax.random.key(0))
      >>> sorted(made), made["masks"].shape
      (['adapters', 'masks', 'sampler'], (3, 32))
    """
    config = _decoder(model)
    check(k >= 1, "k", k, "at least 1")
    keys = jax.random.split(key, 3)
    deviation = jnp.std(model.params["embed"]["tokens"].astype(jnp.float32))
    return {
        "adapters": lora_init(config, rank, keys[0], targets=targets),
        "masks": deviation * jax.random.normal(keys[1], (k, config.width)),
        "sampler": sampler_init(config.width, keys[2]),
    }


def with_masks(
    model: Model,
    trained: PyTree,
    *,
    k: int | None = None,
    scale: int | float = 1.0,
) -> Model:
    """The model that decodes itself: masks are ids, adapters open for them alone.

    Ids `vocab_size` to `vocab_size + k - 1` name the masks. For tokens the model is
    what it was; it never emits a mask, as the unembedding stays as it is.

    Args:
      model: a decoder without adapters.
      trained: as `mask_init` makes it and `mask_loss` trains it.
      k: use the first masks only, None for all.
      scale: factor on the adapters' change.

    Returns:
      `Model`.

    Raises:
      ArgumentError: `k` out of range, or as `attach`.

    Source: arXiv 2507.11851, section 3.

    Example:
      >>> from jtok.testing import tiny_model
      >>> made = mask_init(tiny_model(), 3, 2, jax.random.key(0))
      >>> with_masks(tiny_model(), made).params["embed"]["extra"].shape
      (3, 32)
    """
    config = _decoder(model)
    masks = trained["masks"]
    count = masks.shape[0] if k is None else k
    check(1 <= count <= masks.shape[0], "k", k, f"1 to {masks.shape[0]}")
    params = attach(model.params, trained["adapters"], scale)
    embed = {**params["embed"], "extra": masks[:count].astype(config.dtype)}
    return dataclasses.replace(model, params={**params, "embed": embed})


def _decoder(model: Any) -> Any:
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"model: got {type(model).__name__}, expected a Model.")
    return decoder_config(model)


# ---- forward


def block_latents(
    model: Model,
    trained: PyTree,
    packed: Packed,
    *,
    scale: int | float = 1.0,
    gated: bool = True,
) -> tuple[Float[Array, "batch seq dim"], Float[Array, "batch masks dim"]]:
    """Runs rows and their blocks, and gives what the unembedding reads.

    Args:
      model: a decoder without adapters, layers split or (to train) stacked.
      trained: as `mask_init` makes it.
      packed: in the order of `pack_blocks`.
      scale: factor on the adapters' change.
      gated: only masks use the adapters; tokens are the base model's and have no
        gradients. False gives ordinary adapters, which all use (the paper's baseline).

    Returns:
      Latents of the tokens `[batch, seq, dim]`, and of all mask tokens
      `[batch, blocks * k, dim]`.

    Raises:
      ArgumentError: another order of slots, more masks than there are, or as `attach`.
      VocabMismatchError: slots for a vocabulary of another size.

    Source: arXiv 2507.11851, section 3. Differs: two passes, see the module.

    Example:
      >>> from jtok.testing import tiny_model
      >>> made = mask_init(tiny_model(), 2, 2, jax.random.key(0))
      >>> packed = pack_blocks(jnp.array([[5, 6, 7]]), 2, vocab_size=96)
      >>> found = jax.eval_shape(block_latents, tiny_model(), made, packed)
      >>> [x.shape for x in found]
      [(1, 3, 32), (1, 6, 32)]
    """
    config = _decoder(model)
    seq, k = packed.seq, packed.k
    check(seq > 0, "packed", "slots in another order", "what pack_blocks gives")
    check(k <= trained["masks"].shape[0], "packed", f"k={k}", "no more than the masks")
    ids, expected = packed.vocab_size, f"{config.vocab_size}, as the model has"
    good = ids == config.vocab_size
    check(good, "packed", f"{ids} ids", expected, VocabMismatchError)
    adapted = attach(model.params, trained["adapters"], scale)
    places, seen = packed.positions[:, :seq], packed.valid[:, :seq]
    row = decoder_forward(
        model.params if gated else adapted,
        config,
        packed.ids[:, :seq],
        positions=places,
        mask=within_documents(seen, packed.segments),
        taps=Taps(("key", "value")),
        logits="none",
    )
    hidden, read = row.hidden, row.taps
    if gated:
        hidden, read = jax.lax.stop_gradient((hidden, read))
    if packed.ids.shape[1] == seq:
        return hidden, hidden[:, :0]
    ends = packed.block[:, seq::k]

    def mix(query: Array, key: Array, value: Array, part: Any, **options: Any) -> Array:
        row_key, row_value = (x.transpose(0, 2, 1, 3) for x in part)
        return block_attention(
            query, key, value, row_key, row_value, ends, seen=seen, positions=places,
            segments=packed.segments, **options,
        )  # fmt: skip

    which = jnp.maximum(packed.offset[:, seq:] - 1, 0)  # where there is none: any
    blocks = decoder_forward(
        adapted,
        config,
        trained["masks"][which],
        positions=packed.positions[:, seq:],
        logits="none",
        mixer=Mixer(mix, (read["key"], read["value"])),
    )
    return hidden, blocks.hidden


# ---- losses


class MaskLosses(NamedTuple):
    """The parts of the loss, float32 scalars in nats (but for `consistency`).

    Attributes:
      base: cross-entropy of the model's own readout, over tokens and masks.
      sampler: that of the sampler head.
      consistency: distance of masks' latents from those of tokens at their places.
      next_token: cross-entropy of the model's own readout over tokens alone.
    """

    base: jax.Array
    sampler: jax.Array
    consistency: jax.Array
    next_token: jax.Array


def latent_consistency(
    anchors: Float[Array, "batch seq dim"],
    latents: Float[Array, "batch masks dim"],
    packed: Packed,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Array, ""]:
    """How far masks are from the tokens that stand where they stand.

    Every mask with a label is compared with the token at its place, which predicts
    the same label from more context and gets no gradient. First the mean over the masks
    of a place, then over places that have any; masks of chosen blocks stand for those
    of the others in the sums, not in the numbers that divide them.

    Args:
      anchors: `[batch, seq, dim]` latents of the tokens.
      latents: `[batch, blocks * k, dim]` latents of the masks.
      packed: in the order of `pack_blocks`.
      reduction: over dim, of the squares.

    Returns:
      float32 scalar; 0 where no mask has a label.

    Raises:
      ArgumentError: another reduction, or another order of slots.

    Source: arXiv 2507.11851, section 3 (latent consistency). Differs: mean over dim by
    default, as the text has no factor.

    Example:
      >>> packed = pack_blocks(jnp.array([[5, 6, 7]]), 1, vocab_size=10)
      >>> far = latent_consistency(jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2)), packed)
      >>> float(far)
      1.0
    """
    known = ("mean", "sum")
    check(reduction in known, "reduction", reduction, "'mean' or 'sum'")
    seq = packed.seq
    check(seq > 0, "packed", "slots in another order", "what pack_blocks gives")
    if latents.shape[1] == 0:
        return jnp.float32(0.0)
    anchors = jax.lax.stop_gradient(anchors).astype(jnp.float32)
    counts = (packed.labels[:, seq:] >= 0) & packed.valid[:, seq:]
    at = jnp.clip(packed.block[:, seq:] + packed.offset[:, seq:], 0, seq - 1)
    own = jnp.take_along_axis(anchors, at[..., None], axis=1)
    reduce = jnp.mean if reduction == "mean" else jnp.sum
    far = reduce(jnp.square(own - latents.astype(jnp.float32)), axis=-1)
    gather = jax.vmap(lambda index, x: jnp.zeros(seq).at[index].add(x))
    sums = gather(at, jnp.where(counts, far * packed.weight[:, seq:], 0.0))
    numbers: Any = packed.targets
    return safe_mean(sums / jnp.maximum(numbers, 1), numbers > 0)


def mask_losses(
    model: Model,
    trained: PyTree,
    packed: Packed,
    *,
    scale: int | float = 1.0,
    gated: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
    chunk: int | None = None,
) -> MaskLosses:
    """The three losses of a packed batch.

    Cross-entropies are means over all slots with a label, tokens and masks. Where
    blocks were chosen, sums of theirs stand for all, and the number that divides them
    is that of all: over the draws each loss has the expectation of the whole. Logits
    are never written whole.

    Args:
      model: a decoder without adapters.
      trained: as `mask_init` makes it.
      packed: in the order of `pack_blocks`.
      scale: factor on the adapters' change.
      gated: see `block_latents`.
      reduction: of `latent_consistency`.
      chunk: tokens a piece of the cross-entropy; None leaves that to the operation.

    Returns:
      `MaskLosses`.

    Raises:
      ArgumentError: as `block_latents` and `latent_consistency`.

    Source: arXiv 2507.11851, section 3 (training losses).

    Example:
      >>> from jtok.testing import tiny_model
      >>> made = mask_init(tiny_model(), 2, 2, jax.random.key(0))
      >>> packed = pack_blocks(jnp.array([[5, 6, 7]]), 2, vocab_size=96)
      >>> jax.eval_shape(mask_losses, tiny_model(), made, packed).base.shape
      ()
    """
    parts = block_latents(model, trained, packed, scale=scale, gated=gated)
    seq = packed.seq
    weight, bias = unembedding(model.params)
    softcap = model.config.final_softcap
    of_tokens = jnp.sum(packed.labels[:, :seq] >= 0, dtype=jnp.float32)
    numbers: Any = packed.targets
    of_all = of_tokens + jnp.sum(numbers, dtype=jnp.float32)
    # The tokens apart: what has no gradient costs none.
    spans = (slice(0, seq), slice(seq, None))

    def nats(hidden: Array, span: slice) -> Array:
        labels = packed.labels[:, span]
        losses = cross_entropy(
            hidden, weight, jnp.maximum(labels, 0), mask=labels >= 0, bias=bias,
            softcap=softcap, chunk=chunk,
        )  # fmt: skip
        return jnp.sum(losses * packed.weight[:, span])

    def corrected(hidden: Array, span: slice) -> Array:
        before = model.params["embed"]["tokens"][packed.prev_tokens[:, span]]
        return sampler_hidden(trained["sampler"], before, hidden)

    used = [(x, span) for x, span in zip(parts, spans) if x.shape[1]]
    base = [nats(x, span) for x, span in used]
    sampler = [nats(corrected(x, span), span) for x, span in used]
    mean = lambda sums, count: jnp.sum(jnp.stack(sums)) / jnp.maximum(count, 1.0)
    return MaskLosses(
        base=mean(base, of_all),
        sampler=mean(sampler, of_all),
        consistency=latent_consistency(*parts, packed, reduction=reduction),
        next_token=mean(base[:1], of_tokens),
    )


def mask_loss(
    model: Model,
    k: int,
    *,
    num_blocks: int | None = None,
    weights: tuple[int | float, int | float, int | float] = (1.0, 1.0, 1.0),
    scale: int | float = 1.0,
    gated: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
    chunk: int | None = None,
) -> Callable[..., Any]:
    """Makes the loss of `jtok.train.fit` for mask tokens.

    Trainable is what `mask_init` makes, frozen are the model's own parameters. A batch
    is a dict with `tokens` `[batch, seq]` int32 and maybe `labels` (negative where a
    token is no target, such as those of a prompt), `mask` (True for real tokens),
    `positions` and `segments`, all of that shape. Under `jit` ids and positions that
    the model lacks are left out, see `pack_blocks`.

    Args:
      model: a decoder; of its parameters none is kept.
      k: mask tokens of a block, at least 1.
      num_blocks: blocks a row, drawn anew in each step, which bounds time and memory;
        losses and gradients have the expectation of those of all blocks. None takes
        all.
      weights: of base, sampler and consistency; what weighs 0 has no gradient.
      scale: factor on the adapters' change.
      gated: see `block_latents`.
      reduction: of `latent_consistency`.
      chunk: tokens a piece of the cross-entropy; None leaves that to the operation.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)` with the metrics `base`,
      `sampler`, `consistency`, `next_token` (see `MaskLosses`) and `tokens`, the
      number of slots with a label.

    Raises:
      ArgumentError: a number out of range; while tracing: as `pack_blocks`.

    Source: arXiv 2507.11851, section 3. `num_blocks` is this library's.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, batch = tiny_model(), {"tokens": jnp.ones((2, 9), jnp.int32)}
      >>> made = mask_init(model, 2, 2, jax.random.key(0))
      >>> loss, (metrics, _) = jax.eval_shape(
      ...     mask_loss(model, 2, num_blocks=3),
      ...     made, model.params, None, batch, jax.random.key(1))
      >>> sorted(metrics)
      ['base', 'consistency', 'next_token', 'sampler', 'tokens']
    """
    config = _decoder(model)
    check(k >= 1, "k", k, "at least 1")
    good = num_blocks is None or num_blocks >= 1
    check(good, "num_blocks", num_blocks, "None or at least 1")
    good = len(weights) == 3 and all(weight >= 0 for weight in weights)
    check(good, "weights", weights, "three numbers, at least 0")
    shell = dataclasses.replace(model, params=None)
    bound = config.max_positions if config.positions == "learned" else None

    def loss_fn(
        trainable: PyTree, frozen: PyTree, state: PyTree, batch: Any, key: jax.Array
    ) -> tuple[Array, tuple[dict[str, Array], PyTree]]:
        tokens = jnp.asarray(batch["tokens"])
        names = ("labels", "mask", "positions", "segments")
        given = {n: jnp.asarray(batch[n]) for n in names if n in batch}
        blocks = None
        if num_blocks is not None:
            _, targets = known_targets(
                tokens, config.vocab_size, labels=given.get("labels"),
                mask=given.get("mask"),
            )  # fmt: skip
            blocks = choose_blocks(
                key, targets, num_blocks, segments=given.get("segments")
            )
        packed = pack_blocks(
            tokens, k, vocab_size=config.vocab_size, blocks=blocks,
            max_positions=bound, **given,
        )  # fmt: skip
        found = mask_losses(
            dataclasses.replace(shell, params=frozen), trainable, packed, scale=scale,
            gated=gated, reduction=reduction, chunk=chunk,
        )  # fmt: skip
        parts = (found.base, found.sampler, found.consistency)
        loss = sum(w * x for w, x in zip(weights, parts, strict=True) if w)
        count = jnp.sum(packed.labels >= 0, dtype=jnp.int32)
        return jnp.asarray(loss, jnp.float32), (
            {**found._asdict(), "tokens": count},
            state,
        )

    return loss_fn
