"""Reading with tokens: classifiers of texts and the words that decide them."""

from jtok.classify.batches import Bucket, bucket_rows, shuffled_batches
from jtok.classify.head import (
    HeadConfig,
    Reading,
    head_loss,
    init_head,
    read_hidden,
)
from jtok.classify.prediction import (
    Predictions,
    TextClassifier,
    WordWeights,
    predict_texts,
    word_weights,
)
from jtok.classify.storage import load_classifier, save_classifier
from jtok.classify.texts import (
    ClassifierConfig,
    classifier_loss,
    init_classifier,
    read_texts,
)
from jtok.classify.words import WordList, load_vectors

__all__ = [
    "Bucket",
    "ClassifierConfig",
    "HeadConfig",
    "Predictions",
    "Reading",
    "TextClassifier",
    "WordList",
    "WordWeights",
    "bucket_rows",
    "classifier_loss",
    "head_loss",
    "init_classifier",
    "init_head",
    "load_classifier",
    "load_vectors",
    "predict_texts",
    "read_hidden",
    "read_texts",
    "save_classifier",
    "shuffled_batches",
    "word_weights",
]
