"""Losses that teach a network to predict rows: first itself, then other tokenizers.

Source: Minixhofer et al. 2024, arXiv 2405.07883, section 3.2 and appendix. Differs: all
rescalers are frozen, fallback bytes are no targets of the lexical loss, and a token
counts where it and what it is predicted from are real.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jtok.embed.hypernetwork import (
    SCALERS,
    Hypernetwork,
    PredictedRows,
    apply_network,
    check_source,
)
from jtok.embed.hypernetwork_losses import identity_error, lexical_error
from jtok.errors import check
from jtok.models import Model
from jtok.ops import cross_entropy
from jtok.text import SampledVocabulary, surface_forms
from jtok.text.byte_tokens import ByteTokenizer
from jtok.train import adamw

__all__ = [
    "identity_loss",
    "join_network",
    "network_optimizer",
    "sampled_batch",
    "split_network",
    "transfer_loss",
]

PyTree = Any
Predicted = PredictedRows
_NEVER = -1e5  # what unused columns of the vocabulary get


def split_network(
    network: Hypernetwork,
    source: Float[Array, "source width"],
    model: Model | None = None,
    *,
    compat: Literal["official"] | None = None,
) -> tuple[PyTree, PyTree]:
    """What trains and what does not, as `jtok.train.fit` takes them.

    Args:
      network: the network, its rescalers fitted.
      source: rows that it reads.
      model: the frozen backbone of `transfer_loss`; None for `identity_loss`.
      compat: "official" trains the rescaler of the output rows.

    Returns:
      Trainable and frozen trees.

    Raises:
      ArgumentError: rows of another width.

    Source: arXiv 2405.07883. Differs: see `compat`.

    Example:
      >>> from jtok.embed import HypernetworkConfig, init_hypernetwork
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> trainable, frozen = split_network(network, jnp.ones((50, 8)))
      >>> sorted(frozen), "scaler" in trainable
      (['model', 'scalers', 'source'], False)
    """
    check_source(source, network.config)
    free = SCALERS[:2] if compat == "official" else SCALERS
    params = network.params
    trainable = {name: tree for name, tree in params.items() if name not in free}
    scalers = {name: tree for name, tree in params.items() if name in free}
    inner = None if model is None else model.params
    return trainable, {"scalers": scalers, "source": source, "model": inner}


def join_network(
    network: Hypernetwork, trainable: PyTree, frozen: PyTree
) -> Hypernetwork:
    """The network again, from what `split_network` gave and training changed.

    Args:
      network: the one that was split.
      trainable: the trained tree.
      frozen: the other tree.

    Returns:
      `Hypernetwork`.

    Source: none.

    Example:
      >>> from jtok.embed import HypernetworkConfig, init_hypernetwork
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> parts = split_network(network, jnp.ones((50, 8)))
      >>> sorted(join_network(network, *parts).params) == sorted(network.params)
      True
    """
    params = {**trainable, **frozen["scalers"]}
    return dataclasses.replace(network, params=params)


def identity_loss(
    network: Hypernetwork, *, chunk: int | None = None
) -> Callable[..., Any]:
    """Makes the loss of the first phase: the form of one piece gives its own row.

    Args:
      network: only its sizes are kept.
      chunk: as for `predict_rows`.

    Returns:
      `loss_fn` for `jtok.train.fit`. A batch has `ids` `[tokens]` int32 and, of a
      network with languages, `language` `[1]` int32.

    Source: arXiv 2405.07883, section 3.2 (16384 ids a step, 10 thousand steps).

    Example:
      >>> from jtok.embed import HypernetworkConfig, init_hypernetwork
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> parts = split_network(network, jnp.ones((50, 8)))
      >>> loss, _ = identity_loss(network)(
      ...     *parts, None, {"ids": jnp.arange(4)}, jax.random.key(0))
      >>> loss.shape
      ()
    """
    config = network.config

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del key
        ids = batch["ids"]
        shape = (ids.shape[0], config.maxlen)
        forms = jnp.full(shape, config.pad_id, jnp.int32).at[:, 0].set(ids)
        made = apply_network(
            {**trainable, **frozen["scalers"]}, config, frozen["source"], forms,
            _language_of(batch), chunk,
        )  # fmt: skip
        return identity_error(made, frozen["source"], ids), ({}, state)

    return loss_fn


def transfer_loss(
    network: Hypernetwork,
    model: Model,
    *,
    lexical: float = 0.5,
    chunk: int | None = 4096,
    head: Callable[[PyTree, Array], Array] | None = None,
    compat: Literal["official"] | None = None,
) -> Callable[..., Any]:
    """Makes the loss of the second phase: texts under a sampled tokenizer.

    Rows of all its tokens are predicted, those of special tokens copied, and the frozen
    model reads and predicts with them; the logits of a batch are never written whole.

    Args:
      network: only its sizes are kept.
      model: the backbone; only its description is kept. A model that looks both ways
        needs `labels` in its batches.
      lexical: weight of `lexical_error`.
      chunk: tokens that are predicted at a time; they are computed again for the
        gradient.
      head: `(model params, hidden) -> hidden` before rows are compared, of masked
        language models; None for none.
      compat: "official" weighs what follows a real token, padding included, and trains
        lexically on fallback bytes.

    Returns:
      `loss_fn` for `jtok.train.fit`. A batch, as `sampled_batch` makes it: `forms`
      `[size, pieces]`, `special` `[size]` int32 source id of a special token or -1,
      `used` `[size]` bool, `tokens` and `mask` `[batch, seq]`; `labels` `[batch, seq]`
      int32 (-1 is none) in place of the next token; `language` `[1]` int32. Metrics:
      `nats`, `lexical`, `tokens`.

    Raises:
      ArgumentError: `lexical` is negative.

    Source: arXiv 2405.07883, section 3.2. Differs: see `compat`.

    Example:
      >>> from jtok.embed import HypernetworkConfig, init_hypernetwork
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="gpt2")
      >>> config = HypernetworkConfig(row_width=32, source_size=96, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2, maxlen=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> parts = split_network(network, model.params["embed"]["tokens"], model)
      >>> batch = {"forms": jnp.ones((8, 2), jnp.int32),
      ...     "special": jnp.full(8, -1), "used": jnp.ones(8, bool),
      ...     "tokens": jnp.ones((2, 5), jnp.int32), "mask": jnp.ones((2, 5), bool)}
      >>> loss, (metrics, _) = transfer_loss(network, model)(
      ...     *parts, None, batch, jax.random.key(0))
      >>> sorted(metrics)
      ['lexical', 'nats', 'tokens']
    """
    check(lexical >= 0, "lexical", lexical, "a number of at least 0")
    config = network.config
    shell = dataclasses.replace(model, params=None)

    def loss_fn(
        trainable: Any, frozen: Any, state: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        del key
        source = frozen["source"]
        backbone = dataclasses.replace(shell, params=frozen["model"])
        made = apply_network(
            {**trainable, **frozen["scalers"]}, config, source, batch["forms"],
            _language_of(batch), chunk,
        )  # fmt: skip
        rows = with_specials(made, backbone, batch["special"])
        nats, counts = _nats(backbone, rows, batch, head, compat)
        total = jnp.sum(counts, dtype=jnp.float32)
        mean = jnp.sum(jnp.where(counts, nats, 0.0)) / jnp.maximum(total, 1.0)
        forms = jnp.where(batch["used"][:, None], batch["forms"], config.pad_id)
        far = lexical_error(
            made, source, forms, source_size=config.source_size, pad_id=config.pad_id,
            compat=compat,
        )  # fmt: skip
        metrics = {"nats": mean, "lexical": far, "tokens": counts.sum(dtype=jnp.int32)}
        return mean + lexical * far, (metrics, state)

    return loss_fn


def _language_of(batch: Any) -> Array | None:
    return batch["language"][0] if "language" in batch else None


def with_specials(
    made: Predicted, model: Model, special: Int[Array, " tokens"]
) -> tuple[Array, Array, Array]:
    """Input and output rows and biases, those of special tokens as the model has them.

    Args:
      made: predicted rows.
      model: with the original ones.
      special: `[tokens]` int32 source id of a special token, or -1.
    """
    given = model.params["embed"]["tokens"]
    weight, bias = model.unembedding()
    is_special, place = special >= 0, jnp.maximum(special, 0)
    pick = lambda new, old: jnp.where(
        is_special[:, None], old[place].astype(jnp.float32), new
    )
    first = pick(made.input, given)
    last = first if made.output is None else pick(made.output, weight)
    known = jnp.zeros(place.shape) if bias is None else bias[place]
    return first, last, jnp.where(is_special, known.astype(jnp.float32), made.bias)


def _nats(
    model: Model,
    rows: tuple[Array, Array, Array],
    batch: Any,
    head: Callable[[PyTree, Array], Array] | None,
    compat: str | None,
) -> tuple[Array, Array]:
    """Nats of every target, and which of them count."""
    first, last, bias = rows
    tokens, mask = batch["tokens"], batch["mask"].astype(bool)
    dtype = model.params["embed"]["tokens"].dtype
    vectors = first.astype(dtype)[tokens]
    hidden = model(vectors, mask=mask, logits="none").hidden
    if head is not None:
        hidden = head(model.params, hidden)
    bias = jnp.where(batch["used"] | (batch["special"] >= 0), bias, _NEVER)
    if "labels" in batch:
        targets, counts = jnp.maximum(batch["labels"], 0), batch["labels"] >= 0
    else:
        hidden, targets = hidden[:, :-1], tokens[:, 1:]
        counts = mask[:, :-1] if compat else mask[:, :-1] & mask[:, 1:]
    cap = getattr(model.config, "final_softcap", None)
    weight = last.astype(dtype)
    return cross_entropy(hidden, weight, targets, bias=bias, softcap=cap), counts


def sampled_batch(
    drawn: SampledVocabulary,
    tokenizer: ByteTokenizer,
    texts: Sequence[str],
    *,
    length: int,
    maxlen: int,
    pad_id: int,
    language: int | None = None,
) -> dict[str, np.ndarray]:
    """A batch of `transfer_loss`: texts and all tokens of a sampled vocabulary.

    Args:
      drawn: the vocabulary.
      tokenizer: of the base vocabulary.
      texts: one a row.
      length: tokens of a row; longer texts are cut off.
      maxlen: pieces of a surface form.
      pad_id: of the base; fills forms up.
      language: index of the language of the texts, or None.

    Returns:
      Arrays by name, see `transfer_loss`.

    Raises:
      ArgumentError: no texts, or a number below 1.

    Source: arXiv 2405.07883, section 3.2.

    Example:
      >>> from jtok.text import byte_tokenizer, sample_vocabulary
      >>> from jtok.testing import tiny_vocabulary
      >>> base = byte_tokenizer(tiny_vocabulary())
      >>> drawn = sample_vocabulary({}, base, size=300)
      >>> batch = sampled_batch(drawn, base, ["hi"], length=8, maxlen=2, pad_id=0)
      >>> int(batch["mask"].sum()), batch["forms"].shape
      (2, (301, 2))
    """
    check(len(texts) > 0, "texts", len(texts), "at least one")
    check(length >= 1, "length", length, "at least 1")
    tokens = np.zeros((len(texts), length), np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        ids = drawn.segment(text)[:length]
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    special = np.full(drawn.size, -1, np.int32)
    for own, base in drawn.special.items():
        special[own] = base
    used = np.array([bool(piece) for piece in drawn.pieces])
    places = np.flatnonzero(used)
    found = surface_forms(
        tokenizer, [drawn.pieces[i] for i in places], maxlen=maxlen, pad_id=pad_id
    )
    forms = np.full((drawn.size, maxlen), pad_id, np.int32)
    forms[places] = found.ids
    batch = {
        "forms": forms, "special": special, "used": used, "tokens": tokens,
        "mask": mask,
    }  # fmt: skip
    if language is not None:
        batch["language"] = np.array([language], np.int32)
    return batch


def network_optimizer(
    learning_rate: float | optax.Schedule,
) -> optax.GradientTransformation:
    """The optimizer that networks are trained with.

    The first phase rises to 3e-4 over its 10 thousand steps, the second to 6e-5 over
    10 thousand and falls as a cosine to a tenth after 190 thousand: two schedules of
    `jtok.train.schedule`, one for each `fit`.

    Args:
      learning_rate: a rate or a schedule.

    Returns:
      AdamW (0.9, 0.95, 1e-8), decay 0.01 of matrices alone, gradients clipped to a norm
      of 0.1.

    Raises:
      ArgumentError: a rate that is not above 0.

    Source: arXiv 2405.07883, appendix.

    Example:
      >>> type(network_optimizer(3e-4).init({"w": jnp.ones((2, 2))})).__name__
      'tuple'
    """
    return adamw(learning_rate, weight_decay=0.01, b1=0.9, b2=0.95, clip_norm=0.1)
