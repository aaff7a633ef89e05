"""Writing words: one loop on the device, with a cache over words and one in a word.

Source: Thawani et al. 2023, arXiv 2310.11628. Differs: its code computes everything
again for every unit, and has no function that writes words.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.embed.word_config import WordPooledConfig, check_words
from jtok.embed.word_pooled import (
    blocks_of,
    spell,
    spelling_input,
    unit_vectors,
    with_bos,
    word_states,
    word_vectors,
)
from jtok.errors import check
from jtok.nn.word_pooling import Mix, layer_norm
from jtok.ops import Draw, Want, readout, row_keys
from jtok.ops.segments import attend
from jtok.text.alphabets import END

__all__ = ["WrittenWords", "generate_words"]

PyTree = Any
Layers = tuple[PyTree, ...]
Cache = tuple[tuple[Array, Array], ...]
Counts = Sequence[int] | Int[Array, " batch"] | Int[np.ndarray, " batch"]
_NEVER = -1e30


@flax.struct.dataclass(kw_only=True)
class WrittenWords:
    """Words that a model wrote.

    Attributes:
      units: `[batch, words, units]` int32, 0 behind a word's end.
      lengths: `[batch, words]` int32 units of each word, at least 1.
    """

    units: jax.Array
    lengths: jax.Array


def generate_words(
    params: PyTree,
    config: WordPooledConfig,
    context: Int[Array, "batch words units"] | Int[np.ndarray, "batch words units"],
    num_words: int,
    *,
    lengths: Int[Array, "batch words"] | Int[np.ndarray, "batch words"],
    counts: Sequence[int]
    | Int[Array, " batch"]
    | Int[np.ndarray, " batch"]
    | None = None,
    temperature: float | Sequence[float] = 0.0,
    seeds: Sequence[int] | None = None,
    cache: bool = True,
) -> WrittenWords:
    """Writes the next words of every row.

    A word is spelled unit by unit, until it ends or is full. A word is never empty: its
    end is not drawn first. Noise depends on a row's seed and the word's and the unit's
    places alone, not on batch mates or padding. Compiled once for each shape.

    Args:
      params: the parameters.
      config: the sizes; context and new words together are at most `config.words`.
      context: `[batch, words, units]` ids of the words that are there.
      num_words: how many to write, the same for every row.
      lengths: `[batch, words]` units of each word.
      counts: `[batch]` words of each row, which come first; None for all. 0 takes a
        model with a word before the first.
      temperature: of all rows or of each; 0 takes the most likely unit, ties to the
        lower id.
      seeds: one a row; None takes 0, 1, 2, ...
      cache: keep keys and values; False computes all again, to the same words.

    Returns:
      `WrittenWords`.

    Raises:
      ArgumentError: no room for the words, an empty row without a word before the
        first, a negative temperature, or as for `check_words`.

    Source: Thawani et al. 2023, arXiv 2310.11628, section 3.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1, units=3)
      >>> params = init_words(config, jax.random.key(0))
      >>> context = np.array([[[3, 4], [5, 0]]])
      >>> out = generate_words(params, config, context, 3, lengths=np.array([[2, 1]]))
      >>> out.units.shape
      (1, 3, 3)
    """
    batch, words, size = context.shape
    held = np.full(batch, words) if counts is None else np.asarray(counts)
    temps = np.broadcast_to(np.asarray(temperature, np.float32), (batch,))
    keys = np.arange(batch) if seeds is None else np.asarray(seeds)
    check(num_words >= 1, "num_words", num_words, "at least 1")
    check(held.shape == (batch,), "counts", held.shape, f"{batch}, one a row")
    check(keys.shape == (batch,), "seeds", keys.shape, f"{batch}, one a row")
    least = 0 if config.bos else 1
    good = bool(((held >= least) & (held <= words)).all())
    check(good, "counts", held.tolist(), f"{least} to {words} words a row")
    check(bool((temps >= 0).all()), "temperature", temps.tolist(), "at least 0")
    most = config.words - words
    check(num_words <= most, "num_words", num_words, f"at most {most} after {words}")
    mask = np.arange(words)[None] < held[:, None]
    check_words(config, context, lengths, mask)
    units = jnp.pad(jnp.asarray(context), [(0, 0), (0, 0), (0, config.units - size)])
    draw = Draw(
        keys=row_keys(jnp.asarray(keys)), start=jnp.zeros(batch, jnp.int32),
        depth=jnp.zeros((batch, 1), jnp.int32), temperature=jnp.asarray(temps),
    )  # fmt: skip
    real = jnp.where(mask, jnp.asarray(lengths), 0)
    run = _write_cached if cache else _write_again
    return run(params, units, real, jnp.asarray(held), draw, config, num_words)


def _choose(
    params: PyTree, config: WordPooledConfig, hidden: Float[Array, "batch dim"],
    draw: Draw, word: Array, unit: Array,
) -> Int[Array, " batch"]:  # fmt: skip
    """The next unit of every row; no word ends before it has begun."""
    weight = params["head"]["kernel"]
    ends = (jnp.arange(weight.shape[0]) == END) & (unit == 0)
    want = Want(draw=dataclasses.replace(draw, start=word * config.units + unit))
    bias = jnp.where(ends, _NEVER, 0.0)
    return readout(hidden[:, None], weight, want, bias=bias).choice[:, 0]


def _spell_words(
    next_hidden: Callable[[Any, Array, Array], tuple[Array, Any]],
    state: Any, params: PyTree, config: WordPooledConfig, draw: Draw, word: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """One word a row: `[batch, units]` ids and `[batch]` lengths.

    `next_hidden(state, ids, unit)` reads the units before `unit`.
    """
    batch = draw.depth.shape[0]

    def goes_on(carry: tuple[Array, Array, Array, Any]) -> Array:
        unit, _, ended, _ = carry
        return (unit < config.units) & ~jnp.all(ended)

    def step(carry: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
        unit, ids, ended, state = carry
        hidden, state = next_hidden(state, ids, unit)
        chosen = _choose(params, config, hidden, draw, word, unit)
        chosen = jnp.where(ended, END, chosen).astype(jnp.int32)
        ids = jax.lax.dynamic_update_slice(ids, chosen[:, None], (0, unit))
        return unit + 1, ids, ended | (chosen == END), state

    ids = jnp.zeros((batch, config.units), jnp.int32)
    start = (jnp.int32(0), ids, jnp.zeros(batch, bool), state)
    ids = jax.lax.while_loop(goes_on, step, start)[1]
    # Unit 0 ends a word and stands nowhere in it.
    return ids, jnp.sum(ids != END, axis=1, dtype=jnp.int32)


# With caches ------------------------


@functools.partial(jax.jit, static_argnames=("config", "num_words"))
def _write_cached(
    params: PyTree, units: Array, lengths: Array, counts: Array, draw: Draw,
    config: WordPooledConfig, num_words: int,
) -> WrittenWords:  # fmt: skip
    prefixes = config.prefixes
    vectors = with_bos(params, config, word_vectors(params, config, units, lengths))
    held = counts + config.bos
    main, decoder = (_split(params[name]["layers"]) for name in ("main", "decoder"))
    capacity = (vectors.shape[1] + num_words) * prefixes
    empty = _empty(params, config, len(units), config.heads, capacity, config.layers)
    states, cache = _main_steps(
        params, config, main, vectors, jnp.zeros_like(counts), empty
    )
    last = jax.vmap(lambda row, at: row[at])(states, held - 1)

    def one_word(carry: tuple[Array, Cache], index: Array) -> Any:
        last, cache = carry
        ids, sizes = _spell_cached(params, config, decoder, last, draw, counts + index)
        vector = word_vectors(params, config, ids[:, None], sizes[:, None])
        start = (held + index) * prefixes
        states, cache = _main_steps(params, config, main, vector, start, cache)
        return (states[:, 0], cache), (ids, sizes)

    _, (ids, sizes) = jax.lax.scan(one_word, (last, cache), jnp.arange(num_words))
    return WrittenWords(units=jnp.swapaxes(ids, 0, 1), lengths=sizes.T)


def _split(stacked: PyTree) -> Layers:
    """A tree for each layer, so that a step reads no stack."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count))


