"""A network that reads the pieces of a token and predicts its embedding rows.

Source: Minixhofer et al. 2024, arXiv 2405.07883, section 3; used per batch by Feher et
al. 2024, arXiv 2411.18553. Differs: all rescalers are frozen.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jtok import nn
from jtok.embed.init import (
    Rows,
)
from jtok.errors import check
from jtok.models import Model
from jtok.nn import HypernetworkConfig
from jtok.ops.sharding import constrain
from jtok.text import Vocabulary

__all__ = [
    "Hypernetwork",
    "PredictedRows",
    "apply_network",
    "check_languages",
    "check_source",
    "fit_rescalers",
    "init_hypernetwork",
    "language_index",
    "predict_rows",
    "source_rows",
]

PyTree = Any
SCALERS = ("in_scaler", "scaler", "out_scaler")


@struct.dataclass
class Hypernetwork:
    """Parameters of a network that predicts rows, and what they are for.

    Attributes:
      params: tree with the names of the released checkpoints.
      config: static sizes.
      vocabulary: hash of the source vocabulary, or None where it is not known.
      languages: names of the language embeddings, or () where they have none.

    Example:
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> sorted(init_hypernetwork(config, jax.random.key(0)).params)[:2]
      ['in_scaler', 'input_projection']
    """

    params: PyTree
    config: HypernetworkConfig = struct.field(pytree_node=False)
    vocabulary: str | None = struct.field(pytree_node=False, default=None)
    languages: tuple[str, ...] = struct.field(pytree_node=False, default=())


class PredictedRows(NamedTuple):
    """What a network says of tokens.

    Attributes:
      input: `[tokens, dim]` float32.
      output: `[tokens, dim]` float32; None where rows are tied.
      bias: `[tokens]` float32 of the unembedding; 0 without a head for it.
    """

    input: jax.Array
    output: jax.Array | None
    bias: jax.Array


def init_hypernetwork(
    config: HypernetworkConfig,
    key: jax.Array,
    *,
    vocabulary: Vocabulary | None = None,
    languages: tuple[str, ...] = (),
) -> Hypernetwork:
    """A network with random weights and rescalers that do nothing yet.

    Args:
      config: its sizes.
      key: typed key; consumed.
      vocabulary: the source vocabulary, whose hash is kept.
      languages: names of the language embeddings, as many as there are, or ().

    Returns:
      `Hypernetwork`; `fit_rescalers` comes next.

    Raises:
      ArgumentError: another number of languages.

    Source: arXiv 2405.07883, appendix.

    Example:
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> init_hypernetwork(config, jax.random.key(0)).params["scaler"]["w"].shape
      (1, 8)
    """
    check_languages(config, languages)
    forms = jnp.zeros((1, config.maxlen), jnp.int32)
    source = jnp.zeros((config.source_size, config.input_width))
    language = jnp.int32(0) if config.languages else None
    module = nn.Hypernetwork(config)
    params = jax.jit(module.init)(key, forms, source, language)["params"]
    made = None if vocabulary is None else vocabulary.hash
    return Hypernetwork(params, config, made, tuple(languages))


def check_languages(config: HypernetworkConfig, languages: tuple[str, ...]) -> None:
    """Refuses names of languages that are not as many as the embeddings."""
    good = len(languages) in (0, config.languages)
    check(good, "languages", languages, f"none, or {config.languages} names")


def source_rows(rows: Rows | Model, config: HypernetworkConfig) -> Array:
    """The matrix that a network reads: input rows, beside them output rows if untied.

    Args:
      rows: of a model, or the model.
      config: of the network.

    Returns:
      `[rows, input_width]` in the rows' own dtype.

    Raises:
      ArgumentError: a model of another width, or with fewer rows than the network
        reads.

    Source: arXiv 2405.07883, section 3.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> config = HypernetworkConfig(row_width=32, source_size=96, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2, tied=False)
      >>> source_rows(tiny_model(), config).shape
      (96, 64)
    """
    output: Any
    if isinstance(rows, Model):
        given, output = rows.params["embed"]["tokens"], rows.unembedding()[0]
    else:
        given = rows.input
        output = rows.input if rows.output is None else rows.output
    found = given if config.tied else jnp.concatenate([given, output], axis=1)
    check_source(found, config)
    return found


def check_source(source: Any, config: HypernetworkConfig) -> None:
    """Refuses source rows of another width, or too few."""
    d, width = config.row_width, config.input_width
    kind = "one row" if config.tied else "input and output rows"
    good = source.ndim == 2 and source.shape[1] == width
    check(good, "source", f"shape {source.shape}", f"{width} wide ({kind} of {d})")
    enough, least = source.shape[0] >= config.source_size, config.source_size
    check(enough, "source", f"shape {source.shape}", f"{least} rows or more")


def language_index(network: Hypernetwork, language: int | str | None) -> Array | None:
    """The index of a language as an array; None where the network has none."""
    count = network.config.languages
    if count == 0:
        check(language is None, "language", language, "None: it has no languages")
        return None
    if isinstance(language, str):
        known = network.languages
        check(language in known, "language", language, f"one of {', '.join(known)}")
        language = known.index(language)
    whole = isinstance(language, int | np.integer) and not isinstance(language, bool)
    good = whole and 0 <= int(language or 0) < count
    check(good, "language", language, f"an index in 0..{count - 1}, or its name")
    return jnp.int32(language)


def predict_rows(
    network: Hypernetwork,
    source: Float[Array, "source width"],
    forms: Int[Array, "tokens pieces"] | Int[np.ndarray, "tokens pieces"],
    *,
    language: int | str | None = None,
    chunk: int | None = None,
) -> PredictedRows:
    """Predicts the rows of tokens from their surface forms.

    A form of nothing but padding gives finite rows; overwrite them, and those of
    special tokens, by the original ones. On a mesh tokens are split by the rule
    "batch".

    Args:
      network: the network.
      source: `[source, row_width]`, or `[source, 2 row_width]` of an untied network:
        input and output rows side by side, see `source_rows`.
      forms: `[tokens, pieces]` int32, see `jtok.text.surface_forms`; ids beyond the
        source and the fallback rows are clamped.
      language: index or name of the language; None where the network has none.
      chunk: tokens at a time, each chunk computed again for the gradient (static);
        None takes all at once.

    Returns:
      `PredictedRows`, float32.

    Raises:
      ArgumentError: rows of another width, too many pieces, an unknown language, or
        `chunk` below 1.

    Source: arXiv 2405.07883, section 3.1.

    Example:
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> predict_rows(network, jnp.ones((50, 8)), jnp.array([[3, 0]])).input.shape
      (1, 8)
    """
    config = network.config
    check_source(source, config)
    forms = jnp.asarray(forms)
    most = config.max_positions
    check(1 <= forms.shape[1] <= most, "forms", forms.shape, f"1 to {most} pieces")
    check(chunk is None or chunk >= 1, "chunk", chunk, "None or at least 1")
    index = language_index(network, language)
    return apply_network(network.params, config, source, forms, index, chunk)


def apply_network(
    params: PyTree,
    config: HypernetworkConfig,
    source: Array,
    forms: Array,
    language: Array | None,
    chunk: int | None,
) -> PredictedRows:
    """`predict_rows` after its checks, for use inside a loss."""
    module = nn.Hypernetwork(config)

    def run(part: Array) -> PredictedRows:
        part = constrain(part, "batch", None)
        return PredictedRows(*module.apply({"params": params}, part, source, language))

    count = forms.shape[0]
    if chunk is None or chunk >= count:
        return run(forms)
    pieces = -(-count // chunk)
    filled = jnp.pad(forms, ((0, pieces * chunk - count), (0, 0)))
    parts = filled.reshape(pieces, chunk, forms.shape[1])
    made = jax.lax.map(jax.checkpoint(run), parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], made)


def fit_rescalers(
    network: Hypernetwork,
    source: Float[Array, "source width"],
    anchors: Int[Array, "anchors pieces"] | Int[np.ndarray, "anchors pieces"],
) -> Hypernetwork:
    """Sets the rescalers from data, once, before training.

    Source rows come in with mean 0 and deviation 0.02 a dimension; what the network
    says of the anchors goes out with the mean and deviation of the source rows. With
    languages the anchors are read with the first.

    Args:
      network: the network.
      source: as for `predict_rows`; all of its rows count.
      anchors: `[anchors, pieces]` surface forms, such as those of the first 2048 ids.

    Returns:
      The network with other rescalers.

    Raises:
      ArgumentError: a network without rescalers, or rows of another width.

    Source: arXiv 2405.07883, appendix.

    Example:
      >>> config = HypernetworkConfig(row_width=8, source_size=50, pad_id=0, hidden=16,
      ...     intermediate=32, heads=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> source, forms = jnp.eye(50)[:, :8], jnp.arange(50)[:, None]
      >>> made = predict_rows(fit_rescalers(network, source, forms), source, forms)
      >>> bool(jnp.allclose(made.input.mean(0), source.mean(0), atol=1e-4))
      True
    """
    config = network.config
    check(config.rescale, "network", "no rescalers", "one with rescale=True")
    check_source(source, config)
    wide = source.astype(jnp.float32)
    params = dict(network.params)
    params["in_scaler"] = _rescaler(wide, jnp.zeros(()), jnp.float32(0.02))
    language = jnp.int32(0) if config.languages else None
    for name in SCALERS[1:]:
        if name in params:
            width = params[name]["w"].shape
            params[name] = {"w": jnp.ones(width), "b": jnp.zeros(width)}
    made = jax.jit(apply_network, static_argnums=(1, 5))(
        params, config, source, jnp.asarray(anchors), language, None
    )
    d = config.row_width
    for name, rows, target in (
        ("scaler", made.input, wide[:, :d]), ("out_scaler", made.output, wide[:, d:])
    ):  # fmt: skip
        if rows is not None:
            params[name] = _rescaler(rows, target.mean(axis=0), target.std(axis=0))
    return dataclasses.replace(network, params=params)


def _rescaler(x: Array, mean: Array, deviation: Array) -> dict[str, Array]:
    w = deviation / (jnp.std(x, axis=0) + 1e-8)
    b = mean - jnp.mean(w[None] * x, axis=0)
    return {"w": w[None], "b": b[None]}
