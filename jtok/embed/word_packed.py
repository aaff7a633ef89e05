"""Word pooling without padding: the units of all words in one row.

A row holds, for each word, its prefixes and its units; attention inside the words is
block-diagonal. The sums are those of the padded form, over as many slots as the words
have.

Source: Thawani et al. 2023, arXiv 2310.11628; the packed form is an addition.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.embed.word_config import WordPooledConfig, check_words
from jtok.embed.word_losses import Loss, WordScores, mean_loss
from jtok.embed.word_pooled import (
    blocks_of,
    dropped,
    run_layers,
    split_key,
    unit_vectors,
    with_bos,
    word_states,
)
from jtok.errors import ArgumentError, check
from jtok.nn.word_pooling import Mix
from jtok.ops import cross_entropy, pool_segments, segment_attention, vocab_statistics
from jtok.ops.sharding import constrain
from jtok.text.alphabets import END

__all__ = ["PackedWords", "pack_words", "packed_loss", "packed_scores"]

PyTree = Any


@flax.struct.dataclass(kw_only=True)
class PackedWords:
    """Words of a batch, without padding between them.

    Attributes:
      units: `[batch, length]` int32, 0 at prefixes and behind the last word.
      words: `[batch, length]` int32 index of each slot's word, -1 behind the last.
      slots: `[batch, length]` int32 place in the word; the prefixes come first.
      starts: `[batch, words]` int32 where a word begins; 0 for words that are none.
      lengths: `[batch, words]` int32 units of a word; 0 for words that are none.
    """

    units: jax.Array
    words: jax.Array
    slots: jax.Array
    starts: jax.Array
    lengths: jax.Array


def pack_words(
    config: WordPooledConfig,
    units: Int[np.ndarray, "batch words units"],
    lengths: Int[np.ndarray, "batch words"],
    *,
    mask: Bool[np.ndarray, "batch words"] | None = None,
    length: int | None = None,
) -> PackedWords:
    """Moves padded words together, on the host.

    Args:
      config: the model's sizes.
      units: `[batch, words, units]` ids.
      lengths: `[batch, words]` units of each word.
      mask: `[batch, words]` True for words, which come first; None for all.
      length: slots of a row; None takes those of the longest.

    Returns:
      `PackedWords`, of NumPy arrays.

    Raises:
      ArgumentError: as for `check_words`, or a row that is longer than `length`.

    Source: an addition to Thawani et al. 2023, arXiv 2310.11628.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, prefixes=1)
      >>> units = np.array([[[3, 4], [5, 0]]])
      >>> pack_words(config, units, np.array([[2, 1]])).units.tolist()
      [[0, 3, 4, 0, 5]]
    """
    check_words(config, units, lengths, mask)
    lengths = np.where(True if mask is None else mask, lengths, 0).astype(np.int32)
    sizes = np.where(lengths > 0, lengths + config.prefixes, 0)
    ends = np.cumsum(sizes, axis=1)
    longest = int(ends.max())
    size = longest if length is None else length
    check(longest <= size, "length", size, f"at least {longest}, the longest row's")
    at = np.arange(size)
    words = np.sum(at[None, :, None] >= ends[:, None, :], axis=-1)
    inside = at[None] < ends[:, -1:]
    owner = np.where(inside, words, 0)
    starts = ends - sizes
    slots = np.where(inside, at[None] - np.take_along_axis(starts, owner, 1), 0)
    spelled = inside & (slots >= config.prefixes)
    rows = np.arange(len(units))[:, None]
    ids = units[rows, owner, np.where(spelled, slots - config.prefixes, 0)]
    # On the host, where fields of arrays may be NumPy's.
    int32: Any = lambda x: np.asarray(x, np.int32)
    return PackedWords(
        units=int32(np.where(spelled, ids, END)),
        words=int32(np.where(inside, words, -1)),
        slots=int32(slots),
        starts=int32(np.where(lengths > 0, starts, 0)),
        lengths=int32(lengths),
    )


def _inside(config: WordPooledConfig, packed: PackedWords, causal: bool) -> Mix:
    def mix(query: Array, key: Array, value: Array, drop: Any) -> tuple[Array, None]:
        mixed = segment_attention(
            query, key, value, packed.words, causal=causal, longest=config.row,
            drop=drop,
        )  # fmt: skip
        return mixed, None

    return mix


def packed_hidden(
    params: PyTree, config: WordPooledConfig, packed: PackedWords, key: Array | None
) -> Float[Array, "batch length dim"]:
    """What the decoder says at every slot."""
    if config.official:
        raise ArgumentError(
            "config: got compat='official', expected None: the official encoder sees "
            "padding, which packed words do not have."
        )
    keys = split_key(key, 5)
    embed, prefixes = params["embed"], config.prefixes
    is_prefix = packed.slots < prefixes
    ids = constrain(packed.units, "batch", None)
    ids = jnp.where(is_prefix, config.vocab_size + packed.slots, ids)
    vectors = unit_vectors(params, ids)
    places = jnp.take(embed["unit_positions"], packed.slots, axis=0)
    encoder, _, decoder = blocks_of(config)
    x = run_layers(
        encoder, params["encoder"]["layers"],
        dropped(vectors + places, config.dropout, keys[0]),
        _inside(config, packed, causal=False), keys[1], unroll=config.unroll,
    )  # fmt: skip
    at = packed.starts[:, :, None] + jnp.arange(prefixes)[None, None]
    pooled = jax.vmap(lambda row, at: row[at])(x, at)
    states = word_states(params, config, with_bos(params, config, pooled), keys[2])
    if not config.bos:
        # Nothing stands before the first word, and nothing of it counts.
        states = jnp.pad(states, [(0, 0), (1, 0), (0, 0), (0, 0)])
    flat = states.reshape(states.shape[0], -1, states.shape[-1])
    before = jnp.maximum(packed.words, 0) * prefixes + jnp.minimum(
        packed.slots, prefixes - 1
    )
    states_at = jax.vmap(lambda row, at: row[at])(flat, before)
    x = jnp.where(is_prefix[..., None], states_at.astype(vectors.dtype), vectors)
    inputs = dropped(x + places, config.dropout, keys[3])
    return run_layers(
        decoder, params["decoder"]["layers"], inputs,
        _inside(config, packed, causal=True), keys[4],
        unroll=config.unroll, remat=config.remat,
    )  # fmt: skip


def _packed_targets(
    config: WordPooledConfig, packed: PackedWords
) -> tuple[Array, Array]:
    """The unit behind each slot, or the word's end, and whether it counts."""
    shifted = lambda x, fill: jnp.pad(x[:, 1:], [(0, 0), (0, 1)], constant_values=fill)
    goes_on = shifted(packed.words, -1) == packed.words
    owner = jnp.maximum(packed.words, 0)
    lengths = jnp.take_along_axis(packed.lengths, owner, axis=1)
    last = packed.slots == config.prefixes + lengths - 1
    reads = packed.slots >= config.prefixes - 1
    room = ~last | (lengths < config.units)
    counted = (packed.words >= (0 if config.bos else 1)) & reads & room
    return jnp.where(goes_on & ~last, shifted(packed.units, END), END), counted


