"""Ids to vectors: rows for vocabularies that a model was not trained with."""

from jtok.embed.encoders import TextVectors, hashed_ngrams, model_encoder
from jtok.embed.heuristic import tokenadapt
from jtok.embed.init import (
    EmbeddingInit,
    Made,
    Options,
    Report,
    Rows,
    Task,
    check_anchors,
    check_finite,
    initialiser,
    rows_of,
)
from jtok.embed.mixing import (
    Mix,
    global_weights,
    hybrid,
    local_weights,
    mixed_rows,
    nearest_tokens,
)
from jtok.embed.simple import fitted_normal, fitted_rows, mean, normal, zero
from jtok.embed.unit_lm import init_units, unit_hidden, unit_logits
from jtok.embed.word_config import UnitConfig, WordPooledConfig
from jtok.embed.word_generation import WrittenWords, generate_words
from jtok.embed.word_losses import (
    WordScores,
    unit_loss,
    word_decay,
    word_loss,
    word_optimizer,
    word_scores,
)
from jtok.embed.word_packed import (
    PackedWords,
    pack_words,
    packed_loss,
    packed_scores,
)
from jtok.embed.word_pooled import (
    WordModel,
    init_words,
    word_hidden,
    word_logits,
    word_vectors,
)
from jtok.embed.word_storage import load_words, save_words, words_from_tensors

__all__ = [
    "EmbeddingInit",
    "Made",
    "Mix",
    "Options",
    "PackedWords",
    "Report",
    "Rows",
    "Task",
    "TextVectors",
    "UnitConfig",
    "WordModel",
    "WordPooledConfig",
    "WordScores",
    "WrittenWords",
    "check_anchors",
    "check_finite",
    "fitted_normal",
    "fitted_rows",
    "generate_words",
    "global_weights",
    "hashed_ngrams",
    "hybrid",
    "init_units",
    "init_words",
    "initialiser",
    "load_words",
    "local_weights",
    "mean",
    "mixed_rows",
    "model_encoder",
    "nearest_tokens",
    "normal",
    "pack_words",
    "packed_loss",
    "packed_scores",
    "rows_of",
    "save_words",
    "tokenadapt",
    "unit_hidden",
    "unit_logits",
    "unit_loss",
    "word_decay",
    "word_hidden",
    "word_logits",
    "word_loss",
    "word_optimizer",
    "word_scores",
    "word_vectors",
    "words_from_tensors",
    "zero",
]
