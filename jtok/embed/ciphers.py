"""Substitution ciphers: text under a random key, and keys read from a posterior.

Source: Huang et al. 2023, arXiv 2305.16349 (deciphering). Differs: a one-to-one
assignment beside the arg-max of each row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check

__all__ = [
    "LETTERS",
    "LETTERS_AND_SIGNS",
    "LETTERS_AND_SPACE",
    "Deciphered",
    "decipher",
    "encipher",
    "key_accuracy",
    "occurring",
    "plain_symbols",
    "random_keys",
    "read_keys",
    "symbol_posterior",
]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LETTERS_AND_SPACE = LETTERS + " "
LETTERS_AND_SIGNS = LETTERS_AND_SPACE + ".,;:!?'\"-()"
_SMALL = 1e-9  # so that an impossible pair has a finite cost


class Deciphered(NamedTuple):
    """Two readings of a key.

    Attributes:
      greedy: `[batch, vocab]` int32 likeliest plain symbol of each cipher symbol, ties
        to the lower one; several may share one.
      assigned: `[batch, vocab]` int32 the one-to-one key of least total
        `-log(posterior)`.
    """

    greedy: jax.Array
    assigned: jax.Array


def plain_symbols(text: str, alphabet: str = LETTERS_AND_SPACE) -> np.ndarray:
    """Writes a text in the symbols of an alphabet.

    Letters are lowered. What the alphabet lacks becomes a space, and spaces that follow
    one another become one; an alphabet without a space drops it all.

    Args:
      text: any text.
      alphabet: different characters, such as `LETTERS`, `LETTERS_AND_SPACE` or
        `LETTERS_AND_SIGNS`.

    Returns:
      `[symbols]` int32 places in the alphabet.

    Raises:
      ArgumentError: an alphabet that is empty or names a character twice.

    Source: arXiv 2305.16349, section 5. Differs: the alphabet is free.

    Example:
      >>> plain_symbols("Ab, b", LETTERS_AND_SPACE).tolist()
      [0, 1, 26, 1]
    """
    good = bool(alphabet) and len(set(alphabet)) == len(alphabet)
    check(good, "alphabet", alphabet, "different characters, at least one")
    places = {character: index for index, character in enumerate(alphabet)}
    space = places.get(" ")
    found: list[int] = []
    for character in text.lower():
        place = places.get(character, space)
        repeated = place == space and found and found[-1] == space
        if place is not None and not repeated:
            found.append(place)
    return np.asarray(found, np.int32)


def random_keys(
    key: jax.Array, *, batch: int, vocab_size: int, fixed_ids: tuple[int, ...] = ()
) -> Int[Array, "batch vocab"]:
    """Draws uniform substitutions.

    Args:
      key: typed key, consumed.
      batch: keys (static).
      vocab_size: symbols (static).
      fixed_ids: symbols that stand for themselves (static), such as the space.

    Returns:
      `[batch, vocab]` int32 permutations: plain symbol of each cipher symbol.

    Raises:
      ArgumentError: an id outside the vocabulary.

    Source: arXiv 2305.16349, section 5.

    Example:
      >>> keys = random_keys(
      ...     jax.random.key(0), batch=2, vocab_size=5, fixed_ids=(4,))
      >>> keys[:, 4].tolist()
      [4, 4]
    """
    good = all(0 <= i < vocab_size for i in fixed_ids)
    check(good, "fixed_ids", fixed_ids, f"ids in 0..{vocab_size - 1}")
    free = [i for i in range(vocab_size) if i not in set(fixed_ids)]
    among = jnp.asarray(free, jnp.int32)
    draw = lambda key: jax.random.permutation(key, among)
    whole = jnp.broadcast_to(
        jnp.arange(vocab_size, dtype=jnp.int32), (batch, vocab_size)
    )
    return whole.at[:, among].set(jax.vmap(draw)(jax.random.split(key, batch)))


def encipher(
    plain: Int[Array, "batch seq"], keys: Int[Array, "batch vocab"]
) -> Int[Array, "batch seq"]:
    """Puts the cipher symbol in place of every plain one.

    Args:
      plain: `[batch, seq]` int32.
      keys: `[batch, vocab]` int32 plain symbol of each cipher symbol.

    Returns:
      `[batch, seq]` int32.

    Source: arXiv 2305.16349, section 5.

    Example:
      >>> encipher(jnp.array([[0, 2]]), jnp.array([[2, 1, 0]])).tolist()
      [[2, 0]]
    """
    inverse = jnp.argsort(keys, axis=-1).astype(jnp.int32)
    return jnp.take_along_axis(inverse, plain, axis=1)


def decipher(
    cipher: Int[Array, "batch seq"], keys: Int[Array, "batch vocab"]
) -> Int[Array, "batch seq"]:
    """Reads a cipher with a key; the key need not be one to one.

    Args:
      cipher: `[batch, seq]` int32.
      keys: `[batch, vocab]` int32 plain symbol of each cipher symbol.

    Returns:
      `[batch, seq]` int32 plain symbols.

    Source: arXiv 2305.16349, section 5.

    Example:
      >>> decipher(jnp.array([[2, 0]]), jnp.array([[2, 1, 0]])).tolist()
      [[0, 2]]
    """
    return jnp.take_along_axis(keys, cipher, axis=1)


def symbol_posterior(
    log_probs: Float[Array, "batch seq vocab"],
    cipher: Int[Array, "batch seq"],
    *,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch vocab vocab"]:
    """What a probe says of each cipher symbol: its guesses, averaged in logarithms.

    Args:
      log_probs: `[batch, seq, vocab]` float32 of the plain symbol at each position.
      cipher: `[batch, seq]` int32 cipher symbol at each position.
      mask: `[batch, seq]` which positions count, None for all.

    Returns:
      `[batch, vocab, vocab]` float32, rows = cipher symbols; uniform where a symbol
      does not occur.

    Source: arXiv 2305.16349, section 5. Differs: all occurrences count.

    Example:
      >>> log_probs = jnp.log(jnp.array([[[0.9, 0.1], [0.9, 0.1]]]))
      >>> found = symbol_posterior(log_probs, jnp.array([[1, 1]]))
      >>> bool(jnp.allclose(found[0], jnp.array([[0.5, 0.5], [0.9, 0.1]])))
      True
    """
    vocab = log_probs.shape[-1]
    hot = jax.nn.one_hot(cipher, vocab)
    if mask is not None:
        hot = hot * mask[..., None]
    sums = jnp.einsum("bta,btc->bac", hot, log_probs)
    counts = jnp.sum(hot, axis=1)[..., None]
    return jax.nn.softmax(sums / jnp.maximum(counts, 1.0), axis=-1)


def read_keys(posterior: Float[Array, "batch vocab vocab"]) -> Deciphered:
    """Reads a key from what is known of every cipher symbol.

    The assignment is never less likely than the arg-maxima where these are one to one,
    but may have fewer symbols right.

    Args:
      posterior: `[batch, vocab, vocab]` float32 probabilities, rows = cipher symbols.

    Returns:
      `Deciphered`.

    Source: arXiv 2305.16349, section 5 (arg-max). Differs: the assignment.

    Example:
      >>> posterior = jnp.array([[[0.6, 0.4], [0.9, 0.1]]])
      >>> [x.tolist() for x in read_keys(posterior)]
      [[[0, 0]], [[1, 0]]]
    """
    posterior = posterior.astype(jnp.float32)
    cost = -jnp.log(posterior + _SMALL)

    def assign(cost: Array) -> Array:
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return (
            jnp.zeros(cost.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))
        )

    greedy = jnp.argmax(posterior, axis=-1).astype(jnp.int32)
    return Deciphered(greedy, jax.vmap(assign)(cost))


def occurring(
    ids: Int[Array, "batch seq"],
    vocab_size: int,
    *,
    mask: Bool[Array, "batch seq"] | None = None,
) -> Bool[Array, "batch vocab"]:
    """Which symbols occur in each text.

    Args:
      ids: `[batch, seq]` int32.
      vocab_size: number of symbols (static).
      mask: `[batch, seq]` which positions count, None for all.

    Returns:
      `[batch, vocab]` bool.

    Source: none; a part of `key_accuracy` of arXiv 2305.16349, section 5.

    Example:
      >>> occurring(jnp.array([[1, 1]]), 3).tolist()
      [[False, True, False]]
    """
    hot = jax.nn.one_hot(ids, vocab_size)
    hot = hot if mask is None else hot * mask[..., None]
    return jnp.sum(hot, axis=1) > 0


def key_accuracy(
    guess: Int[Array, "batch vocab"],
    keys: Int[Array, "batch vocab"],
    *,
    seen: Bool[Array, "batch vocab"] | None = None,
) -> Float[Array, " batch"]:
    """Share of the symbols that a guessed key reads right.

    Args:
      guess: `[batch, vocab]` int32.
      keys: `[batch, vocab]` int32 the true key.
      seen: `[batch, vocab]` which symbols count, such as those of `occurring`; None
        counts all.

    Returns:
      `[batch]` float32; 0 where none counts.

    Source: arXiv 2305.16349, section 5.

    Example:
      >>> key_accuracy(jnp.array([[0, 0]]), jnp.array([[0, 1]])).tolist()
      [0.5]
    """
    counts: Any = jnp.ones(keys.shape, bool) if seen is None else seen
    right = jnp.sum((guess == keys) & counts, axis=-1)
    return right / jnp.maximum(jnp.sum(counts, axis=-1), 1)
