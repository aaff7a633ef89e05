"""The three objectives that teach queries to read an image as a text needs it.

Contrast: image and text, blind to each other, shall be near. Match: seeing each other,
do they belong together? Captions: the text, word by word, of the queries.

Source: Li et al. 2023, arXiv 2301.12597, section 3.2, and its code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.errors import check
from jtok.nn.qformer import QFormer, QFormerConfig, QFormerHeads
from jtok.ops.unembed import vocab_statistics

__all__ = [
    "ImageTexts",
    "caption_loss",
    "contrast_loss",
    "match_loss",
    "qformer_losses",
]

Params = dict[str, Any]


class ImageTexts(NamedTuple):
    """Images and their texts.

    Attributes:
      image: `[batch, tokens, image_width]`.
      ids: `[batch, words]` int32, the class token first.
      valid: `[batch, tokens]` bool, or None.
      text_valid: `[batch, words]` bool, or None.
    """

    image: jax.Array
    ids: jax.Array
    valid: jax.Array | None = None
    text_valid: jax.Array | None = None


def _run(
    params: Params, config: QFormerConfig, *inputs: Any, key: Array | None, **more: Any
) -> Any:
    """`QFormerOutput` of the Q-Former with dropout where there is a key."""
    noise = {} if key is None else {"rngs": {"dropout": key}}
    apply: Any = QFormer(config).apply
    variables = {"params": params["qformer"]}
    return apply(variables, *inputs, deterministic=key is None, **more, **noise)


def _head(params: Params, config: QFormerConfig, method: str, *inputs: Array) -> Any:
    width = params["heads"]["image"]["kernel"].shape[1]
    heads = QFormerHeads(config, width)
    return heads.apply({"params": params["heads"]}, *inputs, method=method)


def contrast_loss(
    params: Params,
    config: QFormerConfig,
    batch: ImageTexts,
    *,
    smoothing: float = 0.1,
    key: Array | None = None,
) -> tuple[Float[Array, ""], Float[Array, "images texts"]]:
    """Image-text contrast (ITC): each image shall find its text, and back.

    The similarity is the largest of an image's queries. Neither sees the other.

    Args:
      params: `{"qformer": ..., "heads": ...}`, of `QFormer` and `QFormerHeads`.
      config: of the Q-Former, with a vocabulary.
      batch: text `i` is that of image `i`.
      smoothing: share of the target that is spread over all texts.
      key: of dropout; None for no dropout.

    Returns:
      The loss in nats, mean over both directions, and the similarities over the
      temperature, `[images, texts]` float32.

    Raises:
      ArgumentError: `smoothing` outside of 0 to 1, or what `QFormer` refuses.

    Source: Li et al. 2023, arXiv 2301.12597, section 3.2.

    Example:
      >>> config = jtok.nn.QFormerConfig(queries=2, width=4, layers=1, heads=1,
      ...     mlp_width=8, image_width=3, vocab_size=7, max_positions=5)
      >>> batch = ImageTexts(jnp.ones((2, 3, 3)), jnp.zeros((2, 4), jnp.int32))
      >>> params = lambda key: jtok.nn.init_qformer(key, config)
      >>> run = lambda key: contrast_loss(params(key), config, batch)
      >>> [one.shape for one in jax.eval_shape(run, jax.random.key(0))]
      [(), (2, 2)]
    """
    _check_smoothing(smoothing)
    first, second = (None, None) if key is None else jax.random.split(key)
    image = _run(params, config, batch.image, valid=batch.valid, key=first)
    text = _run(params, config, ids=batch.ids, text_valid=batch.text_valid, key=second)
    near = _head(params, config, "compare", image.queries, text.text[:, 0])
    loss = (_spread(near, smoothing) + _spread(near.T, smoothing)) / 2
    return loss, near


def _spread(logits: Array, smoothing: float) -> Array:
    """Cross-entropy of the diagonal with a smoothed target."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    own = (1 - smoothing) * jnp.diagonal(log_probs)
    return -jnp.mean(own + smoothing * jnp.mean(log_probs, axis=-1))


