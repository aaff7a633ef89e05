"""Encoders that are pre-trained on n-grams masked as single units.

A masked n-gram is predicted twice: as one of all tokens and n-grams (coarse), and
token by token (fine) by queries that are appended to the sequence, stand at its
position, and that nobody sees. A small generator may fill the masks first.

Source: Xiao et al. 2021, arXiv 2010.12148, section 3.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok import models, nn
from jtok.errors import check
from jtok.models import Model
from jtok.ops.sharding import constrain
from jtok.predict.ngram_config import GramConfig, GramModel
from jtok.predict.ngram_encoder import GramStates, encode_with_queries
from jtok.predict.ngram_masking import GramBatch
from jtok.text import Lexicon

__all__ = [
    "coarse_rows",
    "encode_grams",
    "fine_rows",
    "generator_of",
    "gram_features",
    "init_grams",
    "plain_encoder",
]

PyTree = Any


# ---- parameters


def init_grams(
    config: GramConfig,
    key: jax.Array,
    *,
    model: Model | None = None,
    lexicon: Lexicon | None = None,
) -> GramModel:
    """New parameters, or those of an encoder and new ones around it.

    Args:
      config: sizes.
      key: typed key, consumed.
      model: the encoder to go on from; None starts anew. A generator of its width
        takes its first layers.
      lexicon: the n-grams, whose rows then start as the mean of their tokens' rows,
        where the table is as wide as the encoder; None starts them at random.

    Returns:
      `GramModel`, with the layers split.

    Raises:
      ArgumentError: a model or a lexicon of other sizes.

    Source: arXiv 2010.12148, section 3. Differs: rows that start as means.

    Example:
      >>> from jtok.testing import tiny_model
      >>> lexicon = jtok.text.Lexicon.of([(5, 6)], vocab_size=96)
      >>> config = gram_config(tiny_model(family="bert"), lexicon)
      >>> init_grams(config, jax.random.key(0)).params["table"].shape
      (97, 32)
    """
    _check_start(config, model, lexicon)
    keys = jax.random.split(key, 6)
    sizes = config.encoder
    whole = (models.init(sizes, keys[0]) if model is None else model).params
    encoder, tokens = _without_tokens(models.split_layers(whole))
    params: PyTree = {
        "encoder": encoder,
        **_init_rows(config, keys[1], tokens, lexicon),
        "queries": _normal(keys[2], (config.longest, sizes.width), sizes),
        "coarse": _init_head(sizes, keys[3], config.rank, config.num_classes),
        "fine": _init_head(sizes, keys[4], None, sizes.vocab_size),
    }
    if config.generator is not None:
        start = None if model is None else (encoder, tokens)
        params["generator"] = _init_generator(config, keys[5], start, lexicon)
        params["replaced"] = {
            "kernel": jnp.zeros(sizes.width, sizes.dtype),
            "bias": jnp.zeros((), sizes.dtype),
        }
    return GramModel(params, config)


def _check_start(
    config: GramConfig, model: Model | None, lexicon: Lexicon | None
) -> None:
    if model is not None:
        for name in ("vocab_size", "width", "num_layers", "num_heads", "mlp_width"):
            got, wanted = getattr(model.config, name), getattr(config.encoder, name)
            check(got == wanted, "model", f"{name}={got}", f"{wanted}")
    if lexicon is not None:
        found = (lexicon.vocab_size, len(lexicon), lexicon.longest)
        sizes = (config.encoder.vocab_size, config.lexicon_size, config.longest)
        check(found == sizes, "lexicon", found, f"{sizes}: ids, n-grams, longest")


def _without_tokens(params: PyTree) -> tuple[PyTree, Array]:
    embed = dict(params["embed"])
    tokens = embed.pop("tokens")
    kept = {"embed": embed, "layers": params["layers"]}
    if "relative" in params:
        kept["relative"] = params["relative"]
    return kept, tokens


def _init_rows(
    config: GramConfig, key: jax.Array, tokens: Array, lexicon: Lexicon | None
) -> PyTree:
    sizes, rank = config.encoder, config.rank
    if rank is not None:
        table, up = jax.random.split(key)
        return {
            "tokens": tokens,
            "table": _normal(table, (config.num_classes, rank), sizes),
            "up": _normal(up, (rank, sizes.width), sizes, rank**-0.5),
        }
    if lexicon is None:
        grams = _normal(key, (config.lexicon_size, sizes.width), sizes)
    else:
        there = jnp.asarray(lexicon.tokens >= 0)[..., None]
        parts = tokens[np.maximum(lexicon.tokens, 0)].astype(jnp.float32)
        count = jnp.asarray(lexicon.lengths)[:, None]
        grams = jnp.sum(jnp.where(there, parts, 0.0), axis=1) / count
    return {"table": jnp.concatenate([tokens, grams.astype(tokens.dtype)])}


def _init_generator(
    config: GramConfig,
    key: jax.Array,
    start: tuple[PyTree, Array] | None,
    lexicon: Lexicon | None,
) -> PyTree:
    """A new encoder, or the first layers of the main one, with a head of its own."""
    own = _generator_config(config)
    first, rows, head = jax.random.split(key, 3)
    if start is not None and own.encoder.width == config.encoder.width:
        encoder, tokens = start
        layers = encoder["layers"][: own.encoder.num_layers]
        encoder = {**encoder, "layers": layers}
    else:
        encoder, tokens = _without_tokens(models.init(own.encoder, first).params)
    made: PyTree = {"encoder": encoder}
    if not config.tied:
        made |= _init_rows(own, rows, tokens, lexicon)
    made["coarse"] = _init_head(own.encoder, head, own.rank, own.num_classes)
    return made


def _generator_config(config: GramConfig) -> GramConfig:
    """The generator as a model of its own."""
    small: Any = config.generator
    return dataclasses.replace(config, encoder=small, generator=None)


def _normal(
    key: jax.Array, shape: tuple[int, ...], sizes: nn.EncoderConfig, scale: float = 0.02
) -> Array:
    return (scale * jax.random.normal(key, shape)).astype(sizes.dtype)


def _init_head(
    sizes: nn.EncoderConfig, key: jax.Array, rank: int | None, classes: int
) -> PyTree:
    features = sizes.width if rank is None else rank
    norm = nn.EncoderNorm(sizes).init(key, jnp.zeros((1, features), sizes.dtype))
    return {
        "dense": {
            "kernel": _normal(key, (sizes.width, features), sizes),
            "bias": jnp.zeros(features, sizes.dtype),
        },
        "norm": norm["params"],
        "bias": jnp.zeros(classes, sizes.dtype),
    }


# ---- forward


def encode_grams(
    model: GramModel,
    batch: GramBatch,
    *,
    left_ids: Int[Array, "batch left"] | None = None,
    fine: bool = True,
) -> GramStates:
    """Hidden states of examples and of their fine queries.

    Args:
      model: the model.
      batch: examples, `[batch, ...]`.
      left_ids: `[batch, left]` int32 in place of the batch's, such as what a generator
        filled in; ids of n-grams are rows of the table, too.
      fine: run the queries.

    Returns:
      `GramStates`.

    Source: arXiv 2010.12148, sections 3.2 and 3.3.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> jax.eval_shape(encode_grams, model, batch).fine.shape
      (2, 8, 32)
    """
    params, config = model.params, model.config
    ids = jnp.asarray(batch.left_ids if left_ids is None else left_ids)
    ids = constrain(ids, "batch", None)
    return encode_with_queries(
        params["encoder"],
        config.encoder,
        _input_rows(params, config, ids),
        jnp.asarray(batch.left_mask),
        types=jnp.asarray(batch.left_types),
        queries=params["queries"][jnp.asarray(batch.fine_slots)] if fine else None,
        places=jnp.asarray(batch.fine_places) if fine else None,
    )


def _input_rows(params: PyTree, config: GramConfig, ids: Array) -> Array:
    rows = params["table"].at[ids].get(mode="clip")
    if config.rank is None:
        return rows
    is_gram = (ids >= config.encoder.vocab_size)[..., None]
    tokens = params["tokens"].at[ids].get(mode="clip")
    return jnp.where(is_gram, rows @ params["up"], tokens)


def generator_of(model: GramModel) -> GramModel:
    """The generator as a model of its own, with the tables that it shares.

    Args:
      model: with a generator.

    Returns:
      `GramModel` without fine queries, and with the coarse head only.

    Source: arXiv 2010.12148, section 3.3.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, _ = tiny_grams(generator_layers=1)
      >>> len(generator_of(model).params["encoder"]["layers"])
      1
    """
    own = model.params["generator"]
    shared = {k: v for k, v in model.params.items() if k in ("table", "tokens", "up")}
    return GramModel({**shared, **own}, _generator_config(model.config))


# ---- heads


def gram_features(
    head: PyTree, config: nn.EncoderConfig, hidden: Float[Array, "*tokens dim"]
) -> Float[Array, "*tokens features"]:
    """What a head compares with its rows: a linear map, the activation, a norm.

    Args:
      head: `params["coarse"]` or `params["fine"]`.
      config: of the encoder.
      hidden: `[..., dim]` hidden states.

    Returns:
      `[..., features]` in the dtype of `hidden`.

    Source: arXiv 2010.12148, section 3.2, and the released code.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> head, config = model.params["coarse"], model.config.encoder
      >>> gram_features(head, config, jnp.ones((2, 32))).shape
      (2, 32)
    """
    dense = head["dense"]
    x = hidden @ dense["kernel"]
    x = nn.activation(config.activation)(x + jnp.broadcast_to(dense["bias"], x.shape))
    made: Any = nn.EncoderNorm(config).apply({"params": head["norm"]}, x)
    return made


def coarse_rows(
    model: GramModel,
) -> tuple[Float[Array, "classes features"], Float[Array, " classes"]]:
    """The rows of all tokens and n-grams that coarse features meet, and their bias.

    Args:
      model: the model.

    Returns:
      `[classes, width or rank]` and `[classes]`.

    Source: arXiv 2010.12148, section 3.1.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> coarse_rows(model)[1].shape
      (100,)
    """
    return model.params["table"], model.params["coarse"]["bias"]


def fine_rows(
    model: GramModel,
) -> tuple[Float[Array, "vocab dim"], Float[Array, " vocab"]]:
    """The rows of the tokens that fine features meet, and their bias.

    Args:
      model: the model.

    Returns:
      `[vocab, width]` and `[vocab]`.

    Source: arXiv 2010.12148, section 3.2.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> fine_rows(model)[0].shape
      (96, 32)
    """
    return _token_rows(model), model.params["fine"]["bias"]


def _token_rows(model: GramModel) -> Array:
    if model.config.rank is not None:
        return model.params["tokens"]
    return model.params["table"][: model.config.encoder.vocab_size]


# ---- after pre-training


def plain_encoder(model: GramModel, *, vocabulary: Any = None) -> Model:
    """The encoder alone, for fine-tuning: n-grams, heads and generator are dropped.

    Args:
      model: after pre-training.
      vocabulary: of the tokens, or None.

    Returns:
      A `Model` that computes what the left part computed, and that `jtok.models.save`
      writes in the Hugging Face format.

    Source: arXiv 2010.12148, section 3.4.

    Example:
      >>> from jtok.testing import tiny_grams
      >>> model, batch = tiny_grams()
      >>> model = plain_encoder(model)
      >>> model(jnp.array([[0, 5, 1]]), logits="none").hidden.shape
      (1, 3, 32)
    """
    encoder = models.split_layers(model.params["encoder"])
    embed = {"tokens": _token_rows(model), **encoder["embed"]}
    return Model({**encoder, "embed": embed}, model.config.encoder, vocabulary)
