"""n-gram language models over a few symbols: fitted, given, and drawn from.

Source: Huang et al. 2023, arXiv 2305.16349 (the language p that keys are mixed over).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jtok.errors import VocabMismatchError, check

__all__ = ["NgramLanguage", "fit_ngrams", "markov_language", "sample_language"]


@struct.dataclass
class NgramLanguage:
    """An n-gram language model with the start of a text as one more context symbol.

    Attributes:
      log_probs: `[(vocab + 1) ** order, vocab]` float32 nats of the next symbol. A
        context is a number in base `vocab + 1`, newest symbol last; the digit `vocab`
        says that nothing stood there.
      vocab_size: number of symbols.
      order: symbols of context; 0 for independent symbols.
    """

    log_probs: jax.Array
    vocab_size: int = struct.field(pytree_node=False)
    order: int = struct.field(pytree_node=False)

    @property
    def num_contexts(self) -> int:
        """Number of contexts; the last one is the start."""
        return (self.vocab_size + 1) ** self.order

    def next_context(self, context: Array, symbols: Array) -> Array:
        """The context after one more symbol."""
        return (context * (self.vocab_size + 1) + symbols) % self.num_contexts


def markov_language(
    initial: Float[Array, " vocab"] | Float[np.ndarray, " vocab"],
    transitions: Float[Array, "vocab vocab"] | Float[np.ndarray, "vocab vocab"],
) -> NgramLanguage:
    """A first-order Markov language.

    Args:
      initial: `[vocab]` probabilities of the first symbol.
      transitions: `[vocab, vocab]` probabilities, row = previous symbol.

    Returns:
      `NgramLanguage` of order 1.

    Raises:
      ArgumentError: a row that is no distribution.

    Source: arXiv 2305.16349, section 2.

    Example:
      >>> markov_language(np.full(3, 1 / 3), np.full((3, 3), 1 / 3)).order
      1
    """
    rows = np.concatenate([np.asarray(transitions), np.asarray(initial)[None]])
    _check_rows(rows, "transitions")
    with np.errstate(divide="ignore"):
        logs = np.log(rows)
    return NgramLanguage(jnp.asarray(logs, jnp.float32), rows.shape[1], 1)


def _check_rows(rows: np.ndarray, name: str) -> None:
    good = bool((rows >= 0).all()) and bool(np.allclose(rows.sum(-1), 1, atol=1e-4))
    check(good, name, "other rows", "probabilities that sum to 1 in every row")


def fit_ngrams(
    texts: Sequence[Any], vocab_size: int, *, order: int = 1, smoothing: float = 1.0
) -> NgramLanguage:
    """Counts n-grams of texts and adds a constant to every count.

    Contexts that reach before the start of a text get the counts of their real part
    anywhere: the language is that of texts which begin anywhere.

    Args:
      texts: sequences of ids in `0..vocab_size - 1`.
      vocab_size: number of symbols.
      order: symbols of context, at least 0.
      smoothing: added to each count, above 0.

    Returns:
      `NgramLanguage`.

    Raises:
      ArgumentError: a number out of range, or contexts beyond ten million.
      VocabMismatchError: an id outside the vocabulary.

    Source: none; what arXiv 2305.16349 calls the language p.

    Example:
      >>> language = fit_ngrams([[0, 1, 0, 1]], 2, smoothing=0.5)
      >>> jnp.exp(language.log_probs[0]).tolist()
      [0.1666..., 0.8333...]
    """
    check(order >= 0, "order", order, "at least 0")
    check(smoothing > 0, "smoothing", smoothing, "above 0")
    base = vocab_size + 1
    check(base**order <= 10**7, "order", order, "at most ten million contexts")
    rows = [np.asarray(text, np.int64).reshape(-1) for text in texts]
    for row in rows:
        check_symbols(row, vocab_size)
    counts = np.zeros((base**order, vocab_size))
    for known in range(order + 1):
        # Contexts whose newest `known` digits are real, the others "nothing there".
        missing = order - known
        offset = (base**missing - 1) * base**known
        for row in rows:
            if len(row) <= known:
                continue
            context = np.zeros(len(row) - known, np.int64)
            for back in range(known):
                context = context * base + row[back : len(row) - known + back]
            np.add.at(counts, (offset + context, row[known:]), 1)
    counts += smoothing
    logs = np.log(counts / counts.sum(-1, keepdims=True))
    return NgramLanguage(jnp.asarray(logs, jnp.float32), vocab_size, order)


def check_symbols(ids: Any, vocab_size: int) -> None:
    """Refuses symbols outside the vocabulary, where they are known."""
    if isinstance(ids, jax.core.Tracer):
        return
    found = np.asarray(ids)
    good = found.size == 0 or (found.min() >= 0 and found.max() < vocab_size)
    got = () if good else (int(found.min()), int(found.max()))
    check(good, "ids", got, f"ids in 0..{vocab_size - 1}", VocabMismatchError)


def sample_language(
    language: NgramLanguage, key: jax.Array, *, batch: int, length: int
) -> Int[Array, "batch length"]:
    """Draws texts from a language.

    Args:
      language: what to draw from.
      key: typed key, consumed.
      batch: texts (static).
      length: symbols a text (static).

    Returns:
      `[batch, length]` int32.

    Source: none; draws of arXiv 2305.16349's language p.

    Example:
      >>> language = fit_ngrams([[0, 1, 0, 1]], 2)
      >>> sample_language(language, jax.random.key(0), batch=2, length=5).shape
      (2, 5)
    """

    def step(context: Array, key: Array) -> tuple[Array, Array]:
        symbols = jax.random.categorical(key, language.log_probs[context])
        return language.next_context(context, symbols), symbols.astype(jnp.int32)

    start = jnp.full(batch, language.num_contexts - 1, jnp.int32)
    _, symbols = jax.lax.scan(step, start, jax.random.split(key, length))
    return symbols.T
