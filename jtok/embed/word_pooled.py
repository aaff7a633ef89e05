"""A language model whose tokens are words, pooled from units and spelled in units.

A small encoder turns the units of each word into a few vectors, a causal model runs
over the words, and a small causal decoder spells every next word, all in parallel.

Source: Thawani et al. 2023, arXiv 2310.11628. Differs from its code unless
`compat="official"`: prefixes have embeddings of their own, the encoder sees no padding,
positions are added once.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.embed.word_config import UnitConfig, WordPooledConfig, check_words
from jtok.nn.word_pooling import CausalBlock, Mix, PostNormLayer, layer_norm
from jtok.ops.segments import attend
from jtok.ops.sharding import constrain
from jtok.text import Alphabet

__all__ = [
    "WordModel",
    "init_words",
    "word_hidden",
    "word_logits",
    "word_vectors",
]

PyTree = Any
Vectors = Float[Array, "batch words prefixes dim"]


@flax.struct.dataclass(kw_only=True)
class WordModel:
    """A word-pooled or a unit-level model, and the alphabet of its units.

    Attributes:
      params: its parameters, as `init_words` or `init_units` makes them.
      config: `WordPooledConfig` or `UnitConfig`.
      alphabet: what units mean, or None.
    """

    params: PyTree
    config: WordPooledConfig | UnitConfig = flax.struct.field(pytree_node=False)
    alphabet: Alphabet | None = flax.struct.field(pytree_node=False, default=None)


def init_words(config: WordPooledConfig, key: Array) -> PyTree:
    """Parameters as the paper's code starts with: normal(0, 0.02), positions 0.

    Layers are stacked on a leading axis, below `layers` of `encoder`, `main` and
    `decoder`.

    Args:
      config: the sizes.
      key: typed key.

    Returns:
      The tree of parameters.

    Source: Thawani et al. 2023, arXiv 2310.11628, official code.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> init_words(config, jax.random.key(0))["embed"]["units"].shape
      (13, 8)
    """
    dtype, dim = config.dtype, config.width
    keys = jax.random.split(key, 6)
    normal = lambda key, rows: 0.02 * jax.random.normal(key, (rows, dim), dtype)
    places = (config.words + config.bos) * config.prefixes
    embed = {
        "units": normal(keys[0], config.vocab_size + config.prefixes),
        "unit_positions": jnp.zeros((config.row, dim), dtype),
        "word_positions": jnp.zeros((places, dim), dtype),
    }
    if config.bos:
        embed["bos"] = normal(keys[1], config.prefixes)
    counts = (config.encoder_layers, config.layers, config.decoder_layers)
    stacks = [
        {"layers": init_layers(block, dim, count, key)}
        for block, count, key in zip(blocks_of(config), counts, keys[2:5])
    ]
    norm = {"scale": jnp.ones(dim, dtype), "bias": jnp.zeros(dim, dtype)}
    return {
        "embed": embed,
        "encoder": stacks[0],
        "main": {**stacks[1], "final_norm": norm},
        "decoder": stacks[2],
        "head": {"kernel": normal(keys[5], config.vocab_size)},
    }


def blocks_of(
    config: WordPooledConfig,
) -> tuple[PostNormLayer, CausalBlock, CausalBlock]:
    """The layers of encoder, main model and decoder."""
    drop, dtype = config.dropout, config.dtype
    return (
        PostNormLayer(config.encoder_heads, config.encoder_mlp, drop, dtype),
        CausalBlock(config.heads, drop, dtype),
        CausalBlock(config.decoder_heads, drop, dtype),
    )


def init_layers(block: Any, dim: int, count: int, key: Array) -> PyTree:
    """Parameters of `count` layers, stacked on a leading axis."""
    x = jnp.zeros((1, 1, dim), block.param_dtype)
    one = lambda key: block.init(key, x, _alone)["params"]
    return jax.vmap(one)(jax.random.split(key, count))


def _alone(query: Array, key: Array, value: Array, drop: Any) -> tuple[Array, None]:
    return value, None


def run_layers(
    block: Any,
    layers: PyTree,
    x: Float[Array, "batch seq dim"],
    mix: Mix,
    key: Array | None,
    *,
    unroll: bool = False,
    remat: bool = False,
) -> Float[Array, "batch seq dim"]:
    """Layers one after another; dropout where there is a key."""
    count = jax.tree.leaves(layers)[0].shape[0]
    keys = None if key is None else jax.random.split(key, count)

    def step(x: Array, entry: tuple[PyTree, Array | None]) -> tuple[Array, None]:
        params, own = entry
        rngs = None if own is None else {"dropout": own}
        y, _ = block.apply(
            {"params": params}, x, mix, deterministic=own is None, rngs=rngs
        )
        return y, None

    step = jax.checkpoint(step) if remat else step
    return jax.lax.scan(step, x, (layers, keys), unroll=unroll or 1)[0]


def masked(allow: Bool[Array, "#batch #seq keys"]) -> Mix:
    """Mixing under a mask."""
    return lambda q, k, v, drop: (attend(q, k, v, allow, drop=drop), None)


def causal(size: int) -> Bool[Array, "1 size size"]:
    """Every position sees itself and what was before."""
    return jnp.tril(jnp.ones((1, size, size), bool))


def dropped(x: Array, rate: float, key: Array | None) -> Array:
    """Dropout where there is a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """Keys for several uses, or as many None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


# 1 word encoder ------------------------


def unit_vectors(params: PyTree, ids: Int[Array, "*rows"]) -> Float[Array, "*rows dim"]:
    """Embeddings of units and prefixes; other ids are clamped."""
    return jnp.take(params["embed"]["units"], ids, axis=0, mode="clip")


def embed_words(
    params: PyTree, config: WordPooledConfig, units: Int[Array, "batch words units"]
) -> Float[Array, "batch words slots dim"]:
    """Prefixes and units of every word with their positions: `e` of the paper."""
    first = config.units if config.official else config.vocab_size
    prefix = jnp.arange(first, first + config.prefixes, dtype=units.dtype)
    shape = (*units.shape[:-1], config.prefixes)
    prefix = jnp.broadcast_to(prefix[None, None], shape)
    vectors = unit_vectors(params, jnp.concatenate([prefix, units], axis=-1))
    places = params["embed"]["unit_positions"][: vectors.shape[-2]]
    return vectors + places[None, None]


def encoder_mask(
    config: WordPooledConfig, lengths: Int[Array, "batch words"], slots: int
) -> Bool[Array, "batch words #queries slots"]:
    """What a slot may attend to inside its word."""
    ends = config.prefixes + lengths[..., None]
    at = jnp.arange(slots)[None, None]
    if config.official:
        behind = at > ends
        return ~(behind[..., :, None] & behind[..., None, :])
    return (at < ends)[..., None, :]


def word_vectors(
    params: PyTree,
    config: WordPooledConfig,
    units: Int[Array, "batch words units"],
    lengths: Int[Array, "batch words"],
    *,
    key: Array | None = None,
) -> Vectors:
    """Pools every word by itself.

    Args:
      params: the parameters.
      config: the sizes.
      units: `[batch, words, units]` ids; what stands behind a word's end is not seen.
      lengths: `[batch, words]` int32; 0 gives a vector that means nothing.
      key: typed key of the dropout; None for none.

    Returns:
      `[batch, words, prefixes, dim]`.

    Raises:
      ArgumentError: more units a word than the model has.

    Source: Thawani et al. 2023, arXiv 2310.11628, section 3.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_words(config, jax.random.key(0))
      >>> units = jnp.array([[[3, 4], [5, 0]]])
      >>> word_vectors(params, config, units, jnp.array([[2, 1]])).shape
      (1, 2, 4, 8)
    """
    batch, words = lengths.shape
    keys = split_key(key, 2)
    x = dropped(embed_words(params, config, units), config.dropout, keys[0])
    slots, dim = x.shape[-2:]
    allow = encoder_mask(config, lengths, slots)
    flat = allow.reshape(batch * words, *allow.shape[2:])
    x = run_layers(
        blocks_of(config)[0], params["encoder"]["layers"],
        x.reshape(batch * words, slots, dim), masked(flat), keys[1],
        unroll=config.unroll,
    )  # fmt: skip
    return x.reshape(batch, words, slots, dim)[:, :, : config.prefixes]


# 2 main model ------------------------


def main_input(params: PyTree, vectors: Vectors) -> Float[Array, "batch places dim"]:
    """Word vectors in a row, with the positions of words."""
    batch, words, prefixes, dim = vectors.shape
    x = vectors.reshape(batch, words * prefixes, dim)
    return x + params["embed"]["word_positions"][None, : words * prefixes]


def word_states(
    params: PyTree, config: WordPooledConfig, vectors: Vectors, key: Array | None
) -> Vectors:
    """What the main model says behind every word, from which the next is spelled."""
    keys = split_key(key, 2)
    x = dropped(main_input(params, vectors), config.dropout, keys[0])
    x = run_layers(
        blocks_of(config)[1], params["main"]["layers"], x, masked(causal(x.shape[1])),
        keys[1], unroll=config.unroll,
    )  # fmt: skip
    return layer_norm(params["main"]["final_norm"], x).reshape(vectors.shape)


def with_bos(
    params: PyTree, config: WordPooledConfig, vectors: Vectors
) -> Float[Array, "batch heard prefixes dim"]:
    """The learnt first word before the others, where there is one."""
    if not config.bos:
        return vectors
    bos = params["embed"]["bos"][None, None]
    first = jnp.broadcast_to(bos, (vectors.shape[0], *bos.shape[1:]))
    return jnp.concatenate([first, vectors], axis=1)


# 3 word decoder ------------------------


def spelling_input(
    params: PyTree,
    config: WordPooledConfig,
    states: Vectors,
    units: Int[Array, "batch words units"],
) -> Float[Array, "batch words slots dim"]:
    """The state before a word, then its units: the canvas of the paper."""
    hints = unit_vectors(params, units)
    places = params["embed"]["unit_positions"]
    if config.official:
        # The encoder's input serves again, with the positions that it has.
        hints = hints + places[None, None, config.prefixes :][:, :, : units.shape[-1]]
    x = jnp.concatenate([states.astype(hints.dtype), hints], axis=-2)
    return x + places[None, None, : x.shape[-2]]


def spell(
    params: PyTree,
    config: WordPooledConfig,
    states: Vectors,
    units: Int[Array, "batch words units"],
    key: Array | None,
) -> Float[Array, "batch words units dim"]:
    """Hidden states that read out unit j of a word from its units before j."""
    keys = split_key(key, 2)
    x = spelling_input(params, config, states, units)[:, :, :-1]
    x = dropped(x, config.dropout, keys[0])
    batch, words, slots, dim = x.shape
    x = run_layers(
        blocks_of(config)[2], params["decoder"]["layers"],
        x.reshape(batch * words, slots, dim), masked(causal(slots)), keys[1],
        unroll=config.unroll, remat=config.remat,
    )  # fmt: skip
    return x.reshape(batch, words, slots, dim)[:, :, config.prefixes - 1 :]


# Whole ------------------------


def word_hidden(
    params: PyTree,
    config: WordPooledConfig,
    units: Int[Array, "batch words units"],
    lengths: Int[Array, "batch words"],
    *,
    mask: Bool[Array, "batch words"] | None = None,
    key: Array | None = None,
) -> Float[Array, "batch targets units dim"]:
    """Hidden states of all words' units, from the true words and units before them.

    Rows may have fewer words than others: padding words come last, and change nothing
    before them.

    Args:
      params: the parameters.
      config: the sizes.
      units: `[batch, words, units]` ids, 0 behind a word's end. Fewer units than the
        model's give the same states.
      lengths: `[batch, words]` int32 in 1..units.
      mask: `[batch, words]` True for words; None for all. Only checked here.
      key: typed key of the dropout; None for none.

    Returns:
      `[batch, targets, units, dim]`: row j of target w reads out unit j of word w + 1,
      or of word w where the model has a word before the first.

    Raises:
      ArgumentError: see `check_words`; fewer than two words where there is none before
        the first.

    Source: Thawani et al. 2023, arXiv 2310.11628, section 3.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_words(config, jax.random.key(0))
      >>> units, lengths = jnp.array([[[3, 4], [5, 0]]]), jnp.array([[2, 1]])
      >>> word_hidden(params, config, units, lengths).shape
      (1, 1, 2, 8)
    """
    check_words(config, units, lengths, mask, least=1 if config.bos else 2)
    keys = split_key(key, 3)
    units = constrain(units, "batch", None, None)
    vectors = word_vectors(params, config, units, lengths, key=keys[0])
    vectors = with_bos(params, config, constrain(vectors, "batch", None, None, None))
    states = word_states(params, config, vectors, keys[1])
    targets = units if config.bos else units[:, 1:]
    return spell(params, config, states[:, :-1], targets, keys[2])


def word_logits(
    params: PyTree,
    config: WordPooledConfig,
    units: Int[Array, "batch words units"],
    lengths: Int[Array, "batch words"],
    *,
    mask: Bool[Array, "batch words"] | None = None,
) -> Float[Array, "batch targets units vocab"]:
    """Logits of all words' units. For small alphabets: losses never hold them at once.

    Args:
      params: the parameters.
      config: the sizes.
      units: as for `word_hidden`.
      lengths: likewise.
      mask: likewise.

    Returns:
      `[batch, targets, units, vocab]` float32.

    Raises:
      ArgumentError: as for `word_hidden`.

    Source: Thawani et al. 2023, arXiv 2310.11628, section 3.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, width=8, layers=1)
      >>> params = init_words(config, jax.random.key(0))
      >>> units, lengths = jnp.array([[[3, 4], [5, 0]]]), jnp.array([[2, 1]])
      >>> word_logits(params, config, units, lengths).shape
      (1, 1, 2, 9)
    """
    hidden = word_hidden(params, config, units, lengths, mask=mask)
    weight = params["head"]["kernel"]
    return jnp.einsum("bwud,vd->bwuv", hidden, weight, preferred_element_type="float32")