def packed_loss(config: WordPooledConfig) -> Loss:
    """The loss of `word_loss` for packed words; equal where nothing is dropped out.

    Batches are `PackedWords`, or mappings with their fields.

    Args:
      config: the sizes; not with `compat="official"`.

    Returns:
      `loss_fn(params, frozen, state, batch, key)`, as of `word_loss`.

    Source: an addition to Thawani et al. 2023, arXiv 2310.11628.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> params, key = init_words(config, jax.random.key(0)), jax.random.key(1)
      >>> units, lengths = np.array([[[3, 4], [5, 0]]]), np.array([[2, 1]])
      >>> packed = jax.tree.map(jnp.asarray, pack_words(config, units, lengths))
      >>> packed_loss(config)(params, None, None, packed, key)[0].shape
      ()
    """

    def loss_fn(
        trainable: PyTree, frozen: Any, state: Any,
        batch: PackedWords | Mapping[str, Array], key: Array,
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:  # fmt: skip
        packed = batch if isinstance(batch, PackedWords) else PackedWords(**batch)
        hidden = packed_hidden(trainable, config, packed, key)
        targets, counted = _packed_targets(config, packed)
        weight = trainable["head"]["kernel"]
        nats = cross_entropy(hidden, weight, targets, mask=counted)
        first = jnp.sum(counted & (packed.slots == config.prefixes - 1))
        return mean_loss(nats, counted, first, state)

    return loss_fn


def packed_scores(
    params: PyTree, config: WordPooledConfig, packed: PackedWords
) -> WordScores:
    """The scores of `word_scores` for packed words, units in the same places.

    Args:
      params: the parameters.
      config: the sizes; not with `compat="official"`.
      packed: the words.

    Returns:
      `WordScores`, of as many targets and units as the padded form has.

    Raises:
      ArgumentError: `compat="official"`.

    Source: an addition to Thawani et al. 2023, arXiv 2310.11628.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1, units=2)
      >>> params = init_words(config, jax.random.key(0))
      >>> units, lengths = np.array([[[3, 4], [5, 0]]]), np.array([[2, 1]])
      >>> packed = jax.tree.map(jnp.asarray, pack_words(config, units, lengths))
      >>> packed_scores(params, config, packed).counted.tolist()
      [[[True, True]]]
    """
    hidden = packed_hidden(params, config, packed, None)
    targets, counted = _packed_targets(config, packed)
    weight = params["head"]["kernel"]
    found = vocab_statistics(hidden, weight, targets, entropy=False)
    first = 0 if config.bos else 1
    words = packed.starts.shape[1] - first
    unit = packed.slots - (config.prefixes - 1)
    cell = (packed.words - first) * config.units + unit
    cell = jnp.where(counted, cell, -1)
    spread = lambda x: pool_segments(
        x.astype(jnp.float32)[..., None], cell, words * config.units, reduce="sum"
    ).reshape(-1, words, config.units)
    counts = spread(counted) > 0
    missed = spread(found.target_logit < found.max_logit) > 0
    right = ~jnp.any(missed, axis=-1) & counts[..., 0]
    nats = spread(jnp.where(counted, found.cross_entropy, 0.0))
    return WordScores(unit_nats=nats, counted=counts, right=right)