def match_loss(
    params: Params,
    config: QFormerConfig,
    batch: ImageTexts,
    near: Float[Array, "images texts"],
    *,
    key: Array,
    dropout: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Image-text matching (ITM): do they belong together, queries and words say.

    Beside each pair stand one with another image and one with another text, drawn
    among those that the contrast finds similar.

    Args:
      params: as `contrast_loss`.
      config: as `contrast_loss`.
      batch: at least two pairs.
      near: `[images, texts]` similarities of `contrast_loss`.
      key: of the draws and of dropout.
      dropout: use it (static).

    Returns:
      The loss in nats a decision, and the share of right decisions.

    Raises:
      ArgumentError: fewer than two pairs, or similarities of other pairs.

    Source: Li et al. 2023, arXiv 2301.12597, section 3.2; the draws are those of
      arXiv 2107.07651.

    Example:
      >>> config = jtok.nn.QFormerConfig(queries=2, width=4, layers=1, heads=1,
      ...     mlp_width=8, image_width=3, vocab_size=7, max_positions=5)
      >>> batch = ImageTexts(jnp.ones((2, 3, 3)), jnp.zeros((2, 4), jnp.int32))
      >>> params = lambda key: jtok.nn.init_qformer(key, config)
      >>> near = jnp.zeros((2, 2))
      >>> run = lambda key: match_loss(params(key), config, batch, near, key=key)
      >>> [one.shape for one in jax.eval_shape(run, jax.random.key(0))]
      [(), ()]
    """
    count = batch.image.shape[0]
    check(count >= 2, "batch", f"{count} pair", "at least 2: others are drawn")
    good = near.shape == (count, count)
    check(good, "near", f"shape {near.shape}", f"{(count, count)}")
    by_text, by_image, noise = jax.random.split(key, 3)
    images = _others(by_text, near.T)  # for each text an image
    texts = _others(by_image, near)
    own = jnp.arange(count)
    pick = lambda values, at: None if values is None else values[at]
    image_at = jnp.concatenate([own, images, own])
    text_at = jnp.concatenate([own, own, texts])
    out = _run(
        params, config, batch.image[image_at], valid=pick(batch.valid, image_at),
        ids=batch.ids[text_at], text_valid=pick(batch.text_valid, text_at),
        key=noise if dropout else None,
    )  # fmt: skip
    logits = _head(params, config, "matched", out.queries)
    label = (jnp.arange(3 * count) < count).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    loss = -jnp.mean(jnp.take_along_axis(log_probs, label[:, None], axis=1))
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == label)


def _others(key: Array, near: Array) -> Int[Array, " rows"]:
    """For each row another column, the more similar the likelier."""
    near = jax.lax.stop_gradient(near)
    weight = jax.nn.softmax(near, axis=-1) + 1e-4
    weight = jnp.where(jnp.eye(near.shape[0], dtype=bool), 0.0, weight)
    return jax.random.categorical(key, jnp.log(weight), axis=-1)


def caption_loss(
    params: Params,
    config: QFormerConfig,
    batch: ImageTexts,
    *,
    first_id: int,
    smoothing: float = 0.1,
    key: Array | None = None,
) -> Float[Array, ""]:
    """Image-grounded language modelling: every word of those before and the queries.

    Queries do not see the text; logits of all words never exist at once.

    Args:
      params: as `contrast_loss`.
      config: as `contrast_loss`.
      batch: images and their texts.
      first_id: takes the place of the class token.
      smoothing: share of the target that is spread over the vocabulary.
      key: of dropout; None for no dropout.

    Returns:
      Nats a word, without the first.

    Raises:
      ArgumentError: `smoothing` outside of 0 to 1, an id outside of the vocabulary, a
        text of one word, or what `QFormer` refuses.

    Source: Li et al. 2023, arXiv 2301.12597, section 3.2.

    Example:
      >>> config = jtok.nn.QFormerConfig(queries=2, width=4, layers=1, heads=1,
      ...     mlp_width=8, image_width=3, vocab_size=7, max_positions=5)
      >>> batch = ImageTexts(jnp.ones((2, 3, 3)), jnp.zeros((2, 4), jnp.int32))
      >>> params = lambda key: jtok.nn.init_qformer(key, config)
      >>> run = lambda key: caption_loss(params(key), config, batch, first_id=6)
      >>> jax.eval_shape(run, jax.random.key(0)).shape
      ()
    """
    _check_smoothing(smoothing)
    good = 0 <= first_id < config.vocab_size
    check(good, "first_id", first_id, f"an id in 0..{config.vocab_size - 1}")
    words = batch.ids.shape[1]
    check(words >= 2, "batch", f"texts of {words} word", "at least 2 words")
    ids = batch.ids.at[:, 0].set(first_id)
    out = _run(
        params, config, batch.image, valid=batch.valid, ids=ids,
        text_valid=batch.text_valid, sees="causal", key=key,
    )  # fmt: skip
    hidden, bias = _head(params, config, "predict", out.text[:, :-1])
    table = params["qformer"]["words"].astype(jnp.float32)
    found = vocab_statistics(hidden, table, ids[:, 1:], bias=bias, entropy=False)
    middle = hidden @ jnp.mean(table, axis=0) + jnp.mean(bias)
    target = (1 - smoothing) * found.target_logit + smoothing * middle
    loss = found.log_sum_exp - target
    mask = batch.text_valid
    real = jnp.ones(loss.shape, bool) if mask is None else mask[:, 1:]
    return jnp.sum(jnp.where(real, loss, 0.0)) / jnp.maximum(jnp.sum(real), 1)


def qformer_losses(
    params: Params,
    config: QFormerConfig,
    batch: ImageTexts,
    *,
    first_id: int,
    key: Array,
    smoothing: float = 0.1,
    dropout: bool = False,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of the three objectives, as the first stage of training takes it.

    Args:
      params: as `contrast_loss`.
      config: as `contrast_loss`.
      batch: at least two pairs.
      first_id: as `caption_loss`.
      key: of draws and dropout.
      smoothing: as `contrast_loss` and `caption_loss`.
      dropout: use it (static).

    Returns:
      The loss, and `contrast`, `match`, `caption` (nats) and `matched` (the share of
      right decisions).

    Raises:
      ArgumentError: as the three.

    Source: Li et al. 2023, arXiv 2301.12597, section 3.2.

    Example:
      >>> config = jtok.nn.QFormerConfig(queries=2, width=4, layers=1, heads=1,
      ...     mlp_width=8, image_width=3, vocab_size=7, max_positions=5)
      >>> batch = ImageTexts(jnp.ones((2, 3, 3)), jnp.zeros((2, 4), jnp.int32))
      >>> params = lambda key: jtok.nn.init_qformer(key, config)
      >>> run = lambda key: qformer_losses(
      ...     params(key), config, batch, first_id=6, key=key)
      >>> sorted(jax.eval_shape(run, jax.random.key(0))[1])
      ['caption', 'contrast', 'match', 'matched']
    """
    first, second, third = jax.random.split(key, 3)
    noise = lambda one: one if dropout else None
    contrast, near = contrast_loss(
        params, config, batch, smoothing=smoothing, key=noise(first)
    )
    match, right = match_loss(params, config, batch, near, key=second, dropout=dropout)
    caption = caption_loss(
        params, config, batch, first_id=first_id, smoothing=smoothing, key=noise(third)
    )
    parts = {"contrast": contrast, "match": match, "caption": caption, "matched": right}
    return contrast + match + caption, parts


def _check_smoothing(smoothing: float) -> None:
    check(0.0 <= smoothing <= 1.0, "smoothing", smoothing, "0 to 1")