def _empty(
    params: PyTree, config: WordPooledConfig, batch: int, heads: int, capacity: int,
    count: int,
) -> Cache:  # fmt: skip
    shape = (batch, capacity, heads, config.width // heads)
    zeros = jnp.zeros(shape, params["embed"]["units"].dtype)
    return ((zeros, zeros),) * count


def _cached_layers(
    block: Any, layers: Layers, x: Array, start: Array, cache: Cache
) -> tuple[Array, Cache]:
    """Runs new places `start[b] + i` over a cache, and writes them to it."""
    fresh = []
    for params, (old_key, old_value) in zip(layers, cache, strict=True):
        mix = _over(old_key, old_value, start)
        x, kept = block.apply({"params": params}, x, mix)
        fresh.append(kept)
    return x, tuple(fresh)


def _over(old_key: Array, old_value: Array, start: Array) -> Mix:
    def mix(query: Array, key: Array, value: Array, drop: Any) -> tuple[Array, Any]:
        def put(old: Array, rows: Array) -> Array:
            one = lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(
                row, part, at, axis=0
            )
            return jax.vmap(one)(old, rows.astype(old.dtype), start)

        keys, values = put(old_key, key), put(old_value, value)
        places = start[:, None] + jnp.arange(query.shape[1])[None]
        allow = jnp.arange(keys.shape[1])[None, None] <= places[..., None]
        return attend(query, keys, values, allow, drop=drop), (keys, values)

    return mix


def _main_steps(
    params: PyTree, config: WordPooledConfig, layers: Layers, vectors: Array,
    start: Array, cache: Cache,
) -> tuple[Array, Cache]:  # fmt: skip
    """States of new words at the places from `start` on."""
    batch, words, prefixes, dim = vectors.shape
    at = start[:, None] + jnp.arange(words * prefixes)[None]
    x = vectors.reshape(batch, words * prefixes, dim)
    x = x + jnp.take(params["embed"]["word_positions"], at, axis=0, mode="clip")
    x, cache = _cached_layers(blocks_of(config)[1], layers, x, start, cache)
    x = layer_norm(params["main"]["final_norm"], x)
    return x.reshape(vectors.shape), cache


def _spell_cached(
    params: PyTree, config: WordPooledConfig, layers: Layers, last: Array, draw: Draw,
    word: Array,
) -> tuple[Array, Array]:  # fmt: skip
    prefixes, block = config.prefixes, blocks_of(config)[2]
    batch = last.shape[0]
    none = jnp.zeros((batch, 1, 0), jnp.int32)
    x = spelling_input(params, config, last[:, None], none)[:, 0]
    empty = _empty(params, config, batch, config.decoder_heads, config.row, len(layers))
    at = jnp.zeros(batch, jnp.int32)
    x, cache = _cached_layers(block, layers, x, at, empty)
    places = params["embed"]["unit_positions"]

    def next_hidden(state: Any, ids: Array, unit: Array) -> tuple[Array, Any]:
        hidden, cache = state

        def read(cache: Cache) -> tuple[Array, Cache]:
            slot = prefixes + unit - 1
            x = unit_vectors(params, jnp.take(ids, unit - 1, axis=1, mode="clip"))
            times = 2 if config.official else 1
            for _ in range(times):
                x = x + places[slot][None]
            x, cache = _cached_layers(block, layers, x[:, None], at + slot, cache)
            return x[:, 0], cache

        hidden, cache = jax.lax.cond(
            unit == 0, lambda cache: (hidden, cache), read, cache
        )
        return hidden, (hidden, cache)

    state = (x[:, -1], cache)
    return _spell_words(next_hidden, state, params, config, draw, word)


# Without ------------------------


@functools.partial(jax.jit, static_argnames=("config", "num_words"))
def _write_again(
    params: PyTree, units: Array, lengths: Array, counts: Array, draw: Draw,
    config: WordPooledConfig, num_words: int,
) -> WrittenWords:  # fmt: skip
    units = jnp.pad(units, [(0, 0), (0, num_words), (0, 0)])
    lengths = jnp.pad(lengths, [(0, 0), (0, num_words)])
    pick = lambda rows, at: jax.vmap(lambda row, at: row[at])(rows, at)

    def one_word(carry: tuple[Array, Array], index: Array) -> Any:
        units, lengths = carry
        vectors = word_vectors(params, config, units, lengths)
        states = word_states(params, config, with_bos(params, config, vectors), None)
        last = pick(states, counts + index + config.bos - 1)

        def next_hidden(state: Any, ids: Array, unit: Array) -> tuple[Array, Any]:
            hidden = spell(params, config, last[:, None], ids[:, None], None)
            return jnp.take(hidden[:, 0], unit, axis=1), state

        found = _spell_words(next_hidden, (), params, config, draw, counts + index)
        put = lambda rows, new: jax.vmap(lambda row, one, at: row.at[at].set(one))(
            rows, new, counts + index
        )
        return (put(units, found[0]), put(lengths, found[1])), found

    _, (ids, sizes) = jax.lax.scan(one_word, (units, lengths), jnp.arange(num_words))
    return WrittenWords(units=jnp.swapaxes(ids, 0, 1), lengths=sizes.T)
