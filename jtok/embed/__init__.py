"""Ids to vectors: rows for vocabularies that a model was not trained with."""

from jtok.embed.donors import DonorRows, donor_rows, donor_view
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
from jtok.embed.linear_maps import linear_map, procrustes, rotation, sparse_basis
from jtok.embed.magikarp import under_trained_rows, well_trained_tokens
from jtok.embed.mixing import (
    Mix,
    global_weights,
    hybrid,
    local_weights,
    mixed_rows,
    nearest_tokens,
)
from jtok.embed.neighbours import (
    common_interpolation,
    focus,
    interpolation_weights,
    sparsemax,
    trans_tokenization,
    wechsel,
)
from jtok.embed.omp import omp
from jtok.embed.pursuit import (
    Pursuit,
    combine,
    first_best,
    matching_pursuit,
    orthogonal_pursuit,
)
from jtok.embed.rope_pursuit import (
    Turned,
    fitted_positions,
    mp_rope,
    rope_pursuit,
    turn,
)
from jtok.embed.simple import fitted_normal, fitted_rows, mean, normal, zero
from jtok.embed.subword import piece_weights, subword
from jtok.embed.transplant import restore, transplant, transplant_record
from jtok.embed.unit_lm import init_units, unit_hidden, unit_logits
from jtok.embed.weighted import weighted_rows
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
    "DonorRows",
    "EmbeddingInit",
    "Made",
    "Mix",
    "Options",
    "PackedWords",
    "Pursuit",
    "Report",
    "Rows",
    "Task",
    "TextVectors",
    "Turned",
    "UnitConfig",
    "WordModel",
    "WordPooledConfig",
    "WordScores",
    "WrittenWords",
    "check_anchors",
    "check_finite",
    "combine",
    "common_interpolation",
    "donor_rows",
    "donor_view",
    "first_best",
    "fitted_normal",
    "fitted_positions",
    "fitted_rows",
    "focus",
    "generate_words",
    "global_weights",
    "hashed_ngrams",
    "hybrid",
    "init_units",
    "init_words",
    "initialiser",
    "interpolation_weights",
    "linear_map",
    "load_words",
    "local_weights",
    "matching_pursuit",
    "mean",
    "mixed_rows",
    "model_encoder",
    "mp_rope",
    "nearest_tokens",
    "normal",
    "omp",
    "orthogonal_pursuit",
    "pack_words",
    "packed_loss",
    "packed_scores",
    "piece_weights",
    "procrustes",
    "restore",
    "rope_pursuit",
    "rotation",
    "rows_of",
    "save_words",
    "sparse_basis",
    "sparsemax",
    "subword",
    "tokenadapt",
    "trans_tokenization",
    "transplant",
    "transplant_record",
    "turn",
    "under_trained_rows",
    "unit_hidden",
    "unit_logits",
    "unit_loss",
    "wechsel",
    "weighted_rows",
    "well_trained_tokens",
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
