"""Labels of texts from a trained classifier, and the words that it looked at.

Source: Mehta et al. 2019, arXiv 1912.00835: word weights are what its figures show.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from jtok.classify.batches import SIZES, bucket_rows
from jtok.classify.texts import ClassifierConfig, read_texts
from jtok.classify.words import WordList
from jtok.errors import VocabMismatchError, check

__all__ = [
    "Predictions",
    "TextClassifier",
    "WordWeights",
    "predict_texts",
    "word_weights",
]

_read = functools.partial(jax.jit, static_argnums=1)(read_texts)


@struct.dataclass
class TextClassifier:
    """Parameters with what they are read by.

    Attributes:
      params: as from `init_classifier` or training.
      config: the sizes.
      words: the words behind the ids.
    """

    params: Any
    config: ClassifierConfig = struct.field(pytree_node=False)
    words: WordList = struct.field(pytree_node=False)


class Predictions(NamedTuple):
    """Labels of texts.

    Attributes:
      labels: `[texts]` the likeliest label; ties go to the lower one.
      probabilities: float32 `[texts, classes]`.
    """

    labels: np.ndarray
    probabilities: np.ndarray


class WordWeights(NamedTuple):
    """What a classifier looked at in a text.

    Attributes:
      words: of the text, those that were read.
      weights: float32 `[heads, words]`; each head's sum to 1.
      label: the likeliest one.
      probabilities: float32 `[classes]`.
    """

    words: tuple[str, ...]
    weights: np.ndarray
    label: int
    probabilities: np.ndarray


def check_words(model: TextClassifier) -> None:
    """Refuses a list of words of another size than the embedding."""
    if model.words.size != model.config.vocab_size:
        raise VocabMismatchError(
            f"words: has {model.words.size} ids, the embedding "
            f"{model.config.vocab_size} rows; expected as many."
        )


def predict_texts(
    model: TextClassifier,
    texts: Sequence[str],
    *,
    batch: int = 64,
    sizes: Sequence[int] = SIZES,
) -> Predictions:
    """Labels of texts, which are grouped by their lengths.

    Args:
      model: the classifier.
      texts: of any length; what goes beyond the last size is not read.
      batch: texts at once.
      sizes: lengths that texts are padded to; each is compiled once.

    Returns:
      `Predictions`; a text without words has the output of a row of padding.

    Raises:
      ArgumentError: a batch below 1 or sizes that do not rise.
      VocabMismatchError: the words are not those of the embedding.

    Source: none.

    Example:
      >>> from jtok.classify import HeadConfig, init_classifier
      >>> from jtok.nn import LamaPooler
      >>> config = ClassifierConfig(4, HeadConfig(LamaPooler(4), classes=2), state=2)
      >>> params = init_classifier(config, jax.random.key(0))
      >>> model = TextClassifier(params, config, WordList(("good", "bad")))
      >>> predict_texts(model, ["good", "bad"]).probabilities.shape
      (2, 2)
    """
    check_words(model)
    rows = [model.words.ids(text) for text in texts]
    logits = np.zeros((len(rows), model.config.head.classes), np.float32)
    for bucket in bucket_rows(rows, batch=batch, sizes=sizes):
        made = _read(model.params, model.config, bucket.ids, bucket.mask)
        logits[bucket.rows] = np.asarray(made.logits)[: len(bucket.rows)]
    return Predictions(logits.argmax(1), _softmax(logits))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def word_weights(
    model: TextClassifier, text: str, *, sizes: Sequence[int] = SIZES
) -> WordWeights:
    """How much each head looked at each word, for a picture of it.

    Args:
      model: the classifier; its pooler weighs tokens.
      text: one text; what goes beyond the last size is not read.
      sizes: as for `predict_texts`.

    Returns:
      `WordWeights`.

    Raises:
      ArgumentError: the pooler weighs nothing.
      VocabMismatchError: the words are not those of the embedding.

    Source: Mehta et al. 2019, arXiv 1912.00835.

    Example:
      >>> from jtok.classify import HeadConfig, init_classifier
      >>> from jtok.nn import LamaPooler
      >>> config = ClassifierConfig(4, HeadConfig(LamaPooler(4), classes=2), state=2)
      >>> params = init_classifier(config, jax.random.key(0))
      >>> model = TextClassifier(params, config, WordList(("good", "bad")))
      >>> word_weights(model, "Not bad").words
      ('not', 'bad')
    """
    check_words(model)
    (bucket,) = bucket_rows([model.words.ids(text)], batch=1, sizes=sizes)
    made = _read(model.params, model.config, bucket.ids, bucket.mask)
    kind = type(model.config.head.pooler).__name__
    check(
        made.attention is not None, "model", f"a {kind}", "a pooler that weighs words"
    )
    words = tuple(model.words.split(text))[: int(bucket.mask.sum())]
    weights = np.asarray(made.attention)[0, :, : len(words)]
    logits = np.asarray(made.logits)[0]
    return WordWeights(words, weights, int(logits.argmax()), _softmax(logits))
