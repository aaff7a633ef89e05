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
from jtok.embed.dynamic import (
    DynamicInputs,
    RowMaker,
    dynamic_inputs,
    last_piece_rows,
    network_rows,
    piece_mean_rows,
    residual_rows,
)
from jtok.embed.dynamic_prompts import dynamic_prompts
from jtok.embed.encoders import (
    TextVectors,
    hashed_ngrams,
    model_encoder,
)
from jtok.embed.heuristic import (
    tokenadapt,
)
from jtok.embed.hypernetwork import (
    Hypernetwork,
    PredictedRows,
    fit_rescalers,
    init_hypernetwork,
    predict_rows,
    source_rows,
)
from jtok.embed.hypernetwork_files import load_hypernetwork, save_hypernetwork
from jtok.embed.hypernetwork_init import hypernetwork, predict_vocabulary
from jtok.embed.hypernetwork_losses import identity_error, lexical_error
from jtok.embed.hypernetwork_training import (
    identity_loss,
    join_network,
    network_optimizer,
    sampled_batch,
    split_network,
    transfer_loss,
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
from jtok.embed.large_vocabulary import (
    approximate_search,
    candidate_target,
    cluster_search,
    exact_search,
    with_vocabulary,
)
from jtok.embed.lexinvariant import (
    lexinvariant_hidden,
    lexinvariant_inputs,
    lexinvariant_logits,
    lexinvariant_loss,
)
from jtok.embed.lexinvariant_storage import load_lexinvariant, save_lexinvariant
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
from jtok.embed.residual_network import (
    ResidualNetwork,
    correct_rows,
    fit_residual_rescalers,
    init_residual_network,
)
from jtok.embed.rope_pursuit import (
    Turned,
    fitted_positions,
    mp_rope,
    rope_pursuit,
    turn,
)
from jtok.embed.row_table import RowTable
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
from jtok.embed.unit_generation import generate_units
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
from jtok.nn import HypernetworkConfig, PieceMixerConfig

__all__ = [
    "LETTERS",
    "LETTERS_AND_SIGNS",
    "LETTERS_AND_SPACE",
    "BeamReads",
    "Deciphered",
    "DonorRows",
    "DynamicInputs",
    "EmbeddingInit",
    "Hypernetwork",
    "HypernetworkConfig",
    "LexinvariantConfig",
    "LexinvariantModel",
    "Made",
    "Mix",
    "MixtureReads",
    "NgramLanguage",
    "Options",
    "PackedWords",
    "PieceMixerConfig",
    "PredictedRows",
    "Pursuit",
    "Report",
    "ResidualNetwork",
    "RowMaker",
    "RowTable",
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
    "approximate_search",
    "averaged_log_probs",
    "beam_mixture",
    "candidate_target",
    "check_anchors",
    "check_finite",
    "cluster_search",
    "combine",
    "common_interpolation",
    "correct_rows",
    "decipher",
    "dense_tables",
    "donor_rows",
    "donor_view",
    "dynamic_inputs",
    "dynamic_prompts",
    "embed_by_tables",
    "encipher",
    "exact_search",
    "example_keys",
    "first_appearance",
    "first_best",
    "fit_ngrams",
    "fit_rescalers",
    "fit_residual_rescalers",
    "fit_state_probe",
    "fitted_normal",
    "fitted_positions",
    "fitted_rows",
    "focus",
    "generate_units",
    "generate_words",
    "global_weights",
    "hashed_ngrams",
    "hybrid",
    "hypernetwork",
    "identity_error",
    "identity_loss",
    "init_hypernetwork",
    "init_residual_network",
    "init_units",
    "init_words",
    "initialiser",
    "interpolation_weights",
    "invariant_log_probs",
    "join_network",
    "key_accuracy",
    "last_piece_rows",
    "lexical_error",
    "lexinvariant_from",
    "lexinvariant_hidden",
    "lexinvariant_inputs",
    "lexinvariant_logits",
    "lexinvariant_loss",
    "lexinvariant_table",
    "lexinvariant_target",
    "linear_map",
    "load_hypernetwork",
    "load_lexinvariant",
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
    "network_optimizer",
    "network_rows",
    "normal",
    "occurring",
    "omp",
    "orthogonal_pursuit",
    "pack_words",
    "packed_loss",
    "packed_scores",
    "permutation_mixture",
    "permutation_task",
    "piece_mean_rows",
    "piece_weights",
    "pinsker_bound",
    "plain_symbols",
    "predict_rows",
    "predict_vocabulary",
    "procrustes",
    "random_keys",
    "read_keys",
    "regret_bound",
    "residual_rows",
    "restore",
    "rope_pursuit",
    "rotation",
    "rows_of",
    "sample_language",
    "sampled_batch",
    "save_hypernetwork",
    "save_lexinvariant",
    "save_words",
    "share_unseen",
    "solve_lookup",
    "solve_permutation",
    "source_rows",
    "sparse_basis",
    "sparsemax",
    "split_network",
    "subword",
    "symbol_posterior",
    "task_scores",
    "tokenadapt",
    "trans_tokenization",
    "transfer_loss",
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
    "with_vocabulary",
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
