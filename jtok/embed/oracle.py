"""The lexinvariant language model of any n-gram model, exactly: a mixture over keys.

`p'(x)` is the mean of `p(pi(x))` over all permutations of the vocabulary. It is a Bayes
mixture: after every symbol each key pi has a posterior, and predictions are averaged
over it. Up to nine symbols all keys are enumerated; for more a beam over partial keys
keeps the best, which drops mass and is an approximation.

Source: Huang et al. 2023, arXiv 2305.16349 (construction and convergence). Differs: the
bounds on the cumulative regret.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from jtok.embed.ngram_language import NgramLanguage, check_symbols
from jtok.errors import check

__all__ = [
    "BeamReads",
    "MixtureReads",
    "beam_mixture",
    "permutation_mixture",
    "pinsker_bound",
    "regret_bound",
]

_MOST = 9  # symbols whose keys are enumerated: 362,880 of them


@struct.dataclass
class MixtureReads:
    """What a mixture over all keys says of texts.

    Attributes:
      predictions: `[batch, seq, vocab]` float32 before each symbol.
      log_probs: `[batch, seq]` float32 nats of the symbols under the mixture.
      base_log_probs: `[batch, seq]` float32 nats under the language itself.
      l1: `[batch, seq]` float32 distance of the predictions to the language's own.
      posterior: `[batch, times, vocab, vocab]` float32 probability that symbol a stands
        for symbol c of the language, at the asked times.
    """

    predictions: jax.Array
    log_probs: jax.Array
    base_log_probs: jax.Array
    l1: jax.Array
    posterior: jax.Array

    @property
    def regret(self) -> jax.Array:
        """`[batch, seq]` nats that the mixture has lost so far; below `log(vocab!)`."""
        return jnp.cumsum(self.base_log_probs - self.log_probs, axis=-1)


@struct.dataclass
class BeamReads:
    """What a mixture over the best partial keys says of texts: an approximation.

    Attributes:
      predictions: `[batch, seq, vocab]` float32 before each symbol, of the kept keys.
      log_probs: `[batch, seq]` float32 nats of the symbols under these predictions.
      posterior: `[batch, vocab, vocab]` float32 after the text, as in `MixtureReads`.
      key: `[batch, vocab]` int32 the best key after the text; -1 for symbols that did
        not occur.
    """

    predictions: jax.Array
    log_probs: jax.Array
    posterior: jax.Array
    key: jax.Array


def regret_bound(vocab_size: int) -> float:
    """Nats that a mixture over all keys loses at most, on any text: log(vocab!).

    Args:
      vocab_size: number of symbols.

    Returns:
      The bound.

    Source: none; the mixture of arXiv 2305.16349 gives the true key a share of 1 / v!.

    Example:
      >>> round(regret_bound(3), 3)
      1.792
    """
    check(vocab_size >= 1, "vocab_size", vocab_size, "at least 1")
    return math.lgamma(vocab_size + 1)


def pinsker_bound(vocab_size: int, length: int) -> float:
    """Mean L1 distance of a mixture's predictions, at most, on texts of the language.

    Args:
      vocab_size: number of symbols.
      length: symbols of the texts.

    Returns:
      `sqrt(2 log(vocab!) / length)`.

    Raises:
      ArgumentError: a size below 1.

    Source: none; sharper in the length than arXiv 2305.16349, theorem 1.

    Example:
      >>> round(pinsker_bound(3, 100), 3)
      0.189
    """
    check(length >= 1, "length", length, "at least 1")
    return math.sqrt(2 * regret_bound(vocab_size) / length)


def permutation_mixture(
    language: NgramLanguage,
    ids: Int[Array, "batch seq"],
    *,
    times: tuple[int, ...] = (),
) -> MixtureReads:
    """Averages a language over all renamings of its symbols, exactly.

    Time and memory grow with vocab!; texts run one after the other.

    Args:
      language: of at most nine symbols.
      ids: `[batch, seq]` int32 texts.
      times: numbers of symbols seen, 0 to `seq`, at which the posterior over keys is
        wanted (static).

    Returns:
      `MixtureReads`. A text that the language cannot say under any key has
      log-probability -inf from there on, and uniform weights over keys.

    Raises:
      ArgumentError: more than nine symbols, or a time out of range.
      VocabMismatchError: an id outside the vocabulary, outside `jit`.

    Source: arXiv 2305.16349, section 2.

    Example:
      >>> language = fit_ngrams([[0, 1, 0, 1]], 2)
      >>> found = permutation_mixture(language, jnp.array([[1, 0, 1]]))
      >>> found.predictions[0, 0].tolist()
      [0.5, 0.5]
    """
    vocab, seq = language.vocab_size, ids.shape[1]
    expected = f"at most {_MOST} symbols, as all keys are enumerated; see beam_mixture"
    check(vocab <= _MOST, "language", f"{vocab} symbols", expected)
    good = all(0 <= t <= seq for t in times)
    check(good, "times", times, f"numbers of symbols, 0 to {seq}")
    check_symbols(ids, vocab)
    keys = jnp.asarray(list(itertools.permutations(range(vocab))), jnp.int32)
    wanted = jnp.asarray(times, jnp.int32)

    def one(text: Array) -> MixtureReads:
        return _enumerated(language, keys, text, wanted)

    return jax.lax.map(one, ids)


def _enumerated(
    language: NgramLanguage, keys: Array, text: Array, times: Array
) -> MixtureReads:
    count, vocab = keys.shape
    start = language.num_contexts - 1
    saved = jnp.zeros((times.shape[0], count), jnp.float32)
    carry: Any = (
        jnp.full(count, -math.log(count), jnp.float32),  # log-weights of the keys
        jnp.full(count, start, jnp.int32),
        jnp.int32(start),
        saved,
    )

    def step(carry: Any, item: tuple[Array, Array]) -> tuple[Any, Any]:
        logs, contexts, own, saved = carry
        symbol, seen = item
        weights = _normalised(logs)
        # What each key says of every symbol: the language's of its image.
        under = jnp.take_along_axis(language.log_probs[contexts], keys, axis=1)
        predictions = weights @ jnp.exp(under)
        new = logs + under[:, symbol]
        change = jax.nn.logsumexp(new)
        new = jnp.where(jnp.isneginf(change), new, new - change)
        contexts = language.next_context(contexts, keys[:, symbol])
        truth = language.log_probs[own]
        l1 = jnp.sum(jnp.abs(predictions - jnp.exp(truth)))
        saved = jnp.where((times == seen)[:, None], new[None], saved)
        carry = (new, contexts, language.next_context(own, symbol), saved)
        return carry, (predictions, change, truth[symbol], l1)

    seen = jnp.arange(1, text.shape[0] + 1)
    (*_, saved), reads = jax.lax.scan(step, carry, (text, seen))
    weights = jax.vmap(_normalised)(saved)
    posterior = jnp.stack(
        [weights @ jax.nn.one_hot(keys[:, a], vocab) for a in range(vocab)], axis=1
    )
    predictions, log_probs, base, l1 = reads
    return MixtureReads(
        predictions=predictions, log_probs=log_probs, base_log_probs=base, l1=l1,
        posterior=posterior,
    )  # fmt: skip


def _normalised(logs: Array) -> Array:
    """Weights that sum to 1; equal ones where no key is possible."""
    return jax.nn.softmax(jnp.where(jnp.isneginf(jnp.max(logs)), 0.0, logs))


def beam_mixture(
    language: NgramLanguage, ids: Int[Array, "batch seq"], *, width: int = 256
) -> BeamReads:
    """Averages a language over the best partial keys: for vocabularies of any size.

    A partial key says what the symbols seen so far stand for; each new symbol extends
    it by every image that is left. Only the `width` likeliest stay, ties to the earlier
    one. With a width of at least vocab! nothing is dropped, and predictions are those
    of `permutation_mixture`; else they are an approximation whose keys may not contain
    the true one.

    Args:
      language: what texts are written in, under an unknown key.
      ids: `[batch, seq]` int32 texts.
      width: partial keys that are kept, at least 1 (static).

    Returns:
      `BeamReads`.

    Raises:
      ArgumentError: no width.
      VocabMismatchError: an id outside the vocabulary, outside `jit`.

    Source: arXiv 2305.16349, section 2. Differs: a beam, for larger vocabularies.

    Example:
      >>> language = fit_ngrams([[0, 1, 0, 1, 0]], 2)
      >>> found = beam_mixture(language, jnp.array([[1, 0, 1]]), width=2)
      >>> found.predictions[0, 0].tolist()
      [0.5, 0.5]
    """
    check(width >= 1, "width", width, "at least 1")
    check_symbols(ids, language.vocab_size)
    return jax.lax.map(lambda text: _beam(language, text, width), ids)


def _beam(language: NgramLanguage, text: Array, width: int) -> BeamReads:
    vocab, start = language.vocab_size, language.num_contexts - 1
    images = jnp.arange(vocab, dtype=jnp.int32)
    carry = (
        jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf),  # one empty key
        jnp.full((width, vocab), -1, jnp.int32),
        jnp.full(width, start, jnp.int32),
    )

    def step(carry: Any, symbol: Array) -> tuple[Any, Any]:
        logs, keys, contexts = carry
        under = jnp.exp(language.log_probs[contexts])
        predictions = jax.nn.softmax(logs) @ _under_keys(under, keys)
        # `[width, vocab]`: this symbol stands for that image.
        image = keys[:, symbol][:, None]
        free = ~jnp.any(keys[:, :, None] == images[None, None], axis=1)
        left = jnp.maximum(jnp.sum(free, axis=1, keepdims=True), 1)
        known = jnp.where(image == images[None], 0.0, -jnp.inf)
        guessed = jnp.where(free, -jnp.log(left.astype(jnp.float32)), -jnp.inf)
        scores = logs[:, None] + language.log_probs[contexts]
        scores = scores + jnp.where(image >= 0, known, guessed)
        best, at = jax.lax.top_k(scores.reshape(-1), width)
        origin, chosen = at // vocab, (at % vocab).astype(jnp.int32)
        keys = keys[origin].at[:, symbol].set(chosen)
        contexts = language.next_context(contexts[origin], chosen)
        logs = best - jax.nn.logsumexp(best)  # what was dropped is forgotten
        return (logs, keys, contexts), (predictions, jnp.log(predictions[symbol]))

    (logs, keys, _), (predictions, log_probs) = jax.lax.scan(step, carry, text)
    weights = jax.nn.softmax(logs)
    hot = jax.nn.one_hot(keys, vocab)
    free = (~jnp.any(keys[:, :, None] == images[None, None], axis=1)).astype(float)
    spread = free / jnp.maximum(jnp.sum(free, axis=1, keepdims=True), 1.0)
    each = jnp.where((keys < 0)[..., None], spread[:, None], hot)
    posterior = jnp.einsum("w,wac->ac", weights, each)
    return BeamReads(predictions, log_probs, posterior, keys[0])


def _under_keys(under: Array, keys: Array) -> Array:
    """Probabilities of symbols `[width, vocab]`, given those of the images.

    Symbols that a partial key does not hold share what its free images have.
    """
    held = keys >= 0
    own = jnp.take_along_axis(under, jnp.maximum(keys, 0), axis=1)
    own = jnp.where(held, own, 0.0)
    rest = jnp.maximum(1.0 - jnp.sum(own, axis=1, keepdims=True), 0.0)
    unheld = jnp.maximum(jnp.sum(~held, axis=1, keepdims=True), 1)
    return jnp.where(held, own, rest / unheld)
