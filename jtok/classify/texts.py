"""A classifier of texts: word vectors, a recurrent layer both ways, a pooled head.

Source: Mehta et al. 2019, arXiv 1912.00835, figure 1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jtok.classify.head import (
    HeadConfig,
    Reading,
    dropped,
    init_head,
    loss_of,
    read_hidden,
)
from jtok.errors import check
from jtok.nn import bi_gru, init_bi_gru
from jtok.ops.sharding import constrain

__all__ = ["ClassifierConfig", "classifier_loss", "init_classifier", "read_texts"]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a text classifier.

    Attributes:
      vocab_size: ids of words, padding included.
      head: what reads the states; its width is `2 * state`.
      embedding: width of a word's vector.
      state: width of the recurrent state, each way.
      dropout: rate on the words' vectors.
      context_from: whose mean a pooler with `context="mean"` takes: "states" (what it
        weighs) or "embeddings" (then its `context_width` is `embedding`).
      unroll: steps of the recurrent loop that are compiled as one.
      dtype: of the parameters, "float32" or "bfloat16".

    Raises:
      ArgumentError: a size below 1, a head of another width, a rate outside [0, 1), or
        an unknown option.

    Source: Mehta et al. 2019, arXiv 1912.00835, figure 1.

    Example:
      >>> from jtok.nn import LamaPooler
      >>> head = HeadConfig(pooler=LamaPooler(width=8), classes=4)
      >>> ClassifierConfig(vocab_size=100, head=head, state=4).dropout
      0.4
    """

    vocab_size: int
    head: HeadConfig
    embedding: int = 64
    state: int = 48
    dropout: float = 0.4
    context_from: Literal["states", "embeddings"] = "states"
    unroll: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 2), ("embedding", 1), ("state", 1)):
            value = getattr(self, name)
            check(value >= least, name, value, f"at least {least}")
        good = self.head.width == 2 * self.state
        check(good, "head", f"width {self.head.width}", f"{2 * self.state}, both ways")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a rate in [0, 1)")
        known = ("states", "embeddings")
        check(self.context_from in known, "context_from", self.context_from, f"{known}")
        known = ("float32", "bfloat16")
        check(self.dtype in known, "dtype", self.dtype, f"one of {known}")


def init_classifier(
    config: ClassifierConfig, key: Array, *, vectors: Any = None
) -> PyTree:
    """Fresh parameters; word vectors are normal with deviation 0.1, or those given.

    Args:
      config: the sizes.
      key: typed key, consumed.
      vectors: `[vocab_size, embedding]` to start from, as from `load_vectors`.

    Returns:
      `embed`, `gru` and `head`.

    Raises:
      ArgumentError: vectors of another shape.

    Source: Mehta et al. 2019, arXiv 1912.00835.

    Example:
      >>> from jtok.nn import MeanPooler
      >>> head = HeadConfig(MeanPooler(width=8), classes=2, word_mlp=False)
      >>> config = ClassifierConfig(vocab_size=9, head=head, state=4)
      >>> sorted(init_classifier(config, jax.random.key(0)))
      ['embed', 'gru', 'head']
    """
    shape = (config.vocab_size, config.embedding)
    embed, gru, head = jax.random.split(key, 3)
    if vectors is None:
        table = 0.1 * jax.random.normal(embed, shape)
    else:
        got = jnp.shape(vectors)
        check(got == shape, "vectors", f"shape {got}", f"{list(shape)}")
        table = jnp.asarray(vectors)
    return {
        "embed": table.astype(config.dtype),
        "gru": init_bi_gru(config.embedding, config.state, gru, config.dtype),
        "head": init_head(config.head, head, config.dtype),
    }


def read_texts(
    params: PyTree,
    config: ClassifierConfig,
    ids: Int[Array, "batch seq"],
    mask: Any = None,
    *,
    key: Array | None = None,
) -> Reading:
    """Labels of texts.

    Args:
      params: as from `init_classifier`.
      config: the sizes.
      ids: `[batch, seq]` words; ids outside the vocabulary are clamped into it.
      mask: `[batch, seq]` True for real words; None takes those that are not 0.
      key: typed key of the dropout; None for none.

    Returns:
      `Reading`.

    Raises:
      ArgumentError: a mask of another shape or of other values than 0 and 1.

    Source: Mehta et al. 2019, arXiv 1912.00835, figure 1.

    Example:
      >>> from jtok.nn import LamaPooler
      >>> head = HeadConfig(LamaPooler(width=8), classes=2)
      >>> config = ClassifierConfig(vocab_size=9, head=head, state=4)
      >>> params = init_classifier(config, jax.random.key(0))
      >>> read_texts(params, config, jnp.array([[3, 4, 0]])).logits.shape
      (1, 2)
    """
    ids = constrain(ids, "batch", None)
    mask = ids != 0 if mask is None else mask
    first, second = (None, None) if key is None else jax.random.split(key)
    words = params["embed"].at[ids].get(mode="clip")
    x = dropped(words, config.dropout, first)
    hidden = bi_gru(params["gru"], x, mask, unroll=config.unroll)
    context = words if config.context_from == "embeddings" else None
    return read_hidden(
        params["head"], config.head, hidden, mask, context=context, key=second
    )


@functools.lru_cache(maxsize=64)
def classifier_loss(config: ClassifierConfig) -> Callable[..., Any]:
    """A loss for `jtok.train.fit`: cross-entropy, and the head's penalty.

    The batch has `ids` `[batch, seq]`, `labels` `[batch]` and, where 0 is a word,
    `mask`.

    Args:
      config: the sizes; equal ones give the same function, which is compiled once.

    Returns:
      `loss_fn(params, frozen, state, batch, key)`; metrics are `accuracy` (under
      dropout), and `penalty` where it counts.

    Source: Mehta et al. 2019, arXiv 1912.00835; the penalty is Lin et al.'s.

    Example:
      >>> from jtok.nn import LamaPooler
      >>> head = HeadConfig(LamaPooler(width=8), classes=2)
      >>> config = ClassifierConfig(vocab_size=9, head=head, state=4)
      >>> params = init_classifier(config, jax.random.key(0))
      >>> batch = {"ids": jnp.array([[3, 4]]), "labels": jnp.array([1])}
      >>> classifier_loss(config)(params, None, None, batch, None)[0].shape
      ()
    """

    def loss_fn(params: PyTree, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
        made = read_texts(params, config, batch["ids"], batch.get("mask"), key=key)
        loss, metrics = loss_of(config.head, made, batch["labels"])
        return loss, (metrics, state)

    return loss_fn
