"""Tasks that only the context can solve: look a value up, apply a permutation.

Source: Huang et al. 2023, arXiv 2305.16349 (synthetic reasoning). Differs: the exact
format is ours, and one sequence may ask for all of its answers.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, check

__all__ = [
    "TaskBatch",
    "TaskScores",
    "lookup_task",
    "permutation_task",
    "solve_lookup",
    "solve_permutation",
    "task_scores",
]


class TaskBatch(NamedTuple):
    """Sequences of a task.

    Attributes:
      tokens: `[batch, length]` int32, answers included.
      answers: `[batch, length]` bool, True where a token is an answer; as a batch's
        `mask` it makes answers the only targets.
      chance: share that a uniform guess among all symbols has right.
    """

    tokens: jax.Array
    answers: jax.Array
    chance: float


class TaskScores(NamedTuple):
    """How many answers are right.

    Attributes:
      each: float32 share of the answers.
      whole: float32 share of the sequences with all answers right.
      present: float32 as `each`, choosing among the symbols before the answer only.
    """

    each: jax.Array
    whole: jax.Array
    present: jax.Array


def lookup_task(
    key: jax.Array,
    *,
    batch: int,
    symbols: Sequence[int],
    vocab_size: int,
    pairs: int = 8,
    repeats: int = 1,
    queries: Literal["one", "all"] = "one",
    separator: int | None = None,
) -> TaskBatch:
    """Pairs of a key and a value, then keys whose values are asked for.

    `k1 v1 ; k2 v2 ; ... ; kj vj`: keys differ, values are any symbols. Every pair
    stands `repeats` times, in random order. With one query its key is uniform over
    those shown; with "all" every key is asked for once, in random order.

    Args:
      key: typed key, consumed.
      batch: sequences (static).
      symbols: ids that keys and values are drawn from (static).
      vocab_size: of the model, for the chance level.
      pairs: 2 to 32, at most as many as symbols (static).
      repeats: how often each pair is shown, at least 1 (static).
      queries: "one" or "all" (static).
      separator: id between pairs (static), none of `symbols`; None has none.

    Returns:
      `TaskBatch`.

    Raises:
      ArgumentError: a number out of range, ids outside the vocabulary or twice, or a
        separator among the symbols.

    Source: arXiv 2305.16349, section 5 (LookUp). Differs: "all".

    Example:
      >>> task = lookup_task(jax.random.key(0), batch=2, symbols=range(9),
      ...     vocab_size=10, pairs=4, queries="all")
      >>> task.tokens.shape, int(task.answers.sum())
      ((2, 16), 8)
    """
    ids = _symbols(symbols, vocab_size, (separator,))
    most = min(32, len(symbols))
    check(2 <= pairs <= most, "pairs", pairs, f"2 to {most}")
    check(repeats >= 1, "repeats", repeats, "at least 1")
    check(queries in ("one", "all"), "queries", queries, "'one' or 'all'")

    def one(key: Array) -> tuple[Array, Array]:
        first, second, third, fourth = jax.random.split(key, 4)
        names = jax.random.permutation(first, ids)[:pairs]
        values = jax.random.choice(second, ids, (pairs,))
        shown = jnp.tile(jnp.arange(pairs), repeats)
        shown = jax.random.permutation(third, shown)
        asked = jax.random.permutation(fourth, pairs)
        asked = asked[: 1 if queries == "one" else pairs]
        order = jnp.concatenate([shown, asked])
        return jnp.stack([names[order], values[order]], axis=1), order

    rows, order = jax.vmap(one)(jax.random.split(key, batch))
    asks = jnp.arange(order.shape[1]) >= pairs * repeats
    answers = jnp.stack([jnp.zeros_like(asks), asks], axis=1)
    answers = jnp.broadcast_to(answers[None], rows.shape)
    if separator is not None:
        rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 1)), constant_values=separator)
        answers = jnp.pad(answers, ((0, 0), (0, 0), (0, 1)))
    end = None if separator is None else -1  # nothing follows the last value
    tokens = rows.reshape(batch, -1)[:, :end].astype(jnp.int32)
    return TaskBatch(tokens, answers.reshape(batch, -1)[:, :end], 1 / vocab_size)


def permutation_task(
    key: jax.Array,
    *,
    batch: int,
    symbols: Sequence[int],
    vocab_size: int,
    arrow: int,
    separator: int,
    size: int = 3,
    examples: int = 4,
    queries: Literal["one", "all"] = "one",
) -> TaskBatch:
    """Tuples and the same permutation of each, then one to be permuted.

    `a b c -> c a b ; d e f -> f d e ; x y z -> z x y`: the symbols of a tuple differ,
    and the permutation of places is one for the sequence, uniform over all.

    Args:
      key: typed key, consumed.
      batch: sequences (static).
      symbols: ids that tuples are drawn from (static).
      vocab_size: of the model, for the chance level.
      arrow: id between a tuple and its permutation (static), none of `symbols`.
      separator: id between examples (static), none of `symbols`.
      size: places, 3 to 5 (static).
      examples: permuted tuples before the last one, at least 1 (static).
      queries: "one" asks for the last permuted tuple, "all" for all but the first
        (static).

    Returns:
      `TaskBatch`.

    Raises:
      ArgumentError: a number out of range, ids outside the vocabulary or twice, or an
        arrow or separator among the symbols.

    Source: arXiv 2305.16349, section 5 (Permutation). Differs: "all".

    Example:
      >>> task = permutation_task(jax.random.key(0), batch=2, symbols=range(9),
      ...     vocab_size=11, arrow=9, separator=10, examples=2)
      >>> task.tokens.shape, int(task.answers.sum())
      ((2, 23), 6)
    """
    ids = _symbols(symbols, vocab_size, (arrow, separator))
    check(3 <= size <= 5, "size", size, "3 to 5")
    check(len(symbols) >= size, "symbols", symbols, f"at least {size} ids")
    check(examples >= 1, "examples", examples, "at least 1")
    check(queries in ("one", "all"), "queries", queries, "'one' or 'all'")
    check(arrow != separator, "separator", separator, "another id than the arrow's")

    def one(key: Array) -> Array:
        first, second = jax.random.split(key)
        places = jax.random.permutation(first, size)
        draw = lambda key: jax.random.permutation(key, ids)[:size]
        tuples = jax.vmap(draw)(jax.random.split(second, examples + 1))
        sign = lambda token: jnp.full((examples + 1, 1), token)
        parts = [tuples, sign(arrow), tuples[:, places], sign(separator)]
        return jnp.concatenate(parts, axis=1)

    rows = jax.vmap(one)(jax.random.split(key, batch)).astype(jnp.int32)
    place = jnp.arange(2 * size + 2)
    output = (place > size) & (place <= 2 * size)
    first = examples if queries == "one" else 1
    asks = (jnp.arange(examples + 1) >= first)[:, None] & output[None]
    answers = jnp.broadcast_to(asks[None], rows.shape).reshape(batch, -1)
    return TaskBatch(rows.reshape(batch, -1)[:, :-1], answers[:, :-1], 1 / vocab_size)


def _symbols(
    symbols: Sequence[int], vocab_size: int, signs: tuple[int | None, ...]
) -> Array:
    ids = [int(i) for i in symbols]
    good = len(set(ids)) == len(ids) and all(0 <= i < vocab_size for i in ids)
    check(good, "symbols", ids, f"different ids in 0..{vocab_size - 1}")
    for sign in signs:
        good = sign is None or (0 <= sign < vocab_size and sign not in set(ids))
        check(good, "separator", sign, f"another id in 0..{vocab_size - 1}")
    return jnp.asarray(ids, jnp.int32)


def solve_lookup(
    tokens: Int[np.ndarray, "batch length"] | Int[Array, "batch length"],
    answers: Bool[np.ndarray, "batch length"] | Bool[Array, "batch length"],
    *,
    separator: int | None = None,
) -> np.ndarray:
    """Solves the look-up by searching the pairs before each answer, on the host.

    Args:
      tokens: `[batch, length]` int32; the answers themselves are not read.
      answers: `[batch, length]` bool.
      separator: as the task has it.

    Returns:
      `[batch, length]` int32 the solution where there is an answer, else -1.

    Source: arXiv 2305.16349, section 5 (LookUp).

    Example:
      >>> tokens = np.array([[5, 6, 7, 8, 5, 0]])
      >>> solve_lookup(tokens, np.array([[False] * 5 + [True]])).tolist()
      [[-1, -1, -1, -1, -1, 6]]
    """
    rows, asks = np.asarray(tokens), np.asarray(answers)
    out = np.full(rows.shape, -1, np.int32)
    step = 2 if separator is None else 3
    for row, ask, solved in zip(rows, asks, out):
        known: dict[int, int] = {}
        for at in range(0, len(row) - 1, step):
            name = int(row[at])
            if ask[at + 1]:
                solved[at + 1] = known.get(name, -1)
            else:
                known[name] = int(row[at + 1])
    return out


def solve_permutation(
    tokens: Int[np.ndarray, "batch length"] | Int[Array, "batch length"],
    answers: Bool[np.ndarray, "batch length"] | Bool[Array, "batch length"],
    *,
    size: int,
) -> np.ndarray:
    """Solves the permutation task by trying all permutations, on the host.

    Args:
      tokens: `[batch, length]` int32; the answers themselves are not read.
      answers: `[batch, length]` bool.
      size: places of a tuple.

    Returns:
      `[batch, length]` int32 the solution where there is an answer, else -1.

    Raises:
      ArgumentError: no permutation fits the examples.

    Source: arXiv 2305.16349, section 5 (Permutation).

    Example:
      >>> tokens = np.array([[1, 2, 3, 9, 3, 1, 2, 8, 4, 5, 6, 9, 0, 0, 0]])
      >>> answers = np.arange(15)[None] >= 12
      >>> solve_permutation(tokens, answers, size=3)[0, 12:].tolist()
      [6, 4, 5]
    """
    out = np.full(np.shape(tokens), -1, np.int32)
    step = 2 * size + 2
    for row, ask, solved in zip(np.asarray(tokens), np.asarray(answers), out):
        begins = range(0, len(row) - 2 * size, step)
        given = [b for b in begins if not ask[b + size + 1]]
        fits = [
            places
            for places in itertools.permutations(range(size))
            if all(
                (
                    row[b : b + size][list(places)] == row[b + size + 1 : b + step - 1]
                ).all()
                for b in given
            )
        ]
        if not fits:
            raise ArgumentError("tokens: got examples that no permutation fits.")
        for b in begins:
            if ask[b + size + 1]:
                solved[b + size + 1 : b + step - 1] = row[b : b + size][list(fits[0])]
    return out


def task_scores(
    logits: Float[Array, "batch length vocab"],
    tokens: Int[Array, "batch length"],
    answers: Bool[Array, "batch length"],
) -> TaskScores:
    """Exact matches of the arg-max with the answers; ties to the lower id.

    Args:
      logits: `[batch, length, vocab]` float32; those at a position say what stands at
        the next one.
      tokens: `[batch, length]` int32.
      answers: `[batch, length]` bool; one at the first position is not counted.

    Returns:
      `TaskScores`.

    Source: arXiv 2305.16349, section 5.

    Example:
      >>> tokens = jnp.array([[1, 2, 1, 2]])
      >>> logits = jax.nn.one_hot(jnp.roll(tokens, -1, axis=1), 3)
      >>> answers = jnp.arange(4)[None] == 3
      >>> [float(x) for x in task_scores(logits, tokens, answers)]
      [1.0, 1.0, 1.0]
    """
    vocab, asks = logits.shape[-1], answers[:, 1:]
    before = tokens[:, :-1]
    shown = jnp.cumsum(jax.nn.one_hot(before, vocab, dtype=jnp.int32), axis=1) > 0
    said = logits[:, :-1]
    right = jnp.argmax(said, axis=-1) == tokens[:, 1:]
    among = jnp.argmax(jnp.where(shown, said, -jnp.inf), axis=-1) == tokens[:, 1:]
    count = jnp.maximum(jnp.sum(asks), 1)
    share = lambda found: jnp.sum(found & asks) / count
    whole = jnp.mean(jnp.all(right | ~asks, axis=1).astype(jnp.float32))
    return TaskScores(share(right), whole, share(among))
