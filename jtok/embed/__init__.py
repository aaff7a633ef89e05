"""Ids to vectors: rows for vocabularies that a model was not trained with."""

from jtok.embed.ciphers import (
    LETTERS,
    LETTERS_AND_SIGNS,
    LETTERS_AND_SPACE,
    Deciphered,
    decipher,
    encipher,
    key_accuracy,
    occurring,
    plain_symbols,
    random_keys,
    read_keys,
    symbol_posterior,
)
from jtok.embed.dense_tables import (
    dense_tables,
    embed_by_tables,
    logits_by_tables,
    mix_tables,
)
from jtok.embed.donors import (
    DonorRows,
    donor_rows,
    donor_view,
)
from jtok.embed.encoders import (
    TextVectors,
    hashed_ngrams,
    model_encoder,
)
from jtok.embed.heuristic import (
    tokenadapt,
)
from jtok.embed.in_context_tasks import (
    TaskBatch,
    TaskScores,
    lookup_task,
    permutation_task,
    solve_lookup,
    solve_permutation,
    task_scores,
)
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
from jtok.embed.invariance import (
    averaged_log_probs,
    first_appearance,
    invariant_log_probs,
    share_unseen,
)
from jtok.embed.lexinvariant import (
    lexinvariant_hidden,
    lexinvariant_inputs,
    lexinvariant_logits,
    lexinvariant_loss,
)
from jtok.embed.lexinvariant_target import (
    lexinvariant_target,
)
from jtok.embed.linear_maps import (
    linear_map,
    procrustes,
    rotation,
    sparse_basis,
)
from jtok.embed.magikarp import (
    under_trained_rows,
    well_trained_tokens,
)
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
from jtok.embed.ngram_language import (
    NgramLanguage,
    fit_ngrams,
    markov_language,
    sample_language,
)
from jtok.embed.omp import (
    omp,
)
from jtok.embed.oracle import (
    BeamReads,
    MixtureReads,
    beam_mixture,
    permutation_mixture,
    pinsker_bound,
    regret_bound,
)
from jtok.embed.probes import (
    StateProbe,
    fit_state_probe,
)
from jtok.embed.pursuit import (
    Pursuit,
    combine,
    first_best,
    matching_pursuit,
    orthogonal_pursuit,
)
from jtok.embed.random_tables import (
    LexinvariantConfig,
    LexinvariantModel,
    example_keys,
    lexinvariant_from,
    lexinvariant_table,
)
from jtok.embed.rope_pursuit import (
    Turned,
    fitted_positions,
    mp_rope,
    rope_pursuit,
    turn,
)
from jtok.embed.simple import (
    fitted_normal,
    fitted_rows,
    mean,
    normal,
    zero,
)
from jtok.embed.subword import (
    piece_weights,
    subword,
)
from jtok.embed.transplant import (
    restore,
    transplant,
    transplant_record,
)
from jtok.embed.unit_lm import (
    init_units,
    unit_hidden,
    unit_logits,
)
from jtok.embed.weighted import (
    weighted_rows,
)
from jtok.embed.word_config import (
    UnitConfig,
    WordPooledConfig,
)
from jtok.embed.word_generation import (
    WrittenWords,
    generate_words,
)
from jtok.embed.word_losses import (
    UnitScores,
    WordScores,
    unit_loss,
    unit_scores,
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
from jtok.embed.word_storage import (
    load_words,
    save_words,
    words_from_tensors,
)

__all__ = [
    "LETTERS",
    "LETTERS_AND_SIGNS",
    "LETTERS_AND_SPACE",
    "BeamReads",
    "Deciphered",
    "DonorRows",
    "EmbeddingInit",
    "LexinvariantConfig",
    "LexinvariantModel",
    "Made",
    "Mix",
    "MixtureReads",
    "NgramLanguage",
    "Options",
    "PackedWords",
    "Pursuit",
    "Report",
    "Rows",
    "StateProbe",
    "Task",
    "TaskBatch",
    "TaskScores",
    "TextVectors",
    "Turned",
    "UnitConfig",
    "UnitScores",
    "WordModel",
    "WordPooledConfig",
    "WordScores",
    "WrittenWords",
    "averaged_log_probs",
    "beam_mixture",
    "check_anchors",
    "check_finite",
    "combine",
    "common_interpolation",
    "decipher",
    "dense_tables",
    "donor_rows",
    "donor_view",
    "embed_by_tables",
    "encipher",
    "example_keys",
    "first_appearance",
    "first_best",
    "fit_ngrams",
    "fit_state_probe",
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
    "invariant_log_probs",
    "key_accuracy",
    "lexinvariant_from",
    "lexinvariant_hidden",
    "lexinvariant_inputs",
    "lexinvariant_logits",
    "lexinvariant_loss",
    "lexinvariant_table",
    "lexinvariant_target",
    "linear_map",
    "load_words",
    "local_weights",
    "logits_by_tables",
    "lookup_task",
    "markov_language",
    "matching_pursuit",
    "mean",
    "mix_tables",
    "mixed_rows",
    "model_encoder",
    "mp_rope",
    "nearest_tokens",
    "normal",
    "occurring",
    "omp",
    "orthogonal_pursuit",
    "pack_words",
    "packed_loss",
    "packed_scores",
    "permutation_mixture",
    "permutation_task",
    "piece_weights",
    "pinsker_bound",
    "plain_symbols",
    "procrustes",
    "random_keys",
    "read_keys",
    "regret_bound",
    "restore",
    "rope_pursuit",
    "rotation",
    "rows_of",
    "sample_language",
    "save_words",
    "share_unseen",
    "solve_lookup",
    "solve_permutation",
    "sparse_basis",
    "sparsemax",
    "subword",
    "symbol_posterior",
    "task_scores",
    "tokenadapt",
    "trans_tokenization",
    "transplant",
    "transplant_record",
    "turn",
    "under_trained_rows",
    "unit_hidden",
    "unit_logits",
    "unit_loss",
    "unit_scores",
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
